"""A vision transformer whose inner features can be read out.

DINO's ViT-S/16 at `width=384, depth=12, num_heads=6, patch_size=16`; small
ones are trained from nothing for the digits. Layout: timm's ViT with a class
token; pre-norm blocks with biases, epsilon 1e-6.

Shape letters: `B` samples, `H`, `W`, `C` an image, `P` patches, `D` width.
"""

import chex
from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError
from adanat_jax.models import layers

_EPSILON = 1e-6

# What the published weights expect their images to be normalised with.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@struct.dataclass
class ViTOutput:
  """Results of one forward."""

  cls: jax.Array  # float32[B, D], class token after the final norm
  outputs: jax.Array | None  # float32[B, num_outputs], None without a head
  features: tuple[jax.Array, ...]  # float32[B, P, D] each, not normed


class VisionTransformer(nn.Module):
  """A vision transformer with hooks."""

  # Side of square images, or height and width.
  image_size: int | tuple[int, int]
  patch_size: int  # side of a patch; divides both sides
  width: int
  depth: int
  num_heads: int
  image_channels: int = 3
  num_outputs: int = 0  # width of the head on the class token; 0 for none
  # Blocks whose outputs are read, in this order. Without hooks no features are
  # returned.
  hooks: tuple[int, ...] = ()
  dtype: layers.Dtype = jnp.float32
  attention: str | None = 'xla'  # see attention.attend

  @nn.compact
  def __call__(self, images: jax.Array) -> ViTOutput:
    """Runs the network on normalised float[B, H, W, C] of `image_size`.

    The features are the outputs of the hooked blocks, then the input of the
    first block; the class token is added to each patch token, as the projected
    discriminator reads them.

    Raises:
      UserError: if the fields do not fit together.
    """
    if any(not 0 <= hook < self.depth for hook in self.hooks):
      raise UserError(f'hooks={self.hooks} must lie in [0, depth={self.depth})')
    chex.assert_axis_dimension(images, -1, self.image_channels)
    x = layers.embed_patches(self, images)
    embedded, outputs = x, []
    for i in range(self.depth):
      x = layers.TransformerBlock(
        self.num_heads,
        4,
        _EPSILON,
        True,
        self.dtype,
        self.attention,
        name=f'blocks_{i}',
      )(x)
      outputs.append(x)
    features = tuple(
      _read_out(tokens)
      for tokens in [outputs[hook] for hook in self.hooks]
      + [embedded] * bool(self.hooks)
    )
    # In float32, as the head.
    cls = layers.LayerNorm(_EPSILON, name='norm')(x[:, 0])
    head = None
    if self.num_outputs:
      init = layers.normal_init
      head = nn.Dense(self.num_outputs, kernel_init=init, name='head')(cls)
    return ViTOutput(cls, head, features)


def _read_out(tokens: jax.Array) -> jax.Array:
  """Adds the class token (the first) to the patch tokens, in float32."""
  tokens = tokens.astype(jnp.float32)
  return tokens[:, 1:] + tokens[:, :1]
