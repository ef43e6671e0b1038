"""PPO: numbers worked out by hand, and what an update reads and changes."""

import collections
import dataclasses
import functools
import math

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.decoding import actions, loop
from adanat_jax.learning import ppo
from adanat_jax.learning.agent import (
  Agent,
  gaussian_log_prob,
  non_adaptive,
)
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.types import Observation

# T steps, B trajectories, N tokens, D width, K codes, A actions.
T, B, N, D, K, A = 3, 8, 4, 6, 5, actions.NUM_ACTIONS

# Compiling takes the time.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def table_actor_critic(params, features, step):
  """Means from a table of steps and the features' mean; a linear critic."""
  features = features.astype(jnp.float32)
  mean = params['table'][step] + features.mean((1, 2))[:, None]
  return mean, features.mean(1) @ params['value']


def table_params():
  return {'table': jnp.zeros((T, A)), 'value': jnp.ones(D)}


def make_rollout(**changes):
  """Random trajectories."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.float32(rng.normal(size=shape))
  rollout = ppo.Rollout(
    observations=draw(T, B, N, D),
    actions=draw(T, B, A),
    log_probs=-5 + draw(T, B),
    values=draw(T, B),
    returns=draw(T, B),
    weights=jnp.ones((T, A)),
  )
  return rollout.replace(**changes)


def denoiser(tokens, condition, cache, dtype=jnp.float32):
  """A toy NAT whose features depend on what is revealed."""
  rng = np.random.default_rng(3)
  words, head = (jnp.float32(rng.normal(size=s)) for s in ((K + 1, D), (D, K)))
  x = words[tokens] + condition[:, None, None]
  features = jnp.tanh(x + x.mean(1, keepdims=True)).astype(dtype)
  return features, features.astype(jnp.float32) @ head, cache


@functools.cache
def network_actor_critic():
  """Small policy networks, no weight of which is zero."""
  sizes = dict(grid_size=2, hidden_size=8, conv_width=4, mlp_widths=(8, 8))
  networks = {
    name: PolicyNetwork(num_outputs=num_outputs, **sizes)
    for name, num_outputs in (('actor', A), ('critic', 1))
  }
  rng = np.random.default_rng(0)
  params = {
    name: jax.tree.map(
      lambda x: jnp.float32(0.3 * rng.normal(size=x.shape)),
      jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, N, D)), 0)[
        'params'
      ],
    )
    for name, network in networks.items()
  }

  def actor_critic(params, features, step):
    mean, value = (
      networks[name].apply({'params': params[name]}, features, step)
      for name in ('actor', 'critic')
    )
    return mean, value[:, 0]

  return params, actor_critic


def collect(agent, std, weights, dtype=jnp.float32):
  """Trajectories of an exploring agent."""
  return loop.decode(
    functools.partial(denoiser, dtype=dtype),
    agent.policy(std, weights),
    tokens=loop.full_mask(B, N, K),
    condition=jnp.arange(B) % 2,
    null_condition=jnp.int32(2),
    keys=loop.sample_keys(jax.random.key(1), B),
    num_steps=T,
    mask_token=K,
    record=True,
  ).trajectory


def run_update(rollout, config, actor_critic=table_actor_critic):
  params = table_params()
  optimizer = ppo.make_optimizer(config)
  update = functools.partial(
    ppo.update, actor_critic=actor_critic, optimizer=optimizer, constants=config
  )
  return jit(update)(
    params, optimizer.init(params), rollout, 0.5, jax.random.key(0)
  )


class HandComputedTest(parameterized.TestCase):
  def test_loss(self):
    # Clipped to [0.8, 1.2]; one action entry, std 1, old value 1.
    #
    #   ratio r  advantage A  r A    clip(r) A  min    return R  V now  (V-R)^2
    #   1.5      +1            1.5    1.2        1.2   2         1      1
    #   1.5      -1           -1.5   -1.2       -1.5   0         1      1
    #   0.5      +1            0.5    0.8        0.5   2         2      0
    #   0.5      -1           -0.5   -0.8       -0.8   0         0      0
    #   1.1      +1            1.1    1.1        1.1   2         2      0
    #   0.9      -1           -0.9   -0.9       -0.9   0         0      0
    #
    # surrogate = -(-0.4) / 6, value loss = 2 / 6, 4 of 6 are clipped.
    ratio = np.float32([[1.5, 1.5, 0.5], [0.5, 1.1, 0.9]])
    log_prob = -0.5 * math.log(2 * math.pi)  # Of an action at its mean.
    rollout = ppo.Rollout(
      observations=jnp.zeros((2, 3, 1, 1)),
      actions=jnp.full((2, 3, 1), 7.0),
      log_probs=log_prob - jnp.log(ratio),
      values=jnp.ones((2, 3)),
      returns=jnp.float32([[2, 0, 2], [0, 2, 0]]),
      weights=jnp.ones((2, 1)),
    )
    loss, metrics = ppo.ppo_loss(
      mean=jnp.full((2, 3, 1), 7.0),
      values=jnp.float32([[1, 1, 2], [0, 2, 0]]),
      rollout=rollout,
      std=1.0,
      constants=ppo.PPOConfig(
        clip_epsilon=0.2, value_coefficient=0.5, entropy_coefficient=0.01
      ),
    )
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    expected = {
      'loss': 0.4 / 6 + 0.5 * 2 / 6 - 0.01 * entropy,
      'surrogate': 0.4 / 6,
      'value_loss': 2 / 6,
      'entropy': entropy,
      # r - 1 - ln r, an estimate of the divergence that is never negative.
      'kl': np.mean(ratio - 1 - np.log(ratio)),
      'clip_fraction': 4 / 6,
      'ratio_deviation': 0.5,
    }
    self.assertCountEqual(metrics, expected)
    self.assertAlmostEqual(float(loss), expected['loss'], 5)
    for name, value in expected.items():
      self.assertAlmostEqual(float(metrics[name]), value, 5, name)

  def test_gaussian(self):
    # (1 - 0) / 0.5 = 2: -2 - ln(2 pi) / 2 - ln 0.5; and the same without -2.
    at_mean = -0.5 * math.log(2 * math.pi) + math.log(2)
    action, mean = jnp.float32([1.0, 3.0]), jnp.float32([0.0, 3.0])
    density = functools.partial(gaussian_log_prob, action, mean, 0.5)
    self.assertAlmostEqual(float(density()), 2 * at_mean - 2, 5)
    self.assertAlmostEqual(float(density(jnp.array([1, 0]))), at_mean - 2, 5)
    # 3 entries of std 0.5: 3 (ln(2 pi e) / 2 - ln 2).
    self.assertAlmostEqual(
      float(ppo.gaussian_entropy(0.5, 3)),
      3 * (0.5 * math.log(2 * math.pi * math.e) - math.log(2)),
      5,
    )

  def test_standardise(self):
    # Mean 4, unbiased variance (9 + 1 + 1 + 9) / 3.
    result = ppo.standardise(jnp.float32([[1, 3], [5, 7]]))
    expected = np.array([[-3, -1], [1, 3]]) / math.sqrt(20 / 3)
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    # Equal returns teach nothing, and divide by no zero.
    np.testing.assert_array_equal(ppo.standardise(jnp.ones((2, 3))), 0)

  @parameterized.parameters(
    (ppo.OURS, 5, {0: 0.6, 2: 0.4, 4: 0.2}),
    (ppo.OURS, 1, {0: 0.6}),
  )
  def test_exploration(self, config, total, expected):
    traced = jax.jit(lambda i: ppo.exploration_std(i, total, config))
    # In any order: nothing but the iteration counts.
    for iteration, std in reversed(expected.items()):
      got = ppo.exploration_std(iteration, total, config)
      self.assertAlmostEqual(float(got), std, 6)
      self.assertAlmostEqual(float(traced(jnp.int32(iteration))), std, 6)

  def test_exploration_of_each_action(self):
    stds = (0.6, 0.4, 0.2, 0.1)
    paper = dataclasses.replace(ppo.PAPER, std_per_action=stds)
    # Each is the one that it would be as the only one.
    for config in (paper, dataclasses.replace(ppo.OURS, std_per_action=stds)):
      for iteration in (0, 300, 499, 500, 999):
        expected = [
          ppo.exploration_std(
            iteration,
            1000,
            dataclasses.replace(config, std_per_action=(), initial_std=std),
          )
          for std in stds
        ]
        np.testing.assert_allclose(
          ppo.exploration_std(jnp.int32(iteration), 1000, config),
          expected,
          rtol=1e-6,
        )
    np.testing.assert_allclose(
      ppo.exploration_std(500, 1000, paper), [0.3, 0.1, 0.1, 0.1], rtol=1e-6
    )

  def test_the_loss_with_a_deviation_for_each_action(self):
    random = np.random.default_rng(0)
    mean = jnp.float32(random.normal(size=(T, B, A)))
    rollout = make_rollout(weights=ppo.action_weights(T, drop_dead=True))
    loss = functools.partial(
      ppo.ppo_loss, mean, rollout.values, rollout, constants=ppo.PAPER
    )
    one, several = loss(0.5)[1], loss(jnp.full(A, 0.5))[1]
    for name, value in one.items():
      np.testing.assert_allclose(several[name], value, rtol=1e-5)
    # The entropy is the sum over entries that count: 1 of a step less twice.
    stds = np.float32([0.6, 0.4, 0.2, 0.1])
    each = 0.5 * np.log(2 * np.pi * np.e) + np.log(stds)
    found = loss(jnp.asarray(stds))[1]['entropy']
    self.assertAlmostEqual(
      float(found), (T * each.sum() - each[:2].sum()) / T, 5
    )
    # The density is the product of the entries' own.
    action, at = rollout.actions[0, 0], mean[0, 0]
    density = sum(
      float(gaussian_log_prob(action[i : i + 1], at[i : i + 1], stds[i]))
      for i in range(A)
    )
    self.assertAlmostEqual(
      float(gaussian_log_prob(action, at, jnp.asarray(stds))), density, 3
    )

  def test_explained_variance(self):
    # Var R = 1.25; R - V = [0, 0, 0, 1] has variance 3 / 16: 1 - 0.15.
    rollout = make_rollout()
    rows = lambda *x: jnp.repeat(jnp.float32(x).reshape(1, 4), 2 * T, 0)
    metrics = run_update(
      rollout.replace(
        returns=rows(1, 2, 3, 4).reshape(T, B),
        values=rows(1, 2, 3, 3).reshape(T, B),
      ),
      ppo.PAPER,
    )[2]
    self.assertAlmostEqual(float(metrics['explained_variance']), 0.85, 5)

  def test_gradient_norm_limit(self):
    gradient = {'a': jnp.float32([3.0, 0.0]), 'b': jnp.float32([[4.0]])}
    # Adam's first moment after one step is a tenth of what reaches it.
    for limit, expected in ((0.0, 5.0), (1.0, 1.0), (9.0, 5.0)):
      optimizer = ppo.make_optimizer(ppo.PPOConfig(max_gradient_norm=limit))
      _, state = optimizer.update(gradient, optimizer.init(gradient))
      moment = optax.tree_utils.tree_get(state, 'mu')
      self.assertAlmostEqual(float(10 * optax.tree.norm(moment)), expected, 4)


class UpdateTest(parameterized.TestCase):
  @parameterized.parameters(1, 2, 4)
  def test_minibatches_are_whole_trajectories_each_once(self, count):
    seen = []

    def spy(params, features, step):
      jax.debug.callback(
        lambda x, t: seen.append((np.asarray(x[:, 0, 0]), np.asarray(t))),
        features,
        step,
      )
      return table_actor_critic(params, features, step)

    # Feature = 100 step + trajectory; the other fields must follow it.
    tag = 100.0 * jnp.arange(T)[:, None] + jnp.arange(B)
    tags = jnp.broadcast_to(tag[:, :, None, None], (T, B, N, D))
    rollout = make_rollout(observations=tags)
    config = ppo.PPOConfig(num_epochs=2, num_minibatches=count)
    run_update(rollout, config, actor_critic=spy)
    jax.effects_barrier()
    self.assertLen(seen, 2 * count)
    total = collections.Counter()
    for tags, steps in seen:
      np.testing.assert_array_equal(tags // 100, steps)
      trajectories = collections.Counter((tags % 100).tolist())
      self.assertLen(trajectories, B // count)
      self.assertEqual(set(trajectories.values()), {T})
      total.update(trajectories.keys())
    self.assertEqual(dict(total), dict.fromkeys(range(B), 2))

  def test_minibatches_keep_what_belongs_together(self):
    # If actions were matched with other trajectories' old densities, ratios
    # would not be 1: the mean is each trajectory's own.
    rollout = make_rollout()
    mean, _ = table_actor_critic(
      table_params(),
      rollout.observations.reshape(-1, N, D),
      jnp.repeat(jnp.arange(T), B),
    )
    mean = mean.reshape(T, B, A)
    action = mean + rollout.actions
    log_probs = gaussian_log_prob(action, mean, 0.5)
    rollout = rollout.replace(actions=action, log_probs=log_probs)
    config = ppo.PPOConfig(num_minibatches=4)
    deviation = lambda r: run_update(r, config)[2]['first_ratio_deviation']
    self.assertLess(float(deviation(rollout)), 1e-4)
    mixed = rollout.replace(log_probs=rollout.log_probs[:, ::-1])
    self.assertGreater(float(deviation(mixed)), 0.1)

  @parameterized.parameters(jnp.float32, jnp.bfloat16)
  def test_first_ratios_are_one(self, dtype):
    agent = Agent(table_params(), jnp.zeros((T, A)), table_actor_critic)
    weights = ppo.action_weights(T, drop_dead=True)
    trajectory = jit(lambda a: collect(a, 0.5, weights, dtype))(agent)
    self.assertEqual(trajectory.features.dtype, dtype)

    def deviation(features):
      rollout = make_rollout(
        observations=features,
        actions=trajectory.aux.action,
        log_probs=trajectory.aux.log_prob,
        values=trajectory.aux.value,
        weights=weights,
      )
      config = dataclasses.replace(ppo.OURS, num_minibatches=2)
      metrics = run_update(rollout, config)[2]
      return float(metrics['first_ratio_deviation'])

    self.assertLess(deviation(trajectory.features), 1e-4)
    # Features rounded only for learning would show.
    if dtype == jnp.float32:
      rounded = trajectory.features.astype(jnp.bfloat16)
      self.assertGreater(deviation(rounded), 5e-4)

  def test_dead_actions_get_no_gradient(self):
    rollout = make_rollout(log_probs=jnp.full((T, B), -6.0))
    gradients = {}
    for drop in (True, False):
      weights = ppo.action_weights(T, drop)
      loss = lambda mean, weights=weights: ppo.ppo_loss(
        mean, rollout.values, rollout.replace(weights=weights), 2.0, ppo.PAPER
      )[0]
      gradients[drop] = np.abs(jax.grad(loss)(jnp.zeros((T, B, A)))).sum(1)
    np.testing.assert_array_equal(gradients[True][-1, :2], 0)
    self.assertTrue((gradients[True][-1, 2:] > 0).all())
    self.assertTrue((gradients[False] > 0).all())

  def test_guidance_is_dead_where_nothing_is_guided(self):
    weights = ppo.action_weights(3, True, guided=False)
    np.testing.assert_array_equal(weights, [[1, 1, 1, 0]] * 2 + [[0, 0, 1, 0]])

  def test_what_is_not_learned_is_dead(self):
    learned = ('sampling_temperature', 'mask_ratio')
    for drop, last in ((False, [1, 0, 1, 0]), (True, [0, 0, 1, 0])):
      np.testing.assert_array_equal(
        ppo.action_weights(3, drop, learned=learned),
        [[1, 0, 1, 0]] * 2 + [last],
      )

  def test_dead_actions_do_not_change_the_image(self):
    # The residual's entries: mask ratio, masking temperature, the other two.
    params, actor_critic = network_actor_critic()

    @jit
    def final(residual):
      agent = Agent(params, residual, actor_critic)
      trajectory = collect(agent, 0.5, None)
      return trajectory.sampled[-1], trajectory.values.mask_ratio[-1]

    tokens, ratio = final(jnp.zeros((T, A)))
    dead = jnp.zeros((T, A)).at[-1, :2].set(jnp.float32([-15.0, 15.0]))
    same, other_ratio = final(dead)
    np.testing.assert_array_equal(tokens, same)
    self.assertTrue((other_ratio < 0.5 * ratio).all())
    alive = dead.at[-1, 2:].set(9.0)
    self.assertTrue((final(alive)[0] != tokens).any())
    earlier = jnp.zeros((T, A)).at[0, 0].set(-9.0)
    self.assertTrue((final(earlier)[0] != tokens).any())

  def test_good_actions_become_likely_and_values_right(self):
    rng = np.random.default_rng(0)
    sign = jnp.tile(jnp.float32([1, -1]), (T, B // 2))
    action = jnp.float32(1 + 0.5 * rng.normal(size=(T, B, A)))
    action = action.at[..., 0].set(1 + 0.5 * sign)  # One std off the mean.
    rollout = make_rollout(
      observations=jnp.ones((T, B, N, D)),
      actions=action,
      log_probs=gaussian_log_prob(action, jnp.ones(A), 0.5),
      returns=sign + 3.0,
      values=jnp.full((T, B), 3.0),
    )
    config = ppo.PPOConfig(learning_rate=0.01, num_epochs=4)
    params, _, metrics = run_update(rollout, config)
    self.assertTrue((params['table'][:, 0] > 0.03).all())
    # From 6 towards the mean return, 3.
    self.assertLess(float(params['value'].sum()), 5.8)
    self.assertGreater(float(metrics['kl']), 0)

  def test_agent_without_exploration_and_without_eyes(self):
    params, actor_critic = network_actor_critic()
    features = jax.random.normal(jax.random.key(0), (B, N, D))
    keys = loop.sample_keys(jax.random.key(1), B)
    residual = jnp.arange(T * A, dtype=jnp.float32).reshape(T, A) / 10

    @functools.partial(jit, static_argnums=(0, 1))
    def ask(actor_critic, std=None, step=1):
      agent = Agent(params, residual, actor_critic)
      observation = Observation(features, None, None, None)
      return agent.policy(std)(step, observation, keys, ())

    mean, value = jit(actor_critic)(params, features, jnp.ones(B, int))
    values, aux, _ = ask(actor_critic)
    np.testing.assert_allclose(aux.action, mean, rtol=1e-4)
    np.testing.assert_allclose(aux.value, value, rtol=1e-4)
    np.testing.assert_allclose(
      values.mask_ratio, jax.nn.sigmoid(mean[:, 0] + 0.4), rtol=1e-5
    )
    _, explored, _ = ask(actor_critic, 0.5)
    # Each sample draws for itself.
    self.assertLen(np.unique(explored.action - mean), B * A)
    expected = gaussian_log_prob(explored.action, mean, 0.5)
    np.testing.assert_allclose(explored.log_prob, expected, rtol=1e-4)
    unseeing = non_adaptive(actor_critic, T)
    blind = ask(unseeing)[1].action
    np.testing.assert_array_equal(blind, jnp.broadcast_to(blind[:1], (B, A)))
    zeros = jnp.zeros_like(features)
    expected, _ = jit(actor_critic)(params, zeros, jnp.ones(B, int))
    np.testing.assert_allclose(blind, expected, rtol=1e-4)
    self.assertGreater(float(mean.std(0).min()), 1e-3)
    other = ask(unseeing, None, 2)[1].action
    self.assertGreater(float(jnp.abs(other - blind).max()), 1e-4)


if __name__ == '__main__':
  absltest.main()
