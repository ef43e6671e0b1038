"""The interface of a data set to a training loop: a length, and rows by index.

The order of reading is a pure function of the step (`adanat_jax.data.order`).
So a data set has no state, and nothing of it is saved for a run to resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

Rows = dict[str, np.ndarray]


class Examples(Protocol):
  """Rows that can be read in any order, from several threads at once."""

  def __len__(self) -> int:
    """How many there are."""

  def take(self, index: np.ndarray) -> Rows:
    """Reads rows of an index of integers in `[0, len(self))`, of any shape.

    Returns:
      Host arrays [*index.shape, ...], a function of the index alone.
    """


class ArrayExamples:
  """Examples in memory."""

  def __init__(self, arrays: Mapping[str, np.ndarray]):
    """Takes arrays [n, ...] of equal length n."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
      raise ValueError(f'arrays must have one length, they have {lengths}')
    self.arrays = dict(arrays)

  def __len__(self) -> int:
    return len(next(iter(self.arrays.values())))

  def take(self, index: np.ndarray) -> Rows:
    return {name: array[index] for name, array in self.arrays.items()}
