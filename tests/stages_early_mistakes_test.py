"""Mistakes that would cost days are found before anything runs."""

import importlib
import pathlib

from absl.testing import absltest, parameterized
import numpy as np

from adanat_jax import main
from adanat_jax.errors import UserError
from adanat_jax.experiment import workdir
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import features, reference_statistics, scores
from adanat_jax.stages import policy
from support import configs, raw_files, small_weights


def check_all(config):
  """What `main` does before the first stage of mode `all` runs."""
  stages = [
    importlib.import_module(main.STAGES[name]) for name in main.BENCHMARK
  ]
  Experiment(config, 'unused').check(
    workdir.problems, *(stage.check_config for stage in stages)
  )


class EarlyMistakesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    directory = pathlib.Path(cls().create_tempdir('weights').full_path)
    cls.weights = small_weights.reward(configs.load('in256.py:mini'), directory)

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def load(self, **overrides):
    """A config that every stage would take, but for the overrides."""
    found = raw_files.image_folder(self.folder / 'raw')
    return configs.load(
      'in256.py:mini',
      {
        'data.path': str(found.path),
        'data.held_out': 4,
        'judges.reward.init_from': self.weights,
        'evaluate.network': 'pixels',
        **overrides,
      },
    )

  def test_a_sound_config_passes(self):
    check_all(self.load())

  @parameterized.parameters(
    'tokenizer.init_from',
    'judges.reward.init_from',
    'evaluate.clip.text.init_from',
  )
  def test_weights_that_are_not_there(self, field):
    nowhere = str(self.folder / 'nowhere')
    with self.assertRaisesRegex(
      UserError, rf'config\.{field}=.*nowhere: no checkpoint is there'
    ):
      check_all(self.load(**{field: nowhere}))

  @parameterized.parameters(
    ({'data.held_out': 0}, r'policy\.discriminator\.held_out is 8, and there'),
    ({'nat.validation_examples': 0}, r'nat\.validation_examples is 0'),
    ({'data.image_size': 36}, r'data\.image_size is 36; give a multiple of 8'),
    ({'data.path': ''}, r'data\.path is empty'),
  )
  def test_fields(self, overrides, message):
    with self.assertRaisesRegex(UserError, message):
      check_all(self.load(**overrides))

  def test_what_nobody_uses_is_not_checked(self):
    fields = {'policy.discriminator.batch_size': 9}
    with self.assertRaisesRegex(UserError, r'discriminator\.batch_size is 9'):
      policy.check_config(
        Experiment(configs.load('digits.py:tiny', fields), 'unused')
      )
    fields |= {'policy.rewards': ('frechet',)}
    policy.check_config(
      Experiment(configs.load('digits.py:tiny', fields), 'unused')
    )

  def test_moments_of_other_images_are_not_taken(self):
    config = self.load()
    network = features.load(Experiment(config, self.folder))
    path = self.folder / 'moments.npz'
    reference_statistics.make(
      Experiment(config, self.folder), network, 'train', path
    )
    before = path.read_bytes()
    reference_statistics.make(
      Experiment(config, self.folder), network, 'train', path
    )
    self.assertEqual(path.read_bytes(), before)
    other = raw_files.image_folder(self.folder / 'other', per_class=5)
    config.data.path = str(other.path)
    with self.assertRaisesRegex(UserError, 'its path is .*raw.* instead of'):
      reference_statistics.make(
        Experiment(config, self.folder), network, 'train', path
      )
    with self.assertRaisesRegex(UserError, 'its split is .train. instead of'):
      reference_statistics.make(
        Experiment(config, self.folder), network, 'test', path
      )

  def test_samples_are_written_in_any_order_and_again(self):
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 3), np.uint8)
    kept = scores.SampleFile(self.folder, images.shape, np.arange(5))
    for first, count in ((3, 2), (0, 2), (1, 2)):
      kept.write(first, images[first : first + count])
    kept.finish()
    with np.load(self.folder / 'samples.npz') as written:
      np.testing.assert_array_equal(written['arr_0'], images)
      np.testing.assert_array_equal(written['arr_1'], np.arange(5))


if __name__ == '__main__':
  absltest.main()
