"""A file of finished pieces of work, so that a killed stage goes on.

One JSON line a piece: its name and its value. A line that was cut off by a
kill is dropped, and that piece is done again; pieces are deterministic, so the
file ends the same.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import os
import pathlib
from typing import Any

from adanat_jax import files


class Ledger:
  """Values by name, kept in a file as they are made."""

  def __init__(self, path: pathlib.Path):
    """Reads what an earlier run has finished."""
    files.make_directory(path.parent)
    self._path = path
    self._values: dict[str, Any] = {}
    if not path.exists():
      return
    good = []
    for line in path.read_bytes().splitlines(keepends=True):
      if not line.endswith(b'\n'):
        break
      try:
        entry = json.loads(line)
        self._values[entry['name']] = entry['value']
      except (ValueError, KeyError, TypeError):
        break
      good.append(line)
    files.write_bytes(path, b''.join(good))

  def get(self, name: str, make: Callable[[], Any]) -> Any:
    """The value of a piece, made by `make` if no run has finished it yet.

    Args:
      name: identifies the piece.
      make: returns what JSON can hold; numbers are read back exactly.
    """
    if name not in self._values:
      value = files.to_json(make())
      with self._path.open('a') as file:
        file.write(json.dumps({'name': name, 'value': value}) + '\n')
        file.flush()
        os.fsync(file.fileno())
      self._values[name] = value
    return self._values[name]
