"""Published hand-made schedules: tables of four numbers a step.

Each is made by a function of `num_steps` as a `PolicyValues` of float32[T], the
same for all samples. `schedules` has the options with which each is decoded.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import actions
from adanat_jax.errors import UserError
from adanat_jax.types import Array, PolicyValues

CURVES = ('cosine', 'uniform', 'pow<exponent>', 'log', 'exp')

# LeapLabTHU/ImprovedNAT, configs/AutoNAT_L-T8_strategy.yaml. The lists of the
# mask ratio and of the masking temperature end one step early: the last step
# masks nothing.
_AUTONAT_MASK_RATIO = (
  0.9531645174140464,
  0.8795409806037042,
  0.7940230737075623,
  0.745995860948045,
  0.6249785820461957,
  0.407321956652571,
  0.260658917067054,
  0.0,
)
_AUTONAT_MASKING_TEMPERATURE = (
  2.404912789740805,
  2.477616274962803,
  1.191696577294597,
  0.7685444738649722,
  1.0673489052089495,
  0.9353720330515827,
  0.7843839537838292,
  0.0,
)
_AUTONAT_SAMPLING_TEMPERATURE = (
  2.8999037830310685,
  1.867261830931786,
  1.1443729673819831,
  1.3796334226014182,
  1.4699896959810144,
  1.3760684112198358,
  1.7082165405200722,
  0.7133060703601533,
)
_AUTONAT_GUIDANCE_SCALE = (
  0.0001,
  0.0001,
  0.0001,
  0.9151274967591447,
  1.6160182878189675,
  1.1945509026838659,
  1.38322370140345,
  1.22678520936251,
)


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


def hand_made(
  num_steps: int,
  *,
  curve: str = 'cosine',
  total: int = 256,
  sampling_temperature: float = 1.0,
  masking_temperature: float = 4.5,
  guidance_scale: float = 0.0,
) -> PolicyValues:
  """The family of hand-made schedules with its four dials, float32[T].

  The masking temperature falls linearly to 0 and the guidance grows linearly
  to its full value, as in MaskGIT and Muse; the sampling temperature is
  constant. The defaults are MaskGIT's.

  Args:
    num_steps: T.
    curve: mask-ratio curve, see `mask_ratio_curve`.
    total: how many tokens are unknown at the start.
    sampling_temperature: at every step.
    masking_temperature: step t uses `masking_temperature * (1 - (t + 1) / T)`.
    guidance_scale: step t uses `guidance_scale * (t + 1) / T`.
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
  """Muse's schedule, float32[T], of baaivision/MUSE-Pytorch libs/muse.py.

  Its confidence is the guided logit: decode with `step.MUSE`.

  Args:
    num_steps: T.
    total: how many tokens are unknown at the start.
    temperature: of sampling and masking; step t uses `temperature * (1 - (t +
      1) / T)`.
    guidance_scale: one step behind: step t uses `guidance_scale * t / T`.
  """
  done = jnp.arange(num_steps, dtype=jnp.float32) / num_steps
  progress = done + 1 / num_steps
  return PolicyValues(
    mask_ratio=mask_ratio_curve(progress, total, 'cosine'),
    sampling_temperature=temperature * (1 - progress),
    masking_temperature=temperature * (1 - progress),
    guidance_scale=guidance_scale * done,
  )


def maskgit_residual(num_steps: int) -> Array:
  """MaskGIT's unguided schedule in raw action space, where it can learn.

  float32[T, A]. Values are clipped to where the activations are not saturated:
  the guidance and the last masking temperature are 0.1.
  """
  table = hand_made(num_steps)
  clipped = dataclasses.replace(
    table,
    mask_ratio=jnp.clip(table.mask_ratio, 0.01, 0.99),
    masking_temperature=jnp.maximum(table.masking_temperature, 0.1),
    guidance_scale=jnp.maximum(table.guidance_scale, 0.1),
  )
  return actions.residual_of(clipped)


