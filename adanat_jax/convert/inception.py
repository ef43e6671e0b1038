"""Inception-v3: `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import layout
from adanat_jax.models import inception

WHAT = 'Inception-v3'


def _conv_norm(ours: str, theirs: str) -> layout.Table:
  return (
    layout.Entry(f'{ours}/kernel', f'{theirs}.conv.weight', layout.CONV),
    layout.Entry(f'{ours}/scale', f'{theirs}.bn.weight'),
    layout.Entry(f'{ours}/bias', f'{theirs}.bn.bias'),
    layout.Entry(f'{ours}/mean', f'{theirs}.bn.running_mean'),
    layout.Entry(f'{ours}/variance', f'{theirs}.bn.running_var'),
  )


TABLE: layout.Table = (
  layout.Entry('kernel', 'fc.weight', layout.LINEAR),
  layout.Entry('bias', 'fc.bias'),
  *_conv_norm(r'conv2d_(\w+)', r'Conv2d_\1'),
  *_conv_norm(r'mixed_(\w+)/(\w+)', r'Mixed_\1.\2'),
)


def from_torch(
  state_dict: Mapping[str, np.ndarray], module: inception.InceptionV3
) -> dict[str, Any]:
  """Returns the parameters of `module` from their arrays by key.

  The counters `num_batches_tracked`, which old files lack, are dropped.

  Raises:
    UserError: if the weights do not fit the module.
  """
  template = layout.shapes(module, jnp.zeros((1, 299, 299, 3)))['params']
  return layout.to_ours(
    state_dict,
    TABLE,
    template,
    what=WHAT,
    ignore=lambda key: key.endswith('.bn.num_batches_tracked'),
  )


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns their arrays by key; the inverse of `from_torch`."""
  return layout.to_theirs(params, TABLE)
