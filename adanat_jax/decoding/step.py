"""One step of parallel decoding, for one set of policy values.

1. guide:   `l = c + w (c - u)` from conditional and unconditional logits;
2. sample:  `token ~ Categorical(l / sampling_temperature)` at every position,
            as the arg max of `l + sampling_temperature * Gumbel`, which is the
            same draw and is defined at temperature 0 too;
3. score:   the confidence of every masked position, by `StepOptions.order`,
            plus `masking_temperature * Gumbel`;
4. commit:  the surest positions become known, as many as `StepOptions.commit`
            says. With `'ratio'` all but `floor(mask_ratio * total)` of them;
5. revisit: known tokens may be masked again, if `StepOptions.revisit` says so.

AdaNAT's step (LeapLabTHU/AdaNAT train.py), MaskGIT's, Muse's, AutoNAT's and
ENAT's differ only in counts and confidences. With the order `'sampled'`, which
is theirs, a position is chosen by the token that was drawn for it, so the
tokens that are kept are likelier than the network says: see
`effective_temperature`. All other orders choose positions without looking at
the draw. Their tokens follow the network's law; with one token a step and no
guidance so does the whole grid.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Literal

import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError, shown
from adanat_jax.types import Array, DecodeState, PolicyValues

# Temperatures that divide are at least this.
_COLDEST = 1e-6


@dataclasses.dataclass(frozen=True)
class StepOptions:
  """The choices in which decoders differ.

  Attributes:
    count_from: `mask_ratio` is a share of `'all'` N tokens (AdaNAT, AutoNAT,
      ENAT) or of those `'unknown'` at the start (MaskGIT). From a full mask
      the two agree; with given tokens only `'unknown'` reveals something at
      every step.
    clamp: `'none'` takes the ratio as it is, so that a step may reveal all or
      nothing (AdaNAT; ENAT, whose counts are exact by construction);
      `'progress'` keeps at least one token masked and reveals at least one
      (MaskGIT, Muse, AutoNAT); `'reveal'` reveals at least one (Halton).
    rounding: of the number of masked tokens, `'floor'` or `'ceil'` (Halton).
    confidence: of the order `'sampled'`: `'log_prob'` is the log-softmax of the
      guided logits at temperature 1, `'logit'` the guided logit itself (Muse).
    order: which positions are surest. `'sampled'`: by the confidence of the
      drawn token. By the law of the token, guided and tempered: `'max_prob'`,
      its largest log-probability; `'entropy'`, minus its entropy in nats;
      `'margin'`, between the two largest probabilities; `'moment'`, by which
      positions are chosen as `'sampled'` would choose a few of many, without
      looking at the draw (Hayakawa et al., arXiv 2510.04525). `'given'`: by the
      `priority` of the decode (Halton), or any first where there is none.
    noise: whether the masking temperature makes the order random. Without, all
      orders but `'sampled'` follow from the canvas, and the likelihood of a
      grid is known: see `decoding.likelihood`.
    rolled: of the order `'given'`, whether each sample starts at another place
      of it, drawn once (Halton's `randomize`).
    commit: how many become known. `'ratio'`: all but the share `mask_ratio`.
      `'independent'`: each position on its own, so that the share `mask_ratio`
      of the unknown is masked on average (Sahoo et al., MDLM). The others use
      the first of the four numbers as their bound, and commit one position at
      least: `'entropy_bound'`: the longest row of surest positions with
      `sum(entropies) - max(entropies) <= bound`, in nats (Ben-Hamu et al.,
      arXiv 2505.24857); `'threshold'`: where the largest probability of the
      guided logits at temperature 1 is at least the bound (Wu et al., arXiv
      2505.22618); `'stable'`: where it is above the bound and the law has
      changed little in the last steps, else an even share (KLASS, Kim et al.,
      arXiv 2511.05664).
    revisit: which known tokens are masked again, the share `revisit_rate` of
      them, given ones never (ReMDM, Wang et al., arXiv 2503.00307). `'never'`;
      `'uniform'`: any; `'scored'`: those that were least probable when they
      became known. With the commit rule `'ratio'` exactly
      `floor(revisit_rate * known)` are, and as many more become known. With
      `'independent'` each is with that probability; `'scored'` then divides one
      `revisit_rate` among all in proportion to `exp(-probability)`.
    divergence: of `'stable'`, the Kullback-Leibler divergence from one step to
      the next, in nats, below which a law has changed little.
    history: of `'stable'`, for how many steps it must have.
    candidates: how many draws of each step but the last the network looks at,
      to go on from the best; see `lookahead`.
    chosen_by: which of them is best. `'entropy'`: the one whose masked tokens
      have the least mean entropy in the next pass (LookUM); `'information'`:
      the same with the entropies of what the step has made known, too
      (Info-Gain, arXiv 2602.18176); `'value'`: by the critic of a policy.
  """

  count_from: Literal['unknown', 'all'] = 'unknown'
  clamp: Literal['none', 'progress', 'reveal'] = 'none'
  rounding: Literal['floor', 'ceil'] = 'floor'
  confidence: Literal['log_prob', 'logit'] = 'log_prob'
  order: Literal[
    'sampled', 'max_prob', 'entropy', 'margin', 'moment', 'given'
  ] = 'sampled'
  noise: bool = True
  rolled: bool = False
  commit: Literal[
    'ratio', 'independent', 'entropy_bound', 'threshold', 'stable'
  ] = 'ratio'
  revisit: Literal['never', 'uniform', 'scored'] = 'never'
  divergence: float = 0.01
  history: int = 2
  candidates: int = 1
  chosen_by: Literal['entropy', 'information', 'value'] = 'entropy'

  def __post_init__(self) -> None:
    """Refuses what cannot look ahead."""
    if type(self.candidates) is not int or not 0 < self.candidates <= 64:
      raise UserError(
        f'candidates is {shown(self.candidates)}; give 1, or up to 64 to look'
        ' ahead'
      )
    known = ('entropy', 'information', 'value')
    if self.chosen_by not in known:
      raise UserError(
        f'chosen_by is {shown(self.chosen_by)}; give {" or ".join(known)}'
      )
    if self.candidates > 1 and self.commit != 'ratio':
      raise UserError(
        f'candidates is {self.candidates}, and by commit={self.commit!r} draws'
        ' of a step differ in how many tokens they reveal: give 1, or another'
        ' schedule'
      )

  @classmethod
  def choices(cls) -> dict[str, tuple[str, ...] | type]:
    """What each option may be: one of these names, or of this type."""
    hints = typing.get_type_hints(cls)
    return {name: typing.get_args(hint) or hint for name, hint in hints.items()}

  @property
  def is_adaptive(self) -> bool:
    """Whether the canvas decides how many tokens a step reveals.

    Then a sample may be full before the last step, and takes no further pass.
    """
    return self.commit in ('entropy_bound', 'threshold', 'stable')

  @property
  def has_counts(self) -> bool:
    """Whether a table alone says how many tokens are masked at each step."""
    plain = self.revisit == 'never' and self.candidates == 1
    return self.commit == 'ratio' and plain


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
  exact = total * mask_ratio
  rounded = jnp.ceil(exact) if options.rounding == 'ceil' else jnp.floor(exact)
  count = rounded.astype(jnp.int32)
  if options.clamp == 'progress':
    return jnp.maximum(1, jnp.minimum(num_masked - 1, count))
  if options.clamp == 'reveal':
    return jnp.maximum(0, jnp.minimum(num_masked - 1, count))
  return jnp.minimum(count, jnp.maximum(total - 1, 0))


def least_confident(confidence: Array, count: Array) -> Array:
  """Marks the `count` least confident tokens of each sample, bool[B, N].

  Exactly `count`, int32[B], are marked: of equal confidences the leftmost ones.
  """
  rank = jnp.argsort(jnp.argsort(confidence, axis=-1), axis=-1)
  return rank < count[:, None]


def rolled(priority: Array, offset: Array) -> Array:
  """The same order from another place on, float32[B, N].

  Args:
    priority: float32[B, N], largest first.
    offset: int32[B], how many places come last instead of first.
  """
  places = _places(priority) - offset[:, None]
  return -(places % priority.shape[-1]).astype(jnp.float32)


def effective_temperature(values: PolicyValues, options: StepOptions) -> Array:
  """The temperature of the law that the kept tokens follow, float32[...].

  Choosing positions by the confidence of the drawn token sharpens what is kept:
  where few of many are kept, `1 / (1 / sampling_temperature + 1 /
  masking_temperature)`. The order `'moment'` draws at that temperature, all
  others at the sampling temperature.
  """
  sampling = values.sampling_temperature
  if options.order not in ('sampled', 'moment'):
    return sampling
  masking = values.masking_temperature
  return sampling * masking / jnp.maximum(sampling + masking, _COLDEST)


def tempered(logits: Array, temperature: Array) -> Array:
  """The log-probabilities of `softmax(logits / temperature)`.

  Args:
    logits: float32[B, N, K].
    temperature: float32[B]; 0 counts as 1e-6.
  """
  divisor = jnp.maximum(temperature, _COLDEST)[:, None, None]
  return jax.nn.log_softmax(logits / divisor, axis=-1)


def position_scores(
  logits: Array, values: PolicyValues, options: StepOptions
) -> Array:
  """How sure the network is of each position, float32[B, N].

  Args:
    logits: float32[B, N, K], guided.
    values: float32[B] each.
    options: `order` is one that does not look at the draw, nor is given.
  """
  log_probs = tempered(logits, values.sampling_temperature)
  if options.order == 'max_prob':
    return log_probs.max(-1)
  if options.order == 'entropy':
    return -entropy(log_probs)
  if options.order == 'margin':
    best, second = jnp.moveaxis(jax.lax.top_k(log_probs, 2)[0], -1, 0)
    return jnp.exp(best) - jnp.exp(second)
  masking = jnp.maximum(values.masking_temperature, _COLDEST)[:, None]
  weighed = log_probs + jax.nn.log_softmax(logits, axis=-1) / masking[..., None]
  return masking * jax.nn.logsumexp(weighed, axis=-1)


def entropy(log_probs: Array) -> Array:
  """The entropy in nats, float32[...], of laws `log_probs` float32[..., K]."""
  return -_mean(log_probs, log_probs)


def _mean(log_probs: Array, values: Array) -> Array:
  """The mean of values under a law; what cannot be drawn may be infinite."""
  probs = jnp.exp(log_probs)
  return jnp.where(probs > 0, probs * values, 0).sum(-1)


def bounded_prefix(entropies: Array, bound: Array) -> Array:
  """How many of a row may be known at once, int32[...], at least one.

  The longest prefix with `sum - max <= bound`, which bounds the total
  correlation that drawing its tokens independently neglects (arXiv 2505.24857).

  Args:
    entropies: float32[..., M] in nats, surest position first.
    bound: float32[...].
  """
  before = jax.lax.cummax(entropies, axis=entropies.ndim - 1)[..., :-1]
  # sum - max, term by term: a new entropy adds the lesser of it and the max.
  added = jnp.minimum(entropies[..., 1:], before)
  fits = jnp.cumsum(added, axis=-1) <= bound[..., None]
  return 1 + fits.sum(-1, dtype=jnp.int32)


def start(
  tokens: Array, mask_token: int, options: StepOptions = ADANAT
) -> DecodeState:
  """The state before the first step, from a canvas int32[B, N]."""
  masked = tokens == mask_token
  nothing = jnp.zeros(tokens.shape, jnp.float32)
  state = DecodeState(
    tokens=tokens,
    sampled=tokens,
    num_unknown=masked.sum(-1),
    passes=jnp.zeros(tokens.shape[0], jnp.int32),
  )
  if options.revisit != 'never':
    state = dataclasses.replace(state, given=~masked, confidence=nothing)
  if options.commit == 'independent':
    state = dataclasses.replace(state, share_masked=jnp.ones(tokens.shape[0]))
  if options.commit == 'stable':
    shape = (*tokens.shape, mask_token)
    state = dataclasses.replace(
      state,
      # Any first law is far from this one.
      log_probs=jnp.full(shape, -1e9),
      unchanged=jnp.zeros(tokens.shape, jnp.int32),
    )
  return state


def decode_step(
  state: DecodeState,
  logits: Array,
  values: PolicyValues,
  gumbel_tokens: Array,
  gumbel_confidence: Array,
  *,
  mask_token: int,
  options: StepOptions,
  priority: Array | None = None,
  even_share: Array | int = 1,
) -> DecodeState:
  """Samples every unknown token and makes the surest ones known.

  Args:
    state: the canvas before the step, see `start`.
    logits: float32[B, N, K], already guided.
    values: the policy's numbers, float32[B] each.
    gumbel_tokens: float32[B, N, K] standard Gumbel noise for the tokens.
    gumbel_confidence: float32[B, N] standard Gumbel noise for the confidences.
    mask_token: the id of a masked position, `codebook_size`.
    options: see `StepOptions`.
    priority: float32[N] or float32[B, N], the order `'given'`: largest first.
    even_share: int32[B], how many become known where nothing is `'stable'`.
  """
  masked = state.tokens == mask_token
  temperature = values.sampling_temperature
  if options.order == 'moment':
    temperature = effective_temperature(values, options)
  drawn = sample_tokens(logits, temperature, gumbel_tokens)
  sampled = jnp.where(masked, drawn, state.tokens)

  if options.order == 'sampled':
    confidence = score_tokens(logits, drawn, options.confidence)
  elif options.order == 'given':
    confidence = jnp.zeros(masked.shape)
    if priority is not None:
      confidence = jnp.broadcast_to(priority, masked.shape)
  else:
    confidence = position_scores(logits, values, options)
  if options.noise:
    noise = values.masking_temperature[:, None] * gumbel_confidence
    confidence = confidence + noise
  revisited = _revisited(state, masked, values, gumbel_confidence, options)
  law = jax.nn.log_softmax(logits, axis=-1)
  if options.commit == 'stable':
    state = _watched(state, law, options)
  if options.commit == 'ratio':
    count = count_to_mask(
      values.mask_ratio,
      masked.sum(-1),
      state.num_unknown,
      masked.shape[-1],
      options,
    )
    confidence = jnp.where(masked, confidence, jnp.inf)
    stays = least_confident(confidence, count - revisited.sum(-1))
    known = masked & ~stays
  elif options.commit == 'independent':
    chance = _chance(state, values, options)
    known = masked & (_uniform(gumbel_confidence) < chance[:, None])
    state = dataclasses.replace(state, share_masked=values.mask_ratio)
  else:
    place = _places(jnp.where(masked, confidence, -jnp.inf))
    known = masked & _within_bound(
      state, law, logits, values, place, even_share, options
    )
  if state.confidence is not None:
    drawn_law = jnp.take_along_axis(law, drawn[..., None], axis=-1)[..., 0]
    stored = jnp.where(known, jnp.exp(drawn_law), state.confidence)
    state = dataclasses.replace(state, confidence=stored)
  tokens = jnp.where((masked & ~known) | revisited, mask_token, sampled)
  return dataclasses.replace(state, tokens=tokens, sampled=sampled)


def _uniform(gumbel: Array) -> Array:
  """Uniform numbers in (0, 1) from standard Gumbel noise."""
  return jnp.exp(-jnp.exp(-gumbel))


def _places(confidence: Array) -> Array:
  """The place of each position, int32[B, N], surest first."""
  return jnp.argsort(jnp.argsort(-confidence, axis=-1), axis=-1)


def _revisited(
  state: DecodeState,
  masked: Array,
  values: PolicyValues,
  gumbel: Array,
  options: StepOptions,
) -> Array:
  """Which known tokens are masked again, bool[B, N]."""
  if options.revisit == 'never':
    return jnp.zeros_like(masked)
  assert values.revisit_rate is not None
  assert state.given is not None and state.confidence is not None
  known = ~masked & ~state.given
  rate = values.revisit_rate[:, None]
  if options.commit == 'independent':
    if options.revisit == 'scored':
      scores = jnp.where(known, -state.confidence, -jnp.inf)
      rate = rate * jax.nn.softmax(scores, where=known, axis=-1)
    return known & (_uniform(gumbel) < rate)
  score = gumbel
  if options.revisit == 'scored':
    noise = values.masking_temperature[:, None] * gumbel
    score = jnp.log(state.confidence) + noise
  count = jnp.floor(rate[:, 0] * known.sum(-1)).astype(jnp.int32)
  least = least_confident(jnp.where(known, score, jnp.inf), count)
  return known & least


def _chance(
  state: DecodeState, values: PolicyValues, options: StepOptions
) -> Array:
  """The probability that a masked position becomes known, float32[B].

  `(a - (1 - s) b) / (1 - b)` takes the share known from b to a on average where
  known tokens are masked again with probability s (ReMDM, section 3).
  """
  assert state.share_masked is not None
  before, after = 1 - state.share_masked, 1 - values.mask_ratio
  stays = jnp.ones_like(before)
  if options.revisit == 'uniform':
    assert values.revisit_rate is not None
    stays = 1 - values.revisit_rate
  rise = after - stays * before
  # Where all are known, or to be, rounding must not leave one behind.
  return jnp.where(after >= 1, 2.0, rise / jnp.maximum(1 - before, 1e-6))


def _watched(
  state: DecodeState, law: Array, options: StepOptions
) -> DecodeState:
  """Counts for how many steps the law of each position has changed little."""
  assert state.log_probs is not None and state.unchanged is not None
  divergence = _mean(law, law - state.log_probs)
  little = divergence < options.divergence
  unchanged = jnp.where(little, state.unchanged + 1, 0)
  return dataclasses.replace(state, log_probs=law, unchanged=unchanged)


def _within_bound(
  state: DecodeState,
  law: Array,
  logits: Array,
  values: PolicyValues,
  place: Array,
  even_share: Array | int,
  options: StepOptions,
) -> Array:
  """Which positions an adaptive rule makes known, bool[B, N]."""
  bound = values.mask_ratio
  if options.commit == 'entropy_bound':
    entropies = entropy(tempered(logits, values.sampling_temperature))
    order = jnp.argsort(place, axis=-1)
    entropies = jnp.take_along_axis(entropies, order, axis=-1)
    return place < bounded_prefix(entropies, bound)[:, None]
  probability = jnp.exp(law.max(-1))
  if options.commit == 'threshold':
    return (probability >= bound[:, None]) | (place == 0)
  assert state.unchanged is not None
  sure = probability > bound[:, None]
  sure &= state.unchanged >= options.history
  # Known positions come last, so place 0 is masked where anything is.
  sure &= state.tokens == law.shape[-1]
  none = ~sure.any(-1, keepdims=True)
  share = jnp.broadcast_to(even_share, bound.shape)[:, None]
  return sure | (none & (place < share))
