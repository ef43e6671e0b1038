"""The recipe of masked-token training, on a network of one matrix."""

import dataclasses
import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.learning import masked_tokens


class RecipeTest(parameterized.TestCase):
  def test_masked_cross_entropy(self):
    # Masked: -ln 3/4 for the likelier of two, -ln 1/2; not masked: -ln ~0.
    logits = jnp.float32([[[0, np.log(3)], [0, 99]], [[0, 0], [99, 0]]])
    tokens = jnp.array([[1, 0], [0, 1]])
    masked = jnp.array([[True, False], [True, False]])
    loss = functools.partial(
      masked_tokens.masked_cross_entropy, logits, tokens, masked
    )
    expected = (np.log(4 / 3) + np.log(2)) / 2
    self.assertAlmostEqual(float(loss(0.0)), expected, 5)
    # A tenth of the target is spread over both: 0.95 and 0.05.
    smooth = 0.95 * np.log(4 / 3) + 0.05 * np.log(4)
    self.assertAlmostEqual(float(loss(0.1)), (smooth + np.log(2)) / 2, 5)

  def test_the_mean_is_over_masked_tokens_not_samples(self):
    # Three tokens of loss ln 2, one of ln 4 / 3: not the mean of two means.
    logits = jnp.zeros((2, 3, 2)).at[1, 0, 1].set(np.log(3))
    tokens = jnp.array([[0, 0, 0], [1, 0, 0]])
    masked = jnp.array([[True, True, True], [True, False, False]])
    loss = masked_tokens.masked_cross_entropy(logits, tokens, masked, 0.0)
    expected = (3 * np.log(2) + np.log(4 / 3)) / 4
    self.assertAlmostEqual(float(loss), expected, 5)

  def test_random_mask(self):
    ratio = jnp.float32([0.0, 0.1, 0.5, 0.7, 1.0])  # Of 4, at least one.
    masks = np.stack(
      [
        masked_tokens.random_mask(jax.random.key(i), ratio, 4)
        for i in range(60)
      ]
    )
    counts = masks.sum(-1)
    np.testing.assert_array_equal(
      counts, np.broadcast_to([1, 1, 2, 3, 4], counts.shape)
    )
    # Every position has its turn: 15 of 60 on average, and 30 of 60.
    self.assertGreater(masks[:, 0].sum(0).min(), 5)
    self.assertGreater(masks[:, 2].sum(0).min(), 15)

  @parameterized.parameters(
    # The share of ratios up to x, of 16 tokens.
    ('cosine', lambda x: 1 - 2 / np.pi * np.arccos(x)),
    ('arccos', lambda x: 1 - np.cos(np.pi / 2 * x)),
    ('uniform', lambda x: x),
    ('pow0.5', lambda x: 1 - (1 - x) ** 2),
    ('pow3', lambda x: 1 - (1 - x) ** (1 / 3)),
    ('log', lambda x: np.where(x < 1, 1 - 16.0**-x, 1)),
    ('exp', lambda x: np.minimum(-np.log2(np.maximum(1 - x, 1e-9)) / 4, 1)),
    # Of Beta(2, 1), the larger of two uniform numbers.
    ('beta', lambda x: x**2),
  )
  def test_mask_ratio_laws(self, law, share):
    recipe = masked_tokens.Recipe(9, mask_ratio=law, beta=(2.0, 1.0))
    ratio = np.sort(
      masked_tokens.sample_mask_ratio(jax.random.key(0), 4000, 16, recipe)
    )
    # Kolmogorov's distance: above 1.95 / sqrt(n) once in a thousand times.
    steps = np.arange(4001) / 4000
    distance = np.abs(share(np.float64(ratio)) - steps[1:])
    # Where ratios are equal, the last one stands for all.
    last = np.append(ratio[1:] > ratio[:-1], True)
    self.assertLess(distance[last].max(), 1.95 / np.sqrt(4000))
    least = dataclasses.replace(recipe, least_mask_ratio=0.4)
    raised = masked_tokens.sample_mask_ratio(jax.random.key(0), 4000, 16, least)
    np.testing.assert_array_equal(
      np.sort(raised), np.maximum(ratio, np.float32(0.4))
    )

  def test_the_cosine_law_to_the_bit(self):
    ratio = masked_tokens.sample_mask_ratio(
      jax.random.key(5), 600, 256, masked_tokens.Recipe(9)
    )
    uniform = jax.random.uniform(jax.random.key(5), (600,))
    np.testing.assert_array_equal(ratio, jnp.cos(np.pi / 2 * uniform))

  @parameterized.parameters('example', 'batch')
  def test_a_least_ratio_of_masks(self, per):
    recipe = masked_tokens.Recipe(
      9, mask_ratio='uniform', mask_ratio_per=per, least_mask_ratio=0.5
    )
    draw = lambda key: masked_tokens.draw_masks(
      tuple(jax.random.split(key)), (5, 4), recipe
    )
    found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 400))
    count = np.asarray(found.sum(-1))
    shares = np.bincount(count.reshape(-1), minlength=5) / count.size
    # round(4 u) of u at least 1/2: 5/8 give 2; 7/8 on give 4, or 3 of a batch.
    rest = (1 / 4, 1 / 8) if per == 'example' else (3 / 8, 0)
    expected = [0, 0, 5 / 8, *rest]
    np.testing.assert_allclose(shares, expected, atol=0.08)
    np.testing.assert_array_equal(shares == 0, np.array(expected) == 0)

  def test_masks_of_examples(self):
    recipe = masked_tokens.Recipe(9)
    keys = tuple(jax.random.split(jax.random.key(0)))
    count = masked_tokens.draw_masks(keys, (600, 4), recipe).sum(-1)
    # round(4 cos(pi/2 u)) is 4 with probability 2/pi acos(3.5/4) = 0.322; 0
    # becomes 1, which has 1 - 2/pi acos(1.5/4) = 0.245.
    shares = np.bincount(count, minlength=5) / 600
    self.assertEqual(shares[0], 0)
    self.assertAlmostEqual(shares[4], 0.322, delta=0.06)
    self.assertAlmostEqual(shares[1], 0.245, delta=0.06)

  def test_masks_of_a_batch_leave_a_token(self):
    recipe = masked_tokens.Recipe(9, mask_ratio_per='batch')
    draw = lambda key: masked_tokens.draw_masks(
      tuple(jax.random.split(key)), (5, 4), recipe
    )
    found = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 300))
    count = np.asarray(found.sum(-1))
    np.testing.assert_array_equal(count, count[:, :1] + np.zeros((1, 5)))
    shares = np.bincount(count[:, 0], minlength=5) / 300
    self.assertEqual((shares[0], shares[4]), (0, 0))
    # What would be all 4 is 3: 2/pi acos(2.5/4) = 0.570.
    self.assertAlmostEqual(shares[3], 0.570, delta=0.09)
    # Each example has places of its own.
    self.assertTrue((np.asarray(found)[:, 0] != found[:, 1]).any())

  @parameterized.parameters('example', 'batch')
  def test_what_a_cache_has_not_seen(self, per):
    recipe = masked_tokens.Recipe(9, mask_ratio_per=per, reuse_probability=0.25)
    masked = jnp.arange(6) < jnp.array([[2], [1], [5], [6]])
    draw = lambda key: masked_tokens.draw_reuse(key, masked, recipe)
    wanted, hidden = jax.jit(jax.vmap(draw))(
      jax.random.split(jax.random.key(1), 400)
    )
    self.assertAlmostEqual(float(wanted.mean()), 0.25, delta=0.07)
    self.assertTrue((hidden | ~masked).all())
    more = np.asarray((hidden & ~masked).sum(-1))
    # Of 4 tokens round(4 u): all and none half as often as the others.
    shares = np.bincount(more[:, 0], minlength=5) / 400
    np.testing.assert_allclose(
      shares, [1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8], atol=0.08
    )
    # Any of them.
    places = np.asarray(hidden)[:, 0, 2:].mean(0)
    np.testing.assert_allclose(places, 0.5, atol=0.1)
    # Of one u come at most 10 pairs of round(4 u) and round(5 u), of two 30.
    pairs = {tuple(pair) for pair in more[:, :2]}
    self.assertEqual(len(pairs) <= 10, per == 'batch')
    self.assertEqual(bool((wanted == wanted[:, :1]).all()), per == 'batch')

  def test_no_update_of_the_constant_rate_is_wasted(self):
    # A gradient of ones: Adam's update is the rate.
    for warmup, expected in ((4, [0.25, 0.5, 0.75, 1, 1]), (0, [1, 1])):
      optimizer = masked_tokens.make_optimizer(
        9, 0.1, warmup, 'constant', 0.0, (0.9, 0.99)
      )
      state = optimizer.init(jnp.zeros(()))
      for share in expected:
        update, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        self.assertAlmostEqual(float(-update), 0.1 * share, 6)

  def test_a_limit_on_gradients(self):
    arguments = (9, 0.1, 0, 'constant', 0.0, (0.9, 0.99))

    def updates(gradients, **limit):
      optimizer = masked_tokens.make_optimizer(*arguments, **limit)
      state, found = optimizer.init(jnp.zeros(2)), []
      for gradient in gradients:
        update, state = optimizer.update(
          jnp.float32(gradient), state, jnp.zeros(2)
        )
        found.append(np.asarray(update))
      return found

    # Of norm 50, scaled down to 5; and one that is small enough.
    large, scaled, small = (30, 40), (3, 4), (0, 2)
    limited = updates([large, small], max_gradient_norm=5.0)
    np.testing.assert_allclose(limited, updates([scaled, small]), rtol=1e-5)
    self.assertGreater(
      np.abs(limited[1] - updates([large, small])[1]).max(), 0.01
    )
    # Without one the state is Adam's, as it was.
    optimizer = masked_tokens.make_optimizer(*arguments)
    self.assertEqual(
      jax.tree.structure(optimizer.init(jnp.zeros(2))),
      jax.tree.structure(optax.adamw(lambda _: 0.1).init(jnp.zeros(2))),
    )


