"""Rewards behind one signature, `(images, condition, key) -> float32[B]`.

AdaNAT's ablation has three (section 4.3). Here are the Fréchet distance and the
log-probability of a pre-trained classifier; the third is a discriminator that
is trained in turn with the policy (`learning/discriminator.py`). None passes a
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from adanat_jax.types import Array, Condition, Reward

# Images float32[B, H, W, C], and their conditions as a reward takes them.
Labelled: TypeAlias = tuple[Array, Condition]


@dataclasses.dataclass(frozen=True)
class RewardModel:
  """A reward, and how it learns in turn with the policy."""

  reward: Callable[[Any], Reward]  # `state -> Reward`
  # `(state, real, fakes, fresh, key) -> (state, metrics)`; `real` is a batch of
  # the training, `fakes` are the iteration's images and conditions, `fresh(key,
  # update)` generates new ones; None if `fakes` are to be used.
  learn: Callable[..., tuple[Any, dict[str, Array]]]
  fakes_per_update: int = 0  # how many generated images one update takes


@dataclasses.dataclass(frozen=True)
class RewardSpec:
  """A reward model whose arrays are passed to jit as arguments.

  A compiled function would hold arrays that it closes over as constants.
  """

  frozen: Any  # arrays that the model reads and no training changes
  build: Callable[[Any], RewardModel]  # `frozen -> RewardModel`, inside jit
  # `(frozen, key) -> state`, None for a reward that does not learn.
  initial: Callable[[Any, Array], Any] | None = None


def fixed_model(reward: Reward) -> RewardModel:
  """The model of a reward that does not learn; its state is None."""
  return RewardModel(lambda state: reward, lambda state, *_: (state, {}))


def pretrained_reward(classifier: Callable[[Array], Array]) -> Reward:
  """Log-probability that a pre-trained classifier gives to the asked class.

  `classifier` is `images -> logits float32[B, num_classes]`; the condition is
  int32[B], the reward at most 0.
  """

  def reward(images: Array, condition: Array, key: Array) -> Array:
    del key
    log_probs = jax.nn.log_softmax(classifier(images))
    picked = jnp.take_along_axis(log_probs, condition[:, None], axis=-1)
    return jax.lax.stop_gradient(picked[:, 0])

  return reward


def frechet_reward(
  features: Callable[[Array], Array], mean: Array, covariance: Array
) -> Reward:
  """Each sample's own influence on the batch's Fréchet distance.

  The reward is minus the first-order change of the distance when the sample
  gets more weight in the batch, `frechet_influence`; its mean over the batch is
  0.

  Args:
    features: `images -> float32[B, F]`.
    mean: float32[F] of the real images.
    covariance: float32[F, F] of the real images.
  """

  def reward(images: Array, condition: Condition, key: Array) -> Array:
    del condition, key
    observed = features(images)
    # With an accelerator's rounded products small eigenvalues would be noise.
    with jax.default_matmul_precision('highest'):
      influence = frechet_influence(observed, mean, covariance)
    return jax.lax.stop_gradient(-influence)

  return reward


def frechet_influence(features: Array, mean: Array, covariance: Array) -> Array:
  """Influence function of the Fréchet distance at each sample of a batch.

  With batch mean m and covariance S, the distance

    |m - m_r|^2 + tr(S + S_r - 2 (S_r^1/2 S S_r^1/2)^1/2)

  has the gradients 2 (m - m_r) in m and G = 1 - S_r^1/2 (S_r^1/2 S
  S_r^1/2)^-1/2 S_r^1/2 in S, so that a little more weight on sample f changes
  it in proportion to

    2 (m - m_r)^T (f - m) + (f - m)^T G (f - m) - tr(G S).

  Args:
    features: float32[B, F] of the batch.
    mean: m_r, float32[F].
    covariance: S_r, float32[F, F].

  Returns:
    float32[B], of mean 0; positive where the sample makes the distance larger.
  """
  centre = features.mean(0)
  deviation = features - centre
  batch_covariance = deviation.T @ deviation / features.shape[0]
  root = _matrix_power(covariance, 0.5)
  inner = _matrix_power(root @ batch_covariance @ root, -0.5)
  gradient = jnp.eye(mean.shape[0]) - root @ inner @ root
  linear = 2 * deviation @ (centre - mean)
  quadratic = ((deviation @ gradient) * deviation).sum(-1)
  return linear + quadratic - quadratic.mean()


def _matrix_power(matrix: Array, power: float) -> Array:
  """`matrix ** power` of a symmetric positive semi-definite float32[F, F]."""
  values, vectors = jnp.linalg.eigh((matrix + matrix.T) / 2)
  values = jnp.maximum(values, 1e-5 * values[-1])
  return (vectors * values**power) @ vectors.T
