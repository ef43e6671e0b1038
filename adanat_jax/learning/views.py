"""Training a network without labels: two views of an image are to agree.

VICReg (Bardes, Ponce and LeCun 2022, "VICReg: Variance-Invariance-Covariance
Regularization for Self-Supervised Learning", section 4): embeddings of two
augmentations of an image come close (invariance), while each of their numbers
keeps varying over the batch (variance) and no two of them say the same
(covariance). It has no negative examples: few images, of which a batch may hold
one twice, and small batches do it no harm.

Shape letters: `B` samples, `H`, `W`, `C` an image, `E` width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adanat_jax.learning.augment import Augmentation
from adanat_jax.learning.classifier import Apply, ClassifierState
from adanat_jax.types import Array

# The weights of the three terms, as published.
_INVARIANCE, _VARIANCE, _COVARIANCE = 25.0, 25.0, 1.0
_EPSILON = 1e-4


def vicreg_loss(first: Array, second: Array) -> tuple[Array, Array]:
  """The loss of embeddings of two views, float32[B, E] each.

  Returns:
    float32[], and the mean standard deviation of an embedding's numbers over
    the batch, float32[]: near 0 where all images look alike.
  """
  invariance = jnp.square(first - second).mean()
  variances, covariances, spreads = zip(
    *map(_regularize, (first, second)), strict=True
  )
  loss = _INVARIANCE * invariance + _VARIANCE * sum(variances)
  return loss + _COVARIANCE * sum(covariances), sum(spreads) / 2


def _regularize(view: Array) -> tuple[Array, Array, Array]:
  """Of embeddings: terms of variance and covariance, the mean deviation."""
  centred = view - view.mean(0)
  matrix = centred.T @ centred / (len(view) - 1)
  variances = jnp.diagonal(matrix)
  deviation = jnp.sqrt(variances + _EPSILON)
  others = jnp.square(matrix).sum() - jnp.square(variances).sum()
  return (
    jax.nn.relu(1.0 - deviation).mean(),
    others / len(matrix),
    deviation.mean(),
  )


def make_train_step(
  apply: Apply,
  optimizer: optax.GradientTransformation,
  *,
  key: Array,
  augmentation: Augmentation,
) -> Callable[[ClassifierState, Any, Array], tuple[ClassifierState, Any]]:
  """Returns `(state, batch, step) -> (state, metrics)`, not yet jitted.

  The batch holds `images` float32[B, H, W, C] in [0, 1]; the arguments are
  those of `classifier.make_train_step`, the logits being embeddings.
  """

  def train_step(
    state: ClassifierState, batch: dict[str, Array], step: Array
  ) -> tuple[ClassifierState, dict[str, Array]]:
    *keys, dropout = jax.random.split(jax.random.fold_in(key, step), 11)
    images = batch['images']
    views = [augmentation(part, images) for part in (keys[:5], keys[5:])]

    def loss_fn(params: Any) -> tuple[Array, Array]:
      found = apply(params, jnp.concatenate(views), dropout)
      return vicreg_loss(*jnp.split(found, 2))

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, spread), grads = gradient(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return ClassifierState(params, opt_state), {'loss': loss, 'spread': spread}

  return train_step


def matches(first: Array, second: Array) -> Array:
  """Which images' second views are nearest to their own first one, bool[B].

  Nearest by the cosine of the embeddings float32[B, E].
  """
  first, second = (
    x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (first, second)
  )
  found: Array = (second @ first.T).argmax(-1) == jnp.arange(len(first))
  return found
