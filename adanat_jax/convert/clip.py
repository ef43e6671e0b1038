"""CLIP's text tower: Hugging Face's layout, and open_clip's and OpenAI's.

Files of the whole model are fine: the image tower is passed over. What is
written back has Hugging Face's layout (`CLIPTextModelWithProjection`).
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import layout, open_clip
from adanat_jax.models import clip

WHAT = "CLIP's text tower"

# Every published tower has heads of this width.
_HEAD_WIDTH = 64

_OURS = r'layers_(\d+)'
_THEIRS = r'text_model.encoder.layers.\1'

TABLE: layout.Table = (
  layout.Entry('words', 'text_model.embeddings.token_embedding.weight'),
  layout.Entry('positions', 'text_model.embeddings.position_embedding.weight'),
  *layout.norm(f'{_OURS}/norm1', f'{_THEIRS}.layer_norm1'),
  *layout.norm(f'{_OURS}/norm2', f'{_THEIRS}.layer_norm2'),
  *layout.linear(f'{_OURS}/query', f'{_THEIRS}.self_attn.q_proj'),
  *layout.linear(f'{_OURS}/key', f'{_THEIRS}.self_attn.k_proj'),
  *layout.linear(f'{_OURS}/value', f'{_THEIRS}.self_attn.v_proj'),
  *layout.linear(f'{_OURS}/out', f'{_THEIRS}.self_attn.out_proj'),
  *layout.linear(f'{_OURS}/fc1', f'{_THEIRS}.mlp.fc1'),
  *layout.linear(f'{_OURS}/fc2', f'{_THEIRS}.mlp.fc2'),
  *layout.norm('norm', 'text_model.final_layer_norm'),
  *layout.linear('projection', 'text_projection'),
)

# What open_clip and OpenAI call it.
_OPEN_CLIP = open_clip.Tower(
  blocks=r'transformer\.resblocks',
  layers='text_model.encoder.layers',
  names=(
    (
      r'token_embedding\.weight',
      'text_model.embeddings.token_embedding.weight',
    ),
    (
      r'positional_embedding',
      'text_model.embeddings.position_embedding.weight',
    ),
    (r'ln_final\.(weight|bias)', r'text_model.final_layer_norm.\1'),
  ),
  projection=('text_projection', 'text_projection.weight'),
)


def is_open_clip(state_dict: Mapping[str, np.ndarray]) -> bool:
  """Returns whether the keys are open_clip's or OpenAI's."""
  return 'token_embedding.weight' in state_dict


def from_open_clip(
  state_dict: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """The same arrays with Hugging Face's keys; see `open_clip.renamed`."""
  return open_clip.renamed(state_dict, _OPEN_CLIP)


def infer(
  state_dict: Mapping[str, np.ndarray],
  *,
  activation: str,
  num_heads: int | None = None,
  **fields: Any,
) -> clip.CLIPText:
  """Reads a tower's sizes off its weights, in either layout.

  Args:
    state_dict: their arrays by key.
    activation: 'gelu' or 'quick_gelu'; the weights do not tell.
    num_heads: number of attention heads; None for the published width of 64.
    **fields: further fields of the network, such as `dtype`.

  Returns:
    The module.

  Raises:
    UserError: if these are no weights of a text tower.
  """
  if is_open_clip(state_dict):
    state_dict = from_open_clip(state_dict)

  def shape_of(key: str) -> tuple[int, ...]:
    return layout.shape_of(state_dict, key, what=WHAT)

  embeddings = 'text_model.embeddings'
  vocabulary, width = shape_of(f'{embeddings}.token_embedding.weight')
  return clip.CLIPText(
    width=width,
    depth=layout.count(state_dict, r'text_model\.encoder\.layers\.(\d+)\.'),
    num_heads=num_heads or width // _HEAD_WIDTH,
    mlp_width=shape_of('text_model.encoder.layers.0.mlp.fc1.bias')[0],
    projection_width=shape_of('text_projection.weight')[0],
    activation=activation,
    vocabulary=vocabulary,
    num_positions=shape_of(f'{embeddings}.position_embedding.weight')[0],
    **fields,
  )


def _of_other_parts(key: str) -> bool:
  return (
    key.startswith(('visual.', 'vision_model.', 'visual_projection.'))
    or key.endswith('position_ids')
    or key in ('logit_scale', 'logit_bias', 'attn_mask')
    or key in ('input_resolution', 'context_length', 'vocab_size')
  )


def from_torch(
  state_dict: Mapping[str, np.ndarray], module: clip.CLIPText
) -> dict[str, Any]:
  """Returns the parameters of `module` from their arrays by key.

  Raises:
    UserError: if the weights do not fit the module.
  """
  if is_open_clip(state_dict):
    state_dict = from_open_clip(state_dict)
  template = layout.shapes(module, jnp.zeros((1, 1), jnp.int32))['params']
  return layout.to_ours(
    state_dict, TABLE, template, what=WHAT, ignore=_of_other_parts
  )


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns Hugging Face's arrays by key; the inverse of `from_torch`."""
  return layout.to_theirs(params, TABLE)
