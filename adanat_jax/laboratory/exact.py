"""The law of the grids that a schedule decodes, by summing over all of them.

A step goes from one set of masked positions to another. Whatever a grid looks
like in the end, its canvas at a step is the grid with a set of positions
masked; so all that happens is a sum over pairs of a grid and a set, 729 x 64
for 2 x 3 cells of three values. A step

1. gives each pair the probability of its canvas times that of drawing the rest
   of its grid at once,
2. multiplies it by the probability that this and that set is masked next, which
   may depend on what was drawn, as MaskGIT's does,
3. and adds up what leads to the same canvas.

Noise on confidences is summed over as well: the surest of scores with Gumbel
noise are draws without replacement (Plackett and Luce). Only what a canvas and
its number do not tell is drawn: probabilities that were stored when tokens
became known.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import (
  likelihood,
  lookahead,
  loop,
  schedules,
  step as step_lib,
)
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.laboratory.law import PottsLaw
from adanat_jax.types import Array, PolicyValues

# Noise of less than this decides nothing: the log-probabilities of a small law
# differ by more.
_NO_NOISE = 1e-2


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What a schedule does to a law.

  Attributes:
    probabilities: of each grid, float64[K^N].
    passes: the mean number of passes that a sample needs.
    draws: how many the probabilities were counted on; 0 if they are exact.
  """

  probabilities: np.ndarray
  passes: float
  draws: int = 0

  def total_variation(self, law: PottsLaw) -> float:
    """The distance to the law, from 0 to 1."""
    return total_variation(self.probabilities, law.probabilities)

  @property
  def entropy(self) -> float:
    """In nats; less than the law's where a schedule sharpens it."""
    probs = self.probabilities[self.probabilities > 0]
    return float(-(probs * np.log(probs)).sum())


def total_variation(one: np.ndarray, other: np.ndarray) -> float:
  """Half the sum of the absolute differences of two laws."""
  return float(np.abs(one - other).sum() / 2)


def floor(law: PottsLaw, draws: int) -> float:
  """The total variation that so many draws of the law itself have to it.

  On average: De Moivre's mean deviation of a binomial, summed over all grids.
  """
  probs = law.probabilities
  above = np.floor(draws * probs) + 1
  choose = [
    math.lgamma(draws + 1) - math.lgamma(k + 1) - math.lgamma(draws - k + 1)
    for k in above
  ]
  logs = above * np.log(probs) + (draws - above + 1) * np.log1p(-probs)
  return float((above * np.exp(choose + logs)).sum() / draws)


def outcome(
  law: PottsLaw, schedule: Schedule, *, draws: int = 20_000, seed: int = 0
) -> Outcome:
  """The law of what an unguided schedule decodes from a full mask.

  Args:
    law: what the denoiser is the posterior of.
    schedule: its policy reads no keys, unless the law is to be drawn.
    draws: how many grids to decode where nothing else is possible.
    seed: of these.
  """
  options, table = schedule.options, schedule.policy
  assert not schedule.guided
  if options.rolled:
    assert schedule.priority is not None
    offsets = jnp.arange(law.num_tokens)
    priority = jnp.tile(schedule.priority, (law.num_tokens, 1))
    parts = [
      outcome(
        law,
        dataclasses.replace(
          schedule,
          priority=np.asarray(row),
          options=dataclasses.replace(options, rolled=False),
        ),
        draws=draws,
        seed=seed,
      )
      for row in step_lib.rolled(priority, offsets)
    ]
    return Outcome(
      np.mean([part.probabilities for part in parts], axis=0),
      float(np.mean([part.passes for part in parts])),
      parts[0].draws,
    )
  has_path = not likelihood.obstacle(schedule)
  plain = options.candidates == 1 and isinstance(table, PolicyValues)
  if plain and (
    options.has_counts
    or (options.commit == 'independent' and options.revisit != 'scored')
    # Faster than compiling a program for it, and the same.
    or (options.commit in ('entropy_bound', 'threshold') and has_path)
  ):
    return _Sum(law, schedule).run()
  if not has_path:
    return draw(law, schedule, draws, seed)
  logs, passes = log_likelihoods(law, schedule)
  probs = np.exp(np.asarray(logs, np.float64))
  return Outcome(probs, float(probs @ np.asarray(passes)))


def _priority(schedule: Schedule) -> Array | None:
  priority = schedule.priority
  return None if priority is None else jnp.asarray(priority)


def log_likelihoods(law: PottsLaw, schedule: Schedule) -> tuple[Array, Array]:
  """Of all grids: `likelihood.log_likelihood`."""

  @jax.jit
  def run(grids: Array) -> tuple[Array, Array]:
    keys = loop.sample_keys(jax.random.key(0), len(grids))
    return likelihood.log_likelihood(
      law.denoiser(),
      schedules.as_policy(schedule.policy),
      grids,
      jnp.zeros(len(grids)),
      None,
      num_steps=schedule.num_steps,
      mask_token=law.num_values,
      options=schedule.options,
      priority=_priority(schedule),
      policy_carry=schedules.initial_carry(schedule.policy, keys),
    )

  return run(jnp.asarray(law.grids))


