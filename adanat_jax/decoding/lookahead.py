"""Decoding that looks ahead: several draws a step, of which the best stays.

At each step but the last `K = options.candidates` canvases are drawn; they
share the policy's numbers and the guided logits, and differ in noise alone. The
network runs on all of them, and each sample goes on from the one that
`options.chosen_by` puts first, whose pass the next step reads. So a guided
decode costs `2 + (T - 1) (K + 1)` denoiser passes, an unguided one
`1 + (T - 1) K`: compare it with other schedules at as many.

`decode` is for schedules of any kind: with one candidate it is `loop.decode`.

With the entropy: "LookUM" and the Info-Gain sampler (arXiv 2602.18176), which
also counts what the step has spent; with the critic of a policy: AdaGen's
look-ahead (arXiv 2603.06993).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from adanat_jax.decoding import guidance, loop, schedules, step as step_lib
from adanat_jax.decoding.schedules import PolicyLike
from adanat_jax.errors import UserError
from adanat_jax.types import (
  Array,
  Cache,
  Carry,
  Condition,
  Critic,
  DecodeState,
  Denoiser,
  Policy,
  Trajectory,
)


def decode(
  denoiser: Denoiser,
  policy: PolicyLike,
  *,
  keys: Array,
  options: step_lib.StepOptions,
  taken: Array | None = None,
  **canvas: Any,
) -> loop.Decoded:
  """Decodes with as many candidates as the options say.

  Args:
    denoiser: see `loop.decode`.
    policy: that of a schedule.
    keys: key[B].
    options: of the step.
    taken: see there; with one candidate alone.
    **canvas: what both ways take.

  Returns:
    As `loop.decode`, without features.

  Raises:
    UserError: if a critic is to choose and the policy has none.
  """
  canvas |= dict(
    keys=keys,
    options=options,
    policy_carry=schedules.initial_carry(policy, keys),
  )
  called = schedules.as_policy(policy)
  if options.candidates == 1:
    return loop.decode(
      denoiser, called, taken=taken, keep_features=False, **canvas
    )
  critic = None
  if options.chosen_by == 'value':
    critic = getattr(policy, 'critic', lambda: None)()
    if critic is None:
      raise UserError(
        'chosen_by=value: the schedule has no critic; give entropy or'
        ' information'
      )
  return decode_best(denoiser, called, critic=critic, **canvas)


def decode_best(
  denoiser: Denoiser,
  policy: Policy,
  *,
  tokens: Array,
  condition: Condition,
  null_condition: Condition | None,
  keys: Array,
  num_steps: int,
  mask_token: int,
  guided: guidance.Guided = True,
  options: step_lib.StepOptions,
  priority: Array | None = None,
  policy_carry: Carry = (),
  cache: Cache = (),
  first: loop.FirstStep | None = None,
  critic: Critic | None = None,
  record: bool = False,
) -> loop.Decoded:
  """Decodes a batch of canvases by the best candidate of each step.

  Draw 0 of a step has the noise of a plain decode, so that one candidate is
  that decode, and draw j the noise of keys that are folded with j. Of equal
  candidates the first stays.

  Args:
    denoiser: see `loop.decode`, as of all that is not said here.
    policy: the same.
    tokens: int32[B, N].
    condition: pytree with leading axis B.
    null_condition: of one sample, or None.
    keys: key[B].
    num_steps: T, static.
    mask_token: `codebook_size`.
    guided: whether, or which of the steps, are guided.
    options: with the number of candidates, and what chooses among them.
    priority: float32[N] or float32[B, N], for the order `'given'`.
    policy_carry: what the policy carries into the first step.
    cache: of 2B rows if any step is guided.
    first: what the denoiser would return in the first step.
    critic: `(step, features [M, N, D]) -> float32[M]`, which `'value'` asks.
    record: whether to return the trajectory, without features.

  Returns:
    Complete tokens, int32[B, N], and the trajectory if `record`.
  """
  state, priority = loop.begin(tokens, mask_token, keys, options, priority)
  guided = False if null_condition is None else guided
  guided = guidance.checked(guided, num_steps, 'decode')
  is_guided = guidance.each_step(guided, num_steps)
  count = options.candidates
  passes = jnp.array(guidance.passes(guided, num_steps, count))
  halves = cache, ()
  if guided:
    pairs = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), cache)
    halves = tuple(jax.tree.map(lambda x, i=i: x[:, i], pairs) for i in (0, 1))

  def without_condition(
    step: Array, tokens: Array, logits: Array, cache: Cache
  ) -> tuple[Array, Cache]:
    """The unconditional logits of a step, those given where it is unguided."""
    wide = lambda x: jnp.broadcast_to(x, (tokens.shape[0], *jnp.shape(x)))
    null = jax.tree.map(wide, null_condition)

    def run(tokens: Array, cache: Cache) -> tuple[Array, Cache]:
      _, found, cache = denoiser(tokens, null, cache)
      return found, cache

    def keep(tokens: Array, cache: Cache) -> tuple[Array, Cache]:
      del tokens
      if first is None or first.unconditional is None:
        return logits, cache
      known = jnp.broadcast_to(first.unconditional, logits.shape)
      return jnp.where(step == 0, known, logits), cache

    needed = jnp.array(is_guided)[step]
    if first is not None:
      needed &= step > 0
    return jax.lax.cond(needed, run, keep, tokens, cache)

  def take(carry: Any, step: Array, is_last: bool) -> tuple[Any, Any]:
    state, policy_carry, (features, logits), (own, null) = carry
    masked = state.tokens == mask_token
    unconditional = None
    if guided:
      unconditional, null = without_condition(step, state.tokens, logits, null)
    logits, unconditional = loop.widened(logits, unconditional)
    policy_keys, token_keys, confidence_keys = loop.step_keys(keys, step)
    observation = loop.observe(features, logits, masked)
    values, aux, policy_carry = policy(
      step, observation, policy_keys, policy_carry
    )
    if unconditional is not None:
      logits = step_lib.guide(logits, unconditional, values.guidance_scale)
    share, left = jnp.divmod(state.num_unknown, num_steps)

    def draw(token_keys: Array, confidence_keys: Array) -> DecodeState:
      return step_lib.decode_step(
        state,
        logits,
        values,
        loop.gumbel(token_keys, logits.shape[1:]),
        loop.gumbel(confidence_keys, logits.shape[1:2]),
        mask_token=mask_token,
        options=options,
        priority=priority,
        even_share=share + (step < left),
      )

    needed = masked.any(-1) if options.revisit == 'never' else True
    taken = state.passes + passes[step] * needed
    if is_last:
      new, seen = draw(token_keys, confidence_keys), (features, logits)
    else:
      drawn = jax.vmap(draw, out_axes=1)(
        _folded(token_keys, count), _folded(confidence_keys, count)
      )
      # Interleaved as [B, K]: over devices no token moves.
      flat = lambda x: x.reshape(-1, *x.shape[2:])
      wide = lambda x: jnp.repeat(x, count, axis=0)
      found = denoiser(
        flat(drawn.tokens), *jax.tree.map(wide, (condition, own))
      )
      apart = lambda x: x.reshape(-1, count, *x.shape[1:])
      *seen, own = jax.tree.map(apart, found)
      value = None
      if options.chosen_by == 'value':
        assert critic is not None
        value = apart(critic(step + 1, found[0]))
      scores = _scores(
        state, drawn, logits, seen[1], value, mask_token, options.chosen_by
      )
      best = scores.argmax(1)
      pick = lambda x: jax.vmap(lambda row, i: row[i])(x, best)
      new, seen, own = jax.tree.map(pick, (drawn, tuple(seen), own))
    new = dataclasses.replace(new, passes=taken)
    recorded = None
    if record:
      is_masked = new.tokens == mask_token
      recorded = Trajectory(
        features=None,
        tokens=new.tokens,
        sampled=new.sampled,
        values=values,
        aux=aux,
        num_committed=masked.sum(-1) - is_masked.sum(-1),
      )
    return (new, policy_carry, seen, (own, null)), recorded

  own, null = halves
  if first is None:
    features, logits, own = denoiser(tokens, condition, own)
  else:
    features, logits = first.of_samples()
  carry: Any = state, policy_carry, (features, logits), (own, null)
  carry, rows = jax.lax.scan(
    lambda carry, step: take(carry, step, False),
    carry,
    jnp.arange(num_steps - 1, dtype=jnp.int32),
  )
  (state, *_), row = take(carry, jnp.int32(num_steps - 1), True)
  trajectory = jax.tree.map(lambda x, y: jnp.append(x, y[None], 0), rows, row)
  assert state.passes is not None
  return loop.Decoded(state.sampled, state.passes, trajectory)


def _folded(keys: Array, count: int) -> Array:
  """The keys of each draw, key[K, B]; those of draw 0 are the given ones."""
  fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
  return jnp.stack([keys, *(fold(keys, j) for j in range(1, count))])


def _scores(
  before: DecodeState,
  drawn: DecodeState,
  logits: Array,
  ahead: Array,
  value: Array | None,
  mask_token: int,
  chosen_by: str,
) -> Array:
  """How good each candidate is, float32[B, K].

  Args:
    before: the state that they were drawn from.
    drawn: theirs, with axes [B, K].
    logits: float32[B, N, C], from which they were drawn, guided.
    ahead: float[B, K, N, C], what the network says of them.
    value: float32[B, K], what a critic says of them.
    mask_token: C.
    chosen_by: see `StepOptions`.
  """
  if value is not None:
    return value
  masked = drawn.tokens == mask_token
  law = jax.nn.log_softmax(ahead.astype(jnp.float32), axis=-1)
  left = jnp.where(masked, step_lib.entropy(law), 0.0).sum(-1)
  scores = -left / jnp.maximum(masked.sum(-1), 1)
  if chosen_by == 'information':
    law = jax.nn.log_softmax(logits, axis=-1)
    made_known = (before.tokens == mask_token)[:, None] & ~masked
    spent = jnp.where(made_known, step_lib.entropy(law)[:, None], 0.0)
    scores -= spent.sum(-1)
  return scores
