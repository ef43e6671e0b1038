"""What every search of schedules does the same way, whatever is searched.

An optimizer proposes points, the objective measures each, the ledger keeps each
at once. Replaying the ledger restores the optimizer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import step as step_lib
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import schedule_search
from adanat_jax.learning.schedule_search import Point
from adanat_jax.measuring import scores
from adanat_jax.measuring.evaluation import over_seeds
from adanat_jax.runtime import files, journal, metric_writer, processes
from adanat_jax.sampling.generator import Generator
from adanat_jax.types import PolicyValues

# Seeds of the noise: those of `evaluate` lie below all of these.
_FRESH_SEEDS = 10_000
_SEARCH_SEEDS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Search:
  """One of the searches of a config."""

  num_steps: int  # T.
  optimizer: str  # 'cma' or 'finite_differences'.
  common_noise: str  # 'on' if all evaluations share classes and noise.
  repetition: int  # Number of it; every repetition has noise of its own.

  @property
  def name(self) -> str:
    """Its directory."""
    return (
      f'T{self.num_steps}-{self.optimizer}-{self.common_noise}'
      f'-{self.repetition}'
    )

  def seed(self, evaluation: int) -> int:
    """Of the noise of an evaluation."""
    own = 0 if self.common_noise == 'on' else evaluation
    return _SEARCH_SEEDS * (self.repetition + 1) + own


@dataclasses.dataclass(frozen=True)
class Found:
  """What an optimizer found."""

  last: Point  # where it ended, which it may not have measured itself
  best: Point  # that of the lowest distance that was measured
  best_distance: float


def of(experiment: Experiment) -> list[Search]:
  """All searches of a config."""
  section = experiment.config.search
  return [
    Search(*chosen)
    for chosen in itertools.product(
      sorted(set(section.num_steps)),
      section.optimizers,
      section.common_noise,
      range(section.repetitions),
    )
  ]


def before(experiment: Experiment, which: Search) -> Search | None:
  """The search of fewer steps where this one starts, if there is one."""
  config = experiment.config
  fewer = [t for t in config.search.num_steps if t < which.num_steps]
  if config.search.start != 'fewer_steps' or not fewer:
    return None
  return dataclasses.replace(which, num_steps=max(fewer))


def first_point(experiment: Experiment, num_steps: int) -> Point:
  """The start of a search that does not continue another one.

  Raises:
    UserError: if `search.start` names a schedule that is no table of this many
      steps.
  """
  start = experiment.config.search.start
  if start in ('published', 'fewer_steps'):
    return schedule_search.first_point(num_steps)
  schedule = experiment.schedule(start, num_steps)
  if not isinstance(schedule.policy, PolicyValues):
    raise UserError(
      f'config.search.start={start} is no table of numbers: nothing can be'
      ' searched from there'
    )
  return schedule_search.clamped(schedule_search.point_of(schedule.policy))


class Objective:
  """The distance of the images that a point gives on one NAT."""

  def __init__(
    self,
    experiment: Experiment,
    which: Search,
    generator: Generator,
    scorer: scores.Scorer,
  ):
    """Samples nothing yet."""
    self._section = experiment.config.search
    self._guided = is_guided(experiment)
    self._which = which
    # An ENAT would be compiled anew for the counts of every point.
    self._generator = dataclasses.replace(generator, static_counts=False)
    self._scorer = scorer

  def __call__(self, point: Point, evaluation: int) -> float:
    """The distance by the noise of an evaluation."""
    count, seed = self._section.num_samples, self._which.seed(evaluation)
    return self._measure(point, count, seed)

  def fresh(self, point: Point, skipped: int = 0) -> dict[str, Any]:
    """Mean, deviation and values of distances with noise no search has seen.

    `skipped` leaves out that many sets of seeds, used otherwise already.
    """
    count = self._section.fresh_seeds
    first = _FRESH_SEEDS + skipped * count
    return over_seeds(
      [
        self._measure(point, self._section.fresh_samples, seed)
        for seed in range(first, first + count)
      ]
    )

  def row(self, point: Point, fresh: dict[str, Any]) -> dict[str, Any]:
    """A point in the results: as searched, and for any options of the step."""
    table = _table(point, self._guided)
    num_tokens = self._generator.nat.num_tokens
    return {
      'searched': table_lists(table),
      'table': table_lists(schedule_search.settled(table, num_tokens)),
      'fresh': fresh,
    }

  def _measure(self, point: Point, count: int, seed: int) -> float:
    # The table is an argument of the compiled decoder: nothing is compiled
    # from one point to the next.
    schedule = Schedule(
      self._which.name,
      _table(point, self._guided),
      self._guided,
      step_lib.AUTONAT,
    )
    figures = self._scorer(
      self._generator, schedule, num_samples=count, seed=seed
    )
    return figures[self._scorer.distance_name(count)]


class Run:
  """One search in its directory, which a killed run goes on with.

  Attributes:
    directory: gets `ledger.jsonl`, `metrics.jsonl` and the results.
    ledger: keeps each evaluation as soon as it is made.
  """

  def __init__(
    self, experiment: Experiment, which: Search, directory: pathlib.Path
  ):
    """Reads what was evaluated so far.

    Raises:
      UserError: if it was begun with other settings.
    """
    self._experiment = experiment
    self._which = which
    self._lowest = float('inf')
    self.directory = directory
    self.ledger = journal.open_ledger(
      *(directory, _about(experiment, which), 'config.search'),
      added={'guided': True},
    )

  def optimise(
    self, objective: Objective, first: Point, count: int, part: int = 0
  ) -> Found:
    """Lets an optimizer measure `count` points, and writes a row for each.

    Args:
      objective: what is measured.
      first: where to start.
      count: how many evaluations.
      part: number of this optimisation, if a search consists of several.

    Raises:
      UserError: if the ledger's evaluations are not those that the optimizer
        asks for, as another version of it might.
    """
    which, done = self._which, part * count
    proposals = self._proposals(first, part)
    progress = metric_writer.Progress(f'search {which.name}', count)
    best, best_distance = first, float('inf')
    config = self._experiment.config
    writer = metric_writer.MetricWriter(
      self.directory,
      first_step=done,
      tensorboard=config.tensorboard,
      wandb=config.get('wandb', ''),
    )
    with contextlib.closing(writer), contextlib.closing(progress):
      proposal = next(proposals)
      for index in range(done, done + count):
        point = _agreed(proposal.point)
        kept = self.ledger.get(
          f'evaluation/{index}',
          functools.partial(_evaluation, objective, point, index),
        )
        if kept['point'] != point.tolist():
          raise UserError(
            f'search/{which.name}: evaluation {index} was made elsewhere than'
            ' the optimizer asks now, so it was begun with other versions of'
            ' the libraries; delete the directory or use those'
          )
        distance = kept['distance']
        self._lowest = min(self._lowest, distance)
        row = {'distance': distance, 'lowest': self._lowest}
        table = table_lists(_table(point, is_guided(self._experiment)))
        writer.write(index + 1, row | table)
        progress.update(index + 1 - done, row)
        if distance < best_distance:
          best, best_distance = point, distance
        proposal = proposals.send(distance)
    return Found(_agreed(proposal.centre), best, best_distance)

  def finish(
    self,
    tables: dict[str, dict[str, Any]],
    written: tuple[str, ...],
    scorer: scores.Scorer,
    **facts: Any,
  ) -> None:
    """Writes what was found.

    Args:
      tables: rows of `Objective.row` by name.
      written: which of them get a file, for `config.sample.table`.
      scorer: what measured.
      **facts: what else the results say.
    """
    section = self._experiment.config.search
    results = {
      **_about(self._experiment, self._which),
      'evaluations': section.evaluations,
      'distance': scorer.distance_name(section.fresh_samples),
      **facts,
      'tables': tables,
    }
    guided = is_guided(self._experiment)
    for name in written:
      write_table(self.directory / f'{name}.json', tables[name], guided)
    files.write_json(self.directory / 'results.json', results)
    figures = {name: row['fresh']['mean'] for name, row in tables.items()}
    journal.mark_complete(self.directory, section.evaluations, figures)
    self.say(
      ', '.join(f'{name} {value:.4g}' for name, value in figures.items())
      + f' with fresh noise; tables in {self.directory}'
    )

  def say(self, text: str) -> None:
    """Tells how the search goes on."""
    processes.say(f'search: {self.directory.name}: {text}')

  def _proposals(self, first: Point, part: int) -> schedule_search.Proposals:
    section = self._experiment.config.search
    if self._which.optimizer != 'cma':
      descent = schedule_search.Descent(**section.descent)
      return schedule_search.finite_differences(first, descent)
    spread = schedule_search.Spread(**section.spread)
    if before(self._experiment, self._which):
      spread = spread.times(section.refinement)
    seed = self._experiment.order_seed(f'search/{self._which.name}/{part}')
    return schedule_search.covariance_adaptation(
      first, spread, seed, is_guided(self._experiment)
    )


def is_guided(experiment: Experiment) -> bool:
  """Whether the tables that are looked for are guided."""
  # Configs of older versions have no such field.
  return experiment.config.search.get('guided', True)


def _table(point: Point, guided: bool) -> PolicyValues:
  table = schedule_search.table_of(point)
  if guided:
    return table
  nothing = jnp.zeros_like(table.guidance_scale)
  return dataclasses.replace(table, guidance_scale=nothing)


def _evaluation(
  objective: Objective, point: Point, index: int
) -> dict[str, Any]:
  distance = objective(point, index)
  if not math.isfinite(distance):
    raise UserError(
      f'the distance of evaluation {index} is {distance}: the NAT or the'
      ' network that measures does not work'
    )
  return {'point': point, 'distance': distance}


def _agreed(point: Point) -> Point:
  """The point as process 0 has it: the last bit may differ between hosts."""
  return np.array(processes.from_first(point.tolist), np.float64)


def _about(experiment: Experiment, which: Search) -> dict[str, Any]:
  """What a search depends on besides the rest of the config.

  The number of evaluations is not part of it, so that a search may be made
  longer, unless several schedules share them.
  """
  section = experiment.config.search
  names = ['guided', 'start', 'num_samples', 'fresh_seeds', 'fresh_samples']
  names.append('spread' if which.optimizer == 'cma' else 'descent')
  if before(experiment, which):
    names.append('refinement')
  if section.rounds:
    names += ['evaluations', 'rounds', 'training_steps']
  settings = section.to_dict() | {'guided': is_guided(experiment)}
  return dataclasses.asdict(which) | {name: settings[name] for name in names}


_LISTS = {f.name: [float] for f in dataclasses.fields(PolicyValues)[:4]}
_ROW = {'searched': _LISTS, 'table': _LISTS, 'fresh': {'mean': float}}
# What others read of the results of a search; see `files.parse_json`.
RESULTS = {
  'tables': {'last': _ROW, str: _ROW},
  'evaluations': int,
  'guided?': bool,
}


def table_lists(table: PolicyValues) -> dict[str, list[float]]:
  """A table as JSON and metrics have it."""
  return {
    name: files.to_json(np.asarray(row))
    for name, row in table.by_name().items()
  }


def table_of_lists(lists: dict[str, list[float]]) -> PolicyValues:
  """The table that `table_lists` has written, float32[T] each."""
  return PolicyValues(
    **{name: jnp.asarray(row, jnp.float32) for name, row in lists.items()}
  )


def write_table(
  path: pathlib.Path, row: dict[str, Any], guided: bool = True
) -> None:
  """Writes the table of a row of results for `config.sample.table`."""
  told = {**row['table'], 'about': row['fresh']}
  told |= {} if guided else {'guided': False}
  files.write_json(path, told, sealed=True)


def found(experiment: Experiment, which: Search) -> Schedule:
  """The best of a search's tables, by noise that nothing else is measured with.

  Where the search began is one of them: at its lowest distance it may have
  fitted no more than its noise.
  """
  directory = experiment.workdir / 'search' / which.name
  results = journal.read_results(directory, RESULTS)
  tables = results['tables']
  name = min(tables, key=lambda x: tables[x]['fresh']['mean'])
  return Schedule(
    'autonat',
    table_of_lists(tables[name]['table']),
    # Searches of earlier versions were guided.
    results.get('guided', True),
    label='AutoNAT',
    note=f'{name} table of {results["evaluations"]} evaluations',
  )
