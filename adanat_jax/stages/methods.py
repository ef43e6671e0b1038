"""The schedules that evaluation compares, as one list.

Hand-made ones at their published defaults, the grid over the dials of the
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
from adanat_jax.sampling.generator import PolicyLike
from adanat_jax.types import PolicyValues

# The grid over the hand-made family: 2 x 4 x 3 x 3 = 72 settings.
GRID = {
  'curve': ('cosine', 'pow2'),
  'masking_temperature': (2.0, 4.5, 9.0, 20.0),
  'sampling_temperature': (0.85, 1.0, 1.15),
  'guidance_scale': (0.0, 0.25, 0.5),
}


@dataclasses.dataclass(frozen=True)
class Method:
  """One way of scheduling the decoder.

  Attributes:
    name: the same at every T and for every training.
    label: for tables and pictures.
    role: `adanat_jax.report.results` lists them.
    policy: table or agent.
    guided: whether the unconditional pass runs.
    options: of the decode step.
    training: which repetition, None for hand-made ones.
    reward: what a learned policy was trained on, None for hand-made ones.
    note: a remark for the report.
  """

  name: str
  label: str
  role: str
  policy: PolicyLike
  guided: bool = True
  options: step_lib.StepOptions = step_lib.ADANAT
  training: int | None = None
  reward: str | None = None
  note: str = ''


def hand_made(num_steps: int, num_tokens: int) -> list[Method]:
  """The hand-made schedules at their published defaults."""
  residual = actions.published_residual(num_steps)
  return [
    Method(
      'maskgit',
      'MaskGIT, unguided',
      'hand-made',
      schedules.hand_made(num_steps, total=num_tokens),
      guided=False,
      options=step_lib.MASKGIT,
      note='cosine curve, masking temperature falling from 4.5',
    ),
    Method(
      'residual',
      "AdaNAT's hand-made schedule",
      'hand-made',
      actions.values_from_action(jnp.zeros_like(residual), residual),
      note='the published residual',
    ),
    Method(
      'guidance-3',
      'guidance growing to 3',
      'hand-made',
      schedules.hand_made(num_steps, total=num_tokens, guidance_scale=3.0),
      options=step_lib.MASKGIT,
      note='cosine curve, masking temperature falling from 4.5',
    ),
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
  return Method(
    'tuned',
    f'hand-made, best of {evaluations}',
    'tuned',
    schedules.hand_made(num_steps, total=num_tokens, **setting),
    guided=setting['guidance_scale'] > 0,
    options=step_lib.MASKGIT,
    note=', '.join(f'{key} {value}' for key, value in setting.items()),
  )


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
