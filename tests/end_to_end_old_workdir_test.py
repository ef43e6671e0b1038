"""A workdir that an earlier version has made is read, and goes on.

`tests/data/workdir-0.1.0.tar.xz` was made by `configs/digits.py:tiny` with even
smaller networks, before the package had its rooms.
"""

import json
import pathlib
import shutil
from unittest import mock

from absl.testing import absltest
import numpy as np

import adanat_jax
from adanat_jax.errors import UserError
from adanat_jax.experiment import policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.stages import policy
from support import workdirs

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
    self.workdir = workdirs.unpack(
      pathlib.Path(self.create_tempdir().full_path)
    )

  def test_is_loaded_and_samples_as_before(self):
    generator = adanat_jax.load(self.workdir, compile_cache=False)
    samples = generator.generate([0, 1, 1], num_steps=2, seed=3)
    # Another processor may round one draw in a hundred the other way.
    self.assertGreaterEqual(np.mean(samples.tokens == np.array(_TOKENS)), 0.9)
    np.testing.assert_allclose(
      samples.images.mean((1, 2, 3)), _BRIGHTNESS, atol=2e-3
    )

  def test_checkpoints_say_the_shapes_of_their_config(self):
    asked = mock.patch.object(
      Experiment, 'param_shapes', autospec=True, side_effect=AssertionError
    )
    with asked, mock.patch.object(policies, 'initial_params', None):
      adanat_jax.load(self.workdir, compile_cache=False)
    path = self.workdir / 'config.json'
    record = json.loads(path.read_text())
    record['config']['nat']['width'] *= 2
    path.write_text(json.dumps(record))
    with self.assertRaisesRegex(UserError, r'nat/.*, ema: .* is expected'):
      adanat_jax.load(self.workdir, compile_cache=False)

  def test_a_policy_goes_on_in_the_middle_of_its_training(self):
    experiment = workdirs.experiment(self.workdir)
    metrics = self.workdir / workdirs.POLICY / 'metrics.jsonl'
    before = [json.loads(line) for line in metrics.read_text().splitlines()]
    shutil.rmtree(self.workdir / workdirs.POLICY / 'checkpoints' / '2')
    (self.workdir / workdirs.POLICY / 'complete.json').unlink()
    policy.run(experiment)
    after = [json.loads(line) for line in metrics.read_text().splitlines()]
    # Rows have a checksum now.
    self.assertEqual({**after[0], **before[0]}, after[0])
    self.assertLen(after, 2)
    for name, value in before[1].items():
      if not name.startswith('time/'):
        np.testing.assert_allclose(
          after[1][name], value, rtol=1e-3, atol=1e-4, err_msg=name
        )


if __name__ == '__main__':
  absltest.main()
