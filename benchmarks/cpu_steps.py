"""What keeping memory and flat products save a training step on a CPU.

  python benchmarks/cpu_steps.py --output=cpu_steps.json

times a training step of the digits' NAT in four processes in turn: with
`environment.keep_memory` and without, with `layers.Dense` and with flax's.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import json
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

from absl import app, flags
import clock
import flax.linen as nn
import jax
import programs
import running

from adanat_jax.experiment import config as config_lib
from adanat_jax.models import layers
from adanat_jax.runtime import environment, timing

_ROUNDS = flags.DEFINE_integer('rounds', 5, 'How often each process is run.')
_STEPS = flags.DEFINE_integer('steps', 20, 'Timed steps of a process.')
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write JSON.')
_CASE = flags.DEFINE_string('case', None, 'One of the four, in this process.')

_CONFIG = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'
_MEMORY = ('left', 'kept')
_PRODUCTS = ('stacked', 'flat')
_CASES = tuple(map(' '.join, itertools.product(_MEMORY, _PRODUCTS)))


def measure(case: str) -> dict[str, float]:
  """Of one step: seconds, the processors' seconds, page faults."""
  memory, products = case.split()
  if memory == 'kept':
    assert environment.keep_memory()
  if products == 'stacked':
    layers.Dense.__call__ = nn.Dense.__call__  # type: ignore[method-assign]
  program = programs.nat_program(config_lib.load(str(_CONFIG)))
  step = running.runner(program, program.compile())
  # Twice: what is kept grows until it holds all that is in use at once.
  for _ in range(2):
    start, before = time.perf_counter(), resource.getrusage(0)
    for _ in range(_STEPS.value):
      result = step()
    jax.block_until_ready(result)
  seconds, after = time.perf_counter() - start, resource.getrusage(0)
  return {
    'seconds': seconds / _STEPS.value,
    'processor_seconds': (
      after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    )
    / _STEPS.value,
    'page_faults': (after.ru_minflt - before.ru_minflt) / _STEPS.value,
  }


def main(argv: Sequence[str]) -> None:
  """Compares, prints, writes."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  if _CASE.value:
    print(json.dumps(measure(_CASE.value)))
    return
  rounds: list[dict[str, Any]] = []
  for number in range(_ROUNDS.value):
    row = {}
    for case in _CASES:
      command = [*sys.orig_argv, f'--case={case}']
      row[case] = json.loads(subprocess.check_output(command, text=True))
    clock.say(f'round {number + 1}: {row}')
    rounds.append(row)
  table = {
    case: {
      figure: timing.spread([row[case][figure] for row in rounds])
      for figure in rounds[0][case]
    }
    for case in _CASES
  }
  for case, row in table.items():
    print(
      f'memory {case} products: {row["seconds"]["median"]:.3f} s,'
      f' {row["processor_seconds"]["median"]:.3f} s of processors,'
      f' {row["page_faults"]["median"]:.0f} page faults'
    )
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(table, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
