"""The two towers of CLIP: Radford et al. 2021 (arXiv 2103.00020).

The text tower makes what a NAT and a discriminator read of a caption. AdaNAT on
CC3M conditions its NAT on the states of ViT-bigG/14's tower
(laion/CLIP-ViT-bigG-14-laion2B-39B-b160k) and its discriminator on the pooled
embedding; ViT-L/14 (openai/clip-vit-large-patch14) is our choice for COCO,
where the original's is not published.

The image tower places an image in the same space as a text; the CLIP score is
the cosine between them.

Shape letters: `B` samples, `L` positions, `S` side of an image, `D` width, `P`
joint space.
"""

from collections.abc import Callable, Mapping
import functools

import chex
from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError
from adanat_jax.models import attention, layers

_EPSILON = 1e-5

# What the published weights expect their images to be normalised with.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@struct.dataclass
class TextStates:
  """What the text tower returns."""

  # After the final norm, not projected: a NAT's condition.
  states: jax.Array  # float32[B, L, D]
  # The state at the end of the text, projected, not normalised; a discriminator
  # takes it divided by its length.
  pooled: jax.Array  # float32[B, P]


def quick_gelu(x: jax.Array) -> jax.Array:
  """OpenAI's approximation of the GELU."""
  return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': layers.gelu,
  'quick_gelu': quick_gelu,
}


class CLIPLayer(nn.Module):
  """Attention and MLP, each normalised before and added after."""

  num_heads: int
  mlp_width: int
  activation: str  # see `CLIPText`
  dtype: layers.Dtype
  is_causal: bool = True  # no position sees a later one: texts, not images

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `x` float[B, L, D] to the same shape."""
    dense = functools.partial(
      layers.Dense, dtype=self.dtype, kernel_init=layers.normal_init
    )
    norm = functools.partial(layers.LayerNorm, _EPSILON, dtype=self.dtype)
    width = x.shape[-1]
    hidden = norm(name='norm1')(x)
    query, key, value = (
      dense(width, name=name)(hidden).reshape(
        *x.shape[:2], self.num_heads, width // self.num_heads
      )
      for name in ('query', 'key', 'value')
    )
    hidden = attention.attend(query, key, value, is_causal=self.is_causal)
    x = x + dense(width, name='out')(hidden.reshape(x.shape))
    hidden = dense(self.mlp_width, name='fc1')(norm(name='norm2')(x))
    hidden = _ACTIVATIONS[self.activation](hidden)
    return x + dense(width, name='fc2')(hidden)


class CLIPText(nn.Module):
  """The text tower. Padding is not masked: it follows the end of the text."""

  width: int
  depth: int
  num_heads: int
  mlp_width: int
  projection_width: int  # width of the space that texts and images share
  # 'gelu' (exact; LAION's towers) or 'quick_gelu' (OpenAI's). The weights do
  # not tell which.
  activation: str
  vocabulary: int = 49408  # token ids; the end of the text is the last
  num_positions: int = 77  # longest text, in tokens
  # Compute type; parameters and results are float32.
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array) -> TextStates:
    """Reads captions `ids` int32[B, L], see `data.clip_tokens`.

    Raises:
      UserError: if the fields do not fit together.
    """
    if self.activation not in _ACTIVATIONS:
      raise UserError(
        f'activation={self.activation!r} of CLIP is not one of'
        f' {sorted(_ACTIVATIONS)}'
      )
    if self.width % self.num_heads:
      raise UserError(
        f'num_heads={self.num_heads} of CLIP does not divide the width'
        f' {self.width}'
      )
    chex.assert_rank(ids, 2)
    init = layers.normal_init
    words = self.param('words', init, (self.vocabulary, self.width))
    positions = self.param('positions', init, (self.num_positions, self.width))
    x = words[ids] + positions[None, : ids.shape[1]]
    x = x.astype(self.dtype)
    for i in range(self.depth):
      x = CLIPLayer(
        self.num_heads,
        self.mlp_width,
        self.activation,
        self.dtype,
        name=f'layers_{i}',
      )(x)
    states = layers.LayerNorm(_EPSILON, name='norm')(x)
    # The end of the text has the largest id; padding may repeat it after.
    end = jnp.argmax(ids, axis=1)
    pooled = jnp.take_along_axis(states, end[:, None, None], axis=1)[:, 0]
    width = self.projection_width
    projection = nn.Dense(width, use_bias=False, name='projection')
    return TextStates(states=states, pooled=projection(pooled))


def prepare_images(images: jax.Array, side: int) -> jax.Array:
  """Resizes and normalises images, as CLIP's own preprocessing does.

  Of images that are no squares the central square is taken; then Pillow's
  bicubic kernel with its filter against aliasing, along the rows and then along
  the columns. Values are clipped to [0, 1] after each, as Pillow's bytes are,
  but not rounded. Maps float[B, H, W, 3] in [0, 1] to float32[B, S, S, 3], S
  being the side that the tower reads.
  """
  count, height, width = images.shape[:3]
  short = min(height, width)
  top, left = (height - short) // 2, (width - short) // 2
  images = images[:, top : top + short, left : left + short]
  images = images.astype(jnp.float32)
  for shape in ((count, short, side, 3), (count, side, side, 3)):
    images = jax.image.resize(images, shape, 'cubic').clip(0.0, 1.0)
  mean, std = (jnp.asarray(x)[None, None, None] for x in (_MEAN, _STD))
  return (images - mean) / std


class CLIPImage(nn.Module):
  """The image tower."""

  image_size: int  # S, side of the images that it reads
  patch_size: int  # side of a patch; divides `image_size`
  width: int
  depth: int
  num_heads: int
  mlp_width: int
  projection_width: int  # width of the space that texts and images share
  activation: str  # as of `CLIPText`
  # Compute type; parameters and results are float32.
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """Places images float32[B, S, S, 3] from `prepare_images` in joint space.

    Returns float32[B, P], not normalised.

    Raises:
      UserError: if the fields do not fit together.
    """
    x = layers.embed_patches(self, images, use_bias=False)
    x = layers.LayerNorm(_EPSILON, dtype=self.dtype, name='norm_before')(x)
    for i in range(self.depth):
      x = CLIPLayer(
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
TOWERS: dict[str, tuple[CLIPText, CLIPImage]] = {
  'ViT-B/32': (
    CLIPText(512, 12, 8, 2048, 512, 'quick_gelu'),
    CLIPImage(224, 32, 768, 12, 12, 3072, 512, 'quick_gelu'),
  ),
  'ViT-L/14': (
    CLIPText(768, 12, 12, 3072, 768, 'quick_gelu'),
    CLIPImage(224, 14, 1024, 24, 16, 4096, 768, 'quick_gelu'),
  ),
  'ViT-bigG/14': (
    CLIPText(1280, 32, 20, 5120, 1280, 'gelu'),
    CLIPImage(224, 14, 1664, 48, 16, 8192, 1280, 'gelu'),
  ),
}
