"""The discriminator as a reward, and its own training.

`L = mean softplus(-D(real)) + mean softplus(D(fake))` over all patch logits
(AdaNAT, section 3.3; LeapLabTHU/AdaNAT train.py). Each update runs two
training-mode forwards, so the spectral norms' power iteration advances twice.

What is trained are heads, on features that a frozen network computes of images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any, TypeAlias

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.learning import rewards
from adanat_jax.learning.rewards import Labelled, RewardModel
from adanat_jax.runtime import sharding
from adanat_jax.types import Array, Condition, Reward

# (params, spectral, features, condition, train)
#   -> (logits float32[B, L], spectral)
# where features are whatever the trained heads read of a batch of images.
Heads: TypeAlias = Callable[[Any, Any, Any, Condition, bool], tuple[Array, Any]]


@dataclasses.dataclass(frozen=True)
class Discriminator:
  """The networks, as functions; all are traced.

  Attributes:
    init: `key -> (params, spectral)` of the heads, newly drawn.
    features: `(images float32[B, H, W, C], key) -> features`, of the frozen
      network; the key decides on the crop, None takes none.
    heads: what is trained, see `Heads`.
    read: `batch -> Labelled`, real images and their conditions.
  """

  init: Callable[[Array], tuple[Any, Any]]
  features: Callable[[Array, Array | None], Any]
  heads: Heads
  read: Callable[[Mapping[str, Array]], Labelled]


@struct.dataclass
class DiscriminatorState:
  """The trained part of the discriminator.

  Attributes:
    params: of the heads.
    spectral: the vectors of the spectral norms.
    opt_state: of the optimizer.
  """

  params: Any
  spectral: Any
  opt_state: optax.OptState


def initial_state(
  discriminator: Discriminator,
  optimizer: optax.GradientTransformation,
  key: Array,
) -> DiscriminatorState:
  """The state before the first update, with parameters drawn by `key`."""
  params, spectral = discriminator.init(key)
  return DiscriminatorState(params, spectral, optimizer.init(params))


def score(
  heads: Heads, state: DiscriminatorState, features: Any, condition: Condition
) -> Array:
  """Mean logit of each sample in evaluation mode, float32[B]."""
  logits, _ = heads(state.params, state.spectral, features, condition, False)
  return logits.mean(-1)


def accuracy(scores: Array, real: bool) -> Array:
  """Share of samples whose mean logit has the right sign, float32[]."""
  return jnp.mean((scores > 0) == real)


def update(
  heads: Heads,
  optimizer: optax.GradientTransformation,
  state: DiscriminatorState,
  real: tuple[Any, Condition],
  fake: tuple[Any, Condition],
) -> tuple[DiscriminatorState, dict[str, Array]]:
  """One gradient step on one batch of real and one of generated images.

  Args:
    heads: the discriminator's trained part.
    optimizer: of its parameters.
    state: before the step.
    real: features and condition of real images.
    fake: features and condition of generated images.

  Returns:
    The state after it and float32[] metrics.
  """

  def loss_fn(params: Any) -> tuple[Array, Any]:
    spectral, logits = state.spectral, []
    for features, condition in (real, fake):
      out, spectral = heads(params, spectral, features, condition, True)
      logits.append(out)
    loss = jax.nn.softplus(-logits[0]).mean()
    loss += jax.nn.softplus(logits[1]).mean()
    return loss, spectral

  (loss, spectral), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    state.params
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  # Power iteration never needs a gradient, and the state must not carry one.
  spectral = jax.lax.stop_gradient(spectral)
  return DiscriminatorState(params, spectral, opt_state), {
    'discriminator_loss': loss
  }


def make_reward_model(
  discriminator: Discriminator,
  optimizer: optax.GradientTransformation,
  *,
  updates: int,
  batch_size: int,
  groups: int,
  held_out: Mapping[str, Array] | None = None,
) -> RewardModel:
  """The discriminator as a reward that learns in turn with the policy.

  Its `learn` takes real batches [updates, batch_size, ...] that
  `discriminator.read` reads, and returns the mean loss of its updates with the
  accuracies before them.

  Args:
    discriminator: the networks.
    optimizer: of the heads' parameters.
    updates: gradient steps an iteration.
    batch_size: real images of an update, and generated ones.
    groups: see `deal`.
    held_out: a batch of real images that are not trained on, whose accuracy is
      reported.
  """
  heads = discriminator.heads

  def score_images(
    state: DiscriminatorState, labelled: Labelled, key: Array
  ) -> Array:
    images, condition = labelled
    features = discriminator.features(images, key)
    return score(heads, state, features, condition)

  def reward(state: DiscriminatorState) -> Reward:
    return rewards.adversarial_reward(
      lambda images, condition, key: score_images(
        state, (images, condition), key
      )[:, None]
    )

  def accuracies(
    state: DiscriminatorState, real: Any, fakes: Labelled, key: Array
  ) -> dict[str, Array]:
    # Samples share statistics in groups: real ones of both kinds are scored
    # under the same state, and all in the same crop.
    first = discriminator.read(jax.tree.map(lambda x: x[0], real))
    scores = {'train': (score_images(state, first, key), True)}
    if held_out is not None:
      unseen = discriminator.read(held_out)
      scores['held_out'] = score_images(state, unseen, key), True
    scores['generated'] = score_images(state, fakes, key), False
    return {
      f'accuracy_{name}': accuracy(value, is_real)
      for name, (value, is_real) in scores.items()
    }

  def learn(
    state: DiscriminatorState,
    real: Any,
    fakes: Labelled,
    fresh: Callable[[Array, Array], Labelled] | None,
    key: Array,
  ) -> tuple[DiscriminatorState, dict[str, Array]]:
    # `split` takes the numbers below.
    crop_key, score_key = (
      jax.random.fold_in(key, updates + i) for i in range(2)
    )
    metrics = accuracies(state, real, fakes, score_key)
    if fresh is None:
      fake_batches: Any = jax.tree.map(
        lambda x: deal(x, updates, batch_size, groups), fakes
      )
    else:
      keys = jax.random.split(key, updates)
      fake_batches = keys, jnp.arange(updates)

    def body(state: Any, batch: Any) -> tuple[Any, Any]:
      real_batch, fake, crop_keys = batch
      real_images, real_condition = discriminator.read(real_batch)
      fake_images, fake_condition = fake if fresh is None else fresh(*fake)
      real_features, fake_features = (
        discriminator.features(images, crop_key)
        for images, crop_key in zip(
          (real_images, fake_images), crop_keys, strict=True
        )
      )
      return update(
        heads,
        optimizer,
        state,
        (real_features, real_condition),
        (fake_features, fake_condition),
      )

    crop_keys = jax.random.split(crop_key, (updates, 2))
    state, history = jax.lax.scan(
      body,
      state,
      (real, fake_batches, crop_keys),
      # On a CPU a convolution inside a loop takes ten times as long.
      unroll=jax.default_backend() == 'cpu',
    )
    return state, metrics | jax.tree.map(lambda x: x.mean(), history)

  return RewardModel(reward, learn, fakes_per_update=batch_size)


def deal(rows: Array, updates: int, size: int, groups: int) -> Array:
  """Divides a batch into several smaller ones, repeating it if it is short.

  Args:
    rows: [B, ...].
    updates: U, how many batches.
    size: S, rows in each.
    groups: equal consecutive parts of the batch; the g-th part of every small
      batch comes from the g-th part of the batch, so no row moves between up to
      this many devices. It divides B and S.

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
