"""Sampling and training steps to be compiled, and their inputs.

Programs are given by shape alone, nothing is allocated: published sizes can be
compiled on a laptop. `random_arrays` and `runner` are for those that are run.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_collections
import numpy as np

from adanat_jax.data.examples import ArrayExamples
from adanat_jax.decoding import actions
from adanat_jax.experiment import (
  adversarial_reward,
  networks,
  policies,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import (
  agent as agent_lib,
  masked_tokens,
  policy as policy_lib,
  ppo,
)
from adanat_jax.learning.rewards import RewardSpec
from adanat_jax.runtime import sharding
from adanat_jax.sampling import program
from adanat_jax.stages import (
  nat as nat_stage,
  policy as policy_stage,
  policy_rules,
)

# How many random numbers are drawn, and how far apart leaves start in them.
_NUM_RANDOM = 2**20
_STRIDE = 7919

_FROZEN_AXES = {'reward': {'held_out': 0}}


@dataclasses.dataclass(frozen=True)
class Program:
  """A function and the shapes of its arguments.

  Attributes:
    function: not jitted.
    arguments: pytrees of `jax.ShapeDtypeStruct`.
    batch_axes: of each argument, which axis is split over the devices; None
      for what every device has whole; a dict where its entries differ.
    donated: number of the argument that the result replaces, or ().
  """

  function: Callable[..., Any]
  arguments: tuple[Any, ...]
  batch_axes: tuple[Any, ...]
  donated: int | tuple[()]

  def placed(self, mesh: Mesh) -> tuple[Any, ...]:
    """The arguments with their places on a mesh."""

    def place(argument: Any, axis: Any) -> Any:
      if isinstance(axis, dict):
        return {k: place(x, axis.get(k)) for k, x in argument.items()}
      spec = NamedSharding(mesh, PartitionSpec())
      if axis is not None:
        spec = sharding.batch_sharding(mesh, axis)
      return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec),
        argument,
      )

    return tuple(map(place, self.arguments, self.batch_axes))

  def compile(
    self, mesh: Mesh | None = None, options: dict[str, Any] | None = None
  ) -> jax.stages.Compiled:
    """Compiles it for a mesh, or for one device without one."""
    jitted = jax.jit(self.function, donate_argnums=self.donated)
    if mesh is None:
      return jitted.lower(*self.arguments).compile(options)
    with jax.set_mesh(mesh):
      return jitted.lower(*self.placed(mesh)).compile(options)


class PolicyTraining:
  """The first policy training of a config.

  Attributes:
    ppo: its constants.
    num_steps: T.
    frozen: shapes of the parameters that it does not change.
    state: shapes of what it does.
    image: shape of one image.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    self._config = config
    self._which = policies.trainings(Experiment(config, 'unused'))[0]
    self._nat = networks.nat_module(config)
    self._tokenizer = networks.tokenizer_module(config)
    self._reward = _reward(config)
    self.ppo = policy_rules.ppo_config(config)
    self._rollouts = policy_rules.rollout_config(config)
    self._actor_critic = policies.make_actor_critic(
      Experiment(config, 'unused'), self._which
    )
    self.num_steps = self._which.num_steps
    self.image = self._images()
    self._residual = policies.residual_of(
      Experiment(config, 'unused'), self._which.num_steps
    )
    section = config.policy.discriminator
    batch = section.updates, section.batch_size
    self._real = {'images': self._images(*batch), 'condition': _labels(*batch)}
    tokens = _shape(1, self._nat.num_tokens, dtype=int)
    self.frozen = {
      'nat': _params(self._nat, tokens, _labels(1)),
      'tokenizer': _params(self._tokenizer, self._images(1)),
      'reward': self._reward.frozen,
    }
    self.state = jax.eval_shape(self._initial, self.frozen)

  def whole(self) -> Program:
    """One iteration."""

    def train_step(frozen: Any, state: Any, real: Any, iteration: Any) -> Any:
      section = self._config.policy
      return policy_lib.make_train_step(
        self._problem(frozen),
        self._actor_critic,
        self._residual,
        self._reward.build(frozen['reward']),
        self.ppo,
        key=_key(),
        batch_size=section.batch_size,
        num_iterations=section.iterations,
        fresh_rollouts=section.discriminator.fresh_rollouts,
        rollouts=self._rollouts,
      )(state, real, iteration)

    return Program(
      train_step,
      (self.frozen, self.state, self._real, _shape(dtype=int)),
      (_FROZEN_AXES, None, 1, None),
      donated=1,
    )

  def update(self) -> Program:
    """PPO's part of an iteration: epochs of gradients on what was collected."""
    size = self._config.policy.batch_size
    weights = jnp.ones(self._residual.shape)

    def collect(frozen: Any, params: Any) -> Any:
      return policy_lib.collect(
        self._problem(frozen),
        agent_lib.Agent(params, self._residual, self._actor_critic),
        _key(),
        batch_size=size,
        num_steps=self.num_steps,
        std=jnp.float32(1.0),
        weights=weights,
        config=self._rollouts,
      )

    def update(frozen: Any, state: Any, experience: Any, returns: Any) -> Any:
      rollout = ppo.Rollout(
        experience.observations,
        experience.aux.action,
        experience.aux.log_prob,
        experience.aux.value,
        returns,
        weights,
      )
      return ppo.update(
        state.params,
        state.opt_state,
        rollout,
        1.0,
        _key(),
        actor_critic=policy_lib.learner_of(
          self._problem(frozen), self._actor_critic, self._rollouts
        ),
        optimizer=ppo.make_optimizer(self.ppo),
        config=self.ppo,
      )

    experience, _, _ = jax.eval_shape(collect, self.frozen, self.state.params)
    return Program(
      update,
      (self.frozen, self.state, experience, experience.aux.value),
      (_FROZEN_AXES, None, 1, 1),
      1,
    )

  def _images(self, *lead: int) -> jax.ShapeDtypeStruct:
    side = self._config.data.image_size
    return _shape(*lead, side, side, networks.image_channels(self._config))

  def _problem(self, frozen: Any) -> policy_lib.Problem:
    return policy_stage.make_problem(self._nat, self._tokenizer, frozen)

  def _initial(self, frozen: Any) -> policy_lib.PolicyState:
    params = policies.initial_params(Experiment(self._config, 'unused'), _key())
    return policy_lib.initial_state(
      params,
      self.ppo,
      self._reward.initial(frozen['reward'], _key()),
    )


