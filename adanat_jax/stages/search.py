"""Stage `search`: AutoNAT's table of T steps, looked for by measuring images.

  python -m adanat_jax.main --config=configs/digits.py --workdir=runs/digits \
      --config.mode=search

Each number of steps with each optimizer and each kind of noise is a search of
its own, `search/T4-cma-on-0/` and so on:

ledger.jsonl   every evaluation, at once; a killed search goes on from there
metrics.jsonl  a row an evaluation
best.json      the table of the lowest distance that was measured
last.json      the table at which the optimizer ended
results.json   both, and where the search began, measured again with noise that
               no search has seen: the lowest of many distances flatters itself

Both tables are for `--config.sample.policy=table`. Where `search.rounds` is not
0, NATs are trained too: `adanat_jax.stages.search_alternating`.
"""

from __future__ import annotations

from collections.abc import Iterator
import functools
import pathlib
from typing import Any

import ml_collections
import numpy as np

from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import schedule_search
from adanat_jax.measuring import features, scores
from adanat_jax.runtime import files, processes
from adanat_jax.runtime.journal import (
  Ledger,
  is_complete,
  mark_complete,
  read_complete,
)
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import search_alternating, search_common

Config = ml_collections.ConfigDict


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for searches that cannot be made."""
  experiment.check(
    features.problems, _problems, reads=('data', 'evaluate', 'mesh', 'search')
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why the searches cannot be made."""
  section = experiment.config.search
  if section.rounds:
    yield from search_alternating.problems(experiment)
  for num_steps in section.num_steps:
    # Some schedules exist for some numbers of steps only.
    search_common.first_point(experiment, num_steps)
  if 'cma' in section.optimizers:
    schedule_search.require_cmaes()


def run(experiment: Experiment) -> None:
  """Makes every search of the config.

  Args:
    experiment: its networks are trained or converted; its workdir gets
      `search/`.

  Raises:
    UserError: for a missing network, a value that is not allowed, or a search
      that was begun with other settings.
  """
  check_config(experiment)
  if experiment.config.search.rounds:
    search_alternating.run(experiment)
    return
  generator = experiment.generator()
  scorer = scores.Scorer(experiment)
  known: dict[tuple[float, ...], dict[str, Any]] = {}
  for which in search_common.of(experiment):
    directory = experiment.workdir / 'search' / which.name
    _run(experiment, directory, which, generator, scorer, known)


def _first_point(
  experiment: Experiment,
  which: search_common.Search,
  parent: pathlib.Path,
  ledger: Ledger,
) -> schedule_search.Point:
  """Where a search starts; those of fewer steps are finished."""
  before = search_common.before(experiment, which)
  if before is None:
    return search_common.first_point(experiment, which.num_steps)
  path = parent / before.name / 'results.json'

  def stretched() -> list[float]:
    results = processes.from_first(lambda: files.read_json(path))
    point = schedule_search.point_of(
      search_common.table_of_lists(results['tables']['last']['searched'])
    )
    return schedule_search.stretched(point, which.num_steps).tolist()

  # Kept: if the search of fewer steps is made longer, it ends elsewhere.
  return np.array(ledger.get('first', stretched), np.float64)


def _run(
  experiment: Experiment,
  directory: pathlib.Path,
  which: search_common.Search,
  generator: Generator,
  scorer: scores.Scorer,
  known: dict[tuple[float, ...], dict[str, Any]],
) -> None:
  """One search, and what it found measured again.

  Args:
    experiment: of this run.
    directory: of this search.
    which: the search.
    generator: what decodes.
    scorer: what measures.
    known: what points gave with fresh noise, which all searches share; gets
      what is measured here.
  """
  config = experiment.config
  count = config.search.evaluations
  ledger = search_common.ledger_of(experiment, which, directory)
  if is_complete(directory) and read_complete(directory)['step'] >= count:
    return
  first = _first_point(experiment, which, directory.parent, ledger)
  objective = search_common.Objective(experiment, which, generator, scorer)
  with search_common.Rows(experiment, directory) as rows:
    found = search_common.optimise(
      experiment, which, objective, ledger, rows, first, count
    )
  points = {'start': first, 'last': found.last, 'best': found.best}

  def fresh(point: schedule_search.Point) -> dict[str, Any]:
    return known.get(tuple(point.tolist())) or objective.fresh(point)

  measured = {}
  for name, point in points.items():
    value = ledger.get(f'fresh/{name}/{count}', functools.partial(fresh, point))
    known[tuple(point.tolist())] = measured[name] = value
  results = {
    **search_common.about(experiment, which),
    'evaluations': count,
    'distance': scorer.distance_name(config.search.fresh_samples),
    'best_distance_in_search': found.best_distance,
    'tables': {
      name: {
        'searched': search_common.table_lists(schedule_search.table_of(point)),
        'table': search_common.table_lists(objective.settled(point)),
        'fresh': measured[name],
      }
      for name, point in points.items()
    },
  }
  for name in ('last', 'best'):
    search_common.write_table(
      directory / f'{name}.json', results['tables'][name]
    )
  files.write_json(directory / 'results.json', results)
  figures = {name: values['mean'] for name, values in measured.items()}
  mark_complete(directory, count, figures)
  search_common.say(
    f'{which.name}: '
    + ', '.join(f'{name} {value:.4g}' for name, value in figures.items())
    + f' with fresh noise; tables in {directory}'
  )
