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

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np
from sklearn.metrics import pairwise_distances_chunked

# MiB of distances that are held at a time.
_WORKING_MEMORY = 128


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
  """Two shares in [0, 1]."""

  precision: float
  recall: float


def precision_recall(
  real: np.ndarray, generated: np.ndarray, num_neighbours: int = 3
) -> PrecisionRecall:
  """Measures how much of each set lies inside the other.

  Args:
    real: float[n, d].
    generated: float[m, d].
    num_neighbours: k, the neighbour that sets the radius of a ball; the
      feature itself does not count.

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
    precision=_share_inside(generated, real, num_neighbours),
    recall=_share_inside(real, generated, num_neighbours),
  )


def _share_inside(points: np.ndarray, centres: np.ndarray, k: int) -> float:
  """The share of points that lie in a ball around any of the centres."""
  # What rounding leaves between equal points must not fall outside a ball of
  # radius 0.
  largest = sum((x**2).sum(axis=1).max() for x in (points, centres))
  tiny = 1e-13 * largest

  def reduce_distances(
    rows: np.ndarray, reduce: Callable[[np.ndarray], Any]
  ) -> np.ndarray:
    """Reduces the squared distances of each row to all centres."""
    chunks = pairwise_distances_chunked(
      rows,
      centres,
      reduce_func=lambda x, _: reduce(np.where(x < tiny, 0.0, x)),
      working_memory=_WORKING_MEMORY,
      squared=True,
    )
    return np.concatenate(list(chunks))

  # The nearest centre, at index 0, is the centre itself.
  radii = reduce_distances(centres, lambda x: np.partition(x, k)[:, k])
  inside = reduce_distances(points, lambda x: (x <= radii).any(axis=1))
  return float(inside.mean())
