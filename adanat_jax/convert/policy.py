"""Actor and critic: LeapLabTHU/AdaNAT `libs/policy.py`.

AdaNAT's files hold four networks under the prefixes in `PREFIXES` (see
`layout.subset`); AdaGen's hold one bare actor. Evaluation uses
`policy_old.actor.`.
"""

from collections.abc import Mapping
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import layout
from adanat_jax.models import policy

WHAT = 'a policy network'
PREFIXES = (
  'policy_old.actor.',
  'policy_old.critic.',
  'policy.actor.',
  'policy.critic.',
)

TABLE: layout.Table = (
  *layout.linear('embed', 'x_embedder'),
  *layout.linear('step_fc1', 't_embedder.mlp.0'),
  *layout.linear('step_fc2', 't_embedder.mlp.2'),
  *layout.linear(r'norm(\d)/modulation', r'adaLN\1.adaLN_modulation.1'),
  *layout.conv('depthwise', 'dw_conv'),
  *layout.conv('pointwise', 'pw_conv'),
  *layout.linear(r'fc(\d)', r'linear\1'),
)


def _feature_width(state_dict: Mapping[str, np.ndarray]) -> int:
  # Without a projection the features have the width of the trunk.
  embed, trunk = 'x_embedder.weight', 't_embedder.mlp.2.weight'
  key = embed if embed in state_dict else trunk
  return layout.shape_of(state_dict, key, what=WHAT)[1]


def infer(
  state_dict: Mapping[str, np.ndarray], *, grid_size: int | None = None
) -> policy.PolicyNetwork:
  """Reads a network's sizes off its weights.

  Args:
    state_dict: their arrays by key, without a prefix.
    grid_size: side of the token grid; None for an even one, inferred (the
      convolution of stride 2 leaves 2 g - 1 and 2 g alike).

  Returns:
    The module.

  Raises:
    UserError: if these are no weights of a policy network.
  """
  shape_of = lambda key: layout.shape_of(state_dict, key, what=WHAT)
  conv_width = shape_of('pw_conv.weight')[0]
  hidden, flat = shape_of('linear1.weight')
  return policy.PolicyNetwork(
    num_outputs=shape_of('linear3.weight')[0],
    grid_size=grid_size or 2 * math.isqrt(flat // conv_width),
    hidden_size=shape_of('dw_conv.weight')[0],
    conv_width=conv_width,
    mlp_widths=(hidden, shape_of('linear2.weight')[0]),
  )


def from_torch(
  state_dict: Mapping[str, np.ndarray], module: policy.PolicyNetwork
) -> dict[str, Any]:
  """Returns the parameters of `module` from their arrays, without a prefix.

  Raises:
    UserError: if the weights do not fit the module.
  """
  width = _feature_width(state_dict)
  features = jax.ShapeDtypeStruct((1, module.grid_size**2, width), jnp.float32)
  template = layout.shapes(module, features, jnp.zeros((1,), jnp.int32))
  return layout.to_ours(state_dict, TABLE, template['params'], what=WHAT)


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Returns their arrays by key; the inverse of `from_torch`."""
  return layout.to_theirs(params, TABLE)
