"""k-means with or without labels, and how many classes there are.

As in sgvaze/generalized-category-discovery (faster_mix_k_means_pytorch.py,
estimate_k.py): known classes have a cluster each, which their labelled items
never leave. Without labels it is plain k-means. NumPy on the host: some
thousands of features take milliseconds an iteration.

Shape letters: `n` items, `D` width, `C` clusters.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import minimize_scalar

from adanat_jax.metrics import clustering

_MOST_ITERATIONS = 200
# Of the square of the distance that all centres move together.
_TOLERANCE = 1e-4
# Numbers of classes that are tried before the search.
_GRID = 9


@dataclasses.dataclass(frozen=True)
class Clusters:
  """What k-means has found."""

  assignment: np.ndarray  # int[n]
  centres: np.ndarray  # float[C, D]
  inertia: float  # sum of squared distances to the own centre


def kmeans(
  features: np.ndarray,
  num_clusters: int,
  labels: np.ndarray | None = None,
  *,
  seed: int,
  num_inits: int = 10,
) -> Clusters:
  """Clusters features, with the labelled items in the cluster of their class.

  Centres of known classes start at the mean of their labelled items, others at
  unlabelled items that are chosen by k-means++. A cluster that becomes empty
  keeps its centre.

  Args:
    features: float[n, D].
    num_clusters: C, at least the number of known classes.
    labels: int[n], the known class of labelled items, which are numbered from
      0 without gaps, and -1 for others; None for none.
    seed: of the starts.
    num_inits: how many starts; that of the lowest inertia is returned.
  """
  features = np.asarray(features, np.float64)
  given = np.full(len(features), -1) if labels is None else np.asarray(labels)
  num_known = int(given.max()) + 1
  if num_clusters < num_known:
    raise ValueError(f'{num_clusters} clusters for {num_known} known classes')
  random = np.random.Generator(np.random.PCG64(seed))
  known = [features[given == label].mean(0) for label in range(num_known)]
  found = []
  for _ in range(num_inits):
    centres = _start(features[given < 0], known, num_clusters, random)
    found.append(_iterate(features, centres, given))
  return min(found, key=lambda clusters: clusters.inertia)


def _start(
  free: np.ndarray,
  known: list[np.ndarray],
  num_clusters: int,
  random: np.random.Generator,
) -> np.ndarray:
  """Centres float[C, D]: known ones, then items far from those before."""
  centres = list(known)
  if not centres:
    centres.append(free[random.integers(len(free))])
  distances = _distances(free, np.stack(centres)).min(1) if len(free) else None
  while len(centres) < num_clusters:
    if distances is None or not distances.sum() > 0:
      # Fewer different items than clusters.
      centres.append(centres[-1])
      continue
    chosen = free[random.choice(len(free), p=distances / distances.sum())]
    centres.append(chosen)
    distances = np.minimum(distances, ((free - chosen) ** 2).sum(1))
  return np.stack(centres)


def _iterate(
  features: np.ndarray, centres: np.ndarray, labels: np.ndarray
) -> Clusters:
  """Lloyd's iterations from given centres."""
  rows, free = np.arange(len(features)), labels < 0
  for _ in range(_MOST_ITERATIONS):
    distances = _distances(features, centres)
    assignment = np.where(free, distances.argmin(1), labels)
    moved = np.zeros_like(centres)
    np.add.at(moved, assignment, features)
    counts = np.bincount(assignment, minlength=len(centres))[:, None]
    moved = np.where(counts, moved / np.maximum(counts, 1), centres)
    shift = np.linalg.norm(moved - centres, axis=1).sum() ** 2
    centres = moved
    if shift < _TOLERANCE:
      break
  distances = _distances(features, centres)
  assignment = np.where(free, distances.argmin(1), labels)
  return Clusters(assignment, centres, float(distances[rows, assignment].sum()))


def _distances(features: np.ndarray, centres: np.ndarray) -> np.ndarray:
  """Squared distances float[n, C]."""
  squares = (features**2).sum(1)[:, None] + (centres**2).sum(1)[None]
  return np.maximum(squares - 2 * features @ centres.T, 0.0)


def estimate_num_classes(
  features: np.ndarray,
  labels: np.ndarray,
  most: int,
  *,
  seed: int,
  num_inits: int = 1,
) -> int:
  """How many classes there are: where k-means meets the known ones best.

  Brent's bounded search for the number of clusters of all features at which
  the labelled items' accuracy is highest. Published, it starts from the whole
  range; that ends at a local optimum too often, and here it starts beside the
  best of a few numbers.

  Args:
    features: float[n, D].
    labels: int[n], as of `kmeans`.
    most: the largest number that is tried.
    seed: of each k-means.
    num_inits: of each k-means.

  Returns:
    A number from that of the known classes to `most`.
  """
  is_labelled = labels >= 0
  known = labels[is_labelled]
  tried: dict[int, float] = {}

  def loss(number: float) -> float:
    count = round(number)
    if count not in tried:
      found = kmeans(features, count, seed=seed, num_inits=num_inits)
      right = clustering.accuracy(
        known, found.assignment[is_labelled], np.ones(len(known), bool)
      )
      tried[count] = -right.all
    return tried[count]

  low = int(known.max()) + 1
  grid = np.unique(np.linspace(low, max(low, most), _GRID).round().astype(int))
  for count in grid:
    loss(count)
  # Fewer clusters may hold the known classes as well; more would divide them.
  best = lambda: min(tried, key=lambda count: (tried[count], -count))
  place = int(np.searchsorted(grid, best()))
  bounds = grid[max(0, place - 1)], grid[min(place + 1, len(grid) - 1)]
  if bounds[1] - bounds[0] > 1:
    minimize_scalar(
      loss, bounds=bounds, method='bounded', options={'xatol': 0.5}
    )
  return best()
