"""Published hand-made schedules: tables of four numbers a step.

Each is made by a function of `num_steps` as a `PolicyValues` of float32[T], the
same for all samples. `schedules` has the options with which each is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from adanat_jax.decoding import actions
from adanat_jax.errors import UserError, shown
from adanat_jax.types import Array, Carry, Observation, Policy, PolicyValues

CURVES = ('cosine', 'arccos', 'uniform', 'pow<exponent>', 'log', 'exp')

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


def is_curve(name: str) -> bool:
  """Whether a name is that of a mask-ratio curve, such as 'pow2.5'."""
  if re.fullmatch(r'pow\d{1,3}(\.\d{1,6})?', name):
    return float(name.removeprefix('pow')) > 0
  return name in CURVES and '<' not in name


def mask_ratio_curve(
  progress: Array | np.ndarray, total: Array | int, curve: str
) -> Array:
  """MaskGIT's mask-ratio curves.

  `google-research/maskgit libml/mask_schedule.py`, section 3.3 of the paper;
  `'arccos'` is TiTok's. Others call `'pow0.5'`, `'uniform'` and `'pow2'` root,
  linear and square.

  Args:
    progress: float32[...] in [0, 1], the share of decoding that is done.
    total: int[...], how many tokens are unknown at the start; `log` and `exp`
      need it.
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
  elif curve == 'arccos':
    ratio = jnp.arccos(progress) / (math.pi / 2)
  elif curve == 'log':
    ratio = -jnp.log2(progress) / _log2(total, progress)
  elif curve == 'exp':
    ratio = 1.0 - jnp.exp2(-_log2(total, progress) * (1.0 - progress))
  elif curve.startswith('pow'):
    try:
      exponent = float(curve[len('pow') :])
    except ValueError:
      raise ValueError(f'unknown curve {curve!r}; known: {CURVES}') from None
    ratio = 1.0 - jnp.power(progress, exponent)
  else:
    raise ValueError(f'unknown curve {curve!r}; known: {CURVES}')
  return jnp.clip(ratio, 1e-6, 1.0)


def _log2(total: Array | int, like: Array | np.ndarray) -> Array:
  """The binary logarithm as the original has it, of the shape of `like`."""
  return jnp.log2(jnp.broadcast_to(jnp.asarray(total, like.dtype), like.shape))


