"""NumPy's .npz files, read without evaluating their headers.

A header is a literal of Python. NumPy parses it with Python's own parser, which
hostile ones make fail in many ways; here it must have the one form that NumPy
writes. Entries that are stored become views of the file.
"""

from __future__ import annotations

import math
import re
import struct
from typing import Any

import numpy as np

from adanat_jax.convert.reading import Budget, is_size, shown
from adanat_jax.convert.zip_archive import ZipArchive
from adanat_jax.errors import UserError

MAGIC = b'\x93NUMPY'
_SUFFIX = '.npy'
_LONGEST_HEADER = 10_000  # as NumPy's own limit

# The members of a header, in any order.
_MEMBERS = re.compile(
  r"""\s*(['"])(?:"""
  r"""descr\1\s*:\s*(['"])(?P<type>[<>|=]?[a-zA-Z]\d{0,6}(?:\[\w{1,10}\])?)\2|"""
  r"""fortran_order\1\s*:\s*(?P<order>True|False)|"""
  r"""shape\1\s*:\s*\((?P<shape>[\dL, ]*)\)"""
  r""")\s*(?:,|(?=\}))"""
)


def read(archive: ZipArchive, budget: Budget) -> dict[str, np.ndarray]:
  """Reads the arrays of an archive by name; other entries are passed over.

  Raises:
    UserError: if an array is broken, or its type is not that of numbers, texts
      or times.
  """
  arrays = {}
  for name in archive.entries:
    if not name.endswith(_SUFFIX):
      continue
    data = archive.read(name, may_unpack=True)
    archive.check(name, data)
    try:
      arrays[name.removesuffix(_SUFFIX)] = _array_of(data, budget)
    except UserError as error:
      raise UserError(f'its array {shown(name)}: {error}') from error
  return arrays


def _array_of(data: memoryview, budget: Budget) -> np.ndarray:
  """Returns the array of one .npy file, a view of its bytes."""
  if data[: len(MAGIC)] != MAGIC or len(data) < 12:
    raise UserError('it is no array of NumPy')
  version = data[len(MAGIC)]
  length_format = struct.Struct('<H' if version == 1 else '<I')
  if version not in (1, 2, 3):
    raise UserError(f'version {version} of the format is not known')
  start = len(MAGIC) + 2 + length_format.size
  (length,) = length_format.unpack_from(data, len(MAGIC) + 2)
  if length > _LONGEST_HEADER or start + length > len(data):
    raise UserError(f'its header claims {length} bytes')
  header = bytes(data[start : start + length]).decode('latin1')
  budget.hold_array()
  found = _members_of(header)
  dtype, shape = _dtype_of(found['type']), _shape_of(found['shape'])
  num_bytes = math.prod(shape) * dtype.itemsize
  content = data[start + length :]
  if num_bytes != len(content):
    raise UserError(
      f'{shown(shape)} numbers of {dtype} take {num_bytes} bytes, and it has'
      f' {len(content)}'
    )
  return shaped(content, dtype, shape, fortran=found['order'] == 'True')


def _members_of(header: str) -> dict[str, str]:
  """Returns type, order and shape of a header, as texts."""
  found: dict[str, str] = {}
  text = header.strip()
  position = 1
  while text[:1] == '{' and (match := _MEMBERS.match(text, position)):
    name = str(match.lastgroup)
    if name in found:
      break
    found[name] = match[name]
    position = match.end()
  if len(found) != 3 or text[position:].strip() != '}':
    raise UserError(f'its header is not as NumPy writes it: {shown(header)}')
  return found


def shaped(
  content: Any, dtype: np.dtype, shape: tuple[int, ...], *, fortran: bool
) -> np.ndarray:
  """Returns the array of these bytes, in C's or Fortran's order; a view.

  Raises:
    UserError: if NumPy knows no array of this shape.
  """
  try:
    if 0 in shape:
      return np.zeros(shape, dtype)
    return np.ndarray(shape, dtype, content, order='F' if fortran else 'C')
  except (ValueError, OverflowError, TypeError) as error:
    raise UserError(f'its shape is {shown(shape)}: {shown(error)}') from error


def _dtype_of(text: str) -> np.dtype:
  try:
    dtype = np.dtype(text)
  except (TypeError, ValueError) as error:
    raise UserError(f'its type is {shown(text)}, which is not known') from error
  if dtype.hasobject:
    raise UserError('it holds Python objects, which are not read')
  if not dtype.itemsize:
    raise UserError(f'its numbers have no size ({shown(text)})')
  return dtype


def _shape_of(text: str) -> tuple[int, ...]:
  # Python 2 wrote long numbers with an L.
  parts = [part.strip().removesuffix('L') for part in text.split(',')]
  if parts[-1] == '':
    parts.pop()
  if not all(part.isdecimal() and len(part) < 20 for part in parts):
    raise UserError(f'its shape is {shown(text)}')
  shape = tuple(map(int, parts))
  if not all(map(is_size, shape)):
    raise UserError(f'its shape is {shown(text)}')
  return shape
