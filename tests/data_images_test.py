"""ADM's crop against two other readings of it, odd files, and rounding."""

import concurrent.futures
import io
import warnings

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from adanat_jax.data import images
from support import raw_pictures

_ODD = raw_pictures.odd_files()


def _published(image: Image.Image, side: int) -> np.ndarray:
  """The crop by Pillow, in the order of the published description."""
  width, height = image.size
  while min(width, height) >= 2 * side:
    width, height = width // 2, height // 2
    image = image.resize((width, height), Image.BOX)
  ratio = side / min(width, height)
  pixels = np.asarray(
    image.resize((round(width * ratio), round(height * ratio)), Image.BICUBIC)
  )
  skip = [(n - side) // 2 for n in pixels.shape[:2]]
  return pixels[skip[0] :, skip[1] :][:side, :side]


def _weights(old: int, new: int, radius: float, kernel) -> np.ndarray:
  """Resampling as a matrix [new, old]: a kernel as wide as a new pixel."""
  scale = old / new
  stretch = max(scale, 1.0)
  centres = (np.arange(new)[:, None] + 0.5) * scale
  distance = (np.arange(old)[None] + 0.5 - centres) / stretch
  weights = kernel(distance) * (np.abs(distance) <= radius)
  return weights / weights.sum(1, keepdims=True)


def _box(x):
  return ((x > -0.5) & (x <= 0.5)).astype(float)


def _cubic(x, a=-0.5):
  x = np.abs(x)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _resample(pixels, height, width, radius, kernel):
  """Rows first, then columns, each rounded to whole levels."""
  for axis, size in ((1, width), (0, height)):
    if pixels.shape[axis] != size:
      matrix = _weights(pixels.shape[axis], size, radius, kernel)
      pixels = np.moveaxis(np.tensordot(matrix, pixels, (1, axis)), 0, axis)
      pixels = np.floor(pixels + 0.5).clip(0, 255)
  return pixels


def _by_matrices(pixels: np.ndarray, side: int) -> np.ndarray:
  """The crop by NumPy alone, from the definitions of the two filters."""
  pixels = pixels.astype(float)
  while min(pixels.shape[:2]) >= 2 * side:
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    pixels = _resample(pixels, height, width, 0.5, _box)
  ratio = side / min(pixels.shape[:2])
  height, width = (round(n * ratio) for n in pixels.shape[:2])
  pixels = _resample(pixels, height, width, 2.0, _cubic)
  top, left = (height - side) // 2, (width - side) // 2
  return pixels[top : top + side, left : left + side]


def _pixels_of(data: bytes) -> Image.Image:
  with warnings.catch_warnings():
    # About palettes with alpha.
    warnings.simplefilter('ignore')
    return Image.open(io.BytesIO(data)).convert('RGB')


class CropTest(parameterized.TestCase):
  @parameterized.parameters(
    (64, 64, 32),
    (63, 64, 32),
    (65, 47, 32),
    (129, 200, 32),
    (257, 131, 32),
    (31, 33, 32),
    (95, 95, 32),
    (5, 7, 32),
    (1, 1, 32),
    (2, 90, 16),
    (639, 427, 33),
    (300, 401, 256),
  )
  def test_two_other_readings_agree(self, width, height, side):
    pixels = raw_pictures.picture(width + height, width, height)
    found = images.decode(raw_pictures.encode(pixels, 'PNG'), side)
    self.assertEqual(found.dtype, np.uint8)
    self.assertEqual(found.shape, (side, side, 3))
    expected = _published(Image.fromarray(pixels), side)
    np.testing.assert_array_equal(found, expected)
    # Pillow calculates in integers; it may round a few halves the other way.
    difference = np.abs(found - _by_matrices(pixels, side))
    self.assertLessEqual(difference.max(), 1)
    self.assertLess(np.mean(difference > 0), 0.01)

  @parameterized.parameters((90, 60), (60, 90), (400, 100), (32, 48))
  def test_what_is_no_square_is_covered_from_its_centre(self, width, height):
    pixels = raw_pictures.picture(3, width, height)
    found = images.decode(raw_pictures.encode(pixels, 'PNG'), (32, 48))
    self.assertEqual(found.shape, (32, 48, 3))
    # The largest centred part of these proportions, then scaled.
    part = min(width / 48, height / 32)
    sides = width - 48 * part, height - 32 * part
    box = (
      sides[0] / 2,
      sides[1] / 2,
      width - sides[0] / 2,
      height - sides[1] / 2,
    )
    expected = Image.fromarray(pixels).resize(
      (48, 32), Image.Resampling.BICUBIC, box
    )
    difference = np.abs(found.astype(int) - np.asarray(expected, int))
    self.assertLess(difference.mean(), 2)

  def test_a_large_image_is_halved_before_it_is_scaled(self):
    # Black and white lines vanish when halved, and only then.
    pixels = np.zeros((130, 130, 3), np.uint8)
    pixels[:, ::2] = 255
    found = images.decode(raw_pictures.encode(pixels, 'PNG'), 65)
    np.testing.assert_array_equal(found, np.full((65, 65, 3), 128))
    below = images.decode(raw_pictures.encode(pixels[:, 1:], 'PNG'), 65)
    self.assertGreater(below.std(), 1.0)

  def test_the_odd_pixel_is_left_over_at_the_right_and_at_the_bottom(self):
    for shape in ((32, 35), (35, 32)):
      pixels = raw_pictures.picture(3, shape[1], shape[0])
      top, left = (shape[0] - 32) // 2, (shape[1] - 32) // 2
      self.assertEqual(top + left, 1)
      np.testing.assert_array_equal(
        images.decode(raw_pictures.encode(pixels, 'PNG'), 32),
        pixels[top : top + 32, left : left + 32],
      )

  def test_threads_decode_alike(self):
    files = [raw_pictures.jpeg(number) for number in range(16)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      found = list(pool.map(lambda data: images.decode(data, 24), files))
    for data, pixels in zip(files, found, strict=True):
      np.testing.assert_array_equal(pixels, images.decode(data, 24))


class OddFilesTest(parameterized.TestCase):
  @parameterized.parameters(sorted(set(_ODD) - {'sixteen_bits.png'}))
  def test_is_read_as_pillow_reads_it(self, name):
    expected = _published(_pixels_of(_ODD[name]), 32)
    np.testing.assert_array_equal(images.decode(_ODD[name], 32), expected)

  def test_cmyk_has_the_colours_of_the_picture(self):
    # Inverted inks, the usual mistake, would be more than 100 levels off.
    colours = images.decode(_ODD['png_inside.JPEG'], 32).astype(int)
    cmyk = images.decode(_ODD['cmyk.JPEG'], 32)
    self.assertLess(np.abs(cmyk - colours).mean(), 6)

  def test_alpha_is_dropped(self):
    colours = images.decode(_ODD['png_inside.JPEG'], 32)
    alpha = images.decode(_ODD['alpha.png'], 32)
    np.testing.assert_array_equal(alpha, colours)

  def test_sixteen_bits_are_their_higher_byte(self):
    # Its levels are 257 times those of the other file.
    deep = images.decode(_ODD['sixteen_bits.png'], 32)
    flat = images.decode(_ODD['grey_alpha.png'], 32)
    np.testing.assert_array_equal(deep, flat)

  def test_grey_has_three_equal_channels(self):
    grey = images.decode(_ODD['grey.jpg'], 32)
    self.assertGreater(grey.std(), 10)
    np.testing.assert_array_equal(grey, grey[..., :1].repeat(3, -1))

  @parameterized.parameters(range(1, 9))
  def test_exif_turns_only_if_asked_to(self, orientation):
    data = raw_pictures.rotated_jpeg(7, orientation)
    stored = np.asarray(_pixels_of(data))
    upright = {
      1: lambda x: x,
      2: lambda x: x[:, ::-1],
      3: lambda x: x[::-1, ::-1],
      4: lambda x: x[::-1],
      5: lambda x: x.swapaxes(0, 1),
      6: lambda x: np.rot90(x, -1),
      7: lambda x: np.rot90(x)[:, ::-1],
      8: lambda x: np.rot90(x),
    }[orientation](stored)
    turned = Image.fromarray(np.ascontiguousarray(upright))
    np.testing.assert_array_equal(
      images.decode(data, 32), _published(Image.fromarray(stored), 32)
    )
    np.testing.assert_array_equal(
      images.decode(data, 32, apply_orientation=True), _published(turned, 32)
    )


class CorruptTest(parameterized.TestCase):
  @parameterized.parameters(sorted(raw_pictures.corrupt_files()))
  def test_says_why_in_one_line(self, name):
    with self.assertRaises(images.CorruptImageError) as caught:
      images.decode(raw_pictures.corrupt_files()[name], 32)
    self.assertRegex(str(caught.exception), r'^[^\n]+$')
    # An address in memory would make each run's log another.
    self.assertNotIn('0x', str(caught.exception))

  def test_damaged_bytes_raise_nothing_else(self):
    self.enterContext(warnings.catch_warnings())
    warnings.simplefilter('ignore')
    rng = np.random.default_rng(0)
    refused = 0
    for data in (raw_pictures.jpeg(1), *_ODD.values()):
      for _ in range(20):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, min(len(damaged), 400), 6)
        damaged[places] = rng.integers(0, 256, 6)
        try:
          images.decode(damaged.tobytes(), 16, apply_orientation=True)
        except images.CorruptImageError:
          refused += 1
    self.assertGreater(refused, 50)

  def test_a_program_in_postscript_is_not_run(self):
    data = raw_pictures.encode(raw_pictures.picture(1), 'EPS')
    with self.assertRaisesRegex(images.CorruptImageError, 'cannot identify'):
      images.decode(data, 16)

  def test_a_strip_is_refused_before_it_fills_the_memory(self):
    strip = raw_pictures.encode(np.zeros((1, 60000, 3), np.uint8), 'PNG')
    with self.assertRaisesRegex(images.CorruptImageError, '60000x1'):
      images.decode(strip, 256)

  def test_a_lack_of_memory_is_not_the_file_s_fault(self):
    with absltest.mock.patch.object(Image, 'open', side_effect=MemoryError):
      with self.assertRaises(MemoryError):
        images.decode(raw_pictures.jpeg(1), 16)


class NumbersTest(parameterized.TestCase):
  @parameterized.parameters(*images.ROUNDINGS)
  def test_what_was_read_is_written_again(self, rounding):
    levels = np.arange(256, dtype=np.uint8)
    unit = images.to_unit(levels)
    self.assertEqual(unit.dtype, np.float32)
    self.assertEqual((unit[0], unit[255]), (0.0, 1.0))
    np.testing.assert_array_equal(images.to_uint8(unit, rounding), levels)
    within = jax.jit(lambda x: images.to_uint8(x, rounding))(jnp.asarray(unit))
    np.testing.assert_array_equal(within, levels)

  @parameterized.parameters(
    # 255 x:    127.5 254.7 0.4 0.6, then what is outside [0, 1].
    ('floor', [127, 254, 0, 0, 0, 255]),
    ('nearest', [128, 255, 0, 1, 0, 255]),
  )
  def test_the_two_conventions(self, rounding, expected):
    values = np.array([127.5, 254.7, 0.4, 0.6, -20.0, 300.0]) / 255
    found = images.to_uint8(values, rounding)
    self.assertEqual(found.dtype, np.uint8)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
      images.to_uint8(jnp.asarray(values), rounding), expected
    )

  def test_only_one_of_them_keeps_the_mean(self):
    values = np.random.default_rng(0).random(100_000)
    for rounding, shift in (('floor', -0.5), ('nearest', 0.0)):
      levels = images.to_uint8(values, rounding).astype(float)
      self.assertAlmostEqual((levels - 255 * values).mean(), shift, delta=0.01)

  def test_another_convention_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'floor'):
      images.to_uint8(np.zeros(1), 'round')


if __name__ == '__main__':
  absltest.main()
