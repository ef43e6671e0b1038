"""What every training stage shares: its loop, on the mesh.

The rule table places the parameters from the start, the step is compiled once
with the state donated, and all runs under the mesh of the config, so that
`runtime.sharding.split_batch` means the same devices everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any, TypeVar

from flax import struct
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from adanat_jax.data import prefetch
from adanat_jax.data.examples import ArrayExamples, Examples, Rows
from adanat_jax.data.order import epoch_batch, weighted_batch
from adanat_jax.experiment import config as config_lib
from adanat_jax.runtime import loop, sharding
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment

State = TypeVar('State')


class Batches:
  """Batches of examples by step; each process reads its own part.

  Examples that have to be read or decoded are read ahead by threads.
  """

  def __init__(
    self,
    experiment: Experiment,
    name: str,
    examples: Examples,
    shape: tuple[int, ...],
    weights: np.ndarray | None = None,
  ):
    """Reads nothing yet.

    Args:
      experiment: its seed and mesh are read.
      name: of the training, which has an order of its own.
      examples: what is read.
      shape: (B,), or (U, B) for several batches a step.
      weights: float[n] of the examples, which are then drawn with replacement;
        None for one epoch after another.
    """
    self._mesh = experiment.mesh
    self._seed = experiment.order_seed(name)
    self._examples = examples
    self._shape = shape
    self._weights = weights
    in_memory = isinstance(examples, ArrayExamples)
    self._ahead = None if in_memory else prefetch.Prefetch(self._read)

  def __call__(self, step: int) -> Any:
    """The batch of a step: a dict of global arrays [*shape, ...].

    They are split over all devices along the last axis of the shape.
    """
    rows = self._ahead(step) if self._ahead else self._read(step)
    return sharding.put_batch(rows, self._mesh, len(self._shape) - 1)

  def close(self) -> None:
    """Ends reading ahead."""
    if self._ahead:
      self._ahead.close()

  def _read(self, step: int) -> Rows:
    size, count = math.prod(self._shape), len(self._examples)
    if self._weights is None:
      index = epoch_batch(step, size, count, self._seed)
    else:
      index = weighted_batch(step, size, self._weights, self._seed)
    index = index.reshape(self._shape)
    axis = len(self._shape) - 1
    return self._examples.take(sharding.local_rows(index, self._mesh, axis))


@struct.dataclass
class Choice:
  """A value for which a step is compiled, not an argument of it."""

  value: Any = struct.field(pytree_node=False)


class Choices:
  """One of some values for each step, all equally often, in a random order."""

  def __init__(
    self, experiment: Experiment, name: str, values: Sequence[Hashable]
  ):
    """The values, in an order that the name and the config's seed decide."""
    self._seed = experiment.order_seed(name)
    self._values = values

  def __call__(self, step: int) -> Choice:
    """What a step gets: a function of its number alone, as a batch is."""
    (index,) = epoch_batch(step, 1, len(self._values), self._seed)
    return Choice(self._values[index])

  def close(self) -> None:
    """Nothing is open."""


def fit(
  experiment: Experiment,
  name: str,
  *,
  initial: Callable[[Any], State],
  train_step: Callable[
    [Any, State, Any, Array], tuple[State, Mapping[str, Array]]
  ],
  batch_at: Batches | Mapping[str, Batches | Choices],
  num_steps: int,
  frozen: Any = (),
  final_figures: Callable[[State], Mapping[str, Any]] | None = None,
  best_of: tuple[str, str] | None = ('loss', 'min'),
  keep_best: bool = False,
  **options: Any,
) -> State:
  """Trains from the newest checkpoint, or from the start, to `num_steps`.

  Args:
    experiment: its workdir gets `<name>/`.
    name: of the training, its directory in the workdir.
    initial: `frozen -> state`, traced.
    train_step: `(frozen, state, batch, step) -> (state, metrics)`, traced.
    batch_at: the batches of the steps, or the parts of them by name; closed at
      the end. A part that is chosen is static: the step is compiled for each of
      its values.
    num_steps: total number of steps.
    frozen: global arrays that the step reads and nothing changes.
    final_figures: see `loop.run_loop`.
    best_of: `(metric, 'min' or 'max')`, by which `config.keep_best` chooses;
      None to keep no best one.
    keep_best: keep the best checkpoint whatever the config says.
    **options: of `loop.run_loop`, before those of the config.

  Returns:
    The state after `num_steps` steps.
  """
  mesh, config = experiment.mesh, experiment.config
  given = {
    'log_every': config.log_every,
    'save_every': config.save_every,
    'keep_every': config.keep_every or None,
    'profile': tuple(config.profile),
    'tensorboard': config.tensorboard,
    'wandb': config.get('wandb', ''),
    **options,
  }
  with contextlib.ExitStack() as stack:
    for part in jax.tree.leaves(batch_at):
      stack.callback(part.close)
    stack.enter_context(jax.set_mesh(mesh))
    state = sharding.init_state(initial, frozen, mesh=mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    places = sharding.state_shardings(state, mesh), whole
    compiled = jax.jit(train_step, donate_argnums=1, out_shardings=places)
    return loop.run_loop(
      state,
      functools.partial(compiled, frozen),
      lambda step: jax.tree.map(lambda part: part(step), batch_at),
      directory=experiment.workdir / name,
      name=name,
      num_steps=num_steps,
      final_figures=final_figures,
      best_of=best_of if config.keep_best or keep_best else None,
      config_for_meta=config_lib.to_dict(config),
      **given,
    )
