"""ENAT: a NAT that encodes every token once, at the step after its reveal.

ENAT (NeurIPS 2024, arXiv 2411.06959); the layout is that of LeapLabTHU/ENAT
`libs/models.py`. Encoder blocks run on visible tokens, decoder blocks on masked
ones, which attend to the encoded tokens and to each other in one softmax. What
was visible a step ago is not encoded again: a small residual network carries
its features over. The class acts through adaptive layer normalisation, and
nothing tells the network the step or the mask ratio.

One set of parameters is run in two ways.

* `ENAT.gathered` takes the tokens that a block needs out of the grid. How many
  there are is static, so every step of a schedule has its own shapes; this is
  where operations are saved.
* `ENAT.__call__` runs every block at every position and masks the attention.
  Each sample may have its own numbers of tokens, in one program: training, and
  policies that decide for each sample.

Texts are concatenated with the visible tokens, as the paper says; no code or
weights of that were published. The rest is our choice: the states are projected
linearly, as in the NAT, are encoded at the first step and reused like any token
from then on, and the norms of the blocks are learned, without gates. With its
116 M parameters the paper's network for MS-COCO has other blocks than this one.

Shape letters: `B` samples, `N` tokens, `L` length of the text (0 for classes),
`K` codebook, `D` width.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import chex
from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError
from adanat_jax.models import attention, layers
from adanat_jax.models.nat import Embedding
from adanat_jax.types import TokenCounts

_EPSILON = 1e-5
_BLOCK_EPSILON = 1e-6

Normalise = Callable[[jax.Array], jax.Array]

_linear_init = nn.initializers.xavier_uniform()

_tanh_gelu = functools.partial(nn.gelu, approximate=True)

# Shift, scale of the block's own tokens; of the context; gate of the attention;
# shift, scale, gate of the MLP.
_NUM_MODULATIONS = 8

# The published networks, table 7 of the paper.
SIZES: Mapping[str, Mapping[str, int]] = {
  'S': dict(width=366, encoder_depth=15, decoder_depth=1, num_heads=6),
  'B': dict(width=768, encoder_depth=15, decoder_depth=1, num_heads=8),
  'L': dict(width=1024, encoder_depth=22, decoder_depth=2, num_heads=16),
}


def _mlp(hidden_width: int, dtype: layers.Dtype) -> layers.Mlp:
  return layers.Mlp(hidden_width, dtype, _tanh_gelu, _linear_init, name='mlp')


class CarryOver(nn.Module):
  """What features of the last forward become in this one: `z + MLP(LN(z))`."""

  mlp_ratio: int
  dtype: layers.Dtype = jnp.float32

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """Maps `z` float[B, M, D] to the same shape."""
    normed = layers.LayerNorm(_BLOCK_EPSILON, dtype=self.dtype, name='norm')(z)
    hidden_width = self.mlp_ratio * z.shape[-1]
    return z + _mlp(hidden_width, self.dtype)(normed)


class SelfCrossAttention(nn.Module):
  """Attention to a stream's own tokens and to context tokens, in one softmax.

  The two have projections of their own to keys and values.
  """

  num_heads: int
  dtype: layers.Dtype = jnp.float32  # compute type; the softmax is float32
  attention: str | None = 'xla'  # see attention.attend

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    from_context: jax.Array | None = None,
    attend: jax.Array | None = None,
  ) -> jax.Array:
    """Attends from the tokens of `x`.

    Args:
      x: float[B, N, D].
      context: float[B, M, D]; its keys stand before those of `x`.
      from_context: bool[B, N], only if M = N: there is one key a position
        then, that of the context where this is true and that of `x` elsewhere.
      attend: which keys are attended to, bool[B, number of keys]; None for all.

    Returns:
      float[B, N, D].

    Raises:
      UserError: if the heads do not divide the width.
    """
    width = x.shape[-1]
    layers.check_heads(self.num_heads, width)
    dense = functools.partial(
      layers.Dense, dtype=self.dtype, kernel_init=_linear_init
    )
    key_value = dense(2 * width, name='self')(x)
    if context is not None:
      other = dense(2 * width, name='context')(context)
      if from_context is None:
        key_value = jnp.concatenate([other, key_value], axis=1)
      else:
        key_value = jnp.where(from_context[..., None], other, key_value)
    heads = lambda y: y.reshape(*y.shape[:2], self.num_heads, -1)
    key, value = jnp.split(key_value, 2, axis=-1)
    x_heads = attention.attend(
      heads(dense(width, name='query')(x)),
      heads(key),
      heads(value),
      keys=attend,
      implementation=self.attention,
    )
    return dense(width, name='proj')(x_heads.reshape(x.shape))


class Block(nn.Module):
  """Self-cross attention and an MLP; a class modulates and gates them."""

  num_heads: int
  mlp_ratio: int  # hidden width of the MLP over the width
  dtype: layers.Dtype = jnp.float32
  attention: str | None = 'xla'  # see attention.attend

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    label: jax.Array | None,
    context: jax.Array | None = None,
    from_context: jax.Array | None = None,
    attend: jax.Array | None = None,
  ) -> jax.Array:
    """Runs the block on the tokens `x` float[B, N, D], to the same shape.

    The `label` is the embedded class, float[B, D]; None means norms that are
    learned instead, and no gates. For the others see `SelfCrossAttention`.
    """
    width = x.shape[-1]
    norm = functools.partial(layers.LayerNorm, _BLOCK_EPSILON, dtype=self.dtype)
    before: Normalise
    before_context: Normalise
    before_mlp: Normalise
    if label is None:
      before = norm(name='norm')
      before_context = norm(name='context_norm')
      before_mlp = norm(name='mlp_norm')
      gate = mlp_gate = jnp.ones((1, 1, 1), self.dtype)
    else:
      modulation = nn.Dense(
        _NUM_MODULATIONS * width,
        dtype=self.dtype,
        kernel_init=nn.initializers.zeros,
        name='modulation',
      )(nn.silu(label))
      parts = jnp.split(modulation[:, None], _NUM_MODULATIONS, axis=-1)
      plain = norm(affine=False, name='norm')
      modulated = lambda shift, scale: lambda y: plain(y) * (1 + scale) + shift
      before = modulated(*parts[0:2])
      before_context = modulated(*parts[2:4])
      before_mlp = modulated(*parts[5:7])
      gate, mlp_gate = parts[4], parts[7]

    if context is not None:
      context = before_context(context)
    x = x + gate * SelfCrossAttention(
      self.num_heads, self.dtype, self.attention, name='attention'
    )(before(x), context, from_context, attend)
    mlp = _mlp(self.mlp_ratio * width, self.dtype)
    return x + mlp_gate * mlp(before_mlp(x))


@struct.dataclass
class Encoded:
  """What one forward caches for the next one."""

  # Of the text and the grid; those of masked positions are not read.
  features: jax.Array  # float[B, L + N, D]
  visible: jax.Array  # bool[B, L + N]; which positions the forward saw


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
  """Takes the tokens `index` int32[B, M] out of `x` [B, N, D]: [B, M, D]."""
  return jnp.take_along_axis(x, index[..., None], axis=1)


def _never_none(attend: jax.Array) -> jax.Array:
  """Sets all of bool[B, M] where a sample has none: a softmax needs a key.

  The result of such a sample is not read.
  """
  return attend | ~attend.any(axis=1, keepdims=True)


class ENAT(nn.Module):
  """Predicts the token at every position of a partly masked grid.

  Token ids lie in [0, codebook_size]; `codebook_size` is the mask token.
  Exactly one of `num_classes` and `text_width` is given.
  """

  codebook_size: int  # number of codes, the mask token not counted
  num_tokens: int  # number of positions in the grid
  width: int
  encoder_depth: int  # number of blocks that run on visible tokens
  decoder_depth: int  # number of blocks that run on masked tokens
  num_heads: int  # number of attention heads; divides the width
  num_classes: int | None = None  # not counting the null class, whose id it is
  text_width: int | None = None  # width of the text states
  mlp_ratio: int = 4  # hidden width of the MLPs over the width
  dropout_rate: float = 0.1  # of the token embeddings, in training
  # Compute type; parameters and statistics are float32. Of logits see
  # `layers.tied_logits`.
  dtype: layers.Dtype = jnp.float32
  attention: str | None = 'xla'  # see attention.attend

  reuses = True  # what it has encoded

  def setup(self):
    if min(self.encoder_depth, self.decoder_depth) < 1:
      raise UserError(
        f'encoder_depth={self.encoder_depth} and decoder_depth='
        f'{self.decoder_depth} of the ENAT must be at least 1'
      )
    layers.check_condition('ENAT', self.num_classes, self.text_width)
    self.tokens = Embedding(
      self.codebook_size + 1, self.num_tokens, self.width, self.dtype
    )
    linear = functools.partial(
      layers.Dense, self.width, dtype=self.dtype, kernel_init=_linear_init
    )
    if self.num_classes is not None:
      self.classes = self.param(
        'classes', layers.normal_init, (self.num_classes + 1, self.width)
      )
    else:
      self.text = linear()
    self.dropout = nn.Dropout(self.dropout_rate)
    self.carry_over = CarryOver(self.mlp_ratio, self.dtype)
    self.blocks = [
      Block(self.num_heads, self.mlp_ratio, self.dtype, self.attention)
      for _ in range(self.encoder_depth + self.decoder_depth)
    ]
    self.norm = layers.LayerNorm(_EPSILON, dtype=self.dtype)
    self.head = linear()
    self.head_norm = layers.LayerNorm(_EPSILON, dtype=self.dtype)
    self.head_bias = self.param(
      'head_bias', nn.initializers.zeros, (self.codebook_size + 1,)
    )

  def nothing_encoded(self, batch_size: int, text_length: int = 0) -> Encoded:
    """The cache before the first step of `batch_size` samples."""
    shape = (batch_size, text_length + self.num_tokens)
    return Encoded(
      features=jnp.zeros((*shape, self.width), self.dtype),
      visible=jnp.zeros(shape, bool),
    )

  def __call__(
    self,
    tokens: jax.Array,
    condition: jax.Array,
    cache: Encoded | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array, Encoded]:
    """Runs the network once, every block at every position.

    Args:
      tokens: int32[B, N] in [0, codebook_size].
      condition: int32[B] class ids in [0, num_classes], or float[B, L,
        text_width] text states.
      cache: of an earlier forward; None encodes all that is visible. Tokens
        that it saw and that are visible now are taken from it, so they have to
        be the same; no gradient flows into it.
      train: whether to drop out (needs the `dropout` stream).

    Returns:
      The features before the final norm, `dtype`[B, N, D], the logits,
      `layers.tied_logits` [B, N, codebook_size], and the cache for the next
      forward.
    """
    visible, x, label = self._embed(tokens, condition, train)
    if cache is None and self.is_initializing():
      # Carrying features over has parameters too.
      cache = self.nothing_encoded(x.shape[0], x.shape[1] - self.num_tokens)
    reused: Any = None
    carried = None
    if cache is not None:
      reused = cache.visible & visible
      carried = self.carry_over(jax.lax.stop_gradient(cache.features))

    attend = _never_none(visible)
    known = x
    for block in self.blocks[: self.encoder_depth]:
      known = block(known, label, carried, reused, attend)
    if carried is not None:
      known = jnp.where(reused[..., None], carried, known)
    hidden = x
    for block in self.blocks[self.encoder_depth :]:
      hidden = block(hidden, label, known, visible)
    return self._outputs(jnp.where(visible[..., None], known, hidden), visible)

  def gathered(
    self,
    tokens: jax.Array,
    condition: jax.Array,
    cache: Any,
    counts: TokenCounts,
  ) -> tuple[jax.Array, jax.Array, Encoded]:
    """Runs the network once, each block on the tokens it is needed for.

    If the counts add up to L + N, they are those of every sample. If they add
    up to more, each is an upper bound, of L + N at most: samples with fewer
    tokens are padded, and the padding is masked out. A sample that has more
    tokens of a kind than its count gets wrong features.

    Args:
      tokens: int32[B, N] in [0, codebook_size].
      condition: as for `__call__`.
      cache: `Encoded` of the last forward; anything if `counts.reused` is 0.
      counts: of each sample, a text's tokens among them; static.

    Returns:
      As `__call__`, and the same numbers but for rounding.
    """
    visible, x, label = self._embed(tokens, condition, train=False)
    length = x.shape[1]
    chex.assert_scalar_in(max(counts), 0, length)
    chex.assert_scalar_in(sum(counts), length, 3 * length)
    reused = jnp.zeros_like(visible)
    if counts.reused:
      reused = cache.visible & visible
    kinds = (reused, visible & ~reused, ~visible)
    exact = sum(counts) == length
    order = [
      jnp.argsort(~kind, axis=1, stable=True)[:, :count]
      for kind, count in zip(kinds, counts, strict=True)
    ]
    # Which of the gathered tokens are of the kind, not padding.
    real = [
      jnp.take_along_axis(kind, index, axis=1)
      for kind, index in zip(kinds, order, strict=True)
    ]
    join = lambda parts: (
      None if exact else _never_none(jnp.concatenate(parts, axis=1))
    )

    carried = None
    if counts.reused:
      last = jax.lax.stop_gradient(cache.features)
      carried = self.carry_over(_take(last, order[0]))
    new = _take(x, order[1])
    if counts.new:
      attend = join(real[:2])
      for block in self.blocks[: self.encoder_depth]:
        new = block(new, label, carried, attend=attend)
    known = new if carried is None else jnp.concatenate([carried, new], axis=1)
    masked = _take(x, order[2])
    if counts.masked:
      context = known if known.shape[1] else None
      attend = join(real)
      for block in self.blocks[self.encoder_depth :]:
        masked = block(masked, label, context, attend=attend)

    features = jnp.concatenate([known, masked], axis=1)
    return self._outputs(_take(features, _places(kinds, counts)), visible)

  def _embed(
    self, tokens: jax.Array, condition: jax.Array, train: bool
  ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """What is visible, its embedding and that of the class, if any.

    bool[B, L + N], float[B, L + N, D], and float[B, D] or None.
    """
    chex.assert_shape(tokens, (None, self.num_tokens))
    x = self.dropout(self.tokens(tokens), deterministic=not train)
    visible = tokens != self.codebook_size
    if self.num_classes is not None:
      chex.assert_shape(condition, (tokens.shape[0],))
      # asarray: converted weights are numpy's, which a tracer cannot index.
      label = jnp.asarray(self.classes)[condition]
      return visible, x, label.astype(self.dtype)
    chex.assert_shape(condition, (tokens.shape[0], None, self.text_width))
    text = self.text(condition)
    there = jnp.ones(text.shape[:2], bool)
    join = functools.partial(jnp.concatenate, axis=1)
    return join([there, visible]), join([text, x]), None

  def _outputs(
    self, features: jax.Array, visible: jax.Array
  ) -> tuple[jax.Array, jax.Array, Encoded]:
    """The results of a forward, from features [B, L + N, D]."""
    cache = Encoded(features, visible)
    features = features[:, -self.num_tokens :]
    hidden = self.head(self.norm(features))
    hidden = self.head_norm(layers.gelu(hidden))
    logits = layers.tied_logits(
      hidden, self.tokens.words, self.head_bias, self.codebook_size
    )
    return features, logits, cache


def _places(kinds: tuple[jax.Array, ...], counts: TokenCounts) -> jax.Array:
  """Where each position's token stands among those gathered kind by kind.

  Maps bool[B, N] of each kind, one of them true, to int32[B, N].
  """
  places: Any = 0
  start = 0
  for kind, count in zip(kinds, counts, strict=True):
    rank = jnp.cumsum(kind, axis=1, dtype=jnp.int32) - 1
    places = places + jnp.where(kind, start + rank, 0)
    start += count
  return places
