"""Schedules: what decides a decode, as one object, and the list of all of them.

Every published hand-made schedule is a table: four numbers a step, the same for
all samples, made by a function of `num_steps` as a `PolicyValues` of
float32[T]. A `Schedule` is such a table, or a learned policy, with all else
that decides a decode. `SCHEDULES` names those that need no training; an entry
that is added there,

  SCHEDULES['mine'] = lambda num_steps, num_tokens: Schedule(
    'mine', hand_made(num_steps, curve='pow2', total=num_tokens),
    guided=False, options=step.MASKGIT, label='my schedule',
  )

can be named in configs as in the library.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import actions, step as step_lib
from adanat_jax.decoding.tables import (
  adagen,
  autonat_large,
  enat_256,
  enat_512,
  hand_made,
)
from adanat_jax.errors import UserError
from adanat_jax.types import Array, Carry, Observation, Policy, PolicyValues


@runtime_checkable
class LearnedPolicy(Protocol):
  """What a schedule asks of a policy that is no table, such as an `Agent`."""

  @property
  def num_steps(self) -> int:
    """T."""

  def policy(self) -> Policy:
    """The policy, as it acts when nothing is explored."""


PolicyLike: TypeAlias = PolicyValues | LearnedPolicy


# Compared by identity: arrays have no single answer to `==`.
@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
  """All that decides how canvases are decoded, besides network and noise."""

  name: str  # in configs, file names and results
  # A table of float32[T], of float32[T, B] with a column for each sample, or a
  # learned policy.
  policy: PolicyLike
  guided: bool = True  # whether the unconditional pass runs, at twice the cost
  options: step_lib.StepOptions = step_lib.ADANAT
  label: str = ''  # for tables and pictures; the name if empty
  note: str = ''  # a remark for reports

  def __post_init__(self) -> None:
    """Lets the name stand in for a label."""
    if not self.label:
      object.__setattr__(self, 'label', self.name)

  @property
  def is_table(self) -> bool:
    """Whether the policy is a table and not a learned one."""
    return isinstance(self.policy, PolicyValues)

  @property
  def num_steps(self) -> int:
    """T."""
    if isinstance(self.policy, PolicyValues):
      return int(np.shape(self.policy.mask_ratio)[0])
    return self.policy.num_steps


def as_policy(policy: PolicyLike) -> Policy:
  """What a decoding loop calls at each step, of a table or a learned policy."""
  if isinstance(policy, PolicyValues):
    return table_policy(policy)
  return policy.policy()


def table_policy(table: PolicyValues) -> Policy:
  """A policy that reads its values from a table and ignores features.

  The table's fields are float32[T], one number a step for all samples, or
  float32[T, B], one a step and sample. Aux is empty, the carry unchanged.
  """

  def policy(
    step: Array, observation: Observation, keys: Array, carry: Carry
  ) -> tuple[PolicyValues, tuple[()], Carry]:
    del observation
    batch = keys.shape
    values = jax.tree.map(
      lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32)[step], batch),
      table,
    )
    return values, (), carry

  return policy


def _maskgit(num_steps: int, num_tokens: int) -> Schedule:
  return Schedule(
    'maskgit',
    hand_made(num_steps, total=num_tokens),
    guided=False,
    options=step_lib.MASKGIT,
    label='MaskGIT, unguided',
    note='cosine curve, masking temperature falling from 4.5',
  )


def _residual(num_steps: int, num_tokens: int) -> Schedule:
  del num_tokens
  residual = actions.published_residual(num_steps)
  return Schedule(
    'residual',
    actions.values_from_action(jnp.zeros_like(residual), residual),
    label="AdaNAT's hand-made schedule",
    note='the published residual',
  )


def _guidance_3(num_steps: int, num_tokens: int) -> Schedule:
  return Schedule(
    'guidance-3',
    hand_made(num_steps, total=num_tokens, guidance_scale=3.0),
    options=step_lib.MASKGIT,
    label='guidance growing to 3',
    note='cosine curve, masking temperature falling from 4.5',
  )


def _published(
  name: str,
  table: Callable[[int], PolicyValues],
  label: str,
  options: step_lib.StepOptions = step_lib.ADANAT,
) -> Factory:
  """The factory of a table whose numbers do not depend on N."""
  return lambda num_steps, num_tokens: Schedule(
    name, table(num_steps), True, options, label, 'published schedule'
  )


# (num_steps, num_tokens) -> Schedule: how many tokens are unknown at the start
# decides on some tables. A factory may refuse a number of steps by a UserError.
Factory: TypeAlias = Callable[[int, int], Schedule]

SCHEDULES: dict[str, Factory] = {
  'maskgit': _maskgit,
  'residual': _residual,
  'guidance-3': _guidance_3,
  'autonat_large': _published(
    'autonat_large', autonat_large, 'AutoNAT-L', step_lib.MASKGIT
  ),
  'adagen': _published('adagen', adagen, "AdaGen's hand-made"),
  'enat_256': _published('enat_256', enat_256, "ENAT's hand-made"),
  'enat_512': _published('enat_512', enat_512, "ENAT's hand-made, 512"),
}


def make(name: str, num_steps: int, num_tokens: int) -> Schedule:
  """Makes a schedule of `SCHEDULES` for N tokens, all unknown at the start.

  Raises:
    UserError: for an unknown name, or a number of steps that the schedule is
      not made for.
  """
  if name not in SCHEDULES:
    raise UserError(
      f'there is no schedule {name!r}; known are {", ".join(SCHEDULES)}'
    )
  schedule = SCHEDULES[name](num_steps, num_tokens)
  made = schedule.name, schedule.num_steps
  if made != (name, num_steps):
    raise UserError(
      f'SCHEDULES[{name!r}] made the schedule {made[0]!r} of {made[1]} steps;'
      f' its name must be {name!r}, and {num_steps} steps were asked for'
    )
  return schedule
