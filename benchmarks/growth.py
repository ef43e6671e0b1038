"""How time and memory of a decode grow with what is asked for.

  python benchmarks/growth.py --output=growth.json

runs one small network, and the same with more of one thing: samples, steps,
tokens, codes, or fake devices that share the cores. Each is set against its
operations by formula. All take turns; the figures are processor seconds, which
other programs disturb less than the clock.
At the end, the order of training sets of up to ten million examples.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import statistics
import time
import tracemalloc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import output
import programs

from adanat_jax.data import order
from adanat_jax.decoding import schedules
from adanat_jax.models import operations
from adanat_jax.models.nat import NAT
from adanat_jax.runtime import environment, sharding, timing
from adanat_jax.sampling import program

_MOST_DEVICES = 8


@dataclasses.dataclass(frozen=True)
class Case:
  """What is decoded; guided, by MaskGIT's table."""

  batch_size: int = 16
  num_steps: int = 4
  num_tokens: int = 64
  codebook_size: int = 256
  num_devices: int = 1

  @functools.cached_property
  def nat(self) -> NAT:
    """The network, of width 128 with 4 + 1 blocks."""
    return NAT(
      codebook_size=self.codebook_size,
      num_tokens=self.num_tokens,
      num_classes=10,
      width=128,
      depth=4,
      num_heads=4,
    )

  @property
  def operations(self) -> int:
    """Of all samples, two for each multiply-add."""
    forward = operations.nat_operations(self.nat)
    sample = operations.sampling_operations(
      forward, 0, 0, self.num_steps, guided=True
    )
    return self.batch_size * sample


CASES = {
  '16 samples, T = 4, N = 64, K = 256': Case(),
  'samples x 2': Case(batch_size=32),
  'T x 2': Case(num_steps=8),
  'N x 4': Case(num_tokens=256),
  'K x 8': Case(codebook_size=2048),
  '2 devices': Case(num_devices=2),
  '8 devices': Case(num_devices=8),
}


def compiled(case: Case) -> tuple[Callable[[], Any], int]:
  """What decodes a case, and the bytes of temporaries on a device."""
  nat, rows = case.nat, case.batch_size
  canvas = jax.ShapeDtypeStruct((1, case.num_tokens), jnp.int32)
  label = jax.ShapeDtypeStruct((1,), jnp.int32)
  shapes = jax.eval_shape(nat.init, jax.random.key(0), canvas, label)
  mesh = sharding.make_mesh(devices=jax.devices()[: case.num_devices])
  schedule = schedules.make(
    'maskgit(guidance_scale=1.0)', case.num_steps, case.num_tokens
  )
  batch = {
    'tokens': np.full((rows, case.num_tokens), case.codebook_size, np.int32),
    'labels': np.arange(rows, dtype=np.int32) % 10,
    'index': np.arange(rows, dtype=np.int32),
  }
  with jax.set_mesh(mesh):
    arguments = (
      sharding.shard_state(programs.random_arrays(shapes['params']), mesh),
      schedule.policy,
      sharding.put_batch(batch, mesh),
      np.int32(10),
      jax.random.key(0),
    )
    plan = program.Plan.from_schedule(schedule)
    made = program.decode_tokens.lower(nat, plan, *arguments).compile()

  def run() -> Any:
    with jax.set_mesh(mesh):
      return made(*arguments)

  memory = made.memory_analysis()
  assert memory is not None  # CPUs say it.
  return run, memory.temp_size_in_bytes


def processor_seconds(call: Callable[[], Any]) -> float:
  """Of all threads, for one call."""
  start = time.process_time()
  jax.block_until_ready(call())
  return time.process_time() - start


def growth(rounds: int) -> list[dict[str, Any]]:
  """Time and memory of each case, and as a multiple of the first one's."""
  made = {name: compiled(case) for name, case in CASES.items()}
  calls = {name: functools.partial(processor_seconds, run)
           for name, (run, _) in made.items()}  # fmt: skip
  for call in calls.values():
    call()
  seconds = timing.interleaved(calls, rounds)
  first, *_ = CASES
  return [
    {
      'case': name,
      'operations': case.operations / CASES[first].operations,
      # Of rounds, because a disturbance lasts longer than one.
      'seconds': statistics.median(
        a / b for a, b in zip(seconds[name], seconds[first], strict=True)
      ),
      'processor seconds': statistics.median(seconds[name]),
      'temporaries': made[name][1],
    }
    for name, case in CASES.items()
  ]


def orders(counts: tuple[int, ...]) -> list[dict[str, Any]]:
  """The first batch of an epoch, which shuffles, and any other."""
  rows = []
  for count in counts:
    order._epoch_order.cache_clear()
    tracemalloc.start()
    batch = functools.partial(order.epoch_batch, 0, 256, count, 0)
    first = processor_seconds(batch)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    later = processor_seconds(batch)
    rows.append(
      {'examples': count, 'first': first, 'later': later}
      | {'kept': kept, 'most': most}
    )
  order._epoch_order.cache_clear()
  return rows


def main() -> None:
  """Measures, prints, writes."""
  parser = output.parser(__doc__)
  parser.add_argument('--rounds', type=int, default=7)
  given = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', _MOST_DEVICES)
  environment.keep_memory()
  found = growth(given.rounds)
  ordered = orders((100_000, 1_000_000, 10_000_000))
  decode = output.table(
    ('decode', 'operations', 'processor seconds', 'of the first', 'MB'),
    [
      (
        row['case'],
        f'x {row["operations"]:.2f}',
        output.number(row['processor seconds']),
        f'x {row["seconds"]:.2f}',
        output.number(row['temporaries'] / 1e6),
      )
      for row in found
    ],
  )
  orders_table = output.table(
    ('examples', 'first batch', 'another', 'kept MB', 'at most MB'),
    [
      (
        f'{row["examples"]:,}',
        f'{1e3 * row["first"]:.0f} ms',
        f'{1e6 * row["later"]:.0f} us',
        output.number(row['kept'] / 1e6),
        output.number(row['most'] / 1e6),
      )
      for row in ordered
    ],
  )
  about = timing.machine()
  text = '\n\n'.join([output.machine(about), decode, orders_table])
  figures = {'machine': about, 'decode': found, 'orders': ordered}
  output.finish(figures, text, given.output)


if __name__ == '__main__':
  main()
