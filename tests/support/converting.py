"""What the tests of the converter share: its command line, small weights."""

from __future__ import annotations

import contextlib
import io
import pathlib

from absl.testing import parameterized
import numpy as np
from safetensors.numpy import load_file

from adanat_jax.convert import __main__ as cli
from support import reference_arrays

DATA = pathlib.Path(__file__).parents[1] / 'data'


def weights_of(name: str) -> dict[str, np.ndarray]:
  return dict(reference_arrays.read(DATA / f'{name}.npz').weights)


def files_subset(arrays, prefix):
  return {
    key.removeprefix(prefix): value
    for key, value in arrays.items()
    if key.startswith(prefix)
  }


class CommandLineTest(parameterized.TestCase):
  """Runs the converter in a folder of the test's own."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.output = self.folder / 'out'

  def run_cli(self, *arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
      try:
        status = cli.main(arguments)
      except SystemExit as stop:
        status = stop.code
    return status, out.getvalue(), err.getvalue()

  def convert(self, kind: str, path: pathlib.Path) -> str:
    status, out, err = self.run_cli(
      f'--kind={kind}', f'--input={path}', f'--output={self.output}'
    )
    self.assertEqual((status, err), (0, ''))
    return out

  def reverse(self, kind: str) -> dict[str, np.ndarray]:
    path = self.folder / 'back.safetensors'
    status, _, err = self.run_cli(
      f'--kind={kind}',
      f'--input={self.output}',
      f'--output={path}',
      '--reverse',
    )
    self.assertEqual((status, err), (0, ''))
    return load_file(path)

  def refused(self, kind: str, path: pathlib.Path) -> str:
    status, out, err = self.run_cli(
      f'--kind={kind}', f'--input={path}', f'--output={self.output}'
    )
    self.assertEqual((status, out), (2, ''))
    self.assertEqual(err.count('\n'), 1)
    self.assertFalse(self.output.exists())
    return err

  def assert_same(self, ours, theirs):
    self.assertEqual(set(ours), set(theirs))
    for key, value in theirs.items():
      self.assertEqual(ours[key].dtype, value.dtype, key)
      np.testing.assert_array_equal(ours[key], value, key)
