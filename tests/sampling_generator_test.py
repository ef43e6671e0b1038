"""The generator that users hold, and the tables they give it."""

import dataclasses
import json
from typing import Any

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import loop, schedules, tables
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.learning.agent import Agent
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import sample
from adanat_jax.types import PolicyValues

N, K, C, T = 4, 5, 3, 3


@dataclasses.dataclass(frozen=True)
class ToyNat:
  """Stands for a module: its parameters decide between tokens."""

  num_tokens: int = N
  codebook_size: int = K

  def apply(self, variables: Any, tokens: Any, condition: Any) -> Any:
    words, head = variables['params']
    x = words[tokens] + condition[:, None, None]
    features = jnp.sin(x + x.mean(1, keepdims=True))
    return features, features @ head


@dataclasses.dataclass(frozen=True)
class ToyTokenizer:
  def apply(self, variables: Any, tokens: Any, method: str) -> Any:
    assert method == 'decode_tokens'
    return tokens.reshape(-1, 2, 2, 1) / variables['params']


def toy_actor_critic(params, features, step):
  signal = features.mean((1, 2))
  return signal[:, None] + params + step[:, None] / T, signal


def toy_generator(batch_size=4):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.float32(rng.normal(size=shape))
  agent = Agent(jnp.float32(0.1), jnp.zeros((T, 4)), toy_actor_critic)
  return Generator(
    ToyNat(),
    (draw(K + 1, 6), draw(6, K)),
    ToyTokenizer(),
    jnp.float32(K),
    C,
    {T: agent},
    batch_size,
  )


class GeneratorTest(parameterized.TestCase):
  @parameterized.parameters('learned', 'hand-made')
  def test_batches_do_not_show(self, policy):
    labels = [0, 1, 2, 2, 1, 0, 1]
    expected = toy_generator(7).generate(labels, T, 3, policy, record=True)
    self.assertEqual(expected.images.shape, (7, 2, 2, 1))
    self.assertIsNone(expected.trajectory.features)
    for batch_size in (1, 3, 16):
      got = toy_generator(batch_size).generate(
        labels, T, 3, policy, record=True
      )
      np.testing.assert_array_equal(got.tokens, expected.tokens)
      np.testing.assert_array_equal(got.images, expected.images)
      np.testing.assert_array_equal(
        got.trajectory.tokens, expected.trajectory.tokens
      )
    # Image i does not ask what comes after it; a seed is another image.
    fewer = toy_generator(4).sample(labels[:3], T, 3, policy)
    np.testing.assert_array_equal(fewer, expected.images[:3])
    other = toy_generator(4).sample(labels[:3], T, 4, policy)
    self.assertTrue((other != fewer).any())

  def test_tables_a_sample_are_cut_with_the_batches(self):
    # Sample i: temperature 0 if i is even, hot if it is odd.
    hot = np.broadcast_to(30.0 * (np.arange(6) % 2), (T, 6))
    table = PolicyValues(np.full((T, 6), 0.5), hot, np.zeros((T, 6)), hot * 0)
    run = lambda size, seed: toy_generator(size).decode(
      Schedule('mine', table), np.zeros(6, np.int32), jax.random.key(seed)
    )
    expected = run(6, 0).tokens
    np.testing.assert_array_equal(run(4, 0).tokens, expected)
    other = run(4, 1).tokens
    np.testing.assert_array_equal(other[::2], expected[::2])
    self.assertTrue((other[1::2] != expected[1::2]).any())

  def test_given_tokens_stay(self):
    tokens = np.full((2, N), K, np.int32)
    tokens[0, 1:] = [1, 2, 3]
    result = toy_generator().generate([0, 1], T, tokens=tokens)
    np.testing.assert_array_equal(result.tokens[0, 1:], [1, 2, 3])
    self.assertLess(result.tokens.max(), K)
    self.assertIsNone(result.trajectory)

  def test_a_table_decodes_as_the_loop_does(self):
    generator = toy_generator(3)
    table = tables.hand_made(T, total=N, guidance_scale=1.0)
    result = generator.generate([2, 0, 1], T, 5, table)

    def denoiser(tokens, condition, cache):
      params = {'params': generator.nat_params}
      return *generator.nat.apply(params, tokens, condition), cache

    expected = loop.decode(
      denoiser,
      schedules.table_policy(table),
      tokens=loop.full_mask(3, N, K),
      condition=jnp.array([2, 0, 1]),
      null_condition=jnp.int32(C),
      keys=loop.sample_keys(jax.random.key(5), 3),
      num_steps=T,
      mask_token=K,
    )
    np.testing.assert_array_equal(result.tokens, expected.tokens)

  @parameterized.parameters(
    (dict(labels=[0, C]), r'labels hold \[0, 3\]; classes are 0 to 2'),
    (dict(labels=[-1]), r'labels hold \[-1\]'),
    (dict(labels=[]), r'labels are \[\]; give a list of class ids'),
    (dict(labels=[0.5]), r'labels are \[0.5\]'),
    (dict(num_steps=0), 'num_steps is 0; at least 1'),
    (dict(num_steps=2), 'no policy was learned for num_steps=2; learned: 3'),
    (
      dict(policy='best'),
      "policy is 'best'; give learned, hand-made, maskgit, .*, a Schedule",
    ),
    (dict(policy=3), 'policy is 3; give learned'),
    (
      dict(policy=Schedule('mine', tables.hand_made(4))),
      'the schedule mine has 4 steps, num_steps is 3',
    ),
    (dict(policy='autonat_large'), "AutoNAT-L's schedule has 8 steps"),
    (
      dict(policy=tables.hand_made(4)),
      'the table has 4 steps, num_steps is 3',
    ),
    (dict(tokens=np.zeros((2, N), int)), r'tokens are int64\[2, \d+\]; give'),
    (dict(tokens=np.zeros((1, N))), 'tokens are float64'),
    (dict(tokens=np.full((1, N), K + 1)), 'tokens lie in .* allowed are 0'),
  )
  def test_mistakes_are_one_clear_line(self, changes, message):
    arguments = {'labels': [0], 'num_steps': T, **changes}
    with self.assertRaisesRegex(UserError, message) as caught:
      toy_generator().generate(**arguments)
    self.assertLen(str(caught.exception).splitlines(), 1)


