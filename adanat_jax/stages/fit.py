"""What every training stage does the same way: its loop, on the mesh.

Parameters are born where the rule table puts them, the step is compiled once
with the state donated, and everything runs under the mesh of the config, so
that `adanat_jax.sharding.split_batch` means the same devices everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import math
import pathlib
from typing import Any, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec
import ml_collections

from adanat_jax import sharding, training
from adanat_jax.data.examples import Examples
from adanat_jax.data.order import epoch_batch
from adanat_jax.stages import networks
from adanat_jax.types import Array

State = TypeVar('State')


def fit(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  name: str,
  *,
  initial: Callable[[Any], State],
  train_step: Callable[
    [Any, State, Any, Array], tuple[State, Mapping[str, Array]]
  ],
  batch_at: Callable[[int], Any],
  num_steps: int,
  frozen: Any = (),
  final_figures: Callable[[State], Mapping[str, Any]] | None = None,
  best_of: tuple[str, str] = ('loss', 'min'),
  **options: Any,
) -> State:
  """Trains from the newest checkpoint, or from the start, to `num_steps`.

  Args:
    config: the whole config; its mesh and the options of loops are read.
    workdir: gets `<name>/`.
    name: of the training, its directory in the workdir.
    initial: `frozen -> state`, traced.
    train_step: `(frozen, state, batch, step) -> (state, metrics)`, traced.
    batch_at: `step -> batch` as global arrays.
    num_steps: total number of steps.
    frozen: global arrays that the step reads and nothing changes.
    final_figures: see `training.run_loop`.
    best_of: `(metric, 'min' or 'max')`, by which `config.keep_best` chooses.
    **options: of `training.run_loop`, before those of the config.

  Returns:
    The state after `num_steps` steps.
  """
  mesh = networks.mesh_of(config)
  with jax.set_mesh(mesh):
    state = sharding.init_state(initial, frozen, mesh=mesh)
    places = (
      sharding.state_shardings(state, mesh),
      NamedSharding(mesh, PartitionSpec()),
    )
    compiled = jax.jit(train_step, donate_argnums=1, out_shardings=places)
    return training.run_loop(
      state,
      functools.partial(compiled, frozen),
      batch_at,
      directory=workdir / name,
      name=name,
      num_steps=num_steps,
      final_figures=final_figures,
      **{**networks.loop_options(config, best_of), **options},
    )


def batches(
  config: ml_collections.ConfigDict,
  name: str,
  examples: Examples,
  shape: tuple[int, ...],
) -> Callable[[int], Any]:
  """Batches of examples, each process reading its own part.

  Args:
    config: the whole config; its seed and mesh are read.
    name: of the training, which has an order of its own.
    examples: what is read.
    shape: (B,), or (U, B) for several batches a step.

  Returns:
    `step -> batch`, a dict of global arrays [*shape, ...] split over all
    devices along the last axis of `shape`.
  """
  mesh = networks.mesh_of(config)
  axis = len(shape) - 1
  seed = networks.order_seed(config, name)

  def batch_at(step: int) -> Any:
    index = epoch_batch(step, math.prod(shape), len(examples), seed)
    rows = sharding.local_rows(index.reshape(shape), mesh, axis)
    return sharding.put_batch(examples.take(rows), mesh, axis)

  return batch_at
