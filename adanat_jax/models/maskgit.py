"""Google's MaskGIT: a post-norm bidirectional transformer over class and codes.

google-research/maskgit `maskgit/nets/maskgit_transformer.py` (arXiv
2202.04200). One vocabulary holds the codes, then the classes, then the mask:
the class is the first token of the sequence. Its tokenizer is
`models.vqgan.VQGAN`, with `conv_downsample` where the file has those weights.
There is no null class: decode it unguided.

Shape letters: `B` samples, `N` tokens, `K` codebook, `D` width, `V` =
K + classes + 1 rows of the vocabulary.
"""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.models import layers

_EPSILON = 1e-12

# The mask token as the published code writes it: the last row.
MASK_ID = -1

_gelu = functools.partial(nn.gelu, approximate=True)


class MaskGITLayer(nn.Module):
  """Attention and MLP, each followed by a sum and a normalisation."""

  num_heads: int  # number of attention heads; divides the width
  mlp_width: int
  dropout_rate: float  # of the attention and of both results, in training
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps `x` float[B, N, D] to the same shape."""
    norm = functools.partial(layers.LayerNorm, _EPSILON, dtype=self.dtype)
    dense = functools.partial(
      layers.Dense, dtype=self.dtype, kernel_init=layers.normal_init
    )
    dropout = functools.partial(
      nn.Dropout, self.dropout_rate, deterministic=not train
    )
    hidden = nn.MultiHeadDotProductAttention(
      self.num_heads,
      dtype=self.dtype,
      kernel_init=layers.normal_init,
      dropout_rate=self.dropout_rate,
      deterministic=not train,
      name='attention',
    )(x)
    x = norm(name='attention_norm')(x + dropout()(hidden))
    hidden = _gelu(dense(self.mlp_width, name='fc1')(x))
    hidden = dense(x.shape[-1], name='fc2')(hidden)
    return norm(name='mlp_norm')(x + dropout()(hidden))


class MaskGITTransformer(nn.Module):
  """Predicts every position of a class token followed by codes."""

  codebook_size: int  # number of codes K
  num_classes: int  # number of classes; class c has the id K + c
  num_tokens: int  # number of codes in a sequence, the class not counted
  width: int = 768
  depth: int = 24
  num_heads: int = 16
  mlp_width: int = 3072
  dropout_rate: float = 0.1
  # Compute type; parameters, statistics and logits are float32.
  dtype: layers.Dtype = jnp.float32

  text_width = None  # It reads classes alone.
  knows_null = False  # It was never trained without a class.

  def setup(self):
    vocabulary = self.codebook_size + self.num_classes + 1
    norm = functools.partial(layers.LayerNorm, _EPSILON, dtype=self.dtype)
    self.words = self.param(
      'words', layers.normal_init, (vocabulary, self.width)
    )
    self.positions = self.param(
      'positions', layers.normal_init, (self.num_tokens + 1, self.width)
    )
    self.embedding_norm = norm()
    self.embedding_dropout = nn.Dropout(self.dropout_rate)
    options = self.num_heads, self.mlp_width, self.dropout_rate, self.dtype
    self.layers = [MaskGITLayer(*options) for _ in range(self.depth)]
    self.head = layers.Dense(
      self.width, dtype=self.dtype, kernel_init=layers.normal_init
    )
    self.head_norm = norm()
    self.head_bias = self.param(
      'head_bias', nn.initializers.zeros, (vocabulary,)
    )

  def _features(self, input_ids: jax.Array, train: bool) -> jax.Array:
    """Returns the output of the last layer, float[B, 1 + N, D]."""
    chex.assert_shape(input_ids, (None, self.num_tokens + 1))
    # -1 stands for the last row here, as in NumPy; JAX agrees.
    # asarray: converted weights are numpy's, which a tracer cannot index.
    words = jnp.asarray(self.words)[input_ids]
    x = self.embedding_norm(words + self.positions[None])
    x = self.embedding_dropout(x, deterministic=not train)
    for layer in self.layers:
      x = layer(x, train=train)
    return x

  def _logits(self, features: jax.Array, rows: int) -> jax.Array:
    """Returns the logits of the first `rows` ids, float32[..., rows]."""
    hidden = self.head_norm(_gelu(self.head(features)))
    logits = jnp.einsum(
      'bnd,vd->bnv',
      hidden,
      self.words[:rows].astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    return logits + self.head_bias[None, None, :rows]

  def predict(self, input_ids: jax.Array) -> jax.Array:
    """Logits float32[B, 1 + N, V] of the published sequences, int32[B, 1 + N].

    The class token comes first, -1 is the mask.
    """
    return self._logits(self._features(input_ids, False), len(self.words))

  def __call__(
    self, tokens: jax.Array, condition: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """Runs the network on a canvas, as every denoiser of this package.

    Args:
      tokens: int32[B, N] in [0, codebook_size]; `codebook_size` is the mask.
      condition: int32[B] class ids in [0, num_classes]. The id `num_classes`
        puts the mask in the class's place, which the network has never seen.
      train: whether to drop out (needs the `dropout` stream).

    Returns:
      The features of the canvas, `dtype`[B, N, D], and its logits, float32[B,
      N, codebook_size].
    """
    tokens = jnp.where(tokens == self.codebook_size, MASK_ID, tokens)
    label = (self.codebook_size + condition)[:, None].astype(tokens.dtype)
    input_ids = jnp.concatenate([label, tokens], axis=1)
    features = self._features(input_ids, train)[:, 1:]
    return features, self._logits(features, self.codebook_size)
