"""Writes files atomically, and locks what only one run may write.

Every figure, picture and marker of a run is written here: the bytes go to a
temporary file in the same directory, are flushed to the disk, and the file is
renamed over the old one. So a reader, or the next start after a kill, sees
either the old content or the new, never half of one.

With several processes, process 0 writes and the other processes' calls do
nothing; `adanat_jax.runtime.processes` has the rules.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import re
import tempfile
from typing import Any

import numpy as np

from adanat_jax.errors import UserError, WriteError
from adanat_jax.runtime import processes


def make_directory(path: str | os.PathLike[str]) -> pathlib.Path:
  """Creates a directory and its parents; a file in the way is a UserError."""
  path = pathlib.Path(path)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError) as error:
    raise UserError(
      f'{path}: a directory is needed here, but a file is in the way'
    ) from error
  except PermissionError as error:
    raise UserError(f'{path}: cannot be created, permission denied') from error
  except OSError as error:
    raise WriteError(f'{path}: cannot be created: {error.strerror}') from error
  return path


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
  """Turns an operating system's error on writing `path` into a WriteError."""
  try:
    yield
  except OSError as error:
    reason = error.strerror or str(error)
    raise WriteError(f'{path}: cannot be written: {reason}') from error
  except ValueError as error:
    # TensorStore writes '...: No space left on device [os_error_code='28']'.
    found = re.search(r"([^:\[]+) \[os_error_code='\d+'", str(error))
    if found is None:
      raise
    raise WriteError(f'{path}: cannot be written:{found[1]}') from error


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
  """Writes `data` to `path` atomically (see the module docstring)."""
  if processes.process_index() != 0:
    return
  path = pathlib.Path(path)
  # A fixed name: what a killed run left is overwritten.
  temporary = path.with_name(f'.{path.name}.tmp')
  with writing(path):
    temporary.write_bytes(data)
  publish(temporary, path)


def publish(
  temporary: str | os.PathLike[str], path: str | os.PathLike[str]
) -> None:
  """Renames a finished temporary file to `path`, atomically and durably.

  Any process may call this for its own files.
  """
  path = pathlib.Path(path)
  with writing(path):
    handle = os.open(temporary, os.O_RDWR)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)
    os.replace(temporary, path)
  _sync_directory(path.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes `text` as UTF-8 to `path` atomically."""
  write_bytes(path, text.encode('utf-8'))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes `to_json(value)` as indented JSON to `path` atomically."""
  text = json.dumps(to_json(value), indent=2, allow_nan=False)
  write_text(path, text + '\n')


def read_json(path: str | os.PathLike[str]) -> Any:
  """Reads a JSON file; raises UserError if it is missing or invalid."""
  path = pathlib.Path(path)
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError as error:
    raise UserError(f'{path}: no such file') from error
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f'{path}: not valid JSON ({error})') from error


def to_json(value: Any) -> Any:
  """Converts a value to strict JSON.

  A float narrower than 64 bits gets just the digits that restore it in its own
  type. NaN and infinities become the strings 'nan', 'inf' and '-inf', arrays
  become nested lists, and paths and other objects their text.

  Args:
    value: any nesting of dicts, lists, tuples, scalars and arrays.

  Returns:
    The same nesting made of dict, list, str, int, float, bool and None.
  """
  if value is None or isinstance(value, (str, bool, int)):
    return value
  if isinstance(value, dict):
    return {str(key): to_json(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [to_json(item) for item in value]
  if isinstance(value, float) and not isinstance(value, np.floating):
    return value if math.isfinite(value) else str(value)
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  if not hasattr(value, 'dtype'):
    return str(value)
  array = np.asarray(value)
  if array.ndim:
    return [to_json(item) for item in array]
  if array.dtype == np.bool_:
    return bool(array)
  if np.issubdtype(array.dtype, np.integer):
    return int(array)
  # The text of a float32 is '0.1' although its value is 0.100000001490...
  return to_json(float(str(array[()])))


@contextlib.contextmanager
def only_one(
  directory: pathlib.Path, part: str, message: str
) -> Iterator[None]:
  """Locks a part of a directory against other processes of this machine.

  A second run would delete checkpoints that the first is writing. The lock is a
  file on this machine, not on the disk of the run: the kernel releases it
  however the process ends, and a dead machine leaves no lock behind. So runs
  on other machines are not noticed.

  Args:
    directory: where the files are.
    part: name of the part to lock; it need not exist.
    message: of the error.

  Raises:
    UserError: with this message, if another process holds the lock.
  """
  name = hashlib.sha256(f'{directory.resolve()}\n{part}'.encode()).hexdigest()
  path = pathlib.Path(tempfile.gettempdir(), f'adanat_jax-{name[:16]}.lock')
  try:
    file = path.open('a')
  except OSError:
    # Another user's file, or no space: go on without a lock.
    yield
    return
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(message) from None
    except OSError:
      pass  # The file system has no locks.
    try:
      yield
    finally:
      path.unlink(missing_ok=True)


def _sync_directory(path: pathlib.Path) -> None:
  """Makes a rename in `path` durable, where the system supports it."""
  with contextlib.suppress(OSError):
    handle = os.open(path, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)
