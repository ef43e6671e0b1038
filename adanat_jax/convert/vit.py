"""Vision transformers in timm's naming: DINO's ViT-S/16 among them."""

import math
from typing import Any

from adanat_jax.convert import layout
from adanat_jax.models import layers, vit


def _inputs(module: vit.VisionTransformer, _: layout.Arrays) -> tuple[Any]:
  sides = layers.sides_of(module.image_size)
  return (layout.floats(1, *sides, module.image_channels),)


FAMILY = layout.Family(
  'a vision transformer',
  (
    *layout.conv('patches', 'patch_embed.proj'),
    layout.Entry('cls', 'cls_token', layout.LEAD2),
    layout.Entry('positions', 'pos_embed', layout.LEAD),
    *layout.transformer_block(r'blocks_(\d+)', r'blocks.\1'),
    *layout.norm('norm', 'norm'),
    *layout.linear('head', 'head'),
  ),
  _inputs,
)


def infer(
  arrays: layout.Arrays, *, num_heads: int, **fields: Any
) -> vit.VisionTransformer:
  """Reads a network's sizes off its weights; DINO's ViT-S/16 has 6 heads."""
  shape_of = FAMILY.shape_reader(arrays)
  width, channels, patch_size, _ = shape_of('patch_embed.proj.weight')
  num_positions = shape_of('pos_embed')[1]
  has_head = 'head.weight' in arrays
  return vit.VisionTransformer(
    image_size=patch_size * math.isqrt(num_positions - 1),
    patch_size=patch_size,
    width=width,
    depth=layout.count(arrays, r'blocks\.(\d+)\.'),
    num_heads=num_heads,
    image_channels=channels,
    num_outputs=shape_of('head.weight')[0] if has_head else 0,
    **fields,
  )
