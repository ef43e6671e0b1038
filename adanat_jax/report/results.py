"""Reading results.json: methods by role, floors, and pooled measures.

    {"settings": {...},
     "floors": {name: {measure: value}},
     "methods": [{"name", "label", "num_steps", "training", "seeds",
                  "samples_per_seed", "passes", "role", "reward", "note",
                  "measures": {measure: {"mean", "std", "values"}},
                  "values_per_step": {value: {"mean": [T], "std": [T]}}}],
     "grid": [{"num_steps", "evaluations", "best", "rows"}]}

`passes` are denoiser passes of a sample, their mean; files of older versions
lack them. `training` and `reward` may be null; `SHAPE` has the types. One entry
stands for one method, number of steps and training.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from adanat_jax.errors import UserError, printable
from adanat_jax.runtime import journal

MethodResult = Mapping[str, Any]
Results = Mapping[str, Any]

HAND_MADE = 'hand-made'
TUNED = 'tuned'  # Hand-made, its parameters chosen by a grid search.
NON_ADAPTIVE = 'non-adaptive'  # Learned, but the same for all samples.
ADAPTIVE = 'adaptive'  # Learned, chooses for each sample: AdaNAT.
SHARED = 'shared'  # The same, one policy for every number of steps.
FROZEN = 'frozen'  # An adaptive policy's mean action as a table.
SHUFFLED = 'shuffled'  # An adaptive policy's actions, permuted within a class.
ROLES = (HAND_MADE, TUNED, NON_ADAPTIVE, ADAPTIVE, SHARED, FROZEN, SHUFFLED)

_STATISTICS = {'mean': [float], 'std': [float]}
_SETTING = {
  'curve': str,
  **dict.fromkeys(('masking_temperature', 'sampling_temperature'), float),
  **dict.fromkeys(('guidance_scale', 'frechet'), float),
}
# See `runtime.files.parse_json`.
SHAPE = {
  'settings': dict,
  'floors': {str: {str: float}},
  'methods': [
    {
      **dict.fromkeys(('name', 'label', 'role', 'note'), str),
      'num_steps': int,
      'samples_per_seed': int,
      'passes?': (float, None),
      'seeds': [int],
      'training': (int, None),
      'reward': (str, None),
      'measures': {str: {'mean': float, 'std': float, 'values': [float]}},
      'values_per_step': dict.fromkeys(
        ('mask_ratio', 'sampling_temperature', 'masking_temperature')
        + ('guidance_scale',),
        _STATISTICS,
      ),
    }
  ],
  'grid': [
    {
      'num_steps': int,
      'evaluations': int,
      'best': _SETTING,
      'rows': [_SETTING],
    }
  ],
}

MEASURE_TITLES = {
  'frechet': 'Fréchet distance',
  'pixel_frechet': 'pixel Fréchet distance',
  'kernel_distance': 'kernel distance',
  'precision': 'precision',
  'recall': 'recall',
  'density': 'density',
  'coverage': 'coverage',
  'accuracy': 'class accuracy',
}
HIGHER_IS_BETTER = frozenset(
  {'precision', 'recall', 'density', 'coverage', 'accuracy'}
)


@dataclasses.dataclass(frozen=True)
class Pooled:
  """One measure of one method at one T, over all trainings and seeds."""

  mean: float  # over all values
  std: float  # unbiased, over all values; NaN for a single one
  seeds: tuple[float, ...]  # mean over trainings of each sampling seed
  # Standard error of the mean over trainings; 0 for a single one, where it is
  # unknown.
  between: float


def read(directory: pathlib.Path) -> dict[str, Any]:
  """Reads the results of a finished evaluation.

  Raises:
    UserError: if they are missing or damaged.
  """
  results = journal.read_results(directory, SHAPE)
  for entry in results['methods']:
    values = [len(found['values']) for found in entry['measures'].values()]
    per_step = [
      len(row[name])
      for row in entry['values_per_step'].values()
      for name in _STATISTICS
    ]
    seeds = len(entry['seeds']) or -1
    if {seeds, *values} != {seeds} or {*per_step} != {entry['num_steps']}:
      raise UserError(
        f'{directory / journal.RESULTS_FILE}: lists of'
        f' {printable(entry["name"], 80)} have other lengths than they should;'
        ' delete it and run --config.mode=evaluate again'
      )
  return results


def all_num_steps(results: Results) -> list[int]:
  """Every T with a method, rising."""
  return sorted({int(entry['num_steps']) for entry in results['methods']})


def names(results: Results, num_steps: int | None = None) -> list[str]:
  """Names of the methods, at one T or any, in the order of the file."""
  return list(
    dict.fromkeys(
      entry['name']
      for entry in results['methods']
      if num_steps in (None, entry['num_steps'])
    )
  )


def select(results: Results, **fields: Any) -> list[MethodResult]:
  """The entries whose fields have these values, such as `num_steps=4`."""
  return [
    entry
    for entry in results['methods']
    if all(entry[name] == value for name, value in fields.items())
  ]


def label_of(results: Results, name: str) -> str:
  """A method's name in pictures and text."""
  return select(results, name=name)[0]['label']


def pool(entries: Sequence[MethodResult], measure: str) -> Pooled | None:
  """One measure over several trainings; None if nobody measured it."""
  trainings = [
    np.asarray(entry['measures'][measure]['values'], np.float64)
    for entry in entries
    if measure in entry['measures']
  ]
  if not trainings:
    return None
  values = np.concatenate(trainings)
  means = np.array([training.mean() for training in trainings])
  return Pooled(
    mean=float(values.mean()),
    std=_std(values),
    seeds=tuple(np.stack(trainings).mean(axis=0).tolist()),
    between=_standard_error(means) if len(means) > 1 else 0.0,
  )


def error_of_difference(ours: Pooled, theirs: Pooled) -> float:
  """Standard error of the difference of two means; NaN if it is unknown.

  Methods of one evaluation share labels and noise seed by seed, so the
  differences of the seeds vary less than the methods do. The variance between
  the trainings of either method is added.
  """
  if len(ours.seeds) == len(theirs.seeds):
    paired = np.asarray(ours.seeds) - np.asarray(theirs.seeds)
    seeds = _standard_error(paired)
  else:
    each = [_standard_error(np.asarray(x.seeds)) for x in (ours, theirs)]
    seeds = math.hypot(*each)
  return math.hypot(seeds, ours.between, theirs.between)


def floors_of(results: Results, measure: str) -> dict[str, float]:
  """One measure of the floors, by name, where it was measured."""
  return {
    name: float(measures[measure])
    for name, measures in results['floors'].items()
    if measure in measures
  }


def title_of(measure: str) -> str:
  """A measure's name in text."""
  return MEASURE_TITLES.get(measure, measure.replace('_', ' '))


def better(measure: str) -> str:
  """Which direction is good: 'higher' or 'lower'."""
  return 'higher' if measure in HIGHER_IS_BETTER else 'lower'


def _std(values: np.ndarray) -> float:
  return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _standard_error(values: np.ndarray) -> float:
  return _std(values) / math.sqrt(len(values))
