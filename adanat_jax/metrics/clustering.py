"""How well clusters agree with classes.

Clusters have no names: each is matched to one class so that most items agree
(Hungarian assignment). Of items of known and of new classes the literature
counts in two ways:

v2  one assignment for all items; the usual one since 2022;
v1  each part is assigned for itself, which gives higher figures; that of all is
    the mean of both, weighted by their sizes.

Both as in sgvaze/generalized-category-discovery (cluster_and_log_utils.py).
Shape letters: `n` items, `C` classes or clusters.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score


@dataclasses.dataclass(frozen=True)
class ClusterAccuracy:
  """Shares of items whose cluster is matched to their class, 0 to 1."""

  all: float
  old: float  # among items of known classes; NaN where there are none
  new: float  # among items of new classes; NaN where there are none


def match(classes: np.ndarray, clusters: np.ndarray) -> np.ndarray:
  """The class that each cluster is matched to, int[C].

  Args:
    classes: int[n], from 0.
    clusters: int[n], from 0; there may be more or fewer than classes. C is the
      larger number of the two.
  """
  size = int(max(classes.max(), clusters.max())) + 1
  counts = np.zeros((size, size), np.int64)
  np.add.at(counts, (clusters, classes), 1)
  return linear_sum_assignment(counts, maximize=True)[1]


def accuracy(
  classes: np.ndarray, clusters: np.ndarray, is_old: np.ndarray
) -> ClusterAccuracy:
  """The accuracy 'v2': one assignment of all items.

  Args:
    classes: int[n], the true ones.
    clusters: int[n].
    is_old: bool[n], whether an item's true class is known.
  """
  right = match(classes, clusters)[clusters] == classes
  return ClusterAccuracy(
    _mean(right), _mean(right[is_old]), _mean(right[~is_old])
  )


def accuracy_apart(
  classes: np.ndarray, clusters: np.ndarray, is_old: np.ndarray
) -> ClusterAccuracy:
  """The accuracy 'v1': known and new classes are assigned separately."""
  old, new = (
    accuracy(classes[part], clusters[part], is_old[part]).all
    if part.any()
    else float('nan')
    for part in (is_old, ~is_old)
  )
  share = float(is_old.mean())
  # NaN of a part without items is left out.
  parts = ((share, old), (1 - share, new))
  return ClusterAccuracy(sum(w * x for w, x in parts if w), old, new)


def agreement(classes: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
  """Measures without an assignment: `nmi` and `ari`, both 1 at best.

  Normalised mutual information (arithmetic mean) and the adjusted Rand index,
  near 0 for clusters at random.
  """
  return {
    'nmi': float(normalized_mutual_info_score(classes, clusters)),
    'ari': float(adjusted_rand_score(classes, clusters)),
  }


def _mean(right: np.ndarray) -> float:
  return float(right.mean()) if len(right) else float('nan')
