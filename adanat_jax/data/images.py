"""From an image file's bytes to pixels, and from pixels to numbers and back.

The crop is ADM's (openai/guided-diffusion, image_datasets.center_crop_arr),
which the published tokenizers, networks and statistics were made with:

1. to RGB; the EXIF orientation is not applied, alpha is dropped, unless
   `decode` is asked to do otherwise;
2. as long as the shorter side has twice the pixels it needs, halve both sides
   (rounded down) with a box filter;
3. scale bicubically until the shorter side fits, the longer one rounded;
4. cut out the centre, the odd pixel left at the right or at the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
import io
import logging
from typing import Any, TypeVar
import warnings

import numpy as np
from PIL import Image

from adanat_jax.data import image_metadata

# As large as a picture may be in its file: 16,384 x 16,384, a GiB in memory.
MOST_SOURCE_PIXELS = 1 << 28
ROUNDINGS = ('floor', 'nearest')

# Those of `raw_source.IMAGE_SUFFIXES`. For some others, such as EPS, Pillow
# starts another program on what may be anybody's file.
_FORMATS = ('BMP', 'DIB', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
# So many take memory, and are not all in a file that has few bytes for them: a
# white page has one for 8,000 black-and-white pixels of a PNG.
_MANY_PIXELS = 1 << 26
_MOST_PIXELS_PER_BYTE = 1 << 14
# A strip of one by thousands of pixels would be enlarged to gigabytes.
_MOST_PIXELS = 1 << 27

# What each orientation of EXIF asks for.
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}
# Modes whose colours are multiplied by their alpha, and what they become.
_PREMULTIPLIED = {'La': 'LA', 'RGBa': 'RGBA'}

# Pillow's limit is that of a web server, past which it warns of an attack. At
# twice ours there is time to ask how large a picture is.
if Image.MAX_IMAGE_PIXELS is not None:
  Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, 2 * MOST_SOURCE_PIXELS)
# It warns of tags that do not matter, in pictures that can be read, and does
# not say in which; what cannot be read raises an error, too.
warnings.filterwarnings('ignore', module=r'PIL\.')
if not logging.getLogger('PIL').level:
  logging.getLogger('PIL').setLevel(logging.CRITICAL)

# 1 / 255 in two parts: any byte times the first one is exact.
_HIGH = np.float32(4112 / 2**20)
_LOW = np.float32(1 / 255 - 4112 / 2**20)

# NumPy's or JAX's.
AnyArray = TypeVar('AnyArray')


class CorruptImageError(ValueError):
  """An image file that cannot be read; the message says why in one line."""


def decode(
  data: bytes,
  size: int | tuple[int, int],
  apply_orientation: bool = False,
  background: Sequence[int] | None = None,
) -> np.ndarray:
  """Reads an image file and cuts out its centre.

  Args:
    data: the file: JPEG, PNG, WebP, GIF, TIFF, BMP or PPM, whatever its name;
      of several frames the first is read.
    size: side of the square, or height and width, in pixels; smaller images
      are enlarged.
    apply_orientation: turn it upright by its EXIF tag first, which the
      published data were not.
    background: red, green and blue, 0 to 255, of what lies behind transparent
      pixels; None drops the alpha, as published: colours appear that were
      hidden under it.

  Returns:
    uint8[H, W, 3], RGB.

  Raises:
    CorruptImageError: if it is not an image, or not a whole one.
  """
  return center_crop(_open(data, apply_orientation, background), size)


def open_picture(data: bytes) -> Image.Image:
  """Reads an image file as it is, in its own size and mode, but upright.

  Raises:
    CorruptImageError: if it is not an image, or not a whole one.
  """
  return _open(data, True, None, as_it_is=True)


def center_crop(image: Image.Image, size: int | tuple[int, int]) -> np.ndarray:
  """Scales an RGB image and cuts out its centre as ADM does, uint8[H, W, 3].

  ADM's are squares. `size` is the side of one, or height and width, which the
  scaled image covers.

  Raises:
    CorruptImageError: if it is so narrow that its enlargement would not fit
      into memory.
  """
  height, width = (size, size) if isinstance(size, int) else size
  while image.width >= 2 * width and image.height >= 2 * height:
    half = (image.width // 2, image.height // 2)
    image = image.resize(half, Image.Resampling.BOX)
  scale = max(width / image.width, height / image.height)
  scaled = (round(image.width * scale), round(image.height * scale))
  if scaled[0] * scaled[1] > _MOST_PIXELS:
    raise CorruptImageError(
      f'{image.width}x{image.height} pixels are too narrow a strip'
    )
  image = image.resize(scaled, Image.Resampling.BICUBIC)
  left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
  # Copied: a view would keep the whole image in memory.
  return np.array(image.crop((left, top, left + width, top + height)))


def to_unit(images: AnyArray) -> AnyArray:
  """Converts uint8[...] to float32[...] in [0, 1]; 255 becomes 1.

  Inside jit, too: bytes travel to a device faster than floats. There compilers
  turn a division by 255 into a product, which rounds half of the levels
  differently; the sum of two products gives the bits of the division. Images
  that are float32 already are returned as they are.
  """
  if images.dtype != np.uint8:  # type: ignore[attr-defined]
    return images
  x = images.astype(np.float32)  # type: ignore[attr-defined]
  return x * _HIGH + x * _LOW


def to_uint8(images: AnyArray, rounding: str = 'floor') -> AnyArray:
  """Converts float[...], clipped to [0, 1], to uint8[...]; also inside jit.

  Both conventions are in published use, and figures differ between them:

  * 'floor', ADM's sampling scripts: 255 x, clipped and truncated. Images lose
    half a level on average.
  * 'nearest', torchvision's save_image: 255 x + 0.5, clipped and truncated.

  Raises:
    ValueError: for another `rounding`.
  """
  if rounding not in ROUNDINGS:
    raise ValueError(f'rounding={rounding!r}: give one of {ROUNDINGS}')
  scaled = images.astype(np.float32) * 255  # type: ignore[attr-defined]
  if rounding == 'nearest':
    scaled = scaled + np.float32(0.5)
  return scaled.clip(0, 255).astype(np.uint8)


def _open(
  data: bytes,
  apply_orientation: bool,
  background: Sequence[int] | None,
  *,
  as_it_is: bool = False,
) -> Image.Image:
  """Opens and decodes a file, and turns it into RGB unless `as_it_is`."""
  if not data:
    raise CorruptImageError('the file is missing or empty')
  data, orientation = image_metadata.pixels_alone(data)
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as file:
      _check_size(file, len(data))
      image = _upright(file, orientation, apply_orientation)
      return image if as_it_is else _to_rgb(image, file.format, background)
  except Image.DecompressionBombError as error:
    # It says that of an honest map, too, and not how large it is.
    raise CorruptImageError(
      f'more than {MOST_SOURCE_PIXELS:,} pixels are not read; make it smaller'
    ) from error
  except (MemoryError, CorruptImageError):
    raise
  except Exception as error:
    # Broken files raise whatever the first thing that they break raises:
    # OSError, SyntaxError, struct.error, IndexError, ...
    message = ' '.join(str(error).split()) or type(error).__name__
    # Pillow names the stream, whose address differs each time.
    message = message.partition(' <_io.BytesIO')[0]
    raise CorruptImageError(message) from error


def _upright(file: Any, orientation: int, apply_orientation: bool) -> Any:
  """Decodes an open file, and turns it."""
  xmp = file.info.get('xmp', b'')
  xmp = xmp if isinstance(xmp, bytes) else b''
  if file.format == 'WEBP':
    exif = file.info.get('exif', b'')
    orientation = image_metadata.orientation_of(exif, xmp)
  elif file.format == 'TIFF':
    # Pillow turns these whether asked or not, but reads all their tags first.
    apply_orientation = True
    default = image_metadata.orientation_of(b'', xmp)
    orientation = file.tag_v2.get(image_metadata.ORIENTATION, default)
    file.load_end = lambda: None
  file.load()
  turn = _TURNS.get(orientation) if apply_orientation else None
  return file if turn is None else file.transpose(turn)


def _check_size(image: Image.Image, num_bytes: int) -> None:
  """Raises CorruptImageError for more pixels than are read, or can be there."""
  count = image.width * image.height
  size = f'{image.width}x{image.height} pixels'
  if count > MOST_SOURCE_PIXELS:
    raise CorruptImageError(
      f'{size}: more than {MOST_SOURCE_PIXELS:,} are not read; make it smaller'
    )
  if count > max(_MANY_PIXELS, _MOST_PIXELS_PER_BYTE * num_bytes):
    raise CorruptImageError(f'{size} in {num_bytes:,} bytes: it is cut off')


def _to_rgb(
  image: Image.Image, kind: str | None, background: Sequence[int] | None
) -> Image.Image:
  """Any mode to RGB; transparency is dropped, or composited on a background."""
  transparency = image.info.get('transparency')
  if image.mode.startswith('I;16') or (image.mode == 'I' and kind == 'PPM'):
    # Pillow would clip all levels above 255 to white; of colours with 16 bits
    # it takes the higher byte itself.
    levels = np.asarray(image).astype(np.uint16)
    image = Image.fromarray((levels >> 8).astype(np.uint8))
    if background is not None and isinstance(transparency, int):
      opaque = Image.fromarray(255 * (levels != transparency).astype(np.uint8))
      image.putalpha(opaque)
    transparency = None
  elif image.mode in ('I', 'F'):
    raise CorruptImageError(
      f"pixels of Pillow's mode {image.mode} have no known range"
    )
  if background is None or not _is_transparent(image, transparency):
    # Only a warning about losing it would come of it.
    image.info.pop('transparency', None)
    # Converting what is RGB would copy it.
    return image if image.mode == 'RGB' else image.convert('RGB')
  if isinstance(transparency, tuple) and max(transparency) > 255:
    # Of 16 bits, as the pixels were.
    image.info['transparency'] = tuple(level >> 8 for level in transparency)
  if image.mode in _PREMULTIPLIED:
    image = image.convert(_PREMULTIPLIED[image.mode])
  canvas = Image.new('RGBA', image.size, (*background, 255))
  canvas.alpha_composite(image.convert('RGBA'))
  return canvas.convert('RGB')


def _is_transparent(image: Image.Image, transparency: Any) -> bool:
  palette = image.palette.mode if image.palette else ''
  return (
    transparency is not None
    or image.mode in ('LA', 'PA', 'RGBA', *_PREMULTIPLIED)
    or (image.mode == 'P' and palette.endswith('A'))
  )
