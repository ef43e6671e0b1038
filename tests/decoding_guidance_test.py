"""Decodes of which some steps are guided: what they cost and give."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import guidance, likelihood, loop, schedules, tables
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.decoding.step import StepOptions
from adanat_jax.errors import UserError

# T steps, B samples, N tokens, K codes; the null condition.
T, B, N, K = 4, 3, 6, 5
NULL = jnp.int32(2)
SOME = (False, True, False, True)


def denoiser(tokens, condition, cache):
  """Logits depend on the canvas and the condition; the cache counts calls."""
  seen = (tokens * jnp.arange(1, N + 1)).sum(-1) + 7 * condition
  logits = jnp.sin(seen[:, None, None] + jnp.arange(N * K).reshape(N, K))
  features = jnp.broadcast_to(seen[:, None, None], (len(tokens), N, 1))
  return features, 2 * logits, jax.tree.map(lambda x: x + 1, cache)


def table(scales):
  made = tables.hand_made(T, guidance_scale=1.0)
  return made.replace(guidance_scale=jnp.float32(scales))


def decode(scales, guided, denoise=denoiser, null=NULL, **options):
  return jax.jit(
    lambda: loop.decode(
      denoise,
      tables.table_policy(table(scales)),
      tokens=loop.full_mask(B, N, K),
      condition=jnp.arange(B) % 2,
      null_condition=null,
      keys=loop.sample_keys(jax.random.key(0), B),
      num_steps=T,
      mask_token=K,
      guided=guided,
      record=True,
      **options,
    )
  )()


def assert_same(ours, theirs):
  jax.tree.map(
    np.testing.assert_array_equal, ours.trajectory, theirs.trajectory
  )
  np.testing.assert_array_equal(ours.tokens, theirs.tokens)


class GuidanceTest(parameterized.TestCase):
  def test_equal_steps_are_the_program_of_one_value(self):
    scales = np.full(T, 3.0)
    for value in (True, False):
      plain = decode(scales, value)
      each = decode(scales, (value,) * T)
      assert_same(each, plain)
      np.testing.assert_array_equal(each.passes, [T * (1 + value)] * B)
      self.assertIs(Schedule('s', table(scales), [value] * T).guided, value)
    assert_same(plain, decode(scales, True, null=None))
    self.assertFalse(np.array_equal(plain.tokens, decode(scales, True).tokens))

  def test_an_unguided_step_is_one_pass_and_has_no_guidance(self):
    scales = np.float32([1.0, 3.0, 2.0, 4.0])
    ours = decode(scales, SOME)
    # No guidance is guidance by 0, which costs two passes.
    theirs = decode(scales * SOME, True)
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(
      ours.trajectory.tokens, theirs.trajectory.tokens
    )
    np.testing.assert_array_equal(ours.passes, [6] * B)
    np.testing.assert_array_equal(theirs.passes, [8] * B)
    # Unrolled, no step runs more rows than it needs.
    rows = [[] for _ in range(T)]

    def counted(step, tokens, condition, cache):
      rows[step].append(len(tokens))
      return denoiser(tokens, condition, cache)

    steps = [functools.partial(counted, step) for step in range(T)]
    assert_same(decode(scales, SOME, steps), ours)
    self.assertEqual(rows, [[B], [2 * B], [B], [2 * B]])

  def test_given_first_step(self):
    empty = loop.full_mask(B, N, K)
    features, logits, _ = denoiser(empty, jnp.arange(B) % 2, ())
    first = loop.FirstStep(features, logits, None)
    scales = np.full(T, 3.0)
    assert_same(decode(scales, SOME, first=first), decode(scales, SOME))

  def test_each_half_of_a_cache_knows_what_it_saw(self):
    calls = np.zeros(2 * B, np.int32)
    tokens = loop.full_mask(B, N, K)
    conditions = jnp.arange(B) % 2, NULL
    denoise = jax.jit(
      lambda step, calls: loop.denoise_some(
        SOME, denoiser, step, tokens, *conditions, calls
      )
    )
    for step in range(T):
      *_, unconditional, calls = denoise(step, calls)
      self.assertEqual(unconditional.shape, (B, N, K))
    np.testing.assert_array_equal(calls, [4, 2] * B)

  def test_likelihood(self):
    grids = decode(np.zeros(T), False).tokens
    scales = np.float32([1.0, 3.0, 2.0, 4.0])
    of = jax.jit(
      lambda scales, guided: likelihood.log_likelihood(
        denoiser,
        tables.table_policy(table(scales)),
        grids,
        jnp.arange(B) % 2,
        NULL,
        num_steps=T,
        mask_token=K,
        guided=guided,
        options=StepOptions(order='max_prob', noise=False),
      ),
      static_argnums=1,
    )
    np.testing.assert_array_equal(of(scales, (False,) * T), of(scales, False))
    ours, passes = of(scales, SOME)
    np.testing.assert_array_equal(ours, of(scales * SOME, True)[0])
    np.testing.assert_array_equal(passes, [6] * B)

  @parameterized.parameters(
    ((-1,), (False, False, False, True)),
    ((0, 2), (True, False, True, False)),
    ((2, 3, 9), (False, False, True, True)),
    ((-4, 1, 2, 3), True),
  )
  def test_steps_by_number(self, numbers, expected):
    self.assertEqual(guidance.of_steps(numbers, T), expected)
    made = schedules.make(
      f'maskgit(guidance_scale=2.0, guided_steps={numbers})', T, 16
    )
    self.assertEqual(made.guided, expected)
    np.testing.assert_array_equal(
      guidance.passes(expected, T),
      1 + np.broadcast_to(np.asarray(expected, int), T),
    )

  @parameterized.parameters(
    ('maskgit(guidance_scale=2.0, guided_steps=(4,))', 'count from 0 to 3'),
    ('maskgit(guided_steps=(2,))', 'is unguided: give a guidance_scale'),
  )
  def test_steps_that_are_not_guided(self, name, message):
    with self.assertRaisesRegex(UserError, message):
      schedules.make(name, T, 16)

  @parameterized.parameters((('yes',) * T,), ((True, False),), (1,))
  def test_mistakes(self, guided):
    with self.assertRaisesRegex(UserError, 'one a step'):
      Schedule('mine', table(np.zeros(T)), guided)


if __name__ == '__main__':
  absltest.main()
