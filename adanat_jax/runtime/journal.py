"""What a stage has finished: its pieces of work, and in the end all of it.

Ledger: a file of finished pieces of work, so that a killed stage goes on. One
JSON line a piece: its name and its value. A line that was cut off by a kill is
dropped, and that piece is done again; pieces are deterministic, so the file
ends the same. With several processes, all make each piece together, process 0
keeps it, and all go on with the value that process 0 has kept.

Marker: `complete.json`, written last and in one step. With several processes,
all call `mark_complete`, and no process sees the marker before all have come to
it, or goes on before it sees it: whatever they decide by it, they decide alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import os
import pathlib
from typing import Any

from adanat_jax.runtime import files, processes

COMPLETE_FILE = 'complete.json'


class Ledger:
  """Values by name, kept in a file as they are made."""

  def __init__(self, path: pathlib.Path):
    """Reads what an earlier run has finished."""
    files.make_directory(path.parent)
    self._path = path
    self._values: dict[str, Any] = processes.from_first(self._read)

  def get(self, name: str, make: Callable[[], Any]) -> Any:
    """The value of a piece, made by `make` if no run has finished it yet.

    Args:
      name: identifies the piece.
      make: returns what JSON can hold; numbers are read back exactly.
    """
    if name not in self._values:
      value = files.to_json(make())
      self._values[name] = processes.from_first(
        lambda: self._append(name, value)
      )
    return self._values[name]

  def _read(self) -> dict[str, Any]:
    """Reads the whole lines, and drops the rest from the file."""
    if not self._path.exists():
      return {}
    values = {}
    good = []
    for line in self._path.read_bytes().splitlines(keepends=True):
      if not line.endswith(b'\n'):
        break
      try:
        entry = json.loads(line)
        values[entry['name']] = entry['value']
      except (ValueError, KeyError, TypeError):
        break
      good.append(line)
    files.write_bytes(self._path, b''.join(good))
    return values

  def _append(self, name: str, value: Any) -> Any:
    """Puts a piece on the disk, and returns it."""
    with files.writing(self._path), self._path.open('a') as file:
      file.write(json.dumps({'name': name, 'value': value}) + '\n')
      file.flush()
      os.fsync(file.fileno())
    return value


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
