"""The transformer of valeoai/Halton-MaskGIT, its `Network/transformer.py`.

A pre-norm transformer over the canvas (arXiv 2503.17076), as DiT: the class
shifts, scales and gates every block. Register tokens follow the canvas, and
nothing tells the network the step.

Shape letters: `B` samples, `N` tokens, `K` codebook, `D` width.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.models import layers

_EPSILON = 1e-5
# Hidden widths are multiples of this.
_MULTIPLE = 256


def mlp_width(width: int, mlp_ratio: int = 4) -> int:
  """The hidden width of a block: two thirds of the ratio, for three kernels."""
  return _MULTIPLE * -(-int(2 * mlp_ratio * width / 3) // _MULTIPLE)


def _normalised(x: jax.Array) -> jax.Array:
  """Divides `x` float[..., D] by its root mean square."""
  wide = x.astype(jnp.float32)
  mean = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
  return (wide * jax.lax.rsqrt(mean + _EPSILON)).astype(x.dtype)


class ModulatedNorm(nn.Module):
  """Root-mean-square normalisation that a condition shifts and scales."""

  use_bias: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, shift: jax.Array, scale: jax.Array
  ) -> jax.Array:
    """Maps `x` float[B, N, D], with float[B, 1, D] each, to the same shape."""
    width = (x.shape[-1],)
    x = _normalised(x) * self.param('scale', nn.initializers.ones, width)
    if self.use_bias:
      x = x + self.param('bias', nn.initializers.zeros, width)
    return x * (1 + scale) + shift


class HaltonBlock(nn.Module):
  """Attention with normalised queries and keys, and a gated MLP."""

  num_heads: int  # number of attention heads; divides the width
  mlp_width: int
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
    """Maps `x` float[B, N, D] with the condition float[B, D] to its shape."""
    width = x.shape[-1]
    layers.check_heads(self.num_heads, width)
    dense = functools.partial(layers.Dense, use_bias=False, dtype=self.dtype)
    modulation = layers.Dense(6 * width, dtype=self.dtype, name='modulation')
    shift, scale, gate, shift_2, scale_2, gate_2 = jnp.split(
      modulation(nn.silu(condition))[:, None], 6, axis=-1
    )
    hidden = ModulatedNorm(name='norm1')(x, shift, scale)
    # Over all heads at once, without a learned scale.
    query = _normalised(dense(width, name='query')(hidden))
    key = _normalised(dense(width, name='key')(hidden))
    heads = [
      part.reshape(*x.shape[:2], self.num_heads, -1)
      for part in (query, key, dense(width, name='value')(hidden))
    ]
    attended = jax.nn.dot_product_attention(*heads).reshape(x.shape)
    x = x + gate * dense(width, name='out')(attended)
    hidden = ModulatedNorm(name='norm2')(x, shift_2, scale_2)
    gated = nn.silu(dense(self.mlp_width, name='gate')(hidden))
    hidden = gated * dense(self.mlp_width, name='fc1')(hidden)
    return x + gate_2 * dense(width, name='fc2')(hidden)


class HaltonTransformer(nn.Module):
  """Predicts the code at every position of a partly masked grid.

  It is not trained here: it has no dropout.
  """

  codebook_size: int  # number of codes K
  num_classes: int  # not counting the null class, whose id it is
  num_tokens: int  # number of positions in the grid
  width: int = 1024
  depth: int = 24
  num_heads: int = 16
  mlp_width: int = 2816
  num_registers: int = 1
  # Compute type; parameters and statistics are float32. Of logits see
  # `layers.tied_logits`.
  dtype: layers.Dtype = jnp.float32

  text_width = None  # It reads classes alone.

  @nn.compact
  def __call__(
    self, tokens: jax.Array, condition: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Runs the network once.

    Args:
      tokens: int32[B, N] in [0, codebook_size]; `codebook_size` is the mask.
      condition: int32[B] class ids in [0, num_classes].

    Returns:
      The features after the last norm, `dtype`[B, N, D], and the logits,
      `layers.tied_logits` [B, N, codebook_size].
    """
    chex.assert_shape(tokens, (None, self.num_tokens))
    table = lambda name, rows: jnp.asarray(
      self.param(name, layers.normal_init, (rows, self.width))
    )
    words = table('words', self.codebook_size + 1)
    x = words[tokens] + table('positions', self.num_tokens)
    registers = table('registers', self.num_registers)
    registers = jnp.broadcast_to(registers, (len(x), *registers.shape))
    x = jnp.concatenate([x, registers], axis=1).astype(self.dtype)
    condition = table('classes', self.num_classes + 1)[condition]
    condition = condition.astype(self.dtype)
    for i in range(self.depth):
      block = HaltonBlock(
        self.num_heads, self.mlp_width, self.dtype, name=f'blocks_{i}'
      )
      x = block(x, condition)
    last = layers.Dense(2 * self.width, dtype=self.dtype, name='modulation')
    shift, scale = jnp.split(last(nn.silu(condition))[:, None], 2, axis=-1)
    norm = ModulatedNorm(use_bias=True, name='norm')
    features = norm(x[:, : self.num_tokens], shift, scale).astype(self.dtype)
    bias = self.param(
      'head_bias', nn.initializers.zeros, (self.codebook_size + 1,)
    )
    return features, layers.tied_logits(
      features, words, bias, self.codebook_size
    )
