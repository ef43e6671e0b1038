"""The kernel distance of two sets of features: squared MMD, unbiased.

Unlike a Fréchet distance it assumes no Gaussian, and its expectation does not
depend on how many samples there are, so that it serves small sets. Where two
sets are of one law it is 0 on average, and so below 0 about every other time.

It is called KID where the features are those of the published Inception-v3.

Shape legend: `n` real, `m` generated samples, `d` features.

Source: M. Bińkowski et al., "Demystifying MMD GANs", 2018.
"""

import dataclasses

import numpy as np

from adanat_jax.metrics import precision_recall

# Rows of a kernel matrix that are held at a time.
_ROWS = 1024
# The published number of subsets, and the size of each.
_NUM_SUBSETS = 100
_SUBSET_SIZE = 1000


@dataclasses.dataclass(frozen=True)
class KernelDistance:
  """The mean of the squared MMD over subsets, and their deviation."""

  mean: float
  std: float  # between subsets, unbiased


def squared_mmd(real: np.ndarray, generated: np.ndarray) -> float:
  """The unbiased squared MMD of two sets, by the kernel (x.y / d + 1)^3.

  Args:
    real: float[n, d], n >= 2.
    generated: float[m, d], m >= 2.

  Raises:
    ValueError: if a set has fewer than two features, dimensions differ, or a
      feature is not finite.
  """
  real, generated = precision_recall.comparable(real, generated)
  if min(len(real), len(generated)) < 2:
    raise ValueError(
      'a kernel distance needs 2 features of each set, got '
      f'{len(real)} real and {len(generated)} generated'
    )
  if not (np.isfinite(real).all() and np.isfinite(generated).all()):
    raise ValueError('features are not all finite')
  across = _kernel_sum(real, generated) / (len(real) * len(generated))
  return float(_mean_of_pairs(real) + _mean_of_pairs(generated) - 2.0 * across)


def kernel_distance(
  real: np.ndarray, generated: np.ndarray, seed: int = 0
) -> KernelDistance:
  """Measures random subsets of two sets.

  100 subsets of 1000 features of each set, drawn without replacement, as
  published. Of a set of fewer than 2000 a subset is a random half: where
  subsets of 1000 would hardly differ, the deviation between halves is about
  the standard error of the mean (the delete-half jackknife).

  Args:
    real: float[n, d], n >= 4.
    generated: float[m, d], m >= 4.
    seed: of the subsets.

  Raises:
    ValueError: as `squared_mmd`.
  """
  random = np.random.Generator(np.random.PCG64(seed))

  def subset(features: np.ndarray) -> np.ndarray:
    size = min(_SUBSET_SIZE, len(features) // 2)
    return features[random.choice(len(features), size, replace=False)]

  values = [
    squared_mmd(subset(real), subset(generated)) for _ in range(_NUM_SUBSETS)
  ]
  return KernelDistance(float(np.mean(values)), float(np.std(values, ddof=1)))


def _mean_of_pairs(features: np.ndarray) -> float:
  """The mean kernel of two different rows."""
  count, width = features.shape
  itself = ((features**2).sum(axis=1) / width + 1.0) ** 3
  pairs = _kernel_sum(features, features) - itself.sum()
  return float(pairs / (count * (count - 1)))


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
  """The sum of the kernel over all rows of both."""
  total = 0.0
  for first in range(0, len(a), _ROWS):
    base = a[first : first + _ROWS] @ b.T / a.shape[1] + 1.0
    total += float((base * base * base).sum())
  return total
