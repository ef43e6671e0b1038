"""Decoding with a schedule whose counts are known before it runs.

A table says how many tokens every canvas has masked at each step, whatever the
network sees. So a network that works on some of the tokens only (ENAT) can take
them out of the grid: the loop is unrolled, and each step has static shapes of
its own. A policy that reads features decides for each sample; it needs
`loop.decode`, and a denoiser that masks instead of gathering.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import loop, step as step_lib, tables
from adanat_jax.types import (
  Array,
  Cache,
  Condition,
  Denoiser,
  PolicyValues,
  TokenCounts,
)

# (tokens int32[B, N], condition, cache, counts)
#   -> (features float[B, N, D], logits float[B, N, K], cache)
GatheringDenoiser: TypeAlias = Callable[
  [Array, Condition, Cache, TokenCounts], tuple[Array, Array, Cache]
]


def fix_counts(denoiser: GatheringDenoiser, counts: TokenCounts) -> Denoiser:
  """The denoiser for canvases with these counts."""

  def counted(
    tokens: Array, condition: Condition, cache: Cache
  ) -> tuple[Array, Array, Cache]:
    return denoiser(tokens, condition, cache, counts)

  return counted


def counts_of(
  table: PolicyValues,
  num_tokens: int,
  *,
  num_unknown: int | None = None,
  text_length: int = 0,
  options: step_lib.StepOptions = step_lib.ADANAT,
) -> tuple[TokenCounts, ...]:
  """What the denoiser finds at each step of a decode.

  Args:
    table: float32[T], one number a step for all samples; concrete, so made
      outside of `jax.jit`.
    num_tokens: N.
    num_unknown: how many of them are masked at the start; None for all.
    text_length: tokens of a text, new at the first step and then reused.
    options: see `step.StepOptions`.

  Returns:
    T counts. Those of one step add up to N and the text's length.
  """
  start = num_tokens if num_unknown is None else num_unknown
  counts, reused, masked = [], 0, start
  # The arithmetic of the step itself, so that no rounding can differ.
  with jax.ensure_compile_time_eval():
    for ratio in np.asarray(table.mask_ratio, np.float32):
      visible = text_length + num_tokens - masked
      counts.append(TokenCounts(reused, visible - reused, masked))
      reused = visible
      after = step_lib.count_to_mask(
        jnp.float32([ratio]),
        jnp.int32([masked]),
        jnp.int32([start]),
        num_tokens,
        options,
      )
      masked = max(0, min(masked, int(after[0])))
  return tuple(counts)


def decode(
  denoiser: GatheringDenoiser,
  table: PolicyValues,
  *,
  tokens: Array,
  condition: Condition,
  null_condition: Condition | None,
  keys: Array,
  mask_token: int,
  num_unknown: int | None = None,
  text_length: int = 0,
  options: step_lib.StepOptions = step_lib.ADANAT,
  priority: Array | None = None,
  noise: loop.Noise | None = None,
  first: loop.FirstStep | None = None,
  record: bool = False,
  counts: Sequence[TokenCounts] | None = None,
) -> loop.Decoded:
  """Decodes a batch of canvases with a schedule, each step unrolled.

  The tokens are those of `loop.decode` with the same table, keys and network,
  but for rounding in the network.

  Args:
    denoiser: the network, told at each step how many tokens it will find.
    table: see `counts_of`.
    tokens: int32[B, N], the canvas to start from; `mask_token` where unknown.
    condition: see `loop.decode`, as of all that is not said here.
    null_condition: of one sample, or None to decode without guidance.
    keys: key[B], one typed key a sample.
    mask_token: `codebook_size`.
    num_unknown: how many tokens of every canvas are masked; None for all. If
      it is not so the result is wrong.
    text_length: see `counts_of`; 0 for conditions that are no texts.
    options: see `step.StepOptions`.
    priority: see `loop.decode`.
    noise: Gumbel noise to use instead of drawing it from `keys`.
    first: see `loop.decode`.
    record: whether to return the trajectory.
    counts: `counts_of` this table, where it is traced; None to count. Given
      them, neither `num_unknown` nor `text_length` is read.

  Returns:
    As `loop.decode`.
  """
  if counts is None:
    counts = counts_of(
      table,
      tokens.shape[1],
      num_unknown=num_unknown,
      text_length=text_length,
      options=options,
    )
  return loop.decode(
    [fix_counts(denoiser, one) for one in counts],
    tables.table_policy(table),
    tokens=tokens,
    condition=condition,
    null_condition=null_condition,
    keys=keys,
    num_steps=len(counts),
    mask_token=mask_token,
    options=options,
    priority=priority,
    noise=noise,
    first=first,
    record=record,
  )
