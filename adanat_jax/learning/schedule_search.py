"""Searching a schedule that all samples share: AutoNAT's generation strategy.

A point is float64[4T - 2]: T - 1 mask ratios, T - 1 masking temperatures, T
sampling temperatures, T guidance scales, in this order; the last step masks
nothing, so it has neither of the first two. Optimizers are generators,

  proposals = finite_differences(first_point(4), Descent())
  proposal = next(proposals)
  while ...:
    proposal = proposals.send(measure(proposal.point))

which depend on the values they are sent and on nothing else. So replaying the
ledger of a search restores its optimizer.

AutoNAT (arXiv 2406.05478), section 3.2; LeapLabTHU/ImprovedNAT train.py and
libs/nat_misc.py. Lower values are better throughout.
"""

from __future__ import annotations

from collections.abc import Generator
import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from adanat_jax.errors import UserError
from adanat_jax.types import PolicyValues

Point = NDArray[np.float64]

# Where points may lie: mask ratios between 0 and this, all others above that.
HIGHEST_RATIO = 0.99
LOWEST_OTHER = 1e-4


@dataclasses.dataclass(frozen=True)
class Proposal:
  """The next evaluation that an optimizer asks for."""

  point: Point  # to be measured
  # The optimizer's current estimate, which need not have been measured.
  centre: Point


Proposals = Generator[Proposal, float, None]


def first_point(num_steps: int) -> Point:
  """Where AutoNAT starts, float64[4T - 2].

  The cosine curve, a masking temperature that falls from 1, a sampling
  temperature of 1, a guidance scale that grows to 1.
  """
  done = np.arange(1, num_steps + 1) / num_steps
  return np.concatenate(
    [
      np.cos(math.pi / 2 * done[:-1]),
      1 - np.arange(num_steps - 1) / num_steps,
      np.ones(num_steps),
      done,
    ]
  )


def steps_of(point: Point) -> int:
  """T."""
  return (len(point) + 2) // 4


def is_ratio(point: Point) -> NDArray[np.bool_]:
  """Which coordinates are mask ratios, bool[4T - 2]."""
  return np.arange(len(point)) < steps_of(point) - 1


def is_temperature(point: Point) -> NDArray[np.bool_]:
  """Which coordinates are temperatures, of either kind, bool[4T - 2]."""
  num_steps, place = steps_of(point), np.arange(len(point))
  return (place >= num_steps - 1) & (place < 3 * num_steps - 2)


def clamped(point: Point) -> Point:
  """The nearest point that is allowed."""
  return np.where(
    is_ratio(point),
    np.clip(point, 0.0, HIGHEST_RATIO),
    np.maximum(point, LOWEST_OTHER),
  )


def _lists(point: Point) -> list[Point]:
  """Mask ratios, masking and sampling temperatures, guidance scales."""
  num_steps = steps_of(point)
  ends = np.cumsum([num_steps - 1, num_steps - 1, num_steps])
  return np.split(point, ends)


def stretched(point: Point, num_steps: int) -> Point:
  """The schedule of a point at another number of steps.

  Values are interpolated over the length of a decode: a mask ratio lies at the
  end of its step, the others in its middle. The curve of mask ratios goes from
  1 to 0; the others are constant before the first and after the last.
  """
  ratio, *others = _lists(point)
  old, new = (np.arange(1, n + 1) / n for n in (steps_of(point), num_steps))
  curve = np.concatenate([[1.0], ratio, [0.0]])
  found = [np.interp(new[:-1], np.append(0.0, old), curve)]
  # A single step has no masking temperature.
  defaults = _lists(first_point(num_steps))[1:]
  for values, default in zip(others, defaults, strict=True):
    places = (new - 0.5 / num_steps)[: len(default)]
    known = (old - 0.5 / len(old))[: len(values)]
    found.append(np.interp(places, known, values) if len(values) else default)
  return np.concatenate(found)


def table_of(point: Point) -> PolicyValues:
  """A point as a table, float32[T] each; the last step masks nothing."""
  ratio, masking, sampling, guidance = _lists(point)
  return PolicyValues(
    mask_ratio=jnp.asarray(np.append(ratio, 0.0), jnp.float32),
    sampling_temperature=jnp.asarray(sampling, jnp.float32),
    masking_temperature=jnp.asarray(np.append(masking, 0.0), jnp.float32),
    guidance_scale=jnp.asarray(guidance, jnp.float32),
  )


def point_of(table: PolicyValues) -> Point:
  """The point of a table, float64[4T - 2]."""
  lists = (
    np.asarray(table.mask_ratio)[:-1],
    np.asarray(table.masking_temperature)[:-1],
    np.asarray(table.sampling_temperature),
    np.asarray(table.guidance_scale),
  )
  return np.concatenate(lists).astype(np.float64)


def masked_counts(table: PolicyValues, num_tokens: int) -> list[int]:
  """How many tokens AutoNAT's step leaves masked after each of the T steps.

  The last number is 1, and that token keeps what was sampled for it. All
  `num_tokens` are unknown at the start.
  """
  ratio = np.asarray(table.mask_ratio, np.float32)
  asked = np.floor(np.float32(num_tokens) * ratio)
  counts, masked = [], num_tokens
  for count in asked.astype(int).tolist():
    masked = max(1, min(masked - 1, count))
    counts.append(masked)
  return counts


