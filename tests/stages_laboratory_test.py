"""Mode laboratory: every schedule of the list, printed, written, once."""

import contextlib
import io
import pathlib
from unittest import mock

from absl.testing import absltest
from PIL import Image

from adanat_jax.decoding import schedules
from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.laboratory import exact
from adanat_jax.report import laboratory as report
from adanat_jax.runtime import files
from adanat_jax.runtime.journal import is_complete
from adanat_jax.stages import laboratory
from support import configs


class LaboratoryTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.config = configs.load('laboratory.py')

  def run_stage(self):
    with contextlib.redirect_stdout(io.StringIO()) as said:
      laboratory.run(Experiment(self.config, self.workdir))
    return said.getvalue()

  def test_the_list_is_complete(self):
    self.assertContainsSubset(
      schedules.SCHEDULES, self.config.laboratory.schedules
    )
    laboratory.check_config(Experiment(self.config, self.workdir))

  def test_one_of_each_kind(self):
    # A table of one's own, which is decoded as AdaNAT does.
    table = self.workdir / 'own.json'
    rows = {'mask_ratio': [0.84, 0.5, 0], 'masking_temperature': [0, 0, 0]}
    rows |= {'sampling_temperature': [1, 1, 1], 'guidance_scale': [0, 0, 0]}
    files.write_json(table, rows)
    self.config.laboratory.update(
      schedules=(
        *('maskgit', 'random', 'entropy_bound(bound=0.9)', 'remdm_conf'),
        *('autonat_large', str(table)),
      ),
      num_steps=(3, 1, 8),
      draws=500,
    )
    # Drawing is tested with the law itself.
    draw = mock.Mock(side_effect=lambda *_: exact.Outcome(self.law, 1.5, 500))
    self.law = exact.PottsLaw().probabilities
    with mock.patch.object(exact, 'draw', draw):
      said = self.run_stage()
    directory = self.workdir / 'laboratory'
    results = files.read_json(directory / 'results.json')
    # autonat_large is published for eight steps.
    self.assertLen(results['rows'], 4 * 3 + 2)
    kinds = {
      row['name'].partition('(')[0]: row['kind'] for row in results['rows']
    }
    self.assertEqual(
      [*kinds.values()],
      ['drawn', 'chosen', 'adaptive', 'chance', 'drawn', 'drawn'],
    )
    self.assertEqual(set(kinds.values()), set(report.KINDS))
    lines = said.splitlines()
    self.assertStartsWith(lines[0], '| schedule | T = 1 | T = 3 | T = 8 |')
    self.assertIn('| `maskgit` | 0.724 | 0.126 | 0.156 | 0.80 to 0.36 |', said)
    self.assertIn(
      '| `entropy_bound(bound=0.9)` | 0.724 | 0.109 | 0.103 (3.20) | 1.00 |',
      said,
    )
    # In brackets the passes where they are not T.
    self.assertIn('| `remdm_conf` | 0.000* (1.50) | 0.000* (1.50) |', said)
    self.assertIn('| `autonat_large` |  |  | 0.108 |', said)
    self.assertRegex(said, r'own.json` \|  \| 0.\d+ \|  \| 0.00 \|')
    page = (directory / 'laboratory.md').read_text()
    self.assertIn(lines[3], page)
    self.assertIn('the law itself would come to 0.181', page)
    with Image.open(directory / 'laboratory.png') as picture:
      self.assertGreater(picture.width, 1000)
    self.assertTrue(is_complete(directory))
    # A second run prints again and computes nothing.
    with mock.patch.object(exact, 'outcome', side_effect=AssertionError):
      self.assertEqual(self.run_stage(), said)

  def test_schedules_that_cannot_be_made_are_named(self):
    self.config.laboratory.update(
      schedules=('autonat_large', 'halton(rows=4)'), num_steps=(2, 3)
    )
    with self.assertRaises(UserError) as caught:
      self.run_stage()
    first, second = caught.exception.problems
    self.assertIn('config.laboratory.schedules: AutoNAT', first)
    self.assertIn('halton has rows=4', second)
    self.config.laboratory.schedules = ('best',)
    with self.assertRaisesRegex(UserError, "schedules=.'best',. is not allow"):
      self.run_stage()


if __name__ == '__main__':
  absltest.main()