def draw(law: PottsLaw, schedule: Schedule, draws: int, seed: int) -> Outcome:
  """The shares of grids among so many decoded ones."""

  @jax.jit
  def run(keys: Array) -> loop.Decoded:
    return lookahead.decode(
      law.denoiser(),
      schedule.policy,
      tokens=loop.full_mask(draws, law.num_tokens, law.num_values),
      condition=jnp.zeros(draws),
      null_condition=None,
      keys=keys,
      num_steps=schedule.num_steps,
      mask_token=law.num_values,
      options=schedule.options,
      priority=_priority(schedule),
    )

  decoded = run(loop.sample_keys(jax.random.key(seed), draws))
  number = law.index(np.asarray(decoded.tokens))
  counts = np.bincount(number, minlength=len(law.canvases))
  return Outcome(
    counts[law.index(law.grids)] / draws, float(decoded.passes.mean()), draws
  )


class _Sum:
  """The sum over pairs of a grid and a set of masked positions.

  A set has a number, in which bit i says whether position i is masked. Shape
  letters: `G` grids, `S` = 2^N sets, `L` sets that are met at a step.
  """

  def __init__(self, law: PottsLaw, schedule: Schedule):
    assert isinstance(schedule.policy, PolicyValues)
    self._law = law
    self._table, self._options = schedule.policy, schedule.options
    self._priority = schedule.priority
    sets = np.arange(2**law.num_tokens)
    self._bits = (sets[:, None] >> np.arange(law.num_tokens)) & 1  # [S, N]
    masked = self._bits.astype(bool)
    whole = np.where(masked, law.num_values, law.grids[:, None])
    self._canvas = law.index(whole)  # [G, S]
    self._logits = jnp.asarray(np.log(law.posterior), jnp.float32)

  def run(self) -> Outcome:
    """Takes all steps."""
    num_steps = len(self._table.mask_ratio)
    mass: np.ndarray = np.zeros(len(self._law.canvases))
    mass[-1] = 1.0
    passes = 0.0
    unfinished = (self._law.canvases == self._law.num_values).any(1)
    for step in range(num_steps):
      needed = mass if self._options.revisit != 'never' else mass[unfinished]
      passes += needed.sum()
      values = jax.tree.map(
        lambda x, t=step: jnp.full(len(self._law.canvases), x[t]), self._table
      )
      met = np.flatnonzero(mass[self._canvas].any(0))
      weights = mass[self._canvas[:, met]] * self._draws(values, met)
      if step == num_steps - 1:
        return Outcome(weights.sum(1), passes)
      flow = np.zeros(self._canvas.shape)
      for targets, chance in self._moves(step, values, met):
        # Of one move no two sets lead to the same one.
        flow[:, targets] += weights * chance
      mass = np.bincount(
        self._canvas.ravel(), flow.ravel(), minlength=len(mass)
      )
    raise AssertionError('a table has at least one step')

  def _draws(self, values: PolicyValues, met: np.ndarray) -> np.ndarray:
    """The probability of drawing what a canvas lacks of a grid, [G, L]."""
    temperature = values.sampling_temperature
    if self._options.order == 'moment':
      temperature = step_lib.effective_temperature(values, self._options)
    tempered = step_lib.tempered(self._logits, temperature)
    law = np.exp(np.asarray(tempered, np.float64))
    result = np.ones((len(self._law.grids), len(met)))
    for i, tokens in enumerate(self._law.grids.T):
      picked = law[self._canvas[:, met], i, tokens[:, None]]
      result *= np.where(self._bits[met, i], picked, 1.0)
    return result

  def _moves(
    self, step: int, values: PolicyValues, met: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What may be masked next.

    Yields:
      Sets int[L] that those that are met become, all of them others, and with
      which probability, float64[G, L] or [L].
    """
    if self._options.commit == 'independent':
      yield from self._independent(step, met)
    elif self._options.is_adaptive:
      after = self._adaptive(values)[self._canvas[:, met]]  # [G, L]
      for known in range(len(self._bits)):
        yield met & ~known, (met[None] & ~after) == known
    else:
      yield from self._counted(values, met)

  def _independent(
    self, step: int, met: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each position by itself: some become known, some are masked again."""
    ratio = np.asarray(self._table.mask_ratio, np.float64)
    rate = 0.0
    if self._options.revisit == 'uniform':
      assert self._table.revisit_rate is not None
      rate = float(self._table.revisit_rate[step])
    before = 1 - ratio[step - 1] if step else 0.0
    chance = (1 - ratio[step] - (1 - rate) * before) / max(1 - before, 1e-6)
    for changed, bits in enumerate(self._bits):
      masked = self._bits[met]
      moves = np.where(masked, min(chance, 1.0), rate)
      yield met ^ changed, np.where(bits, moves, 1 - moves).prod(1)

  def _adaptive(self, values: PolicyValues) -> np.ndarray:
    """The set that each canvas has masked next, int[(K + 1)^N]."""
    tokens = jnp.asarray(self._law.canvases)
    after = one_step(tokens, self._logits, values, self._options)
    masked = np.asarray(after) == self._law.num_values
    return masked @ (1 << np.arange(self._law.num_tokens))

  def _counted(
    self, values: PolicyValues, met: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """So many of the surest become known."""
    num_tokens = self._law.num_tokens
    # A table has the same number of masked tokens in all canvases.
    num_masked = int(self._bits[met[0]].sum())
    count = step_lib.count_to_mask(
      values.mask_ratio[:1],
      jnp.int32([num_masked]),
      jnp.int32([num_tokens]),
      num_tokens,
      self._options,
    )
    num_known = num_masked - min(num_masked, int(count[0]))
    scores = self._scores(values, met)  # [G, L, N]
    masked = self._bits[met].astype(bool)
    noise = float(values.masking_temperature[0])
    if not self._options.noise or noise < _NO_NOISE:
      # Of equal ones the rightmost, as the step has it.
      order = np.argsort(np.where(masked, scores, np.inf), kind='stable')
      ranks = np.argsort(order, kind='stable')
      kept = (ranks >= num_masked - num_known) & masked
      known = kept @ (1 << np.arange(num_tokens))  # [G, L]
      chances = lambda one: known == one
    else:
      chances = _without_replacement(
        scores / noise, masked, self._bits, num_known
      ).__getitem__
    for one in np.flatnonzero(self._bits.sum(1) == num_known):
      fits = (met & one) == one
      # What does not fit has no chance, and goes where nothing else does.
      yield met ^ one, np.where(fits, chances(one), 0.0)

  def _scores(self, values: PolicyValues, met: np.ndarray) -> np.ndarray:
    """How sure a step is of each position, float64[G, L, N]."""
    options, canvas = self._options, self._canvas[:, met]
    shape = (*canvas.shape, self._law.num_tokens)
    if options.order == 'given':
      nothing = np.zeros(self._law.num_tokens)
      return np.broadcast_to(
        nothing if self._priority is None else self._priority, shape
      )
    if options.order != 'sampled':
      scores = step_lib.position_scores(self._logits, values, options)
      return np.asarray(scores, np.float64)[canvas]
    result = np.empty(shape)
    for i, tokens in enumerate(self._law.grids.T):
      every = np.stack(
        [
          step_lib.score_tokens(
            self._logits[:, i : i + 1],
            jnp.full((len(self._logits), 1), token),
            options.confidence,
          )[:, 0]
          for token in range(self._law.num_values)
        ],
        axis=1,
      )
      result[..., i] = every[canvas, tokens[:, None]]
    return result


def _without_replacement(
  scores: np.ndarray, masked: np.ndarray, bits: np.ndarray, size: int
) -> dict[int, np.ndarray]:
  """The probability that the positions with the largest noisy scores are a set.

  Args:
    scores: float64[G, L, N]; each gets standard Gumbel noise.
    masked: bool[L, N], which positions there are.
    bits: int[S, N].
    size: of the sets.

  Returns:
    float64[G, L] for each set of this size, 0 where it is not masked.
  """
  highest = np.where(masked, scores, -np.inf).max(-1, keepdims=True)
  weights = np.where(masked, np.exp(scores - highest), 0.0)
  left = np.maximum(weights @ (1 - bits).T, 1e-300)  # [G, L, S]
  found = {0: np.ones(scores.shape[:2])}
  for _ in range(size):
    longer: dict[int, np.ndarray] = {}
    for one, chance in found.items():
      share = chance / left[..., one]
      for i in np.flatnonzero(bits[one] == 0):
        more = one | 1 << int(i)
        longer[more] = longer.get(more, 0.0) + share * weights[..., i]
    found = longer
  return found


@functools.partial(jax.jit, static_argnames='options')
def one_step(
  tokens: Array,
  logits: Array,
  values: PolicyValues,
  options: step_lib.StepOptions,
) -> Array:
  """The canvases after a step without noise."""
  mask_token = logits.shape[-1]
  return step_lib.decode_step(
    step_lib.start(tokens, mask_token, options),
    logits,
    values,
    jnp.zeros(logits.shape),
    jnp.zeros(tokens.shape),
    mask_token=mask_token,
    options=options,
  ).tokens
