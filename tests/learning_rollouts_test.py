"""Parts of batches, and the ways to keep rollouts: what they do not change."""

import dataclasses
import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import actions, loop
from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import policy as policy_lib, ppo, rewards
from adanat_jax.runtime import batch_parts
from adanat_jax.stages import policy
from support import configs

# T steps, B trajectories, N tokens, K codes, D width.
T, B, N, K, D = 3, 16, 4, 5, 6
PLAIN = policy_lib.RolloutConfig()
CONFIG = ppo.PPOConfig(learning_rate=0.01, num_epochs=2, max_gradient_norm=1.0)

# Small programs, each run once: compiling takes the time.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def denoiser(tokens, condition, cache):
  """A toy NAT whose features depend on what is revealed."""
  rng = np.random.default_rng(3)
  words, head = (jnp.float32(rng.normal(size=s)) for s in ((K + 1, D), (D, K)))
  x = words[tokens] + condition[:, None, None]
  features = jnp.tanh(x + x.mean(1, keepdims=True))
  return features, features @ head, cache


def actor_critic(params, features, step):
  out = features.astype(jnp.float32).mean(1) @ params['kernel']
  out += params['table'][step]
  return out[:, :-1], out[:, -1]


def zeros_share(images, condition, key):
  del key
  return (images == 0).mean(-1) + 0.1 * condition


def initial_params():
  size = actions.NUM_ACTIONS + 1
  kernel = np.random.default_rng(2).normal(size=(D, size))
  return {'kernel': jnp.float32(kernel), 'table': jnp.zeros((T, size))}


def read(prompts):
  """What the denoiser and what the reward takes of prompts float32[B, 2]."""
  return prompts[:, 0] + prompts[:, 1], prompts[:, 1]


CLASSES = policy_lib.FrozenParts(
  denoiser, lambda tokens: tokens, N, K, num_classes=3
)
PROMPTS = dataclasses.replace(
  CLASSES, num_classes=None, read=read, null_condition=jnp.float32(3)
)


def with_table(shift=0):
  """The same, with the first step of every class; `shift`: of another one."""
  features, logits, _ = denoiser(
    loop.full_mask(4, N, K), (jnp.arange(4.0) + shift) % 4, ()
  )
  first = loop.FirstStep(features[:3], logits[:3], logits[3])
  return dataclasses.replace(CLASSES, first=first)


@functools.cache
def iterate(rollouts=PLAIN, prompted=False, shift=None):
  """The policy and the metrics after one iteration of training."""
  prompts, problem = None, PROMPTS if prompted else CLASSES
  if shift is not None:
    problem = with_table(shift)
  if prompted:
    # The classes that are drawn without prompts, taken apart.
    key = jax.random.split(jax.random.fold_in(jax.random.key(1), 0), 4)[0]
    drawn = jax.random.randint(jax.random.split(key)[0], (B,), 0, 3)
    prompts = policy_lib.Prompts(
      jnp.stack([jnp.zeros(B), drawn.astype(jnp.float32)], axis=1)
    )
  train_step = policy_lib.make_train_step(
    problem,
    actor_critic,
    actions.published_residual(T),
    rewards.fixed_model(zeros_share),
    CONFIG,
    key=jax.random.key(1),
    batch_size=B,
    num_iterations=10,
    fresh_rollouts=False,
    rollouts=rollouts,
  )
  state, metrics = jit(train_step)(
    policy_lib.initial_state(initial_params(), CONFIG), None, 0, prompts
  )
  return state.params, metrics


def update(**changes):
  """The policy and the metrics after PPO on random trajectories."""
  config = dataclasses.replace(CONFIG, **changes)
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.float32(rng.normal(size=shape))
  rollout = ppo.Rollout(
    observations=draw(T, B, N, D),
    actions=draw(T, B, actions.NUM_ACTIONS),
    log_probs=-5 + draw(T, B),
    values=draw(T, B),
    returns=draw(T, B),
    weights=jnp.ones((T, actions.NUM_ACTIONS)),
  )
  optimizer = ppo.make_optimizer(config)
  run = functools.partial(
    ppo.update, actor_critic=actor_critic, optimizer=optimizer, constants=config
  )
  params = initial_params()
  params, _, metrics = jit(run)(
    params, optimizer.init(params), rollout, 0.5, jax.random.key(0)
  )
  return params, metrics


