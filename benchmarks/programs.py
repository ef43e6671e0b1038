"""Training steps, sampling and features to be compiled, and their inputs.

It is the stages themselves that make the steps. Programs are given by shape
alone, nothing is allocated: published sizes can be compiled on a laptop.
`random_arrays` and `runner` are for those that are run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import ml_collections
import numpy as np

from adanat_jax.data.clip_tokens import NUM_POSITIONS as _TEXT_LENGTH
from adanat_jax.data.examples import ArrayExamples
from adanat_jax.decoding import buckets, unrolled
from adanat_jax.experiment import (
  adversarial_reward,
  fit,
  named_schedules,
  networks,
  policies,
  texts,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning.agent import Agent
from adanat_jax.models import denoisers
from adanat_jax.models.inception import InceptionV3
from adanat_jax.runtime import sharding
from adanat_jax.sampling import first_step, program
from adanat_jax.stages import (
  nat as nat_stage,
  nat_held_out,
  policy as policy_stage,
  tokenizer as tokenizer_stage,
  tokenizer_reconstruction,
)

# How many random numbers are drawn, and how far apart leaves start in them.
_NUM_RANDOM = 2**20
_STRIDE = 7919
_TABLE = first_step._table


@dataclasses.dataclass(frozen=True)
class Program:
  """A function and the shapes of its arguments."""

  function: Callable[..., Any]  # Not jitted.
  arguments: tuple[Any, ...]  # Pytrees of `jax.ShapeDtypeStruct`.
  # Of each argument, which axis is split over the devices; None for what is
  # whole on all of them, or, of a state that is trained, placed by
  # `sharding.RULES`; a dict where its entries differ.
  batch_axes: tuple[Any, ...]
  donated: int | tuple[()]  # The argument that the result replaces, or ().

  def placed(self, mesh: Mesh) -> tuple[Any, ...]:
    """The arguments with their places on a mesh."""

    def place(argument: Any, axis: Any, rules: Any = ()) -> Any:
      if isinstance(axis, dict):
        return {k: place(x, axis.get(k)) for k, x in argument.items()}
      if axis is None:
        return sharding.placed(argument, mesh, rules)
      spec = sharding.batch_sharding(mesh, axis)
      return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spec),
        argument,
      )

    rules = [()] * len(self.arguments)
    if self.donated != ():
      rules[self.donated] = sharding.RULES
    return tuple(map(place, self.arguments, self.batch_axes, rules))

  def compile(
    self, mesh: Mesh | None = None, options: dict[str, Any] | None = None
  ) -> jax.stages.Compiled:
    """Compiles it for a mesh, or for one device without one."""
    if mesh is None:
      jitted = jax.jit(self.function, donate_argnums=self.donated)
      return jitted.lower(*self.arguments).compile(options)
    places: dict[str, Any] = {}
    if self.donated != ():
      # As `fit` places the new state and the metrics.
      state = sharding.state_shardings(self.arguments[self.donated], mesh)
      places['out_shardings'] = state, NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
      jitted = jax.jit(self.function, donate_argnums=self.donated, **places)
      return jitted.lower(*self.placed(mesh)).compile(options)


def policy_program(config: ml_collections.ConfigDict) -> Program:
  """One iteration of the first policy training of a config."""
  experiment = _experiment(config)
  section = config.policy.discriminator
  image = networks.image_shape(config)
  # As they come from files; the device converts them.
  levels = np.float32 if experiment.is_digits else np.uint8
  conditions = {'condition': _labels(section.held_out)}
  if experiment.is_text:
    conditions = _captions(config, section.held_out)
  held_out = ArrayExamples(
    {
      'images': np.zeros((section.held_out, *image), levels),
      **{k: np.zeros(x.shape, x.dtype) for k, x in conditions.items()},
    }
  )
  instead = _without_files() | {
    (adversarial_reward, 'real_examples'): lambda *_: held_out,
    (policy_stage, 'make_batches'): lambda *_, **__: {},
  }
  which = policies.trainings(experiment)[0]
  begin = functools.partial(policy_stage.train, experiment, which)
  batch_shape = section.updates, section.batch_size
  real = {
    'images': _shape(*batch_shape, *image, dtype=levels),
    'condition': _labels(*batch_shape),
  }
  axes = {'reward': {'held_out': 0}}, None, {'real': 1}, None
  batch: dict[str, Any] = {'real': real}
  if experiment.is_text:
    instead[texts, 'null_states'] = lambda _: np.zeros(
      (_TEXT_LENGTH, config.text.width), np.float32
    )
    del real['condition']
    real |= _captions(config, *batch_shape)
    batch |= {
      'rollouts': _captions(config, config.policy.batch_size),
      'fresh': _captions(config, *batch_shape),
    }
    axes = axes[0], None, {'real': 1, 'rollouts': 0, 'fresh': 1}, None
  if not section.held_out:
    axes = None, *axes[1:]
  return _program(begin, instead, batch, axes)


def nat_program(config: ml_collections.ConfigDict) -> Program:
  """One step of NAT training."""
  experiment, size = _experiment(config), config.nat.batch_size
  instead = {
    (nat_stage, 'check_config'): lambda _: None,
    (nat_stage, '_splits'): lambda _: {'train': None},
    (nat_held_out, 'HeldOutLoss'): mock.Mock(),
    (fit, 'Batches'): mock.Mock(),
  }
  batch = {'tokens': _shape(size, experiment.num_tokens, dtype=int)}
  if experiment.is_text:
    instead |= _without_files()
    instead[nat_stage, '_frozen'] = lambda *_: (
      None,
      {'text': (), 'null': _shape(_TEXT_LENGTH, config.text.width)},
    )
    batch |= _captions(config, size)
  else:
    batch['condition'] = _labels(size)
  begin = functools.partial(nat_stage.run, experiment)
  return _program(begin, instead, batch, (None, None, 0, None))


def tokenizer_program(config: ml_collections.ConfigDict) -> Program:
  """One step of the tokenizer's training."""
  experiment = _experiment(config)
  instead = {
    (tokenizer_stage, 'check_config'): lambda _: None,
    (tokenizer_stage, 'splits_of'): lambda _: {'train': None},
    (tokenizer_reconstruction, 'Reconstruction'): mock.Mock(),
    (fit, 'Batches'): mock.Mock(),
  }
  shape = config.tokenizer.batch_size, *networks.image_shape(config)
  batch = {'images': _shape(*shape, dtype=jnp.uint8)}
  begin = functools.partial(tokenizer_stage.run, experiment)
  return _program(begin, instead, batch, (None, None, 0, None))


