"""What common random numbers gain: the noise of a search's differences.

  python benchmarks/common_noise.py --workdir=runs/digits

A point and its neighbours, each with one number moved as AutoNAT's descent
moves it, are measured with several seeds. The difference of a neighbour to the
point is then formed in two ways, of two distances with the same seed and of two
with different ones, as published; its standard deviation over seeds says how
large an effect must be to be seen at all.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

import numpy as np

from adanat_jax import config as config_lib, files, searching
from adanat_jax.stages import load, scores, searches

_LISTS = (
  'mask_ratio',
  'masking_temperature',
  'sampling_temperature',
  'guidance_scale',
)


def neighbours(point: searching.Point, ratio: float, other: float) -> Any:
  """The point and, moved upwards one by one, its neighbours, [4T - 1, 4T - 2].

  Args:
    point: float64[4T - 2].
    ratio: by how much mask ratios are moved.
    other: by how much all others are.
  """
  moves = np.diag(np.where(searching.is_ratio(point), ratio, other))
  return np.concatenate([point[None], searching.clamped(point + moves)])


def differences(values: np.ndarray) -> dict[str, np.ndarray]:
  """Mean and standard deviations of differences to the first point.

  Args:
    values: float64[S, P], distances by seed and point; two seeds at least.

  Returns:
    'mean' of each neighbour's difference, and its deviation over seeds with
    'common' seeds and with 'independent' ones, float64[P - 1] each.
  """
  moved = values[:, 1:] - values[:, :1]
  variances = values.var(axis=0, ddof=1)
  return {
    'mean': moved.mean(0),
    'common': moved.std(0, ddof=1),
    'independent': np.sqrt(variances[1:] + variances[0]),
  }


def by_list(found: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
  """Root mean squares over the numbers of each list of the schedule."""
  size = len(found['mean'])
  num_steps = (size + 2) // 4
  ends = [num_steps - 1, 2 * num_steps - 2, 3 * num_steps - 2]
  return {
    name: {
      key: float(np.sqrt(np.mean(part**2)))
      for key, part in zip(found, parts, strict=True)
    }
    for name, parts in zip(
      _LISTS,
      zip(*(np.split(row, ends) for row in found.values()), strict=True),
      strict=True,
    )
  }


def main() -> None:
  """Measures, and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--config', default='configs/digits.py')
  parser.add_argument('--workdir', required=True, type=pathlib.Path)
  parser.add_argument('--num_steps', type=int, default=4)
  parser.add_argument('--samples', type=int, default=1000)
  parser.add_argument('--seeds', type=int, default=8)
  parser.add_argument('--ratio_difference', type=float, default=0.16)
  parser.add_argument('--other_difference', type=float, default=0.1)
  parser.add_argument(
    '--results',
    type=pathlib.Path,
    help='results.json of a search, for the table at which it ended; without'
    ' it, where searches start',
  )
  parser.add_argument('--output', type=pathlib.Path, help='JSON, with values')
  options = parser.parse_args()
  config = config_lib.load(
    options.config, {'search.num_samples': options.samples}
  )
  # A seed of its own for each evaluation that is named by a number.
  which = searches.Search(options.num_steps, 'finite_differences', 'off', 0)
  objective = searches.Objective(
    config,
    which,
    load.generator(config, options.workdir),
    scores.Scorer(config, options.workdir),
  )
  point = searching.first_point(options.num_steps)
  if options.results:
    tables = json.loads(options.results.read_text())['tables']
    rows = [tables['last']['searched'][name] for name in _LISTS]
    point = np.concatenate([rows[0][:-1], rows[1][:-1], rows[2], rows[3]])
  points = neighbours(point, options.ratio_difference, options.other_difference)
  values = np.array(
    [[objective(x, seed) for x in points] for seed in range(options.seeds)]
  )
  found = by_list(differences(values))
  print(f'the point: {values[:, 0].mean():.2f}, over seeds +- ', end='')
  print(f'{values[:, 0].std(ddof=1):.2f}')
  print('difference, root mean square:  its mean  common  independent')
  for name, row in found.items():
    print(f'{name:30s}', *(f'{value:8.3f}' for value in row.values()))
  if options.output:
    about = {k: str(v) for k, v in vars(options).items() if v is not None}
    record = {'about': about, 'point': point, 'values': values, **found}
    files.write_json(options.output, record)


if __name__ == '__main__':
  main()
