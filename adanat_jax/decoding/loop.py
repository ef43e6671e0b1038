"""The decoding loop: a `lax.scan` of denoiser, policy and decode step.

Each of the `num_steps` rounds

1. runs the denoiser on the canvas, with the condition and (when guided) with
   the null condition, both in one call;
2. asks the policy for the numbers of this step;
3. takes one `decode_step`.

So a guided decode costs `2 T` denoiser passes, an unguided one `T`, and one
that is guided at some steps one more for each of those; by an adaptive commit
rule, what a sample needs to be full. Noise belongs to the sample: sample `i`
owns a key, and step `t` uses `fold_in(key, t)`, so in float32 on a CPU the same
key gives the same tokens whatever the batch, the devices or the processes
around it.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import guidance, step as step_lib
from adanat_jax.types import (
  Array,
  Cache,
  Carry,
  Condition,
  DecodeState,
  Denoiser,
  Observation,
  Policy,
  Trajectory,
)


@struct.dataclass
class Noise:
  """Standard Gumbel noise, when it is to be given instead of drawn."""

  tokens: Array  # float32[T, B, N, K], for drawing tokens
  confidence: Array  # float32[T, B, N], for the confidences


@struct.dataclass
class FirstStep:
  """What the network says of empty canvases, when it is given."""

  features: Array  # float[B, N, D]
  logits: Array  # float[B, N, K]
  # float[N, K], the same for all; None if the step is not guided
  unconditional: Array | None
  # int32[B]: features and logits are rows of a table, and this says which each
  # sample has. None: they are those of the samples.
  place: Array | None = None

  def of_samples(self) -> tuple[Array, Array]:
    """Features [B, N, D] and logits [B, N, K]."""
    if self.place is None:
      return self.features, self.logits
    return self.features[self.place], self.logits[self.place]


@struct.dataclass
class Decoded:
  """What a decode returns."""

  tokens: Array  # int32[B, N]; complete grids: what the last step sampled
  passes: Array  # int32[B]; denoiser passes that each sample needed
  trajectory: Trajectory | None


def full_mask(batch_size: int, num_tokens: int, mask_token: int) -> Array:
  """An empty canvas, int32[batch_size, num_tokens] of `mask_token`."""
  return jnp.full((batch_size, num_tokens), mask_token, jnp.int32)


def sample_keys(key: Array, batch_size: int, start: int = 0) -> Array:
  """One typed key a sample, key[batch_size], from the key of the whole set.

  `start` is the index of the first sample within the set: a set decoded in
  batches gives each sample the key it would have had in one batch.
  """
  return keys_of(key, start + jnp.arange(batch_size))


def keys_of(key: Array, index: Array) -> Array:
  """The keys of samples by their index int32[B] within a set, key[B]."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def step_keys(keys: Array, step: Array) -> tuple[Array, Array, Array]:
  """Keys of one step for the policy, the tokens, the confidences: key[B]."""
  split = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, step), 3))
  return tuple(jnp.moveaxis(split(keys), 1, 0))


def _offsets(keys: Array, num_tokens: int) -> Array:
  """Where the order of each sample begins, int32[B]; drawn once a decode."""
  # No step has this number.
  once = jax.vmap(lambda k: jax.random.fold_in(k, np.iinfo(np.uint32).max))
  draw = jax.vmap(lambda k: jax.random.randint(k, (), 0, num_tokens))
  return draw(once(keys))


def gumbel(keys: Array, shape: tuple[int, ...]) -> Array:
  """Standard Gumbel noise float32[B, *shape], each sample from its own key."""
  return jax.vmap(lambda k: jax.random.gumbel(k, shape, jnp.float32))(keys)


def observe(features: Array, logits: Array, masked: Array) -> Observation:
  """What a policy may read of float[B, N, D] features, [B, N, K] logits."""
  law = jax.nn.log_softmax(logits, axis=-1)
  return Observation(
    features, jnp.exp(law.max(-1)), step_lib.entropy(law), masked
  )


def widened(
  logits: Array, unconditional: Array | None
) -> tuple[Array, Array | None]:
  """Logits of `denoise` as a step reads them, float32[B, N, K] or None."""
  return jax.tree.map(lambda x: x.astype(jnp.float32), (logits, unconditional))


def denoise(
  denoiser: Denoiser,
  tokens: Array,
  condition: Condition,
  null_condition: Condition | None,
  cache: Cache = (),
) -> tuple[Array, Array, Array | None, Cache]:
  """Conditional and, with a null condition, unconditional pass in one call.

  The two passes are interleaved as [B, 2, N]: on a batch that is sharded over
  devices this moves no token, which concatenation would.

  Args:
    denoiser: the network, `(tokens, condition, cache) -> ...`.
    tokens: int32[B, N].
    condition: pytree with leading axis B.
    null_condition: the same pytree for one sample, without that axis; None
      leaves the unconditional pass out.
    cache: what the denoiser reuses, with leading axis 2B when guided.

  Returns:
    features [B, N, D] of the conditional pass, its logits [B, N, K], the
    unconditional logits or None, and the cache.
  """
  if null_condition is None:
    features, logits, cache = denoiser(tokens, condition, cache)
    return features, logits, None, cache

  def pair(given, null):
    null = jnp.broadcast_to(null, given.shape)
    both = jnp.stack([given, null], axis=1)
    return both.reshape((-1,) + given.shape[1:])

  features, logits, cache = denoiser(
    pair(tokens, tokens), jax.tree.map(pair, condition, null_condition), cache
  )
  features = features.reshape((-1, 2) + features.shape[1:])[:, 0]
  logits = logits.reshape((-1, 2) + logits.shape[1:])
  return features, logits[:, 0], logits[:, 1], cache


