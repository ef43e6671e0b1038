"""Inception-v3 as the Frechet distance uses it, for inference only.

The network of TensorFlow's 2015-12-05 release, whose weights
mseitzer/pytorch-fid publishes for torch and which LeapLabTHU/AdaNAT
(torch_fidelity/feature_extractor_inceptionv3.py) evaluates with: 1008
outputs, average pools that do not count the padding, and a maximum pool in
the last block. Its normalisations are frozen: their statistics are parameters
like any other, and nothing here is ever trained.

Shape letters: `B` samples, `H`, `W` an image.
"""

from __future__ import annotations

import functools

import chex
from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.models import layers

_EPSILON = 1e-3
_SIDE = 299
_NUM_OUTPUTS = 1008

_SAME_POOL = ((1, 1), (1, 1))


@struct.dataclass
class InceptionFeatures:
  """Features and logits that the measures read, each float32."""

  pool1: jax.Array  # float32[B, 64]; mean after the first pool
  pool2: jax.Array  # float32[B, 192]; mean after the second pool
  mixed6: jax.Array  # float32[B, 768]; mean after the last 17 x 17 block
  pool3: jax.Array  # float32[B, 2048]; the features of the Frechet distance
  logits: jax.Array  # float32[B, 1008]; outputs of the classifier
  unbiased_logits: jax.Array  # float32[B, 1008]; for the Inception Score


