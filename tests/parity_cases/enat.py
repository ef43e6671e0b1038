"""ENAT: single forwards, each after the one it reuses, and its decoding.

Each file is run in both ways that the network has, on gathered tokens and with
masks at full length; what counts is the way that is further from the original.
A file whose `meta` has the `way` 'masking' is run with masks alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import re

import jax
import numpy as np

from adanat_jax.convert import enat as convert
from adanat_jax.decoding import loop, tables, unrolled
from adanat_jax.models import enat
from adanat_jax.types import TokenCounts
from support.reference_arrays import Reference

Outputs = Mapping[str, np.ndarray]


def _network(reference: Reference) -> tuple[enat.ENAT, Mapping[str, jax.Array]]:
  config = reference.config
  module = convert.infer(
    reference.weights,
    num_heads=config['num_heads'],
    decoder_depth=config['enc_dec'][1],
  )
  params = convert.FAMILY.to_ours(reference.weights, module)
  return module, jax.device_put(params)


def _gathering(module: enat.ENAT) -> Callable[..., tuple[jax.Array, ...]]:
  """`ENAT.gathered` of parameters, compiled once for each of its counts."""
  return jax.jit(
    lambda params, *inputs: module.apply(
      {'params': params}, *inputs, method='gathered'
    ),
    static_argnums=4,
  )


def _order(note: str) -> dict[str, str | None]:
  """The cases in the order of their making: what each one reuses, or None."""
  cases = re.findall(r'(\w+) ?\((?:no prev|prev=(\w+))', note)
  return {case: previous or None for case, previous in cases}


def _worse(
  reference: np.ndarray, one: jax.Array, other: jax.Array
) -> np.ndarray:
  """Of two versions of an output, the one further from the reference."""
  one, other = np.asarray(one), np.asarray(other)
  if not one.shape == other.shape == reference.shape:
    return one
  error = np.abs(one.astype(np.float64) - reference)
  # Not `error >`, which a NaN would lose.
  near = error <= np.abs(other.astype(np.float64) - reference)
  return np.where(near, other, one)


def _counts(tokens: np.ndarray, last: np.ndarray, mask: int) -> TokenCounts:
  """The counts that all samples share."""
  visible, before = tokens != mask, last != mask
  kinds = (before & visible, visible & ~before, ~visible)
  (counts,) = {tuple(row) for row in np.stack([k.sum(1) for k in kinds], 1)}
  return TokenCounts(*map(int, counts))


def forwards(reference: Reference) -> Outputs:
  module, params = _network(reference)
  condition = reference.inputs['context'].reshape(-1)
  masking = jax.jit(module.apply)
  gathering = _gathering(module)
  if reference.meta.get('way') == 'masking':
    gathering = lambda params, *x: masking({'params': params}, *x[:-1])
  order = _order(reference.meta['note'])
  nothing = module.nothing_encoded(len(condition))
  caches, result = {None: (nothing, nothing)}, {}
  for case, previous in order.items():
    tokens = reference.inputs[f'{case}/masked_ids']
    last = (
      np.full_like(tokens, module.codebook_size)
      if previous is None
      else reference.inputs[f'{previous}/masked_ids']
    )
    counts = _counts(tokens, last, module.codebook_size)
    gathered, masked = caches[previous]
    *one, gathered = gathering(params, tokens, condition, gathered, counts)
    *other, masked = masking({'params': params}, tokens, condition, masked)
    caches[case] = gathered, masked
    for name, ours, theirs in zip(('feat', 'logits'), one, other, strict=True):
      output = f'{case}/{name}'
      result[output] = _worse(reference.outputs[output], ours, theirs)
  return result


def decode(reference: Reference) -> Outputs:
  config, given = reference.config, reference.inputs
  module, params = _network(reference.neighbour('enat_decode', 'enat'))
  noise = loop.Noise(given['gumbel_categorical'], given['gumbel_confidence'])
  num_steps, batch, num_tokens = noise.confidence.shape
  table = tables.enat(
    num_steps,
    total=num_tokens,
    sampling_temperature=config['samp_temp'],
    masking_temperature=config['mask_temp'],
    guidance_scale=config['cfg_scale'],
  )
  start = np.full((batch, num_tokens), module.codebook_size, np.int32)
  arguments = dict(
    tokens=start,
    condition=given['context'].reshape(-1),
    null_condition=np.int32(config['uncond_class']),
    keys=jax.random.split(jax.random.key(0), batch),
    mask_token=module.codebook_size,
    noise=noise,
    record=True,
  )

  @jax.jit
  def gathering(params: Mapping[str, jax.Array]) -> loop.Decoded:
    return unrolled.decode(
      functools.partial(_gathering(module), params), table, **arguments
    )

  @jax.jit
  def masking(params: Mapping[str, jax.Array]) -> loop.Decoded:
    return loop.decode(
      lambda *x: module.apply({'params': params}, *x),
      tables.table_policy(table),
      num_steps=num_steps,
      # Both passes of guidance have their own.
      cache=module.nothing_encoded(2 * batch),
      **arguments,
    )

  decodes = gathering(params), masking(params)
  inputs = (
    np.concatenate([start[None], decoded.trajectory.tokens])[:-1]
    for decoded in decodes
  )
  final = (decoded.tokens for decoded in decodes)
  return {
    name: _worse(reference.outputs[name], *both)
    for name, both in (('masked_ids', inputs), ('final_ids', final))
  }


CASES: dict[str, Callable[[Reference], Outputs]] = {
  'enat': forwards,
  'enat_decode': decode,
}
