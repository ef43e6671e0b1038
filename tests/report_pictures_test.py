"""Tests of the report's pictures: rounding, places, files whole or absent."""

import pathlib

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

from adanat_jax.report import pictures


def _open(path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image.convert('RGB'))


def _flat(colour, count=1, size=4):
  """`count` images of one colour (0 to 255), float32[count, size, size, 3]."""
  pixels = np.array(colour, np.float32) / 255
  return np.broadcast_to(pixels, (count, size, size, 3)).copy()


def _box(picture: np.ndarray, colour) -> tuple[int, int, int, int]:
  """Left, top, right, bottom of all pixels of a colour, the last inclusive."""
  rows, columns = np.nonzero((picture == np.array(colour)).all(axis=-1))
  return columns.min(), rows.min(), columns.max(), rows.max()


class RoundingTest(parameterized.TestCase):
  def test_every_level_comes_back(self):
    levels = np.arange(256, dtype=np.uint8)
    for dtype in (np.float32, np.float64):
      images = levels.astype(dtype) / dtype(255)
      np.testing.assert_array_equal(pictures.to_uint8(images), levels)

  def test_halves_go_up(self):
    # 0.5 * 255 = 127.5 exactly; half to even would give 128 too, but also
    # turn 0.5 / 255 (0.5 in float32 arithmetic) into 0.
    self.assertEqual(pictures.to_uint8(np.array([0.5])), 128)
    self.assertEqual(pictures.to_uint8(np.array([0.5 / 255])), 1)
    self.assertEqual(pictures.to_uint8(np.array([2.5 / 255])), 3)

  def test_boundaries_lie_between_levels(self):
    halves = (np.arange(255) + 0.5) / 255
    np.testing.assert_array_equal(
      pictures.to_uint8(halves - 1e-5), np.arange(255)
    )
    np.testing.assert_array_equal(
      pictures.to_uint8(halves + 1e-5), np.arange(255) + 1
    )

  def test_values_outside_are_clipped(self):
    images = np.array([-0.2, -1e-9, 1.0, 1.3, np.inf], np.float32)
    np.testing.assert_array_equal(
      pictures.to_uint8(images), [0, 0, 255, 255, 255]
    )

  def test_refuses_nan_and_integers(self):
    with self.assertRaisesRegex(ValueError, 'NaN'):
      pictures.to_uint8(np.array([np.nan]))
    with self.assertRaisesRegex(ValueError, 'uint8'):
      pictures.to_uint8(np.zeros(3, np.uint8))


