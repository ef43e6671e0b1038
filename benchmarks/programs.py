"""Training steps to be compiled, and their inputs.

Programs are given by shape alone, nothing is allocated: published sizes can be
compiled on a laptop. `random_arrays` and `runner` are for those that are run.
"""

from __future__ import annotations

from collections.abc import Callable
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

from adanat_jax.data.examples import ArrayExamples
from adanat_jax.experiment import adversarial_reward, fit, networks, policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import masked_tokens
from adanat_jax.runtime import checkpoint, sharding
from adanat_jax.stages import nat as nat_stage, policy as policy_stage

# How many random numbers are drawn, and how far apart leaves start in them.
_NUM_RANDOM = 2**20
_STRIDE = 7919


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


def policy_program(config: ml_collections.ConfigDict) -> Program:
  """One iteration of the first policy training of a config.

  It is the stage itself that makes the step: networks and images that it loads
  are replaced by their shapes, and the training that it begins is not run.
  """
  config = config.copy_and_resolve_references()
  config.policy.evaluate_every = 0
  experiment = Experiment(config, 'unused')
  section, side = config.policy.discriminator, config.data.image_size
  image = side, side, networks.image_channels(config)
  held_out = ArrayExamples(
    {
      'images': np.zeros((section.held_out, *image), np.float32),
      'condition': np.zeros(section.held_out, np.int32),
    }
  )
  instead = {
    (Experiment, 'require'): lambda *_: None,
    (Experiment, 'load_converted'): lambda _, __, ___, shapes: shapes,
    (checkpoint, 'load_params'): lambda _, __, shapes: shapes,
    (adversarial_reward, 'real_examples'): lambda *_: held_out,
    (policy_stage, 'make_batches'): lambda *_, **__: {},
    (fit, 'fit'): (begun := mock.Mock()),
  }
  with contextlib.ExitStack() as stack:
    for place, value in instead.items():
      stack.enter_context(mock.patch.object(*place, value))
    policy_stage.train(experiment, policies.trainings(experiment)[0])
  given = begun.call_args.kwargs
  frozen = jax.tree.map(
    lambda x: _shape(*x.shape, dtype=x.dtype), given['frozen']
  )
  batch = section.updates, section.batch_size
  real = {'images': _shape(*batch, *image), 'condition': _labels(*batch)}
  return Program(
    given['train_step'],
    (
      frozen,
      jax.eval_shape(given['initial'], frozen),
      {'real': real},
      _shape(dtype=int),
    ),
    ({'reward': {'held_out': 0}}, None, {'real': 1}, None),
    donated=1,
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
