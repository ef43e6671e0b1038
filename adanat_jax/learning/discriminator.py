"""The discriminator as a reward: its state and its own training step.

`L = mean softplus(-D(real)) + mean softplus(D(fake))` over all patch logits
(LeapLabTHU/AdaNAT train.py). Each update runs two training-mode forwards, so
the spectral norms' power iteration advances twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from flax import struct
import jax
import jax.numpy as jnp
import optax

from adanat_jax.types import Array, Condition

# (params, spectral, features, condition, train)
#   -> (logits float32[B, L], spectral)
# where features are whatever the trained heads read of a batch of images.
Heads: TypeAlias = Callable[[Any, Any, Any, Condition, bool], tuple[Array, Any]]


@struct.dataclass
class AdversaryState:
  """The trained part of the discriminator.

  Attributes:
    params: of the heads.
    spectral: the vectors of the spectral norms.
    opt_state: of the optimizer.
  """

  params: Any
  spectral: Any
  opt_state: optax.OptState


def score(
  heads: Heads, state: AdversaryState, features: Any, condition: Condition
) -> Array:
  """Mean logit of each sample in evaluation mode, float32[B]."""
  logits, _ = heads(state.params, state.spectral, features, condition, False)
  return logits.mean(-1)


def update(
  heads: Heads,
  optimizer: optax.GradientTransformation,
  state: AdversaryState,
  real: tuple[Any, Condition],
  fake: tuple[Any, Condition],
) -> tuple[AdversaryState, dict[str, Array]]:
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
  return AdversaryState(params, spectral, opt_state), {
    'discriminator_loss': loss
  }


def accuracy(scores: Array, real: bool) -> Array:
  """Share of samples whose mean logit has the right sign, float32[]."""
  return jnp.mean((scores > 0) == real)
