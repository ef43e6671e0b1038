"""A few static shapes for a policy that decides for each sample.

An adaptive policy reveals another number of tokens in every sample, so counts
are known only while it runs. A bucket is a `TokenCounts` of upper bounds. At
each step the cheapest one that holds all samples of the batch is taken, and
samples with fewer tokens are padded: a step costs as much as its fullest
sample. One variant is compiled per bucket, plus a fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding.unrolled import GatheringDenoiser, fix_counts
from adanat_jax.types import Array, Cache, Condition, Denoiser, TokenCounts

Cost = Callable[[TokenCounts], float]


def found_counts(tokens: Array, seen: Array, mask_token: int) -> Array:
  """What a forward with a cache finds in each sample.

  Args:
    tokens: int32[..., N].
    seen: bool[..., L + N], what was visible in the forward before; of a text,
      which always is, the first L.
    mask_token: `codebook_size`.

  Returns:
    int32[..., 3], in the order of `TokenCounts`. They add up to L + N.
  """
  text = jnp.ones((*seen.shape[:-1], seen.shape[-1] - tokens.shape[-1]), bool)
  visible = jnp.concatenate([text, tokens != mask_token], axis=-1)
  kinds = (seen & visible, visible & ~seen, ~visible)
  return jnp.stack([kind.sum(-1, dtype=jnp.int32) for kind in kinds], axis=-1)


def counts_of_decode(
  tokens: Array, start: Array, mask_token: int, text_length: int = 0
) -> Array:
  """What the denoiser found at each step of a recorded decode.

  Args:
    tokens: int32[T, B, N], the canvases after each step: a trajectory's.
    start: int32[B, N], the canvas before the first one.
    mask_token: `codebook_size`.
    text_length: tokens of a text, which are reused from the second step on.

  Returns:
    int32[T, B, 3], in the order of `TokenCounts`.
  """
  canvases = jnp.concatenate([start[None], tokens[:-1]])
  before = jnp.full_like(start, mask_token)[None]
  seen = jnp.concatenate([before, canvases[:-1]]) != mask_token
  text = jnp.arange(len(canvases))[:, None, None] > 0
  text = jnp.broadcast_to(text, (*seen.shape[:2], text_length))
  seen = jnp.concatenate([text, seen], axis=-1)
  return found_counts(canvases, seen, mask_token)


def choose(
  found: np.ndarray,
  length: int,
  num_buckets: int,
  cost: Cost,
  *,
  multiple: int | None = None,
) -> tuple[TokenCounts, ...]:
  """Chooses the buckets that would have cost a set of batches least.

  Greedily: each time the one that saves most. Candidates are what the batches
  needed and what any two of them needed, rounded up.

  Args:
    found: int[S, 3], the largest counts in each of S batches, in the order of
      `TokenCounts` (`counts_of_decode(...).max(axis=1)`, step after step).
    length: N, or L + N.
    num_buckets: the most there may be.
    cost: of one forward with such counts, such as its operations.
    multiple: bounds are multiples of this, or the length; None: a 16th of it.

  Returns:
    The buckets, cheapest first. Every batch fits into one of them.
  """
  unit = multiple or max(1, length // 16)
  rounded = np.minimum(-(-np.asarray(found) // unit) * unit, length)
  needs, weights = np.unique(rounded, axis=0, return_counts=True)
  pairs = np.maximum(needs[:, None], needs[None]).reshape(-1, 3)
  candidates = np.unique([*pairs, needs.max(axis=0)], axis=0)
  costs = np.array([cost(TokenCounts(*row)) for row in candidates.tolist()])
  fits = np.all(needs[None] <= candidates[:, None], axis=-1)
  priced = np.where(fits, costs[:, None], np.inf)

  # The one that holds every batch comes first: then nothing is left over.
  chosen = [int(np.flatnonzero(np.all(fits, axis=1))[0])]
  best = priced[chosen[0]]
  while len(chosen) < num_buckets:
    totals = np.minimum(priced, best) @ weights
    one = int(totals.argmin())
    if totals[one] >= best @ weights:
      break
    chosen.append(one)
    best = np.minimum(best, priced[one])
  chosen.sort(key=lambda i: costs[i])
  return tuple(TokenCounts(*row) for row in candidates[chosen].tolist())


def bucketed(
  gathering: GatheringDenoiser,
  masking: Denoiser,
  buckets: Sequence[TokenCounts],
  mask_token: int,
) -> Denoiser:
  """A denoiser for any policy that gathers within the bounds of buckets.

  Args:
    gathering: the network on tokens taken out of the grid; its counts may be
      upper bounds.
    masking: the same network at full length, for what no bucket holds.
    buckets: upper bounds, cheapest first.
    mask_token: `codebook_size`.

  Returns:
    A denoiser whose cache is the network's, with a field `visible`,
    bool[B, L + N].
  """
  variants = [fix_counts(gathering, counts) for counts in buckets]
  bounds = jnp.array(list(buckets), jnp.int32).reshape(-1, 3)

  def denoiser(
    tokens: Array, condition: Condition, cache: Cache
  ) -> tuple[Array, Array, Cache]:
    found = found_counts(tokens, cache.visible, mask_token).max(axis=0)
    fits = (found[None] <= bounds).all(axis=1)
    first = jnp.argmax(jnp.append(fits, True))
    return jax.lax.switch(first, [*variants, masking], tokens, condition, cache)

  return denoiser
