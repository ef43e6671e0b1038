"""Small real pictures, and image files of every kind that causes trouble.

They are cut from the two photographs that scikit-learn ships.
"""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


@functools.cache
def _photographs() -> tuple[np.ndarray, ...]:
  return tuple(load_sample_images().images)


def picture(number: int, width: int = 0, height: int = 0) -> np.ndarray:
  """A piece of a photograph, uint8[height, width, 3], another each time.

  Args:
    number: which piece; its sizes depend on it where they are not given, from
      33 to 95 pixels, odd ones too.
    width: in pixels.
    height: in pixels.
  """
  rng = np.random.default_rng(number)
  photograph = _photographs()[number % 2]
  width = width or int(rng.integers(33, 96))
  height = height or int(rng.integers(33, 96))
  top = rng.integers(0, photograph.shape[0] - height + 1)
  left = rng.integers(0, photograph.shape[1] - width + 1)
  return photograph[top : top + height, left : left + width]


def encode(image: np.ndarray | Image.Image, kind: str = 'JPEG', **how) -> bytes:
  """The bytes of an image file."""
  if isinstance(image, np.ndarray):
    image = Image.fromarray(image)
  stream = io.BytesIO()
  image.save(stream, kind, **how)
  return stream.getvalue()


def jpeg(number: int) -> bytes:
  """A JPEG file of `picture(number)`."""
  return encode(picture(number), quality=90)


def rotated_jpeg(number: int, orientation: int = 6) -> bytes:
  """A JPEG file whose EXIF tag asks for it to be turned (6: clockwise)."""
  exif = Image.Exif()
  exif[0x0112] = orientation
  return encode(picture(number), quality=90, exif=exif)


def odd_files() -> dict[str, bytes]:
  """Files that can be read, by name, of all the kinds that cause trouble."""
  pixels = picture(7, 61, 47)
  colours = Image.fromarray(pixels)
  palette = colours.quantize(16)
  palette.info['transparency'] = bytes(range(16))
  grey = np.asarray(colours.convert('L'))
  return {
    'cmyk.JPEG': encode(colours.convert('CMYK')),
    'grey.jpg': encode(colours.convert('L')),
    'palette_alpha.png': encode(palette, 'PNG', transparency=bytes(range(16))),
    'alpha.png': encode(colours.convert('RGBA'), 'PNG'),
    'grey_alpha.png': encode(colours.convert('LA'), 'PNG'),
    'sixteen_bits.png': encode(grey.astype(np.uint16) * 257, 'PNG'),
    'bilevel.png': encode(colours.convert('1'), 'PNG'),
    'turned.jpg': rotated_jpeg(7),
    'tiny.png': encode(picture(8, 3, 2), 'PNG'),
    'one_pixel.png': encode(picture(9, 1, 1), 'PNG'),
    # ImageNet has a PNG that is called JPEG.
    'png_inside.JPEG': encode(pixels, 'PNG'),
    'lossless.webp': encode(pixels, 'WEBP', lossless=True),
  }


def corrupt_files() -> dict[str, bytes]:
  """Files that cannot be read, by name."""
  whole = jpeg(10)
  return {
    'empty.jpg': b'',
    'cut_off.jpg': whole[: len(whole) // 2],
    'page.jpg': b'<!DOCTYPE html><title>404 Not Found</title>',
    'header_only.png': encode(picture(11), 'PNG')[:20],
  }
