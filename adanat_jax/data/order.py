"""In which order a training run reads its examples.

The order is a pure function of the step, so the step is the data position:
a resumed run needs no iterator state and reads exactly what it would have
read. Shape legend: `B` samples.
"""

import functools

import numpy as np


def epoch_batch(
  step: int, batch_size: int, num_examples: int, seed: int
) -> np.ndarray:
  """The indices of the batch that belongs to a step.

  The stream is one seeded permutation of all examples after another. Batches
  are cut from it without gaps, so a batch may hold the end of one epoch and
  the beginning of the next, and no example is ever dropped.

  Args:
    step: the training step, counted from 0.
    batch_size: B; may exceed `num_examples`.
    num_examples: how many examples the data set holds.
    seed: names the whole stream; a non-negative integer.

  Returns:
    int32[B], each in `[0, num_examples)`.

  Raises:
    ValueError: if a size is not positive, or the step or the seed negative.
  """
  if batch_size < 1 or num_examples < 1:
    raise ValueError(
      'batch_size and num_examples must be at least 1, got '
      f'{batch_size} and {num_examples}'
    )
  if step < 0 or seed < 0:
    raise ValueError(
      f'step and seed must not be negative, got {step} and {seed}'
    )
  first = int(step) * batch_size
  position = first + np.arange(batch_size, dtype=np.int64)
  epoch = position // num_examples
  indices = np.empty(batch_size, np.int32)
  for e in range(epoch[0], epoch[-1] + 1):
    here = epoch == e
    order = _epoch_order(seed, int(e), num_examples)
    indices[here] = order[position[here] % num_examples]
  return indices


def weighted_batch(
  step: int, batch_size: int, weights: np.ndarray, seed: int
) -> np.ndarray:
  """The indices of a step's batch, drawn with replacement.

  Args:
    step: the training step, counted from 0.
    batch_size: B.
    weights: float[num_examples], not negative, in proportion to which examples
      are drawn.
    seed: names the whole stream; a non-negative integer.

  Returns:
    int32[B].
  """
  bits = np.random.PCG64(np.random.SeedSequence([seed, step]))
  # 53 bits, as numpy's own floats have.
  uniform = (bits.random_raw(batch_size) >> np.uint64(11)) * 2.0**-53
  ends = np.cumsum(weights, dtype=np.float64)
  found = np.searchsorted(ends, uniform * ends[-1], side='right')
  # Rounding may lead past the last example.
  return np.minimum(found, np.flatnonzero(weights)[-1]).astype(np.int32)


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  """int32[num_examples], read-only. Cached: most steps stay in one epoch."""
  # PCG64 and SeedSequence are stable streams; the shuffle is written through
  # argsort because numpy may change what `permutation` draws between versions.
  bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
  order = np.argsort(bits.random_raw(num_examples), kind='stable')
  order = order.astype(np.int32)
  order.setflags(write=False)
  return order
