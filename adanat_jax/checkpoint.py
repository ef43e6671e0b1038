"""Checkpoints: what is saved, how it is checked, in which order it is used.

A thin layer over Orbax. A checkpoint is one directory
`<stage>/checkpoints/<step>` that holds `state`, the whole train state, and
`meta`, a JSON file with the step, the config, the versions of the libraries,
and for each leaf of the state its shape, its type and a checksum. It becomes
visible in one rename, after everything else is on the disk.

Order of restoring, used by `adanat_jax.training.run_loop`:
  1. the newest checkpoint of the stage's own directory;
  2. if that one is damaged, it is named in a warning, moved to
     `checkpoints.damaged`, and the one before it is used;
  3. if there is none, the state the caller has initialised.
Weights of a finished stage are read by `load_params`, which writes nothing.
"""

import contextlib
import dataclasses
import gc
import logging as python_logging
import os
import pathlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from adanat_jax import files
from adanat_jax import leaves
from adanat_jax.errors import UserError

COMPLETE_FILE = 'complete.json'


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint holds: `step` finished steps, the state, the meta."""

  step: int
  state: Any
  meta: Mapping[str, Any]


class NonFiniteError(UserError):
  """A number of a run became NaN or infinite."""


class Checkpointer:
  """Saves and restores the states of one stage, asynchronously."""

  def __init__(
      self, directory: str | os.PathLike[str], *, max_to_keep: int = 2
  ):
    """Opens `<directory>/checkpoints`, without reading any checkpoint.

    Args:
      directory: the stage's directory; created when missing.
      max_to_keep: how many of the newest checkpoints stay, at least 2: the
        older is what a damaged newest one is replaced by.
    """
    if max_to_keep < 2:
      raise UserError(f'max_to_keep: {max_to_keep} given, at least 2 is needed')
    self._path = files.make_directory(pathlib.Path(directory).absolute()
                                      / 'checkpoints')
    self._manager = ocp.CheckpointManager(
        self._path,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(max_to_keep),
            cleanup_tmp_directories=True,
        ),
        item_names=('state', 'meta'),
    )

  def latest_step(self) -> int | None:
    """Returns the newest step that is listed, damaged or not."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, meta: Mapping[str, Any]) -> None:
    """Starts saving; returns once the state may be changed or donated.

    Args:
      step: number of finished steps.
      state: a pytree of arrays; typed PRNG keys are fine.
      meta: what JSON can hold; `step`, `versions` and `leaves` are added.

    Raises:
      NonFiniteError: if a leaf holds NaN or infinity. Nothing is saved.
    """
    saved = {}
    for path, (leaf, checksum, finite) in leaves.examine(state).items():
      if not finite:
        raise NonFiniteError(
            f'the state is not finite after step {step}: {path} holds NaN or '
            'infinity; no checkpoint is saved'
        )
      saved[path] = [*leaves.layout_of(leaf), checksum]
    self._manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            meta=ocp.args.JsonSave({
                **files.to_json(dict(meta)),
                'step': step,
                'versions': _versions(),
                'leaves': saved,
            }),
        ),
        force=True,
    )

  def wait(self) -> None:
    """Blocks until the last save is on the disk; raises what it raised."""
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
      try:
        with _quiet_orbax():
          meta = _read_meta(self._path / str(step))
          leaves.check_layout(self._path / str(step), meta['leaves'], target)
          state = self._manager.restore(
              step,
              args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)),
          )['state']
          leaves.verify(state, meta['leaves'])
      except (UserError, MemoryError, PermissionError):
        raise
      except Exception as error:  # pylint: disable=broad-exception-caught
        # Orbax reports damage as many types, plain `Exception` among them.
        self._set_aside(step, error)
        continue
      return Restored(step=step, state=state, meta=meta)
    return None

  def _set_aside(self, step: int, error: Exception) -> None:
    """Moves a damaged checkpoint out of the way, so its step can be saved."""
    damaged = self._path.with_name('checkpoints.damaged')
    reason = str(error).splitlines()[0][:200] if str(error) else 'no message'
    logging.warning(
        'checkpoint %s is damaged and is not used (%s: %s); it is moved to %s',
        self._path / str(step), type(error).__name__, reason, damaged,
    )
    if jax.process_index() == 0:
      files.make_directory(damaged)
      shutil.rmtree(damaged / str(step), ignore_errors=True)
      (self._path / str(step)).rename(damaged / str(step))
    self._manager.reload()

  def close(self) -> None:
    """Waits for the last save and frees the threads."""
    self._manager.close()

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()


