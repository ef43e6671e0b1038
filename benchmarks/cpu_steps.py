"""What a step of the digits takes on a CPU, one way and another.

  python benchmarks/cpu_steps.py --rounds=4 --output=cpu_steps.json

times a step of NAT training in four processes in turn: with
`environment.keep_memory` and without, with `layers.Dense` and with flax's.

  python benchmarks/cpu_steps.py --compare=mesh --rounds=15

compiles sampling and both training steps without a mesh and on the mesh of one
device that every stage uses, and runs the two in turn. They must be within 10 %
of each other, and their programs have the same instructions
(tests/benchmarks_collectives_test.py).
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
import hlo
import jax
import output
import programs
import sampling

from adanat_jax.experiment import config as config_lib
from adanat_jax.models import layers
from adanat_jax.runtime import environment, sharding, timing

_CONFIG = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'
_CASES = tuple(itertools.product(('left', 'kept'), ('stacked', 'flat')))
_SAMPLES = 100


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


def meshes(rounds: int, minutes: float, names: list[str]) -> tuple[Any, str]:
  """Each program without a mesh and with one: figures and table."""
  deadline = time.monotonic() + 60 * minutes
  config = config_lib.load(str(_CONFIG), {'policy.batch_size': 96})
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  make = {
    'sampling': lambda: sampling.sampling_program(config, _SAMPLES),
    'nat': lambda: programs.nat_program(config),
    'policy': lambda: programs.policy_program(config),
  }
  figures, rows = {}, []
  for name in names:
    program = make[name]()
    compiled = {'plain': program.compile(), 'mesh': program.compile(mesh)}
    counts = {way: hlo.opcodes(x.as_text()) for way, x in compiled.items()}
    calls = {
      way: clock.timed(programs.runner(program, x))
      for way, x in compiled.items()
    }
    for call in calls.values():
      call()
    seconds = {
      way: timing.spread([row[0] for row in values])
      for way, values in clock.interleaved(calls, rounds, deadline).items()
    }
    more = dict(counts['mesh'] - counts['plain'])
    figures[name] = {'seconds': seconds, 'more_instructions': more}
    plain, meshed = (seconds[way]['median'] for way in ('plain', 'mesh'))
    times = f'{plain:.3f} s', f'{meshed:.3f} s', f'{meshed / plain:.2f}'
    number = len(seconds['plain']['values'])
    rows.append((name, *times, number, more or 'none'))
  header = ',without a mesh,with,ratio,rounds,more instructions'.split(',')
  return figures, output.table(header, rows)


def main() -> None:
  """Compares, prints, writes."""
  parser = output.parser(__doc__)
  add = parser.add_argument
  add('--compare', choices=('memory', 'mesh'), default='memory')
  add('--rounds', type=int, default=5, help='How often each way is run.')
  add('--steps', type=int, default=20, help='Timed steps of a process.')
  add('--minutes', type=float, default=10, help='When meshes end.')
  kinds = ['sampling', 'nat', 'policy']
  add('--programs', nargs='+', choices=kinds, default=kinds)
  add('--case', nargs=2, help='Of a child: one of the four.')
  given = parser.parse_args()
  if given.case:
    print(json.dumps(measure(*given.case, given.steps)))
    return
  if given.compare == 'mesh':
    found = meshes(given.rounds, given.minutes, given.programs)
  else:
    found = processes(given.rounds, given.steps)
  output.finish(*found, given.output)


if __name__ == '__main__':
  main()
