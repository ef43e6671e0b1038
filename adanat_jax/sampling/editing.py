"""Editing real pictures: what is kept stays, the rest is drawn anew.

A picture is encoded, the tokens of the cells that are to change are masked, and
the generator decodes from that canvas: given tokens never change. The decoder
blurs what it was given, so the pixels that are kept are pasted back.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from adanat_jax.errors import UserError, shown
from adanat_jax.sampling import requests
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.program import Samples
from adanat_jax.sampling.requests import (
  InpaintingOptions,
  Labels,
  Pictures,
  SamplingOptions,
)

if TYPE_CHECKING:
  from PIL import Image

# Of Pillow's, those whose white is drawn anew.
_MASK_MODES = ('1', 'L', 'P', 'RGB')


def inpaint(
  generator: Generator,
  images: Pictures,
  mask: np.ndarray | Image.Image,
  labels: Labels | int | str,
  *,
  border: float | None = None,
  **sampling: Unpack[SamplingOptions],
) -> Samples:
  """Draws the masked part of pictures anew.

  Args:
    generator: what draws.
    images: float[H, W, C] or float[B, H, W, C] in [0, 1], or Pillow's.
    mask: bool[H, W] or bool[B, H, W], True where pixels are drawn anew, or the
      same of token cells, [h, w]; or a picture of Pillow's that is white there.
      A cell of which a pixel is masked is decoded whole.
    labels: what the result shows: class ids or names, or captions. One for all
      pictures, one for each, or many for one picture.
    border: width in pixels of the soft edge around the mask; None for half a
      cell. Kept pixels outside of it are equal to the last bit.
    **sampling: `num_steps`, `seed`, `policy` and others of `Generator.sample`.
      A learned policy counts from the unknown tokens, as MaskGIT's schedule.

  Returns:
    B samples; `images` are the pictures with the masked part replaced.

  Raises:
    UserError: for pictures of another size or range, and for a mask that is
      none, masks nothing, or is of another size.
  """
  batch, each = _paired(generator, images, labels)
  masks = pixel_masks(generator, mask, len(batch))
  side = generator.tokenizer.downsampling
  cells = _cells(masks, side)
  canvas = np.where(
    cells.reshape(len(batch), -1),
    generator.nat.codebook_size,
    generator.encode(batch),
  )
  samples = generator.sample(each, tokens=canvas, **sampling)
  weight = _soft(masks, side / 2 if border is None else border)[..., None]
  mixed = weight * samples.images + (1 - weight) * batch
  kept = np.where(weight == 0, batch, mixed).astype(np.float32)
  return dataclasses.replace(samples, images=kept)


def edit(
  generator: Generator,
  images: Pictures,
  box: tuple[int, int, int, int],
  labels: Labels | int | str,
  **options: Unpack[InpaintingOptions],
) -> Samples:
  """Draws what lies in a box anew, as something else.

  Args:
    generator: see `inpaint`, as for all that is not here.
    images: the pictures.
    box: top, left, bottom and right in pixels; the last two are not within.
    labels: what the box shows afterwards.
    **options: of `inpaint`.

  Raises:
    UserError: see `inpaint`; for a box that is empty or leaves the picture.
  """
  return inpaint(generator, images, box_mask(generator, box), labels, **options)


def box_mask(
  generator: Generator, box: tuple[int, int, int, int]
) -> np.ndarray:
  """The mask bool[H, W] of a box; see `edit`."""
  height, width, _ = generator.image_shape
  top, left, bottom, right = _integers('box', box, 4)
  if not (0 <= top < bottom <= height and 0 <= left < right <= width):
    raise UserError(
      f'box is {shown(box)}; give top, left, bottom, right within'
      f' {height}x{width} pixels, the first two below the others'
    )
  mask = np.zeros((height, width), bool)
  mask[top:bottom, left:right] = True
  return mask


def outpaint(
  generator: Generator,
  images: Pictures,
  sides: tuple[int, int, int, int],
  labels: Labels | int | str,
  **options: Unpack[InpaintingOptions],
) -> Samples:
  """Moves the window over pictures, and draws what comes into view.

  Args:
    generator: see `inpaint`, as for all that is not here.
    images: the pictures.
    sides: by how many pixels the window grows over the top, left, bottom and
      right edge. It keeps its size, so as many pixels leave it on the other
      side: of two opposite sides one must be 0.
    labels: what the result shows.
    **options: of `inpaint`.

  Raises:
    UserError: see `inpaint`; for sides that leave nothing of the picture.
  """
  return inpaint(generator, *moved(generator, images, sides), labels, **options)


def moved(
  generator: Generator, images: Pictures, sides: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """What `outpaint` masks: the moved pictures, float32[B, H, W, C].

  And which pixels of them come into view, bool[H, W].
  """
  batch = requests.pictures(images, generator.image_shape)
  height, width, _ = generator.image_shape
  top, left, bottom, right = _integers('sides', sides, 4)
  fits = max(top, bottom) < height and max(left, right) < width
  both = (top and bottom) or (left and right)
  if min(sides) < 0 or not any(sides) or not fits or both:
    raise UserError(
      f'sides are {shown(sides)}; give pixels at the top, left, bottom and'
      f' right, below {height}x{width}, one of two opposite ones 0'
    )
  rows = np.arange(height) + bottom - top
  columns = np.arange(width) + right - left
  inside = (rows >= 0) & (rows < height)
  across = (columns >= 0) & (columns < width)
  # The edge is continued under the mask, so that cells on it are not torn.
  rows_shown = batch[:, rows.clip(0, height - 1)]
  moved_batch = rows_shown[:, :, columns.clip(0, width - 1)]
  return moved_batch, ~(inside[:, None] & across[None])


def variations(
  generator: Generator,
  images: Pictures,
  strength: float,
  labels: Labels | int | str,
  **sampling: Unpack[SamplingOptions],
) -> Samples:
  """Draws a random share of the tokens of pictures anew.

  Args:
    generator: see `inpaint`, as for all that is not here.
    images: the pictures.
    strength: in (0, 1], the share of tokens; at least one is drawn.
    labels: what the pictures show.
    **sampling: of `Generator.sample`; the seed is that of the choice of tokens,
      too.

  Raises:
    UserError: see `inpaint`; for another strength.
  """
  number = isinstance(strength, int | float) and not isinstance(strength, bool)
  if not number or not 0 < strength <= 1:
    raise UserError(
      f'strength is {shown(strength)}; give a number above 0, at most 1'
    )
  batch, each = _paired(generator, images, labels)
  seed = requests.integer(
    'seed', sampling.get('seed', 0), 0, requests.LAST_SEED
  )
  count = max(1, round(strength * generator.nat.num_tokens))
  draws = np.random.default_rng(seed).random(
    (len(batch), generator.nat.num_tokens)
  )
  chosen = draws.argsort(axis=1).argsort(axis=1) < count
  canvas = np.where(
    chosen, generator.nat.codebook_size, generator.encode(batch)
  )
  return generator.sample(each, tokens=canvas, **sampling)


def pixel_masks(
  generator: Generator, mask: np.ndarray | Image.Image, count: int
) -> np.ndarray:
  """The mask of `inpaint` in pixels, bool[B, H, W], of `count` pictures."""
  height, width, _ = generator.image_shape
  side = generator.tokenizer.downsampling
  given = mask if isinstance(mask, np.ndarray) else _white(mask)
  shape = list(given.shape)
  size = given.shape[-2:]
  if size == (height // side, width // side) and side > 1:
    given = given.repeat(side, -1).repeat(side, -2)
    size = given.shape[-2:]
  whole = given.ndim == 2 or (given.ndim == 3 and len(given) == count)
  if given.dtype != bool or size != (height, width) or not whole:
    raise UserError(
      f'mask is {given.dtype}{shape}; give bool'
      f' [{height}, {width}] for pixels or [{height // side},'
      f' {width // side}] for tokens, of one picture or of each of {count}'
    )
  masks = np.broadcast_to(given, (count, height, width))
  if not masks.any(axis=(1, 2)).all():
    raise UserError(
      'mask is False everywhere (a picture: nowhere white): there is nothing to'
      ' draw'
    )
  return masks


def _white(mask: Any) -> np.ndarray:
  """Where a picture of Pillow's is white, bool[H, W]; or any array."""
  from PIL import Image

  if not isinstance(mask, Image.Image):
    return np.asarray(mask)
  if mask.mode not in _MASK_MODES:
    raise UserError(
      f'mask is a picture of mode {mask.mode}; give one of'
      f" {', '.join(_MASK_MODES)}, such as mask.convert('L'): what is white is"
      ' drawn anew'
    )
  return np.asarray(mask.convert('L')) >= 128


