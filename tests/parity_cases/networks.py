"""The NAT, the policy, the tokenizer, the mapping network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from adanat_jax.convert import discriminator, layout, nat, policy, vqgan
from adanat_jax.models import discriminator as discriminator_model
from support.reference_arrays import Reference

Outputs = Mapping[str, np.ndarray]


def uvit(reference: Reference) -> Outputs:
  config = reference.config
  module = nat.infer(reference.weights, num_heads=config['num_heads'])
  params = nat.FAMILY.to_ours(reference.weights, module)
  condition = reference.inputs['context']
  if module.num_classes is not None:
    condition = condition[:, 0]
  features, logits = jax.jit(module.apply)(
    {'params': params}, reference.inputs['masked_ids'], condition
  )
  return {'feat': features, 'logits': logits}


def policy_networks(reference: Reference) -> Outputs:
  result = {}
  for name in ('actor', 'critic'):
    weights = layout.subset(reference.weights, f'{name}.')
    module = policy.infer(weights)
    result[name] = jax.jit(module.apply)(
      {'params': policy.FAMILY.to_ours(weights, module)},
      reference.inputs['feat'],
      reference.inputs['timestep'],
    )
  return result


def vqgan_tokenizer(reference: Reference) -> Outputs:
  module = vqgan.infer(reference.weights)
  params = vqgan.FAMILY.to_ours(reference.weights, module)
  channels_first = lambda x: np.moveaxis(np.asarray(x), -1, 1)
  images = np.moveaxis(reference.inputs['image'], 1, -1)

  @jax.jit
  def encode(params, images):
    bound = module.bind({'params': params})
    vectors = bound.encode(images)
    return vectors, *bound.quantize(vectors), bound.tokenize(images)

  @jax.jit
  def decode(params, ids):
    bound = module.bind({'params': params})
    return bound.decode(bound.codebook[ids])

  vectors, quantized, ids, tokens = map(np.asarray, encode(params, images))
  error = np.mean(np.square(quantized - vectors))
  return {
    'encoder_h': channels_first(vectors),
    'quant': channels_first(quantized),
    'indices': tokens,
    'decode': channels_first(decode(params, reference.inputs['code'])),
    'decode_of_indices': channels_first(decode(params, ids)),
    # Codebook loss plus a quarter as much commitment.
    'emb_loss': 1.25 * error,
  }


def mapping(reference: Reference) -> Outputs:
  config = reference.config
  module = discriminator_model.MappingNetwork(
    width=config['w_dim'],
    num_layers=config['num_layers'],
    learning_rate_multiplier=config['lr_multiplier'],
  )
  variables = layout.to_ours(
    reference.weights,
    discriminator.MAPPING_TABLE,
    layout.shapes(module, np.zeros((1, config['c_dim']), np.float32)),
    what='a mapping network',
  )
  return {
    name: jax.jit(module.apply)(variables, classes)
    for name, classes in reference.inputs.items()
  }


CASES: dict[str, Callable[[Reference], Outputs]] = {
  'uvit': uvit,
  'policy': policy_networks,
  'vqgan': vqgan_tokenizer,
  'mapping': mapping,
}
