"""What evaluation measures of a set of images, against the training images.

frechet          Fréchet distance in features of the measuring network
pixel_frechet    the same in principal components of 8x8 pixels, no network
kernel_distance  unbiased squared MMD in the measuring features
precision        share of images near real ones, in the measuring features
recall           share of real images near generated ones
density          how many real images an image is near, 1 where it is real
coverage         share of real images that have a generated one near
accuracy         share whose asked condition the measuring network sees

The reference is always the whole training split.
"""

from __future__ import annotations

import functools

import jax
import numpy as np

from adanat_jax.data import digits
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.metrics import (
  frechet,
  kernel_distance,
  pixels,
  precision_recall,
)
from adanat_jax.runtime import sharding

MEASURES = (
  *('frechet', 'pixel_frechet', 'kernel_distance', 'precision', 'recall'),
  *('density', 'coverage', 'accuracy'),
)


class Measures:
  """The measuring network and the reference, ready to measure."""

  def __init__(self, experiment: Experiment):
    """Loads the measuring network and describes the training images."""
    config = experiment.config
    module, params = experiment.network('measure')
    data = digits.load(config.data.image_size)
    self._kind = config.data.condition
    apply = jax.jit(lambda params, x: module.apply({'params': params}, x))
    self._apply = functools.partial(apply, params)
    self._pixels = pixels.PixelPrincipalComponents.fit(data.train_images)
    self._features = self._network(data.train_images)[0]
    self._gaussian = frechet.gaussian_of(self._features)
    self._pixel_gaussian = frechet.gaussian_of(
      self._pixels.features(data.train_images)
    )

  def _network(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    features, logits = sharding.gather(self._apply(images))
    return features, logits

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
    seen = digits.condition_of(logits.argmax(-1), self._kind)
    return {
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
      'accuracy': float((seen == condition).mean()),
    }