def _cells(masks: np.ndarray, side: int) -> np.ndarray:
  """Which cells hold a masked pixel, bool[B, h, w]."""
  count, height, width = masks.shape
  tiles = masks.reshape(count, height // side, side, width // side, side)
  return np.asarray(tiles.any(axis=(2, 4)))


def _soft(masks: np.ndarray, border: float) -> np.ndarray:
  """Weights of the new pixels, float32[B, H, W]: 1 within the masks.

  They fall to 0 over `border` pixels around.

  Raises:
    UserError: for a border that is no number from 0 on.
  """
  from scipy import ndimage

  number = isinstance(border, int | float) and not isinstance(border, bool)
  if not number or not 0 <= border < math.inf:
    raise UserError(f'border is {shown(border)}; give pixels, at least 0')
  # A masked pixel is 0 away from the mask, its neighbour 1.
  away = np.stack([ndimage.distance_transform_edt(~mask) for mask in masks])
  return np.clip(1 - away / (border + 1), 0, 1).astype(np.float32)


def _paired(
  generator: Generator, images: Pictures, labels: Labels | int | str
) -> tuple[np.ndarray, Any]:
  """Pictures float32[B, H, W, C] with a label each; one of either is repeated.

  Raises:
    UserError: for other numbers of them.
  """
  batch = requests.pictures(images, generator.image_shape)
  if isinstance(labels, int | str | np.integer):
    return batch, [labels] * len(batch)
  if len(batch) == 1:
    return batch.repeat(len(labels), axis=0), labels
  if len(labels) != len(batch):
    raise UserError(
      f'labels are {shown(labels)}; give one, or one for each of {len(batch)}'
      ' pictures'
    )
  return batch, labels


def _integers(name: str, given: Any, count: int) -> list[int]:
  if np.shape(given) != (count,) or np.asarray(given).dtype.kind not in 'iu':
    raise UserError(f'{name} is {shown(given)}; give {count} integers')
  return [int(value) for value in given]
