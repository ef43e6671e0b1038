"""Networks of images: what the parity files do not show."""

from __future__ import annotations

import functools
import re

from absl.testing import absltest, parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.models import classifier, discriminator, vit, vqgan
from support.random_weights import random_variables

_KEY = jax.random.key(0)


class VQGANTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.module = vqgan.VQGAN(
      codebook_size=11,
      code_width=4,
      base_width=8,
      width_multipliers=(1, 2),
      num_res_blocks=1,
      num_groups=4,
      image_channels=1,
    )
    cls.images = np.random.default_rng(0).random((2, 8, 8, 1), np.float32)
    cls.variables = random_variables(cls.module, cls.images)
    cls.run_network = staticmethod(
      jax.jit(cls.module.apply, static_argnames='method')
    )

  def call(self, method, inputs):
    return self.run_network(self.variables, inputs, method=method)

  def test_shapes(self):
    tokens = self.call('tokenize', self.images)
    self.assertEqual((tokens.shape, tokens.dtype), ((2, 16), jnp.int32))
    decoded = self.call('decode_tokens', tokens)
    self.assertEqual(decoded.shape, (2, 8, 8, 1))
    self.assertGreaterEqual(decoded.min(), 0)
    self.assertLessEqual(decoded.max(), 1)
    encode, decode = (
      functools.partial(self.run_network, self.variables, method=method)
      for method in ('encode', 'decode')
    )
    wide = jax.eval_shape(encode, np.ones((1, 4, 12, 1), np.float32))
    self.assertEqual(wide.shape, (1, 2, 6, 4))
    self.assertEqual(jax.eval_shape(decode, wide).shape, (1, 4, 12, 1))

  def test_tokens_of_a_grid_that_is_no_square(self):
    module = self.module.clone(columns=6)
    images = jnp.concatenate([self.images, self.images[:, :, :4]], axis=2)
    ids = self.call('tokenize', images)
    self.assertEqual(ids.shape, (2, 4 * 6))
    apply = functools.partial(module.apply, self.variables)
    found = apply(ids, method='decode_tokens')
    expected = apply(
      apply(apply(images, method='encode'), method='quantize')[0],
      method='decode',
    ).clip(0, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    self.assertEqual(module.grid(12), (2, 6))
    for other, count in ((module, 16), (self.module, 12)):
      with self.assertRaisesRegex(UserError, f'{count} tokens are not'):
        other.grid(count)

  def test_mistakes(self):
    with self.assertRaisesRegex(UserError, '7x8.*multiples of 2'):
      self.call('encode', np.ones((1, 7, 8, 1), np.float32))
    with self.assertRaisesRegex(UserError, 'num_groups=3'):
      jax.eval_shape(self.module.clone(num_groups=3).init, _KEY, self.images)


class VisionTransformerTest(absltest.TestCase):
  def test_hooks_read_blocks_then_the_embedding(self):
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    images = images.astype(np.float32)
    module = vit.VisionTransformer(
      8, 4, 8, 3, 2, image_channels=1, num_outputs=5, hooks=(2, 0)
    )
    variables = random_variables(module, images)
    run = lambda module: jax.jit(module.apply)(variables, images)
    output = run(module)
    self.assertEqual(output.cls.shape, (2, 8))
    self.assertEqual(output.outputs.shape, (2, 5))
    self.assertEqual([f.shape for f in output.features], [(2, 4, 8)] * 3)
    one_block = run(module.clone(depth=1, hooks=(0,)))
    np.testing.assert_allclose(
      output.features[1], one_block.features[0], atol=1e-6
    )
    np.testing.assert_allclose(
      output.features[2], one_block.features[1], atol=1e-6
    )
    without = functools.partial(module.clone(hooks=()).apply, variables)
    self.assertEmpty(jax.eval_shape(without, images).features)

  def test_bfloat16_rounds_inside_alone(self):
    images = np.random.default_rng(1).normal(size=(4, 16, 16, 3))
    module = vit.VisionTransformer(16, 4, 32, 4, 2, num_outputs=5, hooks=(3,))
    images = images.astype(np.float32)
    variables = random_variables(module, images)
    exact, rounded = (
      jax.jit(module.clone(dtype=dtype).apply)(variables, images)
      for dtype in (jnp.float32, jnp.bfloat16)
    )
    for mine, theirs in zip(
      jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True
    ):
      self.assertEqual(mine.dtype, jnp.float32)
      error = np.linalg.norm(mine - theirs) / np.linalg.norm(theirs)
      self.assertBetween(error, 1e-4, 2e-2)

  def test_mistakes(self):
    images = np.zeros((1, 8, 8, 1), np.float32)
    module = vit.VisionTransformer(8, 4, 8, 2, 2, image_channels=1)
    with self.assertRaisesRegex(UserError, 'hooks'):
      jax.eval_shape(module.clone(hooks=(2,)).init, _KEY, images)
    with self.assertRaisesRegex(UserError, 'patch_size=3'):
      jax.eval_shape(module.clone(patch_size=3).init, _KEY, images)


class DiscriminatorTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.module = discriminator.DiscriminatorHeads(
      num_classes=3,
      mapping_width=8,
      mapping_layers=2,
      condition_map_width=4,
    )
    cls.features = tuple(
      np.random.default_rng(0).normal(size=(2, 16, 4, 6)).astype(np.float32)
    )
    cls.classes = np.arange(16) % 3
    cls.variables = random_variables(cls.module, cls.features, cls.classes)
    cls.run_network = functools.partial(
      jax.jit(cls.module.apply, static_argnames=('train', 'mutable')),
      cls.variables,
    )

  def test_spectral_vectors_advance_only_in_training(self):
    before = self.variables['spectral']
    run = functools.partial(self.run_network, self.features, self.classes)
    _, state = run(train=False, mutable=('spectral',))
    jax.tree.map(np.testing.assert_array_equal, state['spectral'], before)
    frozen = run(train=True)
    np.testing.assert_array_equal(frozen, run(train=False))
    trained, state = run(train=True, mutable=('spectral',))
    self.assertGreater(np.abs(trained - frozen).max(), 1e-3)
    advance = jax.jit(discriminator.advance_spectral)
    advanced = advance(self.variables['params'], before)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=1e-6),
      state['spectral'],
      advanced,
    )

  def test_spectral_vectors_find_the_largest_gain(self):
    advance = jax.jit(discriminator.advance_spectral)
    spectral = self.variables['spectral']
    for _ in range(200):
      spectral = advance(self.variables['params'], spectral)
    kernel = self.variables['params']['heads_0']['conv2']['kernel']
    matrix = np.asarray(kernel).transpose(2, 1, 0).reshape(6, -1)
    vectors = spectral['heads_0']['conv2']
    gain = vectors['u'] @ matrix @ vectors['v']
    np.testing.assert_allclose(gain, np.linalg.norm(matrix, 2), rtol=1e-4)

  @parameterized.parameters((4, True), (8, True), (12, True), (9, False))
  def test_batch_sizes(self, batch, allowed):
    features = (np.ones((batch, 4, 6), np.float32),) * 2
    apply = functools.partial(
      jax.eval_shape, self.module.apply, self.variables, features
    )
    classes = np.zeros(batch, np.int32)
    if allowed:
      apply(classes)
    else:
      with self.assertRaisesRegex(UserError, 'batch of 9'):
        apply(classes)

  @parameterized.parameters((1, 5), (9, 25), (9, 9))
  def test_gradients_of_its_convolution(self, kernel_size, num_patches):
    """Those of JAX, in the one layout that XLA's loops on CPUs are fast in."""
    length = num_patches - kernel_size + 1
    random = np.random.default_rng(0)
    x, kernel, gradient = (
      random.normal(size=shape).astype(np.float32)
      for shape in (
        (2, 4, num_patches, 6),
        (kernel_size, 6, 3),
        (2, 4, length, 3),
      )
    )

    def plain(x, kernel):
      return jax.lax.conv_general_dilated(
        x, kernel, (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')
      )

    def in_loop(convolve):
      def body(carry, inputs):
        x, gradient = inputs
        out, pull = jax.vjp(convolve, x, carry)
        of_x, of_kernel = pull(gradient)
        return carry + of_kernel, (out, of_x)

      loop = lambda *inputs: jax.lax.scan(body, kernel, inputs)
      return jax.jit(loop).lower(x, gradient).compile()

    program = in_loop(discriminator.convolve)
    chex.assert_trees_all_close(
      # Sums of about a hundred products, in an order of the processor's own.
      program(x, gradient),
      in_loop(plain)(x, gradient),
      rtol=1e-5,
      atol=1e-4,
    )
    layouts = re.findall(r'dim_labels=(\S+?)[,\s]', program.as_text())
    self.assertEqual(set(layouts) - {'b0f_0io->b0f'}, set())

  def test_unconditional(self):
    module = discriminator.DiscriminatorHeads()
    logits, _ = jax.eval_shape(
      module.init_with_output, _KEY, self.features, None
    )
    self.assertEqual(logits.shape, (16, 8))

  def test_prepare_images(self):
    images = np.random.default_rng(0).random((2, 6, 6, 2), np.float32)
    mean, std = (0.5, 0.25), (2.0, 4.0)
    prepare = functools.partial(
      discriminator.prepare_images, images, mean=mean, std=std
    )
    whole = prepare(resolution=3)
    blocks = np.asarray(images).reshape(2, 3, 2, 3, 2, 2).mean((2, 4))
    np.testing.assert_allclose(
      whole, (blocks - np.array(mean)) / np.array(std), atol=1e-6
    )
    corner = np.asarray(prepare(resolution=3, crop=(1, 2)))
    np.testing.assert_allclose(
      corner * np.array(std) + np.array(mean), images[:, 1:4, 2:5], atol=1e-6
    )
    # Four outputs of six pixels: each is the mean of the two it touches.
    uneven = np.asarray(prepare(resolution=4))
    uneven = uneven * np.array(std) + np.array(mean)
    np.testing.assert_allclose(
      uneven[:, 1, 1], np.asarray(images)[:, 1:3, 1:3].mean((1, 2)), atol=1e-6
    )
    with self.assertRaisesRegex(UserError, 'cannot crop 8x8'):
      prepare(resolution=8, crop=(0, 0))


class ClassifierTest(absltest.TestCase):
  def test_samples_do_not_see_each_other(self):
    module = classifier.ConvClassifier((4, 8), 3, 6)
    images = np.random.default_rng(0).random((4, 8, 8, 1), np.float32)
    variables = random_variables(module, images)
    run = jax.jit(module.apply, static_argnames='train')
    features, logits = run(variables, images)
    self.assertEqual((features.shape, logits.shape), ((4, 6), (4, 3)))
    alone, _ = run(variables, images[:1])
    np.testing.assert_allclose(alone, features[:1], atol=1e-5)
    rngs = {'dropout': _KEY}
    dropped, _ = run(variables, images, rngs=rngs)
    np.testing.assert_array_equal(dropped, features)
    _, noisy = run(variables, images, train=True, rngs=rngs)
    self.assertGreater(np.abs(noisy - logits).max(), 0)


if __name__ == '__main__':
  absltest.main()
