"""From the policy network's raw action to the four decoding values.

An action has four entries in the original's order: mask ratio, masking
temperature, sampling temperature, guidance scale. The ratio goes through a
sigmoid, the others through a softplus; a *residual*, the same hand-made
schedule seen backwards through these activations, may be added before them, so
that a zero action is exactly that schedule (LeapLabTHU/AdaNAT train.py,
`BiasAct`; AdaNAT, section 3.2).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from adanat_jax.types import Array, PolicyValues

# The values that the entries of an action stand for.
NAMES = (
  *('mask_ratio', 'masking_temperature', 'sampling_temperature'),
  'guidance_scale',
)
NUM_ACTIONS = len(NAMES)


def inverse_softplus(x: ArrayLike) -> np.ndarray:
  """The `y` with `log(1 + exp(y)) = x`, for x > 0, on the host.

  Here and in the residuals NumPy takes what rounds in one way only. XLA would
  compile a program for each operation, a fifth of what loading a generator
  takes.
  """
  x = np.asarray(x)
  return x + np.asarray(jnp.log(-np.asarray(jnp.expm1(-x))))


def published_residual(num_steps: int) -> Array:
  """AdaNAT's hand-made schedule in raw action space (`heu = 1`), float32[T, A].

  Through `values_from_action` it is the cosine curve, masking temperature
  falling and guidance growing linearly, sampling temperature 1.
  """
  step = np.arange(num_steps, dtype=np.float32)
  share = lambda x: np.asarray(jnp.true_divide(x, num_steps))
  progress = share(step + 1 - 1e-3)
  ratio = np.asarray(jnp.cos(math.pi / 2 * progress))
  columns = [
    np.asarray(jnp.log(ratio)) - np.asarray(jnp.log1p(-ratio)),
    inverse_softplus(1 - progress),
    np.full_like(step, inverse_softplus(np.float32(1.0))),
    inverse_softplus(share(step + 1e-3)),
  ]
  return jnp.asarray(np.stack(columns, axis=-1))


def no_residual(num_steps: int) -> Array:
  """The residual of a policy that starts from nothing, zeros float32[T, A]."""
  return jnp.zeros((num_steps, NUM_ACTIONS))


def residual_of(table: PolicyValues) -> Array:
  """The residual, float32[T, A], that makes a zero action equal to a schedule.

  Values of the table, float32[T] each, are kept 1e-3 away from where the
  activations saturate.
  """
  table = jax.tree.map(np.asarray, table)
  ratio = np.clip(table.mask_ratio, 1e-3, 1 - 1e-3)
  positive = lambda x: inverse_softplus(np.maximum(x, 1e-3))
  columns = [
    np.asarray(jnp.log(ratio)) - np.asarray(jnp.log1p(-ratio)),
    positive(table.masking_temperature),
    positive(table.sampling_temperature),
    positive(table.guidance_scale),
  ]
  return jnp.asarray(np.stack(columns, axis=-1))


def smooth(
  step: Array | int, before: Array, action: Array, smoothing: float
) -> Array:
  """The smoothed action of a step, float32[..., A].

  AdaGen (arXiv 2603.06993; LeapLabTHU/AdaGen `core/helpers.py`): the first one
  is taken as it is, then `smoothing * before + (1 - smoothing) * action`. It is
  linear, so smoothing the sum of action and residual as they do, with a
  residual made for that, comes to the same as adding this to the schedule.

  Args:
    step: int32[], the number of the step.
    before: float32[..., A], the smoothed action of the step before.
    action: float32[..., A], raw.
    smoothing: in [0, 1); 0 leaves actions as they are.
  """
  mixed = smoothing * before + (1 - smoothing) * action
  return jnp.where(step == 0, action, mixed)


def chosen(learned: tuple[str, ...]) -> Array:
  """1 for the entries of an action that are `learned`, else 0: float32[A]."""
  return jnp.array([float(name in learned) for name in NAMES])


def values_from_action(action: Array, residual: Array) -> PolicyValues:
  """The four decoding values, float32[...], of raw actions float32[..., A].

  The residual is float32[A] of this step, or broadcastable to `action`.
  """
  raw = action + residual
  return PolicyValues(
    mask_ratio=jax.nn.sigmoid(raw[..., 0]),
    masking_temperature=jax.nn.softplus(raw[..., 1]),
    sampling_temperature=jax.nn.softplus(raw[..., 2]),
    guidance_scale=jax.nn.softplus(raw[..., 3]),
  )
