"""The Inception Score of a classifier's logits.

    IS = exp( mean over samples of KL( p(y|x) || p(y) ) )

per split of a seeded shuffle, averaged over the splits.

Source: T. Salimans et al., "Improved Techniques for Training GANs", 2016;
the shuffle and the splits as in torch-fidelity.
"""

from collections.abc import Mapping

import numpy as np


def inception_score(
  logits: np.ndarray, splits: int = 10, seed: int | None = 2020
) -> float:
  """The mean of the splits' scores.

  Args:
    logits: float[n, num_classes], unnormalised.
    splits: into how many consecutive parts the samples are cut.
    seed: of the shuffle before the cut; None keeps the order.

  Returns:
    The score, between 1 and num_classes.

  Raises:
    ValueError: see `split_scores`.
  """
  return float(split_scores(logits, splits, seed).mean())


def split_scores(
  logits: np.ndarray, splits: int = 10, seed: int | None = 2020
) -> np.ndarray:
  """The score of each split: float64[splits]. Arguments as above.

  Raises:
    ValueError: if there are fewer samples than splits, or the logits are not
      [n, num_classes] and finite.
  """
  accumulator = ScoreAccumulator(len(logits), splits, seed)
  accumulator.update(logits)
  return accumulator.scores()


class ScoreAccumulator:
  """Collects the score batch by batch, in memory that does not grow.

  The shuffle is known before the samples are, so each goes to its split as it
  comes. The mean divergence of a split is taken apart into

      mean over samples of sum_y p log p  -  sum_y m log m,   m the mean of p.
  """

  def __init__(
    self, num_samples: int, splits: int = 10, seed: int | None = 2020
  ):
    """Cuts the samples that will come into splits.

    Args:
      num_samples: how many will be counted, in their order.
      splits: into how many parts they are cut after the shuffle.
      seed: of the shuffle; None keeps the order.

    Raises:
      ValueError: if there are fewer samples than splits.
    """
    if not 1 <= splits <= num_samples:
      raise ValueError(f'cannot cut {num_samples} samples into {splits} splits')
    # RandomState: its stream is frozen, so published scores can be repeated.
    order = (
      np.arange(num_samples)
      if seed is None
      else np.random.RandomState(seed).permutation(num_samples)
    )
    self._split = np.empty(num_samples, np.int64)
    for i in range(splits):
      part = slice(i * num_samples // splits, (i + 1) * num_samples // splits)
      self._split[order[part]] = i
    self._sizes = np.bincount(self._split, minlength=splits)
    self._count = 0
    self._p = np.zeros((splits, 0))
    self._p_log_p = np.zeros(splits)

  def state(self) -> dict[str, np.ndarray]:
    """Everything that was counted, as arrays to be saved."""
    return {
      'count': np.asarray(self._count),
      'p': self._p,
      'p_log_p': self._p_log_p,
    }

  def restore(self, state: Mapping[str, np.ndarray]) -> None:
    """Goes on where the accumulator that gave `state` was."""
    self._count = int(state['count'])
    self._p = np.array(state['p'], np.float64)
    self._p_log_p = np.array(state['p_log_p'], np.float64)

  def update(self, logits: np.ndarray) -> None:
    """Counts the next samples.

    Args:
      logits: float[n, num_classes], unnormalised.

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
      raise ValueError(
        f'{stop} samples, {len(self._split)} were to be expected'
      )
    if not self._p.size:
      self._p = np.zeros((len(self._sizes), logits.shape[1]))
    split = self._split[self._count : stop]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    # A class of probability 0 adds nothing: 0 log 0 = 0.
    terms = np.where(p > 0, p * log_p, 0.0).sum(axis=1)
    for i in np.unique(split):
      self._p[i] += p[split == i].sum(axis=0)
      self._p_log_p[i] += terms[split == i].sum()
    self._count = stop

  def scores(self) -> np.ndarray:
    """The score of each split, float64[splits].

    Raises:
      ValueError: if fewer samples were counted than were to come.
    """
    if self._count != len(self._split):
      raise ValueError(
        f'{self._count} of {len(self._split)} samples were counted'
      )
    mean = self._p / self._sizes[:, None]
    entropy = np.where(mean > 0, mean * np.log(np.where(mean > 0, mean, 1)), 0)
    return np.exp(self._p_log_p / self._sizes - entropy.sum(axis=1))
