"""Precision and recall of generated images, in the features of a network.

1. Around every feature of a set lies a ball that reaches to its k-th nearest
   neighbour in the same set; the union of the balls stands for the set.
2. Precision: the share of generated features inside the union of the real
   ones. Recall: the share of real features inside that of the generated.

Both depend on how many samples each set has: compare only equal counts.

Shape legend: `n` real, `m` generated samples, `d` features.

Source: T. Kynkäänniemi et al., "Improved Precision and Recall Metric for
Assessing Generative Models", 2019.
"""

from collections.abc import Iterator
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
  """Two shares in [0, 1]."""

  precision: float
  recall: float


def precision_recall(
  real: np.ndarray,
  generated: np.ndarray,
  num_neighbours: int = 3,
  batch_size: int = 1024,
) -> PrecisionRecall:
  """How much of each set lies inside the other.

  Args:
    real: float[n, d].
    generated: float[m, d].
    num_neighbours: k, the neighbour that sets the radius of a ball; the
      feature itself does not count.
    batch_size: rows of the distance matrix that are held at a time; changes
      memory, not the result.

  Returns:
    Precision and recall.

  Raises:
    ValueError: if a set has k features or fewer, dimensions differ, or a
      feature is not finite.
  """
  real = np.asarray(real, np.float64)
  generated = np.asarray(generated, np.float64)
  if real.ndim != 2 or real.shape[1:] != generated.shape[1:]:
    raise ValueError(
      'features must be [n, d] and [m, d], got '
      f'{real.shape} and {generated.shape}'
    )
  if min(len(real), len(generated)) <= num_neighbours or num_neighbours < 1:
    raise ValueError(
      f'{num_neighbours} neighbours need larger sets than '
      f'{len(real)} real and {len(generated)} generated'
    )
  if not (np.isfinite(real).all() and np.isfinite(generated).all()):
    raise ValueError('features are not all finite')
  # Centring keeps the squared distances exact where features have an offset.
  centre = real.mean(axis=0)
  real, generated = real - centre, generated - centre
  return PrecisionRecall(
    precision=_share_inside(generated, real, num_neighbours, batch_size),
    recall=_share_inside(real, generated, num_neighbours, batch_size),
  )


def _share_inside(
  points: np.ndarray, centres: np.ndarray, k: int, batch_size: int
) -> float:
  """The share of points that lie in a ball around any of the centres."""
  # The nearest centre, at place 0, is the centre itself.
  radii = np.concatenate(
    [
      np.partition(distances, k, axis=1)[:, k]
      for distances in _distances(centres, centres, batch_size)
    ]
  )
  inside = sum(
    int((distances <= radii).any(axis=1).sum())
    for distances in _distances(points, centres, batch_size)
  )
  return inside / len(points)


def _distances(
  a: np.ndarray, b: np.ndarray, batch_size: int
) -> Iterator[np.ndarray]:
  """Squared distances of a batch of `a` to all of `b`, batch after batch."""
  norms = (b**2).sum(axis=1)
  for first in range(0, len(a), batch_size):
    rows = a[first : first + batch_size]
    squares = (rows**2).sum(axis=1)[:, None] + norms - 2.0 * rows @ b.T
    # What rounding leaves of equal points must not fall outside a ball of
    # radius 0.
    tiny = 1e-13 * (norms.max() + (rows**2).sum(axis=1).max())
    yield np.where(squares < tiny, 0.0, squares)
