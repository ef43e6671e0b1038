"""The bound of an adaptive schedule for a wished number of passes."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import schedules
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError, shown
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.requests import Labels
from adanat_jax.types import PolicyValues


def calibrate(
  generator: Generator,
  name: str,
  passes: float,
  labels: Labels,
  *,
  num_steps: int | None = None,
  seed: int = 0,
  tolerance: float = 0.02,
) -> Schedule:
  """Finds the bound with which samples take so many denoiser passes on average.

  By bisection, always on the same samples, whose seed should be none that is
  measured. A guided step is two passes. The mean moves in jumps where few
  samples are drawn.

  Args:
    generator: what is sampled from.
    name: an adaptive entry of `schedules.SCHEDULES`, such as
      `'entropy_bound'` or `'threshold(guidance_scale=2.0)'`; its `bound` is not
      read.
    passes: the mean that is wished for.
    labels: see `Generator.sample`; a few hundred.
    num_steps: the most steps there may be; None for one a token.
    seed: of the samples.
    tolerance: how far from `passes` the mean may be, as a share of them.

  Returns:
    The schedule, with the bound in its note. Its mean is the nearest that was
    found, if none is within the tolerance.

  Raises:
    UserError: for a schedule that is not adaptive, or passes that no bound
      reaches.
  """
  num_tokens = generator.nat.num_tokens
  steps = num_steps or num_tokens
  made = schedules.make(name, steps, num_tokens)
  if not made.options.is_adaptive:
    raise UserError(
      f'the schedule {name} takes {steps} steps whatever is sampled; give one'
      ' that is adaptive, such as entropy_bound, threshold or klass'
    )

  def mean_passes(bound: float) -> float:
    samples = generator.sample(labels, steps, seed, with_bound(made, bound))
    return float(np.mean(samples.passes))

  # From the bound with most passes to that with fewest.
  ends = 1.0, 0.0
  if made.options.commit == 'entropy_bound':
    ends = 0.0, num_tokens * math.log(generator.nat.codebook_size)
  most, fewest = map(mean_passes, ends)
  if not isinstance(passes, int | float) or not fewest <= passes <= most:
    raise UserError(
      f'passes={shown(passes)} is not to be had with the schedule {name}: give'
      f' a number from {fewest:.4g} to {most:.4g}'
    )
  found = {ends[0]: most, ends[1]: fewest}
  slow, fast = ends
  for _ in range(24):
    middle = (slow + fast) / 2
    found[middle] = mean_passes(middle)
    if abs(found[middle] - passes) <= tolerance * passes:
      break
    if found[middle] > passes:
      slow = middle
    else:
      fast = middle
  nearest = min(found, key=lambda bound: abs(found[bound] - passes))
  return with_bound(made, nearest)


def with_bound(schedule: Schedule, bound: float) -> Schedule:
  """An adaptive schedule with the same bound at every step."""
  table = schedule.policy
  assert isinstance(table, PolicyValues)  # It is one of `SCHEDULES`.
  row = jnp.full_like(table.mask_ratio, bound)
  return dataclasses.replace(
    schedule,
    policy=dataclasses.replace(table, mask_ratio=row),
    note=f'bound {bound:.4g}, at most {schedule.num_steps} steps',
  )


def bound_of(schedule: Schedule) -> float:
  """The bound of `with_bound`."""
  assert isinstance(schedule.policy, PolicyValues)
  return float(schedule.policy.mask_ratio[0])
