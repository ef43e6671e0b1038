"""Pixels on the devices, where they arrive as bytes."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from adanat_jax.types import Array

# 1 / 255 in two parts: any byte times the first one is exact.
_HIGH = np.float32(4112 / 2**20)
_LOW = np.float32(1 / 255 - 4112 / 2**20)


def to_unit(images: Array) -> Array:
  """`data.images.to_unit` inside jit: bytes travel faster than floats.

  Compilers turn a division by 255 into a product, and half of the results
  would be others in their last bit. In two parts it is exact.

  Args:
    images: uint8, of any shape; or float32 in [0, 1], which stay.

  Returns:
    float32 in [0, 1], the bits that division gives.
  """
  if images.dtype != jnp.uint8:
    return images
  x = images.astype(jnp.float32)
  return x * _HIGH + x * _LOW
