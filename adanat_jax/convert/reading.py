"""What the readers of other people's files share: limits, and one-line errors.

A small file can ask for all the memory or hours: by lists that hold each other,
by sizes that it only claims, by keys that collide. So every reader asks one
`Budget` before it makes anything; what exceeds it is refused. The arrays
themselves are views of the mapped file and cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
import mmap
import os
import pathlib
import sys
from typing import Any, TypeGuard

from adanat_jax.errors import UserError, printable

# The largest published checkpoint needs some twenty thousand operations and a
# few megabytes beside its arrays.
MAX_OPERATIONS = 1_000_000
MAX_BYTES = 1 << 28

# Compressed arrays may unfold to so much, or to so many times their file.
_MAX_UNPACKED = 1 << 28
_MAX_RATIO = 20

# Python hashes numbers without a secret: many may be made to collide. More than
# the classes of ImageNet-21k, and few enough to collide for seconds at worst.
_MAX_NUMBER_KEYS = 50_000
_LARGEST_KEY = 1 << 32
LONGEST_NAME = 1000

# What a container takes for one more member, at most, and NumPy for an array
# beside its numbers.
_MEMBER = 100
_ARRAY = 300
_LARGEST_SIZE = 1 << 62

# So much of a name, and of a list of names, stands in a message.
_SHOWN = 80
_NAMES_SHOWN = 12
_CHARACTERS_SHOWN = 240


class Budget:
  """What reading one file may cost."""

  def __init__(self, file_size: int):
    """Takes the size of the file in bytes."""
    self._operations = 0
    self._bytes = 0
    self._unpacked = 0
    self._number_keys = 0
    self._max_unpacked = max(_MAX_UNPACKED, _MAX_RATIO * file_size)

  def step(self) -> None:
    """Counts an operation.

    Raises:
      UserError: if the file has had its share.
    """
    self._operations += 1
    if self._operations > MAX_OPERATIONS:
      raise UserError(
        f'it takes more than {MAX_OPERATIONS} operations to read: no weights'
        ' need so many'
      )

  def spend(self, num_bytes: int) -> None:
    """Counts bytes that are to be made.

    Raises:
      UserError: if the file has had its share.
    """
    self._bytes += num_bytes
    if self._bytes > MAX_BYTES:
      raise UserError(
        f'it would take more than {MAX_BYTES >> 20} MiB of memory beside its'
        ' arrays: no weights need so much'
      )

  def make(self, value: Any) -> Any:
    """Counts a text, a number or bytes that were made, and returns it."""
    self.spend(sys.getsizeof(value))
    return value

  def hold(self, num_members: int) -> None:
    """Counts the members that are put into a container."""
    self.spend(_MEMBER * num_members)

  def hold_array(self) -> None:
    """Counts an array, which is a view of the file."""
    self.spend(_ARRAY)

  def unpack(self, num_bytes: int) -> None:
    """Counts what compressed bytes claim to unfold to."""
    self._unpacked += num_bytes
    if self._unpacked > self._max_unpacked:
      raise UserError(
        f'it unfolds to more than {self._max_unpacked >> 20} MiB, which is not'
        ' in proportion to the file'
      )

  def check_key(self, key: Any) -> None:
    """Refuses keys of dictionaries and members of sets that cost too much.

    Hashing a tuple recurses in C without a limit, so keys are texts and
    numbers; and neither long ones nor too many numbers.
    """
    if isinstance(key, (str, bytes)):
      if len(key) > LONGEST_NAME:
        raise UserError(f'a key has {len(key)} characters')
      return
    if not isinstance(key, (int, float, type(None))):
      raise UserError(
        f'a {type(key).__name__} is a key or a member of a set: only texts'
        ' and numbers are read there'
      )
    self._number_keys += 1
    if isinstance(key, int) and abs(key) > _LARGEST_KEY:
      raise UserError('a number beyond 2^32 is a key')
    if self._number_keys > _MAX_NUMBER_KEYS:
      raise UserError(f'more than {_MAX_NUMBER_KEYS} numbers are keys')


def is_size(value: Any) -> TypeGuard[int]:
  """Whether a file's value can be the side of an array, or a place in it."""
  return type(value) is int and 0 <= value < _LARGEST_SIZE


def shown(name: object) -> str:
  """Prints a foreign name in a message: escaped, and shortened."""
  return printable(str(name), _SHOWN)


def some(names: Iterable[str]) -> str:
  """Lists the first of some foreign names for a message."""
  names = list(names)
  text, count = '', 0
  for name in names[:_NAMES_SHOWN]:
    if text and len(text) + len(name) > _CHARACTERS_SHOWN:
      break
    text += f', {shown(name)}' if text else shown(name)
    count += 1
  rest = len(names) - count
  return f'{text} and {rest} more' if rest > 0 else text


def map_file(path: pathlib.Path) -> mmap.mmap:
  """Maps a file into memory.

  Raises:
    UserError: if it is absent, empty, or no regular file.
  """
  try:
    if path.exists() and not path.is_file():
      what = 'it is a directory' if path.is_dir() else 'it is no regular file'
      raise UserError(what)
    with path.open('rb') as file:
      if not os.fstat(file.fileno()).st_size:
        raise UserError('it is empty: the download or the copy has failed')
      return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except FileNotFoundError as error:
    raise UserError('there is no such file') from error
  except (OSError, ValueError) as error:
    raise UserError(str(error)) from error


@contextlib.contextmanager
def in_one_line(path: object) -> Iterator[None]:
  """Names the file in every error that its content can cause."""
  try:
    yield
  except UserError as error:
    raise UserError(f'cannot read {path}: {error}') from error
  except MemoryError as error:
    raise UserError(
      f'cannot read {path}: there is not enough memory'
    ) from error
  except RecursionError as error:
    raise UserError(f'cannot read {path}: it is nested too deeply') from error
