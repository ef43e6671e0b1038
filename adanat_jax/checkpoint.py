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
Weights of a finished stage are read by `load_params`, which writes nothing.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
import shutil
from typing import Any

from absl import logging
import jax
import orbax.checkpoint as ocp

from adanat_jax import checkpoint_meta, files, leaves
from adanat_jax.errors import UserError
from adanat_jax.weights import load_params

__all__ = ['Checkpointer', 'NonFiniteError', 'Restored', 'load_params']


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
    self, directory: str | os.PathLike[str], *, max_to_keep: int = 2
  ):
    """Opens `<directory>/checkpoints` and removes half-written ones.

    Args:
      directory: the stage's directory; created when missing.
      max_to_keep: how many of the newest checkpoints stay, at least 2: the
        older is what a damaged newest one is replaced by.
    """
    if max_to_keep < 2:
      raise UserError(f'max_to_keep: {max_to_keep} given, at least 2 is needed')
    self._path = files.make_directory(
      pathlib.Path(directory).absolute() / 'checkpoints'
    )
    self._manager = ocp.CheckpointManager(
      self._path,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.LatestN(max_to_keep),
        cleanup_tmp_directories=True,
      ),
      item_names=('state', 'meta'),
    )

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Starts saving; returns once the state may be changed or donated.

    Args:
      step: number of finished steps.
      state: a pytree of arrays; typed PRNG keys are fine.
      meta: what JSON can hold; see `checkpoint_meta` for what is added.

    Raises:
      NonFiniteError: if a leaf holds NaN or infinity. Nothing is saved.
      UserError: if this or the save before it cannot be written.
    """
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
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
    for step in sorted(self._manager.all_steps(), reverse=True):
      path = self._path / str(step)
      try:
        with checkpoint_meta.quiet():
          meta = checkpoint_meta.read(path)
          leaves.check_layout(path, checkpoint_meta.layouts(meta), target)
          state = self._manager.restore(
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)),
          )['state']
          leaves.check_bits(state, checkpoint_meta.checksums(meta))
      except (UserError, MemoryError, PermissionError):
        raise
      except Exception as error:
        # Orbax reports damage as many types, plain Exception among them.
        self._set_aside(path, error)
        continue
      return Restored(step=step, state=state, meta=meta)
    return None

  def _set_aside(self, path: pathlib.Path, error: Exception) -> None:
    """Moves a damaged checkpoint out of the way, so its step can be saved."""
    damaged = self._path.with_name('checkpoints.damaged')
    logging.warning(
      'checkpoint %s is damaged (%s); it is moved to %s, and the one before '
      'it is used',
      path,
      checkpoint_meta.in_short(error),
      damaged,
    )
    if jax.process_index() == 0:
      files.make_directory(damaged)
      shutil.rmtree(damaged / path.name, ignore_errors=True)
      path.rename(damaged / path.name)
    self._manager.reload()

  def close(self) -> None:
    """Waits for the last save and frees the threads."""
    with files.writing(self._path):
      self._manager.close()

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
