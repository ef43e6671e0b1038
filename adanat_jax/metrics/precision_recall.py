"""Precision, recall, density and coverage of generated images, in features.

1. Around every feature of a set lies a ball that reaches to its k-th nearest
   neighbour in the same set; the union of the balls stands for the set.
2. Precision: the share of generated features inside the union of the real
   ones. Recall: the share of real features inside that of the generated.
3. Density: how many real balls a generated feature lies in, over k; 1 is what
   real features have, more is possible. Coverage: the share of real balls that
   hold a generated feature.

One real outlier has a large ball, which raises precision and hardly density;
one generated outlier raises recall and not coverage, which uses real balls
alone. Balls are closed. All depend on how many samples each set has: compare
only equal counts.

Shape legend: `n` real, `m` generated samples, `d` features.

Sources: T. Kynkäänniemi et al., "Improved Precision and Recall Metric for
Assessing Generative Models", 2019; M. F. Naeem et al., "Reliable Fidelity and
Diversity Metrics for Generative Models", 2020.
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


@dataclasses.dataclass(frozen=True)
class DensityCoverage:
  """Density, 0 or more, and coverage, a share in [0, 1]."""

  density: float
  coverage: float


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
  found = _Distances(real, generated, num_neighbours)
  real, generated = found.real, found.generated
  return PrecisionRecall(
    precision=_share_inside(found, generated, real),
    recall=_share_inside(found, real, generated),
  )


def density_coverage(
  real: np.ndarray, generated: np.ndarray, num_neighbours: int = 5
) -> DensityCoverage:
  """Measures how generated features fill the balls of the real ones.

  Args:
    real: float[n, d].
    generated: float[m, d].
    num_neighbours: k, as in `precision_recall`.

  Raises:
    ValueError: as `precision_recall`.
  """
  found = _Distances(real, generated, num_neighbours)
  radii = found.radii(found.real)
  balls = found.reduce(
    found.generated, found.real, lambda x: (x <= radii).sum(axis=1)
  )
  nearest = found.reduce(found.real, found.generated, lambda x: x.min(axis=1))
  return DensityCoverage(
    density=float(balls.mean() / num_neighbours),
    coverage=float((nearest <= radii).mean()),
  )


def comparable(
  real: np.ndarray, generated: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Both sets of features, [n, d] and [m, d], as float64.

  Raises:
    ValueError: if they have other shapes.
  """
  real = np.asarray(real, np.float64)
  generated = np.asarray(generated, np.float64)
  if real.ndim != 2 or real.shape[1:] != generated.shape[1:]:
    raise ValueError(
      'features must be [n, d] and [m, d], got '
      f'{real.shape} and {generated.shape}'
    )
  return real, generated


class _Distances:
  """Squared distances between two sets of features, a part at a time."""

  def __init__(
    self, real: np.ndarray, generated: np.ndarray, num_neighbours: int
  ):
    real, generated = comparable(real, generated)
    if min(len(real), len(generated)) <= num_neighbours or num_neighbours < 1:
      raise ValueError(
        f'{num_neighbours} neighbours need larger sets than '
        f'{len(real)} real and {len(generated)} generated'
      )
    if not (np.isfinite(real).all() and np.isfinite(generated).all()):
      raise ValueError('features are not all finite')
    # Centring keeps the squared distances exact where features have an offset.
    centre = real.mean(axis=0)
    self.real, self.generated = real - centre, generated - centre
    self._num_neighbours = num_neighbours
    # What rounding leaves between equal points must not fall outside a ball of
    # radius 0.
    sets = self.real, self.generated
    self._tiny = 1e-13 * sum((x**2).sum(axis=1).max() for x in sets)

  def reduce(
    self,
    rows: np.ndarray,
    columns: np.ndarray,
    reduction: Callable[[np.ndarray], Any],
  ) -> np.ndarray:
    """Reduces the squared distances of each row to all columns."""
    chunks = pairwise_distances_chunked(
      rows,
      columns,
      reduce_func=lambda x, _: reduction(np.where(x < self._tiny, 0.0, x)),
      working_memory=_WORKING_MEMORY,
      squared=True,
    )
    return np.concatenate(list(chunks))

  def radii(self, centres: np.ndarray) -> np.ndarray:
    """The squared radius of the ball around each centre."""
    k = self._num_neighbours
    # The nearest centre, at index 0, is the centre itself.
    return self.reduce(centres, centres, lambda x: np.partition(x, k)[:, k])


def _share_inside(
  found: _Distances, points: np.ndarray, centres: np.ndarray
) -> float:
  """The share of points that lie in a ball around any of the centres."""
  radii = found.radii(centres)
  inside = found.reduce(points, centres, lambda x: (x <= radii).any(axis=1))
  return float(inside.mean())