def progress_of(num_steps: int) -> np.ndarray:
  """The share of decoding that is done after each step, float32[T].

  As the original divides: XLA would multiply by the reciprocal of T, and where
  a share of the tokens is a whole number, its floor would be one less.
  """
  return np.arange(1, num_steps + 1, dtype=np.float32) / np.float32(num_steps)


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
  progress = progress_of(num_steps)
  falling = np.float32(masking_temperature) * (1 - progress)
  return PolicyValues(
    mask_ratio=mask_ratio_curve(progress, total, curve),
    sampling_temperature=jnp.asarray(
      np.full_like(progress, sampling_temperature)
    ),
    masking_temperature=jnp.asarray(falling),
    guidance_scale=jnp.asarray(np.float32(guidance_scale) * progress),
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
  progress = jnp.asarray(progress_of(num_steps))
  return PolicyValues(
    mask_ratio=mask_ratio_curve(progress, total, 'cosine'),
    sampling_temperature=temperature * (1 - progress),
    masking_temperature=temperature * (1 - progress),
    guidance_scale=guidance_scale * done,
  )


def checked_table(
  given: PolicyValues | Mapping[str, Sequence[float] | np.ndarray | Array],
  what: str = 'the table',
  num_samples: int | None = None,
  *,
  in_nats: bool = False,
) -> PolicyValues:
  """Checks a schedule in numbers, wherever it comes from.

  Args:
    given: the lists of T numbers by name, or arrays of [T, B]; all but
      `revisit_rate` are needed. Files of searches have more, which is not read.
    what: the table, for the messages.
    num_samples: B, if a column for each sample is allowed.
    in_nats: whether mask ratios are bounds of entropies, which have no limit.

  Returns:
    The table, float32[T] or float32[T, B].

  Raises:
    UserError: unless they are of one shape, finite, none negative, and mask
      ratios and revisit rates at most 1.
  """
  if isinstance(given, PolicyValues):
    given = dict(given.by_name())
  names = [field.name for field in dataclasses.fields(PolicyValues)]
  *needed, revisit = names
  if not isinstance(given, Mapping) or not {*needed} <= {*given}:
    raise UserError(f'{what} must have the lists {", ".join(needed)}')
  columns = {}
  for name in names if revisit in given else needed:
    try:
      column = np.asarray(given[name])
    except ValueError:
      column = np.asarray(None)  # A list of lists of unequal lengths.
    if column.dtype.kind not in 'iuf' or not column.ndim or not column.size:
      raise UserError(
        f'{what}: {name} is {shown(given[name])}; give a list of numbers'
      )
    with np.errstate(over='ignore'):
      columns[name] = column.astype(np.float32)
  shapes = {name: column.shape for name, column in columns.items()}
  rest = columns['mask_ratio'].shape[1:]
  if len({*shapes.values()}) > 1 or rest not in ((), (num_samples,)):
    columned = f' (or [T, {num_samples}])' if num_samples else ''
    raise UserError(
      f'{what}: the lists must have equal lengths, a number a step{columned};'
      f' they have {shapes}'
    )
  for name, column in columns.items():
    is_share = name == revisit or (name == 'mask_ratio' and not in_nats)
    most = 1.0 if is_share else np.finfo(np.float32).max
    wrong = ~((column >= 0) & (column <= most))
    if wrong.any():
      allowed = 'in [0, 1]' if is_share else 'finite, none negative'
      raise UserError(
        f'{what}: {name} holds {column[wrong][0]}; its values must be {allowed}'
      )
  return PolicyValues(**{k: jnp.asarray(x) for k, x in columns.items()})


def checked_priority(given: object, what: str) -> np.ndarray:
  """An order of positions, float32[N], the largest number first.

  Raises:
    UserError: for what is no list of finite numbers.
  """
  try:
    numbers = np.asarray(given, np.float32)
  except (ValueError, TypeError):
    numbers = np.zeros(0, np.float32)
  if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all():
    raise UserError(
      f'{what}: priority is {shown(given)}; give a list of finite numbers, one'
      ' a token'
    )
  return numbers


def of_numbers(
  num_steps: int,
  mask_ratio: ArrayLike,
  *,
  sampling_temperature: ArrayLike = 1.0,
  masking_temperature: ArrayLike = 0.0,
  guidance_scale: ArrayLike = 0.0,
  revisit_rate: ArrayLike | None = None,
) -> PolicyValues:
  """A table float32[T] of rows and of numbers that all steps share."""
  row = lambda x: jnp.broadcast_to(jnp.float32(x), (num_steps,))
  return PolicyValues(
    mask_ratio=row(mask_ratio),
    sampling_temperature=row(sampling_temperature),
    masking_temperature=row(masking_temperature),
    guidance_scale=row(guidance_scale),
    revisit_rate=None if revisit_rate is None else row(revisit_rate),
  )


def exact_ratio(num_steps: int, curve: str, total: int) -> np.ndarray:
  """Ratios float32[T] with the counts of a curve in exact arithmetic.

  Half a token above `floor(total * curve)`, so that no rounding to float32
  changes these.
  """
  progress = (np.arange(num_steps) + 1) / num_steps
  with jax.enable_x64(True):
    ratio = np.asarray(mask_ratio_curve(jnp.asarray(progress), total, curve))
  counts = np.floor(total * ratio + 1e-9)
  half = np.where(counts > 0, (counts + 0.5) / total, 0.0)
  return half.astype(np.float32)


def amused(
  num_steps: int, *, total: int = 256, guidance_scale: float = 9.0
) -> PolicyValues:
  """AMUSEd's schedule, and Meissonic's, float32[T].

  huggingface/diffusers `schedulers/scheduling_amused.py`: T = 12, and a
  guidance of 10 in its convention; viiika/Meissonic takes 64 steps. Decode with
  `step.MASKGIT`. The masking temperature falls linearly from 2 to 0, both
  included.
  """
  ratio = hand_made(num_steps, total=total).mask_ratio
  return of_numbers(
    num_steps,
    ratio,
    masking_temperature=np.linspace(2, 0, num_steps),
    guidance_scale=guidance_scale,
  )


def _one_temperature(
  total: int, temperature: np.ndarray, guidance_scale: np.ndarray
) -> PolicyValues:
  """1d-tokenizer's tables: the arccos curve, one temperature for both."""
  num_steps = len(temperature)
  return of_numbers(
    num_steps,
    hand_made(num_steps, curve='arccos', total=total).mask_ratio,
    sampling_temperature=temperature,
    masking_temperature=temperature,
    guidance_scale=guidance_scale,
  )


def titok(
  num_steps: int,
  *,
  total: int,
  temperature: float,
  guidance_scale: float,
  power: float | None = None,
) -> PolicyValues:
  """TiTok's schedule, float32[T], of bytedance/1d-tokenizer `maskgit.py`.

  Both temperatures fall, so the last step takes the likeliest token. Its
  confidence is the guided logit: decode with `step.MUSE`.

  Args:
    num_steps: T.
    total: how many tokens are unknown at the start.
    temperature: step t uses `temperature * (1 - (t + 1) / T)`.
    guidance_scale: step t uses `guidance_scale * t / T`; with a `power`, which
      they call power-cosine,
    power: `(guidance_scale - 1) (1 - cos(pi (t / T)^power)) / 2`.
  """
  done = np.arange(num_steps) / num_steps
  falling = temperature * (1 - progress_of(num_steps))
  guidance = guidance_scale * done
  if power is not None:
    guidance = (guidance_scale - 1) * (1 - np.cos(np.pi * done**power)) / 2
  return _one_temperature(total, falling, guidance)


def maskgen(
  num_steps: int,
  *,
  total: int = 128,
  temperature: float = 1.5,
  guidance_scale: float = 12.0,
) -> PolicyValues:
  """MaskGen-VQ's schedule for texts, float32[T], of 1d-tokenizer `maskgen.py`.

  T = 16 and 128 tokens. As TiTok's, but logits are divided by a number that
  falls from 1.3 to 0.5, which both temperatures take over here, and the
  guidance grows from 1 to `guidance_scale` in a cosine. Decode with
  `step.MUSE`.
  """
  done = (np.arange(num_steps) + 1) / num_steps
  falling = temperature * (1 - done) * (0.5 + 0.8 * (1 - done))
  guidance = (guidance_scale - 1) * (1 - np.cos(np.pi * done)) / 2 + 1
  return _one_temperature(total, falling, guidance)


def remdm(
  num_steps: int,
  *,
  rule: str = 'cap',
  eta: float = 0.05,
  loop: tuple[float, float, float] | None = None,
  sampling_temperature: float = 1.0,
  guidance_scale: float = 0.0,
) -> PolicyValues:
  """ReMDM's schedule, float32[T]: Wang et al., arXiv 2503.00307, section 4.

  Decode with the commit rule `'independent'`. The share known grows linearly.
  Known tokens are masked again with a probability that is at most `(1 - after)
  / before` of the shares known before and after a step.

  Args:
    num_steps: T.
    rule: `'cap'` limits the probability to `eta`, `'rescale'` multiplies it by
      `eta`, `'most'` takes all of it, `'none'` nothing.
    eta: see above.
    loop: `(on, off, share)`: the share known grows until the time, which falls
      from 1 to 0, is `on`; stays at `share` while tokens are revisited; and
      grows to 1 from the time `off`. None revisits at every step.
    sampling_temperature: at every step.
    guidance_scale: at every step.
  """
  time = 1 - np.arange(num_steps + 1) / num_steps
  known, may = 1 - time, np.ones(num_steps, bool)
  if loop is not None:
    on, off, share = loop
    known = np.interp(time[::-1], [0, off, on, 1], [1, share, share, 0])[::-1]
    may = (time[:-1] <= on) & (time[:-1] > off)
  before, after = known[:-1], known[1:]
  most = np.minimum(1, (1 - after) / np.maximum(before, 1e-12))
  rate = {
    'cap': np.minimum(eta, most),
    'rescale': eta * most,
    'most': most,
    'none': 0 * most,
  }[rule]
  return of_numbers(
    num_steps,
    1 - after,
    sampling_temperature=sampling_temperature,
    guidance_scale=guidance_scale,
    revisit_rate=rate * may,
  )


def maskgit_residual(num_steps: int) -> Array:
  """MaskGIT's unguided schedule in raw action space, float32[T, A]."""
  return learnable_residual(hand_made(num_steps))


def learnable_residual(table: PolicyValues) -> Array:
  """A table float32[T] in raw action space, where it can learn: float32[T, A].

  Values are clipped to where the activations are not saturated: of MaskGIT, the
  guidance and the last masking temperature are 0.1.
  """
  host: Any = jax.tree.map(np.asarray, table)
  clipped: dict[str, Any] = {
    'mask_ratio': np.clip(host.mask_ratio, 0.01, 0.99),
    'masking_temperature': np.maximum(host.masking_temperature, 0.1),
    'guidance_scale': np.maximum(host.guidance_scale, 0.1),
  }
  return actions.residual_of(dataclasses.replace(table, **clipped))


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


def table_policy(table: PolicyValues) -> Policy:
  """A policy that reads its values from a table and ignores features.

  The table's fields are float32[T], one number a step for all samples, or
  float32[T, B], one a step and sample. Aux is empty, the carry unchanged.
  """

  def policy(
    step: Array, observation: Observation, keys: Array, carry: Carry
  ) -> tuple[PolicyValues, tuple[()], Carry]:
    del observation
    batch = keys.shape
    values = jax.tree.map(
      lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.float32)[step], batch),
      table,
    )
    return values, (), carry

  return policy
