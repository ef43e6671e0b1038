"""Training steps to be compiled, and their inputs.

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

from adanat_jax.data.examples import ArrayExamples
from adanat_jax.experiment import adversarial_reward, fit, networks, policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import checkpoint, sharding
from adanat_jax.stages import (
  nat as nat_stage,
  nat_held_out,
  policy as policy_stage,
)

# How many random numbers are drawn, and how far apart leaves start in them.
_NUM_RANDOM = 2**20
_STRIDE = 7919


@dataclasses.dataclass(frozen=True)
class Program:
  """A function and the shapes of its arguments."""

  function: Callable[..., Any]  # Not jitted.
  arguments: tuple[Any, ...]  # Pytrees of `jax.ShapeDtypeStruct`.
  # Of each argument, which axis is split over the devices; None for what every
  # device has whole; a dict where its entries differ.
  batch_axes: tuple[Any, ...]
  donated: int | tuple[()]  # The argument that the result replaces, or ().

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
  """One iteration of the first policy training of a config."""
  experiment = _experiment(config)
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
  }
  which = policies.trainings(experiment)[0]
  begin = functools.partial(policy_stage.train, experiment, which)
  batch = section.updates, section.batch_size
  real = {'images': _shape(*batch, *image), 'condition': _labels(*batch)}
  axes = {'reward': {'held_out': 0}}, None, {'real': 1}, None
  return _program(begin, instead, {'real': real}, axes)


def nat_program(config: ml_collections.ConfigDict) -> Program:
  """One step of NAT training."""
  experiment, size = _experiment(config), config.nat.batch_size
  instead = {
    (nat_stage, 'check_config'): lambda _: None,
    (nat_stage, '_splits'): lambda _: {'train': None},
    (nat_held_out, 'HeldOutLoss'): mock.Mock(),
    (fit, 'Batches'): mock.Mock(),
  }
  tokens = _shape(size, experiment.num_tokens, dtype=int)
  batch = {'tokens': tokens, 'condition': _labels(size)}
  begin = functools.partial(nat_stage.run, experiment)
  return _program(begin, instead, batch, (None, None, 0, None))


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
    lambda x: _shape(*x.shape, dtype=x.dtype), given['frozen']
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
