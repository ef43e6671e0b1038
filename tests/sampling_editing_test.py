"""Editing real pictures with the generator that comes with the package."""

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

import adanat_jax
from adanat_jax.data import digits
from adanat_jax.errors import UserError


class EditingTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.generator = adanat_jax.load('digits', compile_cache=False)
    data = digits.load()
    cls.images, cls.labels = data.test_images[:8], data.test_labels[:8] % 2
    cls.tokens = cls.generator.encode(cls.images).reshape(8, 4, 4)

  def test_the_right_half_is_drawn_anew(self):
    mask = np.zeros((16, 16), bool)
    mask[:, 8:] = True
    samples = self.generator.inpaint(self.images, mask, self.labels)
    drawn = samples.tokens.reshape(8, 4, 4)
    np.testing.assert_array_equal(drawn[:, :, :2], self.tokens[:, :, :2])
    self.assertTrue((drawn[:, :, 2:] != self.tokens[:, :, 2:]).any())
    # Half a cell, two pixels, is soft; then every bit is as it was.
    np.testing.assert_array_equal(samples[..., :6, :], self.images[..., :6, :])
    self.assertTrue((samples[..., 7, :] != self.images[..., 7, :]).any())
    decoded = self.generator.decode(samples.tokens)
    np.testing.assert_allclose(samples[..., 8:, :], decoded[..., 8:, :])
    # Ink goes on across the cut: rows of ink at the edge and beside it agree.
    edge = self.images[..., 7, 0].ravel(), samples[..., 8, 0].ravel()
    self.assertGreater(np.corrcoef(*edge)[0, 1], 0.6)

  def test_masks_of_pixels_and_of_cells(self):
    mask = np.zeros((8, 16, 16), bool)
    mask[:, 5, 10] = True
    cells = np.zeros((4, 4), bool)
    cells[1, 2] = True
    first = self.generator.inpaint(self.images, mask, self.labels, border=0)
    second = self.generator.inpaint(self.images, cells, self.labels, border=0)
    np.testing.assert_array_equal(first.tokens, second.tokens)
    np.testing.assert_array_equal(first[:, 5, 10], second[:, 5, 10])
    changed = (first.images != self.images).any((0, 3))
    self.assertEqual(np.argwhere(changed).tolist(), [[5, 10]])
    changed = (second.images != self.images).any((0, 3))
    self.assertTrue(changed[4:8, 8:12].any())
    self.assertEqual(changed.sum(), changed[4:8, 8:12].sum())

  def test_pictures_of_pillow(self):
    levels = np.rint(self.images[..., 0] * 255).astype(np.uint8)
    images = (levels / np.float32(255))[..., None]
    pillow = [Image.fromarray(rows) for rows in levels]
    np.testing.assert_array_equal(
      self.generator.encode(pillow), self.generator.encode(images)
    )
    mask = np.zeros((16, 16), bool)
    mask[8:] = True
    expected = self.generator.inpaint(images[0], mask, 0)
    for mode in ('1', 'L', 'RGB'):
      white = Image.fromarray(mask).convert(mode)
      found = self.generator.inpaint(pillow[0], white, 0)
      np.testing.assert_array_equal(found.images, expected.images)
    with self.assertRaisesRegex(UserError, r'RGB and 16x8 .* L and 16x16'):
      self.generator.encode(Image.new('RGB', (16, 8)))
    with self.assertRaisesRegex(UserError, 'mask is a picture of mode RGBA'):
      self.generator.inpaint(pillow[0], Image.new('RGBA', (16, 16)), 0)

  def test_one_picture_and_a_box(self):
    one = self.generator.edit(self.images[3], (0, 0, 16, 16), 'odd', seed=5)
    whole = self.generator.sample(['odd'], seed=5)
    np.testing.assert_array_equal(one.tokens, whole.tokens)

  def test_one_picture_and_many_labels(self):
    cells = np.ones((4, 4), bool)
    cells[0] = False
    many = self.generator.inpaint(self.images[3], cells, self.labels, seed=5)
    same = self.images[[3] * 8]
    each = self.generator.inpaint(same, cells, self.labels, seed=5)
    np.testing.assert_array_equal(many.images, each.images)

  def test_beyond_the_edge(self):
    samples = self.generator.outpaint(
      self.images, (0, 0, 4, 0), self.labels, border=0
    )
    np.testing.assert_array_equal(samples[:, :12], self.images[:, 4:])
    samples = self.generator.outpaint(
      self.images, (0, 8, 0, 0), self.labels, border=0
    )
    np.testing.assert_array_equal(samples[:, :, 8:], self.images[:, :, :8])

  def test_variations_change_that_share(self):
    samples = self.generator.variations(self.images, 0.25, self.labels)
    changed = (samples.tokens != self.tokens.reshape(8, 16)).sum(1)
    self.assertBetween(changed.max(), 1, 4)
    again = self.generator.variations(self.images, 0.25, self.labels)
    np.testing.assert_array_equal(samples.tokens, again.tokens)

  @parameterized.parameters(
    ('inpaint', (np.zeros((16, 16), bool), 0), 'nothing to draw'),
    ('inpaint', (np.ones((16, 15), bool), 0), r'give bool \[16, 16\]'),
    ('inpaint', (np.ones((16, 16)), 0), r'float64\[16, 16\]; give bool'),
    ('inpaint', (np.ones((3, 16, 16), bool), 0), 'of each of 8'),
    ('inpaint', (np.ones((16, 16), bool), [0, 1]), 'one for each of 8'),
    ('inpaint', (np.ones((4, 4), bool), 'blue'), 'even, odd'),
    ('edit', ((0, 0, 0, 4), 0), 'box is'),
    ('edit', ((0, 0, 17, 4), 0), 'within 16x16'),
    ('edit', ('left', 0), 'give 4 integers'),
    ('outpaint', ((4, 0, 4, 0), 0), 'one of two opposite'),
    ('outpaint', ((0, 0, 0, 0), 0), 'sides are'),
    ('outpaint', ((16, 0, 0, 0), 0), 'below 16x16'),
    ('variations', (0.0, 0), 'above 0'),
    ('variations', (True, 0), 'strength is True'),
  )
  def test_mistakes(self, method, arguments, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      getattr(self.generator, method)(self.images, *arguments)
    self.assertNotIn('\n', str(caught.exception))

  def test_other_pictures(self):
    mask = np.ones((4, 4), bool)
    with self.assertRaisesRegex(UserError, r'\[B, 16, 16, 1\]'):
      self.generator.inpaint(self.images[:, :8], mask, 0)
    with self.assertRaisesRegex(UserError, 'border is -1'):
      self.generator.inpaint(self.images, mask, 0, border=-1)


if __name__ == '__main__':
  absltest.main()
