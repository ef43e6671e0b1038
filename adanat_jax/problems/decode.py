"""Samples of anybody's generator, by whatever may decide a decode."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from adanat_jax.decoding import lookahead, loop, schedules, tables
from adanat_jax.decoding.schedules import PolicyLike, Schedule
from adanat_jax.errors import UserError, shown
from adanat_jax.problems.problem import Problem
from adanat_jax.runtime import closures, sharding
from adanat_jax.sampling import program, requests
from adanat_jax.sampling.program import Plan, Samples
from adanat_jax.sampling.requests import AnyPolicy
from adanat_jax.types import Array, Condition, PolicyValues

_DEFAULT_STEPS = 8


def decode(
  problem: Problem,
  schedule: str | AnyPolicy,
  conditions: Condition | int = 16,
  *,
  num_steps: int | None = None,
  seed: int = 0,
  tokens: np.ndarray | None = None,
  record: bool = False,
  batch_size: int = 256,
  mesh: Mesh | None = None,
) -> Samples:
  """Generates samples, one a condition.

  Args:
    problem: the generator.
    schedule: a `Schedule`, such as `learn` returns; a name of
      `schedules.SCHEDULES`, with parameters or without, such as
      `'maskgit(masking_temperature=3.0)'`; a table, `PolicyValues` or a dict of
      lists of T numbers; an agent; or a function `(step, observation, keys,
      carry) -> (PolicyValues, aux, carry)`. All but the first two are guided if
      the problem has a null condition, and decoded as AdaNAT does.
    conditions: pytree with leading axis B; or B, for conditions drawn as
      `Problem.conditions` says.
    num_steps: T of a name or a function, 8 if None; what else there is has one.
    seed: sample i of a seed is the same whatever comes after it.
    tokens: int32[B, N] canvases to start from, `mask_token` where unknown;
      given tokens stay. None starts from nothing.
    record: whether to return the trajectory.
    batch_size: samples decoded at a time, at most.
    mesh: the devices among which a batch is divided; all by default.

  Returns:
    NumPy arrays. `images` are what the decoder makes of `tokens`; None without
    one.

  Raises:
    UserError: for a schedule or conditions that do not fit the problem, and for
      functions that return what they should not.
  """
  key = jax.random.key(requests.integer('seed', seed, 0, requests.LAST_SEED))
  if isinstance(conditions, int | np.integer):
    count = requests.integer('the number of samples', conditions, 1)
    # No sample has this number.
    last = jax.random.fold_in(key, np.iinfo(np.uint32).max)
    conditions = problem.draw(last, count)
  else:
    if isinstance(conditions, list):
      conditions = np.asarray(conditions)
    count = _count(problem, conditions)
  conditions = jax.tree.map(np.asarray, conditions)
  chosen = as_schedule(problem, schedule, num_steps, count)
  if tokens is None:
    tokens = np.full((count, problem.num_tokens), problem.mask_token, np.int32)
  tokens = requests.grids(tokens, problem.num_tokens, problem.mask_token, count)
  batch_size = requests.integer('batch_size', batch_size, 1)
  mesh = mesh or sharding.make_mesh()
  run = _program(problem, Plan.from_schedule(chosen, record), mesh)
  parts: list[Samples] = []
  for index, num_real in program.batches(0, count, batch_size, mesh.size):
    rows = sharding.local_rows(index, mesh)
    batch = {
      'tokens': tokens[rows],
      'condition': jax.tree.map(lambda x: x[rows], conditions),  # noqa: B023
      'index': rows.astype(np.int32),
    }
    if chosen.priority is not None:
      batch['priority'] = np.tile(chosen.priority, (len(rows), 1))
    policy = program.rows_of(chosen.policy, rows, mesh)
    part = run(policy, sharding.put_batch(batch, mesh), key)
    parts.append(program.keep(sharding.gather(part), num_real))
  return program.join(parts)


@functools.lru_cache(maxsize=32)
def _program(problem: Problem, plan: Plan, mesh: Mesh) -> closures.Compiled:
  """`(policy, batch, key) -> Samples` of one batch, as global arrays."""

  def run(policy: PolicyLike, batch: dict[str, Any], key: Array) -> Samples:
    keys = loop.keys_of(key, batch['index'])
    null = problem.null_like(batch['condition']) if plan.guided else None
    decoded: Any = lookahead.decode(
      problem.denoise,
      policy,
      tokens=batch['tokens'],
      condition=batch['condition'],
      null_condition=null,
      keys=keys,
      num_steps=plan.num_steps,
      guided=plan.guided,
      mask_token=problem.mask_token,
      options=plan.options,
      priority=batch.get('priority'),
      record=plan.record,
    )
    images: Any = None
    if problem.decoder is not None:
      images = problem.decode_tokens(decoded.tokens)
    return Samples(images, decoded.tokens, decoded.trajectory, decoded.passes)

  return closures.Compiled(run, mesh)


def as_schedule(
  problem: Problem,
  given: str | AnyPolicy,
  num_steps: int | None,
  num_samples: int | None = None,
) -> Schedule:
  """What `decode` takes for a schedule, as a `Schedule` for this problem.

  Raises:
    UserError: for what is none, or does not fit.
  """
  guided = problem.is_guided
  if isinstance(given, PolicyValues | Mapping):
    table = tables.checked_table(given, num_samples=num_samples)
    given = Schedule('table', table, guided)
  if num_steps is None:
    num_steps = getattr(given, 'num_steps', _DEFAULT_STEPS)
  num_steps = requests.integer('num_steps', num_steps, 1)
  if isinstance(given, str):
    # Without a grid a line is one column, as it was.
    columns = problem.grid[1] if problem.grid else 0
    chosen = schedules.make(given, num_steps, problem.num_tokens, columns)
  else:
    chosen = requests.as_schedule(given, num_steps, num_samples)
  if not isinstance(given, str | Schedule):
    return dataclasses.replace(chosen, guided=guided)
  if chosen.guided and not guided:
    raise UserError(
      f'the schedule {chosen.name} is guided, and the problem has no'
      ' null_condition: give one, or an unguided schedule (guidance_scale=0, or'
      ' guided=False)'
    )
  return chosen


def _count(problem: Problem, conditions: Condition) -> int:
  """B of conditions that fit the problem."""
  leaves = [np.asarray(x) for x in jax.tree.leaves(conditions)]
  sizes = {x.shape[:1] for x in leaves}
  if problem.conditions is None or len(sizes) != 1 or sizes == {()}:
    allowed = 'a number of samples, or arrays with a row a sample'
    if problem.conditions is None:
      allowed = 'a number of samples: the problem has none'
    raise UserError(f'conditions must be {allowed}')
  if isinstance(problem.conditions, int):
    (labels,) = leaves
    known = labels.dtype.kind in 'iu' and labels.size > 0
    if not known or labels.min() < 0 or labels.max() >= problem.conditions:
      raise UserError(
        f'conditions are {shown(labels.tolist())}; give class ids from 0 to'
        f' {problem.conditions - 1}'
      )
  return len(leaves[0])
