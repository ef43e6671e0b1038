"""Look-ahead: what it chooses, what it costs, and that one draw is plain."""

import dataclasses
import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import (
  guidance,
  halton,
  likelihood,
  lookahead,
  loop,
  schedules,
  step as step_lib,
  tables,
)
from adanat_jax.errors import UserError

# T steps, B samples, N tokens, K codes; the null condition.
T, B, N, K = 4, 3, 8, 5
NULL = jnp.int32(2)
SOME = (False, True, False, True)
OPTIONS = {
  'adanat': step_lib.ADANAT,
  'maskgit': step_lib.MASKGIT,
  'halton': step_lib.StepOptions(order='given', clamp='reveal', rolled=True),
  'revisited': step_lib.StepOptions(revisit='uniform', commit='ratio'),
}


def denoiser(tokens, condition, cache):
  """Depends on the canvas, the condition and the last canvas of the sample."""
  weights = jnp.arange(1, N + 1)
  seen = (tokens * weights).sum(-1) + 7 * condition + 3 * cache
  logits = jnp.sin(seen[:, None, None] + jnp.arange(N * K).reshape(N, K))
  features = jnp.broadcast_to(seen[:, None, None], (len(tokens), N, 1))
  return features, 3 * logits, (tokens * weights[::-1]).sum(-1)


def table():
  made = tables.hand_made(T, guidance_scale=2.0, masking_temperature=1.0)
  return made.replace(revisit_rate=jnp.full(T, 0.3))


def arguments(guided, options, **changes):
  rows = B * (1 + bool(guided))
  return {
    **dict(
      tokens=loop.full_mask(B, N, K),
      condition=jnp.arange(B) % 2,
      null_condition=NULL,
      keys=loop.sample_keys(jax.random.key(0), B),
      num_steps=T,
      mask_token=K,
      guided=guided,
      options=options,
      priority=jnp.asarray(halton.priority(2, 4)),
      cache=jnp.zeros(rows, jnp.int32),
      record=True,
    ),
    **changes,
  }


def run(decode, *given, **named):
  return jax.jit(lambda: decode(denoiser, *given, **named))()


@functools.partial(jax.jit, static_argnums=0)
def draw(
  options, state, law, values, priority, condition, cache, token_keys, keys
):
  """One draw of one sample, and what the network says of it."""
  new = step_lib.decode_step(
    state,
    law,
    values,
    loop.gumbel(token_keys, (N, K)),
    loop.gumbel(keys, (N,)),
    mask_token=K,
    options=options,
    priority=priority,
    even_share=N // T,
  )
  seen = denoiser(new.tokens, condition, cache)
  return new, seen, step_lib.entropy(jax.nn.log_softmax(seen[1]))[0]


def by_hand(guided, options, critic=None):
  """The tokens of every step, sample after sample, without any batch."""
  guided = guidance.each_step(guided, T)
  values, rows = table(), []
  for b in range(B):
    keys = loop.sample_keys(jax.random.key(0), 1, b)
    condition = jnp.array([b % 2])
    state, priority = loop.begin(
      loop.full_mask(1, N, K), K, keys, options, halton.priority(2, 4)
    )
    caches = [jnp.zeros(1, jnp.int32)] * 2
    features, logits, caches[0] = denoiser(state.tokens, condition, caches[0])
    tokens = []
    for t in range(T):
      of_step = jax.tree.map(lambda x, t=t: jnp.float32(x)[t][None], values)
      masked = state.tokens == K
      law = logits
      if guided[t]:
        _, null, caches[1] = denoiser(state.tokens, NULL[None], caches[1])
        law = step_lib.guide(logits, null, of_step.guidance_scale)
      _, *drawing = loop.step_keys(keys, jnp.int32(t))
      found = []
      for j in range(options.candidates if t < T - 1 else 1):
        fold = lambda x, j=j: (
          jax.vmap(jax.random.fold_in, (0, None))(x, j) if j else x
        )
        new, seen, entropies = draw(
          options, state, law, of_step, priority, condition, caches[0],
          *map(fold, drawing),
        )  # fmt: skip
        left = np.asarray(new.tokens == K)[0]
        score = -np.asarray(entropies)[left].mean() if left.any() else 0.0
        if options.chosen_by == 'information':
          spent = np.asarray(step_lib.entropy(jax.nn.log_softmax(law)))[0]
          score -= spent[np.asarray(masked)[0] & ~left].sum()
        if options.chosen_by == 'value':
          score = float(critic(t + 1, seen[0])[0])
        found.append((score, new, seen))
      best = int(np.argmax([score for score, *_ in found]))
      _, state, (features, logits, cache) = found[best]
      caches[0] = cache
      tokens.append(np.asarray(state.tokens)[0])
    rows.append(np.stack(tokens))
  return np.stack(rows, 1)


