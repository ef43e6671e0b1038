"""The marker of a finished stage, written last and in one step.

With several processes, all call `mark_complete`, and no process sees the marker
before all have come to it, or goes on before it sees it: whatever they decide
by it, they decide alike.
"""

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from adanat_jax.runtime import files, processes

COMPLETE_FILE = 'complete.json'


def mark_complete(
  directory: str | os.PathLike[str],
  step: int,
  figures: Mapping[str, Any],
  best: Mapping[str, Any] | None = None,
) -> None:
  """Writes the marker of a finished stage.

  Args:
    directory: the stage's directory.
    step: its last step.
    figures: of its last state.
    best: step, metric and value of its best checkpoint, where one is kept.
  """
  path = pathlib.Path(directory) / COMPLETE_FILE
  marker = {'step': step, 'figures': dict(figures)}
  if best is not None:
    marker['best'] = dict(best)
  processes.barrier()
  processes.from_first(lambda: files.write_json(path, marker))
  processes.wait_until_seen(path)


def is_complete(directory: str | os.PathLike[str]) -> bool:
  """Returns whether the stage of this directory has finished."""
  return (pathlib.Path(directory) / COMPLETE_FILE).is_file()


def read_complete(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns what `mark_complete` wrote: `step`, `figures` and maybe `best`."""
  return files.read_json(pathlib.Path(directory) / COMPLETE_FILE)
