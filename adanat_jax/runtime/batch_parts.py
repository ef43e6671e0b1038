"""Splits a batch into parts without moving samples between devices.

There are two ways:

- *strided*: part `j` of `m` takes every m-th sample, starting at `j`. A device
  holds consecutive samples of the batch, so each device contributes equally.
- *within groups*: the batch consists of equal consecutive groups, and a part
  takes the same number of samples from each. If the number of devices divides
  the number of groups, each group lies on one device.

Neither depends on the number of devices, so neither does the result.
Shape letters: `T` steps, `B` samples, `G` groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from adanat_jax.runtime import sharding
from adanat_jax.types import Array


def shuffled_rows(
  key: Array, batch_size: int, *, groups: int, parts: int
) -> Array:
  """Assigns the samples of each group to parts, at random and evenly.

  Args:
    key: of the shuffle; a single group is shuffled by the key itself.
    batch_size: B, a multiple of `groups * parts`.
    groups: G.
    parts: number of parts.

  Returns:
    int32[parts, G, B / (G * parts)]: the rows of each group in each part.
  """
  chex.assert_is_divisible(batch_size, groups * parts)
  size = batch_size // groups
  keys = key[None] if groups == 1 else jax.random.split(key, groups)
  order = jax.vmap(lambda k: jax.random.permutation(k, size))(keys)
  return jnp.moveaxis(order.reshape(groups, parts, -1), 1, 0)


def pick(tree: Any, rows: Array) -> Any:
  """Takes the samples of one part of `shuffled_rows`, rows int32[G, M].

  Arrays [T, B, ...] become [T, G * M, ...], group by group.
  """
  groups = rows.shape[0]

  def pick_leaf(x: Array) -> Array:
    grouped = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    picked = jax.vmap(lambda x, i: x[:, i], in_axes=(1, 0), out_axes=1)(
      grouped, rows
    )
    return picked.reshape(x.shape[0], -1, *x.shape[2:])

  return sharding.split_batch(jax.tree.map(pick_leaf, tree), axis=1)


def take_every(tree: Any, start: Array, parts: int, axis: int) -> Any:
  """Takes every `parts`-th sample along the axis of the batch.

  `parts` divides B; `start`, int32[], is below it.
  """

  def cut(x: Array) -> Array:
    chex.assert_is_divisible(x.shape[axis], parts)
    shape = (*x.shape[:axis], -1, parts, *x.shape[axis + 1 :])
    return jax.lax.dynamic_index_in_dim(
      x.reshape(shape), start, axis + 1, keepdims=False
    )

  return sharding.split_batch(jax.tree.map(cut, tree), axis)


def map_in_parts(
  function: Callable[[Any], Any], inputs: Any, parts: int
) -> Any:
  """Computes `function(inputs)` on one part of the batch after the other.

  Intermediate values exist for one part at a time, and each part's results are
  written in place.

  Args:
    function: maps arrays [B, ...] to arrays [T, B, ...], for any B and each
      sample independently.
    inputs: arrays [B, ...].
    parts: number of parts; divides B.
  """
  if parts == 1:
    return function(inputs)

  def part_at(index: Any) -> Any:
    return function(take_every(inputs, index, parts, axis=0))

  def place(buffer: Array, part: Array, index: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(buffer, part, index, 2)

  def body(buffers: Any, index: Array) -> tuple[Any, None]:
    placed = jax.tree.map(
      lambda buffer, part: place(buffer, part, index), buffers, part_at(index)
    )
    return sharding.split_batch(placed, axis=1), None

  buffers = jax.tree.map(
    lambda x: jnp.zeros((*x.shape[:2], parts, *x.shape[2:]), x.dtype),
    jax.eval_shape(part_at, 0),
  )
  buffers, _ = jax.lax.scan(
    body, sharding.split_batch(buffers, axis=1), jnp.arange(parts)
  )
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0], -1, *x.shape[3:]), buffers
  )


def flatten_steps(tree: Any) -> Any:
  """Reshapes arrays [T, B, ...] to [T * B, ...] without moving samples.

  The order is device, step, sample: on one device, step by step.
  """

  def flatten(x: Array) -> Array:
    devices = _num_devices()
    chex.assert_is_divisible(x.shape[1], devices)
    split = x.reshape(x.shape[0], devices, -1, *x.shape[2:])
    return split.swapaxes(0, 1).reshape(-1, *x.shape[2:])

  return sharding.split_batch(jax.tree.map(flatten, tree))


def repeat_steps(tree: Any, num_steps: int) -> Any:
  """Repeats samples for each step: arrays [B, ...] to [T * B, ...].

  The order is that of `flatten_steps`, of one step and of all.
  """

  def repeat(x: Array) -> Array:
    split = x.reshape(_num_devices(), 1, -1, *x.shape[1:])
    split = jnp.broadcast_to(split, (len(split), num_steps, *split.shape[2:]))
    return split.reshape(-1, *x.shape[1:])

  return sharding.split_batch(jax.tree.map(repeat, tree))


def unflatten_steps(tree: Any, num_steps: int) -> Any:
  """Undoes `flatten_steps`."""

  def unflatten(x: Array) -> Array:
    split = x.reshape(_num_devices(), num_steps, -1, *x.shape[1:])
    return split.swapaxes(0, 1).reshape(num_steps, -1, *x.shape[1:])

  return sharding.split_batch(jax.tree.map(unflatten, tree), axis=1)


def _num_devices() -> int:
  """Returns the size of the ambient mesh, 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.size
