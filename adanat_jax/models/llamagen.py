"""LlamaGen's VQ tokenizer: FoundationVision/LlamaGen `vq_model.py`.

Halton-MaskGIT's tokens are its. It differs from `models.vqgan` in that it
attends at the lowest level, has one residual block more in each level of the
decoder, shortcuts from a block's input, narrow codes of length 1, and images in
[-1, 1] inside. Shape letters are those of `models.vqgan`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.models import layers, vqgan

_EPSILON = 1e-6
_SHORTEST = 1e-12


def _conv(
  width: int, size: int, dtype: layers.Dtype, **options: Any
) -> nn.Conv:
  return nn.Conv(width, (size, size), dtype=dtype, **options)


class _Block(nn.Module):
  """Two normalised 3x3 convolutions beside a shortcut."""

  width: int
  num_groups: int
  dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float[B, h, w, C] to float[B, h, w, width]."""
    conv = functools.partial(_conv, self.width, dtype=self.dtype)
    norm = functools.partial(vqgan.GroupNorm, self.num_groups, self.dtype)
    hidden = conv(3, name='conv1')(norm(name='norm1')(x))
    hidden = conv(3, name='conv2')(norm(name='norm2')(hidden))
    if x.shape[-1] != self.width:
      x = conv(1, name='shortcut')(x)
    return x + hidden


class _Attention(nn.Module):
  """Attention among all positions, of one head."""

  num_groups: int
  dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float[B, h, w, C] to the same shape."""
    conv = functools.partial(_conv, x.shape[-1], 1, self.dtype)
    norm = nn.GroupNorm(
      self.num_groups,
      epsilon=_EPSILON,
      dtype=self.dtype,
      use_fast_variance=False,
      name='norm',
    )
    hidden = norm(x)
    parts = (conv(name=name)(hidden) for name in ('query', 'key', 'value'))
    one_head = (p.reshape(len(x), -1, 1, x.shape[-1]) for p in parts)
    attended = jax.nn.dot_product_attention(*one_head)
    return x + conv(name='out')(attended.reshape(x.shape))


class LlamaGenHalf(nn.Module):
  """What the encoder and the decoder share: fields and ways to build."""

  code_width: int
  base_width: int
  width_multipliers: tuple[int, ...]
  num_res_blocks: int
  num_groups: int
  image_channels: int
  latent_width: int
  dtype: layers.Dtype

  def _block(self, width: int, name: str) -> _Block:
    return _Block(width, self.num_groups, self.dtype, name=name)

  def _attention(self, name: str) -> _Attention:
    return _Attention(self.num_groups, self.dtype, name=name)

  def _stage(
    self, x: jax.Array, index: int, level: int, count: int
  ) -> jax.Array:
    """The blocks of a level, the lowest one with attention."""
    width = self.base_width * self.width_multipliers[level]
    for i in range(count):
      x = self._block(width, f'stage_{index}_block_{i}')(x)
      if level == len(self.width_multipliers) - 1:
        x = self._attention(f'stage_{index}_attention_{i}')(x)
    return x

  def _mid(self, x: jax.Array) -> jax.Array:
    x = self._block(x.shape[-1], 'mid_block_0')(x)
    x = self._attention('mid_attention')(x)
    return self._block(x.shape[-1], 'mid_block_1')(x)

  def _out(self, x: jax.Array, width: int) -> jax.Array:
    x = vqgan.GroupNorm(self.num_groups, self.dtype, name='norm_out')(x)
    return _conv(width, 3, self.dtype, name='conv_out')(x)


class LlamaGenEncoder(LlamaGenHalf):
  """Images to a grid of vectors."""

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps images float[B, H, W, channels] in [0, 1] to float[B, h, w, C]."""
    levels = len(self.width_multipliers)
    x = _conv(self.base_width, 3, self.dtype, name='conv_in')(2 * images - 1)
    for level in range(levels):
      x = self._stage(x, level, level, self.num_res_blocks)
      if level < levels - 1:
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        name = f'stage_{level}_resample'
        halve = functools.partial(_conv, strides=2, padding='VALID', name=name)
        x = halve(x.shape[-1], 3, self.dtype)(x)
    x = self._out(self._mid(x), self.latent_width)
    return _conv(self.code_width, 1, self.dtype, name='code')(x)


class LlamaGenDecoder(LlamaGenHalf):
  """A grid of vectors to images."""

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Maps vectors float[B, h, w, C] to images about in [0, 1]."""
    levels = len(self.width_multipliers)
    x = _conv(self.latent_width, 1, self.dtype, name='code')(z)
    width = self.base_width * self.width_multipliers[-1]
    x = self._mid(_conv(width, 3, self.dtype, name='conv_in')(x))
    for index, level in enumerate(reversed(range(levels))):
      x = self._stage(x, index, level, self.num_res_blocks + 1)
      if level:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        name = f'stage_{index}_resample'
        x = _conv(x.shape[-1], 3, self.dtype, name=name)(x)
    return (self._out(x, self.image_channels) + 1) / 2


class LlamaGenVQ(vqgan.VQGAN):
  """The tokenizer, with the methods of `VQGAN`. It is not trained here."""

  latent_width: int = 256  # channels between a half and the codes

  def setup(self) -> None:
    sizes = *self._sizes, self.latent_width
    self.encoder = LlamaGenEncoder(*sizes, jnp.float32)
    self.decoder = LlamaGenDecoder(*sizes, self.dtype)
    codes = self.param(
      'codebook', layers.normal_init, (self.codebook_size, self.code_width)
    )
    # Codes of length 1: the nearest one is the same however long a vector is.
    lengths = jnp.linalg.norm(codes, axis=-1, keepdims=True)
    self.codebook = codes / jnp.maximum(lengths, _SHORTEST)
