"""Layers that more than one network is made of.

Shape letters: `B` samples, `N` tokens, `D` width, `H` heads.
"""

from collections.abc import Callable
import functools
import math
import os
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError
from adanat_jax.models import attention
from adanat_jax.runtime import sharding

# Parts of a batch that a CPU computes side by side; each is translated anew by
# the compiler.
_PARTS = min(4, os.cpu_count() or 1)
# Pixels of a batch from which on that pays, and in training, whose gradients
# take the most time.
MANY_PIXELS = 2**16
MANY_TRAINED_PIXELS = 2**14

Dtype = Any
Initializer = Callable[..., jax.Array]

# The originals cut the normal distribution at +-2, a hundred standard
# deviations away: it is a normal distribution.
normal_init: Initializer = nn.initializers.normal(0.02)

# torch's default for convolutions (Kaiming with a = sqrt(5)): uniform within
# +-1 / sqrt(fan_in).
torch_conv_init: Initializer = nn.initializers.variance_scaling(
  1.0 / 3.0, 'fan_in', 'uniform'
)

gelu = functools.partial(nn.gelu, approximate=False)


def torch_bias_init(fan_in: int) -> Initializer:
  """Returns torch's default for biases: uniform within +-1 / sqrt(fan_in)."""

  def init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32):
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def side_by_side(
  network: Callable[[jax.Array], Any],
  x: jax.Array,
  *,
  enlarged: int = 1,
  least: int = MANY_PIXELS,
) -> Any:
  """Applies a network of convolutions; on a CPU, parts of a batch at once.

  XLA computes most convolutions on one thread of a CPU. Those of different
  parts do not wait for each other, so they run on several (docs/benchmarks.md).

  Args:
    network: float[B, H, W, C] to arrays [B, ...], each sample by itself.
    x: float[B, H, W, C].
    enlarged: how many times larger the network makes both sides.
    least: pixels of a batch, at its largest, that are divided.
  """
  mesh = jax.sharding.get_abstract_mesh()
  on_one_cpu = sharding.platform() == 'cpu' and (mesh.empty or mesh.size == 1)
  # A program that is exported may leave the size of its batches open.
  if not on_one_cpu or jax.export.is_symbolic_dim(x.shape[0]):
    return network(x)
  if math.prod(x.shape[:3]) * enlarged**2 < least:
    return network(x)
  parts = min(_PARTS, len(x))
  found = [network(part) for part in jnp.array_split(x, parts)]
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


class Dense(nn.Dense):
  """`nn.Dense` that multiplies two matrices where the CPU is the device.

  XLA on CPUs sums the gradient of a kernel over the axes of a batch and its
  tokens after transposing both factors, and computes what they are made of
  once more for it; over one axis it does neither (docs/benchmarks.md).
  Accelerators lay such axes out as they like, and are left to it.
  """

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float[..., D] to float[..., features]."""
    if sharding.platform() != 'cpu':
      return super().__call__(x)
    flat = super().__call__(x.reshape(-1, x.shape[-1]))
    return flat.reshape(*x.shape[:-1], self.features)


class PointwiseConv(nn.Module):
  """A 1x1 convolution as a product, with the parameters of `nn.Conv`.

  XLA on CPUs has no fast library for the gradients of a convolution in a loop
  (docs/benchmarks.md).
  """

  features: int  # channels of the result
  kernel_init: Initializer
  bias_init: Initializer

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float32[B, h, w, C] to float32[B, h, w, features]."""
    shape = (1, 1, x.shape[-1], self.features)
    kernel = self.param('kernel', self.kernel_init, shape)
    bias = self.param('bias', self.bias_init, shape[-1:])
    flat = x.reshape(-1, x.shape[-1]) @ kernel[0, 0] + bias[None]
    return flat.reshape(*x.shape[:-1], self.features)


class LayerNorm(nn.Module):
  """Layer normalisation whose statistics are float32 whatever goes in."""

  epsilon: float  # added to the variance; no default, as the originals differ
  affine: bool = True  # whether a scale and a bias are learned
  dtype: Dtype = jnp.float32  # type of the result

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises the last axis of `x` float[..., D]."""
    x = x.astype(jnp.float32)
    # Two passes: the one-pass variance loses digits that parity needs.
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    x = centred * jax.lax.rsqrt(variance + self.epsilon)
    if self.affine:
      width = (x.shape[-1],)
      scale = self.param('scale', nn.initializers.ones, width)
      bias = self.param('bias', nn.initializers.zeros, width)
      lead = (1,) * (x.ndim - 1)
      x = x * scale.reshape(lead + width) + bias.reshape(lead + width)
    return x.astype(self.dtype)


class SelfAttention(nn.Module):
  """Multi-head self-attention with one projection for q, k and v."""

  num_heads: int  # divides the width
  qkv_bias: bool  # whether the joint projection has a bias
  dtype: Dtype = jnp.float32  # compute type; the softmax is float32
  attention: str | None = 'xla'  # see attention.attend

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Attends among the tokens of `x` float[B, N, D]."""
    width = x.shape[-1]
    check_heads(self.num_heads, width)
    dense = functools.partial(Dense, dtype=self.dtype, kernel_init=normal_init)
    qkv = dense(3 * width, use_bias=self.qkv_bias, name='qkv')(x)
    qkv = qkv.reshape(*x.shape[:2], 3, self.num_heads, -1)
    x_heads = attention.attend(
      qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], implementation=self.attention
    )
    return dense(width, name='proj')(x_heads.reshape(x.shape))


