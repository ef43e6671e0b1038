"""NumPy's numbers, types and arrays inside of a pickle.

Trainings put them beside their weights: a best score, a list of losses. Only
numbers and texts are built, from bytes whose length was compared with what
their type and shape take.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from adanat_jax.convert.pickle_machine import Known
from adanat_jax.convert.reading import Budget, is_size, shown
from adanat_jax.errors import UserError

_TYPES = re.compile(r'b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,4}')
_MAX_DIMENSIONS = 32


class NumberType:
  """A `numpy.dtype` that waits for its byte order."""

  def __init__(self, code: str):
    self.dtype = np.dtype(code)

  def set_state(self, state: Any) -> None:
    """Takes (version, byte order, ...)."""
    if (
      not isinstance(state, tuple)
      or len(state) < 2
      or state[2:5] != (None,) * 3
    ):
      raise UserError('a numpy.dtype that is not of plain numbers')
    if state[1] not in ('<', '>', '|', '='):
      raise UserError('a numpy.dtype without a byte order')
    self.dtype = self.dtype.newbyteorder(state[1])


class PickledArray(np.ndarray):
  """An array that waits for its content."""

  def set_state(self, state: Any) -> None:
    """Takes (version, shape, type, whether in Fortran's order, bytes)."""
    if (
      self.shape != (0,)
      or not isinstance(state, tuple)
      or len(state) != 5
      or not isinstance(state[1], tuple)
      or len(state[1]) > _MAX_DIMENSIONS
      or not all(map(is_size, state[1]))
      or not isinstance(state[2], NumberType)
      or not isinstance(state[3], bool)
      or not isinstance(state[4], bytes)
      or math.prod(state[1]) * state[2].dtype.itemsize != len(state[4])
    ):
      raise UserError('a NumPy array that is not one of plain numbers')
    self.__setstate__((1, state[1], state[2].dtype, *state[3:]))


def _dtype(budget: Budget, code: Any = None, *_: Any) -> NumberType:
  del budget
  if not isinstance(code, str) or not _TYPES.fullmatch(code):
    raise UserError(f'a numpy.dtype of {shown(code)}, which is not read')
  return NumberType(code)


def _scalar(budget: Budget, kind: Any = None, data: Any = None) -> Any:
  if (
    not isinstance(kind, NumberType)
    or not isinstance(data, bytes)
    or len(data) != kind.dtype.itemsize
    or not data
  ):
    raise UserError('a NumPy number whose bytes are not of its type')
  budget.spend(len(data))
  return np.frombuffer(data, kind.dtype)[0].item()


def _reconstruct(budget: Budget, kind: Any = None, *_: Any) -> PickledArray:
  if not isinstance(kind, Known) or kind.name != 'numpy.ndarray':
    raise UserError(
      'numpy.core.multiarray._reconstruct of something other than an array'
    )
  budget.hold_array()
  return np.ndarray.__new__(PickledArray, (0,), np.int8)


def known() -> dict[str, Known]:
  """Returns the names that stand for NumPy's objects in a pickle."""
  builders: dict[str, Any] = {'numpy.dtype': _dtype, 'numpy.ndarray': None}
  for core in ('numpy.core', 'numpy._core'):
    builders[f'{core}.multiarray.scalar'] = _scalar
    builders[f'{core}.multiarray._reconstruct'] = _reconstruct
  return {name: Known(name, build) for name, build in builders.items()}
