"""Reconstructions are measured in parts, as if all were there at once."""

import math
from unittest import mock

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from adanat_jax.data.examples import ArrayExamples
from adanat_jax.runtime import sharding
from adanat_jax.stages import tokenizer_reconstruction


class Halves:
  """A stand-in for a VQGAN: each image's code is its mean, of four levels."""

  codebook_size = 4

  def apply(self, variables, x, method):
    del variables
    if method == 'tokenize':
      return jnp.floor(4 * x.mean((1, 2, 3)))[:, None].astype(jnp.int32)
    return jnp.broadcast_to(
      (x[..., None, None] + 0.5) / 4, (x.shape[0], 4, 4, 3)
    )


class Watched(ArrayExamples):
  """Examples that remember how many were asked for at a time."""

  def take(self, index):
    self.asked = [*getattr(self, 'asked', []), index.size]
    return super().take(index)


class ReconstructionTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.images = np.random.default_rng(0).random((11, 4, 4, 3), np.float32)
    cls.images **= np.linspace(0.2, 3, 11)[:, None, None, None]
    cls.halves = tokenizer_reconstruction.Reconstruction(
      Halves(), sharding.make_mesh(), 0
    )

  def figures(self, images):
    """Of all images at once."""
    levels = np.floor(4 * images.mean((1, 2, 3), dtype=np.float64))
    error = ((levels[:, None, None, None] + 0.5) / 4 - images) ** 2
    share = np.bincount(levels.astype(int)) / len(images)
    share = share[share > 0]
    return {
      'error': error.mean(),
      'error_of_variance': error.mean() / images.var(dtype=np.float64),
      'decibels': -10 * math.log10(error.mean()),
      'codes_used': len(share),
      'perplexity': math.exp(-(share * np.log(share)).sum()),
    }

  def test_parts_give_the_figures_of_the_whole(self):
    expected = self.figures(self.images)
    # 16 pixels an image: 11, then 4 at a time, the last time 3.
    for pixels, most_asked in ((2**19, 11), (64, 4)):
      examples = Watched({'images': self.images})
      name = '_PIXELS_OF_A_DEVICE'
      with mock.patch.object(tokenizer_reconstruction, name, pixels):
        found = self.halves.figures({}, {'all': examples})
      self.assertEqual(max(examples.asked), most_asked)
      self.assertEqual(set(found), {f'all_{name}' for name in expected})
      for key, value in expected.items():
        self.assertAlmostEqual(found[f'all_{key}'], value, 5)

  def test_some_stand_for_all(self):
    index = tokenizer_reconstruction.chosen(11, 5)
    self.assertLen(set(index.tolist()), 5)
    np.testing.assert_array_equal(index, tokenizer_reconstruction.chosen(11, 5))
    examples = ArrayExamples({'images': self.images})
    some = tokenizer_reconstruction.Reconstruction(
      Halves(), sharding.make_mesh(), 5
    )
    found = some.measure({}, 'test', examples)
    expected = self.figures(self.images[index])
    self.assertAlmostEqual(found['error'], expected['error'], 5)
    self.assertCountEqual(tokenizer_reconstruction.chosen(3, 5), range(3))


if __name__ == '__main__':
  absltest.main()