def denoise_some(
  guided: tuple[bool, ...],
  denoiser: Denoiser,
  step: Array | int,
  tokens: Array,
  condition: Condition,
  null_condition: Condition | None,
  cache: Cache = (),
) -> tuple[Array, Array, Array | None, Cache]:
  """The passes of a step: one where it is unguided, else as `denoise`.

  Args:
    guided: of each step, static; all alike if there is no null condition.
    denoiser: see `denoise`, as of all that is not said here.
    step: int32[], which step it is; an integer if that is known.
    tokens: int32[B, N].
    condition: pytree with leading axis B.
    null_condition: of one sample, or None.
    cache: with leading axis 2B if any step is guided.

  Returns:
    As `denoise`. Where other steps are guided, an unguided one has its own
    logits in place of the unconditional ones: any guidance leaves them as they
    are.
  """
  both = lambda tokens, cache: denoise(
    denoiser, tokens, condition, null_condition, cache
  )

  def alone(tokens: Array, cache: Cache) -> tuple[Array, Array, Array, Cache]:
    pairs = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), cache)
    one = jax.tree.map(lambda x: x[:, 0], pairs)
    features, logits, one = denoiser(tokens, condition, one)
    # What the other half remembers is older, which its own mask says.
    pairs = jax.tree.map(lambda x, new: x.at[:, 0].set(new), pairs, one)
    cache = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), pairs)
    return features, logits, logits, cache

  if len({*guided}) == 1:
    return both(tokens, cache)
  if isinstance(step, int):
    return (both if guided[step] else alone)(tokens, cache)
  return jax.lax.cond(jnp.array(guided)[step], both, alone, tokens, cache)


def begin(
  tokens: Array,
  mask_token: int,
  keys: Array,
  options: step_lib.StepOptions,
  priority: Array | None,
) -> tuple[DecodeState, Array | None]:
  """The state before the first step, and the order that each sample follows."""
  state = step_lib.start(tokens, mask_token, options)
  if options.rolled:
    assert priority is not None
    priority = jnp.broadcast_to(priority, tokens.shape)
    priority = step_lib.rolled(priority, _offsets(keys, tokens.shape[1]))
  return state, priority


