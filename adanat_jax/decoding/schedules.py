"""Hand-made policies: mask-ratio curves, and schedules as tables of numbers.

Every published hand-made schedule is a table: one set of four numbers a step,
the same for all samples. So a schedule here is a function of `num_steps` that
returns a `PolicyValues` of float32[T], and `table_policy` makes any such table
a policy.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from adanat_jax.types import Array, Carry, Policy, PolicyValues

CURVES = ('cosine', 'uniform', 'pow<exponent>', 'log', 'exp')


def mask_ratio_curve(progress: Array, total: int, curve: str) -> Array:
  """MaskGIT's mask-ratio curves.

  `google-research/maskgit libml/mask_schedule.py`, section 3.3 of the paper.

  Args:
    progress: float32[...] in [0, 1], the share of decoding that is done.
    total: how many tokens are unknown at the start; `log` and `exp` need it.
    curve: one of `CURVES`, such as `'cosine'` or `'pow2.5'`.

  Returns:
    float32[...], the share of tokens that stays masked, in [1e-6, 1].

  Raises:
    ValueError: for an unknown curve.
  """
  if curve == 'uniform':
    ratio = 1.0 - progress
  elif curve == 'cosine':
    ratio = jnp.cos(math.pi / 2 * progress)
  elif curve == 'log':
    ratio = -jnp.log2(progress) / math.log2(total)
  elif curve == 'exp':
    ratio = 1.0 - jnp.exp2(-math.log2(total) * (1.0 - progress))
  elif curve.startswith('pow'):
    try:
      exponent = float(curve[len('pow') :])
    except ValueError:
      raise ValueError(f'unknown curve {curve!r}; known: {CURVES}') from None
    ratio = 1.0 - progress**exponent
  else:
    raise ValueError(f'unknown curve {curve!r}; known: {CURVES}')
  return jnp.clip(ratio, 1e-6, 1.0)


def table_policy(table: PolicyValues) -> Policy:
  """A policy that reads its values from a table and ignores features.

  Args:
    table: fields float32[T], one number a step for all samples, or
      float32[T, B], one a step and sample.

  Returns:
    A policy with empty aux and unchanged carry.
  """

  def policy(
    step: Array, features: Array, keys: Array, carry: Carry
  ) -> tuple[PolicyValues, tuple[()], Carry]:
    del keys
    batch = features.shape[:1]
    values = jax.tree.map(
      lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32)[step], batch),
      table,
    )
    return values, (), carry

  return policy


def hand_made(
  num_steps: int,
  *,
  curve: str = 'cosine',
  total: int = 256,
  sampling_temperature: float = 1.0,
  masking_temperature: float = 4.5,
  guidance_scale: float = 0.0,
) -> PolicyValues:
  """The family of hand-made schedules with its four dials.

  The masking temperature falls linearly to 0 and the guidance grows linearly
  to its full value, as in MaskGIT and Muse; the sampling temperature is
  constant. The defaults are MaskGIT's.

  Args:
    num_steps: T.
    curve: mask-ratio curve, see `mask_ratio_curve`.
    total: how many tokens are unknown at the start.
    sampling_temperature: at every step.
    masking_temperature: before the first step; step t uses
      `masking_temperature * (1 - (t + 1) / T)`.
    guidance_scale: at the last step; step t uses `guidance_scale * (t+1) / T`.

  Returns:
    A table, float32[T].
  """
  progress = (jnp.arange(num_steps, dtype=jnp.float32) + 1) / num_steps
  return PolicyValues(
    mask_ratio=mask_ratio_curve(progress, total, curve),
    sampling_temperature=jnp.full_like(progress, sampling_temperature),
    masking_temperature=masking_temperature * (1 - progress),
    guidance_scale=guidance_scale * progress,
  )


def muse(
  num_steps: int,
  *,
  total: int = 256,
  temperature: float = 4.5,
  guidance_scale: float = 10.0,
) -> PolicyValues:
  """Muse's schedule as baaivision/MUSE-Pytorch libs/muse.py runs it.

  Its confidence is the guided logit: decode with `step.MUSE`.

  Args:
    num_steps: T.
    total: how many tokens are unknown at the start.
    temperature: of sampling and masking before the first step; both fall as
      `temperature * (1 - (t + 1) / T)`.
    guidance_scale: grows linearly, one step behind: step t uses
      `guidance_scale * t / T`.

  Returns:
    A table, float32[T].
  """
  done = jnp.arange(num_steps, dtype=jnp.float32) / num_steps
  progress = done + 1 / num_steps
  return PolicyValues(
    mask_ratio=mask_ratio_curve(progress, total, 'cosine'),
    sampling_temperature=temperature * (1 - progress),
    masking_temperature=temperature * (1 - progress),
    guidance_scale=guidance_scale * done,
  )
