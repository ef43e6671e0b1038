"""Writes and reads a run's files, and locks what only one run may write.

Every figure, picture and marker of a run is written here: the bytes go to a
temporary file in the same directory, are flushed to the disk, and the file is
renamed over the old one. So a reader, or the next start after a kill, sees
either the old content or the new, never half of one.

`read_json` reads the JSON files of a workdir. What it returns is an object of
the shape that the caller names; anything else is a UserError of one line. Files
that `write_json` sealed carry a checksum, so a changed digit is found too.

With several processes, process 0 writes and the other processes' calls do
nothing; `adanat_jax.runtime.processes` has the rules.
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import fcntl
import json
import math
import os
import pathlib
import re
import shutil
import stat
from typing import Any, TypeAlias
import zlib

import numpy as np

from adanat_jax.errors import UserError, WriteError, printable
from adanat_jax.runtime import processes

# See `parse_json`.
Shape: TypeAlias = Any

# Of sealed files: raised when a new version writes what old ones misread.
_FORMAT = 1
_MOST_BYTES = 1 << 28
_MOST_LEVELS = 32
_WORDS: Mapping[Any, str] = {
  dict: 'an object',
  list: 'a list',
  str: 'a text',
  int: 'an integer of 64 bits',
  float: 'a number',
  bool: 'true or false',
  None: 'null',
}


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


def publish_directory(temporary: pathlib.Path, path: pathlib.Path) -> None:
  """Renames a finished directory to `path`, durably; for one process.

  What is there is moved to `.NAME.old` first and deleted afterwards, so a kill
  leaves it there at worst.
  """
  old = path.with_name(f'.{path.name}.old')
  with writing(path):
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
      os.rename(path, old)
    os.rename(temporary, path)
  _sync_directory(path.parent)
  shutil.rmtree(old, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes `text` as UTF-8 to `path` atomically."""
  write_bytes(path, text.encode('utf-8'))


def write_json(
  path: str | os.PathLike[str], value: Any, *, sealed: bool = False
) -> None:
  """Writes `to_json(value)` as indented JSON to `path` atomically.

  Args:
    path: the file.
    value: see `to_json`.
    sealed: add `format` and `checksum` to an object; see `seal`.
  """
  write_bytes(path, json_bytes(seal(value) if sealed else value))


def json_bytes(value: Any) -> bytes:
  """Returns `to_json(value)` as indented JSON in UTF-8."""
  text = json.dumps(to_json(value), indent=2, allow_nan=False)
  return f'{text}\n'.encode()


def seal(value: Mapping[str, Any]) -> dict[str, Any]:
  """Converts an object to JSON and adds `format` and `checksum`."""
  result = {'format': _FORMAT, **to_json(dict(value))}
  return {**result, 'checksum': checksum(result)}


def checksum(value: Any) -> int:
  """Returns the CRC-32 of a JSON value, independent of the order of keys."""
  return zlib.crc32(json.dumps(value, sort_keys=True).encode('utf-8'))


def read_bytes(
  path: str | os.PathLike[str], most: int | None = None, remedy: str = ''
) -> bytes:
  """Reads a regular file; a FIFO or a device is not waited for.

  Args:
    path: the file.
    most: the number of bytes that are too many; None for no limit.
    remedy: what the message ends with.

  Raises:
    UserError: if it is missing, no regular file, too large, or unreadable.
  """
  cause: Exception | None = None
  try:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
      about = os.fstat(handle)
      if not stat.S_ISREG(about.st_mode):
        problem = 'not a file'
      elif most is not None and about.st_size >= most:
        problem = f'{about.st_size} bytes are too many'
      else:
        with open(handle, 'rb', closefd=False) as file:
          return file.read()
    finally:
      os.close(handle)
  except FileNotFoundError as error:
    cause, problem = error, 'no such file'
  except (OSError, ValueError) as error:
    # A ValueError: a path with a NUL, or with half of a surrogate pair.
    reason = getattr(error, 'strerror', None) or error
    cause, problem = error, f'cannot be read: {reason}'
  hint = remedy and f'; {remedy}'
  raise UserError(f'{path}: {problem}{hint}') from cause


def read_json(
  path: str | os.PathLike[str], shape: Shape = dict, remedy: str = ''
) -> dict[str, Any]:
  """Reads a JSON object that this program wrote, or a user for it.

  Args:
    path: the file.
    shape: what it must hold, see `parse_json`.
    remedy: what the message of a damaged file ends with.

  Raises:
    UserError: saying in one line what is wrong with the file.
  """
  data = read_bytes(path, _MOST_BYTES, remedy)
  try:
    return parse_json(data, shape)
  except ValueError as error:
    hint = remedy and f'; {remedy}'
    raise UserError(f'{path}: {error}{hint}') from error


