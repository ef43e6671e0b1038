"""Training a network of images by contrast with their captions: one step.

CLIP's loss (Radford et al. 2021, "Learning Transferable Visual Models From
Natural Language Supervision", figure 3): of all captions of a batch an image's
embedding is to be nearest to its own, and of all images a caption's. Small sets
say the same of several pictures. Pairs of equal captions are no negatives
then; the targets are shared evenly among them, as UniCL does with classes (Yang
et al. 2022, "Unified Contrastive Learning in Image-Text-Label Space", section
3.2).

Shape letters: `B` samples, `H`, `W`, `C` an image, `L` ids of a caption, `E`
width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any, TypeAlias

from flax import struct
import jax
import jax.numpy as jnp
import optax

from adanat_jax.learning.augment import Augmentation
from adanat_jax.learning.classifier import Apply
from adanat_jax.types import Array

# The factor on cosines at the start, and at most, as published.
FIRST_SCALE = 1 / 0.07
_MOST_SCALE = 100.0

# (params, ids int32[B, L]) -> float32[B, E]
Read: TypeAlias = Callable[[Any, Array], Array]


@struct.dataclass
class ContrastState:
  """What the training of both networks carries from step to step."""

  params: Any  # of the network of images
  text: Any  # of the network of captions
  log_scale: Array  # float32[]
  opt_state: optax.OptState


def initial_state(
  params: Any, text: Any, optimizer: optax.GradientTransformation
) -> ContrastState:
  """The state before the first step."""
  log_scale = jnp.float32(math.log(FIRST_SCALE))
  return ContrastState(
    params, text, log_scale, optimizer.init((params, text, log_scale))
  )


def cosines(first: Array, second: Array) -> Array:
  """Of embeddings float32[B, E] and float32[K, E], each with each: [B, K]."""
  first, second = (
    x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
    for x in (first, second)
  )
  return first @ second.T


def loss(
  images: Array, captions: Array, same: Array, scale: Array
) -> tuple[Array, Array]:
  """The loss of embeddings of images and of their captions.

  Args:
    images: float32[B, E].
    captions: float32[B, E].
    same: bool[B, B], which captions are equal.
    scale: float32[], the factor on the cosines.

  Returns:
    float32[], and which images are nearest to a caption like theirs, bool[B].
  """
  logits = scale * cosines(images, captions)
  # Equal captions are mutually so: the matrix is that of both directions.
  targets = same / same.sum(1, keepdims=True)
  found = jnp.take_along_axis(same, logits.argmax(1)[:, None], 1)[:, 0]
  both = [optax.softmax_cross_entropy(x, targets) for x in (logits, logits.T)]
  return sum(x.mean() for x in both) / 2, found


def make_train_step(
  apply: Apply,
  read: Read,
  optimizer: optax.GradientTransformation,
  *,
  key: Array,
  augmentation: Augmentation,
) -> Callable[[ContrastState, Any, Array], tuple[ContrastState, Any]]:
  """Returns `(state, batch, step) -> (state, metrics)`, not yet jitted.

  The batch holds `images` float32[B, H, W, C] in [0, 1] and the `ids` of their
  captions, int32[B, L].

  Args:
    apply: the network of images.
    read: that of captions.
    optimizer: of both, and of the scale.
    key: everything random follows from it and the step.
    augmentation: what images go through.
  """

  def train_step(
    state: ContrastState, batch: dict[str, Array], step: Array
  ) -> tuple[ContrastState, dict[str, Array]]:
    *keys, dropout = jax.random.split(jax.random.fold_in(key, step), 6)
    images, ids = augmentation(keys, batch['images']), batch['ids']
    same = (ids[:, None] == ids[None]).all(-1)

    def loss_fn(trained: Any) -> tuple[Array, Array]:
      params, text, log_scale = trained
      scale = jnp.minimum(jnp.exp(log_scale), _MOST_SCALE)
      return loss(apply(params, images, dropout), read(text, ids), same, scale)

    trained = state.params, state.text, state.log_scale
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (value, found), grads = gradient(trained)
    updates, opt_state = optimizer.update(grads, state.opt_state, trained)
    params, text, log_scale = optax.apply_updates(trained, updates)
    metrics = {'loss': value, 'found': found.mean()}
    return ContrastState(params, text, log_scale, opt_state), metrics

  return train_step


def finds(images: Array, captions: Array, ids: Array) -> Array:
  """Which images are nearest to a caption like theirs, of a batch, bool[B].

  Args:
    images: embeddings, float32[B, E].
    captions: embeddings, float32[B, E].
    ids: of the captions, int32[B, L].
  """
  same = (ids[:, None] == ids[None]).all(-1)
  return loss(images, captions, same, jnp.float32(1))[1]
