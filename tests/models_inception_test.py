"""Inception's resizing, which its reference file hardly depends on."""

from absl.testing import absltest
import numpy as np

from adanat_jax.models import inception


class PrepareTest(absltest.TestCase):
  def test_halving_is_the_mean_of_two_by_two(self):
    # A filter against aliasing would reach over four pixels, and Pillow's or
    # TensorFlow's corner-aligned grid would sit elsewhere.
    images = np.random.default_rng(0).random((1, 598, 598, 3), np.float32)
    blocks = images.reshape(1, 299, 2, 299, 2, 3).mean((2, 4))
    np.testing.assert_allclose(
      inception.prepare(images), 2 * blocks - 1, atol=1e-6
    )

  def test_enlarging_repeats_the_border(self):
    images = np.zeros((1, 1, 2, 3), np.float32)
    images[:, :, 1] = 1.0
    row = np.asarray(inception.prepare(images))[0, 7, :, 0]
    position = (np.arange(299) + 0.5) * 2 / 299 - 0.5
    np.testing.assert_allclose(row, 2 * np.clip(position, 0, 1) - 1, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
