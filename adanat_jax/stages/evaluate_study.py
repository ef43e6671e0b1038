"""Stage `evaluate` by the study of the digits: schedules on the same NAT.

1. Floors: what the measures give without any schedule to blame.
2. For each T the hand-made family is tuned by a grid, on seeds of its own.
3. Every method is sampled with the same seeds, labels and noise.

Each piece is written to `evaluate/ledger.jsonl` as soon as it is done; a run
that was killed does only what is missing. The result is `results.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from adanat_jax.data import digits
from adanat_jax.decoding import actions, schedules, step as step_lib
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.experiment import policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import study as measures_lib
from adanat_jax.runtime import files, processes, sharding
from adanat_jax.runtime.journal import Ledger, is_complete, mark_complete
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.program import Samples
from adanat_jax.types import PolicyValues

# Fewer say nothing of a schedule.
FEWEST_SAMPLES = 100
# What is compared without a training, unless the config names others.
HAND_MADE = ('maskgit', 'residual', 'guidance-3')
# The grid over the hand-made family: 2 x 4 x 3 x 3 = 72 settings.
GRID = {
  'curve': ('cosine', 'pow2'),
  'masking_temperature': (2.0, 4.5, 9.0, 20.0),
  'sampling_temperature': (0.85, 1.0, 1.15),
  'guidance_scale': (0.0, 0.25, 0.5),
}

ROLE_LABELS = {True: 'AdaNAT', False: 'learned, non-adaptive'}


@dataclasses.dataclass(frozen=True)
class Method:
  """A schedule as one side of a comparison.

  Attributes:
    schedule: what decodes; its name is the same at every T and training.
    role: `adanat_jax.report.results` lists them.
    training: which repetition, None for schedules without a training.
    reward: what a learned policy was trained on, None for all others.
  """

  schedule: Schedule
  role: str
  training: int | None = None
  reward: str | None = None


def hand_made(num_steps: int, num_tokens: int) -> list[Method]:
  """The hand-made schedules at their published defaults."""
  return [
    Method(schedules.make(name, num_steps, num_tokens), 'hand-made')
    for name in HAND_MADE
  ]


def grid_settings() -> list[dict[str, Any]]:
  """Every setting of the grid."""
  return [
    dict(zip(GRID, values, strict=True))
    for values in itertools.product(*GRID.values())
  ]


def of_setting(
  setting: dict[str, Any], num_steps: int, num_tokens: int, evaluations: int
) -> Method:
  """A setting of the grid as a method; unguided where its guidance is 0."""
  schedule = Schedule(
    'tuned',
    schedules.hand_made(num_steps, total=num_tokens, **setting),
    guided=setting['guidance_scale'] > 0,
    options=step_lib.MASKGIT,
    label=f'hand-made, best of {evaluations}',
    note=', '.join(f'{key} {value}' for key, value in setting.items()),
  )
  return Method(schedule, 'tuned')


def mean_table(raw_actions: np.ndarray, residual: jax.Array) -> PolicyValues:
  """An adaptive policy frozen to its mean action.

  Args:
    raw_actions: what it did, float32[T, B, A], before residual and activation.
    residual: float32[T, A].

  Returns:
    float32[T], the values of the mean action over samples.
  """
  return actions.values_from_action(
    jnp.asarray(raw_actions).mean(axis=1), residual
  )


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(module: Any, method: str, params: Any, inputs: Any) -> Any:
  return module.apply({'params': params}, inputs, method=method)


class Evaluation:
  """The networks of a workdir, and one way to sample and measure for all."""

  def __init__(self, experiment: Experiment):
    """Loads everything that evaluation needs.

    Raises:
      UserError: naming the stage that has to be run first.
    """
    self.experiment = experiment
    self.generator: Generator = experiment.generator()
    self.measures = measures_lib.Measures(experiment)

  def labels(self, count: int) -> np.ndarray:
    """Balanced conditions, int32[count]."""
    return np.arange(count, dtype=np.int32) % self.generator.num_classes

  def sample(
    self,
    schedule: Schedule,
    seed: str,
    count: int,
    record: bool = False,
  ) -> Samples:
    """Samples of a schedule; a seed gives every schedule the same noise."""
    return self.generator.decode(
      schedule,
      self.labels(count),
      self.experiment.key(f'evaluate/{seed}'),
      record=record,
    )

  def images_of(self, tokens: ArrayLike) -> np.ndarray:
    """Decodes complete grids int32[B, N] to images float32[B, H, W, C]."""
    return sharding.gather(self._tokenizer('decode_tokens', tokens))

  def _tokenizer(self, method: str, inputs: ArrayLike) -> Any:
    params = self.generator.tokenizer_params
    return _apply(self.generator.tokenizer, method, params, inputs)

  def floors(self) -> dict[str, dict[str, float]]:
    """Measures of real images, reconstructions, and of the NAT alone."""
    config, measure = self.experiment.config, self.measures
    data = digits.load(config.data.image_size)
    condition = lambda labels: digits.condition_of(
      labels, config.data.condition
    )
    tokens = self._tokenizer('tokenize', data.train_images)
    result = {
      'held-out images': measure(data.test_images, condition(data.test_labels)),
      'reconstructions of training images': measure(
        self.images_of(tokens), condition(data.train_labels)
      ),
    }
    num_tokens = self.generator.nat.num_tokens
    for num_steps in sorted({1, 2, 4, 8, num_tokens}):
      schedule = schedules.make('maskgit', num_steps, num_tokens)
      samples = self.sample(schedule, 'floors', self._count)
      result[f'NAT, unguided, {num_steps} steps'] = measure(
        samples.images, self.labels(self._count)
      )
    return result

  @property
  def _count(self) -> int:
    return self.experiment.config.evaluate.num_samples

  def grid_row(self, setting: dict[str, Any], num_steps: int) -> dict[str, Any]:
    """One setting of the grid and its distance."""
    count = self.experiment.config.evaluate.grid_samples
    method = of_setting(setting, num_steps, self.generator.nat.num_tokens, 0)
    images = self.sample(method.schedule, 'grid', count).images
    return {**setting, 'frechet': self.measures.distance(images)}

  def learned(self, which: policies.Training) -> Iterator[Method]:
    """A learned policy and, if adaptive, its mean and its shuffled actions."""
    agent = policies.load_agent(self.experiment, which)
    kind = 'adanat' if which.adaptive else 'learned-non-adaptive'
    schedule = Schedule(
      f'{kind}-{which.reward}',
      agent,
      label=f'{ROLE_LABELS[which.adaptive]} ({which.reward})',
    )
    made = functools.partial(Method, training=which.index, reward=which.reward)
    yield made(schedule, 'adaptive' if which.adaptive else 'non-adaptive')
    if not which.adaptive:
      return
    # The mean is taken on samples that no measure sees.
    seen = self.sample(schedule, 'mean', self._count, True)
    assert seen.trajectory is not None  # It was asked for.
    mean = Schedule(
      f'{schedule.name}-mean',
      mean_table(seen.trajectory.aux.action, agent.residual),
      label=f'{schedule.label}, mean action as a table',
    )
    yield made(mean, 'frozen')
    shuffled = Schedule(
      f'{schedule.name}-shuffled',
      shuffled_table(seen.trajectory.values, self.labels(self._count), 0),
      label=f'{schedule.label}, actions shuffled within class',
    )
    yield made(shuffled, 'shuffled')

  def entry(self, method: Method, ledger: Ledger) -> dict[str, Any]:
    """All seeds of a method, as `results.json` has it."""
    schedule = method.schedule
    name = f'T{schedule.num_steps}/{schedule.name}/{method.training}'
    seeds = list(range(self.experiment.config.evaluate.num_seeds))
    rows = [
      ledger.get(f'{name}/{seed}', functools.partial(self._row, schedule, seed))
      for seed in seeds
    ]
    collected = {
      measure: [row['measures'][measure] for row in rows]
      for measure in measures_lib.MEASURES
    }
    return {
      'name': schedule.name,
      'label': schedule.label,
      'role': method.role,
      'reward': method.reward,
      'note': schedule.note,
      'num_steps': schedule.num_steps,
      'training': method.training,
      'seeds': seeds,
      'samples_per_seed': self._count,
      'measures': {
        measure: {
          'mean': float(np.mean(values)),
          'std': float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
          'values': values,
        }
        for measure, values in collected.items()
      },
      'values_per_step': rows[0]['values_per_step'],
      'committed_per_step': rows[0]['committed_per_step'],
    }

  def _row(self, schedule: Schedule, seed: int) -> dict[str, Any]:
    """Measures of one seed, and what the policy did."""
    samples = self.sample(schedule, f'seed-{seed}', self._count, True)
    trajectory = samples.trajectory
    assert trajectory is not None  # It was asked for.
    return {
      'measures': self.measures(samples.images, self.labels(self._count)),
      'values_per_step': {
        field.name: _mean_and_std(getattr(trajectory.values, field.name))
        for field in dataclasses.fields(PolicyValues)
      },
      'committed_per_step': _mean_and_std(trajectory.num_committed),
    }


def _say(text: str) -> None:
  processes.say(f'evaluate: {text}')


def _mean_and_std(values: ArrayLike) -> dict[str, list[float]]:
  """Over the samples of [T, B]."""
  array = np.asarray(values, np.float64)
  return {'mean': array.mean(1).tolist(), 'std': array.std(1).tolist()}


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be measured."""
  experiment.check(_problems, reads=('data', 'evaluate', 'mesh', 'policy'))


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says what the study does not allow."""
  section = experiment.config.evaluate
  if not experiment.is_digits:
    yield (
      'config.evaluate.protocol=study compares schedules on the digits; give'
      f' published for config.data.source={experiment.config.data.source}'
    )
  if section.num_samples < FEWEST_SAMPLES:
    yield (
      f'config.evaluate.num_samples={section.num_samples} is not allowed with'
      f' config.evaluate.protocol=study: give {FEWEST_SAMPLES} or more'
    )


def run(experiment: Experiment) -> None:
  """Measures every method of the config.

  Args:
    experiment: its trainings are complete; its workdir gets `evaluate/`.

  Raises:
    UserError: for a missing stage or a value that is not allowed.
  """
  config = experiment.config
  check_config(experiment)
  directory = experiment.workdir / 'evaluate'
  if is_complete(directory):
    return
  trainings = policies.trainings(experiment)
  for which in trainings:
    experiment.require(f'policy/{which.name}')
  evaluation = Evaluation(experiment)
  ledger = Ledger(directory / 'ledger.jsonl')
  num_tokens = evaluation.generator.nat.num_tokens

  _say('floors')
  results: dict[str, Any] = {
    'settings': _settings(experiment),
    'floors': ledger.get('floors', evaluation.floors),
    'methods': [],
    'grid': [],
  }
  for num_steps in sorted(set(config.policy.num_steps)):
    settings = grid_settings()[: config.evaluate.max_grid]
    rows = []
    for index, setting in enumerate(settings):
      if index % 12 == 0:
        _say(f'T={num_steps}, grid {index}/{len(settings)}')
      rows.append(
        ledger.get(
          f'T{num_steps}/grid/{index}',
          functools.partial(evaluation.grid_row, setting, num_steps),
        )
      )
    best = min(rows, key=lambda row: row['frechet'])
    results['grid'].append(
      {
        'num_steps': num_steps,
        'evaluations': len(rows),
        'samples': config.evaluate.grid_samples,
        'best': best,
        'rows': rows,
      }
    )
    chosen = {key: best[key] for key in GRID}
    methods = hand_made(num_steps, num_tokens)
    methods.append(of_setting(chosen, num_steps, num_tokens, len(rows)))
    for which in trainings:
      if which.num_steps == num_steps:
        methods.extend(evaluation.learned(which))
    for method in methods:
      _say(f'T={num_steps}, {method.schedule.label}')
      results['methods'].append(evaluation.entry(method, ledger))
  files.write_json(directory / 'results.json', results)
  mark_complete(directory, len(results['methods']), {})


def _settings(experiment: Experiment) -> dict[str, Any]:
  """What a reader of the figures has to know."""
  config = experiment.config
  section = config.evaluate
  return {
    'condition': config.data.condition,
    'seed': config.seed,
    'reference': 'training split, 1,433 images',
    'sampling seeds': section.num_seeds,
    'images a seed': section.num_samples,
    'policy iterations': config.policy.iterations,
    'trajectories an iteration': config.policy.batch_size,
    'PPO preset': config.policy.preset,
    'iterate evaluated': f'the {config.policy.iterate} one',
  }