def parse_json(data: bytes, shape: Shape = dict) -> dict[str, Any]:
  """Parses an object and checks format and checksum, if it has them.

  Args:
    data: JSON in UTF-8.
    shape: a type; None for null; a tuple of shapes, any of which may fit; a
      list of one shape, that of every element; or a dict of shapes by name.
      A name that ends in '?' may be missing, and `str` stands for every other
      name. `float` includes integers, which have at most 64 bits.

  Returns:
    The object without `format` and `checksum`.

  Raises:
    ValueError: saying what is wrong, if the data are not strict JSON (NaN and
      infinities are not), nested too deeply, of another shape or format, or if
      the checksum differs.
  """
  try:
    value = json.loads(data.decode('utf-8'), parse_constant=_refuse_constant)
    level = [value]
    for _ in range(_MOST_LEVELS):
      level = [inner for item in level for inner in _children(item)]
    if level:
      raise RecursionError
    # Neither infinities, such as 1e999, nor halves of surrogate pairs.
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode('utf-8')
  except RecursionError:
    raise ValueError('not valid JSON here: nested too deeply') from None
  except UnicodeError:
    raise ValueError('not valid JSON: not all of it is UTF-8 text') from None
  except ValueError as error:
    raise ValueError(f'not valid JSON ({error})') from None
  if not isinstance(value, dict):
    raise ValueError('not valid here: an object {...} is needed')
  number = value.get('format')
  if number not in (None, _FORMAT):
    raise ValueError(
      f'its format is {number!r:.40}, this version of the program reads'
      f' {_FORMAT}'
    )
  given = value.pop('checksum', None)
  if given != checksum(value) and not given is number is None:
    raise ValueError(
      'damaged, or changed after it was written: its checksum differs (where'
      ' you changed it, delete `format` and `checksum` in it)'
    )
  value.pop('format', None)
  if problem := _misfit(value, shape, ''):
    raise ValueError(f'not what this program writes: {problem}')
  return value


def _refuse_constant(name: str) -> None:
  raise ValueError(f'{name} is no number in JSON')


def _children(value: Any) -> Iterable[Any]:
  if isinstance(value, dict):
    return value.values()
  return value if isinstance(value, list) else ()


def _misfit(value: Any, shape: Shape, place: str) -> str:
  """Says where a value first differs from a shape; '' if it fits."""
  if isinstance(shape, tuple):
    found = [_misfit(value, one, place) for one in shape]
    return found[0] if all(found) else ''
  if shape is object:
    return ''
  kind = shape if shape is None or isinstance(shape, type) else type(shape)
  if kind is None:
    fits = value is None
  elif isinstance(value, bool):
    fits = kind is bool
  else:
    fits = isinstance(value, (int, float) if kind is float else kind)
    fits = fits and not (isinstance(value, int) and abs(value) >> 63)
  if not fits:
    return f'{printable(place, 80)} must be {_WORDS[kind]}'
  inside = f'{place}.' if place else ''
  parts: Iterable[tuple[str, Any, Shape]] = ()
  if isinstance(shape, list):
    parts = ((f'{inside}{i}', v, shape[0]) for i, v in enumerate(value))
  elif isinstance(shape, dict):
    for name in shape:
      if name is not str and name[-1] != '?' and name not in value:
        return f'{printable(inside, 80)}{name} is missing'
    others = shape.get(str, object)
    parts = (
      (f'{inside}{n}', v, shape.get(n, shape.get(f'{n}?', others)))
      for n, v in value.items()
    )
  return next(filter(None, (_misfit(v, s, p) for p, v, s in parts)), '')


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
  """Locks a part of a directory against other processes.

  A second run would delete checkpoints that the first is writing. The kernel
  releases the lock however the process ends; a killed process leaves the file,
  which the next one takes. Whether a run on another machine is noticed depends
  on the file system.

  Args:
    directory: where the files are, and the lock; made if it is missing.
    part: name of the part to lock; it need not exist.
    message: of the error.

  Raises:
    UserError: with this message, if another process holds the lock; with
      another one, if something else has its name, a link or another user's
      file, which is neither followed nor waited for.
  """
  path = make_directory(directory) / f'.{part}.lock'
  handle = None
  while handle is None:
    handle = _lock(path, message)
  try:
    yield
  finally:
    path.unlink(missing_ok=True)
    os.close(handle)


def _lock(path: pathlib.Path, message: str) -> int | None:
  """Locks a file; None if its last owner has just deleted it."""
  strange = f'{path} is no lock of yours; delete it if nobody else works here'
  flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
  try:
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
  except OSError as error:
    if os.path.lexists(path):
      raise UserError(f'{strange} ({error.strerror})') from error
    raise WriteError(f'{path}: cannot be written: {error.strerror}') from error
  try:
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
      raise UserError(strange)
    with contextlib.suppress(OSError):  # The file system may have no locks.
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        raise UserError(message) from None
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(about, os.lstat(path)):
        return handle
  except BaseException:
    os.close(handle)
    raise
  os.close(handle)
  return None


def _sync_directory(path: pathlib.Path) -> None:
  """Makes a rename in `path` durable, where the system supports it."""
  with contextlib.suppress(OSError):
    handle = os.open(path, os.O_RDONLY)
    try:
      os.fsync(handle)
    finally:
      os.close(handle)
