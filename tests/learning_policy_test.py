"""A policy learns, by the real train step, where the best is known by hand."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import actions, loop, tables
from adanat_jax.learning import policy, ppo, rewards
from adanat_jax.learning.agent import Agent, non_adaptive
from adanat_jax.runtime import leaves

# N tokens, K codes, two classes, T steps, B trajectories an iteration.
N, K, T, B = 8, 3, 2, 64
NUM_ITERATIONS = 60
CONFIG = ppo.PPOConfig(
  learning_rate=0.01,
  num_minibatches=4,
  max_gradient_norm=1.0,
  adam_epsilon=1e-5,
  drop_dead_actions=True,
  final_std=0.2,
  std_schedule='linear',
)

# Small programs, each run once: compiling takes the time.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)


def linear(params, features, step):
  """Actor and critic, each a table of steps and a line through a feature."""
  signal = features[:, 0, :1]
  table, line = params['table'][step], params['line']
  return (
    table[:, :-1] + signal * line[:-1],
    table[:, -1] + signal[:, 0] * line[-1],
  )


def initial_params():
  size = actions.NUM_ACTIONS + 1
  return {'table': jnp.zeros((T, size)), 'line': jnp.zeros(size)}


def problem_of(logits_of):
  """A decoder: `(tokens, condition) -> logits [B, N, K]`; images are tokens.

  The only feature is which class is asked for, as -1 and 1.
  """

  def denoiser(tokens, condition, cache):
    features = jnp.where(condition == 1, 1.0, -1.0)[:, None, None]
    logits = logits_of(tokens, condition)
    return jnp.broadcast_to(features, (*tokens.shape, 1)), logits, cache

  return policy.FrozenParts(
    denoiser, lambda tokens: tokens, N, K, num_classes=2
  )


def zeros_share(images, condition, key):
  """The share of tokens that are 0."""
  del condition, key
  return (images == 0).mean(-1)


def train(problem, reward, actor_critic=linear, **options):
  """Trains a policy that starts from nothing; returns it and its history."""
  train_step = policy.make_train_step(
    problem,
    actor_critic,
    actions.no_residual(T),
    rewards.fixed_model(reward),
    CONFIG,
    key=jax.random.key(0),
    batch_size=B,
    num_iterations=NUM_ITERATIONS,
    fresh_rollouts=False,
    **options,
  )
  state = policy.initial_state(initial_params(), CONFIG)
  state, history = jit(
    lambda state: jax.lax.scan(
      lambda state, i: train_step(state, None, i),
      state,
      jnp.arange(NUM_ITERATIONS),
    )
  )(state)
  learned = options.get('learned', actions.NAMES)
  dial = jnp.zeros(()) if 'second_reward' in options else None
  agent = Agent(
    *(state.params, actions.no_residual(T), actor_critic),
    learned=learned,
    dial=dial,
  )
  return agent, history


def evaluate(problem, agent, reward):
  """The mean reward of a policy's mean actions, and what it did."""

  @jit
  def decode(agent):
    condition = jnp.arange(512) % 2
    keys = loop.sample_keys(jax.random.key(9), 512)
    decoded = loop.decode(
      problem.denoiser,
      agent.policy(),
      tokens=loop.full_mask(512, N, K),
      condition=condition,
      null_condition=jnp.int32(2),
      keys=keys,
      policy_carry=agent.initial_carry(keys),
      num_steps=T,
      mask_token=K,
      record=True,
    )
    return reward(decoded.tokens, condition, None).mean(), decoded.trajectory

  value, trajectory = decode(agent)
  return float(value), trajectory


