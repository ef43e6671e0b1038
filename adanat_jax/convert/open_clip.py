"""open_clip's and OpenAI's keys of CLIP's towers, as Hugging Face's.

Both towers are stacks of the same residual blocks; what lies around them is
each tower's own, and is told by its converter.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tower:
  """How one tower's keys are called in both layouts.

  Attributes:
    blocks: pattern of their blocks' keys, up to the number.
    layers: Hugging Face's keys of those blocks, up to the number.
    names: pairs of a pattern and what replaces it, for what is no block.
    projection: the key of the final matrix in both layouts.
  """

  blocks: str
  layers: str
  names: Sequence[tuple[str, str]]
  projection: tuple[str, str]


def renamed(
  state_dict: Mapping[str, np.ndarray], tower: Tower
) -> dict[str, np.ndarray]:
  """Renames a tower's keys to Hugging Face's and splits joint projections.

  Keys that are not the tower's are kept as they are.
  """
  block, layer = rf'{tower.blocks}\.(\d+)', rf'{tower.layers}.\1'
  names = (
    *tower.names,
    (rf'{block}\.ln_([12])\.(weight|bias)', rf'{layer}.layer_norm\2.\3'),
    (
      rf'{block}\.attn\.out_proj\.(weight|bias)',
      rf'{layer}.self_attn.out_proj.\2',
    ),
    (rf'{block}\.mlp\.c_fc\.(weight|bias)', rf'{layer}.mlp.fc1.\2'),
    (rf'{block}\.mlp\.c_proj\.(weight|bias)', rf'{layer}.mlp.fc2.\2'),
  )
  result = {}
  for key, value in state_dict.items():
    if match := re.fullmatch(rf'{block}\.attn\.in_proj_(weight|bias)', key):
      for part, array in zip('qkv', np.split(value, 3), strict=True):
        name = match.expand(rf'{layer}.self_attn.{part}_proj.\2')
        result[name] = array
      continue
    if key == tower.projection[0]:
      # A matrix that multiplies from the right, not a linear layer's.
      result[tower.projection[1]] = value.T
      continue
    for pattern, name in names:
      if match := re.fullmatch(pattern, key):
        key = match.expand(name)
        break
    result[key] = value
  return result
