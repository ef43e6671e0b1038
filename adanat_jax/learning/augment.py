"""Random changes of images that keep what they show.

Pure functions for use inside jit. Images are float32[B, H, W, C] in [0, 1].
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adanat_jax.types import Array


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