def encoding_program(
  config: ml_collections.ConfigDict, batch_size: int
) -> Program:
  """Tokens of a batch of images, as stage `prepare` makes them."""
  tokenizer, params = _network(config, 'tokenizer')
  encode = functools.partial(program.apply, tokenizer, 'tokenize')
  arguments = params, _shape(batch_size, *networks.image_shape(config))
  return Program(encode, arguments, (None, 0), donated=())


def captions_program(
  config: ml_collections.ConfigDict, batch_size: int
) -> Program:
  """States of a batch of captions, as stage `prepare` makes them."""
  text, (ids,) = networks.module_and_inputs(config, 'text')
  params = jax.eval_shape(text.init, jax.random.key(0), ids)['params']

  def encode(params: Any, ids: Any) -> Any:
    return texts.conditions(text, params, {'ids': ids})

  arguments = params, _shape(batch_size, ids.shape[1], dtype=int)
  return Program(encode, arguments, (None, 0), donated=())


def features_program(
  config: ml_collections.ConfigDict, batch_size: int
) -> Program:
  """What evaluation measures of a batch of images, by Inception."""
  module = InceptionV3()
  images = _shape(batch_size, *networks.image_shape(config))
  params = jax.eval_shape(module.init, jax.random.key(0), images)['params']

  def features(params: Any, images: Any) -> Any:
    out = module.apply({'params': params}, images)
    return out.pool3, out.unbiased_logits

  return Program(features, (params, images), (None, 0), donated=())


