"""The first step of a decode from a table.

On an empty canvas what the network says depends on the condition alone. Of a
class it is computed once and kept, as is the unconditional pass, the row of the
null class: of `2 T` guided forwards `2 (T - 1)` are left.

`FirstSteps` keeps the classes that were asked for. Training draws its classes
inside a compiled step, which needs the `table` of all of them.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
import functools
import threading
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from adanat_jax.decoding import loop
from adanat_jax.models import denoisers
from adanat_jax.runtime import sharding
from adanat_jax.types import Array

_MOST_BYTES = 2**29
# Of a device that says what it has, a table of all classes takes this share at
# most: in bfloat16, 1,000 classes of 256 tokens are 1.4 GB.
_SHARE = 1 / 8
# Rows that a device computes at a time.
_MOST_ROWS = 32
# With fewer rows a device, CPUs sum in another order (see `program.batches`).
_FEWEST_ROWS = 8

# Features [N, D] and logits [N, K] of a class.
Row: TypeAlias = tuple[Array, Array]


def _forward(nat: denoisers.DenoiserModule, params: Any, classes: Array) -> Row:
  """Rows of classes int32[R], stacked, whole on every device."""
  canvas = loop.full_mask(len(classes), nat.num_tokens, nat.codebook_size)
  inputs = canvas, classes, denoisers.empty_cache(nat, len(classes))
  denoiser = denoisers.make(nat, sharding.whole(params))
  features, logits, _ = denoiser(*sharding.split_batch(inputs))
  return sharding.whole((features, logits))


@functools.partial(jax.jit, static_argnums=0)
def _rows(
  nat: denoisers.DenoiserModule, params: Any, classes: Array
) -> list[Row]:
  """The rows of classes int32[R], whole on every device."""
  return [*zip(*_forward(nat, params, classes), strict=True)]


@functools.partial(jax.jit, static_argnums=(0, 2))
def _table(
  nat: denoisers.DenoiserModule, params: Any, rows: int
) -> loop.FirstStep:
  """All classes and the null class, so many rows at a time."""
  assert nat.num_classes is not None
  count = nat.num_classes + 1
  classes = np.resize(
    np.arange(count, dtype=np.int32), -(-count // rows) * rows
  )
  parts = jax.lax.map(
    functools.partial(_forward, nat, params), classes.reshape(-1, rows)
  )
  features, logits = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)
  return loop.FirstStep(
    features[: count - 1], logits[: count - 1], logits[count - 1]
  )


def table(
  nat: denoisers.DenoiserModule, params: Any, mesh: Mesh
) -> loop.FirstStep | None:
  """The first step of every class, or None where there is no such table.

  Args:
    nat: the network; one of texts has no table.
    params: its parameters.
    mesh: every device gets the whole table.

  Returns:
    Features float[C, N, D], logits float32[C, N, K] and the unconditional
    logits float32[N, K]. None if they took more than an eighth of a device's
    memory, or 512 MiB where it does not say how much it has; while they are
    made, they take twice as much.
  """
  if nat.num_classes is None:
    return None
  needed = _power(nat.num_classes + 1, _FEWEST_ROWS * mesh.size, mesh)
  rows = min(needed, _MOST_ROWS * mesh.size)
  with jax.set_mesh(mesh):
    shapes = jax.eval_shape(functools.partial(_table, nat, rows=rows), params)
    size = sum(
      x.size * x.dtype.itemsize for x in (shapes.features, shapes.logits)
    )
    memory = sharding.device_memory(mesh)
    if size > (memory * _SHARE if memory else _MOST_BYTES):
      return None
    return _table(nat, params, rows)


@jax.jit
def _batch(
  rows: Sequence[Row], place: Array, null: Row | None
) -> loop.FirstStep:
  """Puts together the rows of samples by their place int32[B] among `rows`."""
  stacked = jax.tree.map(lambda *x: jnp.stack(x)[place], *rows)
  features, logits = sharding.split_batch(stacked)
  return loop.FirstStep(features, logits, None if null is None else null[1])


class FirstSteps:
  """Rows of the classes used last, of one network at a time."""

  def __init__(self, most_bytes: int = _MOST_BYTES):
    """Keeps rows of this size at most, on each device."""
    self._most_bytes = most_bytes
    self._lock = threading.Lock()
    self._owner: tuple[Any, ...] = ()
    self._kept: collections.OrderedDict[int, Row] = collections.OrderedDict()

  def of(
    self,
    nat: denoisers.DenoiserModule,
    params: Any,
    labels: Array | np.ndarray,
    null: np.ndarray,
    guided: bool,
    mesh: Mesh,
  ) -> dict[str, loop.FirstStep]:
    """The first step of a batch as `'first'`, nothing if it cannot be known.

    Args:
      nat: the network.
      params: its parameters; with others, all is computed anew.
      labels: int32[B], classes of the whole batch: a global array, or in every
        process. Texts have no table.
      null: what stands for no condition; with an axis, conditions are texts.
      guided: whether there is an unconditional pass.
      mesh: the devices among which the batch is divided.
    """
    if np.ndim(null):
      return {}
    if isinstance(labels, jax.Array):
      labels = sharding.gather(labels)
    classes, place = np.unique(labels, return_inverse=True)
    wanted = classes.tolist() + [int(null)] * guided
    kept = self._kept
    with self._lock, jax.set_mesh(mesh):
      if not _same(self._owner, (nat, params, mesh)):
        self._owner = nat, params, mesh
        kept.clear()
      missing = [one for one in wanted if one not in kept]
      if missing:
        # At most as many as the step itself would have.
        least = min(_FEWEST_ROWS, len(labels) * (1 + guided))
        index = np.resize(missing, _power(len(missing), least, mesh)).astype(
          np.int32
        )
        inputs = sharding.put_batch(sharding.local_rows(index, mesh), mesh)
        rows = _rows(nat, params, inputs)[: len(missing)]
        kept.update(zip(missing, rows, strict=True))
      for one in wanted:
        kept.move_to_end(one)
      # Padded, so that few numbers of classes are compiled for.
      count = 1 << (len(classes) - 1).bit_length()
      rows = [kept[one] for one in np.resize(classes, count).tolist()]
      place = sharding.local_rows(place.astype(np.int32), mesh)
      result = _batch(
        rows,
        sharding.put_batch(place, mesh),
        kept[int(null)] if guided else None,
      )
      size = sum(x.size * x.dtype.itemsize for x in rows[0])
      while len(kept) * size > self._most_bytes:
        kept.popitem(last=False)
      return {'first': result}


def _power(count: int, least: int, mesh: Mesh) -> int:
  """A power of two a device that makes room for `count` rows."""
  needed = max(-(-count // mesh.size), -(-least // mesh.size))
  return mesh.size << (needed - 1).bit_length()


def _same(owner: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
  """Whether these are the same network, parameters and devices."""
  return bool(owner) and owner[1] is other[1] and owner[::2] == other[::2]
