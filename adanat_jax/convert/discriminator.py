"""The trained part of the projected discriminator, heads and mapping.

LeapLabTHU/AdaNAT `libs/discriminator.py`. The frozen trunk, which their files
may hold too under `TRUNK_PREFIX`, is `convert.vit`'s. Here our side is the
variables, not the parameters alone: the spectral vectors are among the
weights.
"""

from typing import Any

from adanat_jax.convert import layout
from adanat_jax.models import discriminator

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


def _inputs(
  module: discriminator.DiscriminatorHeads, arrays: layout.Arrays
) -> tuple[Any, Any]:
  shape_of = FAMILY.shape_reader(arrays)
  width = shape_of('heads.0.main.0.0.weight_orig')[1]
  condition = layout.ints(1)
  if module.num_classes is None:
    condition = layout.floats(1, shape_of('heads.0.cmapper.weight')[1])
  return [layout.floats(1, 1, width)] * _num_heads(arrays), condition


def _num_heads(arrays: layout.Arrays) -> int:
  return layout.count(arrays, r'heads\.(\d+)\.', 32)


HEAD_TABLE: layout.Table = _head('', '')
MAPPING_TABLE: layout.Table = _mapping('', '')
FAMILY = layout.Family(
  'discriminator heads',
  (*_head(r'heads_(\d+)/', r'heads.\1.'), *_mapping('mapping/', 'mapping.')),
  _inputs,
  ignore=lambda key: key.startswith(TRUNK_PREFIX),
  all_variables=True,
)


def infer(
  arrays: layout.Arrays,
) -> tuple[discriminator.DiscriminatorHeads, int]:
  """Reads the sizes off the weights, and the number of the heads."""
  shape_of = FAMILY.shape_reader(arrays)
  fields: dict[str, Any] = {}
  if 'mapping.embed.weight' in arrays:
    fields['mapping_width'], fields['num_classes'] = shape_of(
      'mapping.embed.weight'
    )
    fields['mapping_layers'] = layout.count(arrays, r'mapping\.fc(\d+)\.', 32)
  module = discriminator.DiscriminatorHeads(
    condition_map_width=shape_of('heads.0.cls.weight_orig')[0],
    kernel_size=shape_of('heads.0.main.1.fn.0.weight_orig')[2],
    **fields,
  )
  return module, _num_heads(arrays)
