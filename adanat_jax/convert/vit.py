"""Vision transformers in timm's naming: DINO's ViT-S/16 among them."""

from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import layout
from adanat_jax.models import vit

WHAT = 'a vision transformer'

TABLE: layout.Table = (
  *layout.conv('patches', 'patch_embed.proj'),
  layout.Entry('cls', 'cls_token', layout.LEAD2),
  layout.Entry('positions', 'pos_embed', layout.LEAD),
  *layout.transformer_block(r'blocks_(\d+)', r'blocks.\1'),
  *layout.norm('norm', 'norm'),
  *layout.linear('head', 'head'),
)


def infer(
  state_dict: Mapping[str, np.ndarray], *, num_heads: int, **fields: Any
) -> vit.VisionTransformer:
  """Reads a network's sizes off its weights.

  Args:
    state_dict: their arrays by key.
    num_heads: number of attention heads; 6 for DINO's ViT-S/16.
    **fields: further fields of the network, such as `hooks`.

  Returns:
    The module.

  Raises:
    UserError: if these are no weights of a vision transformer.
  """
  shape_of = lambda key: layout.shape_of(state_dict, key, what=WHAT)
  width, channels, patch_size, _ = shape_of('patch_embed.proj.weight')
  num_positions = shape_of('pos_embed')[1]
  num_outputs = 0
  if 'head.weight' in state_dict:
    num_outputs = shape_of('head.weight')[0]
  return vit.VisionTransformer(
    image_size=patch_size * math.isqrt(num_positions - 1),
    patch_size=patch_size,
    width=width,
    depth=layout.count(state_dict, r'blocks\.(\d+)\.'),
    num_heads=num_heads,
    image_channels=channels,
    num_outputs=num_outputs,
    **fields,
  )


def from_torch(
  state_dict: Mapping[str, np.ndarray], module: vit.VisionTransformer
) -> dict[str, Any]:
  """Returns the parameters of `module` from their arrays by key.

  Raises:
    UserError: if the weights do not fit the module.
  """
  side = module.image_size
  images = jax.ShapeDtypeStruct(
    (1, side, side, module.image_channels), jnp.float32
  )
  template = layout.shapes(module, images)['params']
  return layout.to_ours(state_dict, TABLE, template, what=WHAT)


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns their arrays by key; the inverse of `from_torch`."""
  return layout.to_theirs(params, TABLE)
