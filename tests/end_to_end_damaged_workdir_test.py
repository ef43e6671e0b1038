"""A finished workdir with one file damaged: one line, or what there was."""

from __future__ import annotations

from collections.abc import Callable
import pathlib
import shutil
import tempfile
import unittest
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np

import adanat_jax
from adanat_jax.errors import UserError
from adanat_jax.report import results as reading
from adanat_jax.runtime import checkpoint_format, files, journal
from adanat_jax.stages import evaluate_study, nat, report
from support import workdirs


def cut(path: pathlib.Path) -> None:
  """Cuts a file in half."""
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_digit(path: pathlib.Path) -> None:
  """Changes a digit of a text, a bit of something else."""
  data = bytearray(path.read_bytes())
  digits = [i for i, byte in enumerate(data) if chr(byte) in '123456789']
  is_text = path.suffix in ('.json', '.jsonl') or path.name == 'metadata'
  place = digits[len(digits) // 2] if is_text else len(data) // 2
  data[place] ^= 1
  path.write_bytes(bytes(data))


def replace_by_directory(path: pathlib.Path) -> None:
  """Puts a directory in a file's place."""
  path.unlink()
  path.mkdir()


DAMAGES: dict[str, Callable[[pathlib.Path], None]] = {
  'cut': cut,
  'changed': change_digit,
  'gone': pathlib.Path.unlink,
  'a directory': replace_by_directory,
  'an empty object': lambda path: path.write_text('{}') and None,
}


def setUpModule():
  # Unreadable files are tried again, but not here.
  unittest.enterModuleContext(
    mock.patch.object(checkpoint_format, '_PAUSES', ())
  )


class DamagedWorkdirTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    directory = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.whole = workdirs.unpack(pathlib.Path(directory))
    workdirs.seal(cls.whole)
    cls.params = cls.loaded(cls.whole)
    cls.results = files.read_json(cls.whole / 'evaluate/results.json')

  @staticmethod
  def loaded(workdir):
    """The parameters of a workdir's generator."""
    generator = adanat_jax.load(workdir, compile_cache=False)
    agents = {steps: agent.params for steps, agent in generator.agents.items()}
    return jax.device_get(
      [generator.nat_params, generator.tokenizer_params, agents]
    )

  def damaged(self, name: str, damage: str) -> pathlib.Path:
    """A copy of the workdir in which one file is damaged."""
    workdir = pathlib.Path(self.create_tempdir().full_path, 'w')
    shutil.copytree(self.whole, workdir)
    DAMAGES[damage](workdir / name)
    return workdir

  def assert_one_line(self, error: UserError, workdir: pathlib.Path) -> None:
    for line in error.problems:
      self.assertIn(str(workdir), line)
      self.assertTrue(line.isprintable(), line)

  @parameterized.product(
    name=(
      'config.json',
      'nat/complete.json',
      f'{workdirs.POLICY}/complete.json',
      'nat/checkpoints/4/meta/metadata',
      'nat/checkpoints/4/state/_METADATA',
    ),
    damage=tuple(DAMAGES),
  )
  def test_load(self, name, damage):
    workdir = self.damaged(name, damage)
    try:
      found = self.loaded(workdir)
    except UserError as error:
      self.assert_one_line(error, workdir)
      return
    # A training without its marker has not finished.
    if (name, damage) == (f'{workdirs.POLICY}/complete.json', 'gone'):
      found[2] = self.params[2]
    jax.tree.map(np.testing.assert_array_equal, found, self.params)

  @parameterized.product(
    name=('results.json', 'complete.json'), damage=tuple(DAMAGES)
  )
  def test_report(self, name, damage):
    workdir = self.damaged(f'evaluate/{name}', damage)
    with self.assertRaises(UserError) as caught:
      report.run(workdirs.experiment(workdir))
    self.assert_one_line(caught.exception, workdir)

  @parameterized.parameters('cut', 'changed', 'a directory', 'an empty object')
  def test_a_damaged_marker_is_no_marker(self, damage):
    workdir = self.damaged('nat/complete.json', damage)
    with self.assertRaisesRegex(UserError, 'run this stage again') as caught:
      nat.run(workdirs.experiment(workdir))
    self.assert_one_line(caught.exception, workdir)

  def test_lost_results_are_made_again_from_the_ledger(self):
    workdir = self.damaged('evaluate/results.json', 'changed')
    directory = workdir / 'evaluate'
    ledger = (directory / 'ledger.jsonl').read_bytes()
    evaluate_study.run(workdirs.experiment(workdir))
    results = journal.read_results(directory, reading.SHAPE)
    before = self.results['methods']
    for new, old in zip(results['methods'], before, strict=True):
      # Later versions measure more.
      self.assertEqual({name: new[name] for name in old}, old)
    self.assertEqual(results['floors'], self.results['floors'])
    self.assertEqual((directory / 'ledger.jsonl').read_bytes(), ledger)
    # Now there is nothing to do.
    with mock.patch.object(evaluate_study, 'Evaluation', self.fail):
      evaluate_study.run(workdirs.experiment(workdir))


if __name__ == '__main__':
  absltest.main()
