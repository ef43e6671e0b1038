"""Random changes of images that keep what they show.

Pure functions for use inside jit. Images are float32[B, H, W, C] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math

import jax
import jax.numpy as jnp

from adanat_jax.types import Array

# Of a crop, width over height (Szegedy et al. 2015, "Going Deeper with
# Convolutions", section 6).
_ASPECTS = (3 / 4, 4 / 3)


@dataclasses.dataclass(frozen=True)
class Augmentation:
  """Which of the changes below images go through, and how strong they are."""

  max_shift: int = 0  # images are shifted by up to this many pixels
  cutout: int = 0  # side of the square that is blanked, in pixels
  noise: float = 0.0  # standard deviation of the noise that is added
  least_crop: float = 1.0  # smallest share of the area that a crop has
  jitter: float = 0.0  # how far brightness, contrast and saturation change

  def __call__(self, keys: Sequence[Array], images: Array) -> Array:
    """Changes images; `keys` are five."""
    images = crop(keys[3], images, self.least_crop)
    images = jitter(keys[4], images, self.jitter)
    images = shift(keys[0], images, self.max_shift)
    images = cutout(keys[1], images, self.cutout)
    return add_noise(keys[2], images, self.noise)


def shift(key: Array, images: Array, max_shift: int) -> Array:
  """Moves each image by up to `max_shift` pixels each way, zeros moving in."""
  if max_shift == 0:
    return images
  pad = ((0, 0), (max_shift, max_shift), (max_shift, max_shift), (0, 0))
  padded = jnp.pad(images, pad)
  start = jax.random.randint(key, (images.shape[0], 2), 0, 2 * max_shift + 1)

  def crop(image: Array, start: Array) -> Array:
    return jax.lax.dynamic_slice(image, (*start, 0), images.shape[1:])

  return jax.vmap(crop)(padded, start)


def cutout(key: Array, images: Array, size: int) -> Array:
  """Blanks a square of `size` pixels at a random place of each image."""
  if size == 0:
    return images
  batch, height, width, _ = images.shape
  keys = jax.random.split(key)
  top = jax.random.randint(keys[0], (batch, 1), 0, height - size + 1)
  left = jax.random.randint(keys[1], (batch, 1), 0, width - size + 1)
  rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
  inside_rows = (rows >= top) & (rows < top + size)
  inside_columns = (columns >= left) & (columns < left + size)
  inside = inside_rows[:, :, None] & inside_columns[:, None, :]
  return jnp.where(inside[..., None], 0.0, images)


def add_noise(key: Array, images: Array, std: float) -> Array:
  """Adds Gaussian noise of standard deviation `std`, clipped to [0, 1]."""
  noise = std * jax.random.normal(key, images.shape)
  return jnp.clip(images + noise, 0.0, 1.0)


def crop(key: Array, images: Array, least: float) -> Array:
  """Cuts a random window out of each image and enlarges it to the whole.

  Its share of the area is uniform in [least, 1], and the logarithm of its
  aspect ratio between those of 3/4 and 4/3; sides end at those of the image.
  """
  if least == 1.0:
    return images
  keys = jax.random.split(key, 3)
  shape = images.shape[:1]
  area = jax.random.uniform(keys[0], shape, minval=least)
  low, high = (math.log(aspect) / 2 for aspect in _ASPECTS)
  stretch = jnp.exp(jax.random.uniform(keys[1], shape, minval=low, maxval=high))
  sides = jnp.sqrt(area) * jnp.stack([1 / stretch, stretch])
  sides = jnp.minimum(sides, 1.0)
  starts = jax.random.uniform(keys[2], sides.shape) * (1.0 - sides)
  rows = _window(images.shape[1], starts[0], sides[0])
  columns = _window(images.shape[2], starts[1], sides[1])
  return jnp.einsum('bih,bhwc,bjw->bijc', rows, images, columns)


def _window(size: int, start: Array, side: Array) -> Array:
  """Which pixels the pixels of an enlarged window are between.

  Args:
    size: H, pixels of the axis.
    start: float32[B], where the windows begin, as shares of the axis.
    side: float32[B], how long they are.

  Returns:
    float32[B, H, H]: bilinear weights, which sum to 1 over the last axis.
  """
  centre = (jnp.arange(size) + 0.5) / size
  place = size * (start[:, None] + side[:, None] * centre) - 0.5
  place = jnp.clip(place, 0.0, size - 1.0)
  return jax.nn.relu(1.0 - jnp.abs(place[..., None] - jnp.arange(size)))


def jitter(key: Array, images: Array, strength: float) -> Array:
  """Changes brightness, then contrast, then saturation, of each image.

  Each is multiplied by a factor uniform in 1 - strength to 1 + strength: the
  image, its distance from its mean, that of its colours from their mean.
  """
  if strength == 0.0:
    return images
  factors = jax.random.uniform(
    key, (3, images.shape[0], 1, 1, 1), minval=1 - strength, maxval=1 + strength
  )
  images = factors[0] * images
  mean = images.mean(axis=(1, 2, 3), keepdims=True)
  images = mean + factors[1] * (images - mean)
  grey = images.mean(axis=-1, keepdims=True)
  return jnp.clip(grey + factors[2] * (images - grey), 0.0, 1.0)