def load_params(
    directory: str | os.PathLike[str],
    field: str,
    target: Any = None,
    *,
    require_complete: bool = True,
) -> Any:
  """Reads one field of a stage's newest state, and nothing else of it.

  Args:
    directory: the stage's directory (the one that holds `checkpoints`).
    field: name of the state's field, e.g. 'ema_params'; '/' goes deeper.
    target: pytree of arrays or `jax.ShapeDtypeStruct`s the field must agree
      with and whose shardings it gets; None takes nested dicts as saved.
    require_complete: refuse a stage that has not finished.

  Returns:
    The field's pytree of arrays.

  Raises:
    UserError: if there is no finished stage or no such field, if shapes
      differ from `target`, or if the checkpoint is damaged.
  """
  directory = pathlib.Path(directory).absolute()
  if require_complete and not is_complete(directory):
    raise UserError(
        f'{directory}: no finished training here ({COMPLETE_FILE} is missing);'
        ' run this stage first'
    )
  steps = [
      int(path.name)
      for path in (directory / 'checkpoints').glob('*')
      if path.name.isdigit()
  ]
  if not steps:
    raise UserError(f'{directory}: no checkpoint here; run this stage first')
  path = directory / 'checkpoints' / str(max(steps))
  try:
    with _quiet_orbax():
      meta = _read_meta(path)
      prefix = field + '/'
      saved = {
          name.removeprefix(prefix): leaf
          for name, leaf in meta['leaves'].items()
          if name.startswith(prefix)
      }
      if not saved:
        fields = sorted({name.split('/')[0] for name in meta['leaves']})
        raise UserError(f'{path}: no field {field!r}; it has {fields}')
      if target is None:
        abstract = leaves.nested(saved)
      else:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, target)
        leaves.check_layout(path, saved, target)
      item: Any = abstract
      for name in reversed(field.split('/')):
        item = {name: item}
      with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        value = reader.restore(
            path / 'state',
            args=ocp.args.PyTreeRestore(
                item=item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            ),
        )
      for name in field.split('/'):
        value = value[name]
      leaves.verify(value, saved)
      return value
  except (UserError, MemoryError):
    raise
  except Exception as error:
    raise UserError(
        f'{path}: this checkpoint is damaged ({type(error).__name__}); delete '
        f'{directory / COMPLETE_FILE} and run the stage again: it goes on from '
        'the last good one'
    ) from error


def mark_complete(
    directory: str | os.PathLike[str], step: int, figures: Mapping[str, Any]
) -> None:
  """Writes the marker of a finished stage, with its last step and figures."""
  if jax.process_index() == 0:
    files.write_json(
        pathlib.Path(directory) / COMPLETE_FILE,
        {'step': step, 'figures': dict(figures)},
    )


def is_complete(directory: str | os.PathLike[str]) -> bool:
  """Returns whether the stage of this directory has finished."""
  return (pathlib.Path(directory) / COMPLETE_FILE).is_file()


def _read_meta(path: pathlib.Path) -> dict[str, Any]:
  """Reads the meta item of the checkpoint at `path`."""
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
    return reader.restore(path / 'meta')


def _versions() -> dict[str, str]:
  """Returns the versions of the libraries that made a checkpoint."""
  return {
      'jax': jax.__version__,
      'numpy': np.__version__,
      'orbax': ocp.__version__,
  }


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
  """Keeps Orbax's own traces of a damaged file off the terminal.

  They come from tasks that fail beside the one that raises, and are logged
  when those are collected; the exception itself is reported by the caller.
  """
  loggers = [python_logging.getLogger(name) for name in ('asyncio', 'absl')]
  levels = [logger.level for logger in loggers]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)
    for logger in loggers:
      logger.setLevel(python_logging.CRITICAL)
    try:
      yield
    except Exception:
      gc.collect()
      raise
    finally:
      for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
