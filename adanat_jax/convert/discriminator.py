"""The trained part of the projected discriminator, heads and mapping.

LeapLabTHU/AdaNAT `libs/discriminator.py`. The frozen trunk, which their files
may hold too under `TRUNK_PREFIX`, is `convert.vit`'s. Here our side is the
variables, not the parameters alone: the spectral vectors are among the
weights.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import layout
from adanat_jax.models import discriminator

WHAT = 'discriminator heads'
TRUNK_PREFIX = 'dino.model.model.'


def _spectral_conv(ours: str, theirs: str) -> layout.Table:
  return (
    layout.Entry(
      f'params/{ours}/kernel', f'{theirs}.weight_orig', layout.CONV1D
    ),
    layout.Entry(f'params/{ours}/bias', f'{theirs}.bias'),
    layout.Entry(f'spectral/{ours}/u', f'{theirs}.weight_u'),
    layout.Entry(f'spectral/{ours}/v', f'{theirs}.weight_v'),
  )


def _head(ours: str, theirs: str) -> layout.Table:
  return (
    *_spectral_conv(f'{ours}conv1', f'{theirs}main.0.0'),
    *layout.norm(f'params/{ours}norm1', f'{theirs}main.0.1'),
    *_spectral_conv(f'{ours}conv2', f'{theirs}main.1.fn.0'),
    *layout.norm(f'params/{ours}norm2', f'{theirs}main.1.fn.1'),
    *_spectral_conv(f'{ours}out', f'{theirs}cls'),
    *layout.linear(f'params/{ours}condition', f'{theirs}cmapper'),
  )


def _mapping(ours: str, theirs: str) -> layout.Table:
  return (
    *layout.linear(f'params/{ours}embed', f'{theirs}embed'),
    *layout.linear(rf'params/{ours}fc_(\d+)', rf'{theirs}fc\1'),
  )


TABLE: layout.Table = (
  *_head(r'heads_(\d+)/', r'heads.\1.'),
  *_mapping('mapping/', 'mapping.'),
)
HEAD_TABLE: layout.Table = _head('', '')
MAPPING_TABLE: layout.Table = _mapping('', '')


def infer(
  state_dict: Mapping[str, np.ndarray],
) -> tuple[discriminator.DiscriminatorHeads, int]:
  """Reads the sizes off the weights.

  Returns:
    The module and the number of its heads.

  Raises:
    UserError: if these are no weights of conditional discriminator heads.
  """
  shape_of = lambda key: layout.shape_of(state_dict, key, what=WHAT)
  fields: dict[str, Any] = {}
  if 'mapping.embed.weight' in state_dict:
    fields['mapping_width'], fields['num_classes'] = shape_of(
      'mapping.embed.weight'
    )
    fields['mapping_layers'] = layout.count(state_dict, r'mapping\.fc(\d+)\.')
  module = discriminator.DiscriminatorHeads(
    condition_map_width=shape_of('heads.0.cls.weight_orig')[0],
    kernel_size=shape_of('heads.0.main.1.fn.0.weight_orig')[2],
    **fields,
  )
  return module, layout.count(state_dict, r'heads\.(\d+)\.')


def from_torch(
  state_dict: Mapping[str, np.ndarray],
  module: discriminator.DiscriminatorHeads,
  num_heads: int = 5,
) -> dict[str, Any]:
  """Returns the variables of `module` from their arrays by key.

  Args:
    state_dict: their arrays by key, without a prefix; the trunk is ignored.
    module: the module.
    num_heads: number of its heads.

  Returns:
    The variables: collections `params` and `spectral`.

  Raises:
    UserError: if the weights do not fit the module.
  """
  shape_of = lambda key: layout.shape_of(state_dict, key, what=WHAT)
  width = shape_of('heads.0.main.0.0.weight_orig')[1]
  features = [jnp.zeros((1, 1, width))] * num_heads
  if module.num_classes is None:
    condition = jnp.zeros((1, shape_of('heads.0.cmapper.weight')[1]))
  else:
    condition = jnp.zeros((1,), jnp.int32)
  return layout.to_ours(
    state_dict,
    TABLE,
    layout.shapes(module, features, condition),
    what=WHAT,
    ignore=lambda key: key.startswith(TRUNK_PREFIX),
  )


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns their arrays by key; the inverse of `from_torch`."""
  return layout.to_theirs(variables, TABLE)
