"""From an image file's bytes to pixels, and from pixels to numbers and back.

The crop is ADM's (openai/guided-diffusion, image_datasets.center_crop_arr),
which the published tokenizers, networks and statistics were made with:

1. to RGB; the EXIF orientation is not applied, alpha is dropped;
2. as long as the shorter side has twice the pixels it needs, halve both sides
   (rounded down) with a box filter;
3. scale bicubically until the shorter side fits, the longer one rounded;
4. cut out the centre, the odd pixel left at the right or at the bottom.
"""

from __future__ import annotations

import io
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

ROUNDINGS = ('floor', 'nearest')

# Those of `raw_source.IMAGE_SUFFIXES`. For some others, such as EPS, Pillow
# starts another program on what may be anybody's file.
_FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
# A strip of one by thousands of pixels would be enlarged to gigabytes.
_MOST_PIXELS = 1 << 27

# 1 / 255 in two parts: any byte times the first one is exact.
_HIGH = np.float32(4112 / 2**20)
_LOW = np.float32(1 / 255 - 4112 / 2**20)

# NumPy's or JAX's.
AnyArray = TypeVar('AnyArray')


class CorruptImageError(ValueError):
  """An image file that cannot be read; the message says why in one line."""


def decode(
  data: bytes, image_size: int, apply_orientation: bool = False
) -> np.ndarray:
  """Reads an image file and cuts out its centre.

  Args:
    data: the file: JPEG, PNG, WebP, GIF, TIFF, BMP or PPM, whatever its name;
      of several frames the first is read.
    image_size: side of the square, in pixels; smaller images are enlarged.
    apply_orientation: turn it upright by its EXIF tag first, which the
      published data were not.

  Returns:
    uint8[image_size, image_size, 3], RGB.

  Raises:
    CorruptImageError: if it is not an image, or not a whole one.
  """
  return center_crop(_open(data, apply_orientation), image_size)


def center_crop(image: Image.Image, image_size: int) -> np.ndarray:
  """Scales an RGB image and cuts out its centre as ADM does.

  Args:
    image: of mode RGB.
    image_size: side of the square, in pixels.

  Returns:
    uint8[image_size, image_size, 3].

  Raises:
    CorruptImageError: if it is so narrow that its enlargement would not fit
      into memory.
  """
  while min(image.size) >= 2 * image_size:
    half = (image.width // 2, image.height // 2)
    image = image.resize(half, Image.Resampling.BOX)
  scale = image_size / min(image.size)
  size = (round(image.width * scale), round(image.height * scale))
  if size[0] * size[1] > _MOST_PIXELS:
    raise CorruptImageError(
      f'{image.width}x{image.height} pixels are too narrow a strip'
    )
  image = image.resize(size, Image.Resampling.BICUBIC)
  left, top = (size[0] - image_size) // 2, (size[1] - image_size) // 2
  # Copied: a view would keep the whole image in memory.
  return np.array(image.crop((left, top, left + image_size, top + image_size)))


def to_unit(images: AnyArray) -> AnyArray:
  """From uint8 to float32 in [0, 1], 255 becoming 1.

  Inside jit, too: bytes travel to a device faster than floats. There compilers
  turn a division by 255 into a product, which rounds half of the levels
  differently; the sum of two products gives the bits of the division.

  Args:
    images: uint8[...], NumPy's or JAX's; or float32[...] in [0, 1], which is
      returned as it is.

  Returns:
    float32[...] in [0, 1].
  """
  if images.dtype != np.uint8:  # type: ignore[attr-defined]
    return images
  x = images.astype(np.float32)  # type: ignore[attr-defined]
  return x * _HIGH + x * _LOW


def to_uint8(images: AnyArray, rounding: str = 'floor') -> AnyArray:
  """From [0, 1] to uint8, as generated images are written.

  Both conventions are in published use, and figures differ between them:

  * 'floor', ADM's sampling scripts: 255 x, clipped and truncated. Images lose
    half a level on average.
  * 'nearest', torchvision's save_image: 255 x + 0.5, clipped and truncated.

  Args:
    images: float[...], NumPy's or JAX's, also inside jit; clipped to [0, 1].
    rounding: one of `ROUNDINGS`.

  Returns:
    uint8[...].

  Raises:
    ValueError: for an unknown `rounding`.
  """
  if rounding not in ROUNDINGS:
    raise ValueError(f'rounding={rounding!r}: give one of {ROUNDINGS}')
  scaled = images.astype(np.float32) * 255  # type: ignore[attr-defined]
  if rounding == 'nearest':
    scaled = scaled + np.float32(0.5)
  return scaled.clip(0, 255).astype(np.uint8)


def _open(data: bytes, apply_orientation: bool) -> Image.Image:
  if not data:
    raise CorruptImageError('the file is missing or empty')
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
      file.load()
      return _to_rgb(
        ImageOps.exif_transpose(file) if apply_orientation else file
      )
  except (MemoryError, CorruptImageError):
    raise
  except Exception as error:
    # Broken files raise errors of many kinds: OSError, SyntaxError,
    # struct.error, IndexError, ...
    message = ' '.join(str(error).split()) or type(error).__name__
    # Pillow names the stream, whose address differs each time.
    message = message.partition(' <_io.BytesIO')[0]
    raise CorruptImageError(message) from error


def _to_rgb(image: Image.Image) -> Image.Image:
  if image.mode.startswith('I;16'):
    # Pillow would clip all levels above 255 to white; of colours with 16 bits
    # it takes the higher byte itself.
    pixels = np.asarray(image).astype(np.uint16) >> 8
    image = Image.fromarray(pixels.astype(np.uint8))
  elif image.mode in ('I', 'F'):
    raise CorruptImageError(
      f"pixels of Pillow's mode {image.mode} have no known range"
    )
  # Pillow would only warn that it is lost.
  image.info.pop('transparency', None)
  return image.convert('RGB')
