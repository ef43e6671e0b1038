"""Our code against arrays that the original implementations gave.

  python tests/parity_test.py --reference_dir=DIR     as a script
  ADANAT_REFERENCE_DIR=DIR pytest tests/parity_test.py  under a test runner

The default directory is tests/data. Each file `<kind>_*.npz` is one case;
files of kinds that are not built are listed as skipped. Networks take their
sizes from the file, so files of other widths and depths run unchanged.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys

from absl import flags
from absl.testing import absltest
import jax
import numpy as np
from parity_cases import (
  decoding,
  discriminators,
  learning,
  networks,
  published,
)
from parity_cases.tolerances import SHARPER, TOLERANCES, Tolerance
import reference_arrays

_DEFAULT = str(pathlib.Path(__file__).parent / 'data')
_DIRECTORY = flags.DEFINE_string(
  'reference_dir',
  os.environ.get('ADANAT_REFERENCE_DIR', _DEFAULT),
  'Directory of the reference files.',
)

CASES = {
  **networks.CASES,
  **discriminators.CASES,
  **decoding.CASES,
  **learning.CASES,
  **published.CASES,
}


def kind_of(path: pathlib.Path) -> str | None:
  """Returns the longest known kind that the file's name begins with."""
  kinds = [kind for kind in CASES if f'{path.stem}_'.startswith(f'{kind}_')]
  return max(kinds, key=len, default=None)


def compare(
  reference: reference_arrays.Reference, kind: str, tolerance: Tolerance
) -> list[str]:
  """Runs a file through our code and returns what does not agree."""
  with jax.default_matmul_precision('highest'):
    ours = CASES[kind](reference)
  problems = []
  for name, theirs in reference.outputs.items():
    if any(re.fullmatch(p, name) for p in tolerance.not_compared):
      continue
    if name not in ours:
      problems.append(f'{name}: we have no such output')
      continue
    value = np.asarray(ours[name])
    if value.shape != theirs.shape:
      problems.append(f'{name}: ours is {value.shape}, not {theirs.shape}')
    elif np.issubdtype(theirs.dtype, np.floating):
      error = np.max(np.abs(value.astype(np.float64) - theirs))
      limit = tolerance.absolute + tolerance.relative * np.abs(theirs).max()
      # Not `error > limit`, which a NaN would pass.
      if not error <= limit:
        problems.append(f'{name}: differs by {error:.2e}, above {limit:.2e}')
    elif not np.array_equal(value, theirs):
      count = np.count_nonzero(value != theirs)
      problems.append(f'{name}: {count} of {theirs.size} differ')
  return problems


def measured_mistakes(meta) -> dict[str, float]:
  """Returns how far each mistake that a file lists moves its outputs."""
  moves = {}
  for name, entries in meta.get('measured', {}).items():
    if '_move' in name and isinstance(entries, dict):
      for mistake, move in entries.items():
        if mistake not in ('f32_vs_f64', 'nothing'):
          moves[mistake] = float(np.max(move))
  return moves


class ParityTest(absltest.TestCase):
  """One test per file is added below."""

  def test_recipe(self):
    np.testing.assert_array_equal(
      reference_arrays.uniform(np.arange(3), 0),
      [0.029149997048079967, 0.9666562881320715, 0.5902466711122543],
    )
    np.testing.assert_array_equal(
      reference_arrays.uniform(np.array([8388607]), 1000), [0.8099734007846564]
    )

  def test_every_kind_has_its_tolerance(self):
    self.assertEqual(set(CASES), set(TOLERANCES))


def _case(path: pathlib.Path):
  def test(self: absltest.TestCase):
    kind = kind_of(path)
    if kind is None:
      self.skipTest(f'{path.name}: not supported; known: {sorted(CASES)}')
    reference = reference_arrays.read(path)
    problems = compare(reference, kind, TOLERANCES[kind])
    self.assertEmpty(problems, '\n'.join(problems))
    tolerance = TOLERANCES[kind].absolute
    for mistake, move in measured_mistakes(reference.meta).items():
      if move <= tolerance:
        sharper = any(re.fullmatch(p, mistake) for p in SHARPER)
        self.assertTrue(sharper, f'{mistake} moves {move}: nothing catches it')

  return test


def add_cases(directory: str) -> None:
  """Adds a test for each file of a directory."""
  paths = sorted(pathlib.Path(directory).glob('*.npz'))
  for path in paths:
    with np.load(path) as file:
      if 'meta/json' not in file.files:
        continue
    setattr(ParityTest, f'test_{path.stem}', _case(path))

  def test_directory(self: absltest.TestCase):
    known = [path for path in paths if kind_of(path)]
    self.assertNotEmpty(
      known, f'no reference file of a known kind: {directory}'
    )

  ParityTest.test_directory = test_directory


if __name__ == '__main__':
  # The tests are made from the files, so the flag is needed before they run.
  flags.FLAGS(sys.argv, known_only=True)
  add_cases(_DIRECTORY.value)
  absltest.main()
else:
  add_cases(_DIRECTORY.default)
