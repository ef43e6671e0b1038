"""CLIP's towers: Hugging Face's layout, and open_clip's and OpenAI's.

Files of the whole model are fine: the other tower is skipped. What is written
back has Hugging Face's layout (`CLIPTextModelWithProjection` and
`CLIPVisionModelWithProjection`).
"""

from collections.abc import Sequence
import math
import re
from typing import Any

import numpy as np

from adanat_jax.convert import layout
from adanat_jax.models import clip

# Every published text tower has heads of this width.
_HEAD_WIDTH = 64

_TEXT = 'text_model'
_IMAGE = 'vision_model'


def _layers(model: str) -> layout.Table:
  ours, theirs = r'layers_(\d+)', rf'{model}.encoder.layers.\1'
  return (
    *layout.norm(f'{ours}/norm1', f'{theirs}.layer_norm1'),
    *layout.norm(f'{ours}/norm2', f'{theirs}.layer_norm2'),
    *layout.linear(f'{ours}/query', f'{theirs}.self_attn.q_proj'),
    *layout.linear(f'{ours}/key', f'{theirs}.self_attn.k_proj'),
    *layout.linear(f'{ours}/value', f'{theirs}.self_attn.v_proj'),
    *layout.linear(f'{ours}/out', f'{theirs}.self_attn.out_proj'),
    *layout.linear(f'{ours}/fc1', f'{theirs}.mlp.fc1'),
    *layout.linear(f'{ours}/fc2', f'{theirs}.mlp.fc2'),
  )


def _renamed(
  arrays: layout.Arrays,
  model: str,
  blocks: str,
  projection: tuple[str, str],
  names: Sequence[tuple[str, str]],
) -> layout.Arrays:
  """Renames a tower's keys to Hugging Face's and splits joint projections.

  Args:
    arrays: by open_clip's and OpenAI's keys. All other keys stay: those of the
      other tower, and Hugging Face's.
    model: the beginning of Hugging Face's keys.
    blocks: pattern of their residual blocks' keys, up to the number.
    projection: the key of the final matrix, theirs and Hugging Face's.
    names: pairs of a pattern and what replaces it, for all but the blocks.
  """
  block, layer = rf'{blocks}\.(\d+)', rf'{model}.encoder.layers.\1'
  names = (
    *((pattern, f'{model}.{name}') for pattern, name in names),
    (rf'{block}\.ln_([12])\.(weight|bias)', rf'{layer}.layer_norm\2.\3'),
    (
      rf'{block}\.attn\.out_proj\.(weight|bias)',
      rf'{layer}.self_attn.out_proj.\2',
    ),
    (rf'{block}\.mlp\.c_fc\.(weight|bias)', rf'{layer}.mlp.fc1.\2'),
    (rf'{block}\.mlp\.c_proj\.(weight|bias)', rf'{layer}.mlp.fc2.\2'),
  )
  result = {}
  for key, value in arrays.items():
    if match := re.fullmatch(rf'{block}\.attn\.in_proj_(weight|bias)', key):
      for part, array in zip('qkv', np.split(value, 3), strict=True):
        name = match.expand(rf'{layer}.self_attn.{part}_proj.\2')
        result[name] = array
      continue
    if key == projection[0]:
      # A matrix that multiplies from the right, not a linear layer's.
      result[projection[1]] = value.T
      continue
    for pattern, name in names:
      if match := re.fullmatch(pattern, key):
        key = match.expand(name)
        break
    result[key] = value
  return result


def _rename_text(arrays: layout.Arrays) -> layout.Arrays:
  return _renamed(
    arrays,
    _TEXT,
    r'transformer\.resblocks',
    ('text_projection', 'text_projection.weight'),
    (
      (r'token_embedding\.weight', 'embeddings.token_embedding.weight'),
      (r'positional_embedding', 'embeddings.position_embedding.weight'),
      (r'ln_final\.(weight|bias)', r'final_layer_norm.\1'),
    ),
  )


def _rename_image(arrays: layout.Arrays) -> layout.Arrays:
  return _renamed(
    arrays,
    _IMAGE,
    r'visual\.transformer\.resblocks',
    ('visual.proj', 'visual_projection.weight'),
    (
      (r'visual\.class_embedding', 'embeddings.class_embedding'),
      (r'visual\.positional_embedding', 'embeddings.position_embedding.weight'),
      (r'visual\.conv1\.weight', 'embeddings.patch_embedding.weight'),
      # Their spelling.
      (r'visual\.ln_pre\.(weight|bias)', r'pre_layrnorm.\1'),
      (r'visual\.ln_post\.(weight|bias)', r'post_layernorm.\1'),
    ),
  )


