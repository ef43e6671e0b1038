"""Safetensors: a JSON header, then the arrays. They are views of the file."""

from __future__ import annotations

import json
import math
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from adanat_jax.convert.npz import shaped
from adanat_jax.convert.reading import Budget, is_size, shown
from adanat_jax.errors import UserError

_TYPES: dict[str, Any] = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U64': np.uint64,
  'U32': np.uint32,
  'U16': np.uint16,
  'U8': np.uint8,
  'BOOL': np.bool_,
  'C64': np.complex64,
}
_LENGTH_BYTES = 8
# A hundred thousand arrays; each byte of JSON takes up to fifty of memory.
_LONGEST_HEADER = 1 << 24
_METADATA = '__metadata__'


def header_size(view: memoryview) -> int | None:
  """Returns the size of the header in bytes if these may be safetensors."""
  size = int.from_bytes(view[:_LENGTH_BYTES], 'little')
  is_one = size >= 2 and view[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b'{'
  return size if is_one else None


def read(view: memoryview, budget: Budget) -> dict[str, np.ndarray]:
  """Reads the arrays by name.

  Raises:
    UserError: if the header is broken, or its arrays overlap, leave gaps or do
      not end with the file.
  """
  size = header_size(view)
  if size is None or size > len(view) - _LENGTH_BYTES:
    raise UserError('truncated: its header is longer than the file')
  if size > _LONGEST_HEADER:
    raise UserError(f'its header claims {size} bytes')
  data = view[_LENGTH_BYTES + size :]
  spans, arrays = [], {}
  for name, entry in _header(view, size, budget).items():
    if name == _METADATA:
      continue
    budget.check_key(name)
    try:
      dtype, shape, start, end = _parse(entry)
      if end > len(data):
        raise UserError('it lies beyond the end: the file is truncated')
      arrays[name] = shaped(data[start:end], dtype, shape, fortran=False)
    except UserError as error:
      raise UserError(f'its array {shown(name)}: {error}') from error
    spans.append((start, end))
  position = 0
  for start, end in sorted(spans):
    if start != position:
      raise UserError('its arrays overlap or leave gaps')
    position = end
  if position != len(data):
    raise UserError(f'its arrays take {position} bytes, and it has {len(data)}')
  return arrays


def _header(view: memoryview, size: int, budget: Budget) -> dict[str, Any]:
  def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    budget.hold(len(pairs))
    result = dict(pairs)
    if len(result) != len(pairs):
      raise UserError('its header names something twice')
    return result

  text = bytes(view[_LENGTH_BYTES : _LENGTH_BYTES + size])
  try:
    header = json.loads(text.decode(), object_pairs_hook=unique)
  except UserError:
    raise
  except ValueError as error:
    raise UserError(f'its header is no JSON ({shown(error)})') from error
  if not isinstance(header, dict):
    raise UserError('its header is no dictionary')
  return header


def _parse(entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
  """Checks {"dtype": ..., "shape": [...], "data_offsets": [start, end]}."""
  if not isinstance(entry, dict):
    raise UserError('it is no dictionary in the header')
  kind, shape = entry.get('dtype'), entry.get('shape')
  offsets = entry.get('data_offsets')
  if not isinstance(kind, str) or kind not in _TYPES:
    raise UserError(f'numbers of type {shown(kind)}, which are not read')
  if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
    raise UserError('its shape or its offsets are no numbers')
  dtype, (start, end) = np.dtype(_TYPES[kind]), offsets
  if end - start != math.prod(shape) * dtype.itemsize:
    raise UserError(f'{shown(shape)} numbers are not {end - start} bytes')
  return dtype, tuple(shape), start, end


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
  return isinstance(value, list) and all(map(is_size, value))
