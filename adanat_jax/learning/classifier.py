"""Training a classifier of augmented images: one step.

Shape letters: `B` samples, `H`, `W`, `C` an image, `L` classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from flax import struct
import jax
import optax

from adanat_jax.learning import augment
from adanat_jax.types import Array

# (params, images float32[B, H, W, C], dropout key or None) -> float32[B, L]
Apply: TypeAlias = Callable[[Any, Array, Array | None], Array]


@struct.dataclass
class ClassifierState:
  """What the training of a classifier carries from step to step."""

  params: Any
  opt_state: optax.OptState


def make_train_step(
  apply: Apply,
  optimizer: optax.GradientTransformation,
  *,
  key: Array,
  augmentation: augment.Augmentation,
) -> Callable[[ClassifierState, Any, Array], tuple[ClassifierState, Any]]:
  """Returns `(state, batch, step) -> (state, metrics)`, not yet jitted.

  The batch holds `images` float32[B, H, W, C] in [0, 1] and `labels` int32[B].

  Args:
    apply: the network.
    optimizer: of its parameters.
    key: everything random follows from it and the step.
    augmentation: what images go through.
  """

  def train_step(
    state: ClassifierState, batch: dict[str, Array], step: Array
  ) -> tuple[ClassifierState, dict[str, Array]]:
    # In an order that leaves earlier versions' draws as they were.
    keys = jax.random.split(jax.random.fold_in(key, step), 6)
    images = augmentation((*keys[:3], *keys[4:]), batch['images'])

    def loss_fn(params: Any) -> tuple[Array, Array]:
      logits, labels = apply(params, images, keys[3]), batch['labels']
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      return loss.mean(), (logits.argmax(-1) == labels).mean()

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, accuracy), grads = gradient(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {'loss': loss, 'accuracy': accuracy}
    return ClassifierState(params, opt_state), metrics

  return train_step
