"""What an image costs: operations that are counted, seconds that are measured.

Both are of decoding to tokens, with the policy and without the tokenizer's
decoder, which is the same for all. A way of running a schedule is a path:

all      a NAT: every token, at every step
static   an ENAT and a table: the counts of each step are known beforehand
buckets  an ENAT and an adaptive policy: within bounds that hold the whole batch
masked   the same at every position, with masked attention
own      the same if each sample were computed by itself; nothing runs it
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import time
from typing import Any

import jax
import numpy as np

from adanat_jax.decoding import guidance, unrolled
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.models import denoisers, operations
from adanat_jax.models.enat import ENAT
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.runtime import sharding, timing
from adanat_jax.sampling import program
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.program import Plan
from adanat_jax.types import PolicyValues, TokenCounts


def paths_of(generator: Generator, schedule: Schedule) -> list[str]:
  """The ways of running a schedule; the one a user would take comes first."""
  if not denoisers.reuses(generator.nat):
    return ['all']
  if isinstance(schedule.guided, tuple):
    return ['masked']  # The two passes find unlike counts.
  if schedule.options.candidates > 1:
    return ['masked']
  return ['static'] if schedule.is_table else ['buckets', 'masked']


def path_operations(
  generator: Generator, schedule: Schedule, actor: PolicyNetwork
) -> dict[str, int]:
  """Operations of one image by each path whose counts no sample decides.

  Args:
    generator: the network.
    schedule: the schedule.
    actor: what an adaptive schedule runs at each step.

  Returns:
    Twice the multiply-adds, to tokens: of `all`, or `static`, or `masked`.
  """
  nat, guided = generator.nat, schedule.guided
  table = schedule.policy
  if paths_of(generator, schedule) == ['static']:
    assert isinstance(nat, ENAT) and isinstance(table, PolicyValues)
    assert isinstance(guided, bool)
    counts = unrolled.counts_of(table, nat.num_tokens, options=schedule.options)
    return {
      'static': operations.enat_sampling_operations(nat, counts, 0, guided)
    }
  policy = 0
  if not schedule.is_table:
    policy = operations.policy_operations(actor, nat.width)
  if isinstance(nat, ENAT):
    path, forward = 'masked', operations.enat_operations(nat)
  else:
    path, forward = 'all', operations.nat_operations(nat)
  candidates = schedule.options.candidates
  return {
    path: operations.sampling_operations(
      forward, policy, 0, schedule.num_steps, guided, candidates
    )
  }


def adaptive_operations(
  nat: ENAT,
  found: np.ndarray,
  buckets: Sequence[TokenCounts],
  batch_size: int,
  guided: guidance.Guided = True,
) -> dict[str, float]:
  """What an ENAT costs where samples differ in their counts.

  Args:
    nat: the network.
    found: int[T, S, 3], the counts of each sample at each step, in the order of
      `TokenCounts`.
    buckets: bounds, cheapest first.
    batch_size: B, the samples that are decoded together.
    guided: whether, or at which steps, the unconditional pass runs.

  Returns:
    Operations of the network's forwards for one image, the mean over samples:
    `buckets` with what pads them to the bound of their batch, `own` without.
    `beyond` is the share of forwards that no bucket holds.
  """
  cost = functools.cache(lambda counts: operations.enat_operations(nat, counts))
  passes = guidance.passes(guided, len(found)).tolist()
  own = sum(
    taken * cost(TokenCounts(*x))
    for taken, rows in zip(passes, found.tolist(), strict=True)
    for x in rows
  )
  padded, beyond, forwards = 0, 0, 0
  count = found.shape[1]
  for first in range(0, count, batch_size):
    batch = found[:, first : first + batch_size]
    for taken, needed in zip(passes, batch.max(axis=1).tolist(), strict=True):
      bound = next((b for b in buckets if all(np.less_equal(needed, b))), None)
      padded += taken * cost(bound) * batch.shape[1]
      beyond += bound is None
      forwards += 1
  return {
    'buckets': padded / count,
    'own': own / count,
    'beyond': beyond / forwards,
  }


def make_calls(
  generator: Generator, schedule: Schedule, path: str, num_batches: int
) -> Callable[[int], None]:
  """A function of a seed that decodes batches to tokens, and waits for them.

  Args:
    generator: the network, and for the path `buckets` its buckets.
    schedule: the schedule.
    path: see the module.
    num_batches: how many batches of the generator's size a call decodes.
  """
  nat, size = generator.nat, generator.batch_size
  mesh = generator.mesh or sharding.make_mesh()
  tokens = np.full((size, nat.num_tokens), nat.codebook_size, np.int32)
  labels = np.arange(size, dtype=np.int32) % generator.num_classes
  policy = schedule.policy
  plan = Plan.from_schedule(schedule)
  if path == 'static':
    assert isinstance(policy, PolicyValues)
    plan = program.with_counts(nat, plan, policy, tokens, labels)
  elif path == 'buckets':
    plan = dataclasses.replace(plan, buckets=generator.buckets[plan.num_steps])
  null = np.asarray(generator.num_classes, np.int32)
  rows = sharding.local_rows(np.arange(size), mesh)
  batches: list[Any] = [
    sharding.put_batch(
      {
        'tokens': tokens[rows],
        'labels': labels[rows],
        'index': (number * size + rows).astype(np.int32),
        **program.priority_of(schedule, len(rows)),
      },
      mesh,
    )
    for number in range(num_batches)
  ]

  def call(seed: int) -> None:
    key = jax.random.key(seed)
    with jax.set_mesh(mesh):
      jax.block_until_ready(
        [
          program.decode_tokens(
            nat, plan, generator.nat_params, policy, batch, null, key
          ).tokens
          for batch in batches
        ]
      )

  return call


def seconds_of(
  calls: Mapping[str, Callable[[int], None]], num_rounds: int
) -> dict[str, list[float]]:
  """Times every call in turn, in rounds, compiled beforehand.

  Args:
    calls: functions of a seed, which all calls of a round share.
    num_rounds: how many.

  Returns:
    Seconds of each call, one number a round.
  """
  return timing.interleaved(
    {name: _timed(call) for name, call in calls.items()}, num_rounds
  )


def _timed(call: Callable[[int], None]) -> Callable[[], float]:
  call(0)
  seeds = itertools.count(1)

  def run() -> float:
    seed = next(seeds)
    start = time.perf_counter()
    call(seed)
    return time.perf_counter() - start

  return run
