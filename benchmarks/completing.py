"""How well schedules complete held-out digits of which a part is masked.

  adanat --config=digits --workdir=runs/digits --config.mode=judges
  python benchmarks/completing.py --workdir=runs/digits --output=completed.json

Each of the 364 held-out digits is masked: a half, or a square of 12 x 12 pixels
in a corner, another one with each of the four seeds. The generator of the
package draws what is masked and is told "even" or "odd"; kept pixels are pasted
back. The measuring network of the workdir has not seen these digits.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import pathlib
from typing import Any

import numpy as np
import output

import adanat_jax
from adanat_jax.data import digits
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring.evaluation import over_seeds
from adanat_jax.measuring.study import Measures
from adanat_jax.report import pictures

# MaskGIT's schedule runs a pass a step, a guided policy two.
METHODS = (
  *(('maskgit', 2), ('maskgit', 4), ('learned', 2)),
  *(('maskgit', 8), ('learned', 4), ('maskgit', 16), ('learned', 8)),
)
LABELS = {'maskgit': 'MaskGIT', 'learned': 'learned'}
NUM_SEEDS = 4
SHOWN = 16
KEYS = ('passes', 'frechet', 'accuracy', 'precision', 'recall')
HEADER = ('what completes', 'passes', 'FD', 'same digit', *KEYS[3:])


def masks() -> dict[str, np.ndarray]:
  """Which pixels are drawn: bool[4, 16, 16] of each kind of mask."""
  rows, columns = np.mgrid[:16, :16]
  halves = rows < 8, rows >= 8, columns < 8, columns >= 8
  up, left = (rows < 12, rows >= 4), (columns < 12, columns >= 4)
  squares = [y & x for y in up for x in left]
  return {'halves': np.stack(halves), 'squares': np.stack(squares)}


def completed(
  generator: adanat_jax.Generator,
  data: digits.DigitsData,
  mask: np.ndarray,
  seed: int,
) -> Iterator[tuple[str, np.ndarray, float]]:
  """Yields what completes, the images, and the passes of each."""
  images, labels = data.test_images, data.test_labels % 2
  yield 'held-out digits', images, 0
  yield 'masked', np.where(mask[..., None], np.float32(0.5), images), 0
  for policy, num_steps in METHODS:
    samples = generator.inpaint(
      images, mask, labels, num_steps=num_steps, seed=seed, policy=policy
    )
    label = f'{LABELS[policy]}, {num_steps} steps'
    yield label, samples.images, float(samples.passes.mean())


def main() -> None:
  """Completes, measures, prints the tables, draws the pictures."""
  parser = output.parser(__doc__)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  given = parser.parse_args()
  generator = adanat_jax.load('digits')
  experiment = Experiment.of_workdir(given.workdir)
  experiment.config.data.condition = 'digit'  # Which accuracy is of.
  measures, data = Measures(experiment), digits.load()
  results = {}
  for kind, four in masks().items():
    rows = collections.defaultdict[str, list[dict[str, float]]](list)
    shown = {}
    for seed in range(NUM_SEEDS):
      mask = four[(np.arange(len(data.test_labels)) + seed) % 4]
      for label, images, passes in completed(generator, data, mask, seed):
        figures = measures(images, data.test_labels)
        rows[label].append({**figures, 'passes': passes})
        shown.setdefault(label, images[:SHOWN])
    found: dict[str, dict[str, Any]] = {
      label: {key: over_seeds([row[key] for row in seeds]) for key in seeds[0]}
      for label, seeds in rows.items()
    }
    cells = [
      [label, *('{mean:.3g} ± {std:.2g}'.format(**row[key]) for key in KEYS)]
      for label, row in found.items()
    ]
    print(f'{kind}:\n\n{output.table(HEADER, cells)}\n', flush=True)
    if given.output:
      path = given.output.with_name(f'{kind}.png')
      pictures.save_pairs(path, [*shown.items()])
    results[kind] = found
  output.finish(results, '', given.output)


if __name__ == '__main__':
  main()