def _is_of_no_tower(key: str) -> bool:
  return key.endswith('position_ids') or key in (
    *('logit_scale', 'logit_bias', 'attn_mask'),
    *('input_resolution', 'context_length', 'vocab_size'),
  )


_IMAGE_KEYS = ('visual.', 'vision_model.', 'visual_projection.')
_TEXT_KEYS = (
  *('text_model.', 'text_projection', 'transformer.', 'token_embedding.'),
  *('positional_embedding', 'ln_final.'),
)


def _image_inputs(module: clip.CLIPImage, _: layout.Arrays) -> tuple[Any]:
  side = module.image_size
  return (layout.floats(1, side, side, 3),)


TEXT = layout.Family(
  "CLIP's text tower",
  (
    layout.Entry('words', f'{_TEXT}.embeddings.token_embedding.weight'),
    layout.Entry('positions', f'{_TEXT}.embeddings.position_embedding.weight'),
    *_layers(_TEXT),
    *layout.norm('norm', f'{_TEXT}.final_layer_norm'),
    *layout.linear('projection', 'text_projection'),
  ),
  lambda module, _: (layout.ints(1, 1),),
  ignore=lambda key: key.startswith(_IMAGE_KEYS) or _is_of_no_tower(key),
  rename=_rename_text,
)

IMAGE = layout.Family(
  "CLIP's image tower",
  (
    layout.Entry('cls', f'{_IMAGE}.embeddings.class_embedding'),
    layout.Entry('positions', f'{_IMAGE}.embeddings.position_embedding.weight'),
    *layout.conv('patches', f'{_IMAGE}.embeddings.patch_embedding'),
    *layout.norm('norm_before', f'{_IMAGE}.pre_layrnorm'),
    *_layers(_IMAGE),
    *layout.norm('norm', f'{_IMAGE}.post_layernorm'),
    *layout.linear('projection', 'visual_projection'),
  ),
  _image_inputs,
  ignore=lambda key: key.startswith(_TEXT_KEYS) or _is_of_no_tower(key),
  rename=_rename_image,
)


def is_open_clip(arrays: layout.Arrays) -> bool:
  """Whether the keys are open_clip's or OpenAI's, not Hugging Face's."""
  return not arrays.keys().isdisjoint(
    ('token_embedding.weight', 'visual.conv1.weight')
  )


def infer_text(
  arrays: layout.Arrays,
  *,
  activation: str,
  num_heads: int | None = None,
  **fields: Any,
) -> clip.CLIPText:
  """Reads a text tower's sizes off its weights, in either layout.

  They do not tell the activation, 'gelu' or 'quick_gelu'. Without a number of
  heads these have the published width of 64.
  """
  shape_of = TEXT.shape_reader(arrays)
  vocabulary, width = shape_of(f'{_TEXT}.embeddings.token_embedding.weight')
  positions, _ = shape_of(f'{_TEXT}.embeddings.position_embedding.weight')
  return clip.CLIPText(
    width=width,
    depth=_depth(TEXT.rename(arrays), _TEXT),
    num_heads=num_heads or width // _HEAD_WIDTH,
    mlp_width=shape_of(f'{_TEXT}.encoder.layers.0.mlp.fc1.bias')[0],
    projection_width=shape_of('text_projection.weight')[0],
    activation=activation,
    vocabulary=vocabulary,
    num_positions=positions,
    **fields,
  )


def infer_image(
  arrays: layout.Arrays, *, activation: str, num_heads: int
) -> clip.CLIPImage:
  """Reads an image tower's sizes off its weights, see `infer_text`."""
  shape_of = IMAGE.shape_reader(arrays)
  width, _, patch, _ = shape_of(f'{_IMAGE}.embeddings.patch_embedding.weight')
  positions, _ = shape_of(f'{_IMAGE}.embeddings.position_embedding.weight')
  return clip.CLIPImage(
    image_size=patch * math.isqrt(positions - 1),
    patch_size=patch,
    width=width,
    depth=_depth(IMAGE.rename(arrays), _IMAGE),
    num_heads=num_heads,
    mlp_width=shape_of(f'{_IMAGE}.encoder.layers.0.mlp.fc1.bias')[0],
    projection_width=shape_of('visual_projection.weight')[0],
    activation=activation,
  )


def _depth(arrays: layout.Arrays, model: str) -> int:
  return layout.count(arrays, rf'{model}\.encoder\.layers\.(\d+)\.')
