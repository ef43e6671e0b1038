"""How well generated images fit their captions: the cosine that CLIP gives.

The mean cosine itself, between -1 and 1. Others publish it times 100, or 2.5
times what is above 0 (CLIPScore).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.data import clip_tokens
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import published_weights
from adanat_jax.measuring.scores import Conditions
from adanat_jax.models import clip
from adanat_jax.runtime import sharding
from adanat_jax.types import Array

SECTIONS = ('text', 'image')


def is_wanted(experiment: Experiment) -> bool:
  """Whether there are captions, and a CLIP to compare images with."""
  return experiment.is_text and experiment.is_converted('evaluate.clip.image')


def problems(experiment: Experiment) -> Iterator[str]:
  """Says that one of CLIP's towers is missing; see `Experiment.check`."""
  section = experiment.config.evaluate.clip
  if is_wanted(experiment) and not section.text.init_from:
    yield (
      'config.evaluate.clip.text.init_from is empty; give the text tower beside'
      ' that of config.evaluate.clip.image.init_from, or neither'
    )


def load_tower(experiment: Experiment, name: str) -> tuple[Any, Any]:
  """CLIP's 'text' or 'image' tower of `evaluate.clip`, and its parameters.

  Raises:
    UserError: for weights that are not there or of another tower.
  """
  text, image = clip.TOWERS[experiment.config.evaluate.clip.tower]
  if name == 'text':
    tower, shape = (
      text,
      jax.ShapeDtypeStruct((1, text.num_positions), jnp.int32),
    )
  else:
    side = image.image_size
    tower, shape = image, jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  return tower, experiment.load_converted(
    f'evaluate.clip.{name}', 'params', experiment.param_shapes(tower, shape)
  )


class ClipScore:
  """The measure of each image; an `Observer` of `scores`."""

  def __init__(
    self, experiment: Experiment, conditions: Conditions, chosen: np.ndarray
  ):
    """Loads both towers.

    Args:
      experiment: `evaluate.clip` is read.
      conditions: of the samples.
      chosen: the number of each sample's caption, from `conditions.of`.

    Raises:
      UserError: for weights that are not there or of another tower.
    """
    section = experiment.config.evaluate.clip
    self._mesh = experiment.mesh
    self._conditions = conditions
    self._chosen = chosen
    self._vocabulary = section.tokenizer
    self._text, text = load_tower(experiment, 'text')
    self._image, image = load_tower(experiment, 'image')
    self.params: Any = {'text': text, 'image': image}
    sources = {
      name: published_weights.source_of(section[name].init_from)
      for name in SECTIONS
    }
    published = all(
      published_weights.is_published(source, published_weights.CLIP)
      and published_weights.CLIP[next(iter(source.values()))] == section.tower
      for source in sources.values()
    )
    self.names = (published_weights.agreement_name(published, len(chosen)),)
    self.description = {
      'tower': section.tower,
      'weights sha256': sources,
      'published weights': published,
    }

  def inputs(self, index: np.ndarray) -> Any:
    """The token ids of the samples' captions, int32[B, 77], global."""
    rows = sharding.local_rows(self._chosen[index], self._mesh)
    ids = clip_tokens.tokenize(
      self._conditions.captions(rows),
      self._text.num_positions,
      self._vocabulary,
    )
    return sharding.put_batch(ids, self._mesh)

  def measure(
    self, params: Any, images: Array, inputs: Array
  ) -> dict[str, Array]:
    """The cosine of each image and its caption, float32[B]."""
    with jax.default_matmul_precision('highest'):
      text = self._text.apply({'params': params['text']}, inputs).pooled
      prepared = clip.prepare_images(images, self._image.image_size)
      image = self._image.apply({'params': params['image']}, prepared)
    norms = jnp.linalg.norm(text, axis=1) * jnp.linalg.norm(image, axis=1)
    return {self.names[0]: (text * image).sum(axis=1) / norms}
