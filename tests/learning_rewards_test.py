"""Rewards: numbers by hand, the true distance's slope, a learning opponent."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.learning import discriminator as discriminator_lib, rewards
from adanat_jax.metrics import frechet
from adanat_jax.models.discriminator import DiscriminatorHeads, advance_spectral

F = 4  # Width of the features.


def weighted_distance(
  features: np.ndarray, weights: np.ndarray, real: frechet.Gaussian
) -> float:
  """The Fréchet distance of weighted samples, in float64."""
  mean = weights @ features
  centred = features - mean
  covariance = (weights[:, None] * centred).T @ centred
  return frechet.frechet_distance(frechet.Gaussian(mean, covariance), real)


def adversarial_reward(features, heads, *, params=None, **options):
  """The reward of a discriminator of these functions, in one state."""
  discriminator = discriminator_lib.Discriminator(
    init=None, features=features, heads=heads, read=None
  )
  options = {'updates': 1, 'batch_size': 8, 'groups': 1, **options}
  model = discriminator_lib.make_reward_model(
    discriminator, optax.sgd(1.0), **options
  )
  return model.reward(discriminator_lib.DiscriminatorState(params, None, None))


class GroupingsTest(absltest.TestCase):
  """An image is scored by how far it lies above the mean of its eight."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.images = jnp.float32(rng.normal(size=(32, 1, 1, 1)))

  def reward(self, groupings, key, groups=1):
    def heads(params, spectral, features, condition, train):
      # The condition must stay with its image.
      eights = (features + condition).reshape(-1, 8)
      return (eights - eights.mean(1, keepdims=True)).reshape(-1, 1), None

    reward = adversarial_reward(
      lambda images, key: images[:, 0, 0, 0],
      heads,
      groupings=groupings,
      groups=groups,
    )
    return reward(self.images, 3.0 * jnp.arange(32), key)

  def test_one_is_the_batch_as_it_is(self):
    x = np.asarray(self.images[:, 0, 0, 0]) + 3 * np.arange(32)
    eights = x.reshape(4, 8)
    expected = 1 / (1 + np.exp(eights.mean(1, keepdims=True) - eights))
    got = self.reward(1, jax.random.key(0))
    np.testing.assert_allclose(got, expected.reshape(-1), rtol=1e-5)

  def test_more_average_over_the_others_of_a_group(self):
    keys = jax.random.split(jax.random.key(1), 400)
    many = lambda count: np.asarray(
      jax.vmap(lambda key: self.reward(count, key))(keys), np.float64
    )
    first = np.asarray(self.reward(1, keys[0]), np.float64)
    two, five = many(2), many(5)
    # Less the batch as it is: one draw, and the mean of four.
    one, four = 2 * two - first, (5 * five - first) / 4
    np.testing.assert_allclose(one.mean(0), four.mean(0), atol=0.08)
    ratio = four.var(0).sum() / one.var(0).sum()
    self.assertBetween(ratio, 0.22, 0.28)

  def test_neighbours_come_from_the_same_part_of_the_batch(self):
    # In parts of eight the group never changes.
    key = jax.random.key(2)
    got = self.reward(5, key, groups=4)
    np.testing.assert_allclose(got, self.reward(1, key), rtol=1e-4)
    self.assertGreater(jnp.abs(self.reward(5, key) - got).max(), 0.05)


class FrechetTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    real = rng.normal(size=(300, F)) @ rng.normal(size=(F, F)) + 1.0
    self.real = frechet.gaussian_of(real)
    self.features = rng.normal(size=(40, F)) * [0.5, 1, 2, 1] - 0.5
    self.influence = np.asarray(
      rewards.frechet_influence(
        jnp.float32(self.features),
        jnp.float32(self.real.mean),
        jnp.float32(self.real.covariance),
      )
    )

  def test_influence_is_the_slope_of_the_distance(self):
    # Sample i gets a little more weight, all others a little less.
    size, step = len(self.features), 1e-5
    even = np.full(size, 1 / size)
    slopes = []
    for i in range(size):
      more, less = (
        weighted_distance(
          self.features, (1 - e) * even + e * np.eye(size)[i], self.real
        )
        for e in (step, -step)
      )
      slopes.append((more - less) / (2 * step))
    scale = np.abs(slopes).max()
    np.testing.assert_allclose(self.influence, slopes, atol=1e-3 * scale)

  def test_mean_is_zero(self):
    scale = np.abs(self.influence).max()
    self.assertLess(abs(self.influence.mean()), 1e-5 * scale)

  def test_leaving_out_the_worst_helps(self):
    order = np.argsort(self.influence)
    distance = lambda keep: frechet.frechet_distance(
      frechet.gaussian_of(self.features[keep]), self.real
    )
    self.assertLess(distance(order[:-1]), distance(order))
    self.assertGreater(distance(order[1:]), distance(order))

  def test_reward_is_minus_the_influence_of_the_features(self):
    reward = rewards.frechet_reward(
      lambda images: images.reshape(-1, F),
      jnp.float32(self.real.mean),
      jnp.float32(self.real.covariance),
    )
    images = jnp.float32(self.features).reshape(-1, 2, 2, 1)
    got = reward(images, None, jax.random.key(0))
    self.assertEqual((got.shape, got.dtype), ((40,), jnp.float32))
    scale = np.abs(self.influence).max()
    np.testing.assert_allclose(got, -self.influence, atol=1e-5 * scale)


class HandComputedTest(absltest.TestCase):
  def test_pretrained(self):
    # softmax(0, ln 3) = 1/4, 3/4.
    logits = jnp.float32([[0, np.log(3)]] * 2)
    reward = rewards.pretrained_reward(lambda images: logits)
    got = reward(jnp.zeros((2, 1, 1, 1)), jnp.array([0, 1]), None)
    np.testing.assert_allclose(got, np.log([0.25, 0.75]), rtol=1e-5)

  def test_adversarial(self):
    # sigmoid(ln 3) = 3/4; the mean of the logits, not of the probabilities.
    logits = jnp.float32([[np.log(3)] * 2, [5, -5], [2 * np.log(3), 0]])
    seen = []

    def features(images, key):
      seen.append(key)
      return images

    def heads(params, spectral, layers, condition, train):
      seen.append((params, spectral, condition, train))
      return logits, spectral

    reward = adversarial_reward(features, heads, params='params')
    key = jax.random.key(3)
    got = reward(jnp.zeros((3, 1, 1, 1)), jnp.arange(3), key)
    np.testing.assert_allclose(got, [0.75, 0.5, 0.75], rtol=1e-5)
    self.assertIs(seen[0], key)
    np.testing.assert_array_equal(seen[1][2], [0, 1, 2])
    self.assertEqual([seen[1][i] for i in (0, 1, 3)], ['params', None, False])

  def test_no_gradient_flows(self):
    images = jax.random.normal(jax.random.key(0), (8, 2, 2, 1))
    flat = lambda images, *unused: images.reshape(8, F)
    for reward in (
      adversarial_reward(flat, lambda *x: (x[2], None)),
      rewards.pretrained_reward(flat),
      rewards.frechet_reward(flat, jnp.zeros(F), jnp.eye(F)),
    ):
      condition = jnp.arange(8) % F
      key = jax.random.key(0)
      values = reward(images, condition, key)
      self.assertGreater(float(values.std()), 0)
      gradient = jax.grad(
        lambda x, reward=reward, c=condition, k=key: reward(x, c, k).sum()
      )(images)
      np.testing.assert_array_equal(gradient, 0)


def linear_heads(params, spectral, features, condition, train):
  """Two equal logits; what stands for spectral vectors counts forwards."""
  logit = features @ params['w'] + params['b'][condition]
  return jnp.stack([logit, logit], -1), spectral + train


class DealTest(absltest.TestCase):
  def test_each_group_stays_in_its_place(self):
    # Rows 0 to 3 and 4 to 7: the halves of every batch come from one of them.
    batches = discriminator_lib.deal(jnp.arange(8), 2, 4, groups=2)
    np.testing.assert_array_equal(batches, [[0, 1, 4, 5], [2, 3, 6, 7]])

  def test_a_short_batch_begins_again(self):
    rows = {'x': jnp.arange(6).reshape(3, 2)}
    batches = jax.tree.map(lambda x: discriminator_lib.deal(x, 2, 2, 1), rows)
    np.testing.assert_array_equal(
      batches['x'], [[[0, 1], [2, 3]], [[4, 5], [0, 1]]]
    )


