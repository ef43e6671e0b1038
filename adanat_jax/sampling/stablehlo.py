"""The sampler as one file that plain JAX runs, without this package.

`jax.export` writes the decode with its parameters as StableHLO, for any batch.
docs/library.md says how it is read, and for how long JAX promises to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import functools
import os
from typing import Any

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError, shown
from adanat_jax.runtime import files, sharding
from adanat_jax.sampling import program, requests
from adanat_jax.sampling.captions import CaptionEncoder, VectorEncoder
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.program import Plan
from adanat_jax.sampling.requests import AnyPolicy
from adanat_jax.types import Array

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
# Source files that JAX notes beside operations: their names tell nobody about
# the machine, their directories do.
_NOTED = 'jax_hlo_source_file_canonicalization_regex'


def save(
  generator: Generator,
  path: str | os.PathLike[str],
  num_steps: int,
  policy: str | AnyPolicy,
  guidance_scale: float | None,
  platforms: Sequence[str],
) -> None:
  """Writes the file; see `Generator.export`."""
  if not platforms or not {*platforms} <= {*PLATFORMS}:
    raise UserError(
      f'platforms are {shown(platforms)}; give some of {", ".join(PLATFORMS)}'
    )
  schedule = generator.schedule(policy, num_steps)
  if guidance_scale is not None:
    schedule = requests.with_guidance(schedule, guidance_scale)
  scalar = jax.ShapeDtypeStruct((), jnp.uint32)
  with _without_directories():
    exported = export.export(
      jax.jit(_sampler(generator, schedule)), platforms=tuple(platforms)
    )(_labels(generator), scalar, scalar)
  files.write_bytes(path, bytes(exported.serialize()))


def _labels(generator: Generator) -> jax.ShapeDtypeStruct:
  """The type of labels, for a batch of any size."""
  (batch,) = export.symbolic_shape('batch')
  if generator.null_condition is None:
    return jax.ShapeDtypeStruct((batch,), jnp.int32)
  length, width = generator.null_condition.shape
  if isinstance(encoder := generator.encode_captions, CaptionEncoder):
    per_word = getattr(encoder.module, 'word_length', 1)
    return jax.ShapeDtypeStruct((batch, length * per_word), jnp.int32)
  return jax.ShapeDtypeStruct((batch, length, width), jnp.float32)


def _sampler(
  generator: Generator, schedule: Schedule
) -> Callable[[Array, Array, Array], dict[str, Array]]:
  """The function that is exported; it holds what it needs as constants."""
  # What attends differently on one platform would not run on the others.
  nat = generator.nat.clone(attention='xla')
  nat_params = _host(generator.nat_params)
  # The encoder is not part of sampling.
  tokenizer_params = _host(
    {k: v for k, v in generator.tokenizer_params.items() if k != 'encoder'}
  )
  policy = _host(schedule.policy)
  encoder = generator.encode_captions
  if isinstance(encoder, CaptionEncoder):
    tower, tower_params = encoder.module, _host(encoder.params)
  null, mask = generator.null(), nat.codebook_size
  empty = np.full((1, nat.num_tokens), mask, np.int32)
  plan = Plan.from_schedule(schedule)
  plan = generator.planned(plan, schedule.policy, empty, null[None])

  def sampler(labels: Array, seed: Array, first: Array) -> dict[str, Array]:
    if isinstance(encoder, CaptionEncoder):
      # As the encoder does: a caption's states do not depend on the others.
      read = functools.partial(program.apply, tower, '__call__', tower_params)
      labels = jax.lax.map(lambda row: read(row[None]).states[0], labels)
    elif isinstance(encoder, VectorEncoder):
      labels = _scaled(labels)
    index = first + jnp.arange(labels.shape[0], dtype=jnp.uint32)
    canvas = jnp.full((labels.shape[0], nat.num_tokens), mask, jnp.int32)
    batch = {'tokens': canvas, 'labels': labels, 'index': index}
    if schedule.priority is not None:
      order = jnp.asarray(schedule.priority)
      batch['priority'] = jnp.broadcast_to(order, canvas.shape)
    samples = program.decode_batch(
      nat, generator.tokenizer, plan, nat_params, tokenizer_params, policy,
      batch, null, jax.random.key(seed),
    )  # fmt: skip
    return {
      'images': samples.images,
      'tokens': samples.tokens,
      'passes': samples.passes,
    }

  return sampler


def _scaled(vectors: Array) -> Array:
  """Scales as `caption_vectors.scaled` does, in float32."""
  # The squares of the numbers as they come need not be finite.
  most = jnp.abs(vectors).max(-1, keepdims=True)
  vectors = vectors / jnp.where(most > 0, most, 1)
  root = jnp.sqrt(jnp.square(vectors).mean(-1, keepdims=True))
  return vectors / jnp.where(root > 0, root, 1)


def _host(tree: Any) -> Any:
  """The arrays in the memory of the host, whole."""
  here = lambda x: getattr(x, 'is_fully_addressable', True)
  return jax.tree.map(
    lambda x: jax.device_get(x) if here(x) else sharding.gather(x), tree
  )


@contextlib.contextmanager
def _without_directories() -> Iterator[None]:
  """Leaves the directories of source files out of what JAX lowers."""
  before = jax.config.values[_NOTED]
  jax.config.update(_NOTED, '.*/')
  try:
    yield
  finally:
    jax.config.update(_NOTED, before)
