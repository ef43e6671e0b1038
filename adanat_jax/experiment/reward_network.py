"""The inputs of a config's reward network, and what it must fit.

It is the transformer that stage `judges` trains on the pictures of the run, or
DINO's ViT-S/16 at 224 pixels (LeapLabTHU/AdaNAT libs/discriminator.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.experiment import networks
from adanat_jax.models import layers, vit
from adanat_jax.models.discriminator import prepare_images
from adanat_jax.runtime import checkpoint
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment

# How the names of a transformer's blocks begin.
_BLOCK = 'params/blocks_'


def is_trained(experiment: Experiment) -> bool:
  """Whether stage `judges` trains the network: no weights of it are named.

  What a benchmark's figures are compared with was made with the published one.
  """
  has_published = bool(experiment.config.evaluate.benchmark)
  return not (has_published or experiment.is_converted('judges.reward'))


def knows_classes(experiment: Experiment) -> bool:
  """Whether the network was trained to tell the classes of the pictures."""
  judged = networks.num_classes(experiment.config, judged=True)
  outputs = networks.reward_module(experiment.config).num_outputs
  return 0 < judged == outputs


def problems(experiment: Experiment) -> Iterator[str]:
  """Says why the reward network does not fit; see `Experiment.check`."""
  found = list(problems_of_sizes(experiment))
  yield from found or _problems_of_weights(experiment)
  config = experiment.config
  section, shown = config.judges.reward, experiment.image_size
  size = section.image_size or shown
  if section.normalisation == 'centred' and size != shown:
    yield (
      f'config.judges.reward.image_size is {size}; with'
      f' normalisation=centred images stay as they are, of {shown} pixels: give'
      ' 0'
    )
  if experiment.is_digits:
    if section.normalisation == 'imagenet':
      yield (
        'config.judges.reward.normalisation=imagenet is of three colours; the'
        ' digits have one: give centred'
      )
    return
  sections = {}
  if not is_trained(experiment):
    sections['judges.reward'] = 'dino'
  if experiment.text_network == 'clip':
    sections['text'] = 'clip_text'
  for name, kind in sections.items():
    if not experiment.is_converted(name):
      yield (
        f'config.{name}.init_from is empty; give the directory that python -m'
        f' adanat_jax.convert --kind={kind} wrote (docs/weights.md)'
      )


def _problems_of_weights(experiment: Experiment) -> Iterator[str]:
  """Says whether the weights that are named are of another size."""
  if not experiment.is_converted('judges.reward'):
    return
  section = experiment.config.judges.reward
  try:
    found = checkpoint.read_layouts(section.init_from)
  except UserError:
    return  # There are none, which is told elsewhere.
  channels = networks.image_shape(experiment.config)[2]
  sizes = section.patch_size, section.patch_size, channels, section.width
  ours = f'float32[{",".join(map(str, sizes))}]'
  theirs = found.get('params/patches/kernel', ours)
  depth = len({x.split('/')[1] for x in found if x.startswith(_BLOCK)})
  if theirs != ours or depth != section.depth:
    yield (
      f'config.judges.reward.init_from={section.init_from}: its patches have'
      f' weights {theirs}, and it has {depth} blocks; patch_size, width and'
      f' depth of config.judges.reward make {ours} and {section.depth} blocks.'
      ' Give the sizes of that network, its num_heads, hooks, image_size and'
      ' normalisation too (docs/weights.md), or no weights'
    )


def problems_of_sizes(experiment: Experiment) -> Iterator[str]:
  """Says which sizes of the reward network do not go together."""
  section = experiment.config.judges.reward
  size = section.image_size or experiment.image_size
  sides = layers.sides_of(section.image_size or experiment.image_shape[:2])
  if any(side % section.patch_size for side in sides):
    yield (
      f'config.judges.reward.patch_size is {section.patch_size}; it must divide'
      f' the {size} pixels that the reward network sees'
    )
  yield from experiment.no_divisors(
    {'judges.reward.num_heads': 'judges.reward.width'}
  )
  if max(section.hooks) >= section.depth:
    yield (
      f'config.judges.reward.hooks={section.hooks} is not allowed with'
      f' config.judges.reward.depth={section.depth}: give blocks from 0 to'
      f' {section.depth - 1}'
    )


def inputs(
  experiment: Experiment, images: Array, key: Array | None = None
) -> Array:
  """Images as the reward network of `config.judges.reward` takes them.

  Args:
    experiment: names the network.
    images: float32[B, H, W, C] in [0, 1].
    key: decides whether larger images are cropped, and where: all of a batch
      alike, as published. None averages them down.

  Returns:
    float32[B, h, w, C], of the size that the network sees.
  """
  config = experiment.config
  section = config.judges.reward
  if section.normalisation == 'centred':
    return networks.centred(images)
  height, width = images.shape[1:3]
  size = section.image_size or (height, width)

  def prepare(images: Array, corner: Array | None = None) -> Array:
    return prepare_images(
      images, size, vit.IMAGENET_MEAN, vit.IMAGENET_STD, corner
    )

  sides = layers.sides_of(size)
  spare = np.array([height - sides[0], width - sides[1]])
  fits = spare.min() >= 0 and spare.max() > 0
  if key is None or not fits or section.crop_probability == 0.0:
    return prepare(images)
  chance_key, corner_key = jax.random.split(key)
  corner = jax.random.randint(corner_key, (2,), 0, spare + 1)
  return jax.lax.cond(
    jax.random.bernoulli(chance_key, section.crop_probability),
    lambda images: prepare(images, corner),
    prepare,
    images,
  )
