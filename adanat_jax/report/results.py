"""Reading results.json: methods by role, floors, and pooled measures.

    {"settings": {...},
     "floors": {name: {measure: value}},
     "methods": [{"name", "label", "num_steps", "training", "seeds",
                  "samples_per_seed", "role", "reward", "note",
                  "measures": {measure: {"mean", "std", "values"}},
                  "values_per_step": {value: {"mean": [T], "std": [T]}}}],
     "grid": {"num_steps", "evaluations", "best", "rows"} or a list of such}

`role`, `reward`, `note` and `values_per_step` may be missing, `training` may
be null. One entry stands for one method, number of steps and training.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

MethodResult = Mapping[str, Any]
Results = Mapping[str, Any]

HAND_MADE = 'hand-made'
TUNED = 'tuned'  # Hand-made, its dials chosen by a grid.
NON_ADAPTIVE = 'non-adaptive'  # Learned, but the same for all samples.
ADAPTIVE = 'adaptive'  # Learned and sample by sample: AdaNAT.
FROZEN = 'frozen'  # An adaptive policy's mean action as a table.
SHUFFLED = 'shuffled'  # An adaptive policy's actions, exchanged in a class.
ROLES = (HAND_MADE, TUNED, NON_ADAPTIVE, ADAPTIVE, FROZEN, SHUFFLED)

# What a name holds if the entry does not tell its role; the first hit counts.
_ROLE_WORDS = (
  ('shuffle', SHUFFLED),
  ('frozen', FROZEN),
  ('mean', FROZEN),
  ('non_adaptive', NON_ADAPTIVE),
  ('nonadaptive', NON_ADAPTIVE),
  ('adanat', ADAPTIVE),
  ('tuned', TUNED),
  ('grid', TUNED),
)

MEASURE_TITLES = {
  'frechet': 'Fréchet distance',
  'pixel_frechet': 'pixel Fréchet distance',
  'precision': 'precision',
  'recall': 'recall',
  'accuracy': 'class accuracy',
}
HIGHER_IS_BETTER = frozenset({'precision', 'recall', 'accuracy'})


@dataclasses.dataclass(frozen=True)
class Pooled:
  """One measure of one method at one T, over all trainings and seeds.

  Attributes:
    mean: over all values.
    std: unbiased, over all values; NaN for a single one.
    seeds: mean over trainings of each sampling seed.
    between: standard error of the mean that the trainings alone give; 0 for a
      single training, which cannot tell.
  """

  mean: float
  std: float
  seeds: tuple[float, ...]
  between: float


def role_of(entry: MethodResult) -> str:
  """One of `ROLES`: what the entry says, else what its name tells."""
  if 'role' in entry:
    return entry['role']
  name = entry['name'].replace('-', '_').lower()
  return next((role for word, role in _ROLE_WORDS if word in name), HAND_MADE)


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


def entries_of(
  results: Results, name: str, num_steps: int
) -> list[MethodResult]:
  """All trainings of one method at one T."""
  return [
    entry
    for entry in results['methods']
    if entry['name'] == name and entry['num_steps'] == num_steps
  ]


def label_of(results: Results, name: str) -> str:
  """How a method is called in pictures and text."""
  return next(e['label'] for e in results['methods'] if e['name'] == name)


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
  differences of the seeds scatter less than the methods do; to that comes what
  the trainings of either scatter.
  """
  if len(ours.seeds) == len(theirs.seeds):
    paired = np.asarray(ours.seeds) - np.asarray(theirs.seeds)
    seeds = _standard_error(paired)
  else:
    each = [_standard_error(np.asarray(x.seeds)) for x in (ours, theirs)]
    seeds = math.hypot(*each)
  return math.hypot(seeds, ours.between, theirs.between)


def floors_of(results: Results, measure: str) -> dict[str, float]:
  """What the floors reach in one measure, by name, where it was measured.

  In the file a floor is a number, or a mean with its spread.
  """
  values = {
    name: measures[measure]
    for name, measures in results.get('floors', {}).items()
    if measure in measures
  }
  return {
    name: float(value['mean'] if isinstance(value, Mapping) else value)
    for name, value in values.items()
  }


def title_of(measure: str) -> str:
  """A measure's name in text."""
  return MEASURE_TITLES.get(measure, measure.replace('_', ' '))


def better(measure: str) -> str:
  """Which direction is good: 'higher' or 'lower'."""
  return 'higher' if measure in HIGHER_IS_BETTER else 'lower'


def grids(results: Results) -> list[Mapping[str, Any]]:
  """The searches for hand-made schedules: none, one, or one for each T."""
  grid = results.get('grid') or []
  return [grid] if isinstance(grid, Mapping) else list(grid)


def _std(values: np.ndarray) -> float:
  return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _standard_error(values: np.ndarray) -> float:
  return _std(values) / math.sqrt(len(values))
