"""What ENAT is made of: blocks that read two streams of tokens.

ENAT (NeurIPS 2024, arXiv 2411.06959), LeapLabTHU/ENAT `libs/models.py`.

Shape letters: `B` samples, `N` tokens of a stream, `M` context tokens, `D`
width.
"""

from collections.abc import Callable
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError
from adanat_jax.models import layers

_EPSILON = 1e-6

Normalise = Callable[[jax.Array], jax.Array]

linear_init = nn.initializers.xavier_uniform()

_tanh_gelu = functools.partial(nn.gelu, approximate=True)

# Shift, scale of the block's own tokens; of the context; gate of the attention;
# shift, scale, gate of the MLP.
_NUM_MODULATIONS = 8


class Mlp(nn.Module):
  """Linear, GELU in its tanh form, linear."""

  hidden_width: int
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float[..., D] to the same shape."""
    dense = functools.partial(
      layers.Dense, dtype=self.dtype, kernel_init=linear_init
    )
    hidden = _tanh_gelu(dense(self.hidden_width, name='fc1')(x))
    return dense(x.shape[-1], name='fc2')(hidden)


class CarryOver(nn.Module):
  """What features of the last forward become in this one: `z + MLP(LN(z))`."""

  mlp_ratio: int
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Maps `z` float[B, M, D] to the same shape."""
    normed = layers.LayerNorm(_EPSILON, dtype=self.dtype, name='norm')(z)
    hidden_width = self.mlp_ratio * z.shape[-1]
    return z + Mlp(hidden_width, self.dtype, name='mlp')(normed)


class SelfCrossAttention(nn.Module):
  """Attention to a stream's own tokens and to context tokens, in one softmax.

  The two have projections of their own to keys and values.

  Attributes:
    num_heads: number of heads; divides the width.
    dtype: compute type; the softmax is float32.
    attention: `implementation` of `jax.nn.dot_product_attention`.
  """

  num_heads: int
  dtype: layers.Dtype = jnp.float32
  attention: str | None = 'xla'

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    from_context: jax.Array | None = None,
    attend: jax.Array | None = None,
  ) -> jax.Array:
    """Attends from the tokens of `x`.

    Args:
      x: float[B, N, D].
      context: float[B, M, D]; its keys stand before those of `x`.
      from_context: bool[B, N], only if M = N: there is one key a position
        then, that of the context where this is true and that of `x` elsewhere.
      attend: which keys are attended to, bool[B, number of keys]; None for
        all.

    Returns:
      float[B, N, D].

    Raises:
      UserError: if the heads do not divide the width.
    """
    width = x.shape[-1]
    if width % self.num_heads:
      raise UserError(
        f'num_heads={self.num_heads} does not divide the width {width}'
      )
    dense = functools.partial(
      layers.Dense, dtype=self.dtype, kernel_init=linear_init
    )
    key_value = dense(2 * width, name='self')(x)
    if context is not None:
      other = dense(2 * width, name='context')(context)
      if from_context is None:
        key_value = jnp.concatenate([other, key_value], axis=1)
      else:
        key_value = jnp.where(from_context[..., None], other, key_value)
    heads = lambda y: y.reshape(*y.shape[:2], self.num_heads, -1)
    key, value = jnp.split(key_value, 2, axis=-1)
    x_heads = jax.nn.dot_product_attention(
      heads(dense(width, name='query')(x)),
      heads(key),
      heads(value),
      mask=None if attend is None else attend[:, None, None, :],
      implementation=self.attention,  # type: ignore[arg-type]
    )
    return dense(width, name='proj')(x_heads.reshape(x.shape))


class Block(nn.Module):
  """Self-cross attention and an MLP, modulated and gated by the class if any.

  Attributes:
    num_heads: number of heads.
    mlp_ratio: hidden width of the MLP over the width.
    dtype: compute type.
    attention: `implementation` of `jax.nn.dot_product_attention`.
  """

  num_heads: int
  mlp_ratio: int
  dtype: layers.Dtype = jnp.float32
  attention: str | None = 'xla'

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    label: jax.Array | None,
    context: jax.Array | None = None,
    from_context: jax.Array | None = None,
    attend: jax.Array | None = None,
  ) -> jax.Array:
    """Runs the block on the tokens `x`.

    Args:
      x: float[B, N, D].
      label: float[B, D], the embedded class; None for norms that are learned
        instead, and no gates.
      context: see `SelfCrossAttention`, as are the two that follow.
      from_context: bool[B, N].
      attend: bool[B, number of keys].

    Returns:
      float[B, N, D].
    """
    width = x.shape[-1]
    norm = functools.partial(layers.LayerNorm, _EPSILON, dtype=self.dtype)
    before: Normalise
    before_context: Normalise
    before_mlp: Normalise
    if label is None:
      before = norm(name='norm')
      before_context = norm(name='context_norm')
      before_mlp = norm(name='mlp_norm')
      gate = mlp_gate = jnp.ones((1, 1, 1), self.dtype)
    else:
      modulation = nn.Dense(
        _NUM_MODULATIONS * width,
        dtype=self.dtype,
        kernel_init=nn.initializers.zeros,
        name='modulation',
      )(nn.silu(label))
      parts = jnp.split(modulation[:, None], _NUM_MODULATIONS, axis=-1)
      plain = norm(affine=False, name='norm')
      modulated = lambda shift, scale: lambda y: plain(y) * (1 + scale) + shift
      before = modulated(*parts[0:2])
      before_context = modulated(*parts[2:4])
      before_mlp = modulated(*parts[5:7])
      gate, mlp_gate = parts[4], parts[7]

    if context is not None:
      context = before_context(context)
    x = x + gate * SelfCrossAttention(
      self.num_heads, self.dtype, self.attention, name='attention'
    )(before(x), context, from_context, attend)
    return x + mlp_gate * Mlp(self.mlp_ratio * width, self.dtype, name='mlp')(
      before_mlp(x)
    )
