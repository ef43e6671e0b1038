"""ENAT: LeapLabTHU/ENAT `libs/models.py`.

The published files hold a module, `prev_embedder`, that the original never
calls. It is dropped on the way in and written as zeros on the way back, because
the original loads nothing that lacks it.
"""

from collections.abc import Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import layout
from adanat_jax.models import enat

WHAT = 'an ENAT'

_OURS, _THEIRS = r'blocks_(\d+)', r'blocks.\1'

TABLE: layout.Table = (
  layout.Entry('tokens/words', 'x_embedder.word_embeddings.weight'),
  layout.Entry('tokens/positions', 'x_embedder.position_embeddings.weight'),
  *layout.norm('tokens/norm', 'x_embedder.LayerNorm'),
  layout.Entry('classes', 'y_embedder.embedding_table.weight'),
  *layout.norm('carry_over/norm', 'prev_proj.norm'),
  *layout.linear(r'carry_over/mlp/fc(\d)', r'prev_proj.mlp.fc\1'),
  *layout.linear(f'{_OURS}/modulation', f'{_THEIRS}.adaLN_modulation.1'),
  *layout.linear(f'{_OURS}/attention/query', f'{_THEIRS}.attn.q'),
  *layout.linear(f'{_OURS}/attention/context', f'{_THEIRS}.attn.kv.A'),
  *layout.linear(f'{_OURS}/attention/self', f'{_THEIRS}.attn.kv.B'),
  *layout.linear(f'{_OURS}/attention/proj', f'{_THEIRS}.attn.proj'),
  *layout.linear(rf'{_OURS}/mlp/fc(\d)', rf'{_THEIRS}.mlp.fc\2'),
  *layout.norm('norm', 'norm'),
  *layout.linear('head', 'mlm_layer.fc'),
  *layout.norm('head_norm', 'mlm_layer.ln'),
  layout.Entry('head_bias', 'mlm_layer.bias', layout.LEAD2),
)


def is_unused(key: str) -> bool:
  """Whether the original never reads the array of this key."""
  return bool(re.fullmatch(r'prev_embedder\.fc[12]\.(weight|bias)', key))


def infer(
  state_dict: Mapping[str, np.ndarray],
  *,
  num_heads: int,
  decoder_depth: int = 1,
  **fields: Any,
) -> enat.ENAT:
  """Reads a network's sizes off its weights.

  Args:
    state_dict: their arrays by key.
    num_heads: number of attention heads, which leaves no trace in the shapes.
    decoder_depth: how many of the blocks are the decoder's, which leaves none
      either.
    **fields: further fields of the network, such as `dtype`.

  Returns:
    The module.

  Raises:
    UserError: if these are no weights of an ENAT.
  """
  shape_of = lambda key: layout.shape_of(state_dict, key, what=WHAT)
  vocabulary, width = shape_of('x_embedder.word_embeddings.weight')
  depth = layout.count(state_dict, r'blocks\.(\d+)\.')
  return enat.ENAT(
    codebook_size=vocabulary - 1,
    num_tokens=shape_of('x_embedder.position_embeddings.weight')[0],
    width=width,
    encoder_depth=depth - decoder_depth,
    decoder_depth=decoder_depth,
    num_heads=num_heads,
    num_classes=shape_of('y_embedder.embedding_table.weight')[0] - 1,
    mlp_ratio=shape_of('blocks.0.mlp.fc1.weight')[0] // width,
    **fields,
  )


def from_torch(
  state_dict: Mapping[str, np.ndarray], module: enat.ENAT
) -> dict[str, Any]:
  """Returns the parameters of `module` from their arrays by key.

  Raises:
    UserError: if the weights do not fit the module.
  """
  tokens = jax.ShapeDtypeStruct((1, module.num_tokens), jnp.int32)
  condition = jax.ShapeDtypeStruct((1,), jnp.int32)
  return layout.to_ours(
    state_dict,
    TABLE,
    layout.shapes(module, tokens, condition)['params'],
    what=WHAT,
    ignore=is_unused,
  )


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns their arrays by key, `prev_embedder` as zeros.

  Otherwise the inverse of `from_torch`.
  """
  arrays = layout.to_theirs(params, TABLE)
  used = layout.subset(arrays, 'prev_proj.mlp.')
  # The two modules have the same shapes.
  unused = {f'prev_embedder.{key}': np.zeros_like(x) for key, x in used.items()}
  return {**arrays, **unused}
