"""The marker of a finished stage, written last and in one step."""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

import jax

from adanat_jax import files

COMPLETE_FILE = 'complete.json'


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


def read_complete(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns `{'step': last step, 'figures': {...}}` of a finished stage."""
  return files.read_json(pathlib.Path(directory) / COMPLETE_FILE)
