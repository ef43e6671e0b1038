"""Types in which generators compute, and batches that suit the device."""

import dataclasses
from unittest import mock

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np

import adanat_jax
from adanat_jax.decoding import loop
from adanat_jax.experiment import networks
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import masked_tokens
from adanat_jax.metrics import frechet
from adanat_jax.models import layers
from adanat_jax.runtime import sharding
from adanat_jax.sampling import program
from support import configs

_COUNT = 96


def _distance(images, others):
  """Frechet distance in means of 64 boxes."""
  gaussians = []
  for x in map(np.asarray, (images, others)):
    side = x.shape[1] // 8
    boxes = x.reshape(len(x), 8, side, 8, side).mean(axis=(2, 4))
    gaussians.append(frechet.gaussian_of(boxes.reshape(len(x), -1)))
  return frechet.frechet_distance(*gaussians)


def _on(platform):
  return mock.patch.object(sharding, 'platform', lambda: platform)


class TypesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.generator = adanat_jax.load('digits', compile_cache=False)
    cls.labels = np.arange(24) % cls.generator.num_classes
    cls.whole = cls.generator.sample(cls.labels, 2)

  @parameterized.parameters(
    ('cpu', jnp.float32), ('gpu', jnp.bfloat16), ('tpu', jnp.bfloat16)
  )
  def test_published_configs_follow_the_device(self, platform, expected):
    config = configs.load('cc3m256.py')
    with _on(platform):
      for make in (
        networks.nat_module,
        networks.tokenizer_module,
        networks.text_module,
      ):
        self.assertEqual(make(config).dtype, expected)

  def test_tokens_do_not_depend_on_the_type(self):
    generator, images = self.generator, self.whole.images[:8]
    half = generator.tokenizer.clone(dtype=jnp.bfloat16)
    tokens = [
      dataclasses.replace(generator, tokenizer=tokenizer).encode(images)
      for tokenizer in (generator.tokenizer, half)
    ]
    np.testing.assert_array_equal(*tokens)

  def test_bfloat16_is_as_good(self):
    generator = self.generator
    half = dataclasses.replace(
      generator,
      nat=generator.nat.clone(dtype=jnp.bfloat16),
      tokenizer=generator.tokenizer.clone(dtype=jnp.bfloat16),
    )
    labels = np.arange(_COUNT) % generator.num_classes
    exact, rounded, other = (
      g.sample(labels, 4, seed=seed, batch_size=32)
      for g, seed in ((generator, 0), (half, 0), (generator, 1))
    )
    differing = (exact.tokens != rounded.tokens).mean()
    self.assertBetween(differing, 1e-4, 0.06)
    # Another seed, with the same labels, is farther away.
    self.assertLess(
      3 * _distance(exact.images, rounded.images),
      _distance(exact.images, other.images),
    )

  def test_a_tpu_keeps_logits_in_the_type_of_the_network(self):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(3 * rng.normal(size=(2, 5, 16)), jnp.bfloat16)
    words = jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)
    arguments = hidden, words, jnp.asarray(np.linspace(0, 1, 8), jnp.float32), 7
    with _on('gpu'):
      wide = layers.tied_logits(*arguments)
    with _on('tpu'):
      narrow = layers.tied_logits(*arguments)
      exact = layers.tied_logits(hidden.astype(jnp.float32), *arguments[1:])
    self.assertEqual(wide.dtype, jnp.float32)
    self.assertEqual(exact.dtype, jnp.float32)
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
    # What reads them computes in float32: here, and in a step of decoding.
    tokens, masked = jnp.zeros((2, 5), int), jnp.ones((2, 5), bool)
    loss = masked_tokens.masked_cross_entropy
    narrow_loss = loss(narrow, tokens, masked, 0.1)
    wide_loss = loss(narrow.astype(jnp.float32), tokens, masked, 0.1)
    np.testing.assert_array_equal(narrow_loss, wide_loss)
    self.assertEqual(narrow_loss.dtype, jnp.float32)
    denoiser = lambda tokens, condition, cache: (hidden, narrow, cache)
    _, *pair, _ = loop.denoise(
      denoiser, tokens[:1], tokens[:1, 0], tokens[0, 0]
    )
    for part in pair:
      self.assertEqual((part.dtype, part.shape), (jnp.bfloat16, (1, 5, 7)))
    for part in loop.widened(*pair):
      self.assertEqual(part.dtype, jnp.float32)

  @parameterized.parameters('gpu', 'tpu')
  def test_images_in_parts(self, platform):
    program.decode_batch.clear_cache()
    with (
      _on(platform),
      mock.patch.object(program, '_TOKENS_OF_PART', 3 * 16),
      mock.patch.object(
        program.batch_parts,
        'map_in_parts',
        wraps=program.batch_parts.map_in_parts,
      ) as parts,
    ):
      cut = self.generator.sample(self.labels, 2)
    program.decode_batch.clear_cache()
    self.assertGreater(parts.call_args.args[2], 1)
    np.testing.assert_array_equal(self.whole.tokens, cut.tokens)
    np.testing.assert_allclose(self.whole.images, cut.images, atol=1e-6)


class BatchTest(parameterized.TestCase):
  @parameterized.parameters(
    ('in256.py', None, 4),
    ('in512.py', None, 1),
    # What JAX says of a v5e, a v4, an H100 of which it takes three quarters.
    ('in256.py', 15.75 * 2**30, 64),
    ('in512.py', 15.75 * 2**30, 16),
    ('in256.py', 31.25 * 2**30, 128),
    ('in256.py', 59.4 * 2**30, 256),
    ('digits.py', 15.75 * 2**30, 250),
  )
  def test_suits_the_memory(self, source, memory, expected):
    experiment = Experiment(configs.load(source), 'unused')
    with mock.patch.object(sharding, 'device_memory', lambda _: memory):
      self.assertEqual(experiment.batch_size, expected)


if __name__ == '__main__':
  absltest.main()
