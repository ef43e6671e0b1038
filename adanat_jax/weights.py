"""Weights of a finished stage, for the stages that build on it."""

import os
import pathlib
from typing import Any

from adanat_jax import checkpoint_meta
from adanat_jax.completion import COMPLETE_FILE, is_complete, read_complete
from adanat_jax.errors import UserError


def load_params(
  directory: str | os.PathLike[str], field: str, target: Any = None
) -> Any:
  """Reads one field of a finished stage's last state, and nothing else of it.

  Args:
    directory: the stage's directory (the one that holds `checkpoints`).
    field: name of the state's field, e.g. 'ema_params'; '/' goes deeper.
    target: pytree of arrays or `jax.ShapeDtypeStruct`s the field must agree
      with and whose shardings it gets; None takes nested dicts as saved. What
      has no sharding goes to every device of the ambient mesh, or to the first
      device where there is none.

  Returns:
    The field's pytree of arrays.

  Raises:
    UserError: if the stage has not finished, has no such field, or if shapes
      differ from `target`, or if the checkpoint is damaged.
  """
  directory = pathlib.Path(directory).absolute()
  if not is_complete(directory):
    raise UserError(
      f'{directory}: no finished training here ({COMPLETE_FILE} is missing); '
      'run this stage first'
    )
  step = read_complete(directory)['step']
  path = directory / 'checkpoints' / str(step)
  try:
    return checkpoint_meta.read_field(path, field, target)
  except checkpoint_meta.DamagedError as error:
    raise UserError(
      f'{path}: this checkpoint is damaged ({error}); delete '
      f'{directory / COMPLETE_FILE} and run the stage again: it goes on from '
      'the last good one'
    ) from error
