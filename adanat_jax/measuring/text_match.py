"""How well generated images fit their captions, by networks trained here.

The measuring network of stage `judges`, where it has learned by contrast with
captions, and the network of words that was trained with it. This is no CLIP
score: it knows these pictures and these words, and compares methods on them
alone. Two figures: the mean cosine of an image and its caption; and, where
there are two captions or more, the share of images that are nearer to their
caption than to all of up to 99 others, as many for each image, which can be
told without knowing the scale of the cosines.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.experiment import texts
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import contrast
from adanat_jax.measuring import published_weights
from adanat_jax.measuring.scores import Conditions
from adanat_jax.runtime import sharding
from adanat_jax.types import Array

# Captions that an image is compared with.
_MOST_COMPARED = 100


def is_wanted(experiment: Experiment) -> bool:
  """Whether the network that measures has learned from captions."""
  measures = experiment.config.evaluate.network == 'measure'
  return measures and experiment.judges_learn == 'captions'


class TextMatch:
  """The measures of each image; an `Observer` of `scores`."""

  def __init__(
    self, experiment: Experiment, conditions: Conditions, chosen: np.ndarray
  ):
    """Loads both networks.

    Args:
      experiment: its stage `judges` has finished.
      conditions: of the samples.
      chosen: the number of each sample's caption, from `conditions.of`.

    Raises:
      UserError: if they have not been trained, or not on captions.
    """
    self._mesh = experiment.mesh
    self._conditions = conditions
    self._chosen = chosen
    self._images, images = experiment.network('measure')
    self._texts = texts.judging_module(experiment)
    ids = jnp.asarray(texts.judged_ids(['']))
    text = experiment.load_trained(
      'judges/measure',
      'text',
      functools.partial(experiment.param_shapes, self._texts, ids),
    )
    # Distinct captions, in the samples' random order.
    several = conditions.captions(chosen[: 10 * _MOST_COMPARED])
    # Of long ones the network reads the same words.
    by_words = {row.tobytes(): row for row in texts.judged_ids(several)}
    compared = np.stack([*by_words.values()][:_MOST_COMPARED])
    others = sharding.shard_state(compared, self._mesh)
    self.params: Any = {'images': images, 'text': text, 'others': others}
    name = functools.partial(
      published_weights.figure_name,
      network='measure',
      published=False,
      num_samples=len(chosen),
    )
    self.names = (name('text_cosine'), name('text_found'))[: len(compared)]
    self.description = {
      'networks': 'trained in stage judges, by contrast of these captions',
      'captions compared': len(compared),
    }

  def inputs(self, index: np.ndarray) -> Any:
    """The ids of the samples' captions, int32[B, L], global."""
    rows = sharding.local_rows(self._chosen[index], self._mesh)
    ids = texts.judged_ids(self._conditions.captions(rows))
    return sharding.put_batch(ids, self._mesh)

  def measure(
    self, params: Any, images: Array, inputs: Array
  ) -> dict[str, Array]:
    """Cosine with its caption, and whether that is the nearest, float32[B]."""
    read = lambda ids: self._texts.apply({'params': params['text']}, ids).pooled
    image = self._images.apply({'params': params['images']}, images)[1]
    own = jax.vmap(
      lambda one, text: contrast.cosines(one[None], text[None])[0, 0]
    )(image, read(inputs))
    count = len(params['others'])
    if count < 2:
      return {self.names[0]: own}
    others = contrast.cosines(image, read(params['others']))
    same = (inputs[:, None] == params['others'][None]).all(-1)
    # A caption that is not among them would have one rival more: leave out the
    # last.
    is_last = jnp.arange(count) == count - 1
    same = same | (is_last & ~same.any(1, keepdims=True))
    nearest = jnp.where(same, -jnp.inf, others).max(1)
    found = (own > nearest).astype(jnp.float32)
    return dict(zip(self.names, (own, found), strict=True))
