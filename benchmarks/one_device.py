"""Whether a mesh costs anything where there is one device.

  python benchmarks/one_device.py --output=one_device.json

compiles sampling and the training steps of the digits twice, without a mesh and
on the mesh of one device that every stage uses, and runs the two in turn. They
must be within 10 % of each other, and their programs have the same instructions
(tests/benchmarks_collectives_test.py).
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import pathlib
import time
from typing import Any

from absl import app, flags
import clock
import hlo
import jax
import programs
import running

from adanat_jax.experiment import config as config_lib
from adanat_jax.runtime import sharding, timing

_REPEATS = flags.DEFINE_integer('repeats', 15, 'Rounds of each comparison.')
_MINUTES = flags.DEFINE_float(
  'minutes', 10.0, 'No round starts that ends later.'
)
_PROGRAMS = flags.DEFINE_multi_enum(
  'programs',
  ['sampling', 'nat', 'policy'],
  ['sampling', 'nat', 'policy'],
  'What to compare.',
)
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write JSON.')

_CONFIG = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'
_SAMPLES = 100
_WAYS = ('plain', 'mesh')


def compare(
  program: programs.Program, repeats: int, deadline: float
) -> dict[str, Any]:
  """Seconds of both ways, and how their programs differ."""
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  compiled = {'plain': program.compile(), 'mesh': program.compile(mesh)}
  counts = {way: hlo.opcodes(compiled[way].as_text()) for way in _WAYS}
  calls = {
    way: clock.timed(running.runner(program, compiled[way])) for way in _WAYS
  }
  for call in calls.values():
    call()
  rounds = clock.interleaved(calls, repeats, deadline)
  seconds = {
    way: timing.spread([row[0] for row in rounds[way]]) for way in _WAYS
  }
  return {
    'seconds': seconds,
    'rounds': len(rounds['plain']),
    'mesh_over_plain': seconds['mesh']['median'] / seconds['plain']['median'],
    'more_instructions': dict(counts['mesh'] - counts['plain']),
  }


def main(argv: Sequence[str]) -> None:
  """Compares, prints, writes."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  deadline = time.monotonic() + 60 * _MINUTES.value
  config = config_lib.load(str(_CONFIG), {'policy.batch_size': 96})
  table = {}
  make = {
    'sampling': lambda: programs.sampling_program(config, _SAMPLES),
    'nat': lambda: programs.nat_program(config),
    'policy': lambda: programs.PolicyTraining(config).whole(),
  }
  for name in _PROGRAMS.value:
    table[name] = compare(make[name](), _REPEATS.value, deadline)
    clock.say(f'{name}: {table[name]}')
  for name, row in table.items():
    plain, mesh = (row['seconds'][way]['median'] for way in _WAYS)
    print(
      f'{name}: plain {plain:.3f} s, mesh {mesh:.3f} s, ratio'
      f' {row["mesh_over_plain"]:.3f} of medians of {row["rounds"]} rounds;'
      f' more instructions: {row["more_instructions"] or "none"}'
    )
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(table, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
