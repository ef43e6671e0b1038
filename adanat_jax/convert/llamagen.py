"""LlamaGen's VQ tokenizer: FoundationVision/LlamaGen `vq_model.py`."""

import numpy as np

from adanat_jax.convert import layout, vqgan as other_vqgan
from adanat_jax.models import llamagen

_HALF = '(encoder|decoder)'
# A buffer of training that their code wants, and never reads when it samples.
_UNREAD = 'quantize.codebook_used'


def _block(ours: str, theirs: str) -> layout.Table:
  return (
    *layout.norm(rf'{ours}/norm1/norm', rf'{theirs}.norm1'),
    *layout.norm(rf'{ours}/norm2/norm', rf'{theirs}.norm2'),
    *layout.conv(rf'{ours}/conv1', rf'{theirs}.conv1'),
    *layout.conv(rf'{ours}/conv2', rf'{theirs}.conv2'),
    *layout.conv(rf'{ours}/shortcut', rf'{theirs}.nin_shortcut'),
  )


def _attention(ours: str, theirs: str) -> layout.Table:
  return (
    *layout.norm(rf'{ours}/norm', rf'{theirs}.norm'),
    *layout.conv(rf'{ours}/query', rf'{theirs}.q'),
    *layout.conv(rf'{ours}/key', rf'{theirs}.k'),
    *layout.conv(rf'{ours}/value', rf'{theirs}.v'),
    *layout.conv(rf'{ours}/out', rf'{theirs}.proj_out'),
  )


_OURS, _THEIRS = rf'{_HALF}/stage_(\d+)', r'\1.conv_blocks.\2'

FAMILY = layout.Family(
  "LlamaGen's tokenizer",
  (
    layout.Entry('codebook', 'quantize.embedding.weight'),
    *layout.conv('encoder/code', 'quant_conv'),
    *layout.conv('decoder/code', 'post_quant_conv'),
    *layout.conv(f'{_HALF}/(conv_in|conv_out)', r'\1.\2'),
    *layout.norm(f'{_HALF}/norm_out/norm', r'\1.norm_out'),
    *_block(rf'{_OURS}_block_(\d+)', rf'{_THEIRS}.res.\3'),
    *_attention(rf'{_OURS}_attention_(\d+)', rf'{_THEIRS}.attn.\3'),
    *layout.conv(
      r'encoder/stage_(\d+)_resample', r'encoder.conv_blocks.\1.downsample.conv'
    ),
    *layout.conv(
      r'decoder/stage_(\d+)_resample', r'decoder.conv_blocks.\1.upsample.conv'
    ),
    *_block(f'{_HALF}/mid_block_0', r'\1.mid.0'),
    *_attention(f'{_HALF}/mid_attention', r'\1.mid.1'),
    *_block(f'{_HALF}/mid_block_1', r'\1.mid.2'),
  ),
  other_vqgan.FAMILY.inputs,
  ignore=lambda key: key == _UNREAD,
  complete=lambda arrays: {**arrays, _UNREAD: np.zeros(1 << 16, np.float32)},
)


def infer(arrays: layout.Arrays, *, num_groups: int) -> llamagen.LlamaGenVQ:
  """Reads a tokenizer's sizes off its weights, see `layout`."""
  shape_of = FAMILY.shape_reader(arrays)
  codebook_size, code_width = shape_of('quantize.embedding.weight')
  base_width, image_channels = shape_of('encoder.conv_in.weight')[:2]
  levels = layout.count(arrays, r'encoder\.conv_blocks\.(\d+)\.', 16)
  first = r'encoder\.conv_blocks\.0\.res\.(\d+)\.'
  return llamagen.LlamaGenVQ(
    codebook_size=codebook_size,
    code_width=code_width,
    base_width=base_width,
    width_multipliers=tuple(
      shape_of(f'encoder.conv_blocks.{i}.res.0.conv2.weight')[0] // base_width
      for i in range(levels)
    ),
    num_res_blocks=layout.count(arrays, first, 8),
    num_groups=num_groups,
    image_channels=image_channels,
    latent_width=shape_of('quant_conv.weight')[1],
  )
