"""Weights of a finished stage, for the stages that build on it."""

import hashlib
import json
import os
import pathlib
from typing import Any

from adanat_jax.errors import UserError
from adanat_jax.runtime import checkpoint_format
from adanat_jax.runtime.journal import (
  COMPLETE_FILE,
  is_complete,
  read_complete,
)


def load_params(
  directory: str | os.PathLike[str],
  field: str,
  target: Any = None,
  *,
  best: bool = False,
) -> Any:
  """Reads one field of a finished stage's last state, and nothing else of it.

  Args:
    directory: the stage's directory (the one that holds `checkpoints`).
    field: name of the state's field, e.g. 'ema'; '/' goes deeper.
    target: pytree of arrays or `jax.ShapeDtypeStruct`s the field must agree
      with and whose shardings it gets; None takes nested dicts as saved, of a
      field that holds nothing but dicts. What has no sharding goes to every
      device of the ambient mesh, or to the first device where there is none.
    best: take the checkpoint that the training's `best_of` chose instead of the
      last one, where one was chosen.

  Returns:
    The field's pytree of arrays.

  Raises:
    UserError: if the stage has not finished, has no such field, or if shapes
      differ from `target`, or if the checkpoint is damaged.
  """
  path = _last_checkpoint(directory, best)
  try:
    return checkpoint_format.read_field(path, field, target)
  except checkpoint_format.DamagedError as error:
    raise _damaged(path, error) from error


def digest(directory: str | os.PathLike[str], field: str) -> str:
  """Names the numbers of one field of a finished stage's last state.

  Only what the checkpoint says of its leaves is read, not the leaves.

  Args:
    directory: as for `load_params`.
    field: as for `load_params`.

  Returns:
    16 hexadecimal digits: of the leaves' names, shapes, types and checksums,
    which are the same wherever the numbers are.

  Raises:
    UserError: as `load_params`.
  """
  path = _last_checkpoint(directory)
  try:
    meta = checkpoint_format.together(
      path, lambda: checkpoint_format.read(path)
    )
  except checkpoint_format.DamagedError as error:
    raise _damaged(path, error) from error
  told = {
    name: [layout, checkpoint_format.checksums(meta, field)[name]]
    for name, layout in checkpoint_format.layouts(meta, field).items()
  }
  if not told:
    raise UserError(f'{path}: no field {field!r}')
  text = json.dumps(told, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _last_checkpoint(
  directory: str | os.PathLike[str], best: bool = False
) -> pathlib.Path:
  directory = pathlib.Path(directory).absolute()
  if not is_complete(directory):
    raise UserError(
      f'{directory}: no finished training here ({COMPLETE_FILE} is missing); '
      'run this stage first'
    )
  marker = read_complete(directory)
  step = marker.get('best', marker)['step'] if best else marker['step']
  return directory / 'checkpoints' / str(step)


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
  return UserError(
    f'{path}: this checkpoint is damaged ({error}); delete '
    f'{path.parents[1] / COMPLETE_FILE} and run the stage again: it goes on'
    ' from the last good one'
  )
