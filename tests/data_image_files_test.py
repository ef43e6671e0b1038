"""Pictures with odd metadata, with transparency, and large ones."""

import io
import pathlib
import struct
import subprocess
import sys
import warnings
import zlib

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin

from adanat_jax.data import image_metadata, images
from support import children, raw_pictures

_CASES = pathlib.Path(__file__).parent / 'data' / 'cases'
_WHITE, _BLUE = (255, 255, 255), (0, 0, 255)
_KINDS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')


def xmp(orientation: int) -> bytes:
  """XMP as editors write it."""
  return f'<x tiff:Orientation="{orientation}"/>'.encode()


def rows_of(image: Image.Image, background=None) -> np.ndarray:
  """Pixels as `images.decode` has them, without any scaling."""
  side = min(image.size)
  left, top = (image.width - side) // 2, (image.height - side) // 2
  box = (left, top, left + side, top + side)
  return np.asarray(image.convert('RGB').crop(box))


def decoded(data: bytes, *arguments) -> np.ndarray:
  with Image.open(io.BytesIO(data)) as image:
    side = min(image.size)
  return images.decode(data, side, *arguments)


class MetadataTest(parameterized.TestCase):
  @parameterized.parameters(
    *(path.name for path in sorted(_CASES.iterdir()) if path.is_file())
  )
  def test_good_pictures_are_read(self, name):
    data = (_CASES / name).read_bytes()
    plain = images.decode(data, 30)
    self.assertGreater(plain.std(), 10)
    turned = images.decode(data, 30, apply_orientation=True)
    if name.startswith('exif'):
      # 40 x 30 pixels are cut to their centre either way.
      np.testing.assert_array_equal(turned, np.rot90(plain, -1))
    else:
      np.testing.assert_array_equal(turned, plain)

  def test_16_bits_of_grey_are_their_higher_byte(self):
    levels = raw_pictures.picture(1, 20, 20)[..., 0]
    for factor, name in ((257, 'a'), (256, 'b')):
      deep = levels.astype('>u2') * factor
      head = b'P5 20 20 65535\n'
      found = images.decode(head + deep.astype('>u2').tobytes(), 20)
      np.testing.assert_array_equal(found[..., 0], levels, name)
    text = ' '.join(map(str, (levels.astype(int) * 257).ravel()))
    found = images.decode(f'P2 20 20 65535\n{text}\n'.encode(), 20)
    np.testing.assert_array_equal(found[..., 2], levels)

  @parameterized.product(kind=('JPEG', 'PNG', 'WEBP'), by_xmp=(False, True))
  def test_turns_as_pillow_does(self, kind, by_xmp):
    picture = Image.fromarray(raw_pictures.picture(3, 40, 30))
    for orientation in range(10):
      exif = Image.Exif()
      # Tags that are longer than their entries come first.
      exif[0x010E] = 'a text'
      if not by_xmp:
        exif[0x0112] = orientation
      how = {'exif': exif, 'quality': 90}
      if by_xmp and kind == 'PNG':
        how['pnginfo'] = info = PngImagePlugin.PngInfo()
        text = xmp(orientation).decode()
        info.add_itxt('XML:com.adobe.xmp', text, zip=orientation % 2 == 0)
      elif by_xmp:
        how['xmp'] = xmp(orientation)
      data = raw_pictures.encode(picture, kind, **how)
      with Image.open(io.BytesIO(data)) as opened:
        expected = rows_of(ImageOps.exif_transpose(opened))
        stored = rows_of(opened)
      np.testing.assert_array_equal(decoded(data, True), expected)
      np.testing.assert_array_equal(decoded(data), stored)

  def test_tiff_is_turned_by_its_tag_in_any_case(self):
    picture = Image.fromarray(raw_pictures.picture(3, 40, 30))
    for orientation in range(1, 9):
      for compression in ('raw', 'tiff_deflate'):
        data = raw_pictures.encode(
          picture,
          'TIFF',
          tiffinfo={0x0112: orientation},
          compression=compression,
        )
        with Image.open(io.BytesIO(data)) as opened:
          opened.load()
          expected = rows_of(opened)
        for asked in (False, True):
          np.testing.assert_array_equal(decoded(data, asked), expected)

  def test_orientations_of_other_types_and_orders(self):
    for order, mark in (('<', b'II'), ('>', b'MM')):
      for kind, letter in ((1, 'B'), (3, 'H'), (4, 'I')):
        value = struct.pack(f'{order}{letter}', 6).ljust(4, b'\0')
        tags = mark + struct.pack(f'{order}HIHHHI', 42, 8, 1, 0x112, kind, 1)
        self.assertEqual(image_metadata.orientation_of(tags + value), 6)
        for end in range(len(tags) + len(value)):
          cut = (tags + value)[:end]
          self.assertIn(image_metadata.orientation_of(cut), (1, 6))

  def test_what_changes_no_pixel_is_cut_out(self):
    picture = raw_pictures.picture(5, 41, 41)
    colours = Image.fromarray(picture)
    exif = Image.Exif()
    exif[0x010F] = 'maker'
    profile = bytes(range(256)) * 300
    for mode in ('RGB', 'L', 'CMYK'):
      data = raw_pictures.encode(
        colours.convert(mode),
        exif=exif,
        icc_profile=profile,
        comment=b'a comment',
        progressive=mode == 'L',
        xmp=xmp(1),
      )
      short, _ = image_metadata.pixels_alone(data)
      self.assertLess(len(short), len(data) - len(profile))
      np.testing.assert_array_equal(
        images.decode(data, 41), rows_of(Image.open(io.BytesIO(data)))
      )
    palette = colours.quantize(16)
    for image in (colours, palette, colours.convert('I;16')):
      info = PngImagePlugin.PngInfo()
      info.add_text('Comment', 'a text' * 1000)
      data = raw_pictures.encode(
        image, 'PNG', pnginfo=info, icc_profile=profile, exif=exif
      )
      short, _ = image_metadata.pixels_alone(data)
      self.assertNotIn(b'iCCP', short)
      bare = raw_pictures.encode(image, 'PNG')
      np.testing.assert_array_equal(
        images.decode(data, 41), images.decode(bare, 41)
      )

  def test_broken_metadata_of_a_png_is_not_looked_at(self):
    data = raw_pictures.encode(raw_pictures.picture(5, 41, 41), 'PNG')
    expected = images.decode(data, 41)
    # A wrong checksum, and what is no packed text.
    body = b'Comment\0\0no zlib'
    chunk = struct.pack('>I4s', len(body), b'zTXt') + body + b'\0\0\0\0'
    changed = data[:33] + chunk + data[33:]
    np.testing.assert_array_equal(images.decode(changed, 41), expected)

  def test_imagemagicks_exif_of_png(self):
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = exif.tobytes()
    lines = f'\nexif\n{len(raw):8d}\n{raw.hex()}\n'
    for pack in (False, True):
      info = PngImagePlugin.PngInfo()
      info.add_text('Raw profile type exif', lines, zip=pack)
      data = raw_pictures.encode(
        raw_pictures.picture(3, 40, 30), 'PNG', pnginfo=info
      )
      np.testing.assert_array_equal(
        decoded(data, True), np.rot90(decoded(data), -1)
      )

  def test_a_packed_text_is_not_unpacked_to_gigabytes(self):
    packed = zlib.compress(bytes(1 << 26), 9)
    body = b'XML:com.adobe.xmp\0\1\0\0\0' + packed
    self.assertLen(image_metadata._png_text(b'iTXt', body), 1 << 20)


class TransparencyTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.colours = Image.fromarray(raw_pictures.picture(6, 20, 20))
    # The left half is transparent, the right one opaque.
    mask = np.full((20, 20), 255, np.uint8)
    mask[:, :10] = 0
    self.mask = Image.fromarray(mask)

  def check(self, data, colours=None, tolerance=0):
    """The background shows on the left, the picture on the right."""
    colours = colours or self.colours
    expected = np.asarray(colours.convert('RGB')).astype(int)
    for background in (_WHITE, _BLUE):
      found = images.decode(data, 20, False, background).astype(int)
      np.testing.assert_array_equal(
        found[:, :10], np.broadcast_to(background, (20, 10, 3))
      )
      difference = np.abs(found[:, 10:] - expected[:, 10:])
      self.assertLessEqual(difference.max(), tolerance)

  @parameterized.parameters('PNG', 'WEBP', 'TIFF')
  def test_alpha(self, kind):
    for mode in ('RGB', 'L'):
      image = self.colours.convert(mode)
      colours = image.copy()
      image.putalpha(self.mask)
      how = {'lossless': True, 'exact': True} if kind == 'WEBP' else {}
      data = raw_pictures.encode(image, kind, **how)
      self.check(data, colours)
      # As published: what was hidden is seen.
      np.testing.assert_array_equal(
        images.decode(data, 20), np.asarray(colours.convert('RGB'))
      )
      # Opaque pixels are as they were, to the last bit.
      image.putalpha(255)
      data = raw_pictures.encode(image, kind, **how)
      np.testing.assert_array_equal(
        images.decode(data, 20, False, _BLUE), images.decode(data, 20)
      )

  def test_half_transparent(self):
    self.colours.putalpha(128)
    data = raw_pictures.encode(self.colours, 'PNG')
    found = images.decode(data, 20, False, _WHITE).astype(float)
    colours = np.asarray(self.colours.convert('RGB')).astype(float)
    expected = (128 * colours + 127 * 255) / 255
    self.assertLessEqual(np.abs(found - expected).max(), 1)

  @parameterized.parameters('PNG', 'GIF')
  def test_a_colour_of_a_palette(self, kind):
    palette = self.colours.quantize(16)
    pixels = np.asarray(palette).copy()
    pixels[:, :10] = 16
    pixels[:, 10:] %= 16
    image = Image.fromarray(pixels, 'P')
    image.putpalette([*palette.getpalette()[:48], 10, 20, 30])
    colours = image.convert('RGB')
    self.check(raw_pictures.encode(image, kind, transparency=16), colours)
    if kind == 'PNG':
      alphas = bytes([255] * 16 + [0])
      data = raw_pictures.encode(image, kind, transparency=alphas)
      self.check(data, colours)

  def test_one_colour_of_a_png(self):
    pixels = np.asarray(self.colours).copy()
    pixels[:, 10:] |= 1
    pixels[:, :10] = (10, 20, 30)
    image = Image.fromarray(pixels)
    data = raw_pictures.encode(image, 'PNG', transparency=(10, 20, 30))
    self.check(data, image)
    grey = Image.fromarray(pixels[..., 0])
    data = raw_pictures.encode(grey, 'PNG', transparency=10)
    self.check(data, grey)
    deep = pixels[..., 0].astype(np.uint16) * 256 + 3
    data = raw_pictures.encode(deep, 'PNG', transparency=10 * 256 + 3)
    self.check(data, grey)
    bits = Image.fromarray(np.asarray(self.mask) > 0)
    data = raw_pictures.encode(bits, 'PNG', transparency=0)
    self.check(data, bits)

  @parameterized.parameters(*_KINDS)
  def test_pictures_without_it_are_as_they_were(self, kind):
    for mode in ('RGB', 'L', '1', 'P', 'CMYK'):
      try:
        data = raw_pictures.encode(self.colours.convert(mode), kind)
      except (OSError, ValueError):
        continue  # Not a mode of this format.
      np.testing.assert_array_equal(
        images.decode(data, 20, False, _BLUE), images.decode(data, 20)
      )


