"""Measures a long stream of samples, in memory that does not grow.

A tally holds the moments of the features, the inception score's sums, the sums
of other measures of each sample, and the features of the first samples, for
measures that compare samples one by one. It can be saved as arrays and
restored, to the same bits.

Shape legend: `n` samples of a batch, `d` features.
"""

from collections.abc import Mapping

import numpy as np

from adanat_jax.metrics.frechet import MomentAccumulator
from adanat_jax.metrics.inception_score import ScoreAccumulator


class SampleTally:
  """Counts samples in their order."""

  def __init__(self, num_samples: int, *, num_kept: int = 0):
    """Makes an empty tally.

    Args:
      num_samples: how many samples there will be.
      num_kept: how many first samples keep their features, float32[num_kept,
        d]: the only memory that depends on a number of samples.
    """
    self.num_samples = num_samples
    self.moments = MomentAccumulator()
    self._scores = ScoreAccumulator(num_samples, min(10, num_samples))
    self._has_logits = False
    self._sums: dict[str, float] = {}
    self._num_kept = min(num_kept, num_samples)
    self._kept = np.zeros((0, 0), np.float32)

  @property
  def count(self) -> int:
    """Number of samples counted so far."""
    return self.moments.count

  def update(
    self,
    features: np.ndarray,
    logits: np.ndarray | None = None,
    values: Mapping[str, np.ndarray] | None = None,
  ) -> None:
    """Counts the next samples.

    Args:
      features: float[n, d].
      logits: float[n, classes], or None if the network has none.
      values: further measures of each sample by name, float[n].

    Raises:
      ValueError: if a number is not finite, or there are too many samples.
    """
    first, stop = self.count, self.count + len(features)
    if stop > self.num_samples:
      raise ValueError(f'{stop} samples, {self.num_samples} were expected')
    self.moments.update(features)
    if logits is not None:
      self._scores.update(logits)
      self._has_logits = True
    for name, array in (values or {}).items():
      if not np.isfinite(array).all():
        raise ValueError(f'{name} of some samples is not finite')
      total = float(np.sum(array, dtype=np.float64))
      self._sums[name] = self._sums.get(name, 0.0) + total
    if first < self._num_kept:
      if not self._kept.size:
        self._kept = np.zeros((self._num_kept, features.shape[1]), np.float32)
      rows = features[: self._num_kept - first]
      self._kept[first : first + len(rows)] = rows

  @property
  def kept(self) -> np.ndarray:
    """The features kept so far, float32[at most num_kept, d]."""
    return self._kept[: self.count]

  def class_score(self) -> float | None:
    """The inception score of the logits; None if there were none."""
    return float(self._scores.scores().mean()) if self._has_logits else None

  def means(self) -> dict[str, float]:
    """The mean of every further measure, by its name."""
    return {name: total / self.count for name, total in self._sums.items()}

  def state(self) -> dict[str, np.ndarray]:
    """The accumulated values, as arrays by name."""
    parts = {'moments': self.moments.state(), 'scores': self._scores.state()}
    state = {
      f'{part}/{name}': array
      for part, arrays in parts.items()
      for name, array in arrays.items()
    }
    for name, total in self._sums.items():
      state[f'sums/{name}'] = np.asarray(total)
    state['has_logits'] = np.asarray(self._has_logits)
    state['kept'] = self._kept
    return state

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Continues from the `state` of a tally with the same arguments."""

    def part(name: str) -> dict[str, np.ndarray]:
      return {
        key.removeprefix(f'{name}/'): array
        for key, array in state.items()
        if key.startswith(f'{name}/')
      }

    self.moments.restore(part('moments'))
    self._scores.restore(part('scores'))
    self._sums = {name: float(total) for name, total in part('sums').items()}
    self._has_logits = bool(state['has_logits'])
    self._kept = np.array(state['kept'], np.float32)
