"""The vocabulary of the package: the values and states that rooms exchange.

Shape letters, here and everywhere: `B` samples, `N` tokens, `K` codebook
entries, `D` feature width, `T` decoding steps, `A` = 4 actions.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple, TypeAlias

from flax import struct
import jax

Array: TypeAlias = jax.Array

# What an image is conditioned on: a pytree of arrays with leading axis `B`,
# e.g. int32[B] class ids or float[B, L, C] text states.
Condition: TypeAlias = Any

# What a denoiser reuses between steps, and what a policy carries between them.
Cache: TypeAlias = Any
Carry: TypeAlias = Any


@struct.dataclass
class PolicyValues:
  """The four numbers that steer one decoding step of each sample.

  As the result of a policy each field is float32[B]; as a table of a whole
  schedule float32[T] or float32[T, B].

  Attributes:
    mask_ratio: in [0, 1], the share of tokens that is masked after the step.
      For the adaptive rules of `StepOptions.commit` it is their bound.
    sampling_temperature: >= 0, divides the guided logits before sampling.
    masking_temperature: >= 0, scales the Gumbel noise on the confidences.
    guidance_scale: >= 0, the `w` of `c + w (c - u)`; 0 is no guidance. The
      number that diffusers calls guidance scale is `1 + w`.
    revisit_rate: in [0, 1], the share of known tokens that are masked again;
      None where `StepOptions.revisit` is `'never'`.
  """

  mask_ratio: Array  # float32[B]
  sampling_temperature: Array  # float32[B]
  masking_temperature: Array  # float32[B]
  guidance_scale: Array  # float32[B]
  revisit_rate: Array | None = None  # float32[B]

  def by_name(self) -> dict[str, Array]:
    """The numbers by name, less those that are None."""
    fields = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
    return {name: value for name, value in fields if value is not None}


@struct.dataclass
class Observation:
  """What a policy may read before a step.

  The law is that of the conditional logits, at temperature 1 and unguided: the
  policy has yet to say how they are guided. What a policy does not read is not
  computed.

  Attributes:
    features: what the denoiser returns beside its logits.
    max_prob: the largest probability of each position.
    entropy: the entropy of each position, in nats.
    masked: whether the position is masked.
  """

  features: Array  # float[B, N, D]
  max_prob: Array  # float32[B, N]
  entropy: Array  # float32[B, N]
  masked: Array  # bool[B, N]


@struct.dataclass
class PolicyAux:
  """What learning needs to know of an action; a schedule returns `()` instead.

  Attributes:
    action: the raw action, before activations and residual.
    log_prob: log-density of `action` under the policy that drew it.
    value: the critic's estimate of the return.
  """

  action: Array  # float32[B, A]
  log_prob: Array  # float32[B]
  value: Array  # float32[B]


@struct.dataclass
class DecodeState:
  """The canvas between two decoding steps.

  Attributes:
    tokens: the canvas; `codebook_size` marks a masked position.
    sampled: the complete grid that the last step sampled; equal to `tokens`
      wherever those are known.
    num_unknown: how many positions were masked at the start of the decode.
    passes: how many denoiser passes the sample has taken; a guided step takes
      two.
    given: which positions were known at the start; kept where tokens are
      revisited, as is
    confidence: the probability with which each token was committed.
    share_masked: the expected share of unknown tokens that is masked; kept by
      the commit rule `'independent'`.
    log_probs: the law of each position in the step before, and
    unchanged: for how many steps it has changed little; kept by the commit rule
      `'stable'`.
  """

  tokens: Array  # int32[B, N]
  sampled: Array  # int32[B, N]
  num_unknown: Array  # int32[B]
  passes: Array | None = None  # int32[B]
  given: Array | None = None  # bool[B, N]
  confidence: Array | None = None  # float32[B, N]
  share_masked: Array | None = None  # float32[B]
  log_probs: Array | None = None  # float32[B, N, K]
  unchanged: Array | None = None  # int32[B, N]


class TokenCounts(NamedTuple):
  """How many tokens of each sample a forward with a cache finds; static.

  Attributes:
    reused: those that were visible in the forward before, too.
    new: those that became visible since.
    masked: those that are to be predicted.
  """

  reused: int
  new: int
  masked: int


@struct.dataclass
class Trajectory:
  """Everything that happened in a decode, time-major.

  Attributes:
    features: what the policy saw at each step; None in a `Generator`'s samples.
    tokens: the canvas after each step.
    sampled: the complete grid sampled at each step.
    values: the four numbers used at each step.
    aux: `PolicyAux` of a learned policy, `()` of a schedule.
    num_committed: how many tokens became known at each step. The tokens that
      only the end of the decode fills in are not counted.
  """

  features: Array | None  # float[T, B, N, D]
  tokens: Array  # int32[T, B, N]
  sampled: Array  # int32[T, B, N]
  values: PolicyValues  # float32[T, B]
  aux: Any  # PolicyAux, each [T, B, ...], or ()
  num_committed: Array  # int32[T, B]


# (tokens int32[B, N], condition, cache)
#   -> (features float[B, N, D], logits float[B, N, K], cache)
Denoiser: TypeAlias = Callable[
  [Array, Condition, Cache], tuple[Array, Array, Cache]
]

# (step int32[], observation, keys key[B], carry)
#   -> (PolicyValues of float32[B], PolicyAux or (), carry)
Policy: TypeAlias = Callable[
  [Array, Observation, Array, Carry], tuple[PolicyValues, Any, Carry]
]

# (step int32[], features float[B, N, D]) -> float32[B]
Critic: TypeAlias = Callable[[Array, Array], Array]

# (images float32[B, H, W, C] in [0, 1], condition, key) -> float32[B]
Reward: TypeAlias = Callable[[Array, Condition, Array], Array]