def nat_program(config: ml_collections.ConfigDict) -> Program:
  """One step of NAT training."""
  module = nat_stage.training_module(Experiment(config, 'unused'))
  section = config.nat
  optimizer = masked_tokens.make_optimizer(
    section.num_steps,
    section.learning_rate,
    section.warmup_steps,
    section.learning_rate_schedule,
    section.weight_decay,
    section.betas,
  )
  train_step = masked_tokens.make_train_step(
    nat_stage.make_network(module),
    optimizer,
    nat_stage.recipe_of(config),
    key=_key(),
  )
  tokens = _shape(section.batch_size, module.num_tokens, dtype=int)
  params = _params(module, tokens, _labels(section.batch_size))
  state = masked_tokens.NatState(
    params, params, jax.eval_shape(optimizer.init, params)
  )
  batch = {'tokens': tokens, 'condition': _labels(section.batch_size)}
  return Program(
    functools.partial(train_step, {}),
    (state, batch, _shape(dtype=int)),
    (None, 0, None),
    donated=0,
  )


def sampling_program(
  config: ml_collections.ConfigDict, batch_size: int
) -> Program:
  """Images of a batch of labels, by a learned policy, as `Generator` does."""
  nat, tokenizer = (
    networks.nat_module(config),
    networks.tokenizer_module(config),
  )
  which = policies.trainings(Experiment(config, 'unused'))[0]
  side, channels = config.data.image_size, networks.image_channels(config)
  tokens = _shape(batch_size, nat.num_tokens, dtype=int)
  agent = agent_lib.Agent(
    jax.eval_shape(
      lambda: policies.initial_params(Experiment(config, 'unused'), _key())
    ),
    _shape(which.num_steps, actions.NUM_ACTIONS),
    policies.make_actor_critic(Experiment(config, 'unused'), which),
  )

  def sample(
    nat_params: Any,
    tokenizer_params: Any,
    agent: Any,
    batch: Any,
    null_label: Any,
    key: Any,
  ) -> Any:
    return program.decode_batch.__wrapped__(
      nat,
      tokenizer,
      program.Plan(which.num_steps),
      nat_params,
      tokenizer_params,
      agent,
      batch,
      null_label,
      key,
    )

  return Program(
    sample,
    (
      _params(nat, tokens, _labels(batch_size)),
      _params(tokenizer, _shape(1, side, side, channels)),
      agent,
      {
        'tokens': tokens,
        'labels': _labels(batch_size),
        'index': _labels(batch_size),
      },
      _shape(dtype=int),
      jax.eval_shape(_key),
    ),
    (None, None, None, 0, None, None),
    donated=(),
  )


