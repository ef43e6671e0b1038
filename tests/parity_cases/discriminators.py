"""One discriminator head, and the whole projected discriminator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import re
from typing import Any

import jax
import numpy as np

from adanat_jax.convert import discriminator, layout, vit
from adanat_jax.models import discriminator as model, vit as vit_model
from support.reference_arrays import Reference

Outputs = Mapping[str, np.ndarray]


def _labelled(prefix: str, arrays: Outputs) -> dict[str, np.ndarray]:
  return {prefix + name: value for name, value in arrays.items()}


def head(reference: Reference) -> Outputs:
  width = reference.config['channels']
  conditional = reference.config['c_dim'] > 0
  weights = reference.weights
  module = model.DiscriminatorHead(
    condition_map_width=weights['cls.weight_orig'].shape[0],
    kernel_size=weights['main.1.fn.0.weight_orig'].shape[2],
  )
  sample = np.zeros((1, 1, width), np.float32)
  condition = reference.inputs.get('c')
  first = condition[:1] if conditional else None
  variables = layout.to_ours(
    weights,
    discriminator.HEAD_TABLE,
    layout.shapes(module, sample, first, train=False),
    what='a discriminator head',
  )
  x = reference.inputs['x'].transpose(0, 2, 1)
  evaluate = jax.jit(functools.partial(module.apply, train=False))

  def logits(count: int) -> np.ndarray:
    c = condition[:count] if conditional else None
    return np.asarray(evaluate(variables, x[:count], c))[:, None]

  result = {'eval': logits(len(x))}
  for name in reference.outputs:
    if name.startswith('eval_B'):
      result[name] = logits(int(name.removeprefix('eval_B')))
  if 'train1' in reference.outputs:
    result.update(_trained(module, variables, x, condition, reference))
  return result


def _trained(
  module: model.DiscriminatorHead,
  variables: Mapping[str, Any],
  x: np.ndarray,
  condition: np.ndarray | None,
  reference: Reference,
) -> Outputs:
  """Two forwards in training, and the gradients of the first."""
  weight = reference.inputs['grad_out'][:, 0]

  def run(params: Any, x: np.ndarray, spectral: Any):
    logits, state = module.apply(
      {'params': params, 'spectral': spectral},
      x,
      condition,
      True,
      mutable=['spectral'],
    )
    return (logits * weight).sum(), (logits, state['spectral'])

  grad = jax.jit(jax.grad(run, argnums=(0, 1), has_aux=True))
  params = variables['params']
  (grads, grad_x), (first, spectral1) = grad(params, x, variables['spectral'])
  _, (second, spectral2) = grad(params, x, spectral1)
  theirs = lambda collection, tree: layout.to_theirs(
    {collection: tree}, discriminator.HEAD_TABLE
  )
  return {
    'train1': np.asarray(first)[:, None],
    'train2': np.asarray(second)[:, None],
    'train1_grad_x': np.asarray(grad_x).transpose(0, 2, 1),
    **_labelled('train1_grad/', theirs('params', grads)),
    **_labelled('train1_', theirs('spectral', spectral1)),
    **_labelled('train2_', theirs('spectral', spectral2)),
  }


def projected(reference: Reference) -> Outputs:
  config = reference.config
  trunk_weights = layout.subset(reference.weights, discriminator.TRUNK_PREFIX)
  trunk = vit.infer(
    trunk_weights,
    num_heads=config['vit']['num_heads'],
    hooks=tuple(config['hooks']),
  )
  trunk_params = vit.FAMILY.to_ours(trunk_weights, trunk)
  heads, num_heads = discriminator.infer(reference.weights)
  variables = discriminator.FAMILY.to_ours(reference.weights, heads)
  images = np.moveaxis(reference.inputs['x'], 1, -1)
  condition = reference.inputs['c']
  if heads.num_classes is not None:
    condition = condition[:, 0]

  prepare = jax.jit(
    functools.partial(
      model.prepare_images,
      resolution=trunk.image_size,
      mean=vit_model.IMAGENET_MEAN,
      std=vit_model.IMAGENET_STD,
    )
  )
  run_trunk = jax.jit(trunk.apply)

  def features(crop: tuple[int, int] | None) -> tuple[jax.Array, ...]:
    found = run_trunk({'params': trunk_params}, prepare(images, crop=crop))
    return found.features[:num_heads]

  evaluate = jax.jit(heads.apply)
  train = jax.jit(
    functools.partial(heads.apply, train=True, mutable=['spectral'])
  )
  whole = features(None)
  trained, state = train(variables, whole, condition)
  result = {
    'logits_eval': evaluate(variables, whole, condition),
    'logits_train1': trained,
    **_labelled('train1_', discriminator.FAMILY.to_theirs(state)),
  }
  for name in reference.outputs:
    crop = re.fullmatch(r'logits_eval_crop_(\d+)_(\d+)', name)
    if crop:
      corner = (int(crop[1]), int(crop[2]))
      result[name] = evaluate(variables, features(corner), condition)
    feature = re.fullmatch(r'feature(\d+)_first', name)
    if feature:
      result[name] = whole[int(feature[1])][:1].transpose(0, 2, 1)
  if 'mapping' in reference.outputs:
    network = model.MappingNetwork(heads.mapping_width, heads.mapping_layers)
    result['mapping'] = jax.jit(network.apply)(
      {'params': variables['params']['mapping']},
      np.eye(heads.num_classes, dtype=np.float32)[condition],
    )
  return result


CASES: dict[str, Callable[[Reference], Outputs]] = {
  'dischead': head,
  'projdisc': projected,
}
