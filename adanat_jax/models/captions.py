"""Text networks that come with nothing to download.

`CaptionTransformer` is trained with the NAT that reads it; `VectorTable` looks
up what somebody else's encoder made of captions.

Muse's and AdaNAT's text towers are frozen and come from elsewhere. A small set
of pictures whose captions have few words needs no such tower: these states of
a caption are trained by the NAT's own loss, and so is the null condition,
which is what the network makes of the empty caption.

Shape letters: `B` samples, `N` tokens, `L` words of a text, `R` bytes of a
word, `D` width.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.models import layers
from adanat_jax.models.clip import CLIPLayer, CLIPText, TextStates

_EPSILON = 1e-5


class CaptionTransformer(nn.Module):
  """A transformer on the words of a caption, each seeing all.

  A word begins as the sum of vectors, one for each byte at its place in the
  word: so a word is known again wherever it stands, and few examples of it are
  enough. Rows without a word are not masked; their bytes, 0, add nothing.
  """

  width: int
  depth: int
  num_heads: int  # divides the width
  mlp_width: int
  num_positions: int  # L, longest text in words
  word_length: int  # R
  vocabulary: int  # how many ids there are
  # Compute type; parameters and results are float32.
  dtype: layers.Dtype = jnp.float32

  @property
  def projection_width(self) -> int:
    """Width of the pooled embedding."""
    return self.width

  @nn.compact
  def __call__(self, ids: jax.Array) -> TextStates:
    """Reads captions `ids` int32[B, L * R], see `data.byte_tokens`.

    The pooled embedding, float32[B, D], is the mean of the states of the words.

    Raises:
      UserError: if the fields do not fit together.
    """
    layers.check_heads(self.num_heads, self.width)
    chex.assert_shape(ids, (None, self.num_positions * self.word_length))
    ids = ids.reshape(-1, self.num_positions, self.word_length)
    init, width = layers.normal_init, self.width
    shape = self.word_length, self.vocabulary, width
    # asarray: loaded weights are numpy's, which a tracer cannot index.
    table = jnp.asarray(self.param('bytes', init, shape))
    found = table[jnp.arange(self.word_length), ids]
    x = jnp.sum(found * (ids > 0)[..., None], axis=2)
    x = x + self.param('positions', init, (self.num_positions, width))[None]
    x = layers.LayerNorm(_EPSILON, dtype=self.dtype, name='norm_before')(x)
    for i in range(self.depth):
      x = CLIPLayer(
        self.num_heads,
        self.mlp_width,
        'gelu',
        self.dtype,
        is_causal=False,
        name=f'layers_{i}',
      )(x)
    states = layers.LayerNorm(_EPSILON, name='norm')(x)
    is_text = ids[:, :, :1] > 0
    # A row of padding at the end of a batch has no words.
    count = jnp.maximum(1, jnp.sum(is_text, axis=1))
    pooled = jnp.sum(states * is_text, axis=1) / count
    return TextStates(states=states, pooled=pooled)


class VectorTable(nn.Module):
  """Vectors of captions by their rows; see `data.caption_vectors`.

  Row 0 is zeros. It is the null condition, and what fills up short sequences.
  Nothing of it is trained: the projection by which a NAT reads texts has a bias
  of its own, so that a network learns what zeros mean to it.
  """

  width: int
  num_positions: int  # L, longest text in vectors
  # Of the table, with row 0. Only `init` reads it: a table of any length can be
  # applied.
  num_vectors: int = 1

  @property
  def projection_width(self) -> int:
    """Width of the pooled embedding."""
    return self.width

  @nn.compact
  def __call__(self, ids: jax.Array) -> TextStates:
    """Looks up the rows `ids` int32[B, L].

    The pooled embedding, float32[B, D], is the mean of a text's vectors.
    """
    chex.assert_shape(ids, (None, self.num_positions))
    if self.is_initializing():
      shape = self.num_vectors, self.width
      table = self.param('vectors', nn.initializers.zeros, shape)
    else:
      table = self.get_variable('params', 'vectors')
    # asarray: loaded weights are numpy's, which a tracer cannot index.
    states = jnp.asarray(table)[ids]
    count = jnp.maximum(1, jnp.sum(ids > 0, axis=1, keepdims=True))
    return TextStates(states=states, pooled=jnp.sum(states, axis=1) / count)


# What reads captions as ids.
TextNetwork: TypeAlias = CLIPText | CaptionTransformer | VectorTable


class CaptionedDenoiser(nn.Module):
  """A NAT or an ENAT with the text network that is trained with it.

  It takes the ids of captions where the network takes their states.
  """

  denoiser: Any  # conditioned on texts
  text: CaptionTransformer

  @property
  def num_tokens(self) -> int:
    """Number of positions in the grid."""
    return self.denoiser.num_tokens

  @property
  def codebook_size(self) -> int:
    """Number of codes, the mask token not counted."""
    return self.denoiser.codebook_size

  def __call__(
    self, tokens: jax.Array, ids: jax.Array, *cache: Any, train: bool = False
  ) -> tuple[Any, ...]:
    """Runs both networks on `tokens` int32[B, N] and the `ids` of captions.

    What else it takes and what it returns is the denoiser's.
    """
    states = self.text(ids).states
    return self.denoiser(tokens, states, *cache, train=train)
