"""The other half of AutoNAT: how the NAT is trained is searched as well.

AutoNAT alternates: for a NAT, the schedule is optimised; for a schedule, the
law Beta(a, b) of the mask ratios that a NAT is trained with. That the two take
turns, the law and its outcome, Beta(12, 3), are published; how the second half
was searched, with how many trainings of which length, is not (arXiv
2406.05478). Here, each round,

1. the schedule is searched on the current NAT, from the last schedule on;
2. the NAT of a neighbouring law is trained and measured with that schedule,
   and if it is no better that of the neighbour on the other side: in even
   rounds the mean of the law is moved, in odd ones its concentration;

and at the end the schedule is searched once more. So there are at most
1 + 2 rounds trainings; all begin with the same parameters and see the same
images in the same order, and are short: they are there to be compared. They lie
in `search/alternating-T4-cma-on-0/nat-12-3/` and so on; the workdir's own NAT
is neither needed nor touched.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import pathlib
from typing import Any

import ml_collections

from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import schedule_search
from adanat_jax.learning.schedule_search import Point
from adanat_jax.measuring import scores
from adanat_jax.runtime.journal import has_results
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import nat as nat_stage, search_common

Beta = tuple[float, float]

# What the odds of the mean, or the concentration, are multiplied with and
# divided by in the first two rounds; its root in the next two, and so on.
_FACTOR = 2.0


def problems(experiment: Experiment) -> Iterator[str]:
  """Says why NATs cannot be searched too; see `Experiment.check`."""
  section = experiment.config.search
  if section.evaluations % (section.rounds + 1):
    yield (
      f'config.search.evaluations is {section.evaluations}; give a multiple of'
      f' {section.rounds + 1}, as many schedules are searched with'
      f' config.search.rounds={section.rounds}'
    )
  if section.start == 'fewer_steps':
    yield (
      f'config.search.start={section.start} needs finished searches, which'
      ' other NATs do not have: give published, or config.search.rounds=0'
    )
  nat_stage.check_config(_training(experiment, experiment.workdir, (1.0, 1.0)))


def run(experiment: Experiment) -> None:
  """Makes every search of the config, with trainings.

  Args:
    experiment: its tokenizer is trained or converted; its workdir gets
      `search/alternating-*/`.

  Raises:
    UserError: see `search.run`.
  """
  # Before anything is trained.
  experiment.network('tokenizer')
  scorer = scores.Scorer(experiment)
  for which in search_common.of(experiment):
    directory = experiment.workdir / 'search' / f'alternating-{which.name}'
    search = _Alternation(experiment, directory, which, scorer)
    if not has_results(directory):
      search.run()


class _Alternation:
  """One search that takes turns."""

  def __init__(
    self,
    experiment: Experiment,
    directory: pathlib.Path,
    which: search_common.Search,
    scorer: scores.Scorer,
  ):
    self._experiment = experiment
    self._which = which
    self._scorer = scorer
    self._generator: Generator | None = None
    self._run = search_common.Run(experiment, which, directory)

  def run(self) -> None:
    """Searches, and writes what was found."""
    section = self._experiment.config.search
    share = section.evaluations // (section.rounds + 1)
    beta: Beta = tuple(self._experiment.config.nat.beta)
    trainings = [beta]
    objective = self._objective(beta)
    point = search_common.first_point(self._experiment, self._which.num_steps)
    begun = (objective, point)
    turns: list[dict[str, Any]] = []
    for turn in range(section.rounds + 1):
      found = self._run.optimise(objective, point, share, turn)
      # Each of the three may be the one that goes on: also the old one, if the
      # search has only fitted the noise.
      rivals = {'begun': point, 'last': found.last, 'best': found.best}
      values = {
        name: self._value(f'{turn}/{name}', objective, one)
        for name, one in rivals.items()
      }
      best = min(values, key=values.__getitem__)
      value, point = values[best], rivals[best]
      turns.append({'beta': beta, 'schedule_found': value, 'tried': []})
      self._say(beta, f'schedule found, {value:.4g}')
      if turn == section.rounds:
        break
      factor = _FACTOR ** (0.5 ** (turn // 2))
      for other in schedule_search.beta_directions(beta, turn % 2, factor):
        trainings.append(other)
        neighbour = self._objective(other)
        distance = self._value(f'{turn}/{_numbers(other)}', neighbour, point)
        turns[-1]['tried'].append({'beta': other, 'distance': distance})
        self._say(other, f'{distance:.4g}')
        if distance < value:
          beta, objective = other, neighbour
          break
    self._finish(begun, (objective, point), beta, trainings, turns)

  def _objective(self, beta: Beta) -> search_common.Objective:
    """The NAT that a law gives, trained if it is not there yet."""
    directory = self._run.directory / f'nat-{_numbers(beta, "-")}'
    training = _training(self._experiment, directory, beta)
    if not training.is_complete('nat'):
      self._say(beta, 'training')
    nat_stage.run(training)
    if self._generator is None:
      self._generator = training.generator()
    else:
      # The same modules: nothing is compiled for another NAT.
      _, params = training.network('nat')
      self._generator = dataclasses.replace(self._generator, nat_params=params)
    return search_common.Objective(
      self._experiment, self._which, self._generator, self._scorer
    )

  def _value(
    self, name: str, objective: search_common.Objective, point: Point
  ) -> float:
    """The distance that decides which schedule and NAT go on.

    With other noise than that of the searches, to which their schedules are
    fitted on one NAT and not on the other.
    """
    return self._run.ledger.get(
      f'decision/{name}', functools.partial(objective.fresh, point, skipped=1)
    )['mean']

  def _finish(
    self,
    begun: tuple[search_common.Objective, Point],
    ended: tuple[search_common.Objective, Point],
    beta: Beta,
    trainings: list[Beta],
    turns: list[dict[str, Any]],
  ) -> None:
    """Measures with noise that decided nothing, and writes what was found."""
    tables = {}
    for name, objective, point in (
      ('start', *begun),
      ('first NAT, last schedule', begun[0], ended[1]),
      ('last NAT, first schedule', ended[0], begun[1]),
      ('last', *ended),
    ):
      fresh = self._run.ledger.get(
        f'fresh/{name}', functools.partial(objective.fresh, point)
      )
      tables[name] = objective.row(point, fresh)
    self._say(beta, f'the last of {len(trainings)} trainings')
    self._run.finish(
      tables,
      ('last',),
      self._scorer,
      first_beta=trainings[0],
      last_beta=beta,
      last_nat=f'nat-{_numbers(beta, "-")}',
      trainings=trainings,
      turns=turns,
    )

  def _say(self, beta: Beta, text: str) -> None:
    self._run.say(f'Beta{_numbers(beta)}: {text}')


def _training(
  experiment: Experiment, directory: pathlib.Path, beta: Beta
) -> Experiment:
  """A short training in a directory of its own.

  Args:
    experiment: of this run, which has the tokenizer and the prepared tokens.
    directory: of the training.
    beta: the law of its mask ratios.
  """
  config = experiment.config
  result = ml_collections.ConfigDict(config.to_dict())
  result.nat.update(
    mask_ratio='beta',
    beta=tuple(float(x) for x in beta),
    num_steps=config.search.training_steps,
    evaluate_every=0,
    init_from='',
  )
  if not experiment.is_converted('tokenizer'):
    tokenizer = str(experiment.workdir.absolute() / 'tokenizer')
    result.tokenizer.update(init_from=tokenizer, fine_tune=False)
  if not experiment.is_digits:
    result.data.prepared = str(experiment.prepared_directory)
  # Policies were learned for another NAT.
  result.policy.init_from = ''
  return Experiment(result, directory)


def _numbers(beta: Beta, between: str = ', ') -> str:
  """A law as text for a reader, or for the name of a directory."""
  text = between.join(f'{value:.4g}' for value in beta)
  return text if between == '-' else f'({text})'
