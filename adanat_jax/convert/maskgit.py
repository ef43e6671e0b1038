"""Google's MaskGIT: google-research/maskgit, transformer and tokenizer.

Their files are Flax's: the names are numbered, the axes lie as ours. Keys are
the paths below `params`, joined by '/'.
"""

from collections.abc import Mapping
from typing import Any

from adanat_jax.convert import layout, vqgan as other_vqgan
from adanat_jax.models import maskgit, vqgan


def _leaf(ours: str, theirs: str) -> layout.Table:
  """The entries of a layer whose leaves are named alike on both sides."""
  leaf = r'(?P<leaf>kernel|bias|scale)'
  return (layout.Entry(f'{ours}/{leaf}', rf'{theirs}/\g<leaf>'),)


_OURS = r'layers_(?P<i>\d+)'
_THEIRS = r'TransformerLayer_\g<i>'

TRANSFORMER = layout.Family(
  'a MaskGIT transformer',
  (
    layout.Entry('words', 'Embed_0/word_embeddings/embedding'),
    layout.Entry('positions', 'Embed_0/position_embeddings/embedding'),
    *_leaf('embedding_norm', 'Embed_0/embeddings_ln'),
    *_leaf(
      f'{_OURS}/attention/(?P<part>query|key|value|out)',
      rf'{_THEIRS}/Attention_0/self_attention/\g<part>',
    ),
    *_leaf(
      f'{_OURS}/attention_norm', f'{_THEIRS}/Attention_0/attention_output_ln'
    ),
    *_leaf(f'{_OURS}/fc1', f'{_THEIRS}/Mlp_0/intermediate_output'),
    *_leaf(f'{_OURS}/fc2', f'{_THEIRS}/Mlp_0/layer_output'),
    *_leaf(f'{_OURS}/mlp_norm', f'{_THEIRS}/Mlp_0/layer_output_ln'),
    *_leaf('head', 'MlmLayer_0/mlm_dense'),
    *_leaf('head_norm', 'MlmLayer_0/mlm_ln'),
    layout.Entry('head_bias', 'MlmLayer_0/mlm_bias/bias'),
  ),
  lambda module, _: (layout.ints(1, module.num_tokens), layout.ints(1)),
)


def infer_transformer(
  arrays: layout.Arrays, *, num_classes: int = 1000, **fields: Any
) -> maskgit.MaskGITTransformer:
  """Reads a transformer's sizes off its weights, see `layout`.

  Codes and classes share one vocabulary.
  """
  shape_of = TRANSFORMER.shape_reader(arrays)
  vocabulary, width = shape_of('Embed_0/word_embeddings/embedding')
  first = 'TransformerLayer_0'
  return maskgit.MaskGITTransformer(
    codebook_size=vocabulary - num_classes - 1,
    num_classes=num_classes,
    num_tokens=shape_of('Embed_0/position_embeddings/embedding')[0] - 1,
    width=width,
    depth=layout.count(arrays, r'TransformerLayer_(\d+)/'),
    num_heads=shape_of(f'{first}/Attention_0/self_attention/query/bias')[0],
    mlp_width=shape_of(f'{first}/Mlp_0/intermediate_output/bias')[0],
    **fields,
  )


def _block(ours: str, theirs: str) -> layout.Table:
  return (
    *_leaf(f'{ours}/norm1/norm', f'{theirs}/GroupNorm_0'),
    *_leaf(f'{ours}/conv1', f'{theirs}/Conv_0'),
    *_leaf(f'{ours}/norm2/norm', f'{theirs}/GroupNorm_1'),
    *_leaf(f'{ours}/conv2', f'{theirs}/Conv_1'),
    *_leaf(f'{ours}/shortcut', f'{theirs}/Conv_2'),
  )


def _tokenizer_table(params: Mapping[str, Any]) -> layout.Table:
  """The key map of a tokenizer; its numbering depends on the sizes."""
  names = params['encoder'].keys()
  levels = len({k.split('_block_')[0] for k in names if k.startswith('down_')})
  num_res_blocks = sum(k.startswith('down_0_') for k in names)
  entries: list[layout.Entry] = [layout.Entry('codebook', 'quantizer/codebook')]
  down = [f'down_{i}' for i in range(levels)]
  up = [f'up_{i}' for i in reversed(range(levels))]
  for half, stages in (('encoder', [*down, 'mid']), ('decoder', ['mid', *up])):
    blocks = [f'{stage}_block_{i}' for stage in stages
              for i in range(num_res_blocks)]  # fmt: skip
    for index, block in enumerate(blocks):
      entries += _block(f'{half}/{block}', f'{half}/ResBlock_{index}')
    entries += _leaf(f'{half}/norm_out/norm', f'{half}/GroupNorm_0')
  # Numbered in the order in which they are called.
  encoder = [f'downsample_{i}' for i in range(levels - 1)]
  decoder = [f'upsample_{i}' for i in reversed(range(1, levels))]
  for half, between in (
    ('encoder', encoder if 'downsample_0' in names else []),
    ('decoder', decoder),
  ):
    for index, conv in enumerate(['conv_in', *between, 'conv_out']):
      entries += _leaf(f'{half}/{conv}', f'{half}/Conv_{index}')
  return tuple(entries)


TOKENIZER = layout.Family(
  'a MaskGIT tokenizer', _tokenizer_table, other_vqgan.FAMILY.inputs
)


def infer_tokenizer(
  arrays: layout.Arrays,
  *,
  num_groups: int = 32,
  num_res_blocks: int = 2,
  **fields: Any,
) -> vqgan.VQGAN:
  """Reads a tokenizer's sizes off its weights, see `layout`.

  The numbering hides how many residual blocks a level has.
  """
  shape_of = TOKENIZER.shape_reader(arrays)
  codebook_size, code_width = shape_of('quantizer/codebook')
  image_channels, base_width = shape_of('encoder/Conv_0/kernel')[2:]
  blocks = layout.count(arrays, r'encoder/ResBlock_(\d+)/', 34)
  levels = blocks // num_res_blocks - 1
  firsts = [
    shape_of(f'encoder/ResBlock_{level * num_res_blocks}/Conv_1/kernel')
    for level in range(levels)
  ]
  return vqgan.VQGAN(
    codebook_size=codebook_size,
    code_width=code_width,
    base_width=base_width,
    width_multipliers=tuple(shape[-1] // base_width for shape in firsts),
    num_res_blocks=num_res_blocks,
    num_groups=num_groups,
    image_channels=image_channels,
    conv_downsample=layout.count(arrays, r'encoder/Conv_(\d+)/') > 2,
    **fields,
  )
