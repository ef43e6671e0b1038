"""Records what a stage has finished: pieces of work, then the whole stage.

The ledger lets a killed stage continue. It has one JSON line per finished piece
of work, with its name, its value and a checksum of both. A line that a kill
truncated, or that was damaged later, is dropped and its piece repeated; pieces
are deterministic, so the results are the same. With several processes all
compute each piece together, process 0 writes it, and all use the value that
process 0 wrote.

The marker `complete.json` is written last, atomically. It holds the checksum of
`results.json`, where the stage has written one. With several processes
all call `mark_complete`; none sees the marker before all have arrived, and none
continues before it sees the marker. So all decide alike by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import json
import os
import pathlib
from typing import Any
import zlib

from adanat_jax.errors import UserError
from adanat_jax.runtime import files, processes

COMPLETE_FILE = 'complete.json'
RESULTS_FILE = 'results.json'

_MARKER = {
  'step': int,
  'figures': dict,
  'best?': {'step': int},
  'warnings?': [str],
}


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
    """Reads the lines and drops those that are damaged."""
    if not self._path.exists():
      return {}
    values = {}
    good = []
    data = files.read_bytes(self._path)
    for line in data.splitlines(keepends=True):
      try:
        entry = files.parse_json(line, {'name': str, 'value': object})
      except ValueError:
        continue
      # Lines of earlier versions have no checksum. One with another name in
      # its place is no line of ours.
      if line.endswith(b'\n') and len(entry) == 2:
        values[entry['name']] = entry['value']
        good.append(line)
    if (kept := b''.join(good)) != data:
      files.write_bytes(self._path, kept)
    return values

  def _append(self, name: str, value: Any) -> Any:
    """Writes a piece to the disk and returns its value."""
    line = json.dumps(files.seal({'name': name, 'value': value}))
    with files.writing(self._path), self._path.open('a') as file:
      file.write(line + '\n')
      file.flush()
      os.fsync(file.fileno())
    return value


def open_ledger(
  directory: pathlib.Path,
  about: Mapping[str, Any],
  prefix: str,
  added: Mapping[str, Any] | None = None,
) -> Ledger:
  """Opens `ledger.jsonl` of pieces that belong to certain settings.

  Args:
    directory: gets the ledger.
    about: the settings by name; kept in the ledger as its first piece.
    prefix: what the names begin with where a message shows them.
    added: settings that ledgers of earlier versions do not have, as they were.

  Raises:
    UserError: if the ledger was begun with other settings.
  """
  ledger = Ledger(directory / 'ledger.jsonl')
  ours = files.to_json(dict(about))
  theirs = {**(added or {}), **ledger.get('about', lambda: ours)}
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
  warnings: Sequence[str] = (),
) -> None:
  """Writes the marker of a finished stage, after its `results.json`, if any.

  Args:
    directory: the stage's directory.
    step: its last step.
    figures: results of its last state.
    best: step, metric and value of its best checkpoint, if one is kept.
    warnings: what makes the results doubtful, a sentence each: reports show it.
  """
  path = pathlib.Path(directory) / COMPLETE_FILE
  marker = {'step': step, 'figures': dict(figures)}
  if best is not None:
    marker['best'] = dict(best)
  if warnings:
    marker['warnings'] = list(warnings)

  def write() -> None:
    if (results := path.with_name(RESULTS_FILE)).exists():
      marker['results'] = zlib.crc32(files.read_bytes(results))
    files.write_json(path, marker, sealed=True)

  processes.barrier()
  processes.from_first(write)
  processes.wait_until_seen(path)


def is_complete(directory: str | os.PathLike[str]) -> bool:
  """Returns whether the stage of this directory has finished.

  Raises:
    UserError: if what lies there is no marker, see `read_complete`.
  """
  found = os.path.lexists(pathlib.Path(directory) / COMPLETE_FILE)
  return found and bool(read_complete(directory))


def read_complete(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Reads the marker: `step`, `figures`, and `best` and `warnings` if any."""
  path = pathlib.Path(directory) / COMPLETE_FILE
  return files.read_json(
    path,
    _MARKER,
    'delete it and run this stage again: it goes on from what it has kept',
  )


def warn(name: str, warnings: Sequence[str]) -> None:
  """Prints the warnings of a stage of this name, a line each."""
  for warning in warnings:
    processes.say(f'{name}: warning: {warning}')


def read_results(
  directory: str | os.PathLike[str], shape: files.Shape = dict
) -> dict[str, Any]:
  """Reads `results.json` of a finished stage.

  Args:
    directory: the stage's directory.
    shape: what the results must hold, see `files.parse_json`.

  Raises:
    UserError: if the stage has not finished, or if the results are missing,
      damaged, or not those that the stage finished with.
  """
  path = pathlib.Path(directory) / RESULTS_FILE
  remedy = 'run this stage again: it makes them again from its ledger'
  # Earlier versions kept no checksum.
  expected = read_complete(directory).get('results')
  if expected not in (None, zlib.crc32(files.read_bytes(path, remedy=remedy))):
    raise UserError(
      f'{path}: damaged, or changed after it was written: the checksum in'
      f' {COMPLETE_FILE} differs; {remedy}'
    )
  return files.read_json(path, shape, remedy)


def has_results(
  directory: str | os.PathLike[str], shape: files.Shape = dict
) -> bool:
  """Whether a stage has finished and its results can be read.

  Where only the results are lost or damaged, a line says so: the stage makes
  them again. All processes call this.
  """

  def is_readable() -> bool:
    try:
      if not is_complete(directory):
        return False
      read_results(directory, shape)
    except UserError as error:
      processes.say(f'made again: {error}')
      return False
    return True

  return processes.from_first(is_readable)
