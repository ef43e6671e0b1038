"""The Fréchet distance between two sets of features.

Each set is summarised as a Gaussian, and

    d(a, b) = |mu_a - mu_b|^2 + tr S_a + tr S_b - 2 tr (S_a S_b)^(1/2)

which is the FID when the features are Inception's. The trace of the square root
is the sum of the singular values of `S_a^(1/2) S_b^(1/2)`: the same number as
the square roots of the eigenvalues of `S_a S_b`, but no square root of a
rounding error is taken, so rank-deficient covariances (fewer samples than
dimensions) need no regularisation.

Shape legend: `n` samples, `d` features.

Source: M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge
to a Local Nash Equilibrium", 2017.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from adanat_jax.errors import UserError

# Rows that are collected before they are merged: a merge costs as much as the
# outer products of a few hundred rows, and batches may hold fewer.
_BLOCK = 1024


@dataclasses.dataclass(frozen=True)
class Gaussian:
  """The first two moments of a set of features."""

  mean: np.ndarray  # float64[d]
  covariance: np.ndarray  # float64[d, d], unbiased


# How far moments may be from those of any set of features, by rounding: those
# of others were summed in float32, in blocks. Relative to the largest entry of
# the covariance, and to its norm.
_ASYMMETRY = 1e-5
_NEGATIVE_PART = 1e-4
# Squares of float32 are below it, and its own square is finite.
_LARGEST = 1e100
# Rows and columns that are compared with their transpose at a time.
_TILE = 256


def checked(mean: np.ndarray, covariance: np.ndarray) -> Gaussian:
  """Makes a Gaussian of moments that came from a file.

  Args:
    mean: real[d].
    covariance: real[d, d].

  Returns:
    The Gaussian, in float64.

  Raises:
    UserError: if no set of features has such moments: shapes do not fit, or a
      number is not finite, or the covariance is not symmetric or has a negative
      variance in some direction.
  """
  if mean.ndim != 1 or covariance.shape != 2 * mean.shape or not mean.size:
    raise UserError(
      f'mu is {mean.shape} and sigma {covariance.shape}: not the moments of'
      ' one set of features'
    )
  for name, x in (('mu', mean), ('sigma', covariance)):
    if x.dtype.kind not in 'fiu':
      raise UserError(f'{name} holds {x.dtype}, which is not a real number')
    if not np.isfinite(x).all():
      count = x.size - int(np.isfinite(x).sum())
      raise UserError(f'{name} holds NaN or infinity ({count} of {x.size})')
    largest = max(float(x.max()), -float(x.min()))
    if largest > _LARGEST:
      raise UserError(f'{name} holds {largest:.2g}: no features do')
  gaussian = Gaussian(
    np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
  )
  if problem := _problem(gaussian.covariance):
    raise UserError(f'sigma is no covariance: {problem}')
  return gaussian


def _problem(covariance: np.ndarray) -> str:
  """Says why a finite float64[d, d] is no covariance; '' if it is one."""
  negative = int((np.diagonal(covariance) < 0).sum())
  if negative:
    return f'{negative} variances are negative'
  largest = max(covariance.max(), -covariance.min())
  asymmetry = _asymmetry(covariance)
  if asymmetry > _ASYMMETRY * largest:
    return f'it differs from its transpose by {asymmetry:.2g}'
  if not largest:
    return ''
  # It is positive if it has a Cholesky factor, which costs a quarter of the
  # eigenvalues.
  scaled = covariance / largest
  slack = _NEGATIVE_PART * np.linalg.norm(scaled)
  scaled[np.diag_indices(len(scaled))] += slack
  try:
    np.linalg.cholesky(scaled)
  except np.linalg.LinAlgError:
    return 'the variance in some direction is negative'
  return ''


def _asymmetry(matrix: np.ndarray) -> float:
  """The largest difference from the transpose, block by block."""
  starts = range(0, len(matrix), _TILE)
  largest = 0.0
  for i in starts:
    for j in range(0, i + 1, _TILE):
      tile = matrix[i : i + _TILE, j : j + _TILE]
      mirrored = matrix[j : j + _TILE, i : i + _TILE]
      largest = max(largest, np.abs(tile - mirrored.T).max())
  return float(largest)


class MomentAccumulator:
  """Collects mean and covariance batch by batch, in float64.

  Batches are merged by the pairwise update of Chan, Golub and LeVeque, which
  never subtracts large nearly equal sums: the result is that of one batch to
  rounding, whatever the order and the batches of the features. Small batches
  wait until there are enough rows; memory does not grow with their number.
  """

  def __init__(self) -> None:
    self._count = 0
    self._mean = np.zeros(0)
    self._scatter = np.zeros((0, 0))
    self._waiting: list[np.ndarray] = []

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Continues, to the same bits, from another accumulator's `state`."""
    count = int(state['count'])
    names = ('mean', 'scatter', 'waiting')
    mean, scatter, waiting = (np.array(state[n], np.float64) for n in names)
    self._waiting = [waiting] if len(waiting) else []
    self._count, self._mean, self._scatter = count, mean, scatter

  def state(self) -> dict[str, np.ndarray]:
    """The accumulated values, as arrays to be saved."""
    empty = np.zeros((0, len(self._mean)))
    return {
      'count': np.asarray(self._count),
      'mean': self._mean,
      'scatter': self._scatter,
      'waiting': np.concatenate(self._waiting) if self._waiting else empty,
    }

  @property
  def count(self) -> int:
    """How many features were counted so far."""
    return self._count + self._num_waiting

  @property
  def _num_waiting(self) -> int:
    return sum(map(len, self._waiting))

  def update(
    self, features: np.ndarray, mask: np.ndarray | None = None
  ) -> None:
    """Adds a batch.

    Args:
      features: float[n, d]; n may differ from batch to batch and be 0.
      mask: bool[n] or None; rows that are False are padding, whatever they
        hold, and are not counted.

    Raises:
      ValueError: if shapes do not fit, or a counted feature is not finite.
    """
    batch = np.asarray(features)
    if batch.ndim != 2:
      raise ValueError(f'features must be [n, d], got shape {batch.shape}')
    if mask is not None:
      mask = np.asarray(mask, bool)
      if mask.shape != batch.shape[:1]:
        raise ValueError(
          f'mask must be [n] = {batch.shape[:1]}, got shape {mask.shape}'
        )
      batch = batch[mask]
    if not len(batch):
      return
    batch = batch.astype(np.float64)
    if not np.isfinite(batch).all():
      bad = int((~np.isfinite(batch)).any(axis=1).sum())
      raise ValueError(f'{bad} of {len(batch)} features are not finite')
    known = self._waiting[0].shape[1] if self._waiting else len(self._mean)
    if known and batch.shape[1] != known:
      raise ValueError(
        f'features have {batch.shape[1]} dimensions, earlier ones had {known}'
      )
    self._waiting.append(batch)
    if self._num_waiting >= _BLOCK:
      self._settle()

  def _settle(self) -> None:
    """Merges the rows that wait."""
    if not self._waiting:
      return
    (batch, *more), self._waiting = self._waiting, []
    if more:
      batch = np.concatenate([batch, *more])
    mean = batch.mean(axis=0)
    batch -= mean
    self._merge(len(batch), mean, batch.T @ batch)

  def result(self) -> Gaussian:
    """The Gaussian of everything counted.

    Raises:
      ValueError: with fewer than two features a covariance does not exist.
    """
    if self.count < 2:
      raise ValueError(
        f'a covariance needs at least 2 features, got {self.count}'
      )
    if self._waiting:
      # What is counted later must not depend on whether anybody has looked.
      whole = MomentAccumulator()
      whole.restore(self.state())
      whole._settle()
      return whole.result()
    covariance = self._scatter / (self._count - 1)
    return Gaussian(self._mean.copy(), covariance)

  def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
    if not self._count:
      self._count, self._mean, self._scatter = count, mean, scatter
      return
    total = self._count + count
    shift = mean - self._mean
    weight = self._count * count / total
    self._mean = self._mean + shift * (count / total)
    self._scatter += scatter
    self._scatter += weight * np.outer(shift, shift)
    self._count = total


