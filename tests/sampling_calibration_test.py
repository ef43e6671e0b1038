"""Bounds of adaptive schedules for a number of passes."""

from absl.testing import absltest, parameterized
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.sampling.calibration import calibrate
from support.evaluating import random_generator, tiny_config


class CalibrationTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.generator = random_generator(tiny_config())
    cls.labels = np.arange(16) % 2

  @parameterized.parameters(
    ('entropy_bound', 5.0),
    # A guided step is two passes.
    ('threshold(guidance_scale=1.0)', 10.0),
  )
  def test_the_mean_is_what_was_asked_for(self, name, passes):
    schedule = calibrate(
      self.generator, name, passes, self.labels, num_steps=8, tolerance=0.1
    )
    samples = self.generator.sample(self.labels, 8, 0, schedule)
    self.assertBetween(samples.passes.mean(), 0.9 * passes, 1.1 * passes)

  def test_mistakes(self):
    with self.assertRaisesRegex(UserError, 'maskgit takes 64 steps whatever'):
      calibrate(self.generator, 'maskgit', 5.0, self.labels)
    with self.assertRaisesRegex(UserError, 'passes=9.* from 1 to 8'):
      calibrate(self.generator, 'entropy_bound', 9.0, self.labels, num_steps=8)
    with self.assertRaisesRegex(UserError, "passes='4' is not to be had"):
      calibrate(self.generator, 'entropy_bound', '4', self.labels, num_steps=8)


if __name__ == '__main__':
  absltest.main()