class Mlp(nn.Module):
  """Linear, activation, linear."""

  hidden_width: int  # width between the two
  dtype: Dtype = jnp.float32
  # None for the exact GELU.
  activation: Callable[[jax.Array], jax.Array] | None = None
  kernel_init: Initializer = normal_init  # of both kernels

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float[..., D] to the same shape."""
    dense = functools.partial(
      Dense, dtype=self.dtype, kernel_init=self.kernel_init
    )
    hidden = dense(self.hidden_width, name='fc1')(x)
    hidden = (self.activation or gelu)(hidden)
    return dense(x.shape[-1], name='fc2')(hidden)


class TransformerBlock(nn.Module):
  """Pre-norm block; with a skip, the two inputs are merged first."""

  num_heads: int
  mlp_ratio: int  # hidden width of the MLP over the width
  epsilon: float  # of both layer normalisations
  qkv_bias: bool  # whether the joint projection has a bias
  dtype: Dtype = jnp.float32
  attention: str | None = 'xla'  # see attention.attend

  @nn.compact
  def __call__(self, x: jax.Array, skip: jax.Array | None = None) -> jax.Array:
    """Maps `x` float[B, N, D], and `skip` of its shape, to the same shape."""
    width = x.shape[-1]
    if skip is not None:
      merge = Dense(
        width, dtype=self.dtype, kernel_init=normal_init, name='skip'
      )
      x = merge(jnp.concatenate([x, skip], axis=-1))
    norm = functools.partial(LayerNorm, self.epsilon, dtype=self.dtype)
    options = self.num_heads, self.qkv_bias, self.dtype, self.attention
    attend = SelfAttention(*options, name='attention')
    x = x + attend(norm(name='norm1')(x))
    mlp = Mlp(self.mlp_ratio * width, self.dtype, name='mlp')
    return x + mlp(norm(name='norm2')(x))


def embed_patches(
  module: Any, images: jax.Array, use_bias: bool = True
) -> jax.Array:
  """Makes the tokens of a vision transformer, `dtype`[B, 1 + patches, D].

  The class token comes first. Called within a compact method of `module`, which
  gets the parameters `patches`, `cls` and `positions`.

  Args:
    module: has the fields `image_size` (the side of square images, or height
      and width), `patch_size`, `width` (D) and `dtype`.
    images: float[B, H, W, C] of that size.
    use_bias: whether the projection of the patches has a bias.

  Raises:
    UserError: if the images cannot be cut into patches.
  """
  sides, size = sides_of(module.image_size), module.patch_size
  if any(side % size for side in sides):
    raise UserError(
      f'patch_size={size} does not divide image_size={module.image_size}'
    )
  chex.assert_shape(images, (None, *sides, None))
  x = nn.Conv(
    module.width,
    (size, size),
    strides=(size, size),
    padding='VALID',
    use_bias=use_bias,
    kernel_init=torch_conv_init,
    bias_init=torch_bias_init(size**2 * images.shape[-1]),
    dtype=module.dtype,
    name='patches',
  )(images.astype(module.dtype))
  x = x.reshape(x.shape[0], -1, module.width)
  cls = module.param('cls', normal_init, (module.width,))[None, None]
  cls = jnp.broadcast_to(
    cls.astype(module.dtype), (x.shape[0], 1, module.width)
  )
  x = jnp.concatenate([cls, x], axis=1)
  positions = module.param('positions', normal_init, x.shape[1:])
  return x + positions[None].astype(module.dtype)


def sides_of(size: int | tuple[int, int]) -> tuple[int, int]:
  """Height and width of a size: the side of a square, or both."""
  return (size, size) if isinstance(size, int) else size


def tied_logits(
  hidden: jax.Array, words: jax.Array, bias: jax.Array, codebook_size: int
) -> jax.Array:
  """Returns logits of a head that shares the embedding's matrix.

  The head reads the embedding and does not train it. The mask token's column,
  which the original computes and cuts off, is not computed.

  Args:
    hidden: float[B, N, D].
    words: float32[K + 1, D], the embedding.
    bias: float32[K + 1].
    codebook_size: K.

  Returns:
    float32[B, N, K]; bfloat16 on a TPU, of a `hidden` in bfloat16.
  """
  words = jax.lax.stop_gradient(words[:codebook_size])
  logits = jnp.einsum(
    'bnd,kd->bnk',
    hidden,
    words.astype(hidden.dtype),
  )
  # Memory holds them in the type of `hidden`.
  logits = logits.astype(jnp.float32) + bias[None, None, :codebook_size]
  if hidden.dtype == jnp.bfloat16 and sharding.platform() == 'tpu':
    # Its compiler would keep the sums in float32, twice the bytes; and if they
    # were float32 again here, those of both passes before they are parted.
    logits = jax.lax.optimization_barrier(logits.astype(hidden.dtype))
  return logits


def check_heads(num_heads: int, width: int) -> None:
  """Raises UserError unless attention heads divide a width."""
  if width % num_heads:
    raise UserError(f'num_heads={num_heads} does not divide the width {width}')


def check_condition(
  name: str, num_classes: int | None, text_width: int | None
) -> None:
  """Raises UserError unless a network has one kind of condition."""
  if (num_classes is None) == (text_width is None):
    raise UserError(
      f'the {name} takes exactly one of num_classes and text_width, given '
      f'num_classes={num_classes}, text_width={text_width}'
    )
