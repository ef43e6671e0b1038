"""Flax's checkpoints in msgpack: nested dictionaries of arrays.

Flax's own reader asks NumPy for whatever type a file names, which parses it as
Python; here the types are those of a table, and what is made is counted.
Arrays are views of the file.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import ml_dtypes
import numpy as np

from adanat_jax.convert.npz import shaped
from adanat_jax.convert.reading import Budget, is_size, shown
from adanat_jax.errors import UserError

_NAMES = (
  *('float16', 'float32', 'float64', 'complex64', 'complex128', 'bool'),
  *(f'{sign}int{bits}' for sign in ('', 'u') for bits in (8, 16, 32, 64)),
)
_TYPES = {
  **{name.encode(): np.dtype(name) for name in _NAMES},
  b'bfloat16': np.dtype(ml_dtypes.bfloat16),
}

# Flax's extensions of msgpack.
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
# How it parts arrays of more than a GiB.
_CHUNKED = '__msgpack_chunked_array__'

_DEEPEST = 64

# First bytes: what follows them. Formats are big-endian.
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {
  0xCA: '>f', 0xCB: '>d', 0xCC: '>B', 0xCD: '>H', 0xCE: '>I', 0xCF: '>Q',
  0xD0: '>b', 0xD1: '>h', 0xD2: '>i', 0xD3: '>q',
}  # fmt: skip
_LENGTHS = {
  'bin': {0xC4: 1, 0xC5: 2, 0xC6: 4},
  'ext': {0xC7: 1, 0xC8: 2, 0xC9: 4},
  'str': {0xD9: 1, 0xDA: 2, 0xDB: 4},
  'array': {0xDC: 2, 0xDD: 4},
  'map': {0xDE: 2, 0xDF: 4},
}
_SIZED = {
  code: (kind, size)
  for kind, codes in _LENGTHS.items()
  for code, size in codes.items()
}
_FIXED_EXT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def begins_container(first: int) -> bool:
  """Whether a file with this first byte may be msgpack that holds others."""
  kinds = ('array', 'map', 'ext')
  return (
    0x80 <= first < 0xA0
    or first in _FIXED_EXT
    or any(first in _LENGTHS[kind] for kind in kinds)
  )


def read(view: memoryview, budget: Budget) -> Any:
  """Reads what `flax.serialization.msgpack_serialize` wrote.

  Returns:
    Dictionaries and lists of arrays, numbers and texts.

  Raises:
    UserError: if it is broken, or of another make.
  """
  reader = _Reader(view, budget)
  value = reader.value()
  if not reader.at_end:
    raise UserError('bytes follow its end: it is no msgpack of Flax')
  return value


class _Reader:
  """Reads the values of a run of bytes, one after the other."""

  def __init__(self, view: memoryview, budget: Budget, depth: int = 0):
    self._view = view
    self._budget = budget
    self._depth = depth
    self._position = 0

  @property
  def at_end(self) -> bool:
    return self._position == len(self._view)

  def _take(self, num_bytes: int) -> memoryview:
    end = self._position + num_bytes
    if end > len(self._view):
      raise UserError('truncated, or no msgpack of Flax')
    data = self._view[self._position : end]
    self._position = end
    return data

  def _head(self) -> tuple[str, Any]:
    """Returns the kind of the next value, and its length or the value."""
    self._budget.step()
    first = self._take(1)[0]
    if first < 0x80 or first >= 0xE0:
      return 'number', first if first < 0x80 else first - 0x100
    if first < 0xC0:
      for kind, start in (('str', 0xA0), ('array', 0x90), ('map', 0x80)):
        if first >= start:
          return kind, first - start
    if first in _CONSTANTS:
      return 'number', _CONSTANTS[first]
    if first in _NUMBERS:
      number = struct.Struct(_NUMBERS[first])
      return 'number', number.unpack(self._take(number.size))[0]
    if first in _FIXED_EXT:
      return 'ext', _FIXED_EXT[first]
    if first in _SIZED:
      kind, size = _SIZED[first]
      return kind, int.from_bytes(self._take(size), 'big')
    raise UserError(f'the byte {first:#x} begins nothing in msgpack')

  def value(self) -> Any:
    """Reads the next value."""
    kind, content = self._head()
    if kind == 'number':
      return content
    if kind == 'bin':
      return self._budget.make(bytes(self._take(content)))
    if kind == 'str':
      return self._budget.make(_text(self._take(content)))
    if kind == 'ext':
      code = self._take(1)[0]
      return self._extension(code, self._take(content))
    if self._depth >= _DEEPEST:
      raise UserError('it is nested too deeply')
    self._depth += 1
    result = self._array(content) if kind == 'array' else self._map(content)
    self._depth -= 1
    return result

  def _array(self, length: int) -> list[Any]:
    result = []
    for _ in range(length):
      self._budget.hold(1)
      result.append(self.value())
    return result

  def _map(self, length: int) -> Any:
    result = {}
    for _ in range(length):
      self._budget.hold(1)
      key = self.value()
      if not isinstance(key, (str, bytes)):
        raise UserError('a key of a dictionary is no text')
      self._budget.check_key(key)
      if key in result:
        raise UserError(f'it holds {shown(key)} twice')
      result[key] = self.value()
    return _joined(result) if _CHUNKED in result else result

  def _extension(self, code: int, data: memoryview) -> Any:
    inside = _Reader(data, self._budget, self._depth)
    if code in (_ARRAY, _SCALAR):
      array = inside.array_of_numbers()
      if code == _ARRAY:
        return array
      if array.shape:
        raise UserError('a number that is an array')
      return array[()]
    if code == _COMPLEX:
      parts = inside.value()
      if (
        not isinstance(parts, list)
        or len(parts) != 2
        or not all(isinstance(part, (int, float)) for part in parts)
      ):
        raise UserError('a complex number that has not two parts')
      return complex(*parts)
    # A time, or something that Flax does not write: nobody here asks for it.
    return None

  def array_of_numbers(self) -> np.ndarray:
    """Reads (shape, name of the type, bytes)."""
    self._budget.hold_array()
    if self._head() != ('array', 3):
      raise UserError('an array that is not shape, type and bytes')
    shape = self.value()
    name, content = self._raw(), self._raw()
    if not self.at_end:
      raise UserError('an array that is not shape, type and bytes')
    dtype = _TYPES.get(bytes(name[:20]))
    if dtype is None:
      what = bytes(name[:100]).decode('latin1')
      raise UserError(f'an array of type {shown(what)}, which is not read')
    if not isinstance(shape, list) or not all(map(is_size, shape)):
      raise UserError('an array whose shape is no list of sizes')
    if math.prod(shape) * dtype.itemsize != len(content):
      raise UserError(
        f'an array of shape {shown(shape)} and {len(content)} bytes'
      )
    return shaped(content, dtype, tuple(shape), fortran=False)

  def _raw(self) -> memoryview:
    """Reads a text or bytes as they are."""
    kind, length = self._head()
    if kind not in ('bin', 'str'):
      raise UserError('an array that is not shape, type and bytes')
    return self._take(length)


def _text(data: memoryview) -> str:
  try:
    return bytes(data).decode()
  except UnicodeDecodeError as error:
    raise UserError('a text that is not UTF-8') from error


def _joined(parts: dict[Any, Any]) -> np.ndarray:
  """Joins the chunks of a large array."""
  shape, chunks = _in_order(parts.get('shape')), _in_order(parts.get('chunks'))
  if (
    not chunks
    or not all(map(is_size, shape))
    or not all(isinstance(x, np.ndarray) and x.ndim == 1 for x in chunks)
    or len({x.dtype for x in chunks}) != 1
    or sum(x.size for x in chunks) != math.prod(shape)
  ):
    raise UserError('a large array whose parts do not fit together')
  return np.concatenate(chunks).reshape(shape)


def _in_order(parts: Any) -> list[Any]:
  """Returns the values of {'0': ..., '1': ..., ...}; [] for anything else."""
  if not isinstance(parts, dict):
    return []
  names = [str(index) for index in range(len(parts))]
  return [parts[n] for n in names] if set(names) == set(parts) else []
