"""ENAT: LeapLabTHU/ENAT `libs/models.py`.

The published files hold a module, `prev_embedder`, that the original never
calls. It is dropped on the way in and written as zeros on the way back, because
the original does not load a file without it.
"""

import re
from typing import Any

import numpy as np

from adanat_jax.convert import layout
from adanat_jax.models import enat

_OURS, _THEIRS = r'blocks_(\d+)', r'blocks.\1'


def is_unused(key: str) -> bool:
  """Whether the original never reads the array of this key."""
  return bool(re.fullmatch(r'prev_embedder\.fc[12]\.(weight|bias)', key))


def _with_unused(arrays: layout.Arrays) -> layout.Arrays:
  # The two modules have the same shapes.
  used = layout.subset(arrays, 'prev_proj.mlp.')
  unused = {f'prev_embedder.{key}': np.zeros_like(x) for key, x in used.items()}
  return {**arrays, **unused}


FAMILY = layout.Family(
  'an ENAT',
  (
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
  ),
  lambda module, _: (layout.ints(1, module.num_tokens), layout.ints(1)),
  ignore=is_unused,
  complete=_with_unused,
)


def infer(
  arrays: layout.Arrays,
  *,
  num_heads: int,
  decoder_depth: int = 1,
  **fields: Any,
) -> enat.ENAT:
  """Reads a network's sizes off its weights, see `layout`.

  Neither do they tell how many of the blocks are the decoder's.
  """
  shape_of = FAMILY.shape_reader(arrays)
  vocabulary, width = shape_of('x_embedder.word_embeddings.weight')
  depth = layout.count(arrays, r'blocks\.(\d+)\.')
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