def gaussian_of(features: np.ndarray) -> Gaussian:
  """Computes mean and unbiased covariance of float[n, d] features, n >= 2.

  Raises:
    ValueError: see `MomentAccumulator`.
  """
  accumulator = MomentAccumulator()
  accumulator.update(features)
  return accumulator.result()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
  """The (squared) Fréchet distance between two Gaussians: symmetric, 0 or more.

  Raises:
    ValueError: if the dimensions differ, or a covariance is none.
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(
      f'cannot compare features of {len(a.mean)} and {len(b.mean)} dimensions'
    )
  shift = np.asarray(a.mean, np.float64) - np.asarray(b.mean, np.float64)
  product = _root(a.covariance).T @ _root(b.covariance)
  overlap = np.linalg.svd(product, compute_uv=False).sum()
  traces = np.trace(a.covariance) + np.trace(b.covariance)
  distance = float(shift @ shift + traces - 2.0 * overlap)
  if not np.isfinite(distance):
    raise UserError(f'the distance is {distance}: a moment is not finite')
  # Identical sets give a rounding error of either sign.
  return max(distance, 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
  """A matrix R with R R^T = covariance, float64[d, d]."""
  values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
  # Without this, nonsense is at a distance of 0 from everything.
  if values[0] < -_NEGATIVE_PART * np.linalg.norm(values):
    raise UserError(f'a covariance has the negative eigenvalue {values[0]:.2g}')
  return vectors * np.sqrt(np.clip(values, 0.0, None))
