"""The projected discriminator: trained heads on a frozen feature network.

AdaNAT's reward model, as in StyleGAN-T (LeapLabTHU/AdaNAT
`libs/discriminator.py`): every hooked layer of a frozen vision transformer has
its own head, which gives one logit per patch; the condition enters by an inner
product with the last layer. The heads see local batch statistics and spectrally
normalised weights.

Spectral normalisation keeps two vectors `u`, `v` per weight in the collection
`spectral`. They advance by one power iteration per forward with `train=True` if
that collection is mutable; otherwise the stored ones serve. An update in
micro-batches leaves the collection immutable and calls `advance_spectral` once
per pass over the batch.

Shape letters: `B` samples, `P` patches, `D` width of the features, `E` width of
the condition.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.models import layers

# Consecutive samples that share statistics.
GROUP_SIZE = 8
_NORM_EPSILON = 1e-5
_SPECTRAL_EPSILON = 1e-12
_SLOPE = 0.2


def _unit(x: jax.Array) -> jax.Array:
  return x / jnp.maximum(jnp.linalg.norm(x), _SPECTRAL_EPSILON)


def _matrix(kernel: jax.Array) -> jax.Array:
  """Flattens a kernel [k, in, out] to [out, in * k], the order of torch."""
  return kernel.transpose(2, 1, 0).reshape(kernel.shape[2], -1)


def _power_iteration(
  kernel: jax.Array, u: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns the next (u, v) for `kernel` float32[k, in, out]."""
  matrix = jax.lax.stop_gradient(_matrix(kernel))
  v = _unit(matrix.T @ u)
  return _unit(matrix @ v), v


