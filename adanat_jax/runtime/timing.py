"""Timing that a busy machine disturbs as little as possible."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
import os
import pathlib
import platform
import statistics
import time
from typing import Any, TypeVar

import jax

Name = TypeVar('Name', bound=Hashable)
Measured = TypeVar('Measured')


def interleaved(
  calls: Mapping[Name, Callable[[], Measured]],
  num_rounds: int,
  go_on: Callable[[int, float], bool] = lambda number, seconds: True,
) -> dict[Name, list[Measured]]:
  """Measures the calls alternately, in rounds.

  A disturbance of the machine then affects all calls alike. Every other round
  runs backwards, so that no call always follows the same one.

  Args:
    calls: each returns its measurement; they must be warmed up.
    num_rounds: the maximum number of rounds.
    go_on: called after each round with the number of rounds so far and the
      seconds that this one took; returns False to stop.

  Returns:
    Each call's measurements, one a round.
  """
  result: dict[Name, list[Measured]] = {name: [] for name in calls}
  for number in range(num_rounds):
    start = time.monotonic()
    names = list(calls)
    for name in names if number % 2 == 0 else reversed(names):
      result[name].append(calls[name]())
    if not go_on(number + 1, time.monotonic() - start):
      break
  return result


def spread(values: Sequence[float]) -> dict[str, Any]:
  """Returns median, minimum, maximum, and the values themselves."""
  return {
    'median': statistics.median(values),
    'low': min(values),
    'high': max(values),
    'values': list(values),
  }


def machine() -> dict[str, Any]:
  """Describes the machine that was timed."""
  try:
    cores = len(os.sched_getaffinity(0))
  except AttributeError:  # Not on this system.
    cores = os.cpu_count() or 1
  return {
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'platform': jax.devices()[0].platform,
    'processor': _processor(),
    'cores': cores,
    'load_before': os.getloadavg()[0],
    'jax': jax.__version__,
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
  }


def _processor() -> str:
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.is_file():
    for line in cpuinfo.read_text().splitlines():
      if line.startswith('model name'):
        return line.split(':', 1)[1].strip()
  return platform.processor() or platform.machine()
