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
from typing import Any

import numpy as np

from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import schedule_search
from adanat_jax.learning.schedule_search import Point
from adanat_jax.measuring import features, scores
from adanat_jax.runtime import journal, processes
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import search_alternating, search_common


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
  if not search_common.is_guided(experiment) and (
    section.rounds or 'finite_differences' in section.optimizers
  ):
    yield (
      'config.search.guided=False works only with config.search.optimizers=cma'
      ' and config.search.rounds=0: give these, or True'
    )
  if 'cma' in section.optimizers:
    schedule_search.require_cmaes()


def run(experiment: Experiment) -> None:
  """Makes every search of the config, in `search/`.

  Raises:
    UserError: also for a search that was begun with other settings.
  """
  check_config(experiment)
  if experiment.config.search.rounds:
    search_alternating.run(experiment)
    return
  generator = experiment.generator()
  scorer = scores.Scorer(experiment)
  known: dict[tuple[float, ...], dict[str, Any]] = {}
  for which in search_common.of(experiment):
    _search(experiment, which, generator, scorer, known)


def _search(
  experiment: Experiment,
  which: search_common.Search,
  generator: Generator,
  scorer: scores.Scorer,
  known: dict[tuple[float, ...], dict[str, Any]],
) -> None:
  """One search, and what it found measured again.

  All searches share `known`, which gets what points gave with fresh noise.
  """
  directory = experiment.workdir / 'search' / which.name
  count = experiment.config.search.evaluations
  run = search_common.Run(experiment, which, directory)
  if journal.has_results(directory):
    if journal.read_complete(directory)['step'] >= count:
      return
  objective = search_common.Objective(experiment, which, generator, scorer)
  first = _first_point(experiment, which, run)
  found = run.optimise(objective, first, count)

  def fresh(point: Point) -> dict[str, Any]:
    return known.get(tuple(point.tolist())) or objective.fresh(point)

  tables = {}
  points = {'start': first, 'last': found.last, 'best': found.best}
  for name, point in points.items():
    value = run.ledger.get(
      f'fresh/{name}/{count}', functools.partial(fresh, point)
    )
    known[tuple(point.tolist())] = value
    tables[name] = objective.row(point, value)
  run.finish(
    tables,
    ('last', 'best'),
    scorer,
    best_distance_in_search=found.best_distance,
  )


def _first_point(
  experiment: Experiment, which: search_common.Search, run: search_common.Run
) -> Point:
  """Where a search starts; those of fewer steps are finished."""
  before = search_common.before(experiment, which)
  if before is None:
    return search_common.first_point(experiment, which.num_steps)
  directory = experiment.workdir / 'search' / before.name

  def stretched() -> list[float]:
    results = processes.from_first(
      lambda: journal.read_results(directory, search_common.RESULTS)
    )
    point = schedule_search.point_of(
      search_common.table_of_lists(results['tables']['last']['searched'])
    )
    return schedule_search.stretched(point, which.num_steps).tolist()

  # Kept: if the search of fewer steps is made longer, it ends elsewhere.
  return np.array(run.ledger.get('first', stretched), np.float64)
