"""The VQGAN tokenizer: images to a grid of codes and back.

The architecture of the tokenizer that AdaNAT uses (LeapLabTHU/AdaNAT
`taming/models/vqgan.py`, published as MAGE's `vqgan_jax_strongaug.ckpt`),
which is that of Google's MaskGIT: no attention, average pooling, nearest
neighbour up-sampling. It is fully convolutional: any image whose sides are
multiples of 2 ** (levels - 1) will do.

Shape letters: `B` samples, `H`, `W` an image, `h`, `w` the grid of codes, `N`
= h * w, `K` codes, `C` width of a code.
"""

import functools
import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError
from adanat_jax.models import layers

_EPSILON = 1e-6

# As Google's MaskGIT: uniform within +-sqrt(3 / K).
_codebook_init = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'uniform', in_axis=0, out_axis=1
)


class GroupNorm(nn.Module):
  """Group normalisation, then swish; statistics in float32."""

  num_groups: int
  dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float[B, h, w, C] to the same shape."""
    if x.shape[-1] % self.num_groups:
      raise UserError(
        f'num_groups={self.num_groups} of the VQGAN does not divide a '
        f'width of {x.shape[-1]}; choose one that divides every width'
      )
    norm = nn.GroupNorm(
      self.num_groups,
      epsilon=_EPSILON,
      dtype=self.dtype,
      use_fast_variance=False,
      name='norm',
    )
    return nn.swish(norm(x))


class ResidualBlock(nn.Module):
  """Two normalised 3x3 convolutions and a shortcut.

  Where the width changes, the published networks add a 1x1 convolution of
  the block's own output, not of its input: the input is lost there. The
  published weights were trained so.
  """

  width: int  # channels of the result
  num_groups: int  # groups of the normalisations
  dtype: layers.Dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float[B, h, w, C] to float[B, h, w, width]."""
    conv = functools.partial(
      nn.Conv,
      self.width,
      use_bias=False,
      kernel_init=layers.torch_conv_init,
      dtype=self.dtype,
    )
    norm = functools.partial(GroupNorm, self.num_groups, self.dtype)
    hidden = conv((3, 3), name='conv1')(norm(name='norm1')(x))
    hidden = conv((3, 3), name='conv2')(norm(name='norm2')(hidden))
    if x.shape[-1] != self.width:
      return hidden + conv((1, 1), name='shortcut')(hidden)
    return hidden + x


class _Half(nn.Module):
  """What the encoder and the decoder share: fields and ways to build."""

  code_width: int
  base_width: int
  width_multipliers: tuple[int, ...]
  num_res_blocks: int
  num_groups: int
  image_channels: int
  dtype: layers.Dtype

  def _width(self, level: int) -> int:
    return self.base_width * self.width_multipliers[level]

  def _blocks(
    self, x: jax.Array, width: int, count: int, name: str
  ) -> jax.Array:
    for i in range(count):
      x = ResidualBlock(
        width, self.num_groups, self.dtype, name=f'{name}_block_{i}'
      )(x)
    return x

  def _conv(
    self, x: jax.Array, width: int, size: int, name: str, bias: bool = True
  ) -> jax.Array:
    return nn.Conv(
      width,
      (size, size),
      use_bias=bias,
      kernel_init=layers.torch_conv_init,
      bias_init=layers.torch_bias_init(size * size * x.shape[-1]),
      dtype=self.dtype,
      name=name,
    )(x)

  def _norm(self, x: jax.Array) -> jax.Array:
    return GroupNorm(self.num_groups, self.dtype, name='norm_out')(x)


class ImageEncoder(_Half):
  """Images to a grid of vectors."""

  conv_downsample: bool = False

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps `images` float[B, H, W, image_channels] to float[B, h, w, C]."""
    levels = len(self.width_multipliers)
    x = self._conv(
      images.astype(self.dtype), self.base_width, 3, 'conv_in', bias=False
    )
    for level in range(levels):
      x = self._blocks(
        x, self._width(level), self.num_res_blocks, f'down_{level}'
      )
      if level < levels - 1 and self.conv_downsample:
        x = nn.Conv(
          self._width(level),
          (4, 4),
          strides=(2, 2),
          kernel_init=layers.torch_conv_init,
          bias_init=layers.torch_bias_init(16 * x.shape[-1]),
          dtype=self.dtype,
          name=f'downsample_{level}',
        )(x)
      elif level < levels - 1:
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
    x = self._blocks(x, self._width(levels - 1), 2, 'mid')
    return self._conv(self._norm(x), self.code_width, 1, 'conv_out')


class ImageDecoder(_Half):
  """A grid of vectors to images."""

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Maps `z` float[B, h, w, C] to float[B, H, W, image_channels]."""
    levels = len(self.width_multipliers)
    x = self._conv(z.astype(self.dtype), self._width(levels - 1), 3, 'conv_in')
    x = self._blocks(x, self._width(levels - 1), 2, 'mid')
    for level in reversed(range(levels)):
      x = self._blocks(
        x, self._width(level), self.num_res_blocks, f'up_{level}'
      )
      if level:
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        x = self._conv(x, self._width(level), 3, f'upsample_{level}')
    return self._conv(self._norm(x), self.image_channels, 3, 'conv_out')


