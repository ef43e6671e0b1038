"""The VQGAN: LeapLabTHU/AdaNAT `taming/models/vqgan.py`, MAGE's tokenizer."""

from typing import Any

from adanat_jax.convert import layout
from adanat_jax.models import vqgan


def _block(ours: str, theirs: str) -> layout.Table:
  return (
    *layout.norm(rf'{ours}/norm1/norm', rf'{theirs}.norm1'),
    *layout.norm(rf'{ours}/norm2/norm', rf'{theirs}.norm2'),
    *layout.conv(rf'{ours}/conv1', rf'{theirs}.conv1'),
    *layout.conv(rf'{ours}/conv2', rf'{theirs}.conv2'),
    *layout.conv(rf'{ours}/shortcut', rf'{theirs}.nin_shortcut'),
  )


def _inputs(module: vqgan.VQGAN, _: layout.Arrays) -> tuple[Any]:
  side = module.downsampling
  return (layout.floats(1, side, side, module.image_channels),)


_HALF = '(encoder|decoder)'

FAMILY = layout.Family(
  'a VQGAN',
  (
    *layout.conv(f'{_HALF}/(conv_in|conv_out)', r'\1.\2'),
    *layout.norm(f'{_HALF}/norm_out/norm', r'\1.norm_out'),
    *_block(rf'{_HALF}/(down|up)_(\d+)_block_(\d+)', r'\1.\2.\3.block.\4'),
    *_block(f'{_HALF}/mid_block_0', r'\1.mid.block_1'),
    *_block(f'{_HALF}/mid_block_1', r'\1.mid.block_2'),
    *layout.conv(r'decoder/upsample_(\d+)', r'decoder.up.\1.upsample.conv'),
    layout.Entry('codebook', 'quantize.embedding.weight'),
  ),
  _inputs,
)


def infer(
  arrays: layout.Arrays, *, num_groups: int = 32, **fields: Any
) -> vqgan.VQGAN:
  """Reads a network's sizes off its weights, see `layout`."""
  shape_of = FAMILY.shape_reader(arrays)
  codebook_size, code_width = shape_of('quantize.embedding.weight')
  base_width, image_channels = shape_of('encoder.conv_in.weight')[:2]
  levels = layout.count(arrays, r'encoder\.down\.(\d+)\.', 16)
  return vqgan.VQGAN(
    codebook_size=codebook_size,
    code_width=code_width,
    base_width=base_width,
    width_multipliers=tuple(
      shape_of(f'encoder.down.{i}.block.0.conv2.weight')[0] // base_width
      for i in range(levels)
    ),
    num_res_blocks=layout.count(arrays, r'encoder\.down\.0\.block\.(\d+)\.', 8),
    num_groups=num_groups,
    image_channels=image_channels,
    **fields,
  )
