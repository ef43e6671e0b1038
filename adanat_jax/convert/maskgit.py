"""Google's MaskGIT: google-research/maskgit, transformer and tokenizer.

Their files are Flax's: the names are numbered, the axes lie as ours. Keys are
the paths below `params`, joined by '/'.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import layout
from adanat_jax.models import maskgit, vqgan

TRANSFORMER = 'a MaskGIT transformer'
TOKENIZER = 'a MaskGIT tokenizer'


def _leaf(ours: str, theirs: str) -> layout.Table:
  """The entries of a layer whose leaves are named alike on both sides."""
  leaf = r'(?P<leaf>kernel|bias|scale)'
  return (layout.Entry(f'{ours}/{leaf}', rf'{theirs}/\g<leaf>'),)


_OURS = r'layers_(?P<i>\d+)'
_THEIRS = r'TransformerLayer_\g<i>'

TRANSFORMER_TABLE: layout.Table = (
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
)


def infer_transformer(
  state_dict: Mapping[str, np.ndarray],
  *,
  num_classes: int = 1000,
  **fields: Any,
) -> maskgit.MaskGITTransformer:
  """Reads a transformer's sizes off its weights.

  Args:
    state_dict: their arrays by key.
    num_classes: number of classes; codes and classes share one vocabulary.
    **fields: further fields of the network, such as `dtype`.

  Returns:
    The module.

  Raises:
    UserError: if these are no weights of a MaskGIT transformer.
  """

  def shape_of(key: str) -> tuple[int, ...]:
    return layout.shape_of(state_dict, key, what=TRANSFORMER)

  vocabulary, width = shape_of('Embed_0/word_embeddings/embedding')
  first = 'TransformerLayer_0'
  return maskgit.MaskGITTransformer(
    codebook_size=vocabulary - num_classes - 1,
    num_classes=num_classes,
    num_tokens=shape_of('Embed_0/position_embeddings/embedding')[0] - 1,
    width=width,
    depth=layout.count(state_dict, r'TransformerLayer_(\d+)/'),
    num_heads=shape_of(f'{first}/Attention_0/self_attention/query/bias')[0],
    mlp_width=shape_of(f'{first}/Mlp_0/intermediate_output/bias')[0],
    **fields,
  )


def transformer_from_flax(
  state_dict: Mapping[str, np.ndarray], module: maskgit.MaskGITTransformer
) -> dict[str, Any]:
  """Returns the parameters of `module` from their arrays by key.

  Raises:
    UserError: if the weights do not fit the module.
  """
  input_ids = jax.ShapeDtypeStruct((1, module.num_tokens + 1), jnp.int32)
  template = layout.shapes(module, input_ids)['params']
  return layout.to_ours(
    state_dict, TRANSFORMER_TABLE, template, what=TRANSFORMER
  )


def transformer_to_flax(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns their arrays by key; the inverse of `transformer_from_flax`."""
  return layout.to_theirs(params, TRANSFORMER_TABLE)


def _block(ours: str, theirs: str) -> layout.Table:
  return (
    *_leaf(f'{ours}/norm1/norm', f'{theirs}/GroupNorm_0'),
    *_leaf(f'{ours}/conv1', f'{theirs}/Conv_0'),
    *_leaf(f'{ours}/norm2/norm', f'{theirs}/GroupNorm_1'),
    *_leaf(f'{ours}/conv2', f'{theirs}/Conv_1'),
    *_leaf(f'{ours}/shortcut', f'{theirs}/Conv_2'),
  )


def tokenizer_table(
  levels: int, num_res_blocks: int, conv_downsample: bool
) -> layout.Table:
  """The key map of a tokenizer; its numbering depends on these sizes."""
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
    ('encoder', encoder if conv_downsample else []),
    ('decoder', decoder),
  ):
    for index, conv in enumerate(['conv_in', *between, 'conv_out']):
      entries += _leaf(f'{half}/{conv}', f'{half}/Conv_{index}')
  return tuple(entries)


def _table_of(module: vqgan.VQGAN) -> layout.Table:
  return tokenizer_table(
    len(module.width_multipliers),
    module.num_res_blocks,
    module.conv_downsample,
  )


def infer_tokenizer(
  state_dict: Mapping[str, np.ndarray],
  *,
  num_groups: int = 32,
  num_res_blocks: int = 2,
  **fields: Any,
) -> vqgan.VQGAN:
  """Reads a tokenizer's sizes off its weights.

  Args:
    state_dict: their arrays by key.
    num_groups: groups of the normalisations; no shape tells them.
    num_res_blocks: residual blocks per level; the numbering hides it.
    **fields: further fields of the network, such as `dtype`.

  Returns:
    The module.

  Raises:
    UserError: if these are no weights of a MaskGIT tokenizer.
  """

  def shape_of(key: str) -> tuple[int, ...]:
    return layout.shape_of(state_dict, key, what=TOKENIZER)

  codebook_size, code_width = shape_of('quantizer/codebook')
  image_channels, base_width = shape_of('encoder/Conv_0/kernel')[2:]
  blocks = layout.count(state_dict, r'encoder/ResBlock_(\d+)/')
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
    conv_downsample=layout.count(state_dict, r'encoder/Conv_(\d+)/') > 2,
    **fields,
  )


def tokenizer_from_flax(
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
  return layout.to_ours(state_dict, _table_of(module), template, what=TOKENIZER)


def tokenizer_to_flax(
  params: Mapping[str, Any], module: vqgan.VQGAN
) -> dict[str, np.ndarray]:
  """Returns their arrays by key; the inverse of `tokenizer_from_flax`."""
  return layout.to_theirs(params, _table_of(module))
