"""The adversarial reward of a config: its networks and its real images.

A projected discriminator: trained heads on the features of a frozen network.
Real images come in the training's batches, with their class or their caption's
token ids, which the frozen text network embeds (AdaNAT, section 3.3;
LeapLabTHU/AdaNAT train.py and libs/discriminator.py). How it learns:
`adanat_jax.learning.discriminator`.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.data import images as images_lib
from adanat_jax.data.examples import ArrayExamples, Examples
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  config as config_lib,
  networks,
  policies,
  reward_network,
  texts,
)
from adanat_jax.learning import discriminator as discriminator_lib
from adanat_jax.learning.rewards import Labelled, RewardModel, RewardSpec
from adanat_jax.models import vit
from adanat_jax.models.captions import TextNetwork
from adanat_jax.models.discriminator import (
  GROUP_SIZE,
  DiscriminatorHeads,
  advance_spectral,
)
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import sharding
from adanat_jax.types import Array, Condition

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment
  from adanat_jax.sampling import best_of


def real_examples(experiment: Experiment, split: str) -> Examples:
  """The discriminator's real images, with their conditions.

  With `reconstruct_real` they go through the tokenizer, as generated ones do:
  no schedule can undo its blur, and a discriminator that tells images apart by
  it gives no useful reward. Images in memory are reconstructed here, others in
  the train step.
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
class _ProjectedDiscriminator:
  """The networks, which become functions of the heads' state by `bind`."""

  experiment: Experiment
  trunk: vit.VisionTransformer  # the frozen network
  heads: DiscriminatorHeads  # what is trained
  # What reads captions; None for classes.
  text: TextNetwork | None
  # Reconstructs real images when they are read; None: it does not.
  tokenizer: VQGAN | None

  def bind(self, frozen: Any) -> discriminator_lib.Discriminator:
    """The networks as functions, with the arrays that no training changes."""
    return discriminator_lib.Discriminator(
      init=functools.partial(self._init, frozen),
      features=functools.partial(self._features, frozen),
      heads=self._logits,
      read=functools.partial(self._read, frozen),
    )

  def _features(
    self, frozen: Any, images: Array, key: Array | None
  ) -> tuple[Array, ...]:
    inputs = reward_network.inputs(self.experiment, images, key)
    variables = {'params': sharding.whole(frozen['reward'])}
    return self.trunk.apply(variables, inputs).features

  def _read(self, frozen: Any, batch: Mapping[str, Array]) -> Labelled:
    images = images_lib.to_unit(batch['images'])
    if self.tokenizer is not None:
      params = sharding.whole(frozen['tokenizer'])
      images = _rebuild(self.tokenizer, params, images)
    if self.text is None:
      return images, batch['condition']
    return images, texts.conditions(self.text, frozen['text'], batch)[1]

  def _logits(
    self,
    params: Any,
    spectral: Any,
    layers: Any,
    condition: Condition,
    train: bool,
  ) -> tuple[Array, Any]:
    variables = {'params': params, 'spectral': spectral}
    if not train:
      return self.heads.apply(variables, layers, condition), spectral
    logits, changed = self.heads.apply(
      variables, layers, condition, train=True, mutable=['spectral']
    )
    return logits, changed['spectral']

  def _init(self, frozen: Any, key: Array) -> tuple[Any, Any]:
    # The parameters do not depend on the images.
    shape = (GROUP_SIZE, *self.experiment.image_shape)
    if self.text is None:
      condition = jnp.zeros(GROUP_SIZE, jnp.int32)
    else:
      condition = jnp.zeros((GROUP_SIZE, self.text.projection_width))
    layers = self._features(frozen, jnp.zeros(shape), None)
    variables = self.heads.init(key, layers, condition)
    spectral = variables['spectral']
    # The published code starts from random vectors, so that its first rewards
    # have random sign and scale (0 iterations here).
    for _ in range(self.experiment.config.policy.discriminator.spectral_warmup):
      spectral = advance_spectral(variables['params'], spectral)
    return variables['params'], spectral


