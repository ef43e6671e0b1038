"""The non-autoregressive token transformer (NAT): a U-ViT on token ids.

AdaNAT (arXiv 2409.00342); the layout is that of LeapLabTHU/AdaNAT
`libs/uvit.py`, which AutoNAT shares. The condition stands before the image
tokens; half of the blocks push their outputs, the other half pop them in
reverse order; nothing tells the network the step or the mask ratio.

Shape letters: `B` samples, `N` tokens, `K` codebook, `D` width, `L` length of
the text.
"""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError
from adanat_jax.models import layers

_EMBEDDING_EPSILON = 1e-6
_EPSILON = 1e-5


class Embedding(nn.Module):
  """Word plus position embedding, normalised."""

  vocabulary: int
  num_positions: int
  width: int
  dtype: layers.Dtype = jnp.float32

  def setup(self):
    self.words = self.param(
      'words', layers.normal_init, (self.vocabulary, self.width)
    )
    self.positions = self.param(
      'positions', layers.normal_init, (self.num_positions, self.width)
    )
    self.norm = layers.LayerNorm(_EMBEDDING_EPSILON, dtype=self.dtype)

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Embeds `ids` int32[B, num_positions] as float[B, num_positions, D]."""
    # asarray: converted weights are numpy's, which a tracer cannot index.
    words = jnp.asarray(self.words)[ids]
    return self.norm(words + self.positions[None])


class NAT(nn.Module):
  """Predicts the token at every position of a partly masked grid.

  Token ids lie in [0, codebook_size]; `codebook_size` is the mask token.
  Exactly one of `num_classes` and `text_width` is given.
  """

  codebook_size: int  # number of codes, the mask token not counted
  num_tokens: int  # number of positions in the grid
  width: int
  depth: int  # number of blocks but the middle one; even
  num_heads: int  # number of attention heads; divides the width
  mlp_ratio: int = 4  # hidden width of the MLPs over the width
  num_classes: int | None = None  # not counting the null class, whose id it is
  text_width: int | None = None  # width of the text states
  dropout_rate: float = 0.1  # of the token embeddings, in training
  qkv_bias: bool = False  # whether the attention's joint projection has a bias
  # Compute type; parameters and statistics are float32. Of logits see
  # `layers.tied_logits`.
  dtype: layers.Dtype = jnp.float32
  attention: str | None = 'xla'  # see attention.attend

  def _block(self, name: str) -> layers.TransformerBlock:
    options = self.qkv_bias, self.dtype, self.attention
    return layers.TransformerBlock(
      self.num_heads, self.mlp_ratio, _EPSILON, *options, name=name
    )

  def _context(self, condition: jax.Array) -> jax.Array:
    """Returns the condition as float[B, 1 or L, D] tokens."""
    if self.num_classes is not None:
      chex.assert_rank(condition, 1)
      return Embedding(
        self.num_classes + 1, 1, self.width, self.dtype, name='classes'
      )(condition[:, None])
    chex.assert_shape(condition, (None, None, self.text_width))
    return layers.Dense(
      self.width, dtype=self.dtype, kernel_init=layers.normal_init, name='text'
    )(condition)

  @nn.compact
  def __call__(
    self, tokens: jax.Array, condition: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Runs the network once.

    Args:
      tokens: int32[B, N] in [0, codebook_size].
      condition: int32[B] class ids in [0, num_classes], or float[B, L,
        text_width] text states.
      train: whether to drop out (needs the `dropout` stream).

    Returns:
      The features after the final norm, `dtype`[B, N, D], and the logits,
      `layers.tied_logits` [B, N, codebook_size].

    Raises:
      UserError: if the fields do not fit together.
    """
    if self.depth % 2:
      raise UserError(f'depth={self.depth} of the NAT must be even')
    layers.check_condition('NAT', self.num_classes, self.text_width)
    chex.assert_shape(tokens, (None, self.num_tokens))
    embedding = Embedding(
      self.codebook_size + 1,
      self.num_tokens,
      self.width,
      self.dtype,
      name='tokens',
    )
    x = embedding(tokens)
    x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
    x = jnp.concatenate([self._context(condition), x], axis=1)

    skips = []
    for i in range(self.depth // 2):
      x = self._block(f'in_blocks_{i}')(x)
      skips.append(x)
    x = self._block('mid_block')(x)
    for i in range(self.depth // 2):
      x = self._block(f'out_blocks_{i}')(x, skips.pop())

    features = layers.LayerNorm(_EPSILON, dtype=self.dtype, name='norm')(
      x[:, -self.num_tokens :]
    )
    hidden = layers.Dense(
      self.width, dtype=self.dtype, kernel_init=layers.normal_init, name='head'
    )(features)
    hidden = layers.LayerNorm(_EPSILON, dtype=self.dtype, name='head_norm')(
      layers.gelu(hidden)
    )
    bias = self.param(
      'head_bias', nn.initializers.zeros, (self.codebook_size + 1,)
    )
    return features, layers.tied_logits(
      hidden, embedding.words, bias, self.codebook_size
    )
