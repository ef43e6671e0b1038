"""Google's MaskGIT, Inception-v3, and the measures built on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools

import jax
import numpy as np

from adanat_jax.convert import (
  clip,
  inception as convert_inception,
  layout,
  maskgit,
)
from adanat_jax.decoding import loop, step, tables
from adanat_jax.metrics import frechet, inception_score
from adanat_jax.models import inception as inception_model
from adanat_jax.models.maskgit import MASK_ID, MaskGITTransformer
from support.reference_arrays import Reference

Outputs = Mapping[str, np.ndarray]

# Our names of Inception's outputs, by the original's.
_FEATURES = {
  '64': 'pool1',
  '192': 'pool2',
  '768': 'mixed6',
  '2048': 'pool3',
  'logits': 'logits',
  'logits_unbiased': 'unbiased_logits',
}


def _transformer(
  weights: Mapping[str, np.ndarray], codebook_size: int
) -> tuple[MaskGITTransformer, Mapping[str, jax.Array]]:
  weights = layout.subset(weights, 'params/')
  rows = len(weights['Embed_0/word_embeddings/embedding'])
  module = maskgit.infer_transformer(
    weights, num_classes=rows - codebook_size - 1
  )
  params = maskgit.TRANSFORMER.to_ours(weights, module)
  return module, jax.device_put(params)


def transformer(reference: Reference) -> Outputs:
  module, params = _transformer(
    reference.weights, reference.config['codebook_size']
  )
  predict = jax.jit(functools.partial(module.apply, method='predict'))
  logits = predict({'params': params}, reference.inputs['input_ids'])
  return {'logits': logits}


def tokenizer(reference: Reference) -> Outputs:
  weights = layout.subset(reference.weights, 'params/')
  module = maskgit.infer_tokenizer(
    weights, num_res_blocks=reference.config['num_res_blocks']
  )
  params = maskgit.TOKENIZER.to_ours(weights, module)

  @jax.jit
  def run(params, image, code):
    bound = module.bind({'params': params})
    vectors = bound.encode(image)
    decoded = bound.decode(bound.codebook[code])
    return vectors, *bound.quantize(vectors), decoded

  given = reference.inputs
  vectors, quantized, ids, decoded = run(params, given['image'], given['code'])
  return {
    'encoder_h': vectors,
    'quantized': quantized,
    'indices': ids,
    'decode': decoded,
  }


def decode(reference: Reference) -> Outputs:
  config, given = reference.config, reference.inputs
  mask_token = config['codebook_size']
  module, params = _transformer(reference.weights, mask_token)

  def denoiser(tokens, condition, cache):
    features, logits = module.apply({'params': params}, tokens, condition)
    return features, logits, cache

  label, start = given['inputs'][:, :1], given['inputs'][:, 1:]
  table = tables.hand_made(
    config['T'],
    curve=config['method'],
    total=start.shape[1],
    masking_temperature=config['choice_temperature'],
  )

  @jax.jit
  def run(tokens, condition, noise):
    return loop.decode(
      denoiser,
      tables.table_policy(table),
      tokens=tokens,
      condition=condition,
      null_condition=None,
      keys=jax.random.split(jax.random.key(0), len(start)),
      num_steps=config['T'],
      mask_token=mask_token,
      options=step.MASKGIT,
      noise=noise,
      record=True,
    )

  decoded = run(
    np.where(start == MASK_ID, mask_token, start),
    label[:, 0] - mask_token,
    loop.Noise(
      given['gumbel_categorical'][:, :, 1:], given['gumbel_topk'][:, :, 1:]
    ),
  )
  # The original keeps the class token in its sequences, known throughout.
  sampled = np.swapaxes(decoded.trajectory.sampled, 0, 1)
  labels = np.broadcast_to(label[:, None], (*sampled.shape[:2], 1))
  masked = np.asarray(decoded.trajectory.tokens) == mask_token
  return {
    'final_seqs': np.concatenate([labels, sampled], axis=2),
    'masking': np.pad(masked, ((0, 0), (0, 0), (1, 0))),
  }


def inception(reference: Reference) -> Outputs:
  module = inception_model.InceptionV3()
  params = convert_inception.FAMILY.to_ours(reference.weights, module)
  images = np.moveaxis(reference.inputs['image_u8'], 1, -1) / np.float32(255)
  features = jax.jit(module.apply)({'params': params}, images)
  return {name: getattr(features, ours) for name, ours in _FEATURES.items()}


def clip_text(reference: Reference) -> Outputs:
  module = clip.infer_text(
    reference.weights,
    activation=reference.config['activation'],
    num_heads=reference.config['num_heads'],
  )
  params = clip.TEXT.to_ours(reference.weights, module)
  text = jax.jit(module.apply)({'params': params}, reference.inputs['ids'])
  return {'states': text.states, 'pooled': text.pooled}


def distances(reference: Reference) -> Outputs:
  given = reference.inputs
  logits = given['logits']

  def score(splits: int = 10, seed: int | None = 2020) -> np.float64:
    accumulator = inception_score.ScoreAccumulator(len(logits), splits, seed)
    accumulator.update(logits)
    return accumulator.scores().mean()

  return {
    'fid': np.float64(
      frechet.frechet_distance(
        frechet.gaussian_of(given['features']),
        frechet.Gaussian(given['mu_ref'], given['sigma_ref']),
      )
    ),
    'isc': score(),
    'isc_noshuffle': score(seed=None),
    'isc_splits3_seed7': score(splits=3, seed=7),
    'permutation': np.random.RandomState(2020).permutation(len(logits)),
  }


CASES: dict[str, Callable[[Reference], Outputs]] = {
  'maskgit_transformer': transformer,
  'maskgit_vqgan': tokenizer,
  'maskgit_decode': decode,
  'inception': inception,
  'fid_is': distances,
  'clip_text': clip_text,
}