def sampling_program(
  config: ml_collections.ConfigDict,
  batch_size: int,
  policy: str = 'learned',
) -> Program:
  """Images of a batch of labels or captions, as `Generator` makes them.

  Args:
    config: its first T is decoded in.
    batch_size: over all devices.
    policy: 'learned'; a schedule, which an ENAT follows by its counts; or
      'buckets', a learned policy in `evaluate.num_buckets` of them, chosen for
      the config's own schedule.
  """
  experiment, num_steps = _experiment(config), config.policy.num_steps[0]
  nat, nat_params = _network(config, 'nat')
  tokenizer, tokenizer_params = _network(config, 'tokenizer')
  num_tokens, text = nat.num_tokens, experiment.is_text
  labels = _labels(batch_size)
  null = np.asarray(nat.num_classes or 0, np.int32)
  if text:
    labels = _shape(batch_size, _TEXT_LENGTH, config.text.width)
    null = _shape(_TEXT_LENGTH, config.text.width)
  is_table = policy not in ('learned', 'buckets')
  name = policy if is_table else config.sample.policy
  plan, schedule = program.Plan(num_steps), None
  if policy != 'learned':
    schedule = named_schedules.make(name, num_steps, num_tokens)
    counts = unrolled.counts_of(
      schedule.policy,
      num_tokens,
      text_length=_TEXT_LENGTH * text,
      options=schedule.options,
    )
  if is_table:
    plan = dataclasses.replace(
      program.Plan.from_schedule(schedule),
      counts=counts if denoisers.reuses(nat) else None,
    )
    values: Any = schedule.policy
  else:
    training = policies.trainings(experiment)[0]
    values = Agent(
      jax.eval_shape(
        functools.partial(policies.initial_params, experiment),
        jax.random.key(0),
      ),
      policies.residual_of(experiment, num_steps),
      policies.make_actor_critic(experiment, training),
    )
    if policy == 'buckets':
      length = num_tokens + _TEXT_LENGTH * text
      chosen = buckets.choose(
        np.array(counts), length, config.evaluate.num_buckets, sum
      )
      plan = dataclasses.replace(plan, buckets=chosen)

  def sample(*arguments: Any) -> Any:
    return program.decode_batch.__wrapped__(nat, tokenizer, plan, *arguments)

  batch = {
    'tokens': _shape(batch_size, num_tokens, dtype=int),
    'labels': labels,
    'index': _labels(batch_size),
  }
  if is_table and schedule.priority is not None:
    batch['priority'] = _shape(batch_size, num_tokens)
  key = jax.random.key(0)
  arguments = nat_params, tokenizer_params, values, batch, null, key
  return Program(sample, arguments, (None, None, None, 0, None, None), ())


def _network(config: ml_collections.ConfigDict, name: str) -> tuple[Any, Any]:
  """A network, and the shapes of its parameters."""
  module, inputs = networks.module_and_inputs(config, name)
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  return module, shapes['params']


def _without_files() -> dict[tuple[Any, str], Any]:
  """Stand-ins of what reads checkpoints: shapes for arrays."""
  return {
    (Experiment, 'require'): lambda *_: None,
    (Experiment, 'load_converted'): lambda _, __, ___, shapes: shapes,
    (Experiment, 'load_trained'): lambda _, __, ___, shapes: shapes(),
    (first_step, '_table'): lambda nat, params, rows: jax.eval_shape(
      functools.partial(_TABLE, nat, rows=rows), params
    ),
  }


def _captions(config: ml_collections.ConfigDict, *shape: int) -> dict[str, Any]:
  """Captions whose states were prepared."""
  return {
    'states': _shape(
      *shape, _TEXT_LENGTH, config.text.width, dtype=jnp.float16
    ),
    'embedding': _shape(*shape, config.text.projection_width),
  }


def _experiment(config: ml_collections.ConfigDict) -> Experiment:
  """Of a config whose trainings are not measured as they go."""
  config = config.copy_and_resolve_references()
  config.policy.evaluate_every = config.nat.evaluate_every = 0
  return Experiment(config, 'unused')


def _program(
  begin: Callable[[], None],
  instead: Mapping[tuple[Any, str], Any],
  batch: Any,
  batch_axes: tuple[Any, ...],
) -> Program:
  """The step that a stage makes; the training that it begins is not run.

  Args:
    begin: the stage.
    instead: what stands in for what it would load or measure, by object and
      attribute.
    batch: shapes of what a step reads.
    batch_axes: see `Program`.
  """
  with contextlib.ExitStack() as stack:
    begun = stack.enter_context(mock.patch.object(fit, 'fit'))
    for place, value in instead.items():
      stack.enter_context(mock.patch.object(*place, value))
    begin()
  given = begun.call_args.kwargs
  frozen = jax.tree.map(
    lambda x: _shape(*x.shape, dtype=x.dtype), given.get('frozen', ())
  )
  state = jax.eval_shape(given['initial'], frozen)
  step = _shape(dtype=int)
  return Program(
    given['train_step'], (frozen, state, batch, step), batch_axes, donated=1
  )


def _shape(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))


def _labels(*shape: int) -> jax.ShapeDtypeStruct:
  return _shape(*shape, dtype=int)


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
