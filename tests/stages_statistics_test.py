"""Moments of real images: as of a direct computation, resumed, readable."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pathlib
import tempfile
from unittest import mock

from absl import logging
from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import features, real_images, reference_statistics
from adanat_jax.runtime import files
from adanat_jax.stages import statistics
from support import configs, raw_files

_CASES = pathlib.Path(__file__).with_name('data') / 'cases' / 'statistics'


def setUpModule():
  # Warnings name the files that cannot be read.
  logging.set_verbosity(logging.ERROR)


class StatisticsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.root = pathlib.Path(folder.name)
    cls.found = raw_files.image_folder(cls.root, per_class=6, corrupt=True)

  def setUp(self):
    super().setUp()
    self.said = io.StringIO()
    self.enter_context(contextlib.redirect_stdout(self.said))
    self.workdir = pathlib.Path(self.create_tempdir().full_path)

  def config(self, **data):
    config = configs.load('in256.py:mini')
    config.data.update(path=str(self.root), max_corrupt_share=0.5, **data)
    config.evaluate.update(batch_size=4, save_every=4)
    return config

  def boxes(self) -> np.ndarray:
    """Features of the images that can be read, computed with Pillow."""
    rows = []
    for key in sorted(self.found.labels):
      image = Image.open(self.root / key).convert('RGB')
      # They are larger than what is cut out, and not much.
      while min(image.size) >= 64:
        image = image.resize([n // 2 for n in image.size], Image.BOX)
      scale = 32 / min(image.size)
      image = image.resize([round(n * scale) for n in image.size], 3)
      left, top = ((n - 32) // 2 for n in image.size)
      pixels = np.asarray(image)[top : top + 32, left : left + 32] / 255
      rows.append(pixels.reshape(8, 4, 8, 4, 3).mean((1, 3)).reshape(-1))
    return np.stack(rows)

  def test_moments_are_those_of_a_direct_computation(self):
    statistics.run(Experiment(self.config(), self.workdir))
    path = self.workdir / 'statistics/train-pixels.npz'
    expected = self.boxes()
    with np.load(path) as file:
      self.assertEqual(sorted(file.files), ['mu', 'sigma'])
      self.assertEqual(file['sigma'].dtype, np.float64)
      np.testing.assert_allclose(file['mu'], expected.mean(0), rtol=1e-6)
      np.testing.assert_allclose(
        file['sigma'], np.cov(expected.T), rtol=1e-5, atol=1e-8
      )
    manifest = files.read_json(path.with_suffix('.json'))
    self.assertEqual(
      manifest['sha256'], hashlib.sha256(path.read_bytes()).hexdigest()
    )
    about = manifest['made of']
    self.assertEqual(about['counted'], len(self.found.labels))
    self.assertEqual(about['unreadable'], len(self.found.corrupt))
    self.assertEqual(about['images']['source'], 'image_folder')
    self.assertEqual((about['network'], about['split']), ('pixels', 'train'))

  def test_a_killed_run_goes_on_to_the_same_bytes(self):
    config = self.config()
    statistics.run(Experiment(config, self.workdir / 'whole'))
    update = reference_statistics.MomentAccumulator.update
    counted = []

    def killed(self, *arguments):
      if len(counted) == 3:
        raise KeyboardInterrupt
      counted.append(None)
      update(self, *arguments)

    with (
      mock.patch.object(
        reference_statistics.MomentAccumulator, 'update', killed
      ),
      self.assertRaises(KeyboardInterrupt),
    ):
      statistics.run(Experiment(config, self.workdir / 'cut'))
    name = 'statistics/train-pixels'
    self.assertFalse((self.workdir / f'cut/{name}.npz').exists())
    read = []
    decode = real_images.RealImages._decode
    with mock.patch.object(
      real_images.RealImages,
      '_decode',
      lambda self, index: read.append(index) or decode(self, index),
    ):
      statistics.run(Experiment(config, self.workdir / 'cut'))
    self.assertEqual(min(read), 12)  # Three batches of four were kept.
    for suffix in ('npz', 'json'):
      self.assertEqual(
        (self.workdir / f'cut/{name}.{suffix}').read_bytes(),
        (self.workdir / f'whole/{name}.{suffix}').read_bytes(),
      )
    self.assertLen(list((self.workdir / 'cut/statistics').iterdir()), 2)

  def test_to_a_file_of_choice_and_back_as_a_reference(self):
    config = self.config()
    path = self.workdir / 'mine.npz'
    config.statistics.output = str(path)
    statistics.run(Experiment(config, self.workdir))
    config.evaluate.statistics = str(path)
    network = features.load(Experiment(config, self.workdir))
    reference = reference_statistics.reference(
      Experiment(config, self.workdir), network
    )
    self.assertEqual(reference.description['file'], 'mine.npz')
    self.assertEqual(
      reference.description['made of']['counted'], len(self.found.labels)
    )
    np.testing.assert_allclose(
      reference.gaussian.mean, self.boxes().mean(0), rtol=1e-6
    )
    # A manifest of another file describes nothing.
    np.savez(path, mu=np.zeros(192), sigma=np.eye(192))
    with self.assertRaisesRegex(UserError, 'not the file that mine.json'):
      reference_statistics.reference(Experiment(config, self.workdir), network)

  def test_converted_moments_are_read_too(self):
    path = self.workdir / 'theirs.npz'
    np.savez(path, mean=np.zeros(192), covariance=np.eye(192))
    np.testing.assert_array_equal(
      reference_statistics.read(path).covariance, np.eye(192)
    )

  def test_too_many_files_that_cannot_be_read(self):
    with self.assertRaisesRegex(
      UserError, 'cannot be read, more than.*max_corrupt_share=0.01'
    ):
      config = self.config()
      config.data.max_corrupt_share = 0.01
      statistics.run(Experiment(config, self.workdir))
    self.assertFalse(list(self.workdir.glob('statistics/*.npz')))

  def test_features_of_some_images(self):
    config = self.config()
    network = features.load(Experiment(config, self.workdir))
    found = real_images.some_features(
      Experiment(config, self.workdir), network, 'train', 10**6
    )
    self.assertLen(found, len(self.found.labels))
    order = lambda x: x[np.lexsort(x.T)]
    np.testing.assert_allclose(order(found), order(self.boxes()), atol=1e-6)

  @parameterized.parameters(
    ({'mu': np.zeros(3)}, 'no moments'),
    ({'mu': np.zeros(3), 'sigma': np.eye(2)}, r'\(3,\).*\(2, 2\)'),
    ({'a': np.zeros(3)}, 'no moments'),
  )
  def test_files_that_hold_something_else(self, arrays, words):
    path = self.workdir / 'other.npz'
    np.savez(path, **arrays)
    with self.assertRaisesRegex(UserError, words):
      reference_statistics.read(path)

  @parameterized.parameters(*sorted(_CASES.glob('*.npz')))
  def test_broken_moments_are_refused_when_they_are_read(self, path):
    config = self.config()
    config.evaluate.statistics = str(path)
    experiment = Experiment(config, self.workdir)
    with self.assertRaisesRegex(UserError, path.name) as caught:
      reference_statistics.reference(experiment, features.load(experiment))
    self.assertTrue(str(caught.exception).isprintable())

  @parameterized.parameters(b'', b'PK\x03\x04', 'names')
  def test_a_broken_count_is_begun_again(self, content):
    config = self.config()
    statistics.run(Experiment(config, self.workdir / 'whole'))
    whole = self.workdir / 'whole/statistics/train-pixels.npz'
    partial = self.workdir / 'cut/statistics/train-pixels.npz.partial'
    partial.parent.mkdir(parents=True)
    if content == 'names':
      with partial.open('wb') as file:
        np.savez(file, about='x', at=[4, 0])
    else:
      partial.write_bytes(content)
    statistics.run(Experiment(config, self.workdir / 'cut'))
    self.assertEqual(
      (self.workdir / 'cut/statistics/train-pixels.npz').read_bytes(),
      whole.read_bytes(),
    )

  def test_captions_alone_have_no_moments(self):
    config = configs.load('cc3m256.py:mini')
    config.data.path = str(raw_files.cc3m_tsv(self.workdir, count=2).path)
    prompts = raw_files.cc3m_prompts(self.workdir).path
    config.data.validation_path = str(prompts)
    Experiment(config, 'unused').check(features.problems)
    config.evaluate.reference_split = 'test'
    with self.assertRaisesRegex(UserError, 'test split.*captions alone'):
      Experiment(config, 'unused').check(features.problems)
    with self.assertRaisesRegex(UserError, 'captions alone'):
      real_images.RealImages(Experiment(config, self.workdir), 'test')

  def test_too_few_images_to_measure_with(self):
    few = raw_files.image_folder(
      self.workdir / 'few', num_classes=1, per_class=3
    )
    config = self.config()
    config.data.path = str(few.path)
    config.data.num_classes = 1
    with self.assertRaisesRegex(UserError, 'train split has 3 .*at least 4'):
      statistics.run(Experiment(config, self.workdir / 'run'))

  def test_mistakes_are_named(self):
    with self.assertRaisesRegex(UserError, 'no such file of moments'):
      reference_statistics.read(self.workdir / 'none.npz')


if __name__ == '__main__':
  absltest.main()
