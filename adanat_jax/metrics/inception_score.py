"""The Inception Score of a classifier's logits.

    IS = exp( mean over samples of KL( p(y|x) || p(y) ) )

per split of a seeded shuffle, averaged over the splits.

Source: T. Salimans et al., "Improved Techniques for Training GANs", 2016;
the shuffle and the splits as in torch-fidelity.
"""

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
  logits = np.asarray(logits, np.float64)
  if logits.ndim != 2 or not np.isfinite(logits).all():
    raise ValueError(
      f'logits must be finite and [n, num_classes], got shape {logits.shape}'
    )
  count = len(logits)
  if not 1 <= splits <= count:
    raise ValueError(f'cannot cut {count} samples into {splits} splits')
  if seed is not None:
    # RandomState: its stream is frozen, so published scores can be repeated.
    logits = logits[np.random.RandomState(seed).permutation(count)]
  shifted = logits - logits.max(axis=1, keepdims=True)
  log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
  p = np.exp(log_p)
  scores = np.empty(splits)
  for i in range(splits):
    part = slice(i * count // splits, (i + 1) * count // splits)
    marginal = p[part].mean(axis=0)
    # A class of probability 0 everywhere adds nothing: 0 log 0 = 0.
    log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
    terms = np.where(p[part] > 0, p[part] * (log_p[part] - log_marginal), 0.0)
    scores[i] = np.exp(terms.sum(axis=1).mean())
  return scores
