"""Anybody's generator is decoded by anything, and mistakes are one line."""

import dataclasses
import functools

from absl.testing import absltest, parameterized
from flax import linen, nnx
import jax
import jax.numpy as jnp
import numpy as np

import adanat_jax
from adanat_jax import Problem, UserError
from adanat_jax.decoding import loop, schedules, tables
from adanat_jax.learning.agent import Agent
from adanat_jax.types import PolicyValues

# N tokens, K codes, C classes, D width.
N, K, C, D = 6, 5, 3, 4


class Linen(linen.Module):
  @linen.compact
  def __call__(self, tokens, condition):
    x = (
      linen.Embed(K + 1, D)(tokens) + linen.Embed(C + 1, D)(condition)[:, None]
    )
    x = jnp.tanh(x + x.mean(1, keepdims=True))
    return x, linen.Dense(K)(x)


class NNX(nnx.Module):
  def __init__(self, rngs):
    self.tokens = nnx.Embed(K + 1, D, rngs=rngs)
    self.head = nnx.Linear(D, K, rngs=rngs)

  def __call__(self, tokens):
    return self.head(self.tokens(tokens).mean(1, keepdims=True) + jnp.eye(N, D))


def plain(tokens, condition):
  """Logits of token i are larger where its neighbour is i, or the class is."""
  near = jax.nn.one_hot(jnp.roll(tokens, 1, axis=1), K)
  return 2 * near + jax.nn.one_hot(condition, K)[:, None]


@functools.cache
def problems():
  module = Linen()
  params = module.init(
    jax.random.key(0), jnp.zeros((1, N), int), jnp.zeros(1, int)
  )
  return {
    'linen': Problem(
      lambda tokens, c: module.apply(params, tokens, c),
      N, K, C, null_condition=C, grid=(2, 3),
    ),
    'nnx': Problem(NNX(nnx.Rngs(0)), N, K),
    'plain': Problem(
      plain, N, K, conditions=np.arange(C), null_condition=np.int32(K),
      decoder=lambda tokens: {'even': tokens % 2 == 0},
    ),
  }  # fmt: skip


def blind(step, observation, keys, carry):
  """A policy of somebody's own: numbers in place of arrays will do."""
  del observation, keys
  return PolicyValues((3 - step) / 4, 1.0, 0.5, 0.0), (), carry


class DecodeTest(parameterized.TestCase):
  @parameterized.parameters('linen', 'nnx', 'plain')
  def test_is_the_loop_with_the_same_network(self, name):
    problem = problems()[name]
    table = tables.hand_made(4, total=N, guidance_scale=2.0)
    conditions = None if name == 'nnx' else np.array([0, 2, 1, 0, 1])
    samples = adanat_jax.decode(
      problem, table, 5 if conditions is None else conditions, seed=3,
      record=True,
    )  # fmt: skip

    def denoiser(tokens, condition, cache):
      given = (tokens,) if condition is None else (tokens, condition)
      found = problem.denoiser(*given)
      logits = found[1] if isinstance(found, tuple) else found
      return logits, logits, cache

    expected = loop.decode(
      denoiser,
      tables.table_policy(table),
      tokens=loop.full_mask(5, N, K),
      condition=conditions,
      null_condition=problem.null_condition,
      keys=loop.sample_keys(jax.random.key(3), 5),
      num_steps=4,
      mask_token=K,
      record=True,
    )
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(
      samples.trajectory.tokens, expected.trajectory.tokens
    )
    passes = 4 if problem.null_condition is None else 8
    np.testing.assert_array_equal(samples.passes, [passes] * 5)
    self.assertIsNone(samples.trajectory.features)
    if name == 'plain':
      even = samples.tokens % 2 == 0
      np.testing.assert_array_equal(samples.images['even'], even)
    else:
      self.assertIsNone(samples.images)

  def test_all_that_decides_a_decode(self):
    problem = problems()['nnx']
    table = tables.of_numbers(
      4, np.arange(3, -1, -1) / 4, masking_temperature=0.5
    )
    lists = {k: v.tolist() for k, v in table.by_name().items()}
    agent = Agent(
      None,
      jnp.zeros((4, 4)),
      lambda params, features, step: (jnp.zeros((len(step), 4)), 0.0 * step),
    )
    decode = functools.partial(adanat_jax.decode, problem, conditions=3, seed=1)
    expected = decode(table).tokens
    for given in (
      lists, adanat_jax.Schedule('mine', table, False),
      jax.tree.map(lambda x: np.tile(x[:, None], 3), table),
    ):  # fmt: skip
      np.testing.assert_array_equal(decode(given).tokens, expected)
    np.testing.assert_array_equal(decode(blind, num_steps=4).tokens, expected)
    self.assertEqual(decode(agent).passes.tolist(), [4] * 3)
    self.assertEqual(decode('maskgit(curve="pow2")').passes.tolist(), [8] * 3)
    halton = decode('halton(guidance_scale=0)', num_steps=6, record=True)
    np.testing.assert_array_equal(halton.trajectory.num_committed.sum(0), N)

  def test_samples_do_not_depend_on_what_comes_with_them(self):
    problem = problems()['plain']
    run = functools.partial(
      adanat_jax.decode, problem, tables.hand_made(3, total=N)
    )
    conditions = np.arange(20) % C
    whole = run(conditions)
    parts = run(conditions, batch_size=8)
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    np.testing.assert_array_equal(whole.images['even'], parts.images['even'])
    np.testing.assert_array_equal(run(conditions[:3]).tokens, whole.tokens[:3])
    # Without conditions they are drawn as the problem says.
    self.assertEqual(run(7).tokens.shape, (7, N))
    given = np.where(np.arange(N) < 2, 1, K) + np.zeros((20, 1), int)
    kept = run(conditions, tokens=given).tokens
    np.testing.assert_array_equal(kept[:, :2], 1)

  def test_a_carry_goes_through_the_steps(self):
    seen = []

    def counting(step, observation, keys, carry):
      seen.append(observation.features.shape)
      one = jnp.ones_like(carry)
      return PolicyValues(one / 2, one, carry, 0 * one), (), carry + 1

    policy = schedules.FunctionPolicy(
      counting, 3, lambda keys: jnp.zeros(len(keys))
    )
    samples = adanat_jax.decode(problems()['nnx'], policy, 2, record=True)
    np.testing.assert_array_equal(
      samples.trajectory.values.masking_temperature[:, 0], [0, 1, 2]
    )
    # Features of the observation, where the network returns none.
    self.assertEqual(seen[0][1:], (N, 3))


class MistakesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    (
      'mask_token_too',
      lambda t: jnp.zeros((*t.shape, K + 1)),
      'the mask token 5;',
    ),
    ('no_mask', lambda t: jnp.zeros((*t.shape, K - 1)), r'float\[B, 6, 5\]'),
    (
      'integers',
      lambda t: jnp.zeros((*t.shape, K), int),
      r'logits int32\[8, 6',
    ),
    ('no_array', lambda t: None, 'a NoneType'),
    ('features', lambda t: (t, jnp.zeros((*t.shape, K))), 'features int32'),
    (
      'fails',
      lambda t: t @ t,
      'denoiser fails on int32.*: TypeError: dot_',
    ),
    ('untraced', lambda t: np.asarray(t) * 0.0, 'that jax.jit can compile'),
  )
  def test_of_denoisers(self, denoiser, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      adanat_jax.decode(Problem(denoiser, N, K), 'maskgit', 2)
    self.assertLen(str(caught.exception).splitlines(), 1)

  @parameterized.named_parameters(
    ('steps', dict(num_steps=0), 'num_steps is 0'),
    ('other', dict(schedule=tables.hand_made(2), num_steps=3), 'has 2 steps'),
    ('guided', dict(schedule='enat_256'), 'no null_condition'),
    ('name', dict(schedule='magic'), "no schedule 'magic'"),
    ('nothing', dict(schedule=None), 'policy is None'),
    ('table', dict(schedule={'mask_ratio': [0.0]}), 'must have the lists'),
    ('lengths', dict(
      schedule=dataclasses.replace(tables.hand_made(2), mask_ratio=np.ones(3))
    ), 'equal lengths'),
    ('function', dict(schedule=lambda *_: 3), 'the policy returned 3'),
    ('count', dict(conditions=0), 'number of samples is 0'),
    ('conditions', dict(conditions=[1]), 'the problem has none'),
    ('tokens', dict(tokens=np.full((2, N), K + 1)), 'are 0 to 5'),
  )  # fmt: skip
  def test_of_requests(self, changes, message):
    given = dict(schedule='maskgit', conditions=2) | changes
    with self.assertRaisesRegex(UserError, message):
      adanat_jax.decode(problems()['nnx'], **given)

  def test_of_problems(self):
    for changes, message in (
      (dict(num_tokens=0), 'num_tokens is 0'),
      (dict(mask_token='[MASK]'), 'mask_token is'),
      (dict(denoiser=None), 'denoiser is None'),
      (dict(null_condition=0), 'but no conditions'),
      (dict(grid=(2, 2)), 'rows, columns'),
    ):
      with self.assertRaisesRegex(UserError, message):
        Problem(**(dict(denoiser=plain, num_tokens=N, mask_token=K) | changes))
    problem = dataclasses.replace(problems()['linen'], decoder=lambda x: x[0])
    with self.assertRaisesRegex(UserError, 'leading axis 8'):
      adanat_jax.decode(problem, 'maskgit', [0, 1])
    wrong = dataclasses.replace(problems()['linen'], null_condition=[C])
    with self.assertRaisesRegex(UserError, r'shapes \[\(\)\], and a condition'):
      adanat_jax.decode(wrong, tables.hand_made(2), [0, 1])
    drawn = dataclasses.replace(
      problems()['linen'], conditions=lambda key, count: jnp.zeros(count, int)
    )
    self.assertLen(adanat_jax.decode(drawn, tables.hand_made(2), 3), 3)
    wrong = dataclasses.replace(drawn, conditions=lambda key, count: np.ones(2))
    with self.assertRaisesRegex(UserError, r'returns \(2,\) for 3 samples'):
      adanat_jax.decode(wrong, tables.hand_made(2), 3)
    with self.assertRaisesRegex(UserError, 'class ids from 0 to 2'):
      adanat_jax.decode(problem, 'maskgit', [0, 3])


if __name__ == '__main__':
  absltest.main()
