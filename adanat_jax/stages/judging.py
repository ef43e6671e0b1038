"""The reward of a policy training, and how its discriminator learns.

Each function makes the court of one reward from the networks of a workdir: the
arrays it needs, placed on the mesh, and the functions that become its `Judge`
inside the compiled training step. Arrays are handed in, never closed over: a
compiled function would hold them as constants.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from adanat_jax import distributed, sharding
from adanat_jax.data import digits
from adanat_jax.errors import UserError
from adanat_jax.models.discriminator import advance_spectral
from adanat_jax.rl import adversary, rewards
from adanat_jax.rl.trainer import Judge, Labelled
from adanat_jax.stages import networks
from adanat_jax.types import Array, Reward


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
  initial: Callable[[Any, Array], adversary.AdversaryState] | None = None


def _learn_nothing(
  state: None, real: Any, fakes: Labelled, fresh: Any, key: Array
) -> tuple[None, dict[str, Array]]:
  del real, fakes, fresh, key
  return state, {}


def _unlearned(reward: Reward) -> Judge:
  """A reward that no discriminator stands behind."""
  return Judge(lambda state: reward, _learn_nothing)


def frechet_court(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> Court:
  """Each sample's influence on the distance in the reward's features."""
  module, params = networks.load_reward(config, workdir)
  data = digits.load(config.data.image_size)

  def features(params: Any, images: Array) -> Array:
    variables = {'params': sharding.whole(params)}
    return module.apply(variables, networks.centred(images)).cls

  real = sharding.gather(jax.jit(features)(params, data.train_images))
  real = real.astype(np.float64)

  def judge(frozen: Any) -> Judge:
    return _unlearned(
      rewards.frechet_reward(
        functools.partial(features, frozen['reward']),
        frozen['mean'],
        frozen['covariance'],
      )
    )

  # One host's: unlike processors may differ in the last bit.
  mean, covariance = distributed.from_first(
    lambda: [real.mean(0).tolist(), np.cov(real, rowvar=False).tolist()]
  )
  statistics = sharding.shard_state(
    {
      'mean': np.asarray(mean, np.float32),
      'covariance': np.asarray(covariance, np.float32),
    },
    networks.mesh_of(config),
  )
  return Court({'reward': params, **statistics}, judge)


def pretrained_court(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> Court:
  """The reward network's log-probability of the asked condition."""
  module, params = networks.load_reward(config, workdir)
  classes = digits.condition_of(np.arange(10), config.data.condition)

  def judge(frozen: Any) -> Judge:
    def log_probs(images: Array) -> Array:
      inputs = networks.centred(images)
      variables = {'params': sharding.whole(frozen['reward'])}
      out = module.apply(variables, inputs).outputs
      # The network knows ten digits; a condition's probability is their sum.
      members = jax.nn.one_hot(classes, networks.num_classes(config))
      return jnp.log(jax.nn.softmax(out) @ members + 1e-6)

    return _unlearned(rewards.pretrained_reward(log_probs))

  return Court({'reward': params}, judge)


