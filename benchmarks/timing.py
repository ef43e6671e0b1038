"""Timing that a busy machine disturbs as little as possible."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
import os
import pathlib
import platform
import statistics
import sys
import time
from typing import Any, TypeAlias, TypeVar

import jax

# Runs something to its end and returns the seconds that each part of it took.
Timed: TypeAlias = Callable[[], tuple[float, ...]]
Name = TypeVar('Name', bound=Hashable)

# Calls that are shorter are repeated within a measurement for this long.
_MIN_SECONDS = 0.1


_START = time.monotonic()


def say(text: str) -> None:
  """Progress, apart from the results on standard output."""
  seconds = time.monotonic() - _START
  print(f'{seconds:6.1f} s  {text}', file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
  """What the figures belong to."""
  model = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.is_file():
    lines = cpuinfo.read_text().splitlines()
    names = [x.split(':')[1].strip() for x in lines if 'model name' in x]
    model = names[0] if names else model
  return {
    'device': jax.devices()[0].device_kind,
    'platform': jax.devices()[0].platform,
    'processor': model,
    'cores': len(os.sched_getaffinity(0)),
    'load_before': os.getloadavg()[0],
    'jax': jax.__version__,
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
  }


def timed(call: Callable[[], object]) -> Timed:
  """A call of one part; what it returns is waited for."""

  def run() -> tuple[float]:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return (time.perf_counter() - start,)

  return run


def measure(call: Timed) -> tuple[float, ...]:
  """Seconds of each part, the mean over calls if a call is short."""
  totals, count = call(), 1
  while sum(totals) < _MIN_SECONDS:
    totals = tuple(map(sum, zip(totals, call(), strict=True)))
    count += 1
  return tuple(total / count for total in totals)


def interleaved(
  calls: Mapping[Name, Timed], repeats: int, deadline: float
) -> dict[Name, list[tuple[float, ...]]]:
  """Measures every call in turn, `repeats` rounds of it.

  What disturbs the machine for a while then disturbs all calls alike. Every
  other round goes backwards, so that none always follows the same one.

  Args:
    calls: warmed up.
    repeats: number of rounds.
    deadline: of `time.monotonic`; no round but the first starts that would end
      later, judged by the one before.

  Returns:
    One tuple of seconds a round.
  """
  result: dict[Name, list[tuple[float, ...]]] = {name: [] for name in calls}
  for index in range(repeats):
    start = time.monotonic()
    names = list(calls)
    for name in names if index % 2 == 0 else reversed(names):
      result[name].append(measure(calls[name]))
    took = time.monotonic() - start
    say(f'  round {index + 1} of {repeats}: {took:.1f} s')
    if time.monotonic() + took > deadline:
      break
  return result


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median, lowest and highest."""
  return {
    'median': statistics.median(values),
    'low': min(values),
    'high': max(values),
  }


class Peak:
  """The fastest float32 product of two square matrices seen so far."""

  def __init__(self, sizes: Sequence[int] = (1024, 2048, 4096)):
    self._product = jax.jit(lambda a, b: a @ b)
    self._best = dict.fromkeys(sizes, 0.0)

  def look(self, repeats: int) -> None:
    """Measures every size, once unmeasured and then `repeats` times."""
    for size in self._best:
      matrix = jax.random.normal(jax.random.key(size), (size, size))
      call = timed(lambda x=matrix: self._product(x, x))
      call()
      seconds = min(call()[0] for _ in range(repeats))
      self._best[size] = max(self._best[size], 2 * size**3 / seconds)

  @property
  def by_size(self) -> dict[int, float]:
    """Operations per second at each size."""
    return dict(self._best)

  @property
  def best(self) -> float:
    """Operations per second."""
    return max(self._best.values())
