"""The exact likelihood of complete grids under a schedule.

Where the canvas alone decides which positions a step makes known, there is one
way only to a grid: the tokens of the first step are those that it has at the
first positions, and so on. So its log-likelihood is a sum over its tokens, of
the log-probability of each at the step that makes it known, at the cost of one
decode (DUEL, arXiv 2603.01367).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import guidance, loop, step as step_lib
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.types import (
  Array,
  Cache,
  Carry,
  Condition,
  Denoiser,
  Policy,
  PolicyValues,
)


def obstacle(schedule: Schedule) -> str:
  """Why the grids of a schedule have no exact likelihood, or nothing.

  The sentence says what is in the way, and the remedy.
  """
  options, policy = schedule.options, schedule.policy
  if options.candidates > 1:
    return 'it chooses among several draws; give candidates=1'
  if options.order == 'sampled':
    return (
      'its order looks at the tokens that are drawn; give one of the order'
      ' max_prob, entropy, margin, moment or given'
    )
  if options.commit == 'independent':
    return 'chance decides what becomes known; give the commit rule ratio'
  if options.revisit != 'never':
    return 'it masks known tokens again; give one that does not'
  if options.rolled:
    return (
      'each sample begins elsewhere in its order; give randomize=False, or'
      ' StepOptions(rolled=False)'
    )
  # What the last step knows, or makes known, needs no order.
  if options.noise and not (
    isinstance(policy, PolicyValues)
    and not np.any(np.asarray(policy.masking_temperature)[:-1])
  ):
    return (
      'its masking temperature makes the order random; give 0, or'
      ' StepOptions(noise=False)'
    )
  return ''


def check(schedule: Schedule) -> None:
  """Raises UserError unless the grids of a schedule have exact likelihoods."""
  if reason := obstacle(schedule):
    raise UserError(
      f'the schedule {schedule.name} has no exact likelihood: {reason}'
    )


def log_likelihood(
  denoiser: Denoiser,
  policy: Policy,
  tokens: Array,
  condition: Condition,
  null_condition: Condition | None,
  *,
  num_steps: int,
  mask_token: int,
  guided: guidance.Guided = True,
  options: step_lib.StepOptions,
  priority: Array | None = None,
  policy_carry: Carry = (),
  cache: Cache = (),
) -> tuple[Array, Array]:
  """The log-likelihood of grids that are decoded from a full mask.

  It is right for schedules that `check` lets through, and policies that read
  no keys.

  Args:
    denoiser: see `loop.decode`, as of all that is not said here.
    policy: such as a table, or an agent at its mean action.
    tokens: int32[B, N], complete grids.
    condition: pytree with leading axis B.
    null_condition: of one sample, or None where the decode is not guided.
    num_steps: T, static; the denoiser runs as often, on both conditions where
      it is guided.
    mask_token: `codebook_size`.
    guided: with a null condition, whether, or which of the steps, are guided.
    options: see `step.StepOptions`.
    priority: float32[N] or float32[B, N], for the order `'given'`.
    policy_carry: what the policy carries into the first step.
    cache: what the denoiser does.

  Returns:
    float32[B] in nats; and the passes that decoding each takes, int32[B].
    Temperatures of 0 count as 1e-6.
  """
  chex.assert_rank(tokens, 2)
  batch_size, num_tokens = tokens.shape
  canvas = loop.full_mask(batch_size, num_tokens, mask_token)
  # A policy that reads them is not for this function.
  keys = loop.sample_keys(jax.random.key(0), batch_size)
  share, left = divmod(num_tokens, num_steps)
  guided = False if null_condition is None else guided
  guided = guidance.checked(guided, num_steps, 'log_likelihood')
  conditions = condition, null_condition if guided else None
  is_guided = guidance.each_step(guided, num_steps)
  passes_of_step = jnp.array(guidance.passes(guided, num_steps))

  def body(carry: Any, step: Array) -> tuple[Any, None]:
    state, total, passes, policy_carry, cache = carry
    masked = state.tokens == mask_token
    features, logits, unconditional, cache = loop.denoise_some(
      is_guided, denoiser, step, state.tokens, *conditions, cache
    )
    logits, unconditional = loop.widened(logits, unconditional)
    values, _, policy_carry = policy(
      step, loop.observe(features, logits, masked), keys, policy_carry
    )
    if unconditional is not None:
      logits = step_lib.guide(logits, unconditional, values.guidance_scale)
    # Whatever it draws: what becomes known does not depend on it.
    after = step_lib.decode_step(
      state,
      logits,
      values,
      jnp.zeros(logits.shape),
      jnp.zeros(masked.shape),
      mask_token=mask_token,
      options=options,
      priority=priority,
      even_share=share + (step < left),
    )
    is_last = step == num_steps - 1
    known = masked & ((after.tokens != mask_token) | is_last)
    temperature = step_lib.effective_temperature(values, options)
    law = step_lib.tempered(logits, temperature)
    picked = jnp.take_along_axis(law, tokens[..., None], axis=-1)[..., 0]
    total += jnp.where(known, picked, 0).sum(-1)
    passes += passes_of_step[step] * masked.any(-1)
    canvas = jnp.where(masked & ~known, mask_token, tokens)
    state = dataclasses.replace(after, tokens=canvas)
    return (state, total, passes, policy_carry, cache), None

  start = step_lib.start(canvas, mask_token, options)
  nothing = jnp.zeros(batch_size), jnp.zeros(batch_size, jnp.int32)
  carry = (start, *nothing, policy_carry, cache)
  (_, total, passes, _, _), _ = jax.lax.scan(
    body, carry, jnp.arange(num_steps, dtype=jnp.int32)
  )
  return total, passes