class WarningTest(parameterized.TestCase):
  def png_of(self, width, height):
    """A PNG file of one colour, whatever its size, in a few kilobytes."""
    head = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    pack = zlib.compressobj(1)
    row = bytes(1 + -(-width // 8))
    rows = b''.join(pack.compress(row) for _ in range(height)) + pack.flush()
    data = b'\x89PNG\r\n\x1a\n'
    for kind, body in ((b'IHDR', head), (b'IDAT', rows), (b'IEND', b'')):
      data += struct.pack('>I', len(body)) + kind + body
      data += struct.pack('>I', zlib.crc32(kind + body))
    return data

  def test_a_large_map_is_no_attack(self):
    self.enterContext(warnings.catch_warnings())
    warnings.simplefilter('error')
    # Past Pillow's limit for warnings, 89 million pixels.
    self.assertEqual(images.decode(self.png_of(10_000, 9_000), 8).max(), 0)

  @parameterized.parameters((16_400, 16_400), (33_000, 33_000))
  def test_a_limit_is_told_without_an_accusation(self, width, height):
    data = self.png_of(width, 1)
    data = data.replace(
      struct.pack('>II', width, 1), struct.pack('>II', width, height)
    )
    crc = zlib.crc32(data[12:29])
    data = data[:29] + struct.pack('>I', crc) + data[33:]
    with self.assertRaisesRegex(
      images.CorruptImageError, '268,435,456.* make it smaller'
    ) as caught:
      images.decode(data, 8)
    self.assertNotIn('attack', str(caught.exception))

  def test_pillow_says_nothing_on_the_screen(self):
    picture = raw_pictures.picture(1, 40, 30)
    tiff = raw_pictures.encode(picture, 'TIFF', tiffinfo={0x010E: 'a' * 99})
    # The place of this text is behind the end of the file.
    tiff = tiff.replace(
      struct.pack('<HHI', 0x010E, 2, 100), struct.pack('<HHI', 0x010E, 2, 10**6)
    )
    path = pathlib.Path(self.create_tempdir().full_path) / 'odd.tiff'
    path.write_bytes(tiff)
    data = (_CASES / 'exif_xmp_as_text.jpg').read_bytes()
    path.with_suffix('.jpg').write_bytes(data)
    code = (
      'import pathlib, sys; from adanat_jax.data import images\n'
      'for name in sys.argv[1:]:\n'
      '  images.decode(pathlib.Path(name).read_bytes(), 8, True)\n'
    )
    names = [str(path), str(path.with_suffix('.jpg'))]
    process = subprocess.run(
      [sys.executable, '-c', code, *names],
      env=children.environment(1),
      capture_output=True,
      text=True,
      check=True,
    )
    self.assertEqual(process.stdout + process.stderr, '')

  def test_every_suffix_is_decoded(self):
    picture = raw_pictures.picture(1, 9, 9)
    for suffix in ('mpo', 'jfif', 'jpe', 'dib', 'apng', 'pbm', 'pnm', 'webp'):
      path = pathlib.Path(self.create_tempdir().full_path) / f'a.{suffix}'
      kind = Image.registered_extensions()[f'.{suffix}']
      image = Image.fromarray(picture)
      image = image.convert('1') if suffix == 'pbm' else image
      image.save(path, kind)
      self.assertEqual(images.decode(path.read_bytes(), 9).shape, (9, 9, 3))


if __name__ == '__main__':
  absltest.main()
