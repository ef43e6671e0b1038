"""What benchmarks time with: calls in parts, in rounds, up to a deadline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
  """Measures every call in turn, `repeats` rounds of it.

  Args:
    calls: warmed up.
    repeats: number of rounds.
    deadline: of `time.monotonic`; no round but the first starts that would end
      later, judged by the one before.

  Returns:
    One tuple of seconds a round.
  """

  def go_on(number: int, seconds: float) -> bool:
    say(f'  round {number} of {repeats}: {seconds:.1f} s')
    return time.monotonic() + seconds <= deadline

  return timing.interleaved(
    {name: functools.partial(measure, call) for name, call in calls.items()},
    repeats,
    go_on,
  )


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
