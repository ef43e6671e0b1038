"""What a Fréchet distance of many features costs: seconds, processor, memory.

  OMP_NUM_THREADS=2 python benchmarks/distance.py

Features come in batches, as they do while images are sampled, and are counted
in float64; then the distance to other moments is taken.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from adanat_jax.metrics.frechet import MomentAccumulator, frechet_distance


def features(random: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
  """Positive, skewed and correlated, as pooled features are."""
  values = random.standard_normal(shape, np.float32)
  values[:, 1:] += 0.5 * values[:, :-1]
  return np.maximum(values, 0) * 0.4


def main() -> None:
  """Counts features, takes a distance, and prints what it has cost."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--samples', type=int, default=50_000)
  parser.add_argument('--width', type=int, default=2048)
  parser.add_argument('--batch_size', type=int, default=250)
  options = parser.parse_args()
  random = np.random.default_rng(0)
  reference = MomentAccumulator()
  reference.update(features(random, (2 * options.width, options.width)))

  spent = 0.0
  processor = 0.0
  moments = MomentAccumulator()
  for start in range(0, options.samples, options.batch_size):
    count = min(options.batch_size, options.samples - start)
    batch = features(random, (count, options.width))
    begun, used = time.perf_counter(), time.process_time()
    moments.update(batch)
    spent += time.perf_counter() - begun
    processor += time.process_time() - used
  print(f'moments: {spent:.1f} s, {processor:.1f} s of processor')
  begun, used = time.perf_counter(), time.process_time()
  distance = frechet_distance(moments.result(), reference.result())
  spent += time.perf_counter() - begun
  processor += time.process_time() - used
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  print(
    f'{options.samples:,} samples x {options.width} features: {spent:.1f} s,'
    f' {processor:.1f} s of processor, at most {peak:.2f} GiB;'
    f' distance {distance:.6f}'
  )


if __name__ == '__main__':
  main()
