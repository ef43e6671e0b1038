"""The exact likelihood of token grids under a generator and a schedule."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from adanat_jax.decoding import likelihood, schedules
from adanat_jax.decoding.schedules import PolicyLike
from adanat_jax.errors import UserError
from adanat_jax.models import denoisers
from adanat_jax.runtime import sharding
from adanat_jax.sampling import best_of, program, requests
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.program import Plan
from adanat_jax.sampling.requests import AnyPolicy, Labels
from adanat_jax.types import Array


def log_likelihood(
  generator: Generator,
  tokens: np.ndarray,
  labels: Labels,
  schedule: str | AnyPolicy,
  num_steps: int = 4,
) -> np.ndarray:
  """How likely a generator is to decode these grids from nothing.

  Args:
    generator: its network, guided as the schedule says.
    tokens: int[B, N], complete grids.
    labels: class ids int[B], or captions or their states, one a grid.
    schedule: see `Generator.sample`. What becomes known at a step must follow
      from the canvas: an order such as `'max_prob'`, `'entropy_bound'`,
      `'halton(randomize=False)'`, or a learned policy with such an order and
      `StepOptions(noise=False)`.
    num_steps: T; the cost is that of decoding the grids.

  Returns:
    float32[B], in nats; over N log(2) they are bits a token.

  Raises:
    UserError: for grids, labels or a schedule for which there is no answer.
  """
  conditions = requests.conditions(
    labels,
    generator.num_classes,
    generator.class_names,
    generator.null_condition,
    generator.encode_captions,
  )
  if best_of.draws_of(generator) > 1:
    raise UserError(
      'the best of several draws has no likelihood; give the generator that was'
      ' given to best_of'
    )
  chosen = generator.schedule(schedule, num_steps, len(conditions))
  likelihood.check(chosen)
  grids = requests.grids(
    tokens,
    generator.nat.num_tokens,
    generator.nat.codebook_size - 1,
    len(conditions),
  )
  mesh = generator._mesh
  parts = []
  for index, num_real in generator._batches(0, len(grids)):
    rows = sharding.local_rows(index, mesh)
    batch = {
      'tokens': grids[rows],
      'labels': conditions[rows],
      **program.priority_of(chosen, len(rows)),
    }
    policy = program.rows_of(chosen.policy, rows, mesh)
    with jax.set_mesh(mesh):
      part = _of_batch(
        generator.nat,
        Plan.from_schedule(chosen),
        generator.nat_params,
        policy,
        sharding.put_batch(batch, mesh),
        generator.null(),
      )
    parts.append(sharding.gather(part)[:num_real])
  return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _of_batch(
  nat: denoisers.DenoiserModule,
  plan: Plan,
  nat_params: Any,
  policy: PolicyLike,
  batch: dict[str, Array],
  null_condition: Array,
) -> Array:
  """The log-likelihoods of a batch, see `program.decode_tokens`."""
  tokens, condition = batch['tokens'], batch['labels']
  rows = (1 + bool(plan.guided)) * len(tokens)
  cache = denoisers.empty_cache(nat, rows, denoisers.text_length(condition))
  keys = jax.random.split(jax.random.key(0), len(tokens))
  result, _ = likelihood.log_likelihood(
    denoisers.make(nat, sharding.whole(nat_params)),
    schedules.as_policy(policy),
    tokens,
    condition,
    null_condition if plan.guided else None,
    num_steps=plan.num_steps,
    guided=plan.guided,
    mask_token=nat.codebook_size,
    options=plan.options,
    priority=batch.get('priority'),
    policy_carry=schedules.initial_carry(policy, keys),
    cache=sharding.split_batch(cache),
  )
  return result
