"""The reward of a policy training, and how its discriminator learns.

Each function builds the `Judge` of one reward from the networks of a workdir.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from adanat_jax.data import digits
from adanat_jax.models.discriminator import advance_spectral
from adanat_jax.rl import adversary, rewards
from adanat_jax.rl.trainer import Judge, Labelled
from adanat_jax.stages import networks
from adanat_jax.types import Array, Reward


def _learn_nothing(
  state: None, real: Any, fakes: Labelled, fresh: Any, key: Array
) -> tuple[None, dict[str, Array]]:
  del real, fakes, fresh, key
  return state, {}


def frechet_judge(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> Judge:
  """Each sample's influence on the distance in the reward's features."""
  module, params = networks.load_reward(config, workdir)
  data = digits.load(config.data.image_size)

  def features(images: Array) -> Array:
    return module.apply({'params': params}, networks.centred(images)).cls

  real = np.asarray(jax.jit(features)(data.train_images), np.float64)
  reward = rewards.frechet_reward(
    features,
    jnp.asarray(real.mean(0), jnp.float32),
    jnp.asarray(np.cov(real, rowvar=False), jnp.float32),
  )
  return Judge(None, lambda state: reward, _learn_nothing)


def pretrained_judge(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> Judge:
  """The reward network's log-probability of the asked condition."""
  module, params = networks.load_reward(config, workdir)
  classes = digits.condition_of(np.arange(10), config.data.condition)

  def log_probs(images: Array) -> Array:
    out = module.apply({'params': params}, networks.centred(images)).outputs
    # The network knows ten digits; a condition's probability is their sum.
    members = jax.nn.one_hot(classes, networks.num_classes(config))
    return jnp.log(jax.nn.softmax(out) @ members + 1e-6)

  reward = rewards.pretrained_reward(log_probs)
  return Judge(None, lambda state: reward, _learn_nothing)


def adversarial_judge(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, key: Array
) -> Judge:
  """A projected discriminator on the frozen reward network, trained in turn."""
  section = config.policy.discriminator
  trunk, trunk_params = networks.load_reward(config, workdir)
  module = networks.discriminator_module(config)
  optimizer = optax.adam(section.learning_rate, b1=0.5, b2=0.999)
  images, condition = real_images(config, workdir, 'test')
  held_out = (
    jnp.asarray(images[: section.held_out]),
    jnp.asarray(condition[: section.held_out]),
  )

  def features(images: Array) -> tuple[Array, ...]:
    inputs = networks.centred(images)
    return trunk.apply({'params': trunk_params}, inputs).features

  def heads(
    params: Any, spectral: Any, layers: Any, condition: Array, train: bool
  ) -> tuple[Array, Any]:
    variables = {'params': params, 'spectral': spectral}
    if not train:
      return module.apply(variables, layers, condition), spectral
    logits, changed = module.apply(
      variables, layers, condition, train=True, mutable=['spectral']
    )
    return logits, changed['spectral']

  def score(state: adversary.AdversaryState, labelled: Labelled) -> Array:
    images, condition = labelled
    return adversary.score(heads, state, features(images), condition)

  def reward(state: adversary.AdversaryState) -> Reward:
    def logits(images: Array, condition: Array, key: Array) -> Array:
      del key
      return score(state, (images, condition))[:, None]

    return rewards.adversarial_reward(logits)

  size = section.batch_size
  updates = section.updates

  def learn(
    state: adversary.AdversaryState,
    real: Labelled,
    fakes: Labelled,
    fresh: Callable[[Array], Labelled] | None,
    key: Array,
  ) -> tuple[adversary.AdversaryState, dict[str, Array]]:
    # Consecutive samples share statistics: the held-out ones are compared
    # with training images under the same state and batch size.
    scores = {
      'train': (score(state, jax.tree.map(_first(len(held_out[1])), real)), 1),
      'held_out': (score(state, held_out), 1),
      'generated': (score(state, fakes), 0),
    }
    metrics = {
      f'accuracy_{name}': adversary.accuracy(value, bool(is_real))
      for name, (value, is_real) in scores.items()
    }
    shape = lambda x: x.reshape(updates, size, *x.shape[1:])
    batches = jax.tree.map(shape, real)
    if fresh is None:
      fake_batches = jax.tree.map(
        shape, jax.tree.map(_cycled(updates * size), fakes)
      )
    else:
      fake_batches = jax.random.split(key, updates)

    def body(state: Any, batch: Any) -> tuple[Any, Any]:
      (real_images, real_condition), fake = batch
      fake_images, fake_condition = fake if fresh is None else fresh(fake)
      return adversary.update(
        heads,
        optimizer,
        state,
        (features(real_images), real_condition),
        (features(fake_images), fake_condition),
      )

    # Unrolled: on a CPU a convolution inside a loop takes ten times as long.
    state, history = jax.lax.scan(
      body, state, (batches, fake_batches), unroll=True
    )
    return state, metrics | jax.tree.map(lambda x: x.mean(), history)

  first = jax.tree.map(_first(8), held_out)
  variables = module.init(key, features(first[0]), first[1])
  initial = adversary.AdversaryState(
    variables['params'],
    _warm(variables, section.spectral_warmup),
    optimizer.init(variables['params']),
  )
  return Judge(initial, reward, learn, fakes_per_update=size)


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
  def rebuild(images: Array) -> Array:
    variables = {'params': params}
    tokens = module.apply(variables, images, method='tokenize')
    return module.apply(variables, tokens, method='decode_tokens')

  return np.asarray(rebuild(images)), condition


def _warm(variables: Any, iterations: int) -> Any:
  """Runs the spectral norms' power iteration before the first reward.

  The published code starts from random vectors, so that its first rewards have
  random sign and scale (0 iterations here).
  """
  spectral = variables['spectral']
  for _ in range(iterations):
    spectral = advance_spectral(variables['params'], spectral)
  return spectral


def _first(count: int) -> Callable[[Array], Array]:
  return lambda x: x[:count]


def _cycled(count: int) -> Callable[[Array], Array]:
  """The first `count` rows, starting over where there are fewer."""
  return lambda x: x[jnp.arange(count) % x.shape[0]]


def make_judge(
  name: str,
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  key: Array,
) -> Judge:
  """The judge of a reward: adversarial, frechet or pretrained."""
  if name == 'adversarial':
    return adversarial_judge(config, workdir, key)
  if name == 'frechet':
    return frechet_judge(config, workdir)
  return pretrained_judge(config, workdir)
