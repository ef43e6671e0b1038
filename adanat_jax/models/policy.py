"""The policy network: actor and critic are two of these, weights apart.

AdaNAT (arXiv 2409.00342), section 3.2; LeapLabTHU/AdaNAT `libs/policy.py`. It
reads the NAT's features of the present canvas and the step; adaptive layer
normalisation carries the step. At the start its output is zero. A policy for
every number of steps reads its budget, too: how many steps there are, and how
many are left. A policy with a dial reads where that stands.

Shape letters: `B` samples, `N` tokens, `D` width of the features.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.models import layers

_EPSILON = 1e-6
_NUM_FREQUENCIES = 128
_MAX_PERIOD = 10_000.0

_xavier = nn.initializers.xavier_uniform()


def step_embedding(step: jax.Array) -> jax.Array:
  """Embeds int or float32[B] as float32[B, 256]: cosines, then sines."""
  exponent = jnp.arange(_NUM_FREQUENCIES, dtype=jnp.float32) / _NUM_FREQUENCIES
  frequencies = jnp.exp(-jnp.log(_MAX_PERIOD) * exponent)
  angles = step.astype(jnp.float32)[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def budget_embedding(step: jax.Array, num_steps: jax.Array) -> jax.Array:
  """Embeds T and the steps left, of int32[B] each, as float32[B, 512].

  By their logarithms to the base 2: what is learned at T = 4 and 8 then says
  something of those between, which the angles of whole numbers would not.
  """
  numbers = num_steps, num_steps - step
  numbers = jax.tree.map(lambda x: jnp.log2(x.astype(jnp.float32)), numbers)
  return jnp.concatenate([*map(step_embedding, numbers)], axis=-1)


def dial_embedding(dial: jax.Array) -> jax.Array:
  """Embeds float32[B] in [0, 1] as float32[B, 256].

  The fastest of its angles makes one turn from 0 to 1.
  """
  return step_embedding(2 * jnp.pi * dial)


class AdaptiveLayerNorm(nn.Module):
  """Layer normalisation whose shift and scale come from an embedding."""

  @nn.compact
  def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
    """Normalises `x` float32[B, ..., D] as `embedding` float32[B, E] says."""
    width = x.shape[-1]
    modulation = nn.Dense(
      2 * width, kernel_init=nn.initializers.zeros, name='modulation'
    )(nn.silu(embedding))
    middle = (1,) * (x.ndim - 2)
    modulation = modulation.reshape(x.shape[0], *middle, 2 * width)
    shift, scale = jnp.split(modulation, 2, axis=-1)
    x = layers.LayerNorm(_EPSILON, affine=False, name='norm')(x)
    return x * (1.0 + scale) + shift


def _taps(
  x: jax.Array, rows: int, columns: int
) -> list[tuple[int, int, jax.Array]]:
  """What each of the nine weights meets, float32[B, rows, columns, C]."""
  padded = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
  return [
    (i, j, padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2])
    for i in range(3)
    for j in range(3)
  ]


@jax.custom_vjp
def _depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves float32[B, h, w, C] with [3, 3, C], stride 2, padding 1."""
  rows, columns = -(-x.shape[1] // 2), -(-x.shape[2] // 2)
  total = jnp.zeros((), x.dtype)
  for i, j, shifted in _taps(x, rows, columns):
    total = total + shifted * kernel[i, j][None, None, None]
  return total


def _depthwise_forward(
  x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _depthwise(x, kernel), (x, kernel)


def _depthwise_backward(
  inputs: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = inputs
  batch, height, width, channels = x.shape
  rows, columns = gradient.shape[1:3]
  of_kernel = [
    (shifted * gradient).sum((0, 1, 2))
    for _, _, shifted in _taps(x, rows, columns)
  ]
  # An entry of an even row or column, counted with the padding, meets the
  # weights 0 and 2, of an odd one the weight 1.
  wide = jnp.pad(gradient, ((0, 0), (1, 1), (1, 1), (0, 0)))

  def entries(odd_row: int, odd_column: int) -> jax.Array:
    total = jnp.zeros((), x.dtype)
    for i in range(odd_row, 3, 2):
      for j in range(odd_column, 3, 2):
        top, left = 1 - i // 2, 1 - j // 2
        met = wide[:, top : top + rows + 1, left : left + columns + 1]
        total = total + met * kernel[i, j][None, None, None]
    return total

  parts = [
    jnp.stack([entries(a, b) for b in range(2)], axis=3) for a in range(2)
  ]
  whole = jnp.stack(parts, axis=2).reshape(
    batch, 2 * (rows + 1), 2 * (columns + 1), channels
  )
  return (
    whole[:, 1 : 1 + height, 1 : 1 + width],
    jnp.stack(of_kernel).reshape(kernel.shape),
  )


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class DepthwiseConv(nn.Module):
  """A 3x3 convolution of each channel by itself, stride 2, padding 1.

  As nine shifted products: on a CPU the gradient of a grouped convolution
  takes XLA ten times as long, more than the rest of the network together. Its
  gradient is written out: that of strided slices is nine padded arrays.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float32[B, h, w, C] to float32[B, ceil(h/2), ceil(w/2), C]."""
    width = x.shape[-1]
    kernel = self.param('kernel', layers.torch_conv_init, (3, 3, 1, width))
    bias = self.param('bias', layers.torch_bias_init(9), (width,))
    return _depthwise(x, kernel[:, :, 0]) + bias[None, None, None]


class PolicyNetwork(nn.Module):
  """Maps features and step to `num_outputs` numbers per sample, in float32."""

  num_outputs: int  # 4 for the actor, 1 for the critic
  grid_size: int  # side of the square token grid, or its rows
  hidden_size: int = 512  # of the trunk; other features are projected to it
  conv_width: int = 128  # channels after the 1x1 convolution
  mlp_widths: tuple[int, int] = (1024, 512)  # hidden layers of the read-out
  columns: int = 0  # of the token grid, if it is no square
  reads_budget: bool = False  # whether it is told T, and so the steps left
  reads_dial: bool = False  # whether it is told where its dial stands

  @nn.compact
  def __call__(
    self,
    features: jax.Array,
    step: jax.Array,
    num_steps: jax.Array | int | None = None,
    dial: jax.Array | float | None = None,
  ) -> jax.Array:
    """Runs the network once, to float32[B, num_outputs].

    Args:
      features: float[B, N, D] of all N tokens of the grid.
      step: int32[] or int32[B], counts from 0.
      num_steps: T, int32[] or int32[B]; only read if it `reads_budget`.
      dial: float32[] or float32[B] in [0, 1]; only read if it `reads_dial`.
    """
    batch, num_tokens, width = features.shape
    grid = self.grid_size, self.columns or self.grid_size
    chex.assert_equal(num_tokens, grid[0] * grid[1])
    x = features.astype(jnp.float32)
    if width != self.hidden_size:
      x = layers.Dense(self.hidden_size, kernel_init=_xavier, name='embed')(x)

    wide = lambda x: jnp.broadcast_to(jnp.asarray(x, jnp.int32), (batch,))
    step = wide(step)
    dense = functools.partial(
      nn.Dense, self.hidden_size, kernel_init=layers.normal_init
    )
    embedding = dense(name='step_fc1')(step_embedding(step))
    if self.reads_budget:
      # At first it counts for nothing, so that a policy which was trained for
      # one T goes on from what it does at that T.
      kernel_init = nn.initializers.zeros
      embedding += dense(
        use_bias=False, kernel_init=kernel_init, name='budget_fc'
      )(budget_embedding(step, wide(num_steps)))
    if self.reads_dial:
      chosen = jnp.broadcast_to(jnp.asarray(dial, jnp.float32), (batch,))
      embedding += dense(
        use_bias=False, kernel_init=nn.initializers.zeros, name='dial_fc'
      )(dial_embedding(chosen))
    embedding = dense(name='step_fc2')(nn.silu(embedding))

    x = AdaptiveLayerNorm(name='norm1')(x, embedding)
    x = x.reshape(batch, *grid, self.hidden_size)
    x = DepthwiseConv(name='depthwise')(x)
    x = layers.PointwiseConv(
      self.conv_width,
      kernel_init=layers.torch_conv_init,
      bias_init=layers.torch_bias_init(self.hidden_size),
      name='pointwise',
    )(layers.gelu(x))
    # Channels first: the order in which the published weights read it.
    x = jnp.moveaxis(layers.gelu(x), -1, 1).reshape(batch, -1)

    x = nn.Dense(self.mlp_widths[0], kernel_init=_xavier, name='fc1')(x)
    x = layers.gelu(AdaptiveLayerNorm(name='norm2')(x, embedding))
    x = nn.Dense(self.mlp_widths[1], kernel_init=_xavier, name='fc2')(x)
    x = layers.gelu(AdaptiveLayerNorm(name='norm3')(x, embedding))
    zeros = nn.initializers.zeros
    return nn.Dense(self.num_outputs, kernel_init=zeros, name='fc3')(x)


def initial_params(
  actor: PolicyNetwork, critic: PolicyNetwork, key: jax.Array, features: Any
) -> dict[str, Any]:
  """New parameters of both, for features like float[1, N, D]."""
  actor_key, critic_key = jax.random.split(key)
  return {
    'actor': actor.init(actor_key, features, 0, 1, 0.0)['params'],
    'critic': critic.init(critic_key, features, 0, 1, 0.0)['params'],
  }


@dataclasses.dataclass(frozen=True)
class PolicyNetworks:
  """Actor and critic as one function; sampling needs no critic.

  `(params, features [M, N, D], step int32[M]) -> (mean [M, A], value [M])` with
  `params` by name. Without a critic values are 0. `num_steps` is the T that
  networks are told which read their budget. In place of features those with a
  dial take `(features, dial float32[M])`.
  """

  actor: PolicyNetwork
  critic: PolicyNetwork | None = None
  num_steps: int | None = None

  def __call__(
    self, params: Mapping[str, Any], features: Any, step: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Runs both once."""
    dial = None
    if self.actor.reads_dial:
      features, dial = features
    inputs = features, step, self.num_steps, dial
    mean = self.actor.apply({'params': params['actor']}, *inputs)
    if self.critic is None:
      return mean, jnp.zeros(mean.shape[0])
    value = self.critic.apply({'params': params['critic']}, *inputs)
    return mean, value[:, 0]