class LookaheadTest(parameterized.TestCase):
  @parameterized.parameters(
    (False, 'halton'), (True, 'maskgit'), (SOME, 'adanat'), (True, 'revisited')
  )
  def test_one_draw_is_the_plain_decode(self, guided, options):
    given = arguments(guided, OPTIONS[options])
    policy = tables.table_policy(table())
    plain = run(loop.decode, policy, **given, keep_features=False)
    ours = run(lookahead.decode_best, policy, **given)
    jax.tree.map(np.testing.assert_array_equal, ours, plain)

  @parameterized.parameters(
    (False, 'entropy', 'adanat'),
    (True, 'information', 'halton'),
    (SOME, 'value', 'adanat'),
  )
  def test_each_sample_goes_on_from_its_best_draw(
    self, guided, chosen_by, options
  ):
    critic = lambda step, features: jnp.cos(step + features[:, 0, 0])
    chosen = dataclasses.replace(
      OPTIONS[options], candidates=3, chosen_by=chosen_by
    )
    ours = run(
      lookahead.decode_best,
      tables.table_policy(table()),
      **arguments(guided, chosen, critic=critic),
    )
    expected = by_hand(guided, chosen, critic)
    np.testing.assert_array_equal(ours.trajectory.tokens, expected)
    plain = run(
      lookahead.decode, table(), **arguments(guided, OPTIONS[options])
    )
    self.assertFalse(np.array_equal(plain.tokens, ours.tokens))
    extra = {False: 0, True: T, SOME: 2}[guided]
    np.testing.assert_array_equal(ours.passes, [1 + 3 * (T - 1) + extra] * B)

  def test_a_first_step_that_is_given(self):
    condition = jnp.arange(B) % 2
    canvas, zeros = loop.full_mask(B, N, K), jnp.zeros(B, jnp.int32)
    options = step_lib.StepOptions(candidates=2)
    # What is cached of a first step that does not run is nothing.
    blind = lambda tokens, condition, cache: (
      *denoiser(tokens, condition, jnp.zeros(len(tokens), jnp.int32))[:2],
      cache,
    )
    features, logits, _ = blind(canvas, condition, zeros)
    null = blind(canvas[:1], NULL[None], zeros[:1])[1][0]
    for guided in (True, SOME):
      given = arguments(guided, options)
      first = loop.FirstStep(features, logits, null if guided is True else None)
      ours, plain = (
        jax.jit(
          lambda x=x, g=given: lookahead.decode(blind, table(), **g, **x)
        )()
        for x in ({'first': first}, {})
      )
      jax.tree.map(np.testing.assert_array_equal, ours, plain)

  def test_passes(self):
    count = lambda *args: guidance.passes(*args).tolist()
    self.assertEqual(count(True, 4, 4), [2, 5, 5, 5])
    self.assertEqual(count(False, 4, 2), [1, 2, 2, 2])
    self.assertEqual(count(SOME, 4, 3), [1, 4, 3, 4])
    schedule = schedules.make('maskgit(candidates=3)', 4, 16)
    self.assertEqual(schedule.passes.sum(), 10)
    self.assertEqual(schedule.label, 'MaskGIT, unguided, best of 3 by entropy')
    self.assertEqual(schedule.name, 'maskgit(candidates=3)')
    self.assertFalse(schedule.options.has_counts)

  def test_mistakes(self):
    for name, message in (
      ('maskgit(candidates=0)', 'candidates is 0; give 1, or up to 64'),
      ('threshold(candidates=2)', "by commit='threshold' draws of a step"),
      ('mdlm(candidates=2)', "by commit='independent' draws of a step"),
      ("maskgit(candidates=2, chosen_by='luck')", "chosen_by is 'luck'; give"),
      ('maskgit(candidates=2.0)', 'cannot be read'),
    ):
      with self.assertRaisesRegex(UserError, message):
        schedules.make(name, T, 16)
    options = step_lib.StepOptions(candidates=2, chosen_by='value')
    with self.assertRaisesRegex(UserError, 'the schedule has no critic'):
      run(lookahead.decode, table(), **arguments(False, options))
    made = schedules.make('random(candidates=2)', T, 16)
    self.assertIn('several draws', likelihood.obstacle(made))


if __name__ == '__main__':
  absltest.main()
