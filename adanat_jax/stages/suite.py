"""Stage `suite`: every schedule at equal numbers of denoiser passes.

  adanat --config=digits --workdir=runs/digits --config.mode=suite

trains what is missing of tokenizer, judges and NAT, of the digits or of your
own images in classes, and samples each schedule of `suite.schedules` at each
number of passes of `suite.passes`, with the same seeds, labels and noise: a
guided one in half as many steps, an adaptive one with the bound that takes so
many passes on average, found on other samples. 'learned' stands for every
training of the workdir's policy that takes so many, 'searched' for the table
that mode `search` found. Of the best of N draws, by the discriminator of the
workdir's policy, each has an N-th of the passes. Mode `frontier` trains and
searches before.
Leaves in `suite/`

ledger.jsonl  each piece as soon as it is done; a run that was killed, or whose
              list has grown, does only what is missing
results.json  every figure
suite.md      the table, written anew after each number of passes
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
from typing import Any

import numpy as np

from adanat_jax.decoding import schedules, step as step_lib
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import adversarial_reward, datasets, policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import evaluation as evaluation_lib
from adanat_jax.measuring.evaluation import Evaluation, Method
from adanat_jax.report import suite as report
from adanat_jax.runtime import files, processes
from adanat_jax.runtime.journal import (
  RESULTS_FILE,
  Ledger,
  is_complete,
  mark_complete,
)
from adanat_jax.sampling import best_of, calibration, requests
from adanat_jax.stages import search_common
from adanat_jax.types import PolicyValues

# The name of what mode `search` found here.
SEARCHED = 'searched'
# Samples that bounds are found on, and their seed, which nothing else has.
_CALIBRATION_SAMPLES = 400
_CALIBRATION_SEED = 77


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be measured."""
  experiment.check(_problems, reads=('data', 'evaluate', 'suite'))


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why schedules cannot be compared."""
  yield from datasets.problems(experiment)
  if experiment.is_text:
    yield (
      'config.data.condition=text is not allowed in mode suite, which measures'
      ' classes: give class'
    )
  yield from evaluation_lib.problems(experiment, (), ())
  section = experiment.config.suite
  all_num_draws = _all_num_draws(experiment)
  trains = experiment.config.mode == 'frontier'
  trains &= not experiment.is_converted('policy')
  if max(all_num_draws) > 1 and not (
    trains and 'adversarial' in experiment.config.policy.rewards
  ):
    adversarial_reward.discriminator_stage(experiment)
  shares = {
    count: [passes // count for passes in section.passes if not passes % count]
    for count in all_num_draws
  }
  for count, found in shares.items():
    if not found:
      yield (
        f'config.suite.num_draws={all_num_draws} holds {count}, and none of'
        f' config.suite.passes={section.passes} can be divided by it'
      )
  yield from policies.problems_of_names(experiment, section.schedules)
  for name in section.schedules:
    if requests.learned_options(name) is not None or name == SEARCHED:
      continue
    # Those that are published for one number of steps are told in the table.
    if name in schedules.SCHEDULES:
      continue
    counts = sorted({*itertools.chain(*shares.values())})
    if not any(_named(experiment, name, count) for count in counts):
      # Says what is wrong with the name, if anything is.
      experiment.schedule(name, section.passes[0])
      yield (
        f'config.suite.schedules: {name} takes none of'
        f' config.suite.passes={section.passes}'
      )


def _named(experiment: Experiment, name: str, passes: int) -> Schedule | None:
  """The schedule of this name that takes so many passes, if there is one."""
  for num_steps in range(passes, 0, -1):
    with contextlib.suppress(UserError):
      made = experiment.schedule(name, num_steps)
      if made.passes.sum() == passes:
        return made
  return None


def run(experiment: Experiment) -> None:
  """Measures what is missing, and writes and prints the table."""
  check_config(experiment)
  directory = experiment.workdir / 'suite'
  evaluation = Evaluation(experiment)
  ledger = Ledger(directory / 'ledger.jsonl')
  section = experiment.config.suite
  all_num_draws = _all_num_draws(experiment)
  score, scorer = None, ''
  if max(all_num_draws) > 1:
    score = adversarial_reward.discriminator_score(experiment)
    scorer = adversarial_reward.discriminator_stage(experiment)
  results: dict[str, Any] = {
    'settings': {
      'sampling seeds': experiment.config.evaluate.num_seeds,
      'images a seed': evaluation.count,
    },
    'schedules': [
      _label(name, num_draws)
      for name in section.schedules
      for num_draws in all_num_draws
    ],
    'rows': [],
    'missing': [],
  }
  for passes in sorted(section.passes):
    for name, num_draws in itertools.product(section.schedules, all_num_draws):
      label = _label(name, num_draws)
      processes.say(f'suite: {passes} passes, {label}')
      key = f'P{passes}/{label}'
      try:
        if passes % num_draws:
          raise UserError(
            f'{passes} passes cannot be divided among {num_draws} draws'
          )
        chosen = _schedules(
          *(evaluation, name, passes // num_draws, f'{key}/bound', ledger)
        )
      except UserError as error:
        results['missing'].append(str(error))
        continue
      generator = evaluation.generator
      if num_draws > 1:
        assert score is not None  # It was loaded for this.
        generator = best_of.best_of(generator, score, num_draws)
        key = f'{key}/{scorer}'
      rows = {
        own: evaluation.rows(
          ledger,
          key + own,
          functools.partial(evaluation.seed_row, schedule, generator=generator),
        )
        for own, schedule in chosen.items()
      }
      schedule = next(iter(chosen.values()))
      results['rows'].append(
        _entry(evaluation, label, passes, schedule, [*rows.values()])
      )
    files.write_text(directory / 'suite.md', report.compose(results))
  files.write_json(directory / RESULTS_FILE, results)
  mark_complete(directory, len(results['rows']), {})
  processes.say(report.table(results))
  processes.say(f'suite: {directory / "suite.md"}')


def _all_num_draws(experiment: Experiment) -> tuple[int, ...]:
  # Configs of older versions have no such field.
  return tuple(experiment.config.suite.get('num_draws', (1,)))


def _label(name: str, num_draws: int) -> str:
  return name if num_draws == 1 else f'{name}, best of {num_draws}'


def _schedules(
  evaluation: Evaluation, name: str, passes: int, key: str, ledger: Ledger
) -> dict[str, Schedule]:
  """The schedules of this name that take so many passes, on average.

  Of a learned policy there is one a training. Each comes with what its key in
  the ledger ends with.

  Raises:
    UserError: if there is none.
  """
  if requests.learned_options(name) is not None:
    return _learned(evaluation, name, passes)
  if name == SEARCHED:
    return _searched(evaluation.experiment, passes)
  return {'': _hand_made(evaluation, name, passes, key, ledger)}


def _hand_made(
  evaluation: Evaluation, name: str, passes: int, key: str, ledger: Ledger
) -> Schedule:
  """A schedule without a training; an adaptive one with its bound."""
  made = _named(evaluation.experiment, name, passes)
  if made is None:
    raise UserError(f'{name} has no table of {passes} passes')
  if not made.options.is_adaptive:
    return made

  def calibrate() -> float | str:
    try:
      found = calibration.calibrate(
        evaluation.generator,
        name,
        float(passes),
        evaluation.labels(_CALIBRATION_SAMPLES),
        seed=_CALIBRATION_SEED,
      )
    except UserError as error:
      return str(error)
    return calibration.bound_of(found)

  bound = ledger.get(key, calibrate)
  if isinstance(bound, str):
    raise UserError(bound)
  experiment = evaluation.experiment
  most = experiment.schedule(name, experiment.num_tokens)
  return calibration.with_bound(most, bound)


def _learned(
  evaluation: Evaluation, name: str, passes: int
) -> dict[str, Schedule]:
  """Every training of the policy of this workdir that takes so many passes."""
  experiment, generator = evaluation.experiment, evaluation.generator
  for num_steps in range(passes, 0, -1):
    if num_steps not in generator.agents:
      continue
    first = generator.schedule(name, num_steps)
    if first.passes.sum() != passes:
      continue
    found = {}
    for training in policies.repetitions(experiment, num_steps):
      agent = policies.load_agent(experiment, training, num_steps)
      one = dataclasses.replace(generator, agents={num_steps: agent})
      own = f'/training-{training.index}' if training.index else ''
      found[own] = one.schedule(name, num_steps)
    # A converted policy has no training.
    return found or {'': first}
  raise UserError(f'no policy of {passes} passes has been trained here')


def _searched(experiment: Experiment, passes: int) -> dict[str, Schedule]:
  """The table of this workdir's search that takes so many passes."""
  for which in search_common.of(experiment):
    if not is_complete(experiment.workdir / 'search' / which.name):
      continue
    schedule = search_common.found(experiment, which)
    if schedule.passes.sum() != passes:
      continue
    assert isinstance(schedule.policy, PolicyValues)  # Searches find tables.
    # A search that is made longer may find another.
    lists = search_common.table_lists(schedule.policy)
    digest = hashlib.sha256(json.dumps(lists).encode()).hexdigest()[:8]
    return {f'/{digest}': dataclasses.replace(schedule, name=SEARCHED)}
  raise UserError(f'no table of {passes} passes has been searched here')


def _entry(
  evaluation: Evaluation,
  name: str,
  passes: int,
  schedule: Schedule,
  trainings: list[list[dict[str, Any]]],
) -> dict[str, Any]:
  """A schedule at so many passes, as `results.json` has it.

  Of several trainings measures are over seeds and trainings, values per step
  and the temperature those of the first.
  """
  rows = [row for training in trainings for row in training]
  entry = evaluation.entry(Method(schedule, 'suite'), rows)
  del entry['role']
  entry['seeds'] = entry['seeds'][: len(trainings[0])]
  temperature = entry['values_per_step']['effective_temperature']['mean']
  if isinstance(schedule.policy, PolicyValues):
    # Samples that are full have none, which the mean over samples counts.
    temperature = np.asarray(
      step_lib.effective_temperature(schedule.policy, schedule.options)
    ).tolist()
  adaptive = schedule.options.is_adaptive
  return {
    **entry,
    'name': name,
    'asked_passes': passes,
    'trainings': len(trainings),
    'passes': float(np.mean([row['passes'] for row in rows])),
    'bound': calibration.bound_of(schedule) if adaptive else None,
    'effective_temperature': temperature,
  }
