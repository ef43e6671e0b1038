"""The adversarial loss of a tokenizer: reconstructions that look real.

A patch discriminator learns by the hinge loss to tell images from their
reconstructions, and the tokenizer to make reconstructions that it takes for
real (Esser et al. 2021, "Taming Transformers", section 3.1). Over the training:

1. before `trains_from` nothing of this is computed;
2. then the discriminator learns;
3. from `used_from` on, which is later, the tokenizer gets its gradient: an
   untrained discriminator's gradient would be noise.

The loss is weighted by a constant, or so that at the decoder's last layer its
gradient is `weight` times as long as that of the reconstruction error (equation
7 of that paper). Discriminator and tokenizer read the same reconstructions,
those from before the step.

Shape letters: `B` samples, `H`, `W`, `I` an image, `h`, `w` grid of patches.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from adanat_jax.learning.discriminator import hinge_loss
from adanat_jax.types import Array

# As published (CompVis/taming-transformers, vqperceptual.py).
_SMALLEST_NORM = 1e-4
_LARGEST_RATIO = 1e4


@struct.dataclass
class PatchDiscriminatorState:
  """The discriminator while it learns."""

  params: Any
  opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
  """The discriminator, and how its loss reaches the tokenizer."""

  init: Callable[[Array], Any]  # `key -> params`, newly drawn
  # `(params, images float[B, H, W, I]) -> float32[B, h, w]`, high for real
  # patches.
  logits: Callable[[Any, Array], Array]
  optimizer: optax.GradientTransformation  # of its parameters
  weight: float  # of its loss, against the reconstruction error
  # Whether the loss's gradient is first scaled to the length of the error's.
  adaptive: bool
  trains_from: int  # first step, from 0, in which the discriminator learns
  used_from: int  # first step in which the tokenizer gets its gradient

  def initial_state(self, key: Array) -> PatchDiscriminatorState:
    """The state before the first step, with parameters drawn by `key`."""
    params = self.init(key)
    return PatchDiscriminatorState(params, self.optimizer.init(params))

  def step(
    self,
    state: PatchDiscriminatorState,
    images: Array,
    rebuilt: Array,
    towards: Array,
    last_layer_norm: Callable[[Array], Array],
    step: Array,
  ) -> tuple[PatchDiscriminatorState, Array, dict[str, Array]]:
    """Trains the discriminator for a step and computes its gradient.

    Args:
      state: before the step.
      images: float[B, H, W, I] in [0, 1].
      rebuilt: their reconstructions, not clipped.
      towards: gradient of the reconstruction error by `rebuilt`.
      last_layer_norm: `gradient by rebuilt -> float32[]`, the norm of the
        gradient that it gives at the decoder's last layer.
      step: int32[], counted from 0.

    Returns:
      The state after it, what to add to `towards`, and float32[] metrics.
    """

    def computed() -> tuple[PatchDiscriminatorState, Array, dict[str, Array]]:
      def fooling_loss(rebuilt: Array) -> Array:
        return -self.logits(state.params, rebuilt).mean()

      loss, gradient = jax.value_and_grad(fooling_loss)(rebuilt)
      weight = jnp.float32(self.weight)
      if self.adaptive:
        own_norm = last_layer_norm(gradient) + _SMALLEST_NORM
        ratio = last_layer_norm(towards) / own_norm
        weight *= jnp.clip(ratio, 0.0, _LARGEST_RATIO)
      weight = jnp.where(step >= self.used_from, weight, 0.0)
      after, own_loss = self._learn(state, images, rebuilt)
      return after, weight * gradient, _metrics(loss, weight, own_loss)

    def skipped() -> tuple[PatchDiscriminatorState, Array, dict[str, Array]]:
      nothing = jnp.float32(0.0)
      return state, jnp.zeros_like(rebuilt), _metrics(nothing, nothing, nothing)

    return jax.lax.cond(step >= self.trains_from, computed, skipped)

  def _learn(
    self, state: PatchDiscriminatorState, images: Array, rebuilt: Array
  ) -> tuple[PatchDiscriminatorState, Array]:
    def loss_fn(params: Any) -> Array:
      real, fake = self.logits(params, images), self.logits(params, rebuilt)
      # Taming's half: 1 at zero logits.
      return hinge_loss(real, fake) / 2

    params, opt_state = state.params, state.opt_state
    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = self.optimizer.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    return PatchDiscriminatorState(params, opt_state), loss


def _metrics(loss: Array, weight: Array, own_loss: Array) -> dict[str, Array]:
  return {
    'adversarial': loss,
    'adversarial_weight': weight,
    'discriminator_loss': own_loss,
  }
