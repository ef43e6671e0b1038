"""The image tower of CLIP: how well an image fits its caption.

Radford et al. 2021 (arXiv 2103.00020). An image and a text lie in one space,
and the CLIP score is the cosine between them.

Shape letters: `B` samples, `S` side of an image, `D` width, `P` joint space.
"""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError
from adanat_jax.models import clip, layers

_EPSILON = 1e-5

# What the published weights expect their images to be normalised with.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def prepare(images: jax.Array, side: int) -> jax.Array:
  """Resizes and normalises square images, as CLIP's own preprocessing does.

  Pillow's bicubic kernel with its filter against aliasing, along the rows and
  then along the columns. What overshoots is clipped after each, as bytes do;
  they are not rounded.

  Args:
    images: float[B, H, H, 3] in [0, 1].
    side: S, that the tower reads.

  Returns:
    float32[B, S, S, 3].
  """
  count, height = images.shape[:2]
  images = images.astype(jnp.float32)
  for shape in ((count, height, side, 3), (count, side, side, 3)):
    images = jax.image.resize(images, shape, 'cubic').clip(0.0, 1.0)
  mean, std = (jnp.asarray(x)[None, None, None] for x in (_MEAN, _STD))
  return (images - mean) / std


class CLIPImage(nn.Module):
  """The tower.

  Attributes:
    image_size: S, side of the images that it reads.
    patch_size: side of a patch; divides `image_size`.
    width: width of the trunk.
    depth: number of layers.
    num_heads: number of attention heads.
    mlp_width: hidden width of the MLPs.
    projection_width: width of the space that texts and images share.
    activation: as of `clip.CLIPText`.
    dtype: compute type; parameters and results are float32.
  """

  image_size: int
  patch_size: int
  width: int
  depth: int
  num_heads: int
  mlp_width: int
  projection_width: int
  activation: str
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Places images in the joint space.

    Args:
      images: float32[B, S, S, 3] from `prepare`.

    Returns:
      float32[B, P], not normalised.

    Raises:
      UserError: if the fields do not fit together.
    """
    if self.image_size % self.patch_size:
      raise UserError(
        f'patch_size={self.patch_size} of CLIP does not divide'
        f' image_size={self.image_size}'
      )
    side = self.image_size
    chex.assert_shape(images, (None, side, side, 3))
    patch = (self.patch_size, self.patch_size)
    x = nn.Conv(
      self.width,
      patch,
      strides=patch,
      padding='VALID',
      use_bias=False,
      kernel_init=layers.torch_conv_init,
      dtype=self.dtype,
      name='patches',
    )(images.astype(self.dtype))
    x = x.reshape(x.shape[0], -1, self.width)
    init = layers.normal_init
    first = self.param('cls', init, (self.width,))[None, None]
    first = jnp.broadcast_to(first, (x.shape[0], 1, self.width))
    x = jnp.concatenate([first.astype(self.dtype), x], axis=1)
    positions = self.param('positions', init, x.shape[1:])
    x = x + positions[None].astype(self.dtype)
    x = layers.LayerNorm(_EPSILON, dtype=self.dtype, name='norm_before')(x)
    for i in range(self.depth):
      x = clip.CLIPLayer(
        self.num_heads,
        self.mlp_width,
        self.activation,
        self.dtype,
        is_causal=False,
        name=f'layers_{i}',
      )(x)
    x = layers.LayerNorm(_EPSILON, name='norm')(x[:, 0])
    return nn.Dense(self.projection_width, use_bias=False, name='projection')(x)


# Both towers of published models, text first. 'quick_gelu' is OpenAI's.
TOWERS: dict[str, tuple[clip.CLIPText, CLIPImage]] = {
  'ViT-B/32': (
    clip.CLIPText(512, 12, 8, 2048, 512, 'quick_gelu'),
    CLIPImage(224, 32, 768, 12, 12, 3072, 512, 'quick_gelu'),
  ),
  'ViT-L/14': (
    clip.large(),
    CLIPImage(224, 14, 1024, 24, 16, 4096, 768, 'quick_gelu'),
  ),
  'ViT-bigG/14': (
    clip.big_g(),
    CLIPImage(224, 14, 1664, 48, 16, 8192, 1280, 'gelu'),
  ),
}