def advance_spectral(
  params: Mapping[str, Any], spectral: Mapping[str, Any]
) -> dict[str, Any]:
  """Advances every pair of spectral vectors by one power iteration.

  Takes the parameters and the `spectral` collection of `DiscriminatorHeads`, or
  of a part of it, and returns the next collection.
  """
  if 'u' in spectral:
    u, v = _power_iteration(params['kernel'], spectral['u'])
    return {'u': u, 'v': v}
  return {
    name: advance_spectral(params[name], inner)
    for name, inner in spectral.items()
  }


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves `x` float[B, P, D] with `kernel` [k, D, E] to [B, P - k + 1, E].

  Its gradients are convolutions of the same layout. Those that JAX derives have
  another one, which XLA on CPUs brings into this one outside of loops only:
  within a loop they take fifty times as long (docs/benchmarks.md).
  """
  return jax.lax.conv_general_dilated(
    x, kernel, (1,), 'VALID', dimension_numbers=('NWC', 'WIO', 'NWC')
  )


def _convolve_forward(
  x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return convolve(x, kernel), (x, kernel)


def _convolve_backward(
  inputs: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = inputs
  margin = len(kernel) - 1
  padded = jnp.pad(gradient, ((0, 0), (margin, margin), (0, 0)))
  of_kernel = convolve(x.transpose(2, 1, 0), gradient.transpose(1, 0, 2))
  return (
    convolve(padded, kernel[::-1].swapaxes(1, 2)),
    of_kernel.transpose(1, 0, 2),
  )


convolve.defvjp(_convolve_forward, _convolve_backward)


class SpectralConv(nn.Module):
  """Circular 1-d convolution whose kernel is divided by its largest gain."""

  width: int  # channels of the result
  kernel_size: int  # odd length of the kernel

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """Convolves `x` float32[B, P, D] to float32[B, P, width]."""
    fan_in = self.kernel_size * x.shape[-1]
    shape = (self.kernel_size, x.shape[-1], self.width)
    kernel = self.param('kernel', layers.torch_conv_init, shape)
    bias = self.param('bias', layers.torch_bias_init(fan_in), (self.width,))

    def start(size: int):
      return lambda: _unit(jax.random.normal(self.make_rng('params'), (size,)))

    u = self.variable('spectral', 'u', start(self.width))
    v = self.variable('spectral', 'v', start(fan_in))
    mutable = self.is_mutable_collection('spectral')
    if train and mutable and not self.is_initializing():
      u.value, v.value = _power_iteration(kernel, u.value)
    # Gradients pass through the gain, but not through the two vectors.
    gain = u.value @ _matrix(kernel) @ v.value
    pad = self.kernel_size // 2
    x = jnp.pad(x, ((0, 0), (pad, pad), (0, 0)), mode='wrap')
    return convolve(x, kernel / gain) + bias[None, None]


class LocalBatchNorm(nn.Module):
  """Batch normalisation within groups of consecutive samples, no memory.

  A batch of B is cut into ceil(B / 8) groups of one size; a sample's result
  depends on the others of its group, in training and out of it.
  """

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises `x` float32[B, P, D]."""
    batch, num_patches, width = x.shape
    groups = -(-batch // GROUP_SIZE)
    if batch % groups:
      raise UserError(
        f'a batch of {batch} cannot be cut into {groups} groups of one '
        f'size for the discriminator; use a multiple of {GROUP_SIZE}'
      )
    x = x.reshape(groups, -1, width)
    centred = x - jnp.mean(x, axis=1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=1, keepdims=True)
    x = centred * jax.lax.rsqrt(variance + _NORM_EPSILON)
    scale = self.param('scale', nn.initializers.ones, (width,))
    bias = self.param('bias', nn.initializers.zeros, (width,))
    x = x * scale[None, None] + bias[None, None]
    return x.reshape(batch, num_patches, width)


class DiscriminatorHead(nn.Module):
  """One head: a convolution, a residual one, a projection."""

  # Width of the space in which patches meet the condition.
  condition_map_width: int = 64
  kernel_size: int = 9

  @nn.compact
  def __call__(
    self, x: jax.Array, condition: jax.Array | None, train: bool
  ) -> jax.Array:
    """Judges patches: float32[B, P] logits of features float32[B, P, D].

    The condition is float32[B, E], or None for an unconditional head; `train`
    says whether the spectral vectors may advance.
    """
    width = x.shape[-1]

    def stage(x: jax.Array, size: int, index: int) -> jax.Array:
      x = SpectralConv(width, size, name=f'conv{index}')(x, train)
      return nn.leaky_relu(LocalBatchNorm(name=f'norm{index}')(x), _SLOPE)

    x = stage(x, 1, 1)
    x = (stage(x, self.kernel_size, 2) + x) / math.sqrt(2.0)
    if condition is None:
      return SpectralConv(1, 1, name='out')(x, train)[..., 0]
    size = self.condition_map_width
    x = SpectralConv(size, 1, name='out')(x, train)
    mapped = EqualizedDense(size, name='condition')(condition)
    return jnp.einsum('bpe,be->bp', x, mapped) / math.sqrt(size)


class EqualizedDense(nn.Module):
  """StyleGAN's linear layer: the weights are scaled when used, not at start."""

  width: int  # width of the result
  learning_rate_multiplier: float = 1.0  # how much slower the layer learns

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float32[B, D] to float32[B, width]."""
    multiplier = self.learning_rate_multiplier
    init = nn.initializers.normal(1.0 / multiplier)
    kernel = self.param('kernel', init, (x.shape[-1], self.width))
    bias = self.param('bias', nn.initializers.zeros, (self.width,))
    kernel = kernel * (multiplier / math.sqrt(x.shape[-1]))
    return x @ kernel + (bias * multiplier)[None]


class MappingNetwork(nn.Module):
  """StyleGAN's mapping network of a class vector."""

  width: int = 512  # width of all layers
  num_layers: int = 8  # layers after the embedding
  learning_rate_multiplier: float = 0.01  # of these layers

  @nn.compact
  def __call__(self, classes: jax.Array) -> jax.Array:
    """Maps one-hot or soft classes float[B, num_classes] to [B, width]."""
    x = EqualizedDense(self.width, name='embed')(classes.astype(jnp.float32))
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(mean_square + 1e-8)
    for i in range(self.num_layers):
      x = EqualizedDense(
        self.width, self.learning_rate_multiplier, name=f'fc_{i}'
      )(x)
      x = nn.leaky_relu(x, _SLOPE) * math.sqrt(2.0)
    return x


class DiscriminatorHeads(nn.Module):
  """One head per feature layer; the class mapping network, if any."""

  # Number of classes for conditions given as ids; None for conditions given as
  # embeddings, or for none.
  num_classes: int | None = None
  mapping_width: int = 512  # of the mapping network; 512 is published
  mapping_layers: int = 8  # its layers
  condition_map_width: int = 64  # of the heads
  kernel_size: int = 9  # of the heads' residual convolution

  @nn.compact
  def __call__(
    self,
    features: Sequence[jax.Array],
    condition: jax.Array | None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Judges images by their features.

    Args:
      features: float[B, P, D] each, one per head (`ViTOutput.features`).
      condition: int32[B] class ids, float[B, E] embeddings (brought to
        length 1 here), or None.
      train: whether the spectral vectors may advance.

    Returns:
      float32[B, num_heads * P] logits, head by head.

    Raises:
      UserError: if the batch cannot be cut into equal groups of at most 8.
    """
    if self.num_classes is not None:
      chex.assert_rank(condition, 1)
      sizes = self.mapping_width, self.mapping_layers
      mapping = MappingNetwork(*sizes, name='mapping')
      condition = mapping(jax.nn.one_hot(condition, self.num_classes))
    elif condition is not None:
      condition = jax.vmap(_unit)(condition.astype(jnp.float32))
    logits = [
      DiscriminatorHead(
        self.condition_map_width, self.kernel_size, name=f'heads_{i}'
      )(feature.astype(jnp.float32), condition, train)
      for i, feature in enumerate(features)
    ]
    return jnp.concatenate(logits, axis=-1)


def _area_weights(size: int, resolution: int) -> np.ndarray:
  """Returns float32[resolution, size]: which pixels each output averages."""
  weights = np.zeros((resolution, size), np.float32)
  for i in range(resolution):
    start, stop = i * size // resolution, -(-(i + 1) * size // resolution)
    weights[i, start:stop] = 1.0 / (stop - start)
  return weights


def prepare_images(
  images: jax.Array,
  resolution: int | tuple[int, int],
  mean: Sequence[float],
  std: Sequence[float],
  crop: jax.Array | tuple[int, int] | None = None,
) -> jax.Array:
  """Brings images to what the feature network reads.

  Args:
    images: float[B, H, W, C] in [0, 1].
    resolution: side of a square result, or height and width.
    mean: C numbers to subtract.
    std: C numbers to divide by.
    crop: int32[2], top and left of what is cut out of all images; None to
      average whole images down (each output pixel is the mean of the pixels it
      touches). The original crops with probability 1/2 when the images are
      larger, in training and out of it.

  Returns:
    float32[B, *resolution, C].

  Raises:
    UserError: if a crop does not fit into the images.
  """
  images = images.astype(jnp.float32)
  batch, height, width, channels = images.shape
  sides = layers.sides_of(resolution)
  if crop is not None:
    if height < sides[0] or width < sides[1]:
      raise UserError(
        f'cannot crop {sides[0]}x{sides[1]} from images of {height}x{width}'
      )
    shape = (batch, *sides, channels)
    images = jax.lax.dynamic_slice(images, (0, crop[0], crop[1], 0), shape)
  elif (height, width) != sides:
    rows = _area_weights(height, sides[0])
    columns = _area_weights(width, sides[1])
    images = jnp.einsum('ih,bhwc,jw->bijc', rows, images, columns)
  shift = jnp.asarray(mean, jnp.float32)[None, None, None]
  scale = jnp.asarray(std, jnp.float32)[None, None, None]
  return (images - shift) / scale
