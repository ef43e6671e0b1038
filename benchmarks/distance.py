"""What a Fréchet distance of many features costs: seconds, processor, memory.

  OMP_NUM_THREADS=2 python benchmarks/distance.py

Features come in batches, as they do while images are sampled, and are counted
in float64; then the distance to other moments is taken.
"""

from __future__ import annotations

import resource
import time

import numpy as np
import output

from adanat_jax.metrics.frechet import MomentAccumulator, frechet_distance


def features(random: np.random.Generator, count: int, width: int) -> np.ndarray:
  """Positive, skewed and correlated, as pooled features are."""
  values = random.standard_normal((count, width), np.float32)
  values[:, 1:] += 0.5 * values[:, :-1]
  return np.maximum(values, 0) * 0.4


def main() -> None:
  """Counts features, takes a distance, and prints what it has cost."""
  parser = output.parser(__doc__)
  for name, value in (
    ('samples', 50_000),
    ('width', 2048),
    ('batch_size', 250),
  ):
    parser.add_argument(f'--{name}', type=int, default=value)
  given = parser.parse_args()
  random = np.random.default_rng(0)
  reference, moments = MomentAccumulator(), MomentAccumulator()
  reference.update(features(random, 2 * given.width, given.width))
  spent = np.zeros(2)
  now = lambda: np.array([time.perf_counter(), time.process_time()])
  for start in range(0, given.samples, given.batch_size):
    count = min(given.batch_size, given.samples - start)
    batch = features(random, count, given.width)
    begun = now()
    moments.update(batch)
    spent += now() - begun
  begun, of_moments = now(), spent.copy()
  distance = frechet_distance(moments.result(), reference.result())
  spent += now() - begun
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  cost = lambda x: f'{x[0]:.1f} s, {x[1]:.1f} s of processor'
  text = (
    f'{given.samples:,} samples x {given.width} features: {cost(spent)} (the'
    f' moments: {cost(of_moments)}), at most {peak:.2f} GiB; distance'
    f' {distance:.6f}'
  )
  figures = {'seconds': spent.tolist(), 'GiB': peak, 'distance': distance}
  output.finish(figures, text, given.output)


if __name__ == '__main__':
  main()
