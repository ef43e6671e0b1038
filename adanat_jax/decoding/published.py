"""Schedules that their authors published, as tables.

Each function returns a `PolicyValues` of float32[T] for
`schedules.table_policy`, and names the options of the step it was made for.
ENAT's formula, for any number of tokens, is `unrolled.enat`.
"""

from __future__ import annotations

from collections.abc import Callable
import math

import jax.numpy as jnp

from adanat_jax.decoding import unrolled
from adanat_jax.errors import UserError
from adanat_jax.types import PolicyValues

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


def autonat_large(num_steps: int = 8) -> PolicyValues:
  """AutoNAT-L's searched schedule on ImageNet 256, FID 2.68 at T = 8.

  AutoNAT (arXiv 2406.05478); the numbers were searched for this network, by
  descent on the FID. Decode with `step.MASKGIT`, which clamps as AutoNAT does.

  Args:
    num_steps: T; only 8 is published.

  Returns:
    A table, float32[8].

  Raises:
    UserError: for another number of steps.
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
  """AdaGen's hand schedule for MaskGIT, which its policy is a correction of.

  LeapLabTHU/AdaGen configs/maskgit.yaml and core/policy_net.py (T = 16, both
  scales 1); AdaNAT's `heu = 1` is the same at its own T. AdaGen's schedules for
  diffusion, flows and VAR steer other numbers than a token decoder has. Decode
  with `step.ADANAT`.

  Args:
    num_steps: T.
    masking_temperature: before the first step; falls linearly to almost 0.
    guidance_scale: grows linearly from almost 0 to almost this.

  Returns:
    A table, float32[T].
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
  """ENAT's schedule on ImageNet 256, FID 2.79 with ENAT-L at T = 8.

  LeapLabTHU/ENAT, README. Decode with `step.ADANAT`.

  Args:
    num_steps: T; the authors give settings for 8 and none for 4.

  Returns:
    A table, float32[T], with the published counts of 256 tokens.
  """
  return unrolled.enat(
    num_steps,
    total=256,
    sampling_temperature=6.0,
    masking_temperature=1.5,
    guidance_scale=2.5,
  )


def enat_512(num_steps: int = 8) -> PolicyValues:
  """ENAT's schedule on ImageNet 512, FID 4.00 with ENAT-L at T = 8.

  LeapLabTHU/ENAT, README. Decode with `step.ADANAT`.

  Args:
    num_steps: T; only 8 is published.

  Returns:
    A table, float32[T], with the published counts of 1024 tokens.
  """
  return unrolled.enat(
    num_steps,
    total=1024,
    sampling_temperature=4.0,
    masking_temperature=1.5,
    guidance_scale=3.5,
  )


SCHEDULES: dict[str, Callable[[int], PolicyValues]] = {
  'autonat_large': autonat_large,
  'adagen': adagen,
  'enat_256': enat_256,
  'enat_512': enat_512,
}
