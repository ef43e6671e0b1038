"""What evaluation measures of a set of images, against the training images.

frechet          Fréchet distance in features of the measuring network
pixel_frechet    the same in principal components of 8x8 pixels, no network
kernel_distance  unbiased squared MMD in the measuring features
precision        share of images near real ones, in the measuring features
recall           share of real images near generated ones
density          how many real images an image is near, 1 where it is real
coverage         share of real images that have a generated one near
accuracy         share whose asked condition the measuring network sees

The reference is the whole training split, or 2,000 images drawn from a larger
one. The accuracy is left out where the measuring network knows no classes.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from adanat_jax.data import images as images_lib
from adanat_jax.data.order import epoch_batch
from adanat_jax.errors import UserError
from adanat_jax.experiment import datasets, networks
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring.real_images import RealImages, too_few
from adanat_jax.metrics import (
  frechet,
  kernel_distance,
  pixels,
  precision_recall,
)
from adanat_jax.runtime import sharding
from adanat_jax.types import Array

MEASURES = (
  *('frechet', 'pixel_frechet', 'kernel_distance', 'precision', 'recall'),
  *('density', 'coverage', 'accuracy'),
)
# Fewer have no fifth neighbour. They are held in memory.
FEWEST = 6
_MOST_REAL = 2000
_COMPONENTS = 32  # of pixels


def real_images(
  experiment: Experiment, split: str
) -> tuple[np.ndarray, np.ndarray]:
  """Images of a split float32[n, H, W, C] in [0, 1], conditions int32[n].

  Raises:
    UserError: if there are too few, or too many cannot be read.
  """
  images = RealImages(experiment, split)
  index = np.arange(len(images))
  if len(images) > _MOST_REAL:
    seed = experiment.order_seed('study')
    index = np.sort(epoch_batch(0, _MOST_REAL, len(images), seed))
  rows = images.take(index)
  is_read = rows['is_read']
  images.check_share(int((~is_read).sum()))
  found = images_lib.to_unit(rows['images'][is_read])
  return found, rows['condition'][is_read]


def map_in_batches(
  function: Callable[[Any], Any], inputs: np.ndarray, size: int
) -> Any:
  """Applies a function of batches to an array [n, ...] of any length.

  Batches have one size, at most `size`; the last one is filled up. Results are
  arrays of hosts [n, ...], or nested containers of such.
  """
  size = min(size, len(inputs))
  parts = [
    sharding.gather(function(np.resize(part, (size, *inputs.shape[1:]))))
    for part in (
      inputs[start : start + size] for start in range(0, len(inputs), size)
    )
  ]
  return jax.tree.map(lambda *x: np.concatenate(x)[: len(inputs)], *parts)


class Measures:
  """The measuring network and the reference, ready to measure."""

  def __init__(self, experiment: Experiment):
    """Loads the measuring network and describes the training images."""
    self._experiment = experiment
    module, params = experiment.network('measure')

    @jax.jit
    def apply(params: Any, images: Array) -> tuple[Array, Array]:
      return module.apply({'params': params}, images)

    self._apply = functools.partial(apply, params)
    real, _ = real_images(experiment, 'train')
    self.num_real = len(real)
    if len(real) < FEWEST:
      raise UserError(
        f'config.data: the train split has {len(real)} images that can be read;'
        f' {FEWEST} are needed to measure with'
      )
    self._pixels = pixels.PixelPrincipalComponents.fit(
      real, min(_COMPONENTS, len(real) - 1)
    )
    self._features = self._network(real)[0]
    self._gaussian = frechet.gaussian_of(self._features)
    self._pixel_gaussian = frechet.gaussian_of(self._pixels.features(real))

  def _network(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    size = self._experiment.batch_size
    features, logits = map_in_batches(self._apply, images, size)
    return features, logits

  def warnings(self, num_samples: int) -> list[str]:
    """Says which sets are too small for a covariance of the features."""
    counts = {'generated': num_samples, 'real': self.num_real}
    return too_few(counts, self._features.shape[1])

  def distance(self, images: np.ndarray) -> float:
    """The Fréchet distance alone, for searches."""
    features, _ = self._network(images)
    return frechet.frechet_distance(
      frechet.gaussian_of(features), self._gaussian
    )

  def __call__(
    self, images: np.ndarray, condition: np.ndarray
  ) -> dict[str, float]:
    """All measures.

    Args:
      images: float32[B, H, W, C] in [0, 1].
      condition: int32[B], what was asked for.
    """
    features, logits = self._network(images)
    shares = precision_recall.precision_recall(self._features, features)
    balls = precision_recall.density_coverage(self._features, features)
    result = {
      'frechet': frechet.frechet_distance(
        frechet.gaussian_of(features), self._gaussian
      ),
      'pixel_frechet': frechet.frechet_distance(
        frechet.gaussian_of(self._pixels.features(images)), self._pixel_gaussian
      ),
      'kernel_distance': kernel_distance.squared_mmd(self._features, features),
      'precision': shares.precision,
      'recall': shares.recall,
      'density': balls.density,
      'coverage': balls.coverage,
    }
    if networks.num_classes(self._experiment.config, judged=True):
      seen = datasets.condition_of(self._experiment, logits.argmax(-1))
      result['accuracy'] = float((seen == condition).mean())
    return result
