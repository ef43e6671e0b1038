"""The marker of a finished stage, written last and in one step.

With several processes, all call `mark_complete`, and no process sees the marker
before all have come to it, or goes on before it sees it: whatever they decide
by it, they decide alike.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from adanat_jax import distributed, files

COMPLETE_FILE = 'complete.json'


def mark_complete(
  directory: str | os.PathLike[str], step: int, figures: Mapping[str, Any]
) -> None:
  """Writes the marker of a finished stage, with its last step and figures."""
  path = pathlib.Path(directory) / COMPLETE_FILE
  marker = {'step': step, 'figures': dict(figures)}
  distributed.barrier()
  distributed.from_first(lambda: files.write_json(path, marker))
  distributed.wait_until_seen(path)


def is_complete(directory: str | os.PathLike[str]) -> bool:
  """Returns whether the stage of this directory has finished."""
  return (pathlib.Path(directory) / COMPLETE_FILE).is_file()


def read_complete(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns `{'step': last step, 'figures': {...}}` of a finished stage."""
  return files.read_json(pathlib.Path(directory) / COMPLETE_FILE)
