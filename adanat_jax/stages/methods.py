"""The schedules that the study compares, and how it makes them.

Those of `SCHEDULES` at their published defaults, the grid over the dials of the
hand-made family, and for each learned policy the policy itself and, of an
adaptive one, what is left without its adaptivity.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import actions, schedules, step as step_lib
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.types import PolicyValues

# What is compared without a training, unless the config names others.
HAND_MADE = ('maskgit', 'residual', 'guidance-3')
# The grid over the hand-made family: 2 x 4 x 3 x 3 = 72 settings.
GRID = {
  'curve': ('cosine', 'pow2'),
  'masking_temperature': (2.0, 4.5, 9.0, 20.0),
  'sampling_temperature': (0.85, 1.0, 1.15),
  'guidance_scale': (0.0, 0.25, 0.5),
}


@dataclasses.dataclass(frozen=True)
class Method:
  """A schedule as one side of a comparison.

  Attributes:
    schedule: what decodes; its name is the same at every T and training.
    role: `adanat_jax.report.results` lists them.
    training: which repetition, None for schedules without a training.
    reward: what a learned policy was trained on, None for all others.
  """

  schedule: Schedule
  role: str
  training: int | None = None
  reward: str | None = None


def hand_made(num_steps: int, num_tokens: int) -> list[Method]:
  """The hand-made schedules at their published defaults."""
  return [
    Method(schedules.make(name, num_steps, num_tokens), 'hand-made')
    for name in HAND_MADE
  ]


def grid_settings() -> list[dict[str, Any]]:
  """Every setting of the grid."""
  return [
    dict(zip(GRID, values, strict=True))
    for values in itertools.product(*GRID.values())
  ]


def of_setting(
  setting: dict[str, Any], num_steps: int, num_tokens: int, evaluations: int
) -> Method:
  """A setting of the grid as a method; unguided where its guidance is 0."""
  schedule = Schedule(
    'tuned',
    schedules.hand_made(num_steps, total=num_tokens, **setting),
    guided=setting['guidance_scale'] > 0,
    options=step_lib.MASKGIT,
    label=f'hand-made, best of {evaluations}',
    note=', '.join(f'{key} {value}' for key, value in setting.items()),
  )
  return Method(schedule, 'tuned')


def mean_table(raw_actions: np.ndarray, residual: jax.Array) -> PolicyValues:
  """An adaptive policy frozen to its mean action.

  Args:
    raw_actions: what it did, float32[T, B, A], before residual and activation.
    residual: float32[T, A].

  Returns:
    float32[T], the values of the mean action over samples.
  """
  return actions.values_from_action(
    jnp.asarray(raw_actions).mean(axis=1), residual
  )


def shuffled_table(
  values: PolicyValues, labels: np.ndarray, seed: int
) -> PolicyValues:
  """An adaptive policy's actions, exchanged among samples of a class.

  Args:
    values: what it did, float32[T, B] each.
    labels: int32[B].
    seed: of the exchange.

  Returns:
    float32[T, B]: sample i is steered by what was meant for another sample.
  """
  order = np.arange(len(labels))
  generator = np.random.default_rng(seed)
  for label in np.unique(labels):
    places = np.flatnonzero(labels == label)
    order[places] = generator.permutation(places)
  return jax.tree.map(lambda x: x[:, order], values)
