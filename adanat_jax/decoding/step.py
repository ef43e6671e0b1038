"""One step of parallel decoding, for one set of policy values.

1. guide:   `l = c + w (c - u)` from conditional and unconditional logits;
2. sample:  `token ~ Categorical(l / sampling_temperature)` at every position,
            as the arg max of `l + sampling_temperature * Gumbel`, which is the
            same draw and is defined at temperature 0 too;
3. score:   the confidence of the drawn token, plus
            `masking_temperature * Gumbel`; known tokens are infinitely sure;
4. re-mask: the `floor(mask_ratio * total)` least confident tokens are masked
            again, those that were already known never.

AdaNAT's step (LeapLabTHU/AdaNAT train.py), MaskGIT's, Muse's, AutoNAT's and
ENAT's differ only in the options of `StepOptions`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from adanat_jax.types import Array, DecodeState, PolicyValues


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """The choices in which published decoders differ.

  Attributes:
    count_from: `mask_ratio` is a share of `'all'` N tokens (AdaNAT, AutoNAT,
      ENAT) or of those `'unknown'` at the start (MaskGIT). From a full mask
      the two agree; with given tokens only `'unknown'` reveals something at
      every step.
    clamp: `'none'` takes the ratio as it is, so that a step may reveal all or
      nothing (AdaNAT; ENAT, whose counts are exact by construction);
      `'progress'` keeps at least one token masked and reveals at least one
      (MaskGIT, Muse, AutoNAT).
    confidence: `'log_prob'` is the log-softmax of the guided logits at
      temperature 1, `'logit'` the guided logit itself (Muse).
  """

  count_from: Literal['unknown', 'all'] = 'unknown'
  clamp: Literal['none', 'progress'] = 'none'
  confidence: Literal['log_prob', 'logit'] = 'log_prob'


ADANAT = StepOptions()
MASKGIT = StepOptions(clamp='progress')
AUTONAT = StepOptions(count_from='all', clamp='progress')
MUSE = StepOptions(clamp='progress', confidence='logit')


def guide(conditional: Array, unconditional: Array, scale: Array) -> Array:
  """Classifier-free guidance, `c + w (c - u)`, float[B, N, K] all.

  The scale `w`, float32[B], is 0 for no guidance.
  """
  weight = scale[:, None, None]
  return conditional + weight * (conditional - unconditional)


def sample_tokens(logits: Array, temperature: Array, gumbel: Array) -> Array:
  """Draws int32[B, N] tokens from `softmax(logits / temperature)`.

  Args:
    logits: float32[B, N, K].
    temperature: float32[B]; 0 takes the most likely token.
    gumbel: float32[B, N, K] standard Gumbel noise.
  """
  noisy = logits + temperature[:, None, None] * gumbel
  return jnp.argmax(noisy, axis=-1).astype(jnp.int32)


def score_tokens(
  logits: Array, sampled: Array, confidence: str = 'log_prob'
) -> Array:
  """How sure the decoder is of each sampled token, float32[B, N].

  Args:
    logits: float32[B, N, K], guided.
    sampled: int32[B, N].
    confidence: see `StepOptions`.
  """
  picked = jnp.take_along_axis(logits, sampled[..., None], axis=-1)[..., 0]
  if confidence == 'logit':
    return picked
  return picked - jax.nn.logsumexp(logits, axis=-1)


def count_to_mask(
  mask_ratio: Array,
  num_masked: Array,
  num_unknown: Array,
  num_tokens: int,
  options: StepOptions,
) -> Array:
  """How many tokens of each sample are to be masked after this step.

  Args:
    mask_ratio: float32[B].
    num_masked: int32[B], masked before this step.
    num_unknown: int32[B], masked at the start of the decode.
    num_tokens: N.
    options: see `StepOptions`.

  Returns:
    int32[B], never more than all but one of the counted tokens.
  """
  if options.count_from == 'all':
    total = jnp.full_like(num_unknown, num_tokens)
  else:
    total = num_unknown
  count = jnp.floor(total * mask_ratio).astype(jnp.int32)
  if options.clamp == 'progress':
    return jnp.maximum(1, jnp.minimum(num_masked - 1, count))
  return jnp.minimum(count, jnp.maximum(total - 1, 0))


def least_confident(confidence: Array, count: Array) -> Array:
  """Marks the `count` least confident tokens of each sample, bool[B, N].

  Exactly `count`, int32[B], are marked: of equal confidences the leftmost ones.
  """
  rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
  return rank < count[:, None]


def decode_step(
  state: DecodeState,
  logits: Array,
  values: PolicyValues,
  gumbel_tokens: Array,
  gumbel_confidence: Array,
  *,
  mask_token: int,
  options: StepOptions,
) -> DecodeState:
  """Samples every unknown token and masks the least confident ones again.

  Args:
    state: the canvas before the step.
    logits: float32[B, N, K], already guided.
    values: the policy's four numbers, float32[B] each.
    gumbel_tokens: float32[B, N, K] standard Gumbel noise for the tokens.
    gumbel_confidence: float32[B, N] standard Gumbel noise for the confidences.
    mask_token: the id of a masked position, `codebook_size`.
    options: see `StepOptions`.
  """
  masked = state.tokens == mask_token
  drawn = sample_tokens(logits, values.sampling_temperature, gumbel_tokens)
  sampled = jnp.where(masked, drawn, state.tokens)

  confidence = score_tokens(logits, drawn, options.confidence)
  noise = values.masking_temperature[:, None] * gumbel_confidence
  confidence = jnp.where(masked, confidence + noise, jnp.inf)
  count = count_to_mask(
    values.mask_ratio,
    masked.sum(-1),
    state.num_unknown,
    masked.shape[-1],
    options,
  )
  remask = masked & least_confident(confidence, count)
  tokens = jnp.where(remask, mask_token, sampled)
  return dataclasses.replace(state, tokens=tokens, sampled=sampled)
