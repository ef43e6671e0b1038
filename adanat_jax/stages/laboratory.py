"""Stage `laboratory`: what each schedule does to a law that is known exactly.

  adanat --config=laboratory

There is no network and there are no data: the denoiser is the posterior of a
small law, see `laboratory.law`. Leaves in `laboratory/`

results.json    every figure
laboratory.md   the table, which is printed, too
laboratory.png  the distance to the law over the passes
"""

from __future__ import annotations

from collections.abc import Iterator
import itertools
from typing import Any

import numpy as np

from adanat_jax.decoding import step as step_lib
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import named_schedules
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.laboratory import exact
from adanat_jax.laboratory.law import PottsLaw
from adanat_jax.report import laboratory as report
from adanat_jax.runtime import files, processes
from adanat_jax.runtime.journal import has_results, mark_complete, read_results
from adanat_jax.types import PolicyValues


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for schedules that cannot be made."""
  experiment.check(_problems, reads=('seed', 'laboratory'))


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says which schedules have none of these numbers of steps."""
  section = experiment.config.laboratory
  law = _law(experiment)
  for name in section.schedules:
    mistakes = []
    for num_steps in section.num_steps:
      try:
        law.schedule(name, num_steps, named_schedules.make)
      except UserError as error:
        mistakes.append(f'config.laboratory.schedules: {error}')
    if len(mistakes) == len(section.num_steps):
      yield mistakes[0]


def run(experiment: Experiment) -> None:
  """Sums what is missing, prints the table and writes `laboratory/`."""
  check_config(experiment)
  directory = files.make_directory(experiment.workdir / 'laboratory')
  if not has_results(directory):
    results = _measure(experiment)
    files.write_json(directory / 'results.json', results)
    mark_complete(directory, len(results['rows']), {})
  results = read_results(directory)
  report.save_plot(directory / 'laboratory.png', results)
  files.write_text(directory / 'laboratory.md', report.compose(results))
  processes.say(report.table(results))
  processes.say(f'laboratory: {directory / "laboratory.md"}')


def _law(experiment: Experiment) -> PottsLaw:
  section = experiment.config.laboratory
  return PottsLaw(coupling=section.coupling, field=section.field)


def _measure(experiment: Experiment) -> dict[str, Any]:
  """Every schedule at every T."""
  section, law = experiment.config.laboratory, _law(experiment)
  rows = []
  for name, num_steps in itertools.product(
    section.schedules, sorted(section.num_steps)
  ):
    try:
      schedule = law.schedule(name, num_steps, named_schedules.make)
    except UserError:
      continue  # Some are published for one number of steps.
    found = exact.outcome(
      law, schedule, draws=section.draws, seed=experiment.config.seed
    )
    temperature: Any = []
    if isinstance(schedule.policy, PolicyValues):
      temperature = step_lib.effective_temperature(
        schedule.policy, schedule.options
      )
    rows.append(
      {
        'name': name,
        'kind': _kind(schedule),
        'num_steps': num_steps,
        'total_variation': found.total_variation(law),
        'passes': found.passes,
        'entropy': found.entropy,
        'effective_temperature': np.asarray(temperature).tolist(),
        'draws': found.draws,
      }
    )
  return {
    'law': {
      **{name: getattr(law, name) for name in ('rows', 'columns', 'coupling')},
      **{name: getattr(law, name) for name in ('num_values', 'field', 'seed')},
      'entropy': exact.Outcome(law.probabilities, 0).entropy,
    },
    'floor': exact.floor(law, section.draws),
    'rows': rows,
  }


def _kind(schedule: Schedule) -> str:
  """What decides about a position, one of `report.laboratory.KINDS`."""
  options = schedule.options
  if options.is_adaptive:
    return 'adaptive'
  if options.commit == 'independent' or options.revisit != 'never':
    return 'chance'
  return 'drawn' if options.order == 'sampled' else 'chosen'