class TrainStepTest(absltest.TestCase):
  """A network of one matrix: gradients are compared, not learning."""

  def network(self):
    # It reads each token and the sum of the condition; no dropout.
    def logits(params, tokens, condition, dropout, cache):
      del dropout, cache
      shift = condition.reshape(len(condition), -1).sum(-1)
      return params[tokens] * (1 + shift[:, None, None])

    return masked_tokens.Network(
      logits,
      condition=lambda frozen, batch: batch['x'] @ frozen['tower'],
      null=lambda frozen: frozen['null'],
    )

  def step(self, **changes):
    recipe = masked_tokens.Recipe(mask_token=8, **changes)
    # The update is the gradient itself.
    step = masked_tokens.make_train_step(
      self.network(), optax.sgd(-1.0), recipe, key=jax.random.key(3)
    )
    return jax.jit(step)

  def setUp(self):
    super().setUp()
    random = np.random.default_rng(0)
    self.params = jnp.float32(random.normal(size=(9, 8)))
    self.state = masked_tokens.NatState(
      self.params, self.params, optax.sgd(-1.0).init(self.params)
    )
    self.batch = {
      'tokens': jnp.asarray(random.integers(0, 8, (24, 4)), jnp.int32),
      'x': jnp.float32(random.normal(size=(24, 5, 3))),
    }
    self.frozen = {
      'tower': jnp.float32(random.normal(size=(3, 2))),
      'null': jnp.full((5, 2), 0.1),
    }

  def run_step(self, batch=None, frozen=None, **changes):
    return self.step(**changes)(
      frozen or self.frozen, self.state, batch or self.batch, jnp.int32(5)
    )

  def test_micro_batches_have_the_gradient_of_the_whole_batch(self):
    whole, expected = self.run_step()
    for parts in (2, 8):
      state, metrics = self.run_step(micro_batches=parts)
      np.testing.assert_allclose(
        state.params - self.params, whole.params - self.params, atol=1e-5
      )
      for name in expected:
        self.assertAlmostEqual(float(metrics[name]), float(expected[name]), 4)
    # Parts mask different numbers of tokens, so that a mean of their means is
    # something else.
    ratio_key, mask_key, *_ = jax.random.split(
      jax.random.fold_in(jax.random.key(3), 5), 4
    )
    ratio = masked_tokens.sample_mask_ratio(
      ratio_key, 24, 4, masked_tokens.Recipe(8)
    )
    masked = masked_tokens.random_mask(mask_key, ratio, 4)
    counts = masked.reshape(3, 8, 4).sum((0, 2))
    self.assertGreater(len(np.unique(counts)), 1)

  def test_the_loss_of_all_tokens(self):
    # Those that are seen count like those that are not.
    ratio_key, mask_key, *_ = jax.random.split(
      jax.random.fold_in(jax.random.key(3), 5), 4
    )
    masked = masked_tokens.draw_masks(
      (ratio_key, mask_key), (24, 4), masked_tokens.Recipe(8)
    )
    tokens = self.batch['tokens']
    shift = (self.batch['x'] @ self.frozen['tower']).reshape(24, -1).sum(-1)
    logits = self.params[jnp.where(masked, 8, tokens)]
    logits *= 1 + shift[:, None, None]
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    found = np.take_along_axis(log_probs, np.asarray(tokens)[..., None], -1)
    for chosen, rows in (
      ('all', -found),
      ('masked', -found[np.asarray(masked)]),
    ):
      for parts in (1, 4):
        loss = self.run_step(
          loss_tokens=chosen,
          condition_dropping=0.0,
          label_smoothing=0.0,
          micro_batches=parts,
        )[1]['loss']
        np.testing.assert_allclose(loss, rows.mean(), rtol=1e-5)

  def test_the_null_condition_stands_in_for_dropped_ones(self):
    other = self.batch | {'x': self.batch['x'] + 1}
    apart = [
      self.run_step(batch, condition_dropping=share)[1]['loss']
      for share in (1.0, 0.0)
      for batch in (self.batch, other)
    ]
    self.assertEqual(apart[0], apart[1])
    self.assertNotEqual(apart[2], apart[3])
    null = {'tower': self.frozen['tower'], 'null': jnp.full((5, 2), 0.2)}
    self.assertNotEqual(
      self.run_step(frozen=null, condition_dropping=1.0)[1]['loss'], apart[0]
    )
    self.assertEqual(
      self.run_step(frozen=null, condition_dropping=0.0)[1]['loss'], apart[2]
    )

  def test_what_is_frozen_is_no_constant_of_the_step(self):
    step = self.step(micro_batches=2)
    traced = jax.make_jaxpr(step)(
      self.frozen, self.state, self.batch, jnp.int32(0)
    )
    sizes = [np.size(constant) for constant in traced.consts]
    self.assertLess(max(sizes, default=0), 3)

  def test_the_average_follows_the_parameters(self):
    state, _ = self.run_step(ema_decay=0.75)
    np.testing.assert_allclose(
      state.ema, 0.75 * self.params + 0.25 * state.params, rtol=1e-5, atol=1e-6
    )


if __name__ == '__main__':
  absltest.main()
