"""Whatever stands in a file of moments: right moments, or one clear line."""

from __future__ import annotations

import io
import pathlib

from absl.testing import absltest
import numpy as np

from adanat_jax.convert import files, kinds
from adanat_jax.measuring import reference_statistics
from adanat_jax.metrics import frechet
from support import fuzzing

WIDTH = 5


def npz(arrays, compressed: bool = False) -> bytes:
  buffer = io.BytesIO()
  (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
  return buffer.getvalue()


def moments(random: np.random.Generator) -> dict[str, np.ndarray]:
  """Moments of some features, as one of several programs writes them."""
  features = random.normal(size=(random.integers(2, 20), WIDTH))
  gaussian = frechet.gaussian_of(features * 10.0 ** random.integers(-8, 8))
  kind = ('<f8', '<f4', '>f8', '<f2')[random.integers(4)]
  with np.errstate(over='ignore'):
    arrays = [gaussian.mean.astype(kind), gaussian.covariance.astype(kind)]
  names = (('mu', 'sigma'), ('mean', 'covariance'))[random.integers(2)]
  return dict(zip(names, arrays, strict=True))


def alter(random: np.random.Generator, arrays: dict[str, np.ndarray]) -> None:
  """Changes one of the arrays."""
  name = list(arrays)[random.integers(len(arrays))]
  x = arrays[name].copy()
  flat = x.reshape(-1)
  place = int(random.integers(flat.size))
  change = random.integers(9)
  if change == 0 or x.dtype.kind != 'f':
    del arrays[name]
    return
  if change == 1:
    flat[place] = (np.nan, np.inf, -np.inf, -1.0, 6e4)[random.integers(5)]
  elif change == 2:
    bits = flat.view(f'u{flat.itemsize}')
    bits[place] ^= np.array(1 << int(random.integers(8 * flat.itemsize)),
                            bits.dtype)  # fmt: skip
  elif change == 3:
    x = -x
  elif change == 4:
    x = np.triu(x) if x.ndim == 2 else x[:-1]
  elif change == 5:
    with np.errstate(invalid='ignore'):
      x = x.astype(('c8', 'U9', 'b1', 'i8', 'S3')[random.integers(5)])
  elif change == 6:
    x = x.reshape(x.shape[::-1] + (1,) * int(random.integers(2)))
  elif change == 7:
    x = random.normal(size=x.shape)
  arrays[name] = x


class FuzzStatisticsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path, 'moments.npz')
    self.other = frechet.gaussian_of(np.random.default_rng(0).normal(
      size=(50, WIDTH)))  # fmt: skip

  def read(self, content: bytes) -> None:
    """Reads moments; what is read has a distance that means something."""
    self.path.write_bytes(content)
    gaussian = reference_statistics.read(self.path)
    if gaussian.mean.shape == self.other.mean.shape:
      distance = frechet.frechet_distance(gaussian, self.other)
      self.assertTrue(0.0 < distance < np.inf, distance)
    self.assertLess(frechet.frechet_distance(gaussian, gaussian), 1e200)
    # The converter is of the same opinion.
    value = files.read(self.path)
    if 'mu' in value:
      kinds.convert('fid_stats', value)

  def check(self, make) -> None:
    tally = fuzzing.fuzz(make, self.read)
    print(f'{self.id()}: {tally.accepted} read, {tally.refused} refused')
    if tally.failures:
      self.fail('\n'.join(tally.failures[:3]))

  def test_mutated_bytes(self):
    def mutated(random: np.random.Generator) -> bytes:
      content = npz(moments(random), bool(random.integers(2)))
      return fuzzing.mutated(random, content)

    self.check(mutated)

  def test_altered_numbers(self):
    def altered(random: np.random.Generator) -> bytes:
      arrays = moments(random)
      for _ in range(random.integers(3)):
        if arrays:
          alter(random, arrays)
      return npz(arrays)

    self.check(altered)


if __name__ == '__main__':
  absltest.main()
