"""Halton's schedule: positions from a low-discrepancy sequence.

Besnier et al., Halton Scheduler for Masked Generative Image Transformer, ICLR
2025; valeoai/Halton-MaskGIT `Sampler/halton_sampler.py`. Tokens that are drawn
together lie far from each other, so they depend little on each other.
"""

from __future__ import annotations

import math

import numpy as np


def halton_order(rows: int, columns: int) -> np.ndarray:
  """The cells of a grid in the order of Halton's sequence.

  Point i lies in row `floor(rows * phi_2(i))` and column `floor(columns *
  phi_3(i))`, where `phi_b` reads the digits of i in base b backwards behind the
  point. Cells are listed when they are first met. Of a grid with one column
  this is van der Corput's order. Fractions are exact: on sides that are
  multiples of 9 the original's floats give another cell or two.

  Args:
    rows: of the grid.
    columns: of the grid.

  Returns:
    int64[rows * columns], row-major indices; each cell once.
  """
  found: dict[int, None] = {}
  point = 1
  while len(found) < rows * columns:
    row, column = _cell(point, 2, rows), _cell(point, 3, columns)
    found.setdefault(row * columns + column)
    point += 1
  return np.fromiter(found, np.int64)


def _cell(point: int, base: int, side: int) -> int:
  """`floor(side * phi_base(point))`."""
  numerator, denominator = 0, 1
  while point:
    point, digit = divmod(point, base)
    numerator, denominator = numerator * base + digit, denominator * base
  return numerator * side // denominator


def halton_counts(num_tokens: int, num_steps: int) -> np.ndarray:
  """How many tokens are known in all after each step, int64[T].

  `max(t + 1, floor(N (1 - arccos((t + 1) / T) / (pi / 2))))`, and N at most.
  """
  steps = range(1, num_steps + 1)
  shares = [1 - math.acos(step / num_steps) / (math.pi / 2) for step in steps]
  counts = [
    min(num_tokens, max(step, int(num_tokens * share)))
    for step, share in zip(steps, shares, strict=True)
  ]
  return np.array(counts)


def priority(rows: int, columns: int) -> np.ndarray:
  """For the order `'given'`, float32[rows * columns]: largest first."""
  result = np.empty(rows * columns, np.float32)
  result[halton_order(rows, columns)] = -np.arange(rows * columns)
  return result


def mask_ratio(num_tokens: int, num_steps: int) -> np.ndarray:
  """Ratios float32[T] that give these counts, rounded up.

  Of N unknown tokens exactly, and of fewer up to one token.
  """
  done = (np.arange(num_steps) + 1) / num_steps
  curve = np.arccos(done) / (np.pi / 2)
  # One step up in float32: where a share of the tokens is a whole number the
  # original's float64 falls short of it.
  ratio = np.where(curve > 0, np.nextafter(np.float32(curve), np.float32(2)), 0)
  masked = num_tokens - halton_counts(num_tokens, num_steps)
  least, most = (np.maximum(masked - gap, 0) / num_tokens for gap in (0.5, 0.1))
  return np.clip(ratio, least, most).astype(np.float32)