class SmoothingTest(parameterized.TestCase):
  """Smoothed actions, against LeapLabTHU/AdaGen's way of writing them."""

  @parameterized.parameters(
    ([1, 0, 0, 0, 0], [1, 0.8, 0.64, 0.512, 0.4096]),
    ([0, 1, 0, 0, 0], [0, 0.2, 0.16, 0.128, 0.1024]),
    ([1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    ([1, -1, 1, -1, 1], [1, 0.6, 0.68, 0.344, 0.4752]),
  )
  def test_numbers(self, raw, expected):
    taken = []
    for step, action in enumerate(jnp.float32(raw)):
      before = taken[-1] if taken else 99.0
      taken.append(actions.smooth(step, before, action, 0.8))
    np.testing.assert_allclose(taken, expected, rtol=1e-5)

  def test_a_decode_takes_what_the_original_takes(self):
    # Its residual of the mask ratio for T = 16, made for smoothing by 0.8.
    residual = np.float32(
      [5.3331, -1.6641, -0.2255, 0.0766, 0.0688, -0.0624, -0.2572, -0.4944]
      + [-0.7696, -1.0881, -1.4651, -1.9322, -2.5566, -3.5091, -5.4251]
      + [-37.2694]
    )
    raw = np.float32(np.random.default_rng(0).normal(size=(16, 4)))
    theirs = raw[:, 0] + residual
    for t in range(1, 16):
      theirs[t] = 0.8 * theirs[t - 1] + 0.2 * theirs[t]

    def network(params, features, step):
      return params[step], jnp.zeros(len(features))

    hand_made = actions.published_residual(16)
    agent = Agent(jnp.asarray(raw), hand_made, network, smoothing=0.8)
    trajectory = decode_once(agent)
    np.testing.assert_allclose(
      trajectory.values.mask_ratio[:, 0], jax.nn.sigmoid(theirs), atol=2e-4
    )
    # Learning sees the raw action, and no sample the others.
    np.testing.assert_array_equal(trajectory.aux.action[:, 0], raw)
    still = agent.replace(params=jnp.zeros((16, 4)))
    np.testing.assert_allclose(
      decode_once(still).values.guidance_scale[:, 1],
      tables.adagen(16).guidance_scale,
      rtol=1e-3,
    )


class UnguidedTest(absltest.TestCase):
  def test_the_network_runs_once_a_step(self):
    rows = []

    def denoiser(tokens, condition, cache):
      rows.append((len(tokens), len(cache)))
      shape = tokens.shape
      return jnp.zeros((*shape, 1)), jnp.zeros((*shape, K)), cache

    def collect(guided):
      problem = policy.FrozenParts(
        denoiser,
        lambda tokens: tokens,
        N,
        K,
        num_classes=2,
        empty_cache=lambda condition, rows: jnp.zeros(rows),
        guided=guided,
      )
      agent = Agent(initial_params(), actions.no_residual(T), linear)
      jax.eval_shape(
        lambda key: policy.collect(
          problem,
          agent,
          key,
          batch_size=B,
          num_steps=T,
          std=jnp.float32(0.1),
          weights=jnp.ones((T, 4)),
        ),
        jax.random.key(0),
      )
      return problem.is_guided

    self.assertTrue(collect(True))
    self.assertEqual(rows[0], (2 * B, 2 * B))
    rows.clear()
    self.assertFalse(collect(False))
    self.assertEqual(rows[0], (B, B))
    rows.clear()
    # Either at some steps, and nothing else.
    self.assertTrue(collect((False, True)))
    self.assertEqual({*rows}, {(B, B), (2 * B, 2 * B)})
    np.testing.assert_array_equal(
      ppo.action_weights(T, True, (False, True)), [[1, 1, 1, 0], [0, 0, 1, 1]]
    )


def decode_once(agent):
  """What an agent does with two samples of a network that knows nothing."""
  keys = loop.sample_keys(jax.random.key(0), 2)
  return loop.decode(
    lambda tokens, condition, cache: (
      jnp.zeros((*tokens.shape, 1)),
      jnp.zeros((*tokens.shape, K)),
      cache,
    ),
    agent.policy(),
    policy_carry=agent.initial_carry(keys),
    tokens=loop.full_mask(2, N, K),
    condition=jnp.zeros(2, jnp.int32),
    null_condition=None,
    keys=keys,
    num_steps=agent.num_steps,
    mask_token=K,
    record=True,
  ).trajectory


class LearningTest(absltest.TestCase):
  def test_sampling_temperature(self):
    # Token 0 is right; its logit is 1, the others' 0. It is drawn with
    # probability e^(1/t) / (e^(1/t) + 2): 0.68 at the start, where t = ln 2
    # (a little more, as unlikely tokens are masked and drawn again), and above
    # 0.93 from t = 0.3 down.
    problem = problem_of(
      lambda tokens, condition: jnp.zeros((*tokens.shape, K)).at[..., 0].set(1)
    )
    start = Agent(initial_params(), actions.no_residual(T), linear)
    before, trajectory = evaluate(problem, start, zeros_share)
    np.testing.assert_allclose(
      trajectory.values.sampling_temperature, np.log(2), rtol=1e-5
    )
    self.assertBetween(before, 0.68, 0.8)
    agent, history = train(problem, zeros_share)
    after, trajectory = evaluate(problem, agent, zeros_share)
    self.assertGreater(after, 0.9)
    self.assertLess(float(trajectory.values.sampling_temperature.max()), 0.45)
    self.assertGreater(history['reward'][-5:].mean(), 0.85)
    # The critic comes to know what is to be expected of standardised returns.
    self.assertEqual(history['committed'].shape, (NUM_ITERATIONS, T))
    np.testing.assert_allclose(
      history['exploration_std'][jnp.array([0, -1])], [0.6, 0.2], rtol=1e-5
    )

  def test_some_values_are_learned_and_others_follow_the_schedule(self):
    problem = problem_of(
      lambda tokens, condition: jnp.zeros((*tokens.shape, K)).at[..., 0].set(1)
    )
    agent, history = train(
      problem, zeros_share, learned=('sampling_temperature',)
    )
    value, trajectory = evaluate(problem, agent, zeros_share)
    self.assertGreater(value, 0.9)
    schedule = actions.values_from_action(
      jnp.zeros(4), actions.no_residual(T)[0]
    )
    for name, expected in schedule.by_name().items():
      found = getattr(trajectory.values, name)
      if name == 'sampling_temperature':
        self.assertLess(float(found.max()), 0.45)
        self.assertGreater(float(history[f'{name}_std'].min()), 0.01)
        continue
      # Never explored, and never learned.
      np.testing.assert_array_equal(found, jnp.full_like(found, expected))
      np.testing.assert_allclose(history[f'{name}_std'], 0, atol=1e-6)
    table, line = agent.params['table'], agent.params['line']
    np.testing.assert_array_equal(table[:, np.array([0, 1, 3])], 0)
    np.testing.assert_array_equal(line[np.array([0, 1, 3])], 0)

  def test_what_is_not_learned_is_not_taken_from_a_network(self):
    # As of one that had learned all four.
    params = initial_params() | {'line': jnp.full(5, 0.7)}
    agent = Agent(
      params, actions.no_residual(T), linear, learned=('mask_ratio',)
    )
    problem = problem_of(lambda tokens, _: jnp.zeros((*tokens.shape, K)))
    _, trajectory = evaluate(problem, agent, zeros_share)
    np.testing.assert_array_equal(trajectory.aux.action[..., 1:], 0)
    np.testing.assert_allclose(
      np.unique(trajectory.aux.action[..., 0]), [-0.7, 0.7], rtol=1e-6
    )

  def test_few_tokens_first(self):
    # Blind guesses on an empty canvas, each right in one of three; certainty
    # as soon as one token is known. Masking all but m of 8 tokens after the
    # first step gives (m / 3 + 8 - m) / 8: 2/3 at the start (ratio 1/2), 0.92
    # at best, where the ratio is above 7/8.
    def logits_of(tokens, condition):
      known = (tokens != K).any(-1)
      return jnp.zeros((*tokens.shape, K)).at[..., 0].add(99.0 * known[:, None])

    problem = problem_of(logits_of)
    start = Agent(initial_params(), actions.no_residual(T), linear)
    before, trajectory = evaluate(problem, start, zeros_share)
    np.testing.assert_array_equal(trajectory.num_committed[0], N // 2)
    self.assertAlmostEqual(before, 2 / 3, delta=0.03)
    agent, _ = train(problem, zeros_share)
    after, trajectory = evaluate(problem, agent, zeros_share)
    np.testing.assert_array_equal(trajectory.num_committed[0], 1)
    self.assertGreater(after, 0.88)

  def test_what_is_right_depends_on_the_sample(self):
    # Token 0 is likely (logit 1). Class 1 wants it, class 0 wants it not: the
    # first is served by a low temperature, the second by a high one, and one
    # temperature for both gives exactly 1/2, p + (1 - p) over two.
    problem = problem_of(
      lambda tokens, condition: jnp.zeros((*tokens.shape, K)).at[..., 0].set(1)
    )

    def reward(images, condition, key):
      share = zeros_share(images, condition, key)
      return jnp.where(condition == 1, share, 1 - share)

    adaptive, _ = train(problem, reward)
    value, trajectory = evaluate(problem, adaptive, reward)
    temperature = trajectory.values.sampling_temperature.mean(0)
    self.assertLess(float(temperature[1]), 0.5)
    self.assertGreater(float(temperature[0]), 1.0)
    blind, _ = train(problem, reward, non_adaptive(linear, T))
    blind_value, trajectory = evaluate(problem, blind, reward)
    temperature = trajectory.values.sampling_temperature
    np.testing.assert_allclose(temperature.std(1), 0, atol=1e-6)
    self.assertAlmostEqual(blind_value, 0.5, delta=0.04)
    self.assertGreater(value, blind_value + 0.15)


class DialTest(absltest.TestCase):
  """One reward wants token 0, the other wants it not; 0 is likely."""

  def test_it_goes_from_one_reward_to_the_other(self):
    problem = problem_of(
      lambda tokens, condition: jnp.zeros((*tokens.shape, K)).at[..., 0].set(1)
    )
    seen = []

    def dialled(params, observation, step):
      features, dial = observation
      seen.append((features.shape, dial.shape))
      sign = jnp.ones_like(features) * (2 * dial - 1)[:, None, None]
      return linear(params, sign, step)

    agent, history = train(
      problem,
      zeros_share,
      dialled,
      second_reward=lambda *given: 1 - zeros_share(*given),
    )
    for features, dial in seen:
      self.assertEqual(features[:1], dial)
    np.testing.assert_allclose(
      history['reward'] + history['second_reward'], 1, rtol=1e-5
    )
    at = lambda dial: evaluate(
      problem, agent.replace(dial=jnp.float32(dial)), zeros_share
    )
    values, temperatures = [], []
    for value, trajectory in map(at, (0.0, 0.25, 0.5, 0.75, 1.0)):
      found = trajectory.values.sampling_temperature
      np.testing.assert_allclose(found.std(1), 0, atol=1e-6)
      values.append(value)
      temperatures.append(float(found.mean()))
    self.assertEqual(temperatures, sorted(temperatures))
    self.assertEqual(values, sorted(values, reverse=True))
    self.assertLess(temperatures[0], 0.5)
    self.assertGreater(temperatures[-1], 1.0)

  def test_rewards_of_any_scale_are_blended_alike(self):
    rng = np.random.default_rng(0)
    first, second = np.float32(rng.normal(size=(2, 16)))
    dial = jnp.linspace(0, 1, 16)
    found = policy.blended(first, second, dial)
    scaled = policy.blended(first, 100 * second - 7, dial)
    np.testing.assert_allclose(found, scaled, atol=1e-4)
    # By hand: the ends are one of the two, standardised.
    for i, reward in ((0, first), (-1, second)):
      expected = (reward[i] - reward.mean()) / reward.std(ddof=1)
      self.assertAlmostEqual(float(found[i]), float(expected), delta=1e-5)

  def test_it_is_carried_beside_the_smoothed_action(self):
    keys = loop.sample_keys(jax.random.key(0), 3)
    agent = Agent(
      *(initial_params(), actions.no_residual(T), linear),
      smoothing=0.5,
      dial=jnp.float32(0.3),
    )
    dial, action = agent.initial_carry(keys)
    np.testing.assert_allclose(dial, [0.3] * 3)
    self.assertEqual(action.shape, (3, 4))
    dial, _ = carry = agent.initial_carry(keys, jnp.arange(3.0))
    np.testing.assert_array_equal(dial, [0, 1, 2])
    seen = []

    def network(params, observation, step):
      seen.append(observation[1])
      return jnp.ones((3, 4)), jnp.zeros(3)

    agent = agent.replace(actor_critic=network)
    observation = loop.observe(jnp.zeros((3, N, 1)), jnp.zeros((3, N, K)), True)
    for step, expected in enumerate((1.0, 1.0)):
      _, _, carry = agent.policy()(jnp.int32(step), observation, keys, carry)
      np.testing.assert_array_equal(seen[step], [0, 1, 2])
      np.testing.assert_array_equal(carry[0], [0, 1, 2])
      np.testing.assert_allclose(carry[1], expected)


class TrainStepTest(absltest.TestCase):
  def test_discriminator_sees_used_or_fresh_images(self):
    problem = problem_of(
      lambda tokens, condition: jnp.zeros((*tokens.shape, K))
    )
    rewarded = {}

    def reward(state):
      def of(images, condition, key):
        return zeros_share(images, condition, key) + state['level']

      return of

    def learn(state, real, fakes, fresh, key):
      images, condition = fakes if fresh is None else fresh(key)
      rewarded['shape'] = images.shape, condition.shape
      return {'level': state['level'] + real}, {'seen': (images == 0).mean()}

    step = functools.partial(
      policy.make_train_step,
      problem,
      linear,
      actions.no_residual(T),
      rewards.RewardModel(reward, learn, fakes_per_update=5),
      CONFIG,
      key=jax.random.key(0),
      batch_size=B,
      num_iterations=3,
    )
    state = policy.initial_state(
      initial_params(), CONFIG, {'level': jnp.float32(0.5)}
    )
    results = {}
    for fresh, count in ((False, B), (True, 5)):
      results[fresh] = jit(step(fresh_rollouts=fresh))(
        state, jnp.float32(2.0), jnp.int32(0)
      )
      self.assertEqual(rewarded['shape'], ((count, N), (count,)))
    new, metrics = results[False]
    # The reward was the old discriminator's; the new one is kept.
    self.assertEqual(float(new.adversary['level']), 2.5)
    self.assertAlmostEqual(
      float(metrics['reward']), float(metrics['seen']) + 0.5, 5
    )
    # What the discriminator sees does not reach the policy of this iteration.
    jax.tree.map(
      np.testing.assert_array_equal, new.params, results[True][0].params
    )

  def test_keeps_an_average_that_nothing_depends_on(self):
    problem = problem_of(
      lambda tokens, condition: jnp.zeros((*tokens.shape, K))
    )

    def iterate(ema_decay):
      step = policy.make_train_step(
        problem,
        linear,
        actions.no_residual(T),
        rewards.fixed_model(zeros_share),
        CONFIG,
        key=jax.random.key(0),
        batch_size=B,
        num_iterations=3,
        fresh_rollouts=False,
        ema_decay=ema_decay,
      )
      state = policy.initial_state(
        initial_params(), CONFIG, ema_decay=ema_decay
      )
      return jit(step)(state, None, jnp.int32(0))[0]

    without, averaged = iterate(0.0), iterate(0.9)
    self.assertIsNone(without.average)
    jax.tree.map(np.testing.assert_array_equal, averaged.params, without.params)
    # At the first iteration a tenth of the zeros that it starts from stays.
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, 0.9 * y, rtol=1e-5),
      averaged.average,
      averaged.params,
    )


class AverageTest(absltest.TestCase):
  def average_of_counts(self, decay, iterations):
    """The average of parameters that count the iterations."""
    return jit(
      lambda: jax.lax.scan(
        lambda x, i: (policy.update_average(x, i + 1.0, i, decay), None),
        0.0,
        jnp.arange(iterations),
      )[0]
    )()

  def test_it_is_the_moving_average(self):
    expected = 0.0
    for i in range(40):
      # 0.5 is reached at iteration 8.
      decay = (1 + i) / (10 + i) if i < 8 else 0.5
      expected = decay * expected + (1 - decay) * (i + 1)
    average = self.average_of_counts(0.5, 40)
    np.testing.assert_allclose(average, expected, rtol=1e-6)

  def test_short_trainings_forget_their_start(self):
    for iterations in (20, 150):
      average = self.average_of_counts(1.0, iterations)
      # As a tail of a fifth would, whose middle is a tenth ago.
      np.testing.assert_allclose(average, 0.9 * iterations, atol=2)

  def test_names_in_checkpoints(self):
    # Of all checkpoints since the first release: they must stay readable.
    without = {'params/line', 'params/table', 'adversary/level'} | {
      f'opt_state/1/0/{name}'
      for name in ('count', 'mu/line', 'mu/table', 'nu/line', 'nu/table')
    }
    average = {'average/line', 'average/table'}
    for decay, names in ((0.0, without), (0.9, without | average)):
      state = policy.initial_state(
        initial_params(), CONFIG, {'level': jnp.zeros(())}, ema_decay=decay
      )
      self.assertEqual(set(leaves.by_name(state)), names)


if __name__ == '__main__':
  absltest.main()
