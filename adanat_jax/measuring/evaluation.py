"""What every evaluation does alike: study, published protocol, comparison.

  evaluation = Evaluation(experiment)
  samples = evaluation.sample(schedule, 'seed-0', count=2000)
  figures = evaluation.measures(samples.images, evaluation.labels(2000))

An `Evaluation` is the generator of an experiment with what measures its images.
The study and the comparison measure every `Method` with the same labels and the
same noise, seed after seed; the published protocol measures by a `Scorer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from adanat_jax.decoding import guidance
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.decoding.step import effective_temperature
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import scores, study
from adanat_jax.models import denoisers
from adanat_jax.runtime.journal import Ledger
from adanat_jax.sampling import program
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.program import Samples

# Fewer images of a set say nothing of a schedule.
FEWEST_SAMPLES = 100
# What is kept of numbers that each sample has at each step.
_OVER_SAMPLES: dict[str, Callable[..., np.ndarray]] = {
  'mean': np.mean,
  'std': np.std,
  'low': np.min,
  'high': np.max,
}


@dataclasses.dataclass(frozen=True)
class Method:
  """A schedule as one side of a comparison."""

  # What decodes; its name is the same at every T and training.
  schedule: Schedule
  role: str  # `adanat_jax.report.results` lists them.
  # Which repetition, None for schedules without a training.
  training: int | None = None
  # What a learned policy was trained on, None for all others.
  reward: str | None = None


def problems(
  experiment: Experiment, names: Iterable[str], all_num_steps: Iterable[int]
) -> Iterator[str]:
  """Says why these schedules cannot be compared; see `Experiment.check`."""
  for name, num_steps in itertools.product(names, all_num_steps):
    # Some exist for some numbers of steps only.
    experiment.schedule(name, num_steps)
  count = experiment.config.evaluate.num_samples
  if count < FEWEST_SAMPLES:
    yield (
      f'config.evaluate.num_samples={count} is not allowed where schedules are'
      f' compared: give {FEWEST_SAMPLES} or more'
    )


class Evaluation:
  """The generator of an experiment, and what measures its images.

  Attributes:
    experiment: whose networks these are.
    generator: the NAT or ENAT with its tokenizer and learned policies.
  """

  def __init__(self, experiment: Experiment, batch_size: int | None = None):
    """Loads the generator; what measures is loaded when it is first needed.

    It decodes `batch_size` images at a time; None: `Experiment.batch_size`.
    """
    self.experiment = experiment
    self.generator: Generator = experiment.generator()
    if batch_size is not None:
      self.generator = dataclasses.replace(
        self.generator, batch_size=batch_size
      )

  @functools.cached_property
  def measures(self) -> study.Measures:
    """The measures of the study."""
    return study.Measures(self.experiment)

  @functools.cached_property
  def scorer(self) -> scores.Scorer:
    """The measures of the published protocol."""
    return scores.Scorer(self.experiment)

  @property
  def count(self) -> int:
    """Images of a set that is measured: `evaluate.num_samples`."""
    return self.experiment.config.evaluate.num_samples

  def labels(self, count: int) -> np.ndarray:
    """Balanced conditions, int32[count]."""
    return np.arange(count, dtype=np.int32) % self.generator.num_classes

  def sample(
    self,
    schedule: Schedule,
    seed: str,
    count: int,
    record: bool = False,
    generator: Generator | None = None,
  ) -> Samples:
    """Samples of balanced conditions.

    Args:
      schedule: what decodes.
      seed: gives every schedule the same noise, on every network.
      count: how many.
      record: whether to return the trajectory.
      generator: one of `generator_for`; None for the plain one.
    """
    return (generator or self.generator).run(
      schedule,
      self.labels(count),
      self.experiment.key(f'evaluate/{seed}'),
      record=record,
    )

  def tokens_of(self, images: np.ndarray) -> np.ndarray:
    """Token grids int32[B, N] of images float32[B, H, W, C]."""
    return self._tokenizer('tokenize', images)

  def images_of(self, tokens: np.ndarray) -> np.ndarray:
    """Decodes complete grids int32[B, N] to images float32[B, H, W, C]."""
    return self._tokenizer('decode_tokens', tokens)

  def _tokenizer(self, method: str, inputs: np.ndarray) -> np.ndarray:
    generator = self.generator
    apply = functools.partial(
      program.apply, generator.tokenizer, method, generator.tokenizer_params
    )
    found: np.ndarray = study.map_in_batches(
      apply, inputs, generator.batch_size
    )
    return found

  def generator_for(
    self,
    schedule: Schedule,
    num_buckets: int,
    conditions: Callable[[], np.ndarray],
    name: str,
  ) -> Generator:
    """The generator, with buckets where an ENAT follows a learned policy.

    Args:
      schedule: what will be followed.
      num_buckets: at most this many; 0 for none.
      conditions: returns those of the samples, which no measure sees, that the
        policy is watched on.
      name: of the key of those samples.
    """
    is_for_each = not schedule.is_table and denoisers.reuses(self.generator.nat)
    if not num_buckets or not is_for_each:
      return self.generator
    return self.generator.with_buckets(
      schedule,
      conditions(),
      self.experiment.key(name),
      num_steps=schedule.num_steps,
      num_buckets=num_buckets,
    )

  def rows(
    self, ledger: Ledger, key: str, measure: Callable[[int], dict[str, Any]]
  ) -> list[dict[str, Any]]:
    """What is measured of each sampling seed; the ledger keeps it by `key`."""
    return [
      ledger.get(f'{key}/{seed}', functools.partial(measure, seed))
      for seed in range(self.experiment.config.evaluate.num_seeds)
    ]

  def row(
    self,
    schedule: Schedule,
    samples: Samples,
    statistics: Iterable[str] = ('mean', 'std'),
  ) -> dict[str, Any]:
    """Measures of recorded samples, and what the schedule did.

    Args:
      schedule: that decoded them.
      samples: what `sample` returned.
      statistics: over samples: `mean`, `std`, `low`, `high`.
    """
    trajectory = samples.trajectory
    assert trajectory is not None  # The caller asked for it.
    over_samples = functools.partial(_over_samples, statistics=statistics)
    # What a policy says of guidance is not done at a step that is unguided.
    is_guided = guidance.each_step(schedule.guided, schedule.num_steps)
    scale = np.array(is_guided)[:, None] * np.asarray(
      trajectory.values.guidance_scale
    )
    values = dataclasses.replace(trajectory.values, guidance_scale=scale)
    # What the kept tokens follow, whichever way their positions were chosen.
    temperature = effective_temperature(values, schedule.options)
    return {
      'measures': self.measures(
        samples.images, self.labels(len(samples.images))
      ),
      'values_per_step': {
        name: over_samples(numbers)
        for name, numbers in {
          **values.by_name(),
          'effective_temperature': temperature,
        }.items()
      },
      'passes': float(np.mean(samples.passes)),
      'committed_per_step': over_samples(trajectory.num_committed),
    }

  def seed_row(
    self, schedule: Schedule, seed: int, generator: Generator | None = None
  ) -> dict[str, Any]:
    """What is measured of the samples of one seed; see `sample`."""
    samples = self.sample(
      *(schedule, f'seed-{seed}', self.count, True, generator)
    )
    return self.row(schedule, samples)

  def entry(self, method: Method, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A method as `results.json` has it, from its `rows`."""
    schedule = method.schedule
    return {
      'name': schedule.name,
      'label': schedule.label,
      'role': method.role,
      'reward': method.reward,
      'note': schedule.note,
      'num_steps': schedule.num_steps,
      'training': method.training,
      'seeds': list(range(len(rows))),
      'samples_per_seed': self.count,
      # Rows of a ledger that an older version began have no passes.
      'passes': rows[0].get('passes'),
      'measures': {
        name: over_seeds([row['measures'][name] for row in rows])
        for name in study.MEASURES
        # Rows of a ledger that an older version began have fewer.
        if all(name in row['measures'] for row in rows)
      },
      'values_per_step': rows[0]['values_per_step'],
      'committed_per_step': rows[0]['committed_per_step'],
    }


def _over_samples(
  values: ArrayLike, statistics: Iterable[str]
) -> dict[str, list[float]]:
  """Statistics over the samples of [T, B], a number a step each."""
  array = np.asarray(values, np.float64)
  return {
    name: _OVER_SAMPLES[name](array, axis=1).tolist() for name in statistics
  }


def over_seeds(values: list[float]) -> dict[str, Any]:
  """Mean and standard deviation over seeds, and the values."""
  return {
    'mean': float(np.mean(values)),
    'std': float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
    'values': values,
  }