def _reward(config: ml_collections.ConfigDict) -> RewardSpec:
  """The adversarial reward, with shapes in place of the arrays it loads."""
  trunk = networks.reward_module(config)
  size, channels = trunk.image_size, trunk.image_channels
  params = _params(trunk, _shape(1, size, size, channels))
  side, count = config.data.image_size, config.policy.discriminator.held_out
  held_out = ArrayExamples(
    {
      'images': np.zeros((count, side, side, channels), np.float32),
      'condition': np.zeros(count, np.int32),
    }
  )
  with (
    mock.patch.object(Experiment, 'network', lambda *_: (trunk, params)),
    mock.patch.object(adversarial_reward, 'real_examples', lambda *_: held_out),
  ):
    groups = policy_rules.ppo_config(config).shuffle_groups
    spec = adversarial_reward.make_spec(
      Experiment(config, pathlib.Path()), groups
    )
  frozen = jax.tree.map(lambda x: _shape(*x.shape, dtype=x.dtype), spec.frozen)
  return dataclasses.replace(spec, frozen=frozen)


def _key() -> jax.Array:
  """Made late: with it JAX looks for its devices."""
  return jax.random.key(0)


def _shape(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))


def _labels(*shape: int) -> jax.ShapeDtypeStruct:
  return _shape(*shape, dtype=int)


def _params(module: Any, *inputs: jax.ShapeDtypeStruct) -> Any:
  return jax.eval_shape(module.init, _key(), *inputs)['params']


def random_arrays(shapes: Any, seed: int = 0) -> Any:
  """Weights that keep activations in a normal range; all else is 0.

  Matrices and kernels are N(0, 0.02^2), scales of norms 1. The numbers are
  drawn once and repeat in large kernels: drawing all of them, and compiling a
  generator for each shape, would take longer than sampling.

  Args:
    shapes: pytree of `jax.ShapeDtypeStruct`.
    seed: of the weights, and the key where the tree has one.
  """
  normal = 0.02 * jax.random.normal(jax.random.key(seed), (_NUM_RANDOM,))
  drawn = np.asarray(normal)
  leaves, tree = jax.tree.flatten_with_path(shapes)

  def make(index: int, path: Any, leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.key(seed)
    if leaf.ndim > 1 and jnp.issubdtype(leaf.dtype, jnp.floating):
      start = index * _STRIDE % (_NUM_RANDOM // 2)
      value = np.resize(drawn[start:], leaf.shape)
    else:
      is_scale = getattr(path[-1], 'key', None) == 'scale'
      value = np.full(leaf.shape, int(is_scale))
    return jnp.asarray(value, leaf.dtype)

  made = [make(index, *item) for index, item in enumerate(leaves)]
  return jax.tree.unflatten(tree, made)


def runner(program: Program, compiled: Any) -> Callable[[], Any]:
  """Runs a compiled program; a training step goes on from its last result."""
  arguments = list(random_arrays(program.arguments))

  def run() -> Any:
    # A copy to a compiled program's place costs nothing on the same device.
    result = compiled(*arguments)
    if program.donated != ():
      arguments[program.donated] = result[0]
    return result

  return run
