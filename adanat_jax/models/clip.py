"""The text tower of CLIP: captions to what a NAT and a discriminator read.

Radford et al. 2021 (arXiv 2103.00020). AdaNAT on CC3M conditions its NAT on
the states of ViT-bigG/14's tower (laion/CLIP-ViT-bigG-14-laion2B-39B-b160k)
and its discriminator on the pooled embedding; ViT-L/14 (openai/clip-vit-large-
patch14) is our choice for COCO, where the original's is not published.

Shape letters: `B` samples, `L` positions, `D` width, `P` joint space.
"""

from collections.abc import Callable, Mapping
import functools

import chex
from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError
from adanat_jax.models import layers

_EPSILON = 1e-5


@struct.dataclass
class TextStates:
  """What the tower says of captions.

  Attributes:
    states: after the final norm, not projected: a NAT's condition.
    pooled: the state at the end of the text, projected; not normalised. A
      discriminator takes it divided by its length.
  """

  states: jax.Array  # float32[B, L, D]
  pooled: jax.Array  # float32[B, P]


def quick_gelu(x: jax.Array) -> jax.Array:
  """OpenAI's approximation of the GELU."""
  return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
  'gelu': layers.gelu,
  'quick_gelu': quick_gelu,
}


class CLIPLayer(nn.Module):
  """Attention and MLP, each normalised before and added after.

  Attributes:
    num_heads: number of attention heads.
    mlp_width: hidden width of the MLP.
    activation: see `CLIPText`.
    dtype: compute type.
    is_causal: whether a position sees no later ones: texts, not images.
  """

  num_heads: int
  mlp_width: int
  activation: str
  dtype: layers.Dtype
  is_causal: bool = True

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
    hidden = jax.nn.dot_product_attention(
      query, key, value, is_causal=self.is_causal
    )
    x = x + dense(width, name='out')(hidden.reshape(x.shape))
    hidden = dense(self.mlp_width, name='fc1')(norm(name='norm2')(x))
    hidden = _ACTIVATIONS[self.activation](hidden)
    return x + dense(width, name='fc2')(hidden)


class CLIPText(nn.Module):
  """The tower. Padding is not masked: it stands after the end of the text.

  Attributes:
    width: width of the trunk.
    depth: number of layers.
    num_heads: number of attention heads.
    mlp_width: hidden width of the MLPs.
    projection_width: width of the space that texts and images share.
    activation: 'gelu' (exact; LAION's towers) or 'quick_gelu' (OpenAI's). The
      weights do not tell which.
    vocabulary: number of token ids; the end of the text is the last.
    num_positions: longest text, in tokens.
    dtype: compute type; parameters and results are float32.
  """

  width: int
  depth: int
  num_heads: int
  mlp_width: int
  projection_width: int
  activation: str
  vocabulary: int = 49408
  num_positions: int = 77
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array) -> TextStates:
    """Reads captions.

    Args:
      ids: int32[B, L], see `data.clip_tokens`; L at most `num_positions`.

    Returns:
      The states and the pooled embedding.

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
    projection = nn.Dense(
      self.projection_width, use_bias=False, name='projection'
    )
    return TextStates(states=states, pooled=projection(pooled))


def big_g(dtype: layers.Dtype = jnp.float32) -> CLIPText:
  """The tower of LAION's ViT-bigG/14, 695 M parameters."""
  return CLIPText(1280, 32, 20, 5120, 1280, 'gelu', dtype=dtype)


def large(dtype: layers.Dtype = jnp.float32) -> CLIPText:
  """The tower of OpenAI's ViT-L/14, 124 M parameters."""
  return CLIPText(768, 12, 12, 3072, 768, 'quick_gelu', dtype=dtype)
