"""What a step of the digits takes on a CPU, one way and another.

  python benchmarks/cpu_steps.py --rounds=4 --output=cpu_steps.json

times a step of NAT training in four processes in turn: with
`environment.keep_memory` and without, with `layers.Dense` and with flax's.
"""

from __future__ import annotations

import itertools
import json
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

import clock
import flax.linen as nn
import jax
import output
import programs

from adanat_jax.experiment import config as config_lib
from adanat_jax.models import layers
from adanat_jax.runtime import environment, timing

_CONFIG = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'
_CASES = tuple(itertools.product(('left', 'kept'), ('stacked', 'flat')))


def measure(memory: str, products: str, steps: int) -> dict[str, float]:
  """Of one step: seconds, the processors' seconds, page faults."""
  if memory == 'kept':
    assert environment.keep_memory()
  if products == 'stacked':
    layers.Dense.__call__ = nn.Dense.__call__  # type: ignore[method-assign]
  program = programs.nat_program(config_lib.load(str(_CONFIG)))
  step = programs.runner(program, program.compile())
  # Twice: what is kept grows until it holds all that is in use at once.
  for _ in range(2):
    start, before = time.perf_counter(), resource.getrusage(0)
    for _ in range(steps):
      result = step()
    jax.block_until_ready(result)
  seconds, after = time.perf_counter() - start, resource.getrusage(0)
  busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  return {
    'seconds': seconds / steps,
    'processor_seconds': busy / steps,
    'page_faults': (after.ru_minflt - before.ru_minflt) / steps,
  }


def processes(rounds: int, steps: int) -> tuple[Any, str]:
  """The four cases, each in a process of its own: figures and table."""
  found: dict[tuple[str, str], list[Any]] = {case: [] for case in _CASES}
  for number in range(rounds):
    for case in _CASES:
      command = [sys.executable, __file__, f'--steps={steps}', '--case', *case]
      text = subprocess.check_output(command, text=True)
      found[case].append(json.loads(text))
    clock.say(f'round {number + 1} of {rounds}')
  figures = {
    case: {key: timing.spread([row[key] for row in rows]) for key in rows[0]}
    for case, rows in found.items()
  }
  header = ('memory', 'products', 'a step', 'of processors', 'page faults')
  rows = [
    (
      *case,
      '{median:.3f} s ({low:.3f} to {high:.3f})'.format(**row['seconds']),
      f'{row["processor_seconds"]["median"]:.3f} s',
      f'{row["page_faults"]["median"]:,.0f}',
    )
    for case, row in figures.items()
  ]
  named = {' '.join(case): row for case, row in figures.items()}
  return named, output.table(header, rows)


def main() -> None:
  """Compares, prints, writes."""
  parser = output.parser(__doc__)
  add = parser.add_argument
  add('--rounds', type=int, default=5, help='How often each way is run.')
  add('--steps', type=int, default=20, help='Timed steps of a process.')
  add('--case', nargs=2, help='Of a child: one of the four.')
  given = parser.parse_args()
  if given.case:
    print(json.dumps(measure(*given.case, given.steps)))
    return
  output.finish(*processes(given.rounds, given.steps), given.output)


if __name__ == '__main__':
  main()