class VQGAN(nn.Module):
  """The tokenizer. The straight-through gradient is the trainer's business."""

  codebook_size: int  # number of codes K
  code_width: int  # width C of a code
  base_width: int = 128  # times the first multiplier: channels at full size
  # One per level; between two levels the sides are halved.
  width_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  num_res_blocks: int = 2  # residual blocks per level
  num_groups: int = 32  # groups of the normalisations; divides every width
  image_channels: int = 3
  # Halve the sides with 4x4 convolutions, as some tokenizers of Google's
  # MaskGIT, instead of average pooling.
  conv_downsample: bool = False
  # The decoder's compute type. Parameters and images are float32, and so is the
  # encoder: tokens must not depend on where they were made.
  dtype: layers.Dtype = jnp.float32
  # Pixels of a batch from which on a CPU divides it, see `side_by_side`.
  divided_from: int = layers.MANY_PIXELS
  columns: int = 0  # of the token grid, if it is no square

  def setup(self):
    self.encoder = ImageEncoder(
      *self._sizes, jnp.float32, conv_downsample=self.conv_downsample
    )
    self.decoder = ImageDecoder(*self._sizes, self.dtype)
    self.codebook = self.param(
      'codebook', _codebook_init, (self.codebook_size, self.code_width)
    )

  @property
  def _sizes(self) -> tuple[Any, ...]:
    """What both halves are made of, the first fields of each."""
    return (
      self.code_width,
      self.base_width,
      tuple(self.width_multipliers),
      self.num_res_blocks,
      self.num_groups,
      self.image_channels,
    )

  @property
  def downsampling(self) -> int:
    """Side of the image patch that one code stands for."""
    return 2 ** (len(self.width_multipliers) - 1)

  def grid(self, num_tokens: int) -> tuple[int, int]:
    """Rows and columns of the N tokens of an image.

    Raises:
      UserError: if N are no such grid.
    """
    columns = self.columns or max(1, math.isqrt(num_tokens))
    rows = num_tokens // columns
    if rows * columns != num_tokens or not (self.columns or rows == columns):
      shape = f'lines of {columns} tokens' if self.columns else 'a square'
      raise UserError(f'{num_tokens} tokens are not {shape}')
    return rows, columns

  def encode(self, images: jax.Array) -> jax.Array:
    """Encodes images float[B, H, W, image_channels] in [0, 1].

    Returns the vectors before quantisation, float32[B, h, w, C].

    Raises:
      UserError: if the sides are no multiples of `downsampling`.
    """
    chex.assert_shape(images, (None, None, None, self.image_channels))
    height, width = images.shape[1:3]
    if height % self.downsampling or width % self.downsampling:
      raise UserError(
        f'images of {height}x{width} do not fit the tokenizer: both sides '
        f'must be multiples of {self.downsampling}'
      )
    encoding = layers.side_by_side(
      self.encoder, images, least=self.divided_from
    )
    return encoding.astype(jnp.float32)

  def quantize(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds the nearest codes of `z` float[B, h, w, C], by squared distance.

    Returns the codes' vectors, float32[B, h, w, C], and their ids, int32[B, h,
    w]. No gradient passes from the vectors to `z`.
    """
    # |z - e|^2 without |z|^2, which is the same for every code.
    lengths = jnp.sum(jnp.square(self.codebook), axis=-1)[None, None, None]
    products = jnp.einsum('bhwc,kc->bhwk', z, self.codebook)
    ids = jnp.argmin(lengths - 2.0 * products, axis=-1).astype(jnp.int32)
    return self._vectors(ids), ids

  def _vectors(self, ids: jax.Array) -> jax.Array:
    # asarray: converted weights are numpy's, which a tracer cannot index.
    return jnp.asarray(self.codebook)[ids]

  def tokenize(self, images: jax.Array) -> jax.Array:
    """Maps images float[B, H, W, channels] in [0, 1] to int32[B, N] codes."""
    _, ids = self.quantize(self.encode(images))
    return ids.reshape(ids.shape[0], -1)

  def decode(self, z: jax.Array) -> jax.Array:
    """Maps vectors float[B, h, w, C] to unclamped images float32."""
    images = layers.side_by_side(
      self.decoder, z, enlarged=self.downsampling, least=self.divided_from
    )
    return images.astype(jnp.float32)

  def decode_tokens(self, tokens: jax.Array) -> jax.Array:
    """Decodes codes int32[B, N] of a grid, row-major, without masks.

    Returns images float32[B, H, W, channels] in [0, 1].
    """
    chex.assert_rank(tokens, 2)
    vectors = self._vectors(tokens.reshape(-1, *self.grid(tokens.shape[-1])))
    return jnp.clip(self.decode(vectors), 0.0, 1.0)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Reconstructs images float[B, H, W, channels]; touches every parameter."""
    vectors, _ = self.quantize(self.encode(images))
    return self.decode(vectors)
