"""What benchmarks time with: calls in parts, in rounds, up to a deadline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import sys
import time
from typing import TypeAlias

import jax

from adanat_jax.runtime import timing
from adanat_jax.runtime.timing import Name

# Runs something to its end and returns the seconds that each part of it took.
Timed: TypeAlias = Callable[[], tuple[float, ...]]

# Calls that are shorter are repeated within a measurement for this long.
_MIN_SECONDS = 0.1


_START = time.monotonic()


def say(text: str) -> None:
  """Progress, apart from the results on standard output."""
  seconds = time.monotonic() - _START
  print(f'{seconds:6.1f} s  {text}', file=sys.stderr, flush=True)


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
  """Measures every call in turn, `repeats` rounds of it, warmed up.

  No round but the first starts that would end after the deadline, a time of
  `time.monotonic`, judged by the one before. A round gives a tuple of seconds.
  """

  def go_on(number: int, seconds: float) -> bool:
    say(f'  round {number} of {repeats}: {seconds:.1f} s')
    return time.monotonic() + seconds <= deadline

  return timing.interleaved(
    {name: functools.partial(measure, call) for name, call in calls.items()},
    repeats,
    go_on,
  )
