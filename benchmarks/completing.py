"""How well schedules complete held-out digits of which a part is masked.

  adanat --config=digits --workdir=runs/digits --config.mode=judges
  python benchmarks/completing.py --workdir=runs/digits --output=completed.json

Each of the 364 held-out digits is masked four times: its halves, and squares of
12 x 12 pixels in its corners. The generator of the package draws what is masked
and is told "even" or "odd"; kept pixels are pasted back. The measuring network
of the workdir has seen neither these digits nor any result.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
from typing import Any, TypeAlias

import numpy as np
import output

import adanat_jax
from adanat_jax.data import digits
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring.evaluation import over_seeds
from adanat_jax.measuring.study import Measures
from adanat_jax.report import pictures
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.requests import SamplingOptions

METHODS = (
  *(('maskgit', 2), ('maskgit', 4), ('learned', 2)),
  *(('maskgit', 8), ('learned', 4), ('maskgit', 16), ('learned', 8)),
)
LABELS = {'maskgit': 'MaskGIT', 'learned': 'learned'}
SHOWN = 16
KEYS = ('frechet', 'accuracy', 'precision', 'recall')
HEADER = ('what completes', 'passes', 'FD', 'same digit', *KEYS[2:])
CELL = '{mean:.3g} ± {std:.2g}'

Measure: TypeAlias = Callable[[np.ndarray], dict[str, float]]


def held_out() -> tuple[np.ndarray, np.ndarray]:
  """Every held-out digit four times, and which it is."""
  data = digits.load()
  return data.test_images.repeat(4, 0), data.test_labels.repeat(4, 0)


def masks() -> dict[str, np.ndarray]:
  """Which pixels are drawn: bool[4, 16, 16] of each kind of mask."""
  rows, columns = np.mgrid[:16, :16]
  halves = rows < 8, rows >= 8, columns < 8, columns >= 8
  up, left = (rows < 12, rows >= 4), (columns < 12, columns >= 4)
  squares = [y & x for y in up for x in left]
  return {'halves': np.stack(halves), 'squares': np.stack(squares)}


def complete(
  generator: Generator, measure: Measure, mask: np.ndarray, num_seeds: int
) -> dict[str, Any]:
  """What is measured of each method, and its first pictures."""
  images, labels = held_out()
  found = {}
  for policy, num_steps in METHODS:
    rows = []
    for seed in range(num_seeds):
      options: SamplingOptions = dict(
        num_steps=num_steps, seed=seed, policy=policy
      )
      samples = generator.inpaint(images, mask, labels % 2, **options)
      rows.append(measure(samples.images))
    passes = float(samples.passes.mean())
    found[f'{LABELS[policy]}, {num_steps} steps'] = {
      'passes': passes,
      'shown': samples[:SHOWN],
      **{name: over_seeds([row[name] for row in rows]) for name in rows[0]},
    }
  return found


def main() -> None:
  """Completes, measures, prints the tables, draws the pictures."""
  parser = output.parser(__doc__)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', type=int, default=4)
  given = parser.parse_args()
  generator = adanat_jax.load('digits')
  experiment = Experiment.of_workdir(given.workdir)
  experiment.config.data.condition = 'digit'
  measures = Measures(experiment)
  images, labels = held_out()
  measure = lambda found: measures(found, labels)
  results = {}
  for kind, four in masks().items():
    mask = np.tile(four, (len(images) // 4, 1, 1))
    grey = np.where(mask[..., None], np.float32(0.5), images)
    tokens = generator.decode(generator.encode(images))
    found = {
      name: {'passes': 0.0, **{k: over_seeds([v]) for k, v in row.items()}}
      for name, row in {
        'the held-out digits': measure(images),
        'the same through the tokenizer': measure(tokens),
        'masked, and left grey': measure(grey),
      }.items()
    }
    found |= complete(generator, measure, mask, given.seeds)
    shown = {
      name: row.pop('shown') for name, row in found.items() if 'shown' in row
    }
    results[kind] = found
    rows = [
      [name, f'{row["passes"]:.1f}', *(CELL.format(**row[key]) for key in KEYS)]
      for name, row in found.items()
    ]
    print(f'{kind}:\n\n{output.table(HEADER, rows)}\n', flush=True)
    if given.output:
      versions = {'before': images[:SHOWN], 'masked': grey[:SHOWN], **shown}
      pictures.save_pairs(
        given.output.with_name(f'{kind}.png'), [*versions.items()]
      )
  output.finish(results, '', given.output)


if __name__ == '__main__':
  main()