def decode(
  denoiser: Denoiser | Sequence[Denoiser],
  policy: Policy,
  *,
  tokens: Array,
  condition: Condition,
  null_condition: Condition | None,
  keys: Array,
  num_steps: int,
  mask_token: int,
  guided: guidance.Guided = True,
  options: step_lib.StepOptions = step_lib.ADANAT,
  priority: Array | None = None,
  policy_carry: Carry = (),
  cache: Cache = (),
  noise: Noise | None = None,
  first: FirstStep | None = None,
  taken: Array | None = None,
  record: bool = False,
  keep_features: bool = True,
) -> Decoded:
  """Decodes a batch of canvases in `num_steps` parallel steps.

  Args:
    denoiser: `(tokens, condition, cache) -> (features, logits, cache)`; or T of
      them, one a step: the loop is unrolled then, and caches may change shape.
    policy: `(step, observation, keys, carry) -> (values, aux, carry)`.
    tokens: int32[B, N], the canvas to start from; `mask_token` where unknown.
      Given tokens never change.
    condition: pytree with leading axis B.
    null_condition: the null condition of one sample, or None to decode without
      guidance at half the cost (`guidance_scale` is then ignored).
    keys: key[B], one typed key a sample.
    num_steps: T, static.
    mask_token: `codebook_size`.
    guided: with a null condition, whether every step is guided, or which of the
      T steps; static. The others do not run the unconditional pass.
    options: see `step.StepOptions`. By an adaptive rule `num_steps` is the
      most there may be: the last one makes all known, and when every sample of
      the batch is full no more are taken.
    priority: float32[N] or float32[B, N], for the order `'given'`.
    policy_carry: what the policy carries from step to step, at the start.
    cache: what the denoiser carries from step to step, at the start; of 2B rows
      if any step is guided.
    noise: Gumbel noise to use instead of drawing it from `keys`.
    first: what the denoiser would return in the first step, which does not run
      it then, of canvases that are all masked; the cache stays as given.
      `passes` counts it as if it had run: it is what the samples took.
    taken: int32[], how many of the steps are taken, the first ones, where that
      is an argument of the compiled program; None for all. What is recorded of
      the others is meaningless.
    record: whether to return the trajectory.
    keep_features: whether that has the features.

  Returns:
    Complete tokens, int32[B, N], and the trajectory if `record`.
  """
  chex.assert_rank([tokens, keys], [2, 1])
  chex.assert_equal_shape_prefix([tokens, keys], 1)
  state, priority = begin(tokens, mask_token, keys, options, priority)
  if null_condition is None:
    guided = False
  guided = guidance.checked(guided, num_steps, 'decode')
  if not guided:
    null_condition = None
  is_guided = guidance.each_step(guided, num_steps)
  count = num_steps if taken is None else taken

  def network(
    denoiser: Denoiser, step: Array | int, *canvas: Any
  ) -> tuple[Any, ...]:
    tokens, cache = canvas
    conditions = condition, null_condition
    return denoise_some(is_guided, denoiser, step, tokens, *conditions, cache)

  def given(step: Array, tokens: Array, cache: Cache) -> tuple[Any, ...]:
    del step, tokens
    assert first is not None
    features, logits = first.of_samples()
    unconditional = first.unconditional
    if unconditional is not None:
      unconditional = jnp.broadcast_to(unconditional, logits.shape)
    elif guided:
      unconditional = logits  # Only later steps are guided.
    return features, logits, unconditional, cache

  def body(carry: Any, inputs: Any, run: Any) -> tuple[Any, Any]:
    state, policy_carry, cache = carry
    step, given_noise = inputs
    masked = state.tokens == mask_token
    features, logits, unconditional, cache = run(step, state.tokens, cache)
    logits, unconditional = widened(logits, unconditional)
    policy_keys, token_keys, confidence_keys = step_keys(keys, step)
    values, aux, policy_carry = policy(
      step, observe(features, logits, masked), policy_keys, policy_carry
    )
    if unconditional is not None:
      logits = step_lib.guide(logits, unconditional, values.guidance_scale)
    if given_noise is None:
      given_noise = Noise(
        tokens=gumbel(token_keys, logits.shape[1:]),
        confidence=gumbel(confidence_keys, logits.shape[1:2]),
      )
    share, left = jnp.divmod(state.num_unknown, count)
    new_state = step_lib.decode_step(
      state,
      logits,
      values,
      given_noise.tokens,
      given_noise.confidence,
      mask_token=mask_token,
      options=options,
      priority=priority,
      even_share=share + (step < left),
    )
    needed = masked.any(-1) if options.revisit == 'never' else True
    of_step: Any
    if isinstance(guided, tuple):
      of_step = jnp.array(guidance.passes(guided, num_steps))[step]
    else:
      of_step = 1 + guided
    passes = state.passes + of_step * needed
    new_state = dataclasses.replace(new_state, passes=passes)
    recorded = None
    if record:
      is_masked = new_state.tokens == mask_token
      recorded = Trajectory(
        features=features if keep_features else None,
        tokens=new_state.tokens,
        sampled=new_state.sampled,
        values=values,
        aux=aux,
        num_committed=masked.sum(-1) - is_masked.sum(-1),
      )
    return (new_state, policy_carry, cache), recorded

  def body_if_needed(carry: Any, inputs: Any, run: Any) -> tuple[Any, Any]:
    """Skips the step if it is not taken, or every sample is full."""
    take = functools.partial(body, run=run)
    _, recorded = jax.eval_shape(take, carry, inputs)

    def skip(carry: Any, inputs: Any) -> tuple[Any, Any]:
      del inputs
      if recorded is None:
        return carry, None
      rows = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), recorded)
      state = carry[0]
      return carry, dataclasses.replace(
        rows, tokens=state.tokens, sampled=state.sampled
      )

    is_needed: Any = True
    if options.is_adaptive:
      is_needed = (carry[0].tokens == mask_token).any()
    if taken is not None:
      is_needed &= inputs[0] < taken
    return jax.lax.cond(is_needed, take, skip, carry, inputs)

  may_skip = options.is_adaptive or taken is not None
  one_step = body_if_needed if may_skip else body
  steps = jnp.arange(num_steps, dtype=jnp.int32)
  carry, inputs = (state, policy_carry, cache), (steps, noise)
  if callable(denoiser):
    run: Any = functools.partial(network, denoiser)
    if first is not None:
      run = lambda step, *canvas: jax.lax.cond(
        step == 0, given, functools.partial(network, denoiser), step, *canvas
      )
    (state, _, _), trajectory = jax.lax.scan(
      functools.partial(one_step, run=run), carry, inputs
    )
  else:
    chex.assert_equal(len(denoiser), num_steps)
    runs: list[Any] = [
      lambda _, *canvas, one=one, t=t: network(one, t, *canvas)
      for t, one in enumerate(denoiser)
    ]
    if first is not None:
      runs[0] = given
    rows = []
    for t, one in enumerate(runs):
      inputs_of = jax.tree.map(lambda x, t=t: x[t], inputs)
      carry, row = one_step(carry, inputs_of, one)
      rows.append(row)
    state, _, _ = carry
    trajectory = jax.tree.map(lambda *x: jnp.stack(x), *rows)
  assert state.passes is not None  # `start` has set it to 0.
  return Decoded(state.sampled, state.passes, trajectory)
