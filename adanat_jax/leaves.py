"""Leaves of a state by name: their layout, checksums, and what differs.

A leaf's name is its path, e.g. 'params/block_0/kernel'; its layout is its
shape and type as JSON has them, e.g. `[[2, 3], 'float32']`.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from adanat_jax.errors import UserError


def named_leaves(tree: Any) -> dict[str, Any]:
  """Returns the leaves by path, e.g. 'params/block_0/kernel'."""
  return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def layout_of(leaf: Any) -> list[Any]:
  """Returns a leaf's shape and type as JSON has them: [[2, 3], 'float32']."""
  return [list(leaf.shape), str(leaf.dtype)]


def check_layout(
    path: object, saved: Mapping[str, Any], target: Any
) -> None:
  """Compares leaf names, shapes and types; the first difference is raised."""
  expected = {
      name: layout_of(leaf) for name, leaf in named_leaves(target).items()
  }
  for name in [*expected, *saved]:
    want = _text(expected[name]) if name in expected else 'no such leaf'
    have = _text(saved[name]) if name in saved else 'no such leaf'
    if want != have:
      raise UserError(
          f'{path}: {name} is {have} in the checkpoint, {want} is expected; '
          'use the config it was made with, or another workdir'
      )


def _text(layout: list[Any]) -> str:
  """Returns 'float32[2,3]'."""
  return f'{layout[1]}[{",".join(map(str, layout[0]))}]'


def examine(tree: Any) -> dict[str, tuple[Any, int, bool]]:
  """Returns each leaf with its checksum and whether all of it is finite."""
  named = named_leaves(tree)
  results = jax.device_get([_digest(leaf) for leaf in named.values()])
  return {
      name: (leaf, int(checksum), bool(finite))
      for (name, leaf), (checksum, finite) in zip(
          named.items(), results, strict=True
      )
  }


def verify(tree: Any, saved: Mapping[str, Any]) -> None:
  """Raises ValueError if a leaf is not what was saved (bits have changed)."""
  for name, (_, checksum, _) in examine(tree).items():
    if checksum != saved[name][2]:
      raise ValueError(f'checksum of {name} differs')


@jax.jit
def _digest(leaf: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns (uint32[] checksum, bool[] all finite) of one leaf.

  The checksum is the sum modulo 2^32 of the elements' bits, each times an odd
  number made from its position: any change of one element changes it, the
  order of summation does not, and a sharded array needs no gathering.

  Args:
    leaf: an array of any shape and type, typed PRNG keys included.
  """
  if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
    leaf = jax.random.key_data(leaf)
  inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
  finite = jnp.isfinite(leaf).all() if inexact else jnp.bool_(True)
  if leaf.dtype == jnp.bool_:
    leaf = leaf.astype(jnp.uint8)
  bits = min(8 * leaf.dtype.itemsize, 32)
  words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{bits}'))
  position = jnp.zeros(words.shape, jnp.uint32)
  for axis in range(words.ndim):
    position = position * jnp.uint32(words.shape[axis]) + (
        jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    )
  weights = (position * jnp.uint32(2654435761)) | jnp.uint32(1)
  checksum = jnp.sum(words.astype(jnp.uint32) * weights, dtype=jnp.uint32)
  return checksum, finite


def nested(saved: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dicts of `jax.ShapeDtypeStruct` from leaves by path."""
  tree: dict[str, Any] = {}
  for name, (shape, dtype, _) in saved.items():
    *parents, last = name.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = jax.ShapeDtypeStruct(
        tuple(shape),
        jnp.dtype(dtype),
        sharding=jax.sharding.SingleDeviceSharding(jax.local_devices()[0]),
    )
  return tree