class PartsTest(parameterized.TestCase):
  def test_one_group_is_the_permutation_of_the_key(self):
    # The order of all trainings that have been run.
    key = jax.random.key(7)
    rows = batch_parts.shuffled_rows(key, B, groups=1, parts=4)
    expected = jax.random.permutation(key, B).reshape(4, 1, -1)
    np.testing.assert_array_equal(rows, expected)

  @parameterized.parameters(1, 2, 4)
  def test_parts_take_a_like_share_of_every_group(self, groups):
    rows = batch_parts.shuffled_rows(
      jax.random.key(0), B, groups=groups, parts=4
    )
    self.assertEqual(rows.shape, (4, groups, 4 // groups))
    # Sample 100 step + i.
    samples = 100 * jnp.arange(T)[:, None] + jnp.arange(B)
    parts = [np.asarray(batch_parts.pick(samples, part)) for part in rows]
    np.testing.assert_array_equal(
      np.sort(np.concatenate(parts, axis=1)), samples
    )
    for part in parts:
      counts = np.bincount(part[0] // (B // groups))
      np.testing.assert_array_equal(counts, 4 // groups)
      np.testing.assert_array_equal(
        part - part[0], samples[:, :4] - samples[0, :4]
      )
    if groups > 1:
      within = np.asarray(rows).swapaxes(0, 1).reshape(groups, -1)
      self.assertLen({tuple(order) for order in within}, groups)

  def test_in_turn(self):
    x = jnp.arange(B)
    keys = jax.random.split(jax.random.key(0), B)
    seen = []

    def function(inputs):
      x, keys = inputs
      seen.append(len(x))
      noise = jax.vmap(lambda k: jax.random.bits(k, (T,)))(keys)
      return x[None], jnp.moveaxis(noise, 0, 1)

    whole = function((x, keys))
    parts = jit(lambda x: batch_parts.map_in_parts(function, x, 4))((x, keys))
    self.assertEqual(set(seen[1:]), {B // 4})
    jax.tree.map(np.testing.assert_array_equal, whole, parts)

  def test_samples_repeated_beside_their_steps(self):
    samples = jnp.arange(B * 2).reshape(1, B, 2)
    repeated = batch_parts.repeat_steps(batch_parts.flatten_steps(samples), T)
    every_step = jnp.broadcast_to(samples, (T, B, 2))
    np.testing.assert_array_equal(
      repeated, batch_parts.flatten_steps(every_step)
    )

  def test_flattened_steps_come_back(self):
    x = jnp.arange(T * B * 2).reshape(T, B, 2)
    flat = batch_parts.flatten_steps(x)
    np.testing.assert_array_equal(flat, x.reshape(-1, 2))
    np.testing.assert_array_equal(batch_parts.unflatten_steps(flat, T), x)


class SameLearningTest(parameterized.TestCase):
  """What saves memory gives the policy that the plain iteration gives."""

  def assert_same(self, first, second, rtol=1e-5):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-5),
      first,
      second,
    )

  @parameterized.parameters(
    dict(num_minibatches=1, micro_batches=4),
    dict(num_minibatches=2, micro_batches=2, shuffle_groups=4),
  )
  def test_micro_batches(self, micro_batches, **config):
    whole = update(**config)
    self.assert_same(update(micro_batches=micro_batches, **config), whole)
    self.assertGreater(float(whole[1]['kl']), 1e-4)

  def test_recomputed_and_in_turn(self):
    rollouts = policy_lib.RolloutConfig(features='recompute', size=4)
    self.assert_same(iterate(rollouts), iterate())

  def test_prompts_are_read_as_classes_are_taken(self):
    self.assert_same(iterate(prompted=True), iterate())
    rollouts = policy_lib.RolloutConfig(features='recompute', size=4)
    self.assert_same(iterate(rollouts, prompted=True), iterate())

  def test_first_step_from_a_table(self):
    rollouts = policy_lib.RolloutConfig(features='recompute', size=4)
    self.assert_same(iterate(rollouts, shift=0), iterate(rollouts))
    # That of another class leads elsewhere.
    other = iterate(rollouts, shift=1)[1]['reward']
    self.assertGreater(abs(other - iterate(rollouts)[1]['reward']), 1e-3)

  @parameterized.parameters('store', 'recompute')
  def test_first_ratios_are_one_on_rounded_features(self, features):
    rollouts = policy_lib.RolloutConfig(features=features, dtype='bfloat16')
    rounded, plain = iterate(rollouts)[1], iterate()[1]
    self.assertLess(float(rounded['first_ratio_deviation']), 1e-4)
    self.assertLess(float(plain['first_ratio_deviation']), 1e-4)
    # The policy did see other features.
    difference = float(abs(rounded['loss'] - plain['loss']))
    self.assertBetween(difference, 1e-6, 1e-2)


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    # 32 trajectories, 4 minibatches, 16 images for the discriminator.
    ('policy.ppo.micro_batches', 3, '4 minibatches of 3 micro-batches'),
    ('policy.ppo.shuffle_groups', 16, 'drawn from 16 groups'),
    ('policy.rollout_size', 12, 'divides the batches of 32'),
  )
  def test_refuses(self, field, value, words):
    config = configs.load('digits.py:tiny', {field: value})
    with self.assertRaises(UserError) as caught:
      policy.check_config(Experiment(config, 'unused'))
    self.assertIn(words, str(caught.exception))

  def test_accepts(self):
    policy.check_config(
      Experiment(
        configs.load(
          'digits.py:tiny',
          {
            'policy.ppo.micro_batches': 2,
            'policy.ppo.shuffle_groups': 4,
            'policy.rollout_size': 8,
            'policy.rollout_features': 'recompute',
          },
        ),
        'unused',
      )
    )


if __name__ == '__main__':
  absltest.main()
