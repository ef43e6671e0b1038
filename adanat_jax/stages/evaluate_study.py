"""Stage `evaluate` by the study: schedules compared on the same NAT.

1. Floors: the measures of real images, of reconstructions, of the NAT alone.
2. For each T the hand-made family is tuned by a grid, on seeds of its own.
3. Every method is sampled with the same seeds, labels and noise: schedules of
   `SCHEDULES` at their published defaults, the best of the grid, and each
   learned policy; of an adaptive one also what is left without its adaptivity.

Each piece is written to `evaluate/ledger.jsonl` as soon as it is done; a run
that was killed does only what is missing. The result is `results.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import actions, step as step_lib, tables
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.experiment import datasets, policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning.agent import Agent
from adanat_jax.measuring import study
from adanat_jax.measuring.evaluation import Evaluation, Method, problems
from adanat_jax.report.results import SHAPE
from adanat_jax.runtime import files, processes
from adanat_jax.runtime.journal import (
  RESULTS_FILE,
  Ledger,
  has_results,
  mark_complete,
  read_complete,
  warn,
)
from adanat_jax.types import PolicyValues

# The schedules that need no training, unless `evaluate.schedules` names others.
DEFAULT_SCHEDULES = ('maskgit', 'residual', 'guidance-3')

# The grid over the hand-made family: 2 x 4 x 3 x 3 = 72 settings.
GRID = {
  'curve': ('cosine', 'pow2'),
  'masking_temperature': (2.0, 4.5, 9.0, 20.0),
  'sampling_temperature': (0.85, 1.0, 1.15),
  'guidance_scale': (0.0, 0.25, 0.5),
}

# What learned policies are called, by their role.
LEARNED_LABELS = {
  'adaptive': 'AdaNAT',
  'shared': 'AdaNAT, one for all T',
  'non-adaptive': 'learned, non-adaptive',
}
_LEARNED_NAMES = {
  'adaptive': 'adanat',
  'shared': 'adanat-shared',
  'non-adaptive': 'learned-non-adaptive',
}


def grid_settings() -> list[dict[str, Any]]:
  """Every setting of the grid."""
  values = itertools.product(*GRID.values())
  return [dict(zip(GRID, chosen, strict=True)) for chosen in values]


def schedule_of_setting(
  setting: Mapping[str, Any], num_steps: int, num_tokens: int, evaluations: int
) -> Schedule:
  """A setting of the grid, unguided where its guidance is 0.

  It is the best of `evaluations` settings, as its label says.
  """
  return Schedule(
    'tuned',
    tables.hand_made(num_steps, total=num_tokens, **setting),
    guided=setting['guidance_scale'] > 0,
    options=step_lib.MASKGIT,
    label=f'hand-made, best of {evaluations}',
    note=', '.join(f'{key} {value}' for key, value in setting.items()),
  )


def mean_table(raw_actions: np.ndarray, agent: Agent) -> PolicyValues:
  """An adaptive policy frozen to its mean action.

  Args:
    raw_actions: what it did, float32[T, B, A], before smoothing, residual and
      activation.
    agent: what acted.

  Returns:
    float32[T], the values of the mean action over samples.
  """
  taken: list[jax.Array] = []
  for step, action in enumerate(jnp.asarray(raw_actions).mean(axis=1)):
    before = taken[-1] if taken else action
    smoothed = actions.smooth(step, before, action, agent.smoothing)
    taken.append(smoothed if agent.smoothing else action)
  return actions.values_from_action(jnp.stack(taken), agent.residual)


def shuffled_table(
  values: PolicyValues, labels: np.ndarray, seed: int
) -> PolicyValues:
  """An adaptive policy's actions, exchanged among samples of a class.

  Args:
    values: what it did, float32[T, B] each.
    labels: int32[B].
    seed: of the exchange.

  Returns:
    float32[T, B]: sample i is steered by what was meant for another sample.
  """
  order = np.arange(len(labels))
  generator = np.random.default_rng(seed)
  for label in np.unique(labels):
    places = np.flatnonzero(labels == label)
    order[places] = generator.permutation(places)
  return jax.tree.map(lambda x: x[:, order], values)


def _floors(evaluation: Evaluation) -> dict[str, dict[str, float]]:
  """Measures of real images, reconstructions, and of the NAT alone."""
  experiment, measure = evaluation.experiment, evaluation.measures
  result = {}
  if datasets.has_validation(experiment):
    held_out = study.real_images(experiment, 'test')
    if len(held_out[0]) >= study.FEWEST:
      result['held-out images'] = measure(*held_out)
  images, condition = study.real_images(experiment, 'train')
  tokens = evaluation.tokens_of(images)
  result['reconstructions of training images'] = measure(
    evaluation.images_of(tokens), condition
  )
  count, num_tokens = evaluation.count, evaluation.generator.nat.num_tokens
  floors = {
    f'NAT, unguided, {num_steps} steps': ('maskgit', num_steps)
    for num_steps in sorted({1, 2, 4, 8, num_tokens})
  }
  # MaskGIT's choice sharpens at any number of steps; this is the law itself.
  random = 'random(curve="uniform")'
  floors['NAT, one token a step, in any order'] = random, num_tokens
  for label, (name, num_steps) in floors.items():
    schedule = evaluation.experiment.schedule(name, num_steps)
    samples = evaluation.sample(schedule, 'floors', count)
    result[label] = measure(samples.images, evaluation.labels(count))
  return result


def _grid_row(
  evaluation: Evaluation, setting: dict[str, Any], num_steps: int
) -> dict[str, Any]:
  """One setting of the grid and its distance."""
  count = evaluation.experiment.config.evaluate.grid_samples
  num_tokens = evaluation.generator.nat.num_tokens
  schedule = schedule_of_setting(setting, num_steps, num_tokens, 0)
  images = evaluation.sample(schedule, 'grid', count).images
  return {**setting, 'frechet': evaluation.measures.distance(images)}


def _grid(
  evaluation: Evaluation, num_steps: int, ledger: Ledger
) -> dict[str, Any]:
  """The settings of the grid at one T, measured, and the best of them."""
  section = evaluation.experiment.config.evaluate
  settings = grid_settings()[: section.max_grid]
  rows = []
  for index, setting in enumerate(settings):
    if index % 12 == 0:
      processes.say(f'evaluate: T={num_steps}, grid {index}/{len(settings)}')
    rows.append(
      ledger.get(
        f'T{num_steps}/grid/{index}',
        functools.partial(_grid_row, evaluation, setting, num_steps),
      )
    )
  return {
    'num_steps': num_steps,
    'evaluations': len(rows),
    'samples': section.grid_samples,
    'best': min(rows, key=lambda row: row['frechet']),
    'rows': rows,
  }


def _schedule_names(experiment: Experiment) -> tuple[str, ...]:
  # A config of an older version has no such field.
  named = experiment.config.evaluate.get('schedules')
  return named or DEFAULT_SCHEDULES


def methods(
  evaluation: Evaluation, grid: Mapping[str, Any]
) -> Iterator[Method]:
  """Every method that the study compares at one T, that of a `_grid`."""
  num_steps, num_tokens = grid['num_steps'], evaluation.generator.nat.num_tokens
  experiment = evaluation.experiment
  for name in _schedule_names(experiment):
    yield Method(experiment.schedule(name, num_steps), 'hand-made')
  best = {key: grid['best'][key] for key in GRID}
  tuned = schedule_of_setting(best, num_steps, num_tokens, grid['evaluations'])
  yield Method(tuned, 'tuned')
  for which in policies.trainings(evaluation.experiment):
    if num_steps in which.all_num_steps:
      yield from _learned(evaluation, which, num_steps)


def _learned(
  evaluation: Evaluation, which: policies.Training, num_steps: int
) -> Iterator[Method]:
  """A learned policy and, if adaptive, its mean and its shuffled actions."""
  agent = policies.load_agent(evaluation.experiment, which, num_steps)
  role = 'adaptive' if which.adaptive else 'non-adaptive'
  role = 'shared' if which.drawn else role
  schedule = Schedule(
    f'{_LEARNED_NAMES[role]}-{which.reward}',
    agent,
    agent.guided,
    label=f'{LEARNED_LABELS[role]} ({which.reward})',
  )
  method = functools.partial(Method, training=which.index, reward=which.reward)
  yield method(schedule, role)
  if not which.adaptive:
    return
  # The mean is taken on samples that no measure sees.
  count = evaluation.count
  seen = evaluation.sample(schedule, 'mean', count, record=True).trajectory
  assert seen is not None  # It was asked for.
  mean = mean_table(seen.aux.action, agent)
  label = f'{schedule.label}, mean action as a table'
  frozen = Schedule(f'{schedule.name}-mean', mean, agent.guided, label=label)
  yield method(frozen, 'frozen')
  shuffled = shuffled_table(seen.values, evaluation.labels(count), 0)
  label = f'{schedule.label}, actions shuffled within class'
  yield method(
    Schedule(f'{schedule.name}-shuffled', shuffled, agent.guided, label=label),
    'shuffled',
  )


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be measured."""
  experiment.check(
    policies.problems,
    _problems,
    reads=('data', 'evaluate', 'mesh', 'policy'),
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says what the study does not allow."""
  config = experiment.config
  yield from datasets.problems(experiment)
  # Measures of pixels are of 8x8 boxes.
  if any(side % 8 for side in experiment.image_shape[:2]):
    yield (
      f'config.data: images of {experiment.image_size} pixels are no multiples'
      ' of 8, which config.evaluate.protocol=study measures in boxes of'
    )
  yield from problems(
    experiment, _schedule_names(experiment), config.policy.num_steps
  )


def run(experiment: Experiment) -> None:
  """Measures every method of the config; its trainings must be complete."""
  check_config(experiment)
  directory = experiment.workdir / 'evaluate'
  if has_results(directory, SHAPE):
    return
  for which in policies.trainings(experiment):
    experiment.require(f'policy/{which.name}')
  evaluation = Evaluation(experiment)
  warnings = evaluation.measures.warnings(evaluation.count)
  warn('evaluate', warnings)
  ledger = Ledger(directory / 'ledger.jsonl')
  processes.say('evaluate: floors')
  floors = ledger.get('floors', functools.partial(_floors, evaluation))
  grids, entries = [], []
  for num_steps in sorted(set(experiment.config.policy.num_steps)):
    grids.append(_grid(evaluation, num_steps, ledger))
    for method in methods(evaluation, grids[-1]):
      schedule = method.schedule
      processes.say(f'evaluate: T={num_steps}, {schedule.label}')
      rows = evaluation.rows(
        ledger,
        f'T{num_steps}/{schedule.name}/{method.training}',
        functools.partial(evaluation.seed_row, schedule),
      )
      entries.append(evaluation.entry(method, rows))
  results = {
    'settings': _settings(evaluation),
    'floors': floors,
    'methods': entries,
    'grid': grids,
  }
  files.write_json(directory / RESULTS_FILE, results)
  mark_complete(directory, len(entries), {}, warnings=warnings)


def _settings(evaluation: Evaluation) -> dict[str, Any]:
  """What a reader of the figures has to know."""
  experiment = evaluation.experiment
  config = experiment.config
  section = config.evaluate
  judge = read_complete(experiment.workdir / 'judges/measure')['figures']
  return {
    'condition': config.data.condition,
    'seed': config.seed,
    'reference': f'training split, {evaluation.measures.num_real:,} images',
    'features': 'of judges/measure, trained on these images: not FID',
    'held-out images': ', '.join(f'{k} {v:.3g}' for k, v in judge.items()),
    'sampling seeds': section.num_seeds,
    'images a seed': section.num_samples,
    'policy iterations': config.policy.iterations,
    'trajectories an iteration': config.policy.batch_size,
    'PPO preset': config.policy.preset,
    'iterate evaluated': f'the {config.policy.iterate} one',
  }
