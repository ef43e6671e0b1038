"""Decoding with the randomness given, and the schedules it follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from adanat_jax import types
from adanat_jax.convert import nat
from adanat_jax.decoding import actions, loop, step, tables
from support.reference_arrays import Reference

Outputs = Mapping[str, np.ndarray]

# Our names of the four values, by the original's.
_VALUES = {
  'manual_gen_ratios': 'mask_ratio',
  'manual_temp': 'masking_temperature',
  'manual_samp_temp': 'sampling_temperature',
  'manual_cfg': 'guidance_scale',
}


def _denoiser(reference: Reference) -> tuple[types.Denoiser, int]:
  """Returns the file's NAT as a denoiser, and the mask token."""
  module = nat.infer(reference.weights, num_heads=reference.config['num_heads'])
  params = nat.FAMILY.to_ours(reference.weights, module)

  @jax.jit
  def denoiser(tokens, condition, cache):
    return *module.apply({'params': params}, tokens, condition), cache

  return denoiser, module.codebook_size


def _decoding(
  denoiser: types.Denoiser, mask_token: int, **kwargs: Any
) -> Callable[..., loop.Decoded]:
  """`loop.decode` by a table, compiled once for each number of steps."""
  options = step.StepOptions(count_from='all', **kwargs)

  @jax.jit
  def decode(
    table: types.PolicyValues, noise: loop.Noise, **kwargs: Any
  ) -> loop.Decoded:
    num_steps, batch, _ = noise.confidence.shape
    return loop.decode(
      denoiser,
      tables.table_policy(table),
      keys=jax.random.split(jax.random.key(0), batch),
      num_steps=num_steps,
      mask_token=mask_token,
      options=options,
      noise=noise,
      record=True,
      **kwargs,
    )

  return decode


def adanat_decode(reference: Reference) -> Outputs:
  denoiser, mask_token = _denoiser(reference)
  decode = _decoding(denoiser, mask_token)
  scenarios = {name.split('/')[0] for name in reference.outputs}
  result = {}
  for scenario in scenarios:
    given = lambda name, scenario=scenario: reference.inputs.get(
      f'{scenario}/{name}'
    )
    table = types.PolicyValues(
      **{ours: given(theirs) for theirs, ours in _VALUES.items()}
    )
    noise = loop.Noise(given('gumbel_categorical'), given('gumbel_confidence'))
    condition, null = given('context'), reference.inputs['empty_context']
    if condition.ndim == 2:
      condition, null = condition[:, 0], null[0]
    start = given('masked_ids')
    if start is None:
      start = np.full(noise.confidence.shape[1:], mask_token, np.int32)
    decoded = jax.tree.map(
      np.asarray,
      decode(
        table, noise, tokens=start, condition=condition, null_condition=null
      ),
    )
    canvases = [start, *decoded.trajectory.tokens]
    for t, canvas in enumerate(canvases):
      result[f'{scenario}/masked_ids_{t}'] = canvas
      result[f'{scenario}/n_masked_{t}'] = (canvas == mask_token).sum(-1)
      if f'{scenario}/logits_{t}' in reference.outputs:
        _, logits, _ = denoiser(canvas, condition, ())
        result[f'{scenario}/logits_{t}'] = logits
    for t, sampled in enumerate(decoded.trajectory.sampled):
      result[f'{scenario}/sampled_ids_{t + 1}'] = sampled
  return result


def autonat_decode(reference: Reference) -> Outputs:
  denoiser, mask_token = _denoiser(reference)
  noise = loop.Noise(
    reference.inputs['gumbel_categorical'],
    reference.inputs['gumbel_confidence'],
  )
  num_steps, *shape = noise.confidence.shape
  strategy = reference.meta['strategy']
  # The lists without a last entry end at 0.
  full = lambda name: np.float32((strategy[name] + [0.0])[:num_steps])
  start = np.full(shape, mask_token, np.int32)
  decoded = _decoding(denoiser, mask_token, clamp='progress')(
    types.PolicyValues(
      mask_ratio=full('manual_ratios'),
      masking_temperature=full('manual_temp'),
      sampling_temperature=full('manual_samp_temp'),
      guidance_scale=full('manual_cfg'),
    ),
    noise,
    tokens=start,
    condition=reference.inputs['context'].reshape(-1),
    null_condition=np.int32(reference.config['uncond_class']),
  )
  inputs = np.concatenate([start[None], decoded.trajectory.tokens])[:-1]
  return {'masked_ids': inputs, 'final_ids': decoded.tokens}


def raw_actions(reference: Reference) -> Outputs:
  values_of = jax.jit(actions.values_from_action)
  residuals = {'heu0': actions.no_residual, 'heu1': actions.published_residual}
  result = {}
  for num_steps in {int(k.split('/')[0][1:]) for k in reference.outputs}:
    for setting, residual_of in residuals.items():
      residual = np.asarray(residual_of(num_steps))
      by_step = values_of(reference.inputs['actions'][None], residual[:, None])
      at_once = values_of(
        reference.inputs[f'actions_T{num_steps}'].swapaxes(1, 2),
        residual[None],
      )
      for i, (theirs, ours) in enumerate(_VALUES.items()):
        prefix = f'T{num_steps}/{setting}'
        result[f'{prefix}/{theirs}'] = getattr(by_step, ours)
        result[f'{prefix}/all_steps/{theirs}'] = getattr(at_once, ours)
        result[f'T{num_steps}/residual/{theirs}'] = residual[:, i]
  return result


def maskgit_schedule(reference: Reference) -> Outputs:
  curve_of = jax.jit(tables.mask_ratio_curve, static_argnums=(1, 2))
  result = {}
  for name in reference.outputs:
    curve, total, *at_zero = name.split('/')
    done = np.float32(0.0) if at_zero else reference.inputs['ratios']
    result[name] = curve_of(done, int(total), curve)
  return result


def maskgit_topk(reference: Reference) -> Outputs:
  given = reference.inputs
  probs = np.where(given['probs_is_inf'], np.inf, given['probs'])
  least_confident = jax.jit(step.least_confident)
  result = {}
  for name in reference.outputs:
    temperature = float(name.removeprefix('temp'))
    confidence = np.log(probs) + temperature * given['gumbel']
    result[name] = least_confident(confidence, given['mask_len'][:, 0])
  return result


CASES: dict[str, Callable[[Reference], Outputs]] = {
  'decode': adanat_decode,
  'autonat_decode': autonat_decode,
  'biasact': raw_actions,
  'maskgit_schedule': maskgit_schedule,
  'maskgit_topk': maskgit_topk,
}