class DiscriminatorTest(absltest.TestCase):
  def linear_state(self, optimizer):
    params = {'w': jnp.zeros(2), 'b': jnp.zeros(2)}
    return discriminator_lib.DiscriminatorState(
      params, jnp.int32(0), optimizer.init(params)
    )

  def test_one_update_by_hand(self):
    # At zero logits the loss is softplus(0) twice, 2 ln 2, and its slopes are
    # -1/2 at real logits and 1/2 at generated ones: one step of size 1 gives
    # w = (mean real - mean fake) / 2.
    optimizer = optax.sgd(1.0)
    state = self.linear_state(optimizer)
    real = jnp.float32([[4, 0], [0, 2]]), jnp.array([0, 1])
    fake = jnp.float32([[0, 2], [0, 4]]), jnp.array([1, 1])
    state, metrics = discriminator_lib.update(
      linear_heads, optimizer, state, real, fake
    )
    self.assertAlmostEqual(
      float(metrics['discriminator_loss']), 2 * np.log(2), 5
    )
    np.testing.assert_allclose(state.params['w'], [1.0, -1.0])
    np.testing.assert_allclose(state.params['b'], [0.25, -0.25])
    self.assertEqual(int(state.spectral), 2)
    scores = discriminator_lib.score(linear_heads, state, *real)
    np.testing.assert_allclose(scores, [4.25, -2.25])
    np.testing.assert_allclose(discriminator_lib.accuracy(scores, True), 0.5)
    scores = discriminator_lib.score(linear_heads, state, *fake)
    np.testing.assert_allclose(discriminator_lib.accuracy(scores, False), 1.0)

  def test_published_heads_learn_and_advance_twice(self):
    module = DiscriminatorHeads(
      num_classes=2,
      mapping_width=4,
      mapping_layers=1,
      condition_map_width=4,
      kernel_size=3,
    )

    def heads(params, spectral, features, condition, train):
      variables = {'params': params, 'spectral': spectral}
      if not train:
        return module.apply(variables, features, condition), spectral
      logits, changed = module.apply(
        variables, features, condition, train=True, mutable=['spectral']
      )
      return logits, changed['spectral']

    rng = np.random.default_rng(0)
    condition = jnp.arange(16) % 2

    def features(is_real):
      # Patches of real images alternate, those of generated ones agree.
      sign = np.sign(rng.normal(size=(16, 1, 1)))
      pattern = np.array([1, -1, 1, -1] if is_real else [1, 1, 1, 1])
      noise = 0.3 * rng.normal(size=(16, 4, 3))
      return (jnp.float32(sign * pattern[None, :, None] + noise),)

    real, fake = features(True), features(False)
    variables = jax.jit(module.init)(jax.random.key(0), real, condition)
    optimizer = optax.adam(0.02)
    state = discriminator_lib.DiscriminatorState(
      variables['params'],
      variables['spectral'],
      optimizer.init(variables['params']),
    )

    def learn(state, num_updates):
      return jax.lax.scan(
        lambda s, _: discriminator_lib.update(
          heads, optimizer, s, (real, condition), (fake, condition)
        ),
        state,
        length=num_updates,
      )

    options = {'xla_backend_optimization_level': 0}
    jitted = jax.jit(learn, static_argnums=1, compiler_options=options)
    advanced = state.spectral
    advance = jax.jit(advance_spectral)
    for _ in range(2):
      advanced = advance(state.params, advanced)
    once, _ = jitted(state, 1)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5),
      once.spectral,
      advanced,
    )

    @jax.jit
    def separation(state):
      score = lambda x: discriminator_lib.score(
        heads, state, x, condition
      ).mean()
      return score(real) - score(fake)

    learned, metrics = jitted(state, 60)
    loss = metrics['discriminator_loss']
    self.assertLess(float(loss[-1]), 0.7 * float(loss[0]))
    self.assertGreater(separation(learned), separation(state) + 0.5)


if __name__ == '__main__':
  absltest.main()
