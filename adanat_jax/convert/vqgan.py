"""The VQGAN: LeapLabTHU/AdaNAT `taming/models/vqgan.py`, MAGE's tokenizer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import layout
from adanat_jax.models import vqgan

WHAT = 'a VQGAN'


def _block(ours: str, theirs: str) -> layout.Table:
  return (
    *layout.norm(rf'{ours}/norm1/norm', rf'{theirs}.norm1'),
    *layout.norm(rf'{ours}/norm2/norm', rf'{theirs}.norm2'),
    *layout.conv(rf'{ours}/conv1', rf'{theirs}.conv1'),
    *layout.conv(rf'{ours}/conv2', rf'{theirs}.conv2'),
    *layout.conv(rf'{ours}/shortcut', rf'{theirs}.nin_shortcut'),
  )


_HALF = '(encoder|decoder)'

TABLE: layout.Table = (
  *layout.conv(f'{_HALF}/(conv_in|conv_out)', r'\1.\2'),
  *layout.norm(f'{_HALF}/norm_out/norm', r'\1.norm_out'),
  *_block(rf'{_HALF}/(down|up)_(\d+)_block_(\d+)', r'\1.\2.\3.block.\4'),
  *_block(f'{_HALF}/mid_block_0', r'\1.mid.block_1'),
  *_block(f'{_HALF}/mid_block_1', r'\1.mid.block_2'),
  *layout.conv(r'decoder/upsample_(\d+)', r'decoder.up.\1.upsample.conv'),
  layout.Entry('codebook', 'quantize.embedding.weight'),
)


def infer(
  state_dict: Mapping[str, np.ndarray],
  *,
  num_groups: int = 32,
  **fields: Any,
) -> vqgan.VQGAN:
  """Reads a network's sizes off its weights.

  Args:
    state_dict: their arrays by key.
    num_groups: groups of the normalisations; no shape tells them.
    **fields: further fields of the network, such as `dtype`.

  Returns:
    The module.

  Raises:
    UserError: if these are no weights of a VQGAN.
  """
  shape_of = lambda key: layout.shape_of(state_dict, key, what=WHAT)
  codebook_size, code_width = shape_of('quantize.embedding.weight')
  base_width, image_channels = shape_of('encoder.conv_in.weight')[:2]
  levels = layout.count(state_dict, r'encoder\.down\.(\d+)\.')
  return vqgan.VQGAN(
    codebook_size=codebook_size,
    code_width=code_width,
    base_width=base_width,
    width_multipliers=tuple(
      shape_of(f'encoder.down.{i}.block.0.conv2.weight')[0] // base_width
      for i in range(levels)
    ),
    num_res_blocks=layout.count(
      state_dict, r'encoder\.down\.0\.block\.(\d+)\.'
    ),
    num_groups=num_groups,
    image_channels=image_channels,
    **fields,
  )


def from_torch(
  state_dict: Mapping[str, np.ndarray], module: vqgan.VQGAN
) -> dict[str, Any]:
  """Returns the parameters of `module` from their arrays by key.

  Raises:
    UserError: if the weights do not fit the module.
  """
  side = module.downsampling
  images = jax.ShapeDtypeStruct(
    (1, side, side, module.image_channels), jnp.float32
  )
  template = layout.shapes(module, images)['params']
  return layout.to_ours(state_dict, TABLE, template, what=WHAT)


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns their arrays by key; the inverse of `from_torch`."""
  return layout.to_theirs(params, TABLE)
