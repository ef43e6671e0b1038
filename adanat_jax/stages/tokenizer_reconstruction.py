"""How well a tokenizer rebuilds images: figures, and a picture to look at.

Images are read and rebuilt a batch at a time, so that memory does not grow with
their number; sums are kept in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from adanat_jax.data import images as images_lib, order
from adanat_jax.data.examples import Examples
from adanat_jax.learning.vq import perplexity
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.report import pictures
from adanat_jax.runtime import sharding
from adanat_jax.types import Array

# What a device is given at a time; all digits of a split are fewer.
_PIXELS_OF_A_DEVICE = 2**19
_NUM_DRAWN = 16
# A line of the picture is not wider, and digits are drawn larger.
_WIDTH_OF_A_LINE = 2048
_LARGEST_SCALE = 3


class Reconstruction:
  """Rebuilds images by a tokenizer, the same way for every set of them."""

  def __init__(
    self,
    module: VQGAN,
    mesh: Mesh,
    most: int,
    picture: pathlib.Path | None = None,
  ):
    """Compiles nothing yet.

    Args:
      module: the tokenizer.
      mesh: the devices.
      most: how many images of a split are read; 0 for all.
      picture: where the first images that were measured last are drawn above
        their reconstructions; None for nowhere.
    """
    self._module = module
    self._mesh = mesh
    self._most = most
    self._picture = picture

    @jax.jit
    def rebuild(variables: Any, images: Array) -> tuple[Array, Array, Array]:
      images = images_lib.to_unit(images)
      tokens = module.apply(variables, images, method='tokenize')
      rebuilt = module.apply(variables, tokens, method='decode_tokens')
      return images, tokens, rebuilt

    self._rebuild = rebuild

  def figures(
    self, params: Any, splits: Mapping[str, Examples]
  ) -> dict[str, float]:
    """The figures of `measure` of each split, by `<split>_<figure>`."""
    return {
      f'{name}_{key}': value
      for name, examples in splits.items()
      for key, value in self.measure(params, name, examples).items()
    }

  def measure(
    self, params: Any, name: str, examples: Examples
  ) -> dict[str, float]:
    """Measures the reconstructions of one split.

    Args:
      params: of the tokenizer.
      name: of the split.
      examples: with `images` [H, W, C], bytes or in [0, 1].

    Returns:
      The mean squared error, the same as a share of the variance of all pixels
      and in decibels, the number of codes that occur and the perplexity of
      their frequencies.
    """
    usage = np.zeros(self._module.codebook_size, np.int64)
    pixels, error = _Moments(), _Moments()
    for images, tokens, rebuilt in self._batches(params, examples):
      if self._picture is not None and not pixels.count:
        label = 'held-out images' if name == 'test' else f'{name} images'
        _draw(self._picture, label, images[:_NUM_DRAWN], rebuilt[:_NUM_DRAWN])
      usage += np.bincount(tokens.reshape(-1), minlength=usage.size)
      pixels.add(images)
      error.add((rebuilt - images) ** 2)
    return {
      'error': error.mean,
      'error_of_variance': error.mean / pixels.variance,
      'decibels': -10 * math.log10(max(error.mean, 1e-10)),
      'codes_used': int((usage > 0).sum()),
      'perplexity': float(perplexity(jnp.asarray(usage))),
    }

  def _batches(
    self, params: Any, examples: Examples
  ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Images float[n, H, W, C], tokens int[n, N] and reconstructions."""
    index = chosen(len(examples), self._most)
    height, width = examples.take(index[:1])['images'].shape[1:3]
    size = max(1, _PIXELS_OF_A_DEVICE // (height * width)) * self._mesh.size
    for start in range(0, len(index), size):
      part = index[start : start + size]
      # Devices take equal shares; what fills them up is dropped again.
      missing = -len(part) % self._mesh.size
      full = np.pad(part, (0, missing), mode='edge')
      rows = sharding.local_rows(full, self._mesh)
      images = sharding.put_batch(examples.take(rows)['images'], self._mesh)
      found = sharding.gather(self._rebuild({'params': params}, images))
      images, tokens, rebuilt = (array[: len(part)] for array in found)
      yield images, tokens, rebuilt


def chosen(count: int, most: int) -> np.ndarray:
  """Up to `most` of `count` examples, drawn once for all; 0: all, in order."""
  if not most:
    return np.arange(count)
  return order.epoch_batch(0, min(most, count), count, seed=0)


@dataclasses.dataclass
class _Moments:
  """Mean and variance of numbers that come in parts (Chan et al. 1979)."""

  count: int = 0
  mean: float = 0.0
  squares: float = 0.0  # Sum of squared distances from the mean.

  def add(self, values: np.ndarray) -> None:
    mean, size = float(values.mean()), values.size
    gap, total = mean - self.mean, self.count + size
    self.squares += float(values.var()) * size
    self.squares += gap**2 * self.count * size / total
    self.mean = (self.mean * self.count + mean * size) / total
    self.count = total

  @property
  def variance(self) -> float:
    return self.squares / self.count


def _draw(
  path: pathlib.Path, label: str, originals: np.ndarray, rebuilt: np.ndarray
) -> None:
  width = originals.shape[2]
  scale = max(1, min(_LARGEST_SCALE, 64 // width))
  pictures.save_pairs(
    path,
    [(label, originals), ('reconstructions', rebuilt)],
    columns=max(1, min(_NUM_DRAWN, _WIDTH_OF_A_LINE // (width * scale))),
    scale=scale,
  )