class ReadTableTest(parameterized.TestCase):
  def read(self, content):
    path = self.create_tempfile(content=content).full_path
    return sample.read_table(path)

  GOOD = dict(
    mask_ratio=[0.5, 0],
    sampling_temperature=[1, 1],
    masking_temperature=[2, 0],
    guidance_scale=[0, 1.5],
  )

  def test_good(self):
    table = self.read(json.dumps(self.GOOD))
    np.testing.assert_array_equal(table.mask_ratio, [0.5, 0])
    np.testing.assert_array_equal(table.guidance_scale, [0, 1.5])

  @parameterized.parameters(
    ('{', 'not valid JSON'),
    ('[1]', 'must be JSON with the lists mask_ratio, sampling'),
    (json.dumps({'mask_ratio': [1]}), 'must be JSON with the lists'),
    (json.dumps(GOOD | {'mask_ratio': [1.5, 0]}), r'mask_ratio must lie in'),
    (json.dumps(GOOD | {'mask_ratio': ['a', 0]}), 'must be JSON'),
    (json.dumps(GOOD | {'guidance_scale': [-1, 0]}), 'may be negative'),
    (json.dumps(GOOD | {'guidance_scale': [1]}), 'must have equal lengths'),
    (json.dumps(dict.fromkeys(GOOD, [])), 'equal lengths, at least 1'),
    (json.dumps(GOOD | {'guidance_scale': [float('nan'), 0]}), 'NaN is no num'),
    (json.dumps(GOOD | {'guidance_scale': [1e300, 0]}), 'be finite'),
    (json.dumps(GOOD | {'guidance_scale': [10**400, 0]}), 'must be a number'),
  )
  def test_mistakes(self, content, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      self.read(content)
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_no_file(self):
    with self.assertRaisesRegex(UserError, 'table=nowhere.json: no such file'):
      sample.read_table('nowhere.json')
    with self.assertRaisesRegex(UserError, 'needs config.sample.table'):
      sample.read_table('')


if __name__ == '__main__':
  absltest.main()