def adversarial_court(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, groups: int
) -> Court:
  """A projected discriminator on the frozen reward network, trained in turn.

  Args:
    config: the whole config.
    workdir: its reward network must be trained.
    groups: generated images are dealt out to the updates within this many
      equal parts of the batch, so that none moves between as many devices.
  """
  section = config.policy.discriminator
  trunk, trunk_params = networks.load_reward(config, workdir)
  heads_module = networks.discriminator_module(config)
  optimizer = optax.adam(section.learning_rate, b1=0.5, b2=0.999)
  mesh = networks.mesh_of(config)
  held_out = real_images(config, workdir, 'test')
  if section.held_out > len(held_out[1]):
    raise UserError(
      f'config.policy.discriminator.held_out is {section.held_out}; there are'
      f' only {len(held_out[1])} test images'
    )
  rows = sharding.local_rows(np.arange(section.held_out), mesh)
  frozen = {
    'reward': trunk_params,
    'held_out': sharding.put_batch(tuple(x[rows] for x in held_out), mesh),
  }

  def features(frozen: Any, images: Array) -> tuple[Array, ...]:
    inputs = networks.centred(images)
    variables = {'params': sharding.whole(frozen['reward'])}
    return trunk.apply(variables, inputs).features

  def heads(
    params: Any, spectral: Any, layers: Any, condition: Array, train: bool
  ) -> tuple[Array, Any]:
    variables = {'params': params, 'spectral': spectral}
    if not train:
      return heads_module.apply(variables, layers, condition), spectral
    logits, changed = heads_module.apply(
      variables, layers, condition, train=True, mutable=['spectral']
    )
    return logits, changed['spectral']

  def initial(frozen: Any, key: Array) -> adversary.AdversaryState:
    images, condition = jax.tree.map(lambda x: x[:8], frozen['held_out'])
    variables = heads_module.init(key, features(frozen, images), condition)
    return adversary.AdversaryState(
      variables['params'],
      _warm(variables, section.spectral_warmup),
      optimizer.init(variables['params']),
    )

  def judge(frozen: Any) -> Judge:
    def score(state: adversary.AdversaryState, labelled: Labelled) -> Array:
      images, condition = labelled
      return adversary.score(heads, state, features(frozen, images), condition)

    def reward(state: adversary.AdversaryState) -> Reward:
      def logits(images: Array, condition: Array, key: Array) -> Array:
        del key
        return score(state, (images, condition))[:, None]

      return rewards.adversarial_reward(logits)

    def learn(
      state: adversary.AdversaryState,
      real: Labelled,
      fakes: Labelled,
      fresh: Callable[[Array], Labelled] | None,
      key: Array,
    ) -> tuple[adversary.AdversaryState, dict[str, Array]]:
      # Samples share statistics in groups: real ones of both kinds are scored
      # under the same state.
      scores = {
        'train': (score(state, jax.tree.map(lambda x: x[0], real)), 1),
        'held_out': (score(state, frozen['held_out']), 1),
        'generated': (score(state, fakes), 0),
      }
      metrics = {
        f'accuracy_{name}': adversary.accuracy(value, bool(is_real))
        for name, (value, is_real) in scores.items()
      }
      if fresh is None:
        deal = lambda x: dealt(x, section.updates, section.batch_size, groups)
        fake_batches = jax.tree.map(deal, fakes)
      else:
        fake_batches = jax.random.split(key, section.updates)

      def body(state: Any, batch: Any) -> tuple[Any, Any]:
        (real_images, real_condition), fake = batch
        fake_images, fake_condition = fake if fresh is None else fresh(fake)
        return adversary.update(
          heads,
          optimizer,
          state,
          (features(frozen, real_images), real_condition),
          (features(frozen, fake_images), fake_condition),
        )

      # Unrolled: on a CPU a convolution inside a loop takes ten times as long.
      state, history = jax.lax.scan(
        body, state, (real, fake_batches), unroll=True
      )
      return state, metrics | jax.tree.map(lambda x: x.mean(), history)

    return Judge(reward, learn, fakes_per_update=section.batch_size)

  return Court(frozen, judge, initial)


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


def real_images(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, split: str
) -> tuple[np.ndarray, np.ndarray]:
  """What the discriminator is to take for real: images and conditions.

  With `reconstruct_real` they have been through the tokenizer, as generated
  ones have: what it blurs no schedule can mend, and a discriminator that tells
  images apart by it rewards nothing.
  """
  data = digits.load(config.data.image_size)
  images = data.train_images if split == 'train' else data.test_images
  labels = data.train_labels if split == 'train' else data.test_labels
  condition = digits.condition_of(labels, config.data.condition)
  if not config.policy.discriminator.reconstruct_real:
    return images, condition
  module, params = networks.load_tokenizer(config, workdir)

  @jax.jit
  def rebuild(params: Any, images: Array) -> Array:
    variables = {'params': params}
    tokens = module.apply(variables, images, method='tokenize')
    return module.apply(variables, tokens, method='decode_tokens')

  return sharding.gather(rebuild(params, images)), condition


def _warm(variables: Any, iterations: int) -> Any:
  """Runs the spectral norms' power iteration before the first reward.

  The published code starts from random vectors, so that its first rewards have
  random sign and scale (0 iterations here).
  """
  spectral = variables['spectral']
  for _ in range(iterations):
    spectral = advance_spectral(variables['params'], spectral)
  return spectral


def make_court(
  name: str,
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  groups: int,
) -> Court:
  """The court of a reward: adversarial, frechet or pretrained."""
  if name == 'adversarial':
    return adversarial_court(config, workdir, groups)
  if name == 'frechet':
    return frechet_court(config, workdir)
  return pretrained_court(config, workdir)
