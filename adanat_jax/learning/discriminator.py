"""The discriminator as a reward, and its own training.

`L = mean softplus(-D(real)) + mean softplus(D(fake))` over all patch logits
(AdaNAT, section 3.3; LeapLabTHU/AdaNAT train.py). Each update runs two
training-mode forwards, so the spectral norms' power iteration advances twice.

Only heads are trained, on the features of a frozen network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any, TypeAlias

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.learning.rewards import Labelled, RewardModel
from adanat_jax.runtime import batch_parts, sharding
from adanat_jax.types import Array, Condition, Reward

# (params, spectral, features, condition, train)
#   -> (logits float32[B, L], spectral)
# where features are whatever the trained heads read of a batch of images.
Heads: TypeAlias = Callable[[Any, Any, Any, Condition, bool], tuple[Array, Any]]


@dataclasses.dataclass(frozen=True)
class Discriminator:
  """The networks, as functions; all are traced."""

  # `key -> (params, spectral)` of the heads, newly drawn.
  init: Callable[[Array], tuple[Any, Any]]
  # `(images float32[B, H, W, C], key) -> features`, of the frozen network; the
  # key decides on the crop, None takes none.
  features: Callable[[Array, Array | None], Any]
  heads: Heads  # What is trained, see `Heads`.
  # `batch -> Labelled`, real images and their conditions.
  read: Callable[[Mapping[str, Array]], Labelled]


@struct.dataclass
class DiscriminatorState:
  """The trained part of the discriminator."""

  params: Any  # of the heads
  spectral: Any  # the vectors of the spectral norms
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


def regrouped_reward(
  scores_of: Callable[..., Array],
  rows: tuple[Any, ...],
  key: Array,
  *,
  groupings: int,
  groups: int,
) -> Array:
  """`sigmoid(mean logit)`, averaged over random groups of eight.

  Consecutive images share statistics, so that a score depends on the others of
  its group. The first grouping is the batch as it is.

  Args:
    scores_of: `*rows -> mean logits float32[B]`, in their order.
    rows: what is scored, trees of arrays [B, ...].
    key: of the groupings.
    groupings: how many are averaged; 1 is the published reward.
    groups: of so many equal consecutive parts of the batch, each drawn from
      within, see `deal`; it divides B.

  Returns:
    float32[B].
  """
  reward = jax.nn.sigmoid(scores_of(*rows))
  if groupings == 1:
    return reward
  with_steps = jax.tree.map(lambda x: x[None], rows)

  def add(total: Array, key: Array) -> tuple[Array, None]:
    (order,) = batch_parts.shuffled_rows(
      key, len(reward), groups=groups, parts=1
    )
    shuffled = batch_parts.pick(with_steps, order)
    scores = scores_of(*jax.tree.map(lambda x: x[0], shuffled))
    scores = jax.nn.sigmoid(scores).reshape(order.shape)
    back = jnp.take_along_axis(scores, jnp.argsort(order, axis=1), axis=1)
    return sharding.split_batch(total + back.reshape(-1)), None

  keys = jax.random.split(key, groupings - 1)
  return jax.lax.scan(add, reward, keys)[0] / groupings


def accuracy(scores: Array, real: bool) -> Array:
  """Share of samples whose mean logit has the right sign, float32[]."""
  return jnp.mean((scores > 0) == real)


def logistic_loss(real: Array, fake: Array) -> Array:
  """`mean softplus(-real) + mean softplus(fake)` of patch logits, float32[]."""
  return jax.nn.softplus(-real).mean() + jax.nn.softplus(fake).mean()


def hinge_loss(real: Array, fake: Array) -> Array:
  """`mean relu(1 - real) + mean relu(1 + fake)` of patch logits, float32[]."""
  return jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()


LOSSES = {'logistic': logistic_loss, 'hinge': hinge_loss}


def update(
  heads: Heads,
  optimizer: optax.GradientTransformation,
  state: DiscriminatorState,
  real: tuple[Any, Condition],
  fake: tuple[Any, Condition],
  loss_of: Callable[[Array, Array], Array] = logistic_loss,
) -> tuple[DiscriminatorState, dict[str, Array]]:
  """One gradient step; `real` and `fake` are features with their condition.

  `loss_of` is one of `LOSSES`.
  """

  def loss_fn(params: Any) -> tuple[Array, Any]:
    spectral, logits = state.spectral, []
    for features, condition in (real, fake):
      out, spectral = heads(params, spectral, features, condition, True)
      logits.append(out)
    return loss_of(*logits), spectral

  gradient = jax.value_and_grad(loss_fn, has_aux=True)
  (loss, spectral), grads = gradient(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  # Power iteration never needs a gradient, and the state must not carry one.
  spectral = jax.lax.stop_gradient(spectral)
  state = DiscriminatorState(params, spectral, opt_state)
  return state, {'discriminator_loss': loss}


def make_reward_model(
  discriminator: Discriminator,
  optimizer: optax.GradientTransformation,
  *,
  updates: int,
  batch_size: int,
  groups: int,
  held_out: Mapping[str, Array] | None = None,
  loss: str = 'logistic',
  groupings: int = 1,
) -> RewardModel:
  """The discriminator as a reward that learns in turn with the policy.

  Its `learn` takes real batches [updates, batch_size, ...] for
  `discriminator.read`, and returns the mean loss of its updates with the
  accuracies before them.

  Args:
    discriminator: the networks.
    optimizer: of the heads' parameters.
    updates: gradient steps an iteration.
    batch_size: real images of an update, and generated ones.
    groups: see `deal`.
    held_out: real images that are not trained on, to report their accuracy.
    loss: one of `LOSSES`.
    groupings: see `regrouped_reward`.
  """
  heads = discriminator.heads

  def score_images(
    state: DiscriminatorState, labelled: Labelled, key: Array
  ) -> Array:
    images, condition = labelled
    features = discriminator.features(images, key)
    return score(heads, state, features, condition)

  def reward(state: DiscriminatorState) -> Reward:
    def reward(images: Array, condition: Condition, key: Array) -> Array:
      features = discriminator.features(images, key)
      scored = regrouped_reward(
        functools.partial(score, heads, state),
        (features, condition),
        # The key itself decides on the crop.
        jax.random.fold_in(key, groupings),
        groupings=groupings,
        groups=groups,
      )
      return jax.lax.stop_gradient(scored)

    return reward

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
    crop_key = jax.random.fold_in(key, updates)
    score_key = jax.random.fold_in(key, updates + 1)
    metrics = accuracies(state, real, fakes, score_key)
    if fresh is None:
      divide = lambda x: deal(x, updates, batch_size, groups)
      fake_batches: Any = jax.tree.map(divide, fakes)
    else:
      fake_batches = jax.random.split(key, updates), jnp.arange(updates)

    def body(state: Any, batch: Any) -> tuple[Any, Any]:
      real_batch, fake, crop_keys = batch
      real_images, real_condition = discriminator.read(real_batch)
      fake_images, fake_condition = fake if fresh is None else fresh(*fake)
      real = discriminator.features(real_images, crop_keys[0]), real_condition
      fake = discriminator.features(fake_images, crop_keys[1]), fake_condition
      return update(heads, optimizer, state, real, fake, LOSSES[loss])

    crop_keys = jax.random.split(crop_key, (updates, 2))
    state, history = jax.lax.scan(body, state, (real, fake_batches, crop_keys))
    return state, metrics | jax.tree.map(lambda x: x.mean(), history)

  return RewardModel(reward, learn, fakes_per_update=batch_size)


def deal(rows: Array, updates: int, size: int, groups: int) -> Array:
  """Divides a batch into smaller ones, [U, S, ...]; a short batch repeats.

  Args:
    rows: [B, ...].
    updates: U, how many batches.
    size: S, rows in each.
    groups: equal consecutive parts of the batch; the g-th part of every small
      batch comes from the g-th part of the batch, so no row moves between up to
      this many devices. It divides B and S.
  """
  parts = rows.reshape(groups, -1, *rows.shape[1:])
  share = size // groups
  chosen = parts[:, np.arange(updates * share) % parts.shape[1]]
  chosen = chosen.reshape(groups, updates, share, *rows.shape[1:])
  return sharding.split_batch(
    jnp.moveaxis(chosen, 0, 1).reshape(updates, size, *rows.shape[1:]), 1
  )
