"""Names, layouts and checksums of a pytree's leaves.

A leaf's name is its path, e.g. 'params/block_0/kernel'. Its layout is its type
and shape as one string, e.g. 'float32[2,3]'.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.errors import UserError

# The checksum's constants: the position's factor; shifts and factors.
_GOLDEN = 2654435761
_ROUNDS = ((16, 0x85EBCA6B), (13, 0xC2B2AE35))


@dataclasses.dataclass(frozen=True)
class Leaf:
  """What a checkpoint records of a leaf."""

  layout: str  # Type and shape, e.g. 'float32[2,3]'.
  checksum: int  # Of its bits; 32 bits wide.
  finite: bool  # Whether it holds neither NaN nor infinity.


def by_name(tree: Any) -> dict[str, Any]:
  """Returns the leaves of a pytree by their paths."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def layout(leaf: Any) -> str:
  """Returns type and shape of an array or `jax.ShapeDtypeStruct`."""
  return f'{leaf.dtype}[{",".join(map(str, leaf.shape))}]'


def examine(tree: Any) -> dict[str, Leaf]:
  """Computes layout, checksum and finiteness of every leaf.

  The checksum is the sum modulo 2^32 of a hash (MurmurHash3's finaliser) of
  each element's bits and position: a change of any one element changes it, the
  order of summation does not, and a sharded array need not be gathered.

  Args:
    tree: arrays of any shape and type, typed PRNG keys included.
  """
  named = by_name(tree)
  on_cpu = jax.default_backend() == 'cpu'

  def digest(leaf: jax.Array | np.ndarray) -> tuple[Any, Any]:
    # Where the host has all elements, NumPy is faster than compiling a program
    # for each shape.
    if isinstance(leaf, np.ndarray) or (on_cpu and leaf.is_fully_addressable):
      return _digest_on_host(leaf)
    if on_cpu and leaf.is_fully_replicated:
      return _digest_on_host(leaf.addressable_data(0))
    return _digest_on_device(leaf)

  # One at a time: if programs with collectives overlapped, processes could run
  # them in different orders and block each other.
  digests = [jax.device_get(digest(leaf)) for leaf in named.values()]
  return {
    name: Leaf(layout(leaf), int(checksum), bool(finite))
    for (name, leaf), (checksum, finite) in zip(
      named.items(), digests, strict=True
    )
  }


def check_layout(where: object, saved: Mapping[str, str], target: Any) -> None:
  """Compares a pytree with the layouts by name of the checkpoint `where`.

  Raises:
    UserError: names the first leaf that differs and both layouts.
  """
  expected = {name: layout(leaf) for name, leaf in by_name(target).items()}
  for name in [*expected, *saved]:
    if saved.get(name) != expected.get(name):
      raise UserError(
        f'{where}: {name} is {saved.get(name, "absent")} in the checkpoint, '
        f'{expected.get(name, "absent")} is expected; use the config that '
        'made it, or another workdir'
      )


def check_bits(tree: Any, saved: Mapping[str, int]) -> None:
  """Raises ValueError if a leaf's checksum differs from the saved one.

  All processes together compute the checksum of an array that is split over
  them; each computes its own for an array that it holds whole. So one process
  may find a difference that the others do not.
  """
  for name, leaf in examine(tree).items():
    if leaf.checksum != saved[name]:
      raise ValueError(f'the checksum of {name} differs')


def of_layout(text: str) -> jax.ShapeDtypeStruct:
  """The abstract array of a layout such as 'float32[2,3]'."""
  dtype, _, shape = text.removesuffix(']').partition('[')
  sizes = tuple(int(size) for size in shape.split(',') if size)
  return jax.ShapeDtypeStruct(sizes, jnp.dtype(dtype))


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
  """Builds nested dicts of leaves by name: of 'a/b' `{'a': {'b': ...}}`."""
  tree: dict[str, Any] = {}
  for name, leaf in named.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


@jax.jit
def _digest_on_device(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (uint32[] checksum, bool[] all finite) of one leaf."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
  finite = jnp.isfinite(leaf).all() if inexact else jnp.bool_(True)
  if leaf.dtype == jnp.bool_:
    leaf = leaf.astype(jnp.uint8)
  # Wider elements become two words of 32 bits along a new last axis.
  bits = min(8 * leaf.dtype.itemsize, 32)
  words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{bits}'))
  position = jnp.zeros(words.shape, jnp.uint32)
  for axis, size in enumerate(words.shape):
    index = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    position = position * jnp.uint32(size) + index
  words = words.astype(jnp.uint32) + position * jnp.uint32(_GOLDEN)
  for shift, factor in _ROUNDS:
    words = (words ^ (words >> shift)) * jnp.uint32(factor)
  return jnp.sum(words ^ (words >> 16), dtype=jnp.uint32), finite


def _digest_on_host(leaf: jax.Array | np.ndarray) -> tuple[int, bool]:
  """Returns the same as `_digest_on_device`, without compiling."""
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  array = np.ascontiguousarray(leaf).reshape(-1)
  inexact = jnp.issubdtype(array.dtype, jnp.inexact)
  finite = bool(np.isfinite(array).all()) if inexact else True
  bits = min(8 * array.dtype.itemsize, 32)
  all_words = array.view(f'uint{bits}')
  checksum = 0
  # In pieces that fit the processor's cache.
  for start in range(0, all_words.size, 1 << 15):
    words = all_words[start : start + (1 << 15)].astype(np.uint32)
    position = np.arange(start, start + words.size, dtype=np.uint32)
    words += position * np.uint32(_GOLDEN)
    for shift, factor in _ROUNDS:
      words ^= words >> np.uint32(shift)
      words *= np.uint32(factor)
    words ^= words >> np.uint32(16)
    checksum += int(words.sum(dtype=np.uint64))
  return checksum % 2**32, finite
