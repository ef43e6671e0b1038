"""The adversarial reward of a config: a discriminator that learns in turn.

A projected discriminator: heads that are trained on the features of a frozen
network. Real images come in the training's batches, with their class or the
token ids of their caption; what a caption says is read by the frozen text tower
(AdaNAT, section 3.3; LeapLabTHU/AdaNAT train.py and libs/discriminator.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from adanat_jax.data import images as images_lib
from adanat_jax.data.examples import ArrayExamples, Examples
from adanat_jax.errors import UserError
from adanat_jax.experiment import networks, reward_network, texts
from adanat_jax.learning import discriminator as discriminator_lib, rewards
from adanat_jax.learning.policy import Judge, Labelled
from adanat_jax.models import vit
from adanat_jax.models.clip import CLIPText
from adanat_jax.models.discriminator import (
  GROUP_SIZE,
  DiscriminatorHeads,
  advance_spectral,
)
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import sharding
from adanat_jax.types import Array, Condition, Reward

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment

Config = ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True)
class Court:
  """A judge before it is traced: its arrays apart from what it does.

  Attributes:
    frozen: arrays that the judge needs and no training changes.
    judge: `frozen -> Judge`.
    initial: `(frozen, key) -> AdversaryState`, None without a discriminator.
  """

  frozen: Any
  judge: Callable[[Any], Judge]
  initial: Callable[[Any, Array], discriminator_lib.AdversaryState] | None = (
    None
  )


def real_examples(experiment: Experiment, split: str) -> Examples:
  """What the discriminator is to take for real: images and what they show.

  With `reconstruct_real` they go through the tokenizer, as generated ones do:
  what it blurs no schedule can mend, and a discriminator that tells images
  apart by it rewards nothing. Images in memory have been through it here,
  others go when they are read.
  """
  examples = experiment.examples(split, 'images', mirrored=split == 'train')
  if not experiment.config.policy.discriminator.reconstruct_real:
    return examples
  if not isinstance(examples, ArrayExamples):
    return examples
  module, params = experiment.network('tokenizer')
  rebuilt = jax.jit(_rebuild, static_argnums=0)(
    module, params, examples.arrays['images']
  )
  return ArrayExamples({**examples.arrays, 'images': sharding.gather(rebuilt)})


def _rebuild(module: VQGAN, params: Any, images: Array) -> Array:
  """Images float32[B, H, W, C] that have been through the tokenizer."""
  variables = {'params': params}
  tokens = module.apply(variables, images, method='tokenize')
  return module.apply(variables, tokens, method='decode_tokens')


@dataclasses.dataclass(frozen=True)
class _Discriminator:
  """The networks, as functions of the arrays that no training changes.

  Attributes:
    experiment: of this run.
    trunk: the frozen network.
    heads: what learns.
    text: the tower that reads captions; None for classes.
    tokenizer: what real images go through when they are read, if anything.
  """

  experiment: Experiment
  trunk: vit.VisionTransformer
  heads: DiscriminatorHeads
  text: CLIPText | None
  tokenizer: VQGAN | None

  def features(
    self, frozen: Any, images: Array, key: Array | None
  ) -> tuple[Array, ...]:
    """What the heads read of images."""
    inputs = reward_network.inputs(self.experiment, images, key)
    variables = {'params': sharding.whole(frozen['reward'])}
    return self.trunk.apply(variables, inputs).features

  def real(self, frozen: Any, batch: Mapping[str, Array]) -> Labelled:
    """Real images and what they show, as the discriminator takes them."""
    images = images_lib.to_unit(batch['images'])
    if self.tokenizer is not None:
      params = sharding.whole(frozen['tokenizer'])
      images = _rebuild(self.tokenizer, params, images)
    if self.text is None:
      return images, batch['condition']
    return images, texts.conditions(self.text, frozen['text'], batch)[1]

  def logits(
    self,
    params: Any,
    spectral: Any,
    layers: Any,
    condition: Condition,
    train: bool,
  ) -> tuple[Array, Any]:
    """See `adversary.Heads`."""
    variables = {'params': params, 'spectral': spectral}
    if not train:
      return self.heads.apply(variables, layers, condition), spectral
    logits, changed = self.heads.apply(
      variables, layers, condition, train=True, mutable=['spectral']
    )
    return logits, changed['spectral']

  def initial(self, frozen: Any, key: Array) -> tuple[Any, Any]:
    """New parameters of the heads, and their spectral vectors."""
    side = self.experiment.config.data.image_size
    # What parameters are does not depend on what they are shown.
    shape = (GROUP_SIZE, side, side, self.trunk.image_channels)
    if self.text is None:
      condition = jnp.zeros(GROUP_SIZE, jnp.int32)
    else:
      condition = jnp.zeros((GROUP_SIZE, self.text.projection_width))
    layers = self.features(frozen, jnp.zeros(shape), None)
    variables = self.heads.init(key, layers, condition)
    spectral = variables['spectral']
    # The published code starts from random vectors, so that its first rewards
    # have random sign and scale (0 iterations here).
    for _ in range(self.experiment.config.policy.discriminator.spectral_warmup):
      spectral = advance_spectral(variables['params'], spectral)
    return variables['params'], spectral


def court(
  experiment: Experiment,
  groups: int,
  text: tuple[CLIPText, Any] | None = None,
) -> Court:
  """A projected discriminator on the frozen reward network, trained in turn.

  Args:
    experiment: its reward network is trained or converted.
    groups: generated images are dealt out to the updates within this many
      equal parts of the batch, so that none moves between as many devices.
    text: the text tower and its parameters, where images have captions.

  Raises:
    UserError: for a network or images that are not there.
  """
  config = experiment.config
  section = config.policy.discriminator
  optimizer = optax.adam(section.learning_rate, b1=0.5, b2=0.999)
  trunk, trunk_params = experiment.network('reward')
  frozen = {'reward': trunk_params}
  if section.held_out:
    frozen['held_out'] = _held_out(experiment)
  if text is not None:
    frozen['text'] = text[1]
  tokenizer = None
  if section.reconstruct_real and not experiment.is_digits:
    tokenizer, frozen['tokenizer'] = experiment.network('tokenizer')
  discriminator = _Discriminator(
    experiment,
    trunk,
    networks.discriminator_module(config),
    text[0] if text is not None else None,
    tokenizer,
  )

  def initial(frozen: Any, key: Array) -> discriminator_lib.AdversaryState:
    params, spectral = discriminator.initial(frozen, key)
    return discriminator_lib.AdversaryState(
      params, spectral, optimizer.init(params)
    )

  def judge(frozen: Any) -> Judge:
    return _judge(discriminator, optimizer, frozen, groups)

  return Court(frozen, judge, initial)


def _held_out(experiment: Experiment) -> dict[str, Any]:
  """Test images on which the discriminator's accuracy is told."""
  count = experiment.config.policy.discriminator.held_out
  examples = real_examples(experiment, 'test')
  if count > len(examples):
    raise UserError(
      f'config.policy.discriminator.held_out is {count}; there are only'
      f' {len(examples)} test images'
    )
  index = np.arange(count)
  if not isinstance(examples, ArrayExamples):
    # Files may be sorted by class.
    index = index * len(examples) // count
  mesh = experiment.mesh
  return sharding.put_batch(
    dict[str, Any](examples.take(sharding.local_rows(index, mesh))), mesh
  )