class CaptionedTest(absltest.TestCase):
  def test_images_with_their_captions_under_them(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'sheet.png'
    red, blue = (220, 10, 10), (10, 10, 220)
    pictures.save_captioned(
      path,
      [('one', _flat(red, 3)), ('two', _flat(blue, 3))],
      ['', 'a long caption of many words', ''],
      columns=2,
      scale=2,
    )
    sheet = _open(path)
    for colour in (red, blue):
      # Two columns and lines of images of 8 pixels.
      places = (sheet == np.array(colour)).all(-1)
      self.assertEqual(places.sum(), 3 * 8 * 8)
      self.assertEqual(np.diff(np.flatnonzero(places.any(0))).max() > 1, True)
    top, bottom = _box(sheet, red)[1::2]
    self.assertLess(bottom, _box(sheet, blue)[1])
    # Under the second image there is text, above the third one.
    ink = (sheet[top + 8 : bottom - 8] < 200).any((0, 2))
    columns = np.flatnonzero((sheet[top] == np.array(red)).all(-1))
    self.assertTrue(ink[columns[8] : columns[-1]].any())
    self.assertFalse(ink[columns[0] : columns[8] - 60].any())

  def test_captions_are_broken_and_cut(self):
    lines = pictures._broken('a cat that sleeps on a very long sofa here', 60)
    self.assertLen(lines, 3)
    self.assertEqual(' '.join(lines)[:10], 'a cat that')
    self.assertEndsWith(lines[-1], '...')
    measure = pictures._font().getlength
    self.assertLessEqual(max(map(measure, lines)), 60)
    self.assertEqual(pictures._broken('red', 60), ['red'])
    with self.assertRaisesRegex(ValueError, 'one: 2 images, 1 captions'):
      pictures.save_captioned('none', [('one', _flat((0, 0, 0), 2))], ['a'])


class PicturesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'picture.png'

  def test_single_images_keep_their_kind(self):
    grey = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3, 1)
    pictures.save_image(self.path, grey, scale=2)
    with Image.open(self.path) as image:
      self.assertEqual((image.mode, image.size), ('L', (6, 4)))
      np.testing.assert_array_equal(
        np.asarray(image)[::2, ::2], pictures.to_uint8(grey[..., 0])
      )
    pictures.save_image(self.path, _flat((10, 20, 30))[0])
    with Image.open(self.path) as image:
      self.assertEqual((image.mode, image.size), ('RGB', (4, 4)))
      self.assertEqual(image.getpixel((1, 1)), (10, 20, 30))

  def test_a_grid_reads_from_left_to_right(self):
    colours = [(10 * i, 0, 0) for i in range(1, 6)]
    images = np.concatenate([_flat(colour) for colour in colours])
    pictures.save_grid(self.path, images, columns=3, scale=2, gap=2)
    picture = _open(self.path)
    # Three images of 8 pixels with two gaps, in two lines with one gap.
    self.assertEqual(picture.shape, (18, 28, 3))
    self.assertEqual(_box(picture, colours[1]), (10, 0, 17, 7))
    self.assertEqual(_box(picture, colours[3]), (0, 10, 7, 17))
    self.assertTrue((picture[10:, 20:] == 255).all())

  def test_classes_are_columns_and_methods_rows(self):

    def colour(row, group):
      return (50 + row, 100 + group, 7)

    methods = [
      (
        f'method {row}',
        np.stack([_flat(colour(row, group), 5) for group in range(3)]),
      )
      for row in range(2)
    ]
    pictures.save_class_grid(
      self.path, methods, ['a', 'b', 'c'], columns=3, scale=2
    )
    picture = _open(self.path)
    boxes = {
      (row, group): _box(picture, colour(row, group))
      for row in range(2)
      for group in range(3)
    }
    for row in range(2):
      lefts = [boxes[row, group][0] for group in range(3)]
      self.assertEqual(lefts, sorted(set(lefts)))
    for group in range(3):
      self.assertLess(boxes[0, group][3], boxes[1, group][1])
    # Three images wide and two lines high: 3 * 8 + 2 * 2 by 2 * 8 + 2.
    left, top, right, bottom = boxes[1, 2]
    self.assertEqual((right - left + 1, bottom - top + 1), (28, 18))
    with self.assertRaisesRegex(ValueError, 'images of 3 classes for the 2'):
      pictures.save_class_grid(self.path, methods, ['a', 'b'])

  def test_versions_stand_above_each_other(self):
    original, rebuilt = _flat((1, 2, 3), 5), _flat((4, 5, 6), 5)
    pictures.save_pairs(
      self.path,
      [('original', original), ('rebuilt', rebuilt)],
      columns=4,
      scale=2,
    )
    picture = _open(self.path)
    first, second = _box(picture, (1, 2, 3)), _box(picture, (4, 5, 6))
    self.assertEqual((first[0], first[2]), (second[0], second[2]))
    self.assertEqual(second[1] - first[1], 8 + 2)
    with self.assertRaisesRegex(ValueError, 'differ in shape'):
      pictures.save_pairs(self.path, [('a', original), ('b', rebuilt[:2])])

  def test_hidden_tokens_are_covered_and_fresh_ones_framed(self):
    colour = (9, 200, 9)
    masked = np.array([[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], bool)
    images = _flat(colour, 3, size=8)
    pictures.save_reveal(self.path, [('a', images, masked)], scale=3)
    picture = _open(self.path)
    _, top, right, bottom = _box(picture, colour)
    size, gap = 24, 14
    # The result, the last of four columns, is bare and ends the box.
    self.assertTrue(
      (picture[top : top + size, right + 1 - size : right + 1] == colour).all()
    )
    start = right + 1 - size - 3 * (size + gap)
    for step in range(3):
      x = start + step * (size + gap)
      canvas = picture[bottom + 1 - size : bottom + 1, x : x + size]
      for token in range(4):
        row, column = divmod(token, 2)
        cell = canvas[row * 12 : row * 12 + 12, column * 12 : column * 12 + 12]
        hidden = masked[step, token]
        centre = pictures.HIDDEN if hidden else colour
        self.assertEqual(tuple(cell[6, 6]), centre)
        fresh = not hidden and (step == 0 or masked[step - 1, token])
        self.assertEqual(tuple(cell[0, 6]) == pictures.ACCENT, fresh)

  def test_cells_of_wide_images_are_squares(self):
    self.assertEqual(pictures.columns_of(24, 16, 24), 6)
    self.assertEqual(pictures.columns_of(24, 24, 16), 4)
    self.assertEqual(pictures.columns_of(16, 32, 32), 4)
    images = np.ones((1, 8, 24, 3), np.float32)
    masked = np.array([[False, False, True]])
    pictures.save_reveal(self.path, [('', images, masked)], scale=1)
    picture = _open(self.path)
    hidden = (picture == pictures.HIDDEN).all(-1)
    rows, columns = (np.flatnonzero(hidden.any(axis)) for axis in (1, 0))
    # The cell's edge has another colour.
    self.assertEqual((len(rows), len(columns)), (6, 6))

  def test_reveal_refuses_masks_of_another_grid(self):
    images = _flat((1, 1, 1), 2, size=8)
    for shape in ((3, 4), (2, 9), (2, 5)):
      with self.assertRaisesRegex(ValueError, 'do not fit'):
        pictures.save_reveal(self.path, [('a', images, np.zeros(shape, bool))])

  def test_half_a_file_is_replaced_and_a_whole_one_survives_a_failure(self):
    images = np.concatenate([_flat((1, 1, 1)), _flat((9, 9, 9))])
    pictures.save_grid(self.path, images, 2)
    whole = self.path.read_bytes()
    self.path.write_bytes(whole[: len(whole) // 2])
    pictures.save_grid(self.path, images, 2)
    self.assertEqual(self.path.read_bytes(), whole)
    with self.assertRaisesRegex(ValueError, 'NaN'):
      pictures.save_grid(self.path, images * np.nan, 2)
    self.assertEqual(self.path.read_bytes(), whole)
    self.assertEqual(
      [p.name for p in self.path.parent.iterdir()], [self.path.name]
    )


if __name__ == '__main__':
  absltest.main()
