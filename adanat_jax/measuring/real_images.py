"""Real images, and what a network says of them, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import concurrent.futures
import os
from typing import Any

from absl import logging
import jax
import numpy as np

from adanat_jax.data import images as images_lib, prefetch, raw_images
from adanat_jax.data.order import epoch_batch
from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring.features import FeatureNetwork
from adanat_jax.runtime import sharding

# A covariance needs two images, and an image's third neighbour three others.
_FEWEST = 4


def too_few(counts: Mapping[str, int], width: int) -> list[str]:
  """Says which sets, by their names, have no covariance of `width` features."""
  return [
    f'{count} {name} images are too few to measure a Fréchet distance with in'
    f' {width} features: compare it at equal numbers of images alone, or give'
    f' more than {width}, or go by the kernel distance (docs/evaluation.md)'
    for name, count in counts.items()
    if count <= width
  ]


class RealImages:
  """The images of a split as they are: not mirrored, captions unread."""

  def __init__(self, experiment: Experiment, split: str):
    """Opens the source.

    Raises:
      UserError: if there is none, or it has no images or too few.
    """
    self._experiment = experiment
    self._digits = None
    if experiment.is_digits:
      self._digits = experiment.examples(split, 'images')
      self.description: dict[str, Any] = {'source': 'digits', 'split': split}
      return
    self._source = experiment.raw_source(split)
    if not self._source.has_images:
      raise UserError(
        f'config.data: the {split} split of source'
        f' {experiment.config.data.source} holds captions alone; give'
        ' moments of images by config.evaluate.statistics'
      )
    if len(self) < _FEWEST:
      raise UserError(
        f'config.data: the {split} split has {len(self)} images; at least'
        f' {_FEWEST} are needed to measure with'
      )
    self.description = dict(self._source.description)
    self._pool = concurrent.futures.ThreadPoolExecutor(
      os.cpu_count() or 1, thread_name_prefix='decode'
    )

  def __len__(self) -> int:
    return len(self._source if self._digits is None else self._digits)

  def take(self, index: np.ndarray) -> dict[str, np.ndarray]:
    """Decodes images int[n].

    Returns:
      `images` [n, H, W, C], uint8 or in [0, 1], `condition` int32[n], 0 where
      there are captions, and `is_read` bool[n]; images that cannot be read are
      black.
    """
    if self._digits is not None:
      rows = self._digits.take(index)
      return {**rows, 'is_read': np.ones(len(index), bool)}
    found = list(self._pool.map(self._decode, index.tolist()))
    black = np.zeros(self._experiment.image_shape, np.uint8)
    return {
      'images': np.stack([black if x is None else x for x, _ in found]),
      'condition': np.array([label or 0 for _, label in found], np.int32),
      'is_read': np.array([x is not None for x, _ in found]),
    }

  def _decode(self, index: int) -> tuple[np.ndarray | None, int | None]:
    """Pixels, None where they cannot be read, and the class."""
    data = self._experiment.config.data
    example = self._source[index]
    try:
      pixels = raw_images.decode(
        example,
        self._experiment.image_shape[:2],
        data.apply_orientation,
        self._experiment.background,
      )
    except images_lib.CorruptImageError as error:
      logging.warning('%s is left out: %s', example.key, error)
      return None, example.label
    return pixels, example.label

  def check_share(self, skipped: int, count: int | None = None) -> None:
    """Raises UserError if more images cannot be read than the config allows.

    Of `count`; None for all.
    """
    if self._digits is not None:
      return
    limit = self._experiment.config.data.max_corrupt_share
    count = len(self) if count is None else count
    if skipped > limit * count:
      raise UserError(
        f'{skipped} of {count} images cannot be read, more than'
        f' config.data.max_corrupt_share={limit} allows; the log names them'
      )

  def measured(
    self, network: FeatureNetwork, index: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Features of images int[n], in batches of `Experiment.batch_size`.

    Each process reads its part, and gets the features of all.

    Yields:
      float32[b, d], and bool[b]: False for images that cannot be read.
    """
    mesh = self._experiment.mesh
    size = self._experiment.batch_size
    size = -(-size // mesh.size) * mesh.size
    num_batches = -(-len(index) // size)

    def rows_at(batch: int) -> dict[str, np.ndarray]:
      places = sharding.local_rows(batch * size + np.arange(size), mesh)
      # The last batch is filled up from the beginning.
      return self.take(index[places % len(index)])

    apply = jax.jit(
      lambda params, x: network.apply(params, images_lib.to_unit(x))[0]
    )

    def computed() -> Iterator[tuple[int, Any]]:
      with prefetch.Prefetch(rows_at, num_steps=num_batches) as ahead:
        for batch in range(num_batches):
          rows = sharding.put_batch(ahead(batch), mesh)
          with jax.set_mesh(mesh):
            found = apply(network.params, rows['images'])
          yield min(size, len(index) - batch * size), (found, rows['is_read'])

    for num_real, arrays in prefetch.one_behind(computed()):
      found, is_read = sharding.gather(arrays)
      yield found[:num_real], is_read[:num_real]


def some_features(
  experiment: Experiment, network: FeatureNetwork, split: str, count: int
) -> np.ndarray:
  """Features of real images drawn from a split, float32[at most count, d].

  Raises:
    UserError: if too many images cannot be read.
  """
  images = RealImages(experiment, split)
  count = min(count, len(images))
  seed = experiment.order_seed('evaluate/real')
  index = epoch_batch(0, count, len(images), seed)
  parts = [found[is_read] for found, is_read in images.measured(network, index)]
  result = np.concatenate(parts)
  images.check_share(count - len(result))
  return result
