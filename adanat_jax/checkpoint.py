"""Checkpoints: what is saved, how it is checked, in which order it is used.

A thin layer over Orbax. A checkpoint is one directory
`<stage>/checkpoints/<step>` that holds `state`, the whole train state, and
`meta` (see `checkpoint_meta`). It becomes visible in one rename, after
everything in it is written.

Order of restoring, used by `adanat_jax.training.run_loop`:
  1. the newest checkpoint of the stage's own directory;
  2. if that one is damaged, it is named in a warning, moved to
     `checkpoints.damaged`, and the one before it is used;
  3. if there is none, the state the caller has initialised.
A checkpoint may be restored onto another number of devices or processes than
saved it. With several processes each reads its own part, and a checkpoint that
one of them cannot read is damaged for all.
Weights of a finished stage are read by `load_params`, which writes nothing.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
import shutil
from typing import Any

from absl import logging
import orbax.checkpoint as ocp

from adanat_jax import checkpoint_meta, distributed, files, leaves
from adanat_jax.errors import UserError
from adanat_jax.weights import load_params

__all__ = ['Checkpointer', 'NonFiniteError', 'Restored', 'load_params']


# Under this name the metric of `best_of` is kept in a checkpoint.
_SCORE = 'best_of'


class NonFiniteError(UserError):
  """A number of a run became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint holds: `step` finished steps, the state, the meta."""

  step: int
  state: Any
  meta: Mapping[str, Any]


class Checkpointer:
  """Saves and restores the states of one stage, asynchronously."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    max_to_keep: int = 2,
    keep_every: int | None = None,
    best_of: tuple[str, str] | None = None,
  ):
    """Opens `<directory>/checkpoints` and removes half-written ones.

    Args:
      directory: the stage's directory; created when missing.
      max_to_keep: how many of the newest checkpoints stay, at least 2: the
        older is what a damaged newest one is replaced by.
      keep_every: checkpoints of steps that this divides stay too.
      best_of: `(metric, 'min' or 'max')`: the checkpoint with the smallest or
        the largest value of this metric stays too.
    """
    if max_to_keep < 2:
      raise UserError(f'max_to_keep: {max_to_keep} given, at least 2 is needed')
    if keep_every is not None and keep_every < 1:
      raise UserError(f'keep_every: {keep_every} given, at least 1 is needed')
    if best_of is not None and best_of[1] not in ('min', 'max'):
      raise UserError(
        f"best_of: {best_of} given, its end must be 'min' or 'max'"
      )
    self._metric = None if best_of is None else best_of[0]
    self._path = files.make_directory(
      pathlib.Path(directory).absolute() / 'checkpoints'
    )
    self._manager = ocp.CheckpointManager(
      self._path,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_preservation(max_to_keep, keep_every, best_of),
        # This alone makes Orbax write the metric; the policy chooses by it.
        best_fn=_score if best_of is not None else None,
        cleanup_tmp_directories=True,
      ),
      item_names=('state', 'meta'),
    )

  def save(
    self,
    step: int,
    state: Any,
    meta: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
  ) -> None:
    """Starts saving; returns once the state may be changed or donated.

    Args:
      step: number of finished steps.
      state: a pytree of arrays; typed PRNG keys are fine.
      meta: what JSON can hold; see `checkpoint_meta` for what is added.
      metrics: scalars of this step; `best_of` looks its metric up in them.

    Raises:
      NonFiniteError: if a leaf holds NaN or infinity. Nothing is saved.
      UserError: if this or the save before it cannot be written, or if the
        metric of `best_of` is none of `metrics`.
    """
    score = None
    if self._metric is not None:
      given = metrics or {}
      if self._metric not in given:
        raise UserError(
          f'best_of: {self._metric!r} is no metric of step {step}; there are '
          f'{", ".join(sorted(given)) or "none"}'
        )
      score = {_SCORE: float(given[self._metric])}
    examined = leaves.examine(state)
    for name, leaf in examined.items():
      if not leaf.finite:
        raise NonFiniteError(
          f'the state is not finite after step {step}: {name} holds NaN or '
          'infinity; it is not saved, the last checkpoint is kept'
        )
    with files.writing(self._path):
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          meta=ocp.args.JsonSave(checkpoint_meta.build(step, meta, examined)),
        ),
        metrics=score,
        force=True,
      )
    if not saved:
      raise RuntimeError(f'{self._path}: step {step} was not saved')

  def wait(self) -> None:
    """Blocks until the last save is on the disk; raises what it raised."""
    with files.writing(self._path):
      self._manager.wait_until_finished()

  def restore(self, target: Any) -> Restored | None:
    """Restores the newest good checkpoint.

    Args:
      target: a pytree of arrays (or `jax.ShapeDtypeStruct`s with shardings)
        of the same structure; the restored arrays get its shardings.

    Returns:
      The checkpoint, or None if there is none.

    Raises:
      UserError: if the newest good checkpoint has other leaves, shapes or
        types than `target`; names the first that differs.
    """
    steps = distributed.from_first(lambda: list(self._manager.all_steps()))
    for step in sorted(steps, reverse=True):
      path = self._path / str(step)
      try:
        state, meta = checkpoint_meta.read_state(path, target)
      except checkpoint_meta.DamagedError as error:
        self._set_aside(path, error)
        continue
      return Restored(step=step, state=state, meta=meta)
    return None

  def _set_aside(self, path: pathlib.Path, error: Exception) -> None:
    """Moves a damaged checkpoint out of the way, so its step can be saved."""
    damaged = self._path.with_name('checkpoints.damaged')

    def move() -> None:
      logging.warning(
        'checkpoint %s is damaged (%s); it is moved to %s, and the one before '
        'it is used',
        path,
        error,
        damaged,
      )
      files.make_directory(damaged)
      shutil.rmtree(damaged / path.name, ignore_errors=True)
      with files.writing(damaged):
        path.rename(damaged / path.name)

    distributed.from_first(move)
    self._manager.reload()

  def close(self) -> None:
    """Waits for the last save and frees the threads."""
    with files.writing(self._path):
      self._manager.close()

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def _score(metrics: Mapping[str, float]) -> float:
  return metrics[_SCORE]


def _preservation(
  max_to_keep: int, keep_every: int | None, best_of: tuple[str, str] | None
) -> Any:
  """Returns the policy by which checkpoints stay."""
  managers = ocp.checkpoint_managers
  policies: list[Any] = [managers.LatestN(max_to_keep)]
  if keep_every is not None:
    policies.append(managers.EveryNSteps(keep_every))
  if best_of is not None:
    policies.append(
      managers.BestN(
        get_metric_fn=_score,
        # It keeps the last ones in order.
        reverse=best_of[1] == 'min',
        n=1,
        keep_checkpoints_without_metrics=False,
      )
    )
  return managers.AnyPreservationPolicy(policies)
