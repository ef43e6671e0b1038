"""CLIP's image tower: Hugging Face's layout, and open_clip's and OpenAI's.

Files of the whole model are fine: the text tower is passed over. What is
written back has Hugging Face's layout (`CLIPVisionModelWithProjection`).
"""

from collections.abc import Mapping
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import layout, open_clip
from adanat_jax.models import clip_image

WHAT = "CLIP's image tower"

_OURS = r'layers_(\d+)'
_THEIRS = r'vision_model.encoder.layers.\1'
_EMBEDDINGS = 'vision_model.embeddings'

TABLE: layout.Table = (
  layout.Entry('cls', f'{_EMBEDDINGS}.class_embedding'),
  layout.Entry('positions', f'{_EMBEDDINGS}.position_embedding.weight'),
  *layout.conv('patches', f'{_EMBEDDINGS}.patch_embedding'),
  # Their spelling.
  *layout.norm('norm_before', 'vision_model.pre_layrnorm'),
  *layout.norm(f'{_OURS}/norm1', f'{_THEIRS}.layer_norm1'),
  *layout.norm(f'{_OURS}/norm2', f'{_THEIRS}.layer_norm2'),
  *layout.linear(f'{_OURS}/query', f'{_THEIRS}.self_attn.q_proj'),
  *layout.linear(f'{_OURS}/key', f'{_THEIRS}.self_attn.k_proj'),
  *layout.linear(f'{_OURS}/value', f'{_THEIRS}.self_attn.v_proj'),
  *layout.linear(f'{_OURS}/out', f'{_THEIRS}.self_attn.out_proj'),
  *layout.linear(f'{_OURS}/fc1', f'{_THEIRS}.mlp.fc1'),
  *layout.linear(f'{_OURS}/fc2', f'{_THEIRS}.mlp.fc2'),
  *layout.norm('norm', 'vision_model.post_layernorm'),
  *layout.linear('projection', 'visual_projection'),
)

# What open_clip and OpenAI call it.
_OPEN_CLIP = open_clip.Tower(
  blocks=r'visual\.transformer\.resblocks',
  layers='vision_model.encoder.layers',
  names=(
    (r'visual\.class_embedding', f'{_EMBEDDINGS}.class_embedding'),
    (
      r'visual\.positional_embedding',
      f'{_EMBEDDINGS}.position_embedding.weight',
    ),
    (r'visual\.conv1\.weight', f'{_EMBEDDINGS}.patch_embedding.weight'),
    (r'visual\.ln_pre\.(weight|bias)', r'vision_model.pre_layrnorm.\1'),
    (r'visual\.ln_post\.(weight|bias)', r'vision_model.post_layernorm.\1'),
  ),
  projection=('visual.proj', 'visual_projection.weight'),
)


def is_open_clip(state_dict: Mapping[str, np.ndarray]) -> bool:
  """Returns whether the keys are open_clip's or OpenAI's."""
  return 'visual.conv1.weight' in state_dict


def from_open_clip(
  state_dict: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
  """The same arrays with Hugging Face's keys; see `open_clip.renamed`."""
  return open_clip.renamed(state_dict, _OPEN_CLIP)


def infer(
  state_dict: Mapping[str, np.ndarray], *, activation: str, num_heads: int
) -> clip_image.CLIPImage:
  """Reads a tower's sizes off its weights, in either layout.

  Args:
    state_dict: their arrays by key.
    activation: 'gelu' or 'quick_gelu'; the weights do not tell.
    num_heads: number of attention heads; neither do they tell this.

  Returns:
    The module.

  Raises:
    UserError: if these are no weights of an image tower.
  """
  if is_open_clip(state_dict):
    state_dict = from_open_clip(state_dict)

  def shape_of(key: str) -> tuple[int, ...]:
    return layout.shape_of(state_dict, key, what=WHAT)

  width, _, patch, _ = shape_of(f'{_EMBEDDINGS}.patch_embedding.weight')
  positions, _ = shape_of(f'{_EMBEDDINGS}.position_embedding.weight')
  return clip_image.CLIPImage(
    image_size=patch * math.isqrt(positions - 1),
    patch_size=patch,
    width=width,
    depth=layout.count(state_dict, r'vision_model\.encoder\.layers\.(\d+)\.'),
    num_heads=num_heads,
    mlp_width=shape_of('vision_model.encoder.layers.0.mlp.fc1.bias')[0],
    projection_width=shape_of('visual_projection.weight')[0],
    activation=activation,
  )


_TEXT_TOWER = (
  'text_model.',
  'text_projection',
  'transformer.',
  'token_embedding.',
  'positional_embedding',
  'ln_final.',
)


def _of_other_parts(key: str) -> bool:
  return (
    key.startswith(_TEXT_TOWER)
    or key.endswith('position_ids')
    or key in ('logit_scale', 'logit_bias', 'attn_mask')
    or key in ('input_resolution', 'context_length', 'vocab_size')
  )


def from_torch(
  state_dict: Mapping[str, np.ndarray], module: clip_image.CLIPImage
) -> dict[str, Any]:
  """Returns the parameters of `module` from their arrays by key.

  Raises:
    UserError: if the weights do not fit the module.
  """
  if is_open_clip(state_dict):
    state_dict = from_open_clip(state_dict)
  side = module.image_size
  template = layout.shapes(module, jnp.zeros((1, side, side, 3)))['params']
  return layout.to_ours(
    state_dict, TABLE, template, what=WHAT, ignore=_of_other_parts
  )


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns Hugging Face's arrays by key; the inverse of `from_torch`."""
  return layout.to_theirs(params, TABLE)
