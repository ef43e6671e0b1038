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
import numpy as np

from parity_cases import suite
from parity_cases.tolerances import SHARPER, TOLERANCES
from support import reference_arrays

_DIRECTORY = flags.DEFINE_string(
  'reference_dir',
  os.environ.get(
    'ADANAT_REFERENCE_DIR', str(pathlib.Path(__file__).parent / 'data')
  ),
  'Directory of the reference files.',
)


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

  def test_neighbour(self):
    data = pathlib.Path(__file__).parent / 'data'
    reference = reference_arrays.read(data / 'policy_shared.npz')
    other = reference.neighbour('policy', 'mapping')
    self.assertEqual(other.path, data / 'mapping_shared.npz')
    self.assertIn('embed.weight', other.weights)

  def test_every_kind_has_its_tolerance(self):
    self.assertEqual(set(suite.CASES), set(TOLERANCES))


def _case(path: pathlib.Path):
  def test(self: absltest.TestCase):
    kind = suite.kind_of(path)
    if kind is None:
      known = ', '.join(sorted(suite.CASES))
      self.skipTest(f'{path.name} is of no supported kind ({known})')
    reference = reference_arrays.read(path)
    problems = suite.disagreements(reference)
    self.assertEmpty(problems, '\n'.join(problems))
    for mistake, move in suite.measured_mistakes(reference.meta).items():
      if move <= TOLERANCES[kind].absolute:
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
    known = [path for path in paths if suite.kind_of(path)]
    self.assertNotEmpty(known, f'no file of a known kind in {directory}')

  ParityTest.test_directory = test_directory


if __name__ == '__main__':
  # The tests are made from the files, so the flag is needed before they run.
  flags.FLAGS(sys.argv, known_only=True)
  add_cases(_DIRECTORY.value)
  absltest.main()
else:
  add_cases(_DIRECTORY.default)
