"""How the networks that judge are trained: augmentation and losses."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.data import byte_tokens
from adanat_jax.learning import augment, classifier, contrast, views
from adanat_jax.models.captions import CaptionTransformer
from adanat_jax.models.classifier import ConvClassifier

_KEY = jax.random.key(0)


class AugmentationTest(absltest.TestCase):
  def test_a_window_is_enlarged_bilinearly(self):
    # The right half of four pixels: their centres lie at 1.75, 2.25, 2.75 and
    # 3.25, the last one beyond the image.
    weights = augment._window(4, jnp.array([0.5]), jnp.array([0.5]))
    expected = [
      [0, 0.25, 0.75, 0],
      [0, 0, 0.75, 0.25],
      [0, 0, 0.25, 0.75],
      [0, 0, 0, 1],
    ]
    np.testing.assert_allclose(weights[0], expected, atol=1e-6)

  def test_crops_lie_within_their_images(self):
    # A ramp stays one: its slopes say how large the windows are.
    ramp = (jnp.arange(32) + 0.5) / 32
    images = jnp.stack(jnp.meshgrid(ramp, ramp, indexing='ij'), -1)[None]
    crop = jax.jit(augment.crop, static_argnums=2)
    found = crop(_KEY, jnp.tile(images, (64, 1, 1, 1)), 0.25)
    inside = np.asarray(found[:, 8:24, 8:24])
    height = 32 * np.diff(inside[..., 0], axis=1).mean((1, 2))
    width = 32 * np.diff(inside[..., 1], axis=2).mean((1, 2))
    area, aspect = height * width, width / height
    self.assertBetween(area.min(), 0.2, 0.35)
    self.assertBetween(area.max(), 0.9, 1.001)
    self.assertBetween(aspect.min(), 0.74, 0.85)
    self.assertBetween(aspect.max(), 1.2, 1.34)
    self.assertIs(augment.crop(_KEY, images, 1.0), images)

  def test_jitter_keeps_grey_grey(self):
    images = jax.random.uniform(_KEY, (16, 4, 4, 1), minval=0.4, maxval=0.6)
    found = augment.jitter(_KEY, jnp.repeat(images, 3, -1), 0.3)
    np.testing.assert_allclose(found[..., 0], found[..., 2], atol=1e-6)
    factors = found.mean((1, 2, 3)) / images.mean((1, 2, 3))
    self.assertBetween(float(factors.min()), 0.7, 0.85)
    self.assertBetween(float(factors.max()), 1.15, 1.3)


class ContrastTest(absltest.TestCase):
  def test_the_loss(self):
    # Cosines of 1 and 0 at a scale of log 3: 3 against 1.
    images, captions = jnp.eye(2), 5 * jnp.eye(2)
    loss, found = contrast.loss(images, captions, jnp.eye(2) > 0, np.log(3))
    self.assertAlmostEqual(float(loss), np.log(4 / 3), 5)
    self.assertTrue(found.all())
    # One image turned by 45 degrees; captions are compared with images too.
    turned = jnp.array([[1.0, 0], [1, 1]])
    loss, _ = contrast.loss(turned, captions, jnp.eye(2) > 0, np.log(3))
    half = 3**0.5**0.5
    rows = np.log([4 / 3, 2])
    columns = np.log([(3 + half) / 3, (half + 1) / half])
    self.assertAlmostEqual(float(loss), (rows.mean() + columns.mean()) / 2, 5)
    # Equal captions share what is asked: log 4 - (log 3 + log 1) / 2.
    loss, found = contrast.loss(
      images, captions, jnp.ones((2, 2)) > 0, np.log(3)
    )
    self.assertAlmostEqual(float(loss), np.log(4) - np.log(3) / 2, 5)
    # The first is nearest to the second one's caption.
    same = jnp.array([[True, False], [False, True]])
    _, found = contrast.loss(images, captions[::-1], same, 1.0)
    self.assertFalse(found.any())

  def test_it_learns_words(self):
    """Colours on one of two sides, each twice."""
    names = [f'{c} {p}' for c in ('red', 'green', 'blue') for p in 'ab']
    images = np.zeros((3, 2, 2, 2, 3), np.float32)
    for colour in range(3):
      for side in range(2):
        images[colour, side, :, side, colour] = 1.0
    images = np.tile(images.reshape(6, 2, 2, 3), (2, 1, 1, 1))
    ids = jnp.asarray(byte_tokens.tokenize(2 * names, 3))
    words = CaptionTransformer(
      8, 0, 1, 8, 3, byte_tokens.ROW, byte_tokens.VOCABULARY
    )
    apply = lambda params, x, key: x.reshape(len(x), -1) @ params
    read = lambda params, x: words.apply({'params': params}, x).pooled
    optimizer = optax.adam(2e-2)
    step = contrast.make_train_step(
      apply,
      read,
      optimizer,
      key=_KEY,
      augmentation=augment.Augmentation(noise=0.1),
    )
    before = contrast.initial_state(
      jax.random.normal(_KEY, (12, 8)),
      jax.jit(words.init)(_KEY, ids)['params'],
      optimizer,
    )
    batch = {'images': images, 'ids': ids}
    train = lambda state: jax.lax.fori_loop(
      0, 60, lambda i, s: step(s, batch, i)[0], state
    )
    after = jax.jit(train)(before)
    finds = jax.jit(
      lambda params, text: contrast.finds(
        apply(params, images, None), read(text, ids), ids
      )
    )
    found = [finds(s.params, s.text) for s in (before, after)]
    self.assertFalse(found[0].all())
    self.assertTrue(found[1].all())


class ViewsTest(absltest.TestCase):
  def test_the_three_terms(self):
    # Both views alike, each number 1 or -1: variances of 4/3 are no loss, and
    # all of the matrix beside its diagonal is 4/3: 2 views x 2 (16/9) / 2.
    first = jnp.array([[1.0, 1], [-1, -1], [1, 1], [-1, -1]])
    loss, spread = views.vicreg_loss(first, first)
    self.assertAlmostEqual(float(loss), 32 / 9, 4)
    self.assertAlmostEqual(float(spread), (4 / 3) ** 0.5, 3)
    # One of eight numbers is off by 2: 25 (4 / 8). Constant: 25 (1 + 1).
    loss, _ = views.vicreg_loss(jnp.zeros((4, 2)), jnp.zeros((4, 2)))
    self.assertAlmostEqual(float(loss), 50 * (1 - 1e-2), 4)
    moved = first.at[0, 0].set(-1.0)
    regular = sum(views.vicreg_loss(x, x)[0] / 2 for x in (first, moved))
    loss, _ = views.vicreg_loss(first, moved)
    self.assertAlmostEqual(float(loss - regular), 12.5, 4)

  def test_it_learns_to_know_images_again(self):
    module = ConvClassifier((4, 8), 8, 16)
    images = np.random.default_rng(0).random((16, 4, 4, 3), np.float32)
    images = jax.jit(jax.image.resize, static_argnums=(1, 2))(
      images, (16, 8, 8, 3), 'linear'
    )
    changes = augment.Augmentation(least_crop=0.3, jitter=0.3)
    optimizer = optax.adam(3e-3)

    def apply(params, images, key):
      rngs = None if key is None else {'dropout': key}
      return module.apply(
        {'params': params}, images, key is not None, rngs=rngs
      )[1]

    step = views.make_train_step(
      apply, optimizer, key=_KEY, augmentation=changes
    )
    params = jax.jit(module.init)(_KEY, images)['params']
    state = classifier.ClassifierState(params, optimizer.init(params))

    @jax.jit
    def known(params):
      changed = changes([*jax.random.split(jax.random.key(1), 5)], images)
      found = apply(params, images, None), apply(params, changed, None)
      return views.matches(*found).mean()

    before = float(known(params))
    state, metrics = jax.lax.scan(
      lambda state, index: step(state, {'images': images}, index),
      state,
      jnp.arange(200),
    )
    self.assertLess(metrics['loss'][-1], 0.6 * metrics['loss'][0])
    self.assertGreater(metrics['spread'][-1], 0.5)
    self.assertGreater(float(known(state.params)), before)


if __name__ == '__main__':
  absltest.main()
