"""Records what a stage has finished: pieces of work, then the whole stage.

The ledger lets a killed stage continue. It has one JSON line per finished piece
of work, with its name and value. A line that a kill truncated is dropped and
its piece repeated; pieces are deterministic, so the file ends the same. With
several processes all compute each piece together, process 0 writes it, and all
use the value that process 0 wrote.

The marker `complete.json` is written last, atomically. With several processes
all call `mark_complete`; none sees the marker before all have arrived, and none
continues before it sees the marker. So all decide alike by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import json
import os
import pathlib
from typing import Any

from adanat_jax.errors import UserError
from adanat_jax.runtime import files, processes

COMPLETE_FILE = 'complete.json'


class Ledger:
  """Values by name, written to a file as they are computed."""

  def __init__(self, path: pathlib.Path):
    """Reads the pieces that an earlier run finished."""
    files.make_directory(path.parent)
    self._path = path
    self._values: dict[str, Any] = processes.from_first(self._read)

  def get(self, name: str, make: Callable[[], Any]) -> Any:
    """Returns a piece's value, from `make` if no run has finished it yet.

    Args:
      name: identifies the piece.
      make: returns a JSON value; numbers are read back exactly.
    """
    if name not in self._values:
      value = files.to_json(make())
      self._values[name] = processes.from_first(
        lambda: self._append(name, value)
      )
    return self._values[name]

  def _read(self) -> dict[str, Any]:
    """Reads the lines up to the first damaged one and drops the rest."""
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
    """Writes a piece to the disk and returns its value."""
    with files.writing(self._path), self._path.open('a') as file:
      file.write(json.dumps({'name': name, 'value': value}) + '\n')
      file.flush()
      os.fsync(file.fileno())
    return value


def open_ledger(
  directory: pathlib.Path, about: Mapping[str, Any], prefix: str
) -> Ledger:
  """Opens `ledger.jsonl` of pieces that belong to certain settings.

  Args:
    directory: gets the ledger.
    about: the settings by name; kept in the ledger as its first piece.
    prefix: what the names begin with where a message shows them.

  Raises:
    UserError: if the ledger was begun with other settings.
  """
  ledger = Ledger(directory / 'ledger.jsonl')
  ours = files.to_json(dict(about))
  theirs = ledger.get('about', lambda: ours)
  for name, value in ours.items():
    if theirs.get(name) != value:
      raise UserError(
        f'{directory} was begun with {prefix}.{name}={theirs.get(name)} and not'
        f' {value}; use that, or another --workdir, or delete it'
      )
  return ledger


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
    figures: results of its last state.
    best: step, metric and value of its best checkpoint, if one is kept.
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
  """Reads the marker: `step`, `figures` and, where one is kept, `best`."""
  return files.read_json(pathlib.Path(directory) / COMPLETE_FILE)