def enat(
  num_steps: int,
  *,
  total: int = 256,
  sampling_temperature: float = 6.0,
  masking_temperature: float = 1.5,
  guidance_scale: float = 2.5,
  lagged: bool = True,
) -> PolicyValues:
  """ENAT's schedule, LeapLabTHU/ENAT `libs/nat_misc.py`, float32[T].

  The defaults are published for ImageNet 256 with T = 8; for ImageNet 512 they
  are a guidance of 3.5 and a sampling temperature of 4. Decode with
  `step.ADANAT`. Its mask ratios stand half a token above the published counts,
  `floor(total * cos(pi / 2 * (t + 1) / T))` in float64, so that rounding to
  float32 does not change these.

  Args:
    num_steps: T.
    total: how many tokens are unknown at the start.
    sampling_temperature: step t uses `sampling_temperature * (1 - (t + 1) /
      T)`, and 1e-3 at the last one.
    masking_temperature: falls to 0 in the same way.
    guidance_scale: step t uses `guidance_scale * t / T`.
    lagged: False lets step t use `guidance_scale * (t + 1) / T`, as MaskGIT's
      relatives that do not lag do.
  """
  progress = (np.arange(num_steps) + 1) / num_steps
  counts = [math.floor(total * math.cos(math.pi / 2 * p)) for p in progress]
  falling = 1 - progress
  sampling = np.maximum(sampling_temperature * falling, 1e-3)
  growing = progress - 1 / num_steps if lagged else progress
  return PolicyValues(
    mask_ratio=jnp.float32((np.array(counts) + 0.5) / total),
    sampling_temperature=jnp.float32(sampling),
    masking_temperature=jnp.float32(masking_temperature * falling),
    guidance_scale=jnp.float32(guidance_scale * growing),
  )


def autonat_large(num_steps: int = 8) -> PolicyValues:
  """AutoNAT-L's schedule for ImageNet 256, FID 2.68 at T = 8: float32[8].

  AutoNAT (arXiv 2406.05478); the numbers were searched for this network, by
  descent on the FID. Decode with `step.MASKGIT`, which clamps as AutoNAT does.

  Raises:
    UserError: for another number of steps than 8.
  """
  if num_steps != len(_AUTONAT_MASK_RATIO):
    raise UserError(
      f"AutoNAT-L's schedule has {len(_AUTONAT_MASK_RATIO)} steps and"
      f' num_steps={num_steps} was given; no other one is published'
    )
  return PolicyValues(
    mask_ratio=jnp.float32(_AUTONAT_MASK_RATIO),
    sampling_temperature=jnp.float32(_AUTONAT_SAMPLING_TEMPERATURE),
    masking_temperature=jnp.float32(_AUTONAT_MASKING_TEMPERATURE),
    guidance_scale=jnp.float32(_AUTONAT_GUIDANCE_SCALE),
  )


def adagen(
  num_steps: int = 16,
  *,
  masking_temperature: float = 1.0,
  guidance_scale: float = 1.0,
) -> PolicyValues:
  """AdaGen's hand schedule for MaskGIT, which its policy corrects: float32[T].

  LeapLabTHU/AdaGen configs/maskgit.yaml and core/policy_net.py (T = 16, both
  scales 1); AdaNAT's `heu = 1` is the same at its own T. AdaGen's schedules for
  diffusion, flows and VAR steer other numbers than a token decoder has. Decode
  with `step.ADANAT`.

  The masking temperature falls linearly to almost 0; the guidance grows
  linearly from almost 0 to almost `guidance_scale`.
  """
  step = jnp.arange(num_steps, dtype=jnp.float32)
  # A thousandth of a step keeps the ends away from where sigmoid and softplus
  # saturate.
  done = (step + 1 - 1e-3) / num_steps
  return PolicyValues(
    mask_ratio=jnp.cos(math.pi / 2 * done),
    sampling_temperature=jnp.ones_like(step),
    masking_temperature=masking_temperature * (1 - done),
    guidance_scale=guidance_scale * (step + 1e-3) / num_steps,
  )


def enat_256(num_steps: int = 8) -> PolicyValues:
  """ENAT's schedule on ImageNet 256, FID 2.79 with ENAT-L at T = 8: float32[T].

  LeapLabTHU/ENAT, README: settings for T = 8, none for 4. It has the published
  counts of 256 tokens. Decode with `step.ADANAT`.
  """
  return enat(num_steps)


def enat_512(num_steps: int = 8) -> PolicyValues:
  """ENAT's schedule on ImageNet 512, FID 4.00 with ENAT-L at T = 8: float32[T].

  LeapLabTHU/ENAT, README: only T = 8. It has the published counts of 1024
  tokens. Decode with `step.ADANAT`.
  """
  return enat(
    num_steps, total=1024, sampling_temperature=4.0, guidance_scale=3.5
  )
