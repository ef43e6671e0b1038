"""Stage `export`: the generator of a workdir as one folder to share.

adanat --config=digits --workdir=runs/digits --config.mode=export
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from adanat_jax import __version__
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  config as config_lib,
  named_schedules,
  policies,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import journal, processes
from adanat_jax.sampling import requests
from adanat_jax.stages import sample


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be exported."""
  sections = ('data', 'tokenizer', 'nat', 'mesh', 'export', 'sample')
  reads = (*sections, 'evaluate.batch_size')
  experiment.check(_problems, reads=reads)


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says which tables cannot be read."""
  section = experiment.config.export
  for path in section.tables:
    _read(path)
  if section.program:
    sample.policy_of(experiment)
  yield from policies.problems(experiment)


def run(experiment: Experiment) -> None:
  """Writes the folder, see `Generator.save`, and the program if one is asked.

  A program may be impossible, so it comes first.
  """
  check_config(experiment)
  section = experiment.config.export
  found = [_read(path) for path in section.tables]
  generator = dataclasses.replace(
    experiment.generator(), schedules={table.name: table for table in found}
  )
  if section.program:
    num_steps = experiment.config.sample.num_steps
    policy = sample.policy_of(experiment)
    generator.export(section.program, num_steps, policy)
    processes.say(f'export: {section.program}, a sampler of {num_steps} steps')
  output = pathlib.Path(section.output or experiment.workdir / 'export')
  generator.save(output, dtype=section.dtype, about=_about(experiment))
  steps = requests.steps_of(generator.agents)
  processes.say(f'export: {output}, with policies of num_steps {steps}')


def _read(path: str) -> Schedule:
  """A table, named by its file."""
  try:
    table = named_schedules.read_file(path)
  except UserError as error:
    raise UserError(f'config.export.tables={error}') from error
  return dataclasses.replace(table, name=pathlib.Path(path).stem)


def _about(experiment: Experiment) -> str:
  """How the generator was made, and what was measured, as Markdown."""
  record = config_lib.read_record(experiment.workdir)
  changed = ''.join(
    f', `{name}={value}`' for name, value in record.get('overrides', {}).items()
  )
  lines = [
    '## How it was made',
    '',
    f'By adanat_jax, exported by version {__version__}; config'
    f' `{record.get("source") or "unknown"}`{changed}.',
  ]
  evaluated = experiment.is_complete('evaluate')
  directory = experiment.workdir / 'evaluate'
  found = journal.read_results(directory) if evaluated else {}
  if experiment.is_text and (rows := found.get('rows')):
    lines += _captioned(rows)
  # Other runs of the published protocol have a file of their own for its
  # figures.
  if methods := found.get('methods'):
    lines += [
      *('', '## What was measured', ''),
      'Fréchet distance to the training images, mean and standard deviation'
      ' over sampling seeds; lower is better.',
      *('', '| schedule | steps | distance | seeds x images |'),
      '|---|---:|---:|---:|',
      *map(_row, methods),
    ]
  return '\n'.join(lines)


def _captioned(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """What was measured of captions, as a table."""
  names = sorted({name for row in rows for name in row['figures']})
  lines = [
    *('', '## What was measured', ''),
    'With captions of pictures that no training saw, by networks that the'
    ' figures name: no FID, no CLIP score, unless a name says so.',
    *('', f'| schedule | steps | {" | ".join(names)} |'),
    f'|---|---:|{"---:|" * len(names)}',
  ]
  for row in rows:
    found = [row['figures'].get(name) for name in names]
    values = ['' if value is None else f'{value:.4g}' for value in found]
    about = [row['label'], str(row['num_steps']), *values]
    lines.append(f'| {" | ".join(about)} |')
  return lines


def _row(method: Mapping[str, Any]) -> str:
  distance = method['measures']['frechet']
  return (
    f'| {method["label"]} | {method["num_steps"]} | {distance["mean"]:.2f} ±'
    f' {distance["std"]:.2f} | {len(method["seeds"])} x'
    f' {method["samples_per_seed"]} |'
  )
