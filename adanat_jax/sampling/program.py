"""The compiled decoding of one batch, from canvases to images.

`generator.Generator` cuts requests into batches; each of them runs this one
program.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, TypeGuard

from flax import struct
import jax
from jax.sharding import Mesh
import numpy as np

from adanat_jax.decoding import (
  buckets as buckets_lib,
  loop,
  schedules,
  step as step_lib,
  unrolled,
)
from adanat_jax.decoding.schedules import PolicyLike, Schedule
from adanat_jax.models import denoisers
from adanat_jax.runtime import sharding
from adanat_jax.types import Array, PolicyValues, TokenCounts, Trajectory


@struct.dataclass
class Samples:
  """What a batch of samples consists of."""

  images: Any  # float32[B, H, W, C]; in [0, 1]
  tokens: Any  # int32[B, N]; complete token grids
  # Time-major record of the decode less the network's features, None unless
  # asked for.
  trajectory: Trajectory | None
  passes: Any = None  # int32[B]; denoiser passes that each sample needed


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a compiled program is made for: what is static of a schedule.

  Schedules that differ in nothing else, such as two tables of a search, share
  a program: their policies are its arguments.
  """

  num_steps: int
  guided: bool = True  # whether the unconditional pass runs at all
  options: step_lib.StepOptions = step_lib.ADANAT
  record: bool = False  # whether to return the trajectory
  # Of each step of a table, where the network can make use of them: the steps
  # are unrolled, each gathers the tokens it needs.
  counts: tuple[TokenCounts, ...] | None = None
  # Bounds of the counts of a policy that decides for each sample, cheapest
  # first; none to run every block at every position.
  buckets: tuple[TokenCounts, ...] = ()

  @classmethod
  def from_schedule(cls, schedule: Schedule, record: bool = False) -> Plan:
    """The plan of a schedule, without counts and buckets."""
    return cls(schedule.num_steps, schedule.guided, schedule.options, record)


@functools.partial(jax.jit, static_argnums=(0, 1))
def decode_tokens(
  nat: denoisers.DenoiserModule,
  plan: Plan,
  nat_params: Any,
  policy: PolicyLike,
  batch: dict[str, Array],
  null_condition: Array,
  key: Array,
) -> loop.Decoded:
  """Decodes one batch to tokens.

  Args:
    nat: the network.
    plan: see `Plan`.
    nat_params: its parameters.
    policy: that of the schedule; a table of float32[T, B] has the columns of
      these samples.
    batch: `tokens` int32[B, N], the canvases to start from; `labels`, int32[B]
      classes or float32[B, L, C] texts; `index` int32[B], the numbers of the
      samples, from which their noise follows; `priority` float32[B, N] where
      the schedule has one.
    null_condition: what stands for no condition, without a batch axis.
    key: of the whole set of samples.
  """
  nat_params = sharding.whole(nat_params)
  tokens, condition = batch['tokens'], batch['labels']
  keys = loop.keys_of(key, batch['index'])
  shared: dict[str, Any] = dict(
    priority=batch.get('priority'),
    tokens=tokens,
    condition=condition,
    null_condition=null_condition if plan.guided else None,
    keys=keys,
    mask_token=nat.codebook_size,
    options=plan.options,
    record=plan.record,
  )
  if plan.counts is not None:
    assert isinstance(policy, PolicyValues)
    gathering = denoisers.make_gathering(nat, nat_params)
    return _without_features(
      unrolled.decode(gathering, policy, counts=plan.counts, **shared)
    )
  denoiser = denoisers.make(nat, nat_params)
  if plan.buckets:
    denoiser = buckets_lib.bucketed(
      denoisers.make_gathering(nat, nat_params),
      denoiser,
      plan.buckets,
      nat.codebook_size,
    )
  rows = (1 + plan.guided) * len(tokens)
  cache = denoisers.empty_cache(nat, rows, denoisers.text_length(condition))
  decoded = loop.decode(
    denoiser,
    schedules.as_policy(policy),
    num_steps=plan.num_steps,
    policy_carry=schedules.initial_carry(policy, keys),
    cache=sharding.split_batch(cache),
    **shared,
  )
  return _without_features(decoded)


def _without_features(decoded: loop.Decoded) -> loop.Decoded:
  """Only training reads them; of many samples they would be gigabytes."""
  if decoded.trajectory is None:
    return decoded
  trajectory = dataclasses.replace(decoded.trajectory, features=None)
  return dataclasses.replace(decoded, trajectory=trajectory)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def decode_batch(
  nat: denoisers.DenoiserModule,
  tokenizer: Any,
  plan: Plan,
  nat_params: Any,
  tokenizer_params: Any,
  policy: PolicyLike,
  batch: dict[str, Array],
  null_condition: Array,
  key: Array,
) -> Samples:
  """Decodes one batch to images.

  `tokenizer` is a module with the method `decode_tokens`; of the others see the
  function `decode_tokens`.
  """
  decoded = decode_tokens(
    nat, plan, nat_params, policy, batch, null_condition, key
  )
  variables = {'params': sharding.whole(tokenizer_params)}
  images = tokenizer.apply(variables, decoded.tokens, method='decode_tokens')
  return Samples(images, decoded.tokens, decoded.trajectory, decoded.passes)


def is_shared_table(policy: PolicyLike) -> TypeGuard[PolicyValues]:
  """Whether a policy is a table of float32[T], the same for all samples."""
  return isinstance(policy, PolicyValues) and np.ndim(policy.mask_ratio) == 1


def with_counts(
  nat: denoisers.DenoiserModule,
  plan: Plan,
  table: PolicyValues,
  tokens: np.ndarray,
  labels: Any,
) -> Plan:
  """The plan of a table float32[T], with its counts if all canvases share them.

  `nat` can make use of them, `tokens` int32[B, N] are the canvases to start
  from, and of `labels` see `decode_tokens`.
  """
  if not plan.options.has_counts:
    return plan
  unknown = np.unique((tokens == nat.codebook_size).sum(axis=1))
  if len(unknown) > 1:
    return plan
  counts = unrolled.counts_of(
    table,
    nat.num_tokens,
    num_unknown=int(unknown[0]),
    text_length=denoisers.text_length(labels),
    options=plan.options,
  )
  return dataclasses.replace(plan, counts=counts)


def rows_of(policy: PolicyLike, rows: np.ndarray, mesh: Mesh) -> PolicyLike:
  """A table a sample, float32[T, B], restricted to this process's samples."""
  if not isinstance(policy, PolicyValues):
    return policy
  table = jax.tree.map(np.asarray, policy)
  if is_shared_table(table):
    return table
  table = jax.tree.map(lambda x: x[:, rows], table)
  return sharding.put_batch(table, mesh, axis=1)


def keep(part: Samples, count: int) -> Samples:
  """Drops the padding of a batch."""
  return Samples(
    part.images[:count],
    part.tokens[:count],
    jax.tree.map(lambda x: x[:, :count], part.trajectory),
    part.passes[:count],
  )


def join(parts: Sequence[Samples]) -> Samples:
  """Batches one after the other."""
  join = lambda axis: lambda *xs: np.concatenate(xs, axis)
  return Samples(
    join(0)(*(part.images for part in parts)),
    join(0)(*(part.tokens for part in parts)),
    jax.tree.map(join(1), *(part.trajectory for part in parts)),
    join(0)(*(part.passes for part in parts)),
  )
