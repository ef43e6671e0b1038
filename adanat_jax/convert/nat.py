"""The U-ViT of AdaNAT, AutoNAT and AdaGen: LeapLabTHU/AdaNAT `libs/uvit.py`."""

from typing import Any

from adanat_jax.convert import layout
from adanat_jax.models import nat


def _embedding(ours: str, theirs: str) -> layout.Table:
  return (
    layout.Entry(f'{ours}/words', f'{theirs}.word_embeddings.weight'),
    layout.Entry(f'{ours}/positions', f'{theirs}.position_embeddings.weight'),
    *layout.norm(f'{ours}/norm', f'{theirs}.LayerNorm'),
  )


def _inputs(module: nat.NAT, _: layout.Arrays) -> tuple[Any, Any]:
  condition = layout.ints(1)
  if module.text_width is not None:
    condition = layout.floats(1, 1, module.text_width)
  return layout.ints(1, module.num_tokens), condition


FAMILY = layout.Family(
  'a NAT',
  (
    *_embedding('tokens', 'token_emb'),
    *_embedding('classes', 'context_embed'),
    *layout.linear('text', 'context_embed'),
    *layout.transformer_block(r'(in|out)_blocks_(\d+)', r'\1_blocks.\2'),
    *layout.linear(r'out_blocks_(\d+)/skip', r'out_blocks.\1.skip_linear'),
    *layout.transformer_block('mid_block', 'mid_block'),
    *layout.norm('norm', 'norm'),
    *layout.linear('head', 'mlm_layer.fc'),
    *layout.norm('head_norm', 'mlm_layer.ln'),
    layout.Entry('head_bias', 'mlm_layer.bias', layout.LEAD2),
  ),
  _inputs,
  # Buffers in the file of the text model.
  ignore=lambda key: 'position_ids' in key,
)


def infer(arrays: layout.Arrays, *, num_heads: int, **fields: Any) -> nat.NAT:
  """Reads a network's sizes off its weights, see `layout`."""
  shape_of = FAMILY.shape_reader(arrays)
  vocabulary, width = shape_of('token_emb.word_embeddings.weight')
  if 'context_embed.weight' in arrays:
    condition = {'text_width': shape_of('context_embed.weight')[1]}
  else:
    rows = shape_of('context_embed.word_embeddings.weight')[0]
    condition = {'num_classes': rows - 1}
  hidden = shape_of('mid_block.mlp.fc1.weight')[0]
  return nat.NAT(
    codebook_size=vocabulary - 1,
    num_tokens=shape_of('token_emb.position_embeddings.weight')[0],
    width=width,
    depth=2 * layout.count(arrays, r'in_blocks\.(\d+)\.', 64),
    num_heads=num_heads,
    mlp_ratio=hidden // width,
    qkv_bias='mid_block.attn.qkv.bias' in arrays,
    **condition,
    **fields,
  )
