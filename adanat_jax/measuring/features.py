"""The networks whose features a distance is measured in, by their name.

inception  Inception-v3 of `evaluate.inception.init_from`: that of the FID
measure    the network that stage `judges` has trained on these pictures
pixels     no network: means of 8x8 boxes, which nothing can be tuned to
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from adanat_jax.data.images import to_uint8
from adanat_jax.experiment import datasets, networks
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import published_weights
from adanat_jax.models import layers
from adanat_jax.models.inception import InceptionV3
from adanat_jax.runtime import sharding
from adanat_jax.types import Array

_PIXELS_SIDE = 8


@dataclasses.dataclass(frozen=True)
class FeatureNetwork:
  """What images are measured with."""

  name: str  # 'inception', 'measure' or 'pixels'.
  params: Any  # Global arrays, whole or divided over the mesh.
  # Traced; `(params, images float32[B, H, W, C])` to features float32[B, d] and
  # logits float32[B, classes], None if it has none.
  apply: Callable[[Any, Array], tuple[Array, Array | None]]
  # SHA-256 of the files it was converted from, by their names.
  source: dict[str, str]
  # Whether these are the weights that the FID is defined by.
  is_published: bool = False

  def num_features(self, experiment: Experiment) -> int:
    """d, for the images of a config."""
    image = jax.ShapeDtypeStruct((1, *experiment.image_shape), jnp.float32)
    found, _ = jax.eval_shape(self.apply, self.params, image)
    return found.shape[1]

  def description(self) -> dict[str, Any]:
    """What a result says of it."""
    return {
      'network': self.name,
      'weights sha256': self.source,
      'published weights': self.is_published,
    }


def problems(
  experiment: Experiment, needs_reference: bool = True
) -> Iterator[str]:
  """Says why nothing can be measured; see `Experiment.check`.

  `needs_reference`: there must be moments, or images to make them of.
  """
  config = experiment.config
  section, data = config.evaluate, config.data
  if section.network == 'inception' and not section.inception.init_from:
    yield (
      'config.evaluate.inception.init_from is empty; give the directory that'
      ' python -m adanat_jax.convert --kind=inception wrote (docs/weights.md),'
      ' or another network by config.evaluate.network'
    )
  if section.network == 'measure' and section.inception.init_from:
    yield (
      'config.evaluate.inception.init_from is given, and'
      ' config.evaluate.network=measure does not read it: give inception'
    )
  if section.network == 'pixels' and any(
    side % _PIXELS_SIDE for side in experiment.image_shape[:2]
  ):
    yield (
      f'config.evaluate.network=pixels: images of {experiment.image_size}'
      f' pixels are no multiples of {_PIXELS_SIDE}'
    )
  path = section.statistics
  if not needs_reference:
    return
  if path and not pathlib.Path(path).is_file():
    yield f'config.evaluate.statistics={path}: there is no such file'
  if path:
    return
  found = list(datasets.problems(experiment))
  yield from found
  # The only source that may have no images, but their captions.
  split, source = section.reference_split, data.source
  if source == 'cc3m_tsv' and not (
    found or experiment.raw_source(split).has_images
  ):
    yield (
      f'config.evaluate.statistics is empty, and the {split} split of'
      f' config.data.source={source} holds captions alone: give a file of'
      ' moments, or a config.evaluate.reference_split with images'
    )


def load(experiment: Experiment) -> FeatureNetwork:
  """The network that `config.evaluate.network` names.

  Raises:
    UserError: if its weights are not there.
  """
  name = experiment.config.evaluate.network
  if name == 'inception':
    return _inception(experiment)
  if name == 'measure':
    module, params = experiment.network('measure')
    is_classifier = networks.num_classes(experiment.config, judged=True) > 0

    def apply(params: Any, images: Array) -> tuple[Array, Array | None]:
      found, logits = module.apply({'params': params}, images)
      return found, logits if is_classifier else None

    return FeatureNetwork(name, params, apply, {})
  return FeatureNetwork(name, {}, _pixels, {})


def rounded(images: Array, rounding: str) -> Array:
  """Images float32[B, H, W, C] in [0, 1] as a viewer of a file sees them.

  `rounding` is one of the conventions of `data.images.to_uint8`, or 'none',
  which leaves them as they are (AdaNAT).
  """
  if rounding == 'none':
    return images
  return to_uint8(images, rounding).astype(jnp.float32) / 255.0


def to_bytes(images: Array, rounding: str) -> Array:
  """Images as files hold them, uint8[B, H, W, C].

  What is measured unrounded is written to the nearest level.
  """
  return to_uint8(images, 'nearest' if rounding == 'none' else rounding)


def _inception(experiment: Experiment) -> FeatureNetwork:
  module = InceptionV3()
  image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
  shapes = experiment.param_shapes(module, image)
  section = 'evaluate.inception'
  params = experiment.load_converted(section, 'params', shapes)
  source = published_weights.source_of(experiment.field(section).init_from)

  def apply(params: Any, images: Array) -> tuple[Array, Array]:
    if images.shape[-1] == 1:
      images = jnp.repeat(images, 3, axis=-1)
    variables = {'params': sharding.whole(params)}
    out = layers.side_by_side(lambda x: module.apply(variables, x), images)
    # The score takes the logits without the classifier's bias.
    return out.pool3, out.unbiased_logits

  known = published_weights.is_published(source, published_weights.INCEPTION)
  return FeatureNetwork('inception', params, apply, source, known)


def _pixels(params: Any, images: Array) -> tuple[Array, None]:
  """Means of 8 times 8 boxes, float32[B, 64 C]."""
  del params
  count, *sides, channels = images.shape
  height, width = (side // _PIXELS_SIDE for side in sides)
  boxes = images.reshape(
    count, _PIXELS_SIDE, height, _PIXELS_SIDE, width, channels
  )
  return boxes.mean(axis=(2, 4)).reshape(count, -1), None
