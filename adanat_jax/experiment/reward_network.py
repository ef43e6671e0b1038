"""What the reward network of a config is shown, and whether it can judge it.

For the digits that is a small transformer of stage `judges`; for real images
DINO's ViT-S/16 at 224 pixels (LeapLabTHU/AdaNAT libs/discriminator.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import ml_collections

from adanat_jax.errors import UserError
from adanat_jax.experiment import networks
from adanat_jax.experiment.fields import (
  between,
  check,
  choice,
  int_at_least,
  tuple_of,
)
from adanat_jax.models import vit
from adanat_jax.models.discriminator import prepare_images
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment

Config = ml_collections.ConfigDict


def check_config(experiment: Experiment) -> None:
  """Raises UserError for a reward network that cannot judge the images."""
  config = experiment.config
  section = config.judges.reward
  check(
    config,
    {
      'judges.reward.image_size': int_at_least(0),
      'judges.reward.normalisation': choice('centred', 'imagenet'),
      'judges.reward.crop_probability': between(0.0, 1.0),
      'judges.reward.hooks': tuple_of(choice(*range(section.depth))),
    },
  )
  size = section.image_size or config.data.image_size
  if size % section.patch_size:
    raise UserError(
      f'config.judges.reward.patch_size is {section.patch_size}; it must divide'
      f' the {size} pixels that the reward network sees'
    )
  if section.normalisation == 'centred' and size != config.data.image_size:
    raise UserError(
      f'config.judges.reward.image_size is {size}; with normalisation=centred'
      f' images stay as they are, of {config.data.image_size} pixels'
    )
  if experiment.is_digits:
    if section.normalisation == 'imagenet':
      raise UserError(
        'config.judges.reward.normalisation=imagenet is of three colours; the'
        ' digits have one: give centred'
      )
    return
  for name in config.policy.rewards:
    if name != 'adversarial':
      raise UserError(
        f'config.policy.rewards holds {name}, which judges the digits alone;'
        f' give adversarial for config.data.source={config.data.source}'
      )
  sections = {'judges.reward': 'dino'}
  if experiment.is_text:
    sections['text'] = 'clip_text'
  for name, kind in sections.items():
    if not experiment.is_converted(name):
      raise UserError(
        f'config.{name}.init_from is empty; give the directory that python -m'
        f' adanat_jax.convert --kind={kind} wrote (docs/weights.md)'
      )


def inputs(
  experiment: Experiment, images: Array, key: Array | None = None
) -> Array:
  """Images as the reward network of `config.judges.reward` takes them.

  Args:
    experiment: of this run.
    images: float32[B, H, W, C] in [0, 1].
    key: decides whether larger images are cropped, and where: all of a batch
      alike, as published. None averages them down.

  Returns:
    float32[B, S, S, C], S being the side that the network sees.
  """
  config = experiment.config
  section = config.judges.reward
  if section.normalisation == 'centred':
    return networks.centred(images)
  size = section.image_size or config.data.image_size

  def prepare(images: Array, corner: Array | None = None) -> Array:
    return prepare_images(
      images, size, vit.IMAGENET_MEAN, vit.IMAGENET_STD, corner
    )

  spare = min(images.shape[1:3]) - size
  if key is None or spare <= 0 or section.crop_probability == 0.0:
    return prepare(images)
  chance_key, corner_key = jax.random.split(key)
  corner = jax.random.randint(corner_key, (2,), 0, spare + 1)
  return jax.lax.cond(
    jax.random.bernoulli(chance_key, section.crop_probability),
    lambda images: prepare(images, corner),
    prepare,
    images,
  )
