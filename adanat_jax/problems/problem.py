"""A masked generator that anybody has trained, as a pure function of tokens.

  problem = adanat_jax.Problem(network, num_tokens=256, mask_token=1024)

What its functions return is checked while they are traced, which is before
anything runs: a mistake is one line that says what was returned and what is
allowed.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import inspect
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import loop
from adanat_jax.errors import UserError, shown
from adanat_jax.sampling import requests
from adanat_jax.types import Array, Cache, Condition, Reward


# Compared by identity: functions and arrays have no other equality.
@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
  """A masked generator, and what is to be generated.

  Its functions must be pure and JAX must be able to trace them. Arrays that
  they close over are read when they are first used: make another `Problem`
  after the parameters have changed.

  Attributes:
    denoiser: `(tokens int32[B, N], condition) -> logits float[B, N, K]`, or
      `(features float[B, N, D], logits)`; of the tokens alone where there are
      no conditions. A learned policy reads the features; where there are none,
      the largest probability, the entropy and the mask of each position.
    num_tokens: N.
    mask_token: K, what stands for an unknown token; the others are 0 to K - 1.
    conditions: of the samples on which a policy learns. A number of classes,
      for int32[B] in `[0, conditions)`; `(key, batch_size) -> condition`, a
      pytree with leading axis B; such a pytree, from which rows are drawn;
      None for no conditions.
    decoder: `tokens int32[B, N] -> samples`, a pytree with leading axis B, such
      as images; None if the token grids are the samples.
    null_condition: the condition, without axis B, that stands for none. With it
      decoding is guided, at two passes a step; None: unguided.
    grid: (rows, columns) of the tokens, N in all. None for a square if N is
      one, else for a row.
  """

  denoiser: Callable[..., Any]
  num_tokens: int
  mask_token: int
  conditions: Any = None
  decoder: Callable[[Array], Any] | None = None
  null_condition: Any = None
  grid: tuple[int, int] | None = None

  def __post_init__(self) -> None:
    """Raises UserError for fields that fit no generator."""
    for name in ('num_tokens', 'mask_token'):
      requests.integer(f'Problem.{name}', getattr(self, name), 1)
    for name in ('denoiser', 'decoder'):
      value = getattr(self, name)
      if not callable(value) and (name, value) != ('decoder', None):
        raise UserError(f'Problem.{name} is {shown(value)}; give a function')
    if self.null_condition is not None and self.conditions is None:
      raise UserError(
        'Problem has a null_condition but no conditions; give both, or neither'
      )
    if self.grid is not None and math.prod(self.grid) != self.num_tokens:
      raise UserError(
        f'Problem.grid is {self.grid}, but num_tokens is {self.num_tokens};'
        ' give (rows, columns) with that product'
      )

  @property
  def shape(self) -> tuple[int, int]:
    """Rows and columns of the token grid."""
    side = math.isqrt(self.num_tokens)
    square = side * side == self.num_tokens
    return self.grid or ((side, side) if square else (1, self.num_tokens))

  @property
  def is_guided(self) -> bool:
    """Whether decoding takes an unconditional pass, too."""
    return self.null_condition is not None

  def draw(self, key: Array, count: int) -> Condition:
    """Conditions of `count` samples, at random; outside jit."""
    if self.conditions is None:
      return None
    if callable(self.conditions):
      drawn = self.conditions(key, count)
      sizes = {np.shape(x)[:1] for x in jax.tree.leaves(drawn)}
      if sizes != {(count,)}:
        raise UserError(
          f'Problem.conditions returns {shown(jax.tree.map(np.shape, drawn))}'
          f' for {count} samples; give arrays with a row for each'
        )
      return drawn
    if isinstance(self.conditions, int | np.integer):
      return jax.random.randint(key, (count,), 0, self.conditions)
    size = len(jax.tree.leaves(self.conditions)[0])
    rows = np.asarray(jax.random.randint(key, (count,), 0, size))
    return jax.tree.map(lambda x: np.asarray(x)[rows], self.conditions)

  def null_like(self, condition: Condition) -> Condition:
    """The null condition, None if there is none.

    Raises:
      UserError: unless it is like one row of these conditions.
    """
    if self.null_condition is None:
      return None
    kinds = lambda tree, axes: jax.tree.map(lambda x: np.shape(x)[axes:], tree)
    given, null = kinds(condition, 1), kinds(self.null_condition, 0)
    if given != null:
      raise UserError(
        f'Problem.null_condition has the shapes {null}, and a condition'
        f' {given}; give one condition, without axis B'
      )
    return self.null_condition

  def denoise(
    self, tokens: Array, condition: Condition, cache: Cache = ()
  ) -> tuple[Array, Array, Cache]:
    """The network as a `Denoiser` of the package, its result checked."""
    given = (tokens,) if condition is None else (tokens, condition)
    if condition is None and not _takes(self.denoiser, tokens):
      given = (tokens, None)
    found = called('the denoiser', self.denoiser, *given)
    features, logits = found if isinstance(found, tuple) else (None, found)
    size = self.mask_token
    if _shape(logits) == (*tokens.shape, size + 1):
      raise UserError(
        f'the denoiser returns logits {_kind(logits)}, the last for the mask'
        f' token {size}; leave it out, logits[..., :{size}]'
      )
    if _shape(logits) != (*tokens.shape, size) or not _is_float(logits):
      raise UserError(
        f'the denoiser returns logits {_kind(logits)} for tokens'
        f' {_kind(tokens)}; give float[B, {self.num_tokens}, {size}], one for'
        ' each token below mask_token'
      )
    logits = logits.astype(jnp.float32)
    if features is None:
      features = observed(logits, tokens == self.mask_token)
    if _shape(features)[:-1] != tokens.shape or not _is_float(features):
      raise UserError(
        f'the denoiser returns features {_kind(features)} for tokens'
        f' {_kind(tokens)}; give float[B, {self.num_tokens}, D], or logits'
        ' alone'
      )
    return features, logits, cache

  def decode_tokens(self, tokens: Array) -> Any:
    """Samples of complete token grids int32[B, N]; those if not decoded."""
    if self.decoder is None:
      return tokens
    samples = called('the decoder', self.decoder, tokens)
    for leaf in jax.tree.leaves(samples):
      if _shape(leaf)[:1] != (len(tokens),):
        raise UserError(
          f'the decoder returns {_kind(leaf)} for tokens {_kind(tokens)}; give'
          f' arrays with leading axis {len(tokens)}'
        )
    return samples


def observed(logits: Array, masked: Array) -> Array:
  """Features float32[B, N, 3] of what any network says of a position.

  Its largest probability, its entropy in nats, and whether it is masked.

  Args:
    logits: float32[B, N, K].
    masked: bool[B, N].
  """
  seen = loop.observe(logits, logits, masked)
  columns = [seen.max_prob, seen.entropy, masked.astype(jnp.float32)]
  return jnp.stack(columns, axis=-1)


def checked_reward(reward: Callable[..., Any]) -> Reward:
  """The reward of a user, its result checked and without a gradient."""

  def wrapped(samples: Any, condition: Condition, key: Array) -> Array:
    result = called('the reward', reward, samples, condition, key)
    count = len(jax.tree.leaves(samples)[0])
    if _shape(result) != (count,):
      raise UserError(
        f'the reward returns {_kind(result)} for {count} samples; give'
        f' float[{count}], a number a sample'
      )
    return jax.lax.stop_gradient(result.astype(jnp.float32))

  return wrapped


def called(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
  """The result of a user's function, traced; its own error on one line."""
  try:
    return function(*arguments)
  except UserError:
    raise
  except Exception as error:
    kinds = ', '.join(map(_kind, jax.tree.leaves(arguments)))
    said = (str(error).strip() or '-').splitlines()[0]
    raise UserError(
      f'{what} fails on {kinds}: {type(error).__name__}: {said}; it must be a'
      ' pure function that jax.jit can compile'
    ) from error


def _takes(function: Callable[..., Any], *arguments: Any) -> bool:
  """Whether a function may be called with these arguments."""
  try:
    inspect.signature(function).bind(*arguments)
  except TypeError:
    return False
  except ValueError:  # It has no signature.
    return True
  return True


def _shape(array: Any) -> tuple[int, ...]:
  return tuple(getattr(array, 'shape', ()))


def _is_float(array: Any) -> bool:
  return jnp.issubdtype(getattr(array, 'dtype', int), jnp.floating)


def _kind(value: Any) -> str:
  """How a message shows an array: float32[2, 3]."""
  dtype = getattr(value, 'dtype', None)
  if dtype is None:
    return f'a {type(value).__name__}'
  return f'{dtype}{[*_shape(value)]}'