def _judge(
  discriminator: _Discriminator,
  optimizer: optax.GradientTransformation,
  frozen: Any,
  groups: int,
) -> Judge:
  """The discriminator as a reward, and its learning; traced."""
  section = discriminator.experiment.config.policy.discriminator
  heads = discriminator.logits

  def score(
    state: discriminator_lib.AdversaryState, labelled: Labelled, key: Array
  ) -> Array:
    images, condition = labelled
    layers = discriminator.features(frozen, images, key)
    return discriminator_lib.score(heads, state, layers, condition)

  def reward(state: discriminator_lib.AdversaryState) -> Reward:
    return rewards.adversarial_reward(
      lambda images, condition, key: score(state, (images, condition), key)[
        :, None
      ]
    )

  def accuracies(
    state: discriminator_lib.AdversaryState,
    real: Any,
    fakes: Labelled,
    key: Array,
  ) -> dict[str, Array]:
    # Samples share statistics in groups: real ones of both kinds are scored
    # under the same state, and all in the same crop.
    first = discriminator.real(frozen, jax.tree.map(lambda x: x[0], real))
    scores = {'train': (score(state, first, key), True)}
    if 'held_out' in frozen:
      held_out = discriminator.real(frozen, frozen['held_out'])
      scores['held_out'] = score(state, held_out, key), True
    scores['generated'] = score(state, fakes, key), False
    return {
      f'accuracy_{name}': discriminator_lib.accuracy(value, is_real)
      for name, (value, is_real) in scores.items()
    }

  def learn(
    state: discriminator_lib.AdversaryState,
    real: Any,
    fakes: Labelled,
    fresh: Callable[[Array, Array], Labelled] | None,
    key: Array,
  ) -> tuple[discriminator_lib.AdversaryState, dict[str, Array]]:
    # `split` takes the numbers below.
    crop_key, told_key = (
      jax.random.fold_in(key, section.updates + i) for i in range(2)
    )
    metrics = accuracies(state, real, fakes, told_key)
    if fresh is None:
      deal = lambda x: dealt(x, section.updates, section.batch_size, groups)
      fake_batches: Any = jax.tree.map(deal, fakes)
    else:
      keys = jax.random.split(key, section.updates)
      fake_batches = keys, jnp.arange(section.updates)

    def body(state: Any, batch: Any) -> tuple[Any, Any]:
      real_batch, fake, crop_keys = batch
      real_images, real_condition = discriminator.real(frozen, real_batch)
      fake_images, fake_condition = fake if fresh is None else fresh(*fake)
      layers = [
        discriminator.features(frozen, images, crop_key)
        for images, crop_key in zip(
          (real_images, fake_images), crop_keys, strict=True
        )
      ]
      return discriminator_lib.update(
        heads,
        optimizer,
        state,
        (layers[0], real_condition),
        (layers[1], fake_condition),
      )

    crop_keys = jax.random.split(crop_key, (section.updates, 2))
    state, history = jax.lax.scan(
      body,
      state,
      (real, fake_batches, crop_keys),
      # On a CPU a convolution inside a loop takes ten times as long.
      unroll=jax.default_backend() == 'cpu',
    )
    return state, metrics | jax.tree.map(lambda x: x.mean(), history)

  return Judge(reward, learn, fakes_per_update=section.batch_size)


def dealt(rows: Array, updates: int, size: int, groups: int) -> Array:
  """Deals a batch out to several smaller ones, again from its start if short.

  Args:
    rows: [B, ...].
    updates: U, how many batches.
    size: S, rows in each.
    groups: equal consecutive parts of the batch; the g-th part of every small
      batch comes from the g-th part of the batch. It divides B and S.

  Returns:
    [U, S, ...].
  """
  parts = rows.reshape(groups, -1, *rows.shape[1:])
  share = size // groups
  chosen = parts[:, np.arange(updates * share) % parts.shape[1]]
  chosen = chosen.reshape(groups, updates, share, *rows.shape[1:])
  return sharding.split_batch(
    jnp.moveaxis(chosen, 0, 1).reshape(updates, size, *rows.shape[1:]), 1
  )