class ConvNorm(nn.Module):
  """Convolution, frozen batch normalisation, rectifier."""

  width: int  # channels of the result
  size: tuple[int, int] = (1, 1)  # height and width of the kernel
  stride: int = 1  # in both directions
  valid: bool = False  # no padding; otherwise the size is kept (at stride 1)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float32[B, h, w, C] to float32[B, h', w', width]."""
    shape = (*self.size, x.shape[-1], self.width)
    kernel = self.param('kernel', layers.torch_conv_init, shape)
    padding = [(0, 0) if self.valid else (n // 2, n // 2) for n in self.size]
    strides, layout = (self.stride, self.stride), ('NHWC', 'HWIO', 'NHWC')
    x = jax.lax.conv_general_dilated(
      x, kernel, strides, padding, dimension_numbers=layout
    )
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    mean = self.param('mean', zeros, (self.width,))
    variance = self.param('variance', ones, (self.width,))
    scale = self.param('scale', ones, (self.width,))
    bias = self.param('bias', zeros, (self.width,))
    scale = scale * jax.lax.rsqrt(variance + _EPSILON)
    shift = bias - mean * scale
    return nn.relu(x * scale[None, None, None] + shift[None, None, None])


def prepare(images: jax.Array) -> jax.Array:
  """Resizes float[B, H, W, 3] in [0, 1] to float32[B, 299, 299, 3] in [-1, 1].

  Bilinear between pixel centres and without a filter against aliasing, as the
  original; TensorFlow's own resize and Pillow's give other distances.
  """
  shape = (images.shape[0], _SIDE, _SIDE, images.shape[-1])
  images = images.astype(jnp.float32)
  return 2.0 * jax.image.resize(images, shape, 'linear', antialias=False) - 1.0


def _average(x: jax.Array) -> jax.Array:
  """3x3 means over what lies inside the image."""
  return nn.avg_pool(x, (3, 3), padding=_SAME_POOL, count_include_pad=False)


def _halve(x: jax.Array) -> jax.Array:
  """3x3 maxima at stride 2, without padding."""
  return nn.max_pool(x, (3, 3), strides=(2, 2))


def _chain(x: jax.Array, *convs: ConvNorm) -> jax.Array:
  for conv in convs:
    x = conv(x)
  return x


def _join(*branches: jax.Array) -> jax.Array:
  return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
  """35 x 35: 1x1, 5x5, twice 3x3, and a pool of `pool_width` channels."""

  pool_width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float32[B, 35, 35, C] to float32[B, 35, 35, 224 + pool_width]."""
    return _join(
      ConvNorm(64, name='branch1x1')(x),
      _chain(
        x,
        ConvNorm(48, name='branch5x5_1'),
        ConvNorm(64, (5, 5), name='branch5x5_2'),
      ),
      _chain(
        x,
        ConvNorm(64, name='branch3x3dbl_1'),
        ConvNorm(96, (3, 3), name='branch3x3dbl_2'),
        ConvNorm(96, (3, 3), name='branch3x3dbl_3'),
      ),
      ConvNorm(self.pool_width, name='branch_pool')(_average(x)),
    )


class BlockB(nn.Module):
  """35 x 35 to 17 x 17."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float32[B, 35, 35, 288] to float32[B, 17, 17, 768]."""
    return _join(
      ConvNorm(384, (3, 3), 2, True, name='branch3x3')(x),
      _chain(
        x,
        ConvNorm(64, name='branch3x3dbl_1'),
        ConvNorm(96, (3, 3), name='branch3x3dbl_2'),
        ConvNorm(96, (3, 3), 2, True, name='branch3x3dbl_3'),
      ),
      _halve(x),
    )


class BlockC(nn.Module):
  """17 x 17: convolutions of seven by one, `width` channels inside."""

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float32[B, 17, 17, 768] to the same shape."""
    wide, tall, width = (1, 7), (7, 1), self.width
    return _join(
      ConvNorm(192, name='branch1x1')(x),
      _chain(
        x,
        ConvNorm(width, name='branch7x7_1'),
        ConvNorm(width, wide, name='branch7x7_2'),
        ConvNorm(192, tall, name='branch7x7_3'),
      ),
      _chain(
        x,
        ConvNorm(width, name='branch7x7dbl_1'),
        ConvNorm(width, tall, name='branch7x7dbl_2'),
        ConvNorm(width, wide, name='branch7x7dbl_3'),
        ConvNorm(width, tall, name='branch7x7dbl_4'),
        ConvNorm(192, wide, name='branch7x7dbl_5'),
      ),
      ConvNorm(192, name='branch_pool')(_average(x)),
    )


class BlockD(nn.Module):
  """17 x 17 to 8 x 8."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float32[B, 17, 17, 768] to float32[B, 8, 8, 1280]."""
    return _join(
      _chain(
        x,
        ConvNorm(192, name='branch3x3_1'),
        ConvNorm(320, (3, 3), 2, True, name='branch3x3_2'),
      ),
      _chain(
        x,
        ConvNorm(192, name='branch7x7x3_1'),
        ConvNorm(192, (1, 7), name='branch7x7x3_2'),
        ConvNorm(192, (7, 1), name='branch7x7x3_3'),
        ConvNorm(192, (3, 3), 2, True, name='branch7x7x3_4'),
      ),
      _halve(x),
    )


class BlockE(nn.Module):
  """8 x 8; the last one of the network pools by maximum."""

  max_pool: bool  # whether the pool takes maxima instead of means

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps float32[B, 8, 8, C] to float32[B, 8, 8, 2048]."""

    def split(x: jax.Array, name: str) -> jax.Array:
      return _join(
        ConvNorm(384, (1, 3), name=f'{name}a')(x),
        ConvNorm(384, (3, 1), name=f'{name}b')(x),
      )

    if self.max_pool:
      pooled = nn.max_pool(x, (3, 3), padding=_SAME_POOL)
    else:
      pooled = _average(x)
    double = _chain(
      x,
      ConvNorm(448, name='branch3x3dbl_1'),
      ConvNorm(384, (3, 3), name='branch3x3dbl_2'),
    )
    return _join(
      ConvNorm(320, name='branch1x1')(x),
      split(ConvNorm(384, name='branch3x3_1')(x), 'branch3x3_2'),
      split(double, 'branch3x3dbl_3'),
      ConvNorm(192, name='branch_pool')(pooled),
    )


class InceptionV3(nn.Module):
  """The network; its input may have any size and is resized to 299 x 299."""

  @nn.compact
  def __call__(self, images: jax.Array) -> InceptionFeatures:
    """Measures images float32[B, H, W, 3] in [0, 1], not rounded to bytes.

    Convolutions run at the highest precision: the statistics of the Frechet
    distance are sensitive to rounding.
    """
    chex.assert_shape(images, (None, None, None, 3))
    with jax.default_matmul_precision('highest'):
      return self._measure(images)

  def _measure(self, images: jax.Array) -> InceptionFeatures:
    mean = functools.partial(jnp.mean, axis=(1, 2))
    x = prepare(images)
    x = ConvNorm(32, (3, 3), 2, True, name='conv2d_1a_3x3')(x)
    x = ConvNorm(32, (3, 3), 1, True, name='conv2d_2a_3x3')(x)
    x = ConvNorm(64, (3, 3), name='conv2d_2b_3x3')(x)
    x = _halve(x)
    pool1 = mean(x)
    x = ConvNorm(80, name='conv2d_3b_1x1')(x)
    x = ConvNorm(192, (3, 3), 1, True, name='conv2d_4a_3x3')(x)
    x = _halve(x)
    pool2 = mean(x)
    x = BlockA(32, name='mixed_5b')(x)
    x = BlockA(64, name='mixed_5c')(x)
    x = BlockA(64, name='mixed_5d')(x)
    x = BlockB(name='mixed_6a')(x)
    x = BlockC(128, name='mixed_6b')(x)
    x = BlockC(160, name='mixed_6c')(x)
    x = BlockC(160, name='mixed_6d')(x)
    x = BlockC(192, name='mixed_6e')(x)
    mixed6 = mean(x)
    x = BlockD(name='mixed_7a')(x)
    x = BlockE(False, name='mixed_7b')(x)
    x = BlockE(True, name='mixed_7c')(x)
    pool3 = mean(x)
    shape = (pool3.shape[-1], _NUM_OUTPUTS)
    kernel = self.param('kernel', layers.normal_init, shape)
    bias = self.param('bias', nn.initializers.zeros, (_NUM_OUTPUTS,))
    unbiased = pool3 @ kernel
    logits = unbiased + bias[None]
    return InceptionFeatures(pool1, pool2, mixed6, pool3, logits, unbiased)
