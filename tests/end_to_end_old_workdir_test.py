"""A workdir that an earlier version has made is read, and goes on.

`tests/data/workdir-0.1.0.tar.xz` was made by `configs/digits.py:tiny` with even
smaller networks, before the package had its rooms.
"""

import json
import pathlib
import shutil
import tarfile

from absl.testing import absltest
import numpy as np

import adanat_jax
from adanat_jax.experiment import config as config_lib, workdir as workdir_lib
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.stages import policy

_ROOT = pathlib.Path(__file__).parents[1]
_ARCHIVE = _ROOT / 'tests/data/workdir-0.1.0.tar.xz'
_POLICY = 'policy/adversarial-adaptive-T2-0'
# What that version sampled of the classes 0, 1, 1 with seed 3.
_TOKENS = (
  (24, 21, 7, 2, 31, 2, 17, 23, 2, 14, 1, 26, 9, 24, 14, 9),
  (7, 17, 21, 23, 4, 31, 3, 0, 15, 21, 25, 19, 2, 19, 28, 8),
  (11, 11, 30, 25, 3, 20, 29, 25, 2, 27, 27, 17, 5, 18, 5, 28),
)
_BRIGHTNESS = (0.09385936, 0.08779374, 0.09029766)


class OldWorkdirTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    with tarfile.open(_ARCHIVE) as archive:
      archive.extractall(self.workdir, filter='data')

  def test_is_loaded_and_samples_as_before(self):
    generator = adanat_jax.load(self.workdir, compile_cache=False)
    samples = generator.generate([0, 1, 1], num_steps=2, seed=3)
    # Another processor may round one draw in a hundred the other way.
    self.assertGreaterEqual(np.mean(samples.tokens == np.array(_TOKENS)), 0.9)
    np.testing.assert_allclose(
      samples.images.mean((1, 2, 3)), _BRIGHTNESS, atol=2e-3
    )

  def test_a_policy_goes_on_in_the_middle_of_its_training(self):
    record = json.loads((self.workdir / 'config.json').read_text())
    overrides = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in record['overrides'].items()
    }
    config = config_lib.load(f'{_ROOT}/configs/digits.py:tiny', overrides)
    # It is this config's directory still.
    workdir_lib.claim(self.workdir, config, overrides)
    metrics = self.workdir / _POLICY / 'metrics.jsonl'
    before = [json.loads(line) for line in metrics.read_text().splitlines()]
    shutil.rmtree(self.workdir / _POLICY / 'checkpoints' / '2')
    (self.workdir / _POLICY / 'complete.json').unlink()
    policy.run(Experiment(config, self.workdir))
    after = [json.loads(line) for line in metrics.read_text().splitlines()]
    self.assertEqual(after[0], before[0])
    self.assertLen(after, 2)
    for name, value in before[1].items():
      if not name.startswith('time/'):
        np.testing.assert_allclose(
          after[1][name], value, rtol=1e-3, atol=1e-4, err_msg=name
        )


if __name__ == '__main__':
  absltest.main()