def settled(table: PolicyValues, num_tokens: int) -> PolicyValues:
  """An equivalent table that does not depend on the options of the step.

  AutoNAT's step reveals at least one token and leaves at least one masked.
  Where a mask ratio asks for another count than the step gives, it is replaced
  by one that asks for that count. All `num_tokens` are unknown at the start.
  """
  ratio = np.asarray(table.mask_ratio, np.float32).copy()
  counts = masked_counts(table, num_tokens)
  for step, count in enumerate(counts[:-1]):
    if np.floor(np.float32(num_tokens) * ratio[step]) != count:
      # Half a token more than needed, far from where rounding matters.
      ratio[step] = (count + 0.5) / num_tokens
  ratio[-1] = 0.0
  return dataclasses.replace(table, mask_ratio=jnp.asarray(ratio))


@dataclasses.dataclass(frozen=True)
class Descent:
  """The constants of AutoNAT's descent; the defaults are the published ones."""

  ratio_difference: float = 0.01  # finite, of mask ratios: 2.56 of 256 tokens
  other_difference: float = 0.1  # of all other values
  ratio_rate: float = 1e-3  # learning rate of mask ratios
  other_rate: float = 0.1  # learning rate of all others
  momentum: float = 0.5  # of the descent
  clip_gradient: float = 0.0  # largest size of a derivative; 0 for no limit


def finite_differences(first: Point, descent: Descent) -> Proposals:
  """AutoNAT's optimizer: descent along forward differences.

  An update measures the point itself and then each coordinate moved upwards,
  4T - 1 evaluations; the moved values are kept in bounds, and the differences
  are those of the values measured. It starts at `first`, float64[4T - 2].

  Yields:
    Proposals without end; the centre is the point of the current update.
  """
  ratio = is_ratio(first)
  difference = np.where(
    ratio, descent.ratio_difference, descent.other_difference
  )
  rate = np.where(ratio, descent.ratio_rate, descent.other_rate)
  point, velocity = first, np.zeros_like(first)
  while True:
    base = yield Proposal(point, point)
    gradient = np.zeros_like(point)
    for place in range(len(point)):
      moved = point.copy()
      # Mask ratios may come to 1 here, and only here.
      new = moved[place] + difference[place]
      moved[place] = min(new, 1.0) if ratio[place] else max(new, LOWEST_OTHER)
      value = yield Proposal(moved, point)
      gradient[place] = (value - base) / (moved[place] - point[place])
    if descent.clip_gradient:
      limit = descent.clip_gradient
      gradient = np.clip(gradient, -limit, limit)
    velocity = descent.momentum * velocity + gradient
    point = clamped(point - rate * velocity)


@dataclasses.dataclass(frozen=True)
class Spread:
  """Initial standard deviations of CMA-ES."""

  ratio: float = 0.07  # of mask ratios
  temperature: float = 0.4  # of the logarithms of both temperatures
  guidance: float = 0.3  # of guidance scales

  def times(self, factor: float) -> Spread:
    """All standard deviations, multiplied by `factor`."""
    values = dataclasses.asdict(self).items()
    return Spread(**{name: factor * value for name, value in values})


def covariance_adaptation(
  first: Point, spread: Spread, seed: int, guided: bool = True
) -> Proposals:
  """CMA-ES with a diagonal covariance, by the library `cmaes`.

  It only ranks values, so noise in them does not become steps, and one variance
  per coordinate can be learned from few evaluations (sep-CMA-ES, Ros and Hansen
  2008). Temperatures are searched by their logarithms: good ones lie between a
  fraction and a multiple of the first. Points drawn out of bounds are moved to
  the nearest point within.

  Args:
    first: float64[4T - 2], where to start; measured before all others.
    spread: its initial standard deviations.
    seed: of its random numbers.
    guided: False leaves the guidance scales where they are.

  Yields:
    Proposals without end; the centre is the mean of the distribution.

  Raises:
    UserError: if the library is not installed.
  """
  cmaes = require_cmaes()
  first = clamped(first)
  logarithmic = is_temperature(first)
  scale = np.where(
    is_ratio(first),
    spread.ratio,
    np.where(logarithmic, spread.temperature, spread.guidance),
  )
  origin = np.log(first, out=first.copy(), where=logarithmic)

  size = len(first) - (0 if guided else steps_of(first))

  def placed(drawn: Point) -> Point:
    values = origin + scale * np.append(drawn, np.zeros(len(first) - size))
    return clamped(np.exp(values, out=values, where=logarithmic))

  strategy = cmaes.SepCMA(np.zeros(size), 1.0, seed=seed)
  yield Proposal(first, first)
  while True:
    centre = placed(strategy.mean)
    generation = []
    for _ in range(strategy.population_size):
      drawn = strategy.ask()
      value = yield Proposal(placed(drawn), centre)
      generation.append((drawn, value))
    strategy.tell(generation)


def require_cmaes():
  """Returns the library `cmaes`, or raises UserError if it is not installed."""
  try:
    import cmaes  # pylint: disable=import-outside-toplevel
  except ImportError as error:
    raise UserError(
      "optimizer 'cma' needs the library cmaes: pip install"
      " 'adanat_jax[search]', or take finite_differences"
    ) from error
  return cmaes


def beta_directions(
  beta: tuple[float, float], axis: int, factor: float
) -> tuple[tuple[float, float], tuple[float, float]]:
  """Two neighbours of a Beta law, on either side along one axis, larger first.

  Args:
    beta: its parameters (a, b).
    axis: 0 changes the mean a / (a + b), 1 the concentration a + b, the other
      staying as it is.
    factor: what the odds of the mean, or the concentration, are multiplied and
      divided by.
  """
  a, b = beta
  found = []
  for by in (factor, 1 / factor):
    if axis:
      found.append((a * by, b * by))
    else:
      odds, total = by * a / b, a + b
      found.append((total * odds / (1 + odds), total / (1 + odds)))
  return found[0], found[1]
