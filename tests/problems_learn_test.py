"""A policy is learned for anybody's generator, where the best is known."""

import functools
import json
import pathlib
import shutil
import sys
import tempfile

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import adanat_jax
from adanat_jax import Problem, UserError
from adanat_jax.learning import ppo
from adanat_jax.runtime import journal, metric_writer
from support import children

# N tokens, K codes, T steps, C classes.
N, K, T, C = 6, 3, 2, 2
FAST = ppo.PPOConfig(
  learning_rate=0.01,
  num_epochs=3,
  num_minibatches=2,
  max_gradient_norm=1.0,
  drop_dead_actions=True,
  final_std=0.2,
  std_schedule='linear',
)


def denoiser(tokens, condition=None):
  """Token 0 is likelier, a little more where much is known."""
  del condition
  known = (tokens != K).mean(-1)[:, None, None]
  return (1 + 0.1 * known) * jnp.zeros((*tokens.shape, K)).at[..., 0].set(1)


def zeros_share(samples, conditions, key):
  """The share of tokens 0: largest at a low sampling temperature."""
  del conditions, key
  return (samples == 0).mean(-1)


learn = functools.partial(
  adanat_jax.learn, num_steps=T, batch_size=64, width=8, constants=FAST
)


def learn_little(directory=None, seed=1):
  """A guided policy, after four iterations."""
  problem = Problem(
    lambda tokens, c: denoiser(tokens) + 0.5 * jax.nn.one_hot(c, K)[:, None],
    N,
    K,
    conditions=C,
    null_condition=C,
    decoder=lambda tokens: tokens.reshape(-1, 2, 3),
  )
  reward = lambda samples, c, key: (samples == c[:, None, None]).mean((1, 2))
  schedule = learn(
    problem, reward, iterations=4, directory=directory, seed=seed, save_every=2,
    batch_size=32,
  )  # fmt: skip
  samples = adanat_jax.decode(problem, schedule, np.arange(10) % C, seed=5)
  return schedule, samples


class LearnTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    directory = tempfile.TemporaryDirectory()
    cls.addClassCleanup(directory.cleanup)
    cls.whole = pathlib.Path(directory.name)
    cls.expected, cls.samples = learn_little(cls.whole)

  def test_a_known_reward_is_improved(self):
    problem = Problem(denoiser, N, K)
    schedule = learn(problem, zeros_share, iterations=30)
    self.assertFalse(schedule.guided)
    decode = functools.partial(adanat_jax.decode, problem, seed=7, record=True)
    samples, before = decode(schedule, 400), decode('maskgit', 400, num_steps=T)
    self.assertLess((before.tokens == 0).mean(), 0.75)
    self.assertGreater((samples.tokens == 0).mean(), 0.9)
    temperature = samples.trajectory.values.sampling_temperature
    self.assertLess(temperature.max(), 0.6)

  def test_stopped_and_continued_is_never_stopped(self):
    whole, expected = self.whole, self.expected
    cut = pathlib.Path(self.create_tempdir())
    shutil.copytree(whole, cut, dirs_exist_ok=True)
    shutil.rmtree(cut / 'checkpoints' / '4')
    (cut / journal.COMPLETE_FILE).unlink()
    found, samples = learn_little(cut)
    jax.tree.map(
      np.testing.assert_array_equal, found.policy.params, expected.policy.params
    )
    self.assertEqual(samples.passes.tolist(), [2 * T] * 10)
    rows = [
      [{k: v for k, v in row.items() if not k.startswith('time/')} for row in f]
      for f in map(metric_writer.read_metrics, (whole, cut))
    ]
    self.assertEqual(*rows)
    # What is finished is read; something else is not mixed with it.
    again, _ = learn_little(whole)
    jax.tree.map(
      np.testing.assert_array_equal, again.policy.params, expected.policy.params
    )
    with self.assertRaisesRegex(UserError, 'training with seed=1, and 2 is'):
      learn_little(whole, seed=2)

  def test_on_two_devices_it_is_the_same(self):
    there = children.run(__file__, 2)
    self.assertEqual(there['devices'], 2)
    self.assertEqual(there['tokens'], self.samples.tokens.tolist())
    for ours, theirs in zip(
      jax.tree.leaves(self.expected.policy.params), there['params'], strict=True
    ):
      np.testing.assert_allclose(ours, theirs, atol=2e-4)


class MistakesTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('of_a_batch', lambda s, c, k: 1.0, 'reward returns a float'),
    ('shape', lambda s, c, k: s * 1.0, r'float32\[64, 6\] for 64 samples'),
    (
      'nan',
      lambda s, c, k: s.mean(-1) * jnp.nan,
      'reward returns.*with NaN',
    ),
    ('fails', lambda s, c: 0, 'the reward fails on .*positional'),
    ('untraced', lambda s, c, k: float(s[0, 0]), 'jax.jit can compile'),
  )
  def test_of_rewards(self, reward, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      learn(Problem(denoiser, N, K), reward)
    self.assertLen(str(caught.exception).splitlines(), 1)

  @parameterized.named_parameters(
    (
      'logits',
      lambda t: denoiser(t).at[:, 0, 0].set(jnp.inf),
      'returns logits',
    ),
    (
      'features',
      lambda t: (denoiser(t) * jnp.nan, denoiser(t)),
      'returns features',
    ),
  )
  def test_of_denoisers(self, wrong, message):
    with self.assertRaisesRegex(UserError, message + '.*with NaN'):
      learn(Problem(wrong, N, K), zeros_share)

  @parameterized.named_parameters(
    ('batch', dict(batch_size=63), 'must be a multiple of 2'),
    ('steps', dict(num_steps=0), 'num_steps is 0'),
    ('start', dict(start=lambda *_: None), 'give a table of 2 numbers'),
    ('seed', dict(seed=-1), 'seed is -1'),
  )
  def test_of_arguments(self, changes, message):
    with self.assertRaisesRegex(UserError, message):
      learn(Problem(denoiser, N, K), zeros_share, **changes)


def child():
  """Learns in a process with other devices, and says what."""
  schedule, samples = learn_little()
  params = [x.tolist() for x in jax.tree.leaves(schedule.policy.params)]
  print(
    json.dumps(
      {
        'devices': jax.device_count(),
        'tokens': samples.tokens.tolist(),
        'params': params,
      }
    )
  )


if __name__ == '__main__':
  if '--child' in sys.argv:
    child()
  else:
    absltest.main()
