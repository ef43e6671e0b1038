"""The Inception Score of a classifier's logits.

    IS = exp( mean over samples of KL( p(y|x) || p(y) ) )

per split of a seeded shuffle, averaged over the splits.

Source: T. Salimans et al., "Improved Techniques for Training GANs", 2016;
the shuffle and the splits as in torch-fidelity.
"""

from collections.abc import Mapping

import numpy as np
from scipy import special


class ScoreAccumulator:
  """Collects the score batch by batch, in memory that does not grow.

  The shuffle depends on the number of samples alone, so each is counted in its
  split as it comes. The mean divergence of a split is

      mean over samples of sum_y p log p  -  sum_y m log m,   m the mean of p.
  """

  def __init__(
    self, num_samples: int, splits: int = 10, seed: int | None = 2020
  ):
    """Assigns the samples to `splits` parts, after a shuffle by `seed`, if any.

    Raises:
      ValueError: if there are fewer samples than splits.
    """
    if not 1 <= splits <= num_samples:
      raise ValueError(f'cannot cut {num_samples} samples into {splits} splits')
    # RandomState: its stream is frozen, so published scores can be repeated.
    order = np.arange(num_samples)
    if seed is not None:
      order = np.random.RandomState(seed).permutation(num_samples)
    self._split = np.empty(num_samples, np.int64)
    for i in range(splits):
      part = slice(i * num_samples // splits, (i + 1) * num_samples // splits)
      self._split[order[part]] = i
    self._sizes = np.bincount(self._split, minlength=splits)
    self._count = 0
    self._p = np.zeros((splits, 0))
    self._p_log_p = np.zeros(splits)

  def state(self) -> dict[str, np.ndarray]:
    """The accumulated values, as arrays to be saved."""
    return {
      'count': np.asarray(self._count),
      'p': self._p,
      'p_log_p': self._p_log_p,
    }

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Continues from another accumulator's `state`."""
    self._count = int(state['count'])
    self._p = np.array(state['p'], np.float64)
    self._p_log_p = np.array(state['p_log_p'], np.float64)

  def update(self, logits: np.ndarray) -> None:
    """Counts the next samples, by unnormalised logits float[n, num_classes].

    Raises:
      ValueError: if they are not finite or of another shape, or too many.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
      raise ValueError(
        f'logits must be finite and [n, num_classes], got shape {logits.shape}'
      )
    stop = self._count + len(logits)
    if stop > len(self._split):
      raise ValueError(f'{stop} samples, {len(self._split)} were expected')
    if not self._p.size:
      self._p = np.zeros((len(self._sizes), logits.shape[1]))
    split = self._split[self._count : stop]
    log_p = special.log_softmax(logits, axis=1)
    p = np.exp(log_p)
    terms = (p * log_p).sum(axis=1)
    for i in np.unique(split):
      self._p[i] += p[split == i].sum(axis=0)
      self._p_log_p[i] += terms[split == i].sum()
    self._count = stop

  def scores(self) -> np.ndarray:
    """The score of each split, float64[splits].

    Raises:
      ValueError: if fewer samples were counted than announced.
    """
    if self._count != len(self._split):
      raise ValueError(
        f'{self._count} of {len(self._split)} samples were counted'
      )
    mean = self._p / self._sizes[:, None]
    entropy = special.entr(mean).sum(axis=1)
    return np.exp(self._p_log_p / self._sizes + entropy)