def make_spec(experiment: Experiment, groups: int) -> RewardSpec:
  """A projected discriminator on the frozen reward network, trained in turn.

  Args:
    experiment: its reward network is trained or converted.
    groups: see `learning.discriminator.deal`.

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
  text = tokenizer = None
  if experiment.is_text:
    text, frozen['text'] = experiment.network('text')
  if section.reconstruct_real and not experiment.is_digits:
    tokenizer, frozen['tokenizer'] = experiment.network('tokenizer')
  discriminator = _ProjectedDiscriminator(
    experiment,
    trunk,
    networks.discriminator_module(config),
    text,
    tokenizer,
  )

  def initial(frozen: Any, key: Array) -> discriminator_lib.DiscriminatorState:
    return discriminator_lib.initial_state(
      discriminator.bind(frozen), optimizer, key
    )

  def build(frozen: Any) -> RewardModel:
    return discriminator_lib.make_reward_model(
      discriminator.bind(frozen),
      optimizer,
      updates=section.updates,
      batch_size=section.batch_size,
      groups=groups,
      held_out=frozen.get('held_out'),
      # Configs of older versions have no such fields.
      loss=section.get('loss', 'logistic'),
      groupings=section.get('groupings', 1),
    )

  return RewardSpec(frozen, build, initial)


def load_discriminator(
  workdir: str | os.PathLike[str], groupings: int = 8
) -> best_of.Score:
  """The final discriminator of a workdir's policy, as a score for `best_of`.

  Of several policies of the adversarial reward it takes the first one's.

  Args:
    workdir: of `adanat_jax.main`.
    groupings: an image's score depends on seven others of the call; it is the
      mean over so many draws of these. So it depends on what else is scored,
      on the size of batches, and on the number of devices where that is padded.

  Returns:
    A function of images float32[M, H, W, C] in [0, 1] and classes int32[M]
    that returns how real they are, float32[M] in (0, 1). It raises UserError
    for images of another shape.

  Raises:
    UserError: if there is no such policy, or it was trained on captions.
  """
  from adanat_jax.experiment.experiment import Experiment

  return discriminator_score(Experiment.of_workdir(workdir), groupings)


def drawing_discriminator(experiment: Experiment) -> best_of.Score:
  """That of `config.generator`, by default that of this workdir.

  Raises:
    UserError: see `load_discriminator`.
  """
  path = experiment.config.get('generator', '')
  if not path:
    return discriminator_score(experiment)
  try:
    return load_discriminator(path)
  except UserError as error:
    raise UserError(f'config.generator={path}: {error}') from error


def discriminator_stage(experiment: Experiment) -> str:
  """The finished training whose discriminator scores draws.

  Raises:
    UserError: see `load_discriminator`.
  """
  if experiment.is_text:
    raise UserError(
      f'{experiment.workdir} was trained on captions, of which its'
      ' discriminator reads more than a generator keeps; give best_of a'
      ' function of your own'
    )
  stages = [
    f'policy/{training.name}'
    for training in policies.trainings(experiment)
    if training.reward == 'adversarial'
  ]
  stage = next(filter(experiment.is_complete, stages), None)
  if stage is None:
    raise UserError(
      f'{experiment.workdir} holds no discriminator; first run: '
      + config_lib.rerun(
        '--config.mode=policy', '--config.policy.rewards=adversarial'
      )
    )
  return stage


def discriminator_score(
  experiment: Experiment, groupings: int = 8
) -> best_of.Score:
  """That of an experiment, see `load_discriminator`."""
  stage = discriminator_stage(experiment)
  trunk, frozen = experiment.network('reward')
  heads = networks.discriminator_module(experiment.config)
  networks_of = _ProjectedDiscriminator(experiment, trunk, heads, None, None)
  shapes = lambda: jax.eval_shape(
    lambda frozen: networks_of.bind({'reward': frozen}).init(jax.random.key(0)),
    frozen,
  )
  load = functools.partial(experiment.load_trained, stage)
  state = discriminator_lib.DiscriminatorState(
    load('adversary/params', lambda: shapes()[0]),
    load('adversary/spectral', lambda: shapes()[1]),
    None,
  )

  @jax.jit
  def scores(frozen: Any, state: Any, images: Array, labels: Array) -> Array:
    discriminator = networks_of.bind({'reward': frozen})
    return discriminator_lib.regrouped_reward(
      functools.partial(discriminator_lib.score, discriminator.heads, state),
      (discriminator.features(images, None), labels),
      jax.random.key(0),
      groupings=groupings,
      groups=1,
    )

  def score(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    mesh, count = experiment.mesh, len(images)
    if images.shape[1:] != experiment.image_shape:
      raise UserError(
        f'the discriminator of {experiment.workdir} scores images of'
        f' {list(experiment.image_shape)}; given are {list(images.shape[1:])}'
      )
    multiple = GROUP_SIZE * mesh.size
    # The last group is filled up from the beginning.
    index = np.resize(np.arange(count), -(-count // multiple) * multiple)
    rows = sharding.local_rows(index, mesh)
    batch = sharding.put_batch((images[rows], labels[rows]), mesh)
    with jax.set_mesh(mesh):
      found = scores(frozen, state, *batch)
    return sharding.gather(found)[:count]

  return score


def _held_out(experiment: Experiment) -> dict[str, Any]:
  """Test images on which the discriminator's accuracy is reported."""
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
