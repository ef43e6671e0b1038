"""Actor and critic: LeapLabTHU/AdaNAT `libs/policy.py`.

AdaNAT's files hold four networks under the prefixes `policy.actor.`,
`policy.critic.`, `policy_old.actor.` and `policy_old.critic.` (see
`layout.subset`); AdaGen's hold one bare actor. Evaluation uses
`policy_old.actor.`.
"""

import math
from typing import Any

from adanat_jax.convert import layout
from adanat_jax.models import policy


def _inputs(module: policy.PolicyNetwork, arrays: layout.Arrays) -> Any:
  # Without a projection the features have the width of the trunk.
  embed, trunk = 'x_embedder.weight', 't_embedder.mlp.2.weight'
  shape_of = FAMILY.shape_reader(arrays)
  width = shape_of(embed if embed in arrays else trunk)[1]
  return layout.floats(1, module.grid_size**2, width), layout.ints(1)


FAMILY = layout.Family(
  'a policy network',
  (
    *layout.linear('embed', 'x_embedder'),
    *layout.linear('step_fc1', 't_embedder.mlp.0'),
    *layout.linear('step_fc2', 't_embedder.mlp.2'),
    *layout.linear(r'norm(\d)/modulation', r'adaLN\1.adaLN_modulation.1'),
    *layout.conv('depthwise', 'dw_conv'),
    *layout.conv('pointwise', 'pw_conv'),
    *layout.linear(r'fc(\d)', r'linear\1'),
  ),
  _inputs,
)


def infer(arrays: layout.Arrays) -> policy.PolicyNetwork:
  """Reads a network's sizes off its weights, see `layout`.

  The grid's side is taken for even: the convolution of stride 2 leaves 2 g - 1
  and 2 g alike.
  """
  shape_of = FAMILY.shape_reader(arrays)
  conv_width = shape_of('pw_conv.weight')[0]
  hidden, flat = shape_of('linear1.weight')
  return policy.PolicyNetwork(
    num_outputs=shape_of('linear3.weight')[0],
    grid_size=2 * math.isqrt(flat // conv_width),
    hidden_size=shape_of('dw_conv.weight')[0],
    conv_width=conv_width,
    mlp_widths=(hidden, shape_of('linear2.weight')[0]),
  )
