"""Attention by whatever the device does fastest; every network calls `attend`.

Shape letters: `B` samples, `N` queries, `M` keys, `H` heads, `C` width of a
head.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from adanat_jax.runtime import sharding

# Multiplications of a head's logits: with fewer, a loop does not pay on a CPU.
_LARGE = 2**16
# Keys from which on a TPU takes a flash kernel: with fewer, padding to blocks
# of so many lanes costs as much as maps that go through memory.
_LONG = 512
_LANES = 128


def attend(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  keys: jax.Array | None = None,
  is_causal: bool = False,
  implementation: str | None = 'xla',
) -> jax.Array:
  """Softmax attention with the scale `C**-0.5`; the softmax is float32.

  Args:
    query: float[B, N, H, C].
    key: float[B, M, H, C].
    value: float[B, M, H, C].
    keys: which keys are attended to, bool[B, M], one at least; None for all.
    is_causal: whether a query sees no key behind its own place.
    implementation: `'xla'`, `'cudnn'` (GPUs, bfloat16), see
      `jax.nn.dot_product_attention`, or `'auto'`: of bfloat16, cuDNN's on a GPU
      and a flash kernel for long sequences on a TPU, where all keys are
      attended to; else `'xla'`.

  Returns:
    float[B, N, H, C].
  """
  mask = None if keys is None else keys[:, None, None]
  products = query.shape[1] * key.shape[1] * query.shape[-1]
  platform = sharding.platform()
  if platform != 'cpu' and query.dtype == jnp.bfloat16 and not is_causal:
    fits_cudnn = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
    if implementation == 'auto' and keys is None:
      if platform == 'gpu' and fits_cudnn:
        implementation = 'cudnn'
      elif platform == 'tpu' and key.shape[1] >= _LONG:
        return _by_device(_flash, query, key, value)
    if implementation == 'cudnn' and keys is None:
      return _cudnn(query, key, value)
    if implementation != 'cudnn':
      return _rounded(query, key, value, mask)
  implementation = 'xla' if implementation == 'auto' else implementation
  on_cpu = platform == 'cpu' and implementation != 'cudnn'
  if on_cpu and products >= _LARGE and not is_causal:
    return _by_sample(_heads_first, query, key, value, mask)
  return jax.nn.dot_product_attention(
    query,
    key,
    value,
    mask=mask,
    is_causal=is_causal,
    implementation=implementation,  # type: ignore[arg-type]
  )


def _rounded(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> jax.Array:
  """Dense attention of bfloat16 whose maps are kept in bfloat16.

  Compilers would keep logits less their maximum in float32. Of a softmax, the
  weights are divided after the product with the values. `mask` is bool[B, 1, 1,
  M] or None.
  """
  scale = jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
  logits = jnp.einsum('bnhc,bmhc->bhnm', query * scale, key)
  if mask is not None:
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min / 2)
  logits = jax.lax.optimization_barrier(logits)
  most = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
  weights = jnp.exp((logits - most).astype(jnp.float32)).astype(value.dtype)
  weights = jax.lax.optimization_barrier(weights)
  total = weights.astype(jnp.float32).sum(-1).swapaxes(1, 2)[..., None]
  result = jnp.einsum('bhnm,bmhc->bnhc', weights, value)
  return (result / total).astype(value.dtype)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """CuDNN's attention; its gradient takes even lengths alone."""
  even = lambda x: jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))
  lengths: dict[str, Any] = {}
  if query.shape[1] % 2 or key.shape[1] % 2:
    lengths = {
      name: jnp.full(len(query), x.shape[1], jnp.int32)
      for name, x in (
        ('query_seq_lengths', query),
        ('key_value_seq_lengths', key),
      )
    }
  result = jax.nn.dot_product_attention(
    even(query), even(key), even(value), implementation='cudnn', **lengths
  )
  return result[:, : query.shape[1]]


def _flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """The flash kernel for TPUs that comes with JAX; it wants whole blocks."""
  # Imports all of Pallas.
  from jax.experimental.pallas.ops.tpu import flash_attention as flash

  def padded(x: jax.Array) -> jax.Array:
    x = x.swapaxes(1, 2)
    return jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % _LANES), (0, 0)))

  def padding(x: jax.Array, length: int) -> jax.Array:
    is_padding = jnp.arange(x.shape[2]) >= length
    return jnp.broadcast_to(is_padding.astype(jnp.int32), x[:, 0, :, 0].shape)

  def block(length: int) -> int:
    return next(n for n in (512, 384, 256, _LANES) if length % n == 0)

  count, scale = query.shape[1], query.shape[-1] ** -0.5
  queries, keys, values = map(padded, (query, key, value))
  rows, columns = block(queries.shape[2]), block(keys.shape[2])
  sizes = flash.BlockSizes(
    block_b=1,
    **dict.fromkeys(('block_q', 'block_q_major_dkv', 'block_q_dkv'), rows),
    block_q_dq=rows,
    **dict.fromkeys(('block_k_major', 'block_k', 'block_k_dkv'), columns),
    **dict.fromkeys(
      ('block_k_major_dkv', 'block_k_major_dq', 'block_k_dq'), columns
    ),
  )
  result = flash.flash_attention(
    queries,
    keys,
    values,
    segment_ids=flash.SegmentIds(
      padding(queries, count), padding(keys, key.shape[1])
    ),
    sm_scale=scale,
    block_sizes=sizes,
  )
  return result[:, :, :count].swapaxes(1, 2)


def _heads_first(
  query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None
) -> jax.Array:
  """Attention of one sample, [N, H, C], [M, H, C] and bool[1, 1, M].

  Products of heads whose axis comes first take XLA's CPU two thirds of the
  time of `jax.nn.dot_product_attention`, in which it comes last.
  """
  query, key, value = (x.swapaxes(0, 1) for x in (query, key, value))
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  logits = product('hnc,hmc->hnm', query, key) * query.shape[-1] ** -0.5
  if mask is not None:
    logits = jnp.where(mask, logits, -0.7 * jnp.finfo(jnp.float32).max)
  weights = jax.nn.softmax(logits).astype(value.dtype)
  result = product('hnm,hmc->hnc', weights, value)
  return result.swapaxes(0, 1).astype(value.dtype)


def _by_sample(
  function: Callable[..., jax.Array],
  query: jax.Array,
  *others: jax.Array | None,
) -> jax.Array:
  """Maps a function over samples, one at a time on each device.

  What a sample takes in between stays in a core's cache; that of a batch goes
  through memory.
  """
  loop = lambda *arrays: jax.lax.map(lambda one: function(*one), arrays)
  return _by_device(loop, query, *others)


def _by_device(
  function: Callable[..., jax.Array],
  query: jax.Array,
  *others: jax.Array | None,
) -> jax.Array:
  """Applies a function to the samples of each device by themselves.

  A loop over an axis that is split would gather it, and so would a kernel that
  the compiler cannot look into.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1 and len(query) % mesh.size == 0:
    rows = PartitionSpec(mesh.axis_names)
    function = jax.shard_map(
      function, in_specs=rows, out_specs=rows, check_vma=False
    )
  return function(query, *others)
