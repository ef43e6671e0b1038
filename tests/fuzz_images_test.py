"""Image files of every format with bytes changed: read, or one line why not."""

import functools
import struct
import zlib

from absl.testing import absltest
import numpy as np
from PIL import Image

from adanat_jax.data import images
from adanat_jax.errors import UserError
from support import fuzzing, raw_pictures

_SIDE = 16


@functools.cache
def whole_files() -> tuple[bytes, ...]:
  """A file of each format and mode, with the metadata that it may have."""
  colours = Image.fromarray(raw_pictures.picture(3, 23, 19))
  exif = Image.Exif()
  exif[0x010F], exif[0x0112] = 'maker', 6
  exif.get_ifd(0x8769)[0x9003] = '2020:01:01 00:00:00'
  palette = colours.quantize(16)
  clear = colours.copy()
  clear.putalpha(100)
  grey = np.asarray(colours.convert('L'))
  deep = Image.fromarray(grey.astype(np.uint16) * 257)
  found = [*raw_pictures.odd_files().values()]
  for image, kind, how in (
    (colours, 'JPEG', {'exif': exif, 'icc_profile': b'x' * 200}),
    (colours, 'JPEG', {'progressive': True, 'xmp': b'tiff:Orientation="3"'}),
    (colours, 'MPO', {'save_all': True, 'append_images': [colours]}),
    (clear, 'PNG', {'exif': exif, 'icc_profile': b'x' * 200}),
    (colours, 'PNG', {'save_all': True, 'append_images': [clear]}),
    (palette, 'PNG', {'transparency': 3}),
    (deep, 'PNG', {}),
    (palette, 'GIF', {'transparency': 3}),
    (palette, 'GIF', {'save_all': True, 'append_images': [palette.rotate(90)]}),
    (clear, 'WEBP', {'exif': exif}),
    (colours, 'WEBP', {'save_all': True, 'append_images': [clear]}),
    *(
      (colours, 'TIFF', {'compression': c}) for c in ('raw', 'jpeg', 'packbits')
    ),
    *(
      (colours, 'TIFF', {'compression': c})
      for c in ('tiff_lzw', 'tiff_deflate')
    ),
    (colours.convert('1'), 'TIFF', {'compression': 'group4'}),
    (clear, 'TIFF', {'tiffinfo': {0x0112: 6}, 'exif': exif}),
    (deep, 'TIFF', {}),
    (colours.convert('CMYK'), 'TIFF', {}),
    (colours, 'BMP', {}),
    (palette, 'BMP', {}),
    (colours, 'PPM', {}),
    (deep.convert('I'), 'PPM', {}),
    (colours.convert('1'), 'PPM', {}),
  ):
    found.append(raw_pictures.encode(image, kind, **how))
  return tuple(found)


def with_checksums(data: bytes) -> bytes:
  """A PNG file whose chunks have the checksums of what is in them."""
  result, place = data[:8], 8
  while place + 12 <= len(data):
    size = struct.unpack('>I', data[place : place + 4])[0]
    body = data[place + 4 : place + 8 + size]
    result += (
      struct.pack('>I', size) + body + struct.pack('>I', zlib.crc32(body))
    )
    place += 12 + size
  return result


def make(random: np.random.Generator) -> bytes:
  """A file with something changed, mostly near its beginning."""
  files = whole_files()
  data = files[int(random.integers(len(files)))]
  head = int(random.integers(1, len(data) + 1))
  if random.random() < 0.6:
    head = min(head, 300)
  data = fuzzing.mutated(random, data[:head]) + data[head:]
  if data.startswith(b'\x89PNG') and random.random() < 0.7:
    data = with_checksums(data)
  return data


def act(data: bytes) -> None:
  """Decodes a file in all ways."""
  first = len(data) % 2 == 0
  try:
    pixels = images.decode(data, _SIDE, first, (255, 255, 255))
    plain = images.decode(data, _SIDE)
  except images.CorruptImageError as error:
    raise UserError(str(error)) from error
  for found in (pixels, plain):
    assert found.shape == (_SIDE, _SIDE, 3) and found.dtype == np.uint8


class FuzzTest(absltest.TestCase):
  def test_image_files(self):
    tally = fuzzing.fuzz(make, act)
    print(f'{tally.accepted} accepted, {tally.refused} refused')
    self.assertEmpty(tally.failures[:3])
    self.assertGreater(tally.accepted, tally.tried / 20)
    self.assertGreater(tally.refused, tally.tried / 5)


if __name__ == '__main__':
  absltest.main()
