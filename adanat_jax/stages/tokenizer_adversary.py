"""The adversarial loss of a tokenizer: reconstructions that look real.

A discriminator of patches learns to tell images from their reconstructions by
the hinge loss, and the tokenizer is pushed towards what it takes for real
(Esser et al. 2021, "Taming Transformers", section 3.1). From step to step:

1. before `learns_from` there is none of this, and nothing of it is computed;
2. then the discriminator learns;
3. from `answers_from` on, which is later, reconstructions are pushed: one that
   has learnt nothing yet would push them anywhere.

The push is weighed by a constant, or so that at the decoder's last layer its
gradient is `weight` times as long as that of the reconstruction error (equation
7 of that paper). The discriminator and the tokenizer read the same
reconstructions, those from before the step.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from adanat_jax.errors import UserError
from adanat_jax.experiment.fields import (
  between,
  boolean,
  check,
  int_at_least,
  non_negative,
  positive,
  tuple_of,
)
from adanat_jax.models.patch_discriminator import PatchDiscriminator
from adanat_jax.types import Array

# As published (CompVis/taming-transformers, vqperceptual.py).
_SMALLEST_NORM = 1e-4
_LARGEST_RATIO = 1e4


@struct.dataclass
class DiscriminatorState:
  """The discriminator while it learns.

  Attributes:
    params: of the network.
    opt_state: of the optimizer.
  """

  params: Any
  opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Adversary:
  """How reconstructions are judged.

  Attributes:
    module: the discriminator.
    optimizer: of its parameters.
    weight: of the push, against the reconstruction error.
    adaptive: whether the push is first brought to the error's length.
    learns_from: first step, from 0, in which the discriminator learns.
    answers_from: first step in which reconstructions are pushed.
  """

  module: PatchDiscriminator
  optimizer: optax.GradientTransformation
  weight: float
  adaptive: bool
  learns_from: int
  answers_from: int

  def initial_state(
    self, image_shape: tuple[int, ...], key: Array
  ) -> DiscriminatorState:
    """A new state for images of `image_shape` (H, W, C)."""
    params = self.module.init(key, jnp.zeros((1, *image_shape)))['params']
    return DiscriminatorState(params, self.optimizer.init(params))

  def step(
    self,
    state: DiscriminatorState,
    images: Array,
    rebuilt: Array,
    towards: Array,
    last_layer_norm: Callable[[Array], Array],
    step: Array,
  ) -> tuple[DiscriminatorState, Array, dict[str, Array]]:
    """One step of the discriminator, and its push on the reconstructions.

    Args:
      state: before the step.
      images: float[B, H, W, C] in [0, 1].
      rebuilt: their reconstructions, not clipped.
      towards: gradient of the reconstruction error by `rebuilt`.
      last_layer_norm: the norm of the last layer's gradient, given the one by
        `rebuilt`.
      step: int32[], counted from 0.

    Returns:
      The state after it, what to add to `towards`, and float32[] metrics.
    """

    def judged() -> tuple[DiscriminatorState, Array, dict[str, Array]]:
      def dislike(rebuilt: Array) -> Array:
        return -self.module.apply({'params': state.params}, rebuilt).mean()

      disliked, away = jax.value_and_grad(dislike)(rebuilt)
      weight = jnp.float32(self.weight)
      if self.adaptive:
        ratio = last_layer_norm(towards) / (
          last_layer_norm(away) + _SMALLEST_NORM
        )
        weight *= jnp.clip(ratio, 0.0, _LARGEST_RATIO)
      weight = jnp.where(step >= self.answers_from, weight, 0.0)
      after, loss = self._learn(state, images, rebuilt)
      return after, weight * away, _metrics(disliked, weight, loss)

    def ignored() -> tuple[DiscriminatorState, Array, dict[str, Array]]:
      nothing = jnp.float32(0.0)
      return state, jnp.zeros_like(rebuilt), _metrics(nothing, nothing, nothing)

    return jax.lax.cond(step >= self.learns_from, judged, ignored)

  def _learn(
    self, state: DiscriminatorState, images: Array, rebuilt: Array
  ) -> tuple[DiscriminatorState, Array]:
    def loss_fn(params: Any) -> Array:
      judge = lambda x: self.module.apply({'params': params}, x)
      return hinge_loss(judge(images), judge(rebuilt))

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = self.optimizer.update(
      grads, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    return DiscriminatorState(params, opt_state), loss


def hinge_loss(real: Array, fake: Array) -> Array:
  """What the discriminator makes small.

  `(mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2`: 1 where it knows
  nothing, 0 where it is right and sure.

  Args:
    real: logits of patches of real images.
    fake: of their reconstructions.

  Returns:
    float32[].
  """
  return (jax.nn.relu(1.0 - real).mean() + jax.nn.relu(1.0 + fake).mean()) / 2


def _metrics(disliked: Array, weight: Array, loss: Array) -> dict[str, Array]:
  return {
    'adversarial': disliked,
    'adversarial_weight': weight,
    'discriminator_loss': loss,
  }


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for `config.tokenizer.adversarial` that cannot work."""
  name = 'tokenizer.adversarial'
  check(config, {f'{name}.weight': non_negative})
  section = config.tokenizer.adversarial
  if not section.weight:
    return
  check(
    config,
    {
      f'{name}.adaptive': boolean,
      f'{name}.start_fraction': between(0.0, 1.0),
      f'{name}.lead_fraction': between(0.0, 1.0),
      f'{name}.num_levels': int_at_least(1),
      f'{name}.base_width': int_at_least(1),
      f'{name}.num_groups': int_at_least(1),
      f'{name}.learning_rate': positive,
      f'{name}.betas': tuple_of(between(0.0, 1.0), length=2),
    },
  )
  if section.base_width % section.num_groups:
    raise UserError(
      f'config.{name}.num_groups={section.num_groups}: give one that divides'
      f' base_width={section.base_width}'
    )


def of_config(config: ml_collections.ConfigDict) -> Adversary | None:
  """The adversary that a config asks for, None for none."""
  section = config.tokenizer.adversarial
  if not section.weight:
    return None
  num_steps = config.tokenizer.num_steps
  learns_from = int(section.start_fraction * num_steps)
  return Adversary(
    module=PatchDiscriminator(
      section.base_width, section.num_levels, section.num_groups
    ),
    optimizer=optax.adam(section.learning_rate, *section.betas),
    weight=section.weight,
    adaptive=section.adaptive,
    learns_from=learns_from,
    answers_from=learns_from + int(section.lead_fraction * num_steps),
  )
