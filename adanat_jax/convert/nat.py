"""The U-ViT of AdaNAT, AutoNAT and AdaGen: LeapLabTHU/AdaNAT `libs/uvit.py`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import layout
from adanat_jax.models import nat

WHAT = 'a NAT'


def _embedding(ours: str, theirs: str) -> layout.Table:
  return (
    layout.Entry(f'{ours}/words', f'{theirs}.word_embeddings.weight'),
    layout.Entry(f'{ours}/positions', f'{theirs}.position_embeddings.weight'),
    *layout.norm(f'{ours}/norm', f'{theirs}.LayerNorm'),
  )


TABLE: layout.Table = (
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
)


def infer(
  state_dict: Mapping[str, np.ndarray], *, num_heads: int, **fields: Any
) -> nat.NAT:
  """Reads a network's sizes off its weights.

  Args:
    state_dict: their arrays by key.
    num_heads: number of attention heads, which leaves no trace in the shapes.
    **fields: further fields of the network, such as `dtype`.

  Returns:
    The module.

  Raises:
    UserError: if these are no weights of a NAT.
  """
  shape_of = lambda key: layout.shape_of(state_dict, key, what=WHAT)
  vocabulary, width = shape_of('token_emb.word_embeddings.weight')
  if 'context_embed.weight' in state_dict:
    condition = {'text_width': shape_of('context_embed.weight')[1]}
  else:
    rows = shape_of('context_embed.word_embeddings.weight')[0]
    condition = {'num_classes': rows - 1}
  hidden = shape_of('mid_block.mlp.fc1.weight')[0]
  return nat.NAT(
    codebook_size=vocabulary - 1,
    num_tokens=shape_of('token_emb.position_embeddings.weight')[0],
    width=width,
    depth=2 * layout.count(state_dict, r'in_blocks\.(\d+)\.'),
    num_heads=num_heads,
    mlp_ratio=hidden // width,
    qkv_bias='mid_block.attn.qkv.bias' in state_dict,
    **condition,
    **fields,
  )


def from_torch(
  state_dict: Mapping[str, np.ndarray], module: nat.NAT
) -> dict[str, Any]:
  """Returns the parameters of `module` from their arrays by key.

  The text model's file holds `position_ids` buffers too; they are dropped.

  Raises:
    UserError: if the weights do not fit the module.
  """
  tokens = jax.ShapeDtypeStruct((1, module.num_tokens), jnp.int32)
  condition = (
    jnp.zeros((1, 1, module.text_width))
    if module.num_classes is None
    else jnp.zeros((1,), jnp.int32)
  )
  return layout.to_ours(
    state_dict,
    TABLE,
    layout.shapes(module, tokens, condition)['params'],
    what=WHAT,
    ignore=lambda key: 'position_ids' in key,
  )


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns their arrays by key; the inverse of `from_torch`."""
  return layout.to_theirs(params, TABLE)
