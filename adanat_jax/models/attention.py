"""Attention by whatever the device does fastest; every network calls `attend`.

Shape letters: `B` samples, `N` queries, `M` keys, `H` heads, `C` width of a
head.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

# Multiplications of a head's logits: with fewer, a loop does not pay on a CPU.
_LARGE = 2**16


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
    implementation: `'xla'` or `'cudnn'`, see `jax.nn.dot_product_attention`.

  Returns:
    float[B, N, H, C].
  """
  mask = None if keys is None else keys[:, None, None]
  products = query.shape[1] * key.shape[1] * query.shape[-1]
  on_cpu = jax.default_backend() == 'cpu' and implementation != 'cudnn'
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
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.size > 1 and len(query) % mesh.size == 0:
    # A loop over an axis that is split would gather it.
    rows = PartitionSpec(mesh.axis_names)
    loop = jax.shard_map(loop, in_specs=rows, out_specs=rows)
  return loop(query, *others)
