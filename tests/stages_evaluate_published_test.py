"""The published protocol: figures computed again, resumed, rightly named."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import sys
from unittest import mock

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import tables
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning.agent import Agent
from adanat_jax.measuring import real_images, scores
from adanat_jax.metrics import kernel_distance, precision_recall
from adanat_jax.runtime import addresses, files, journal, processes
from adanat_jax.stages import evaluate
from support import children
from support.evaluating import COUNT, random_generator, tiny_config


def frechet_by_eigenvalues(a: np.ndarray, b: np.ndarray) -> float:
  product = np.cov(a.T) @ np.cov(b.T)
  roots = np.emath.sqrt(np.linalg.eigvals(product)).real.sum()
  shift = a.mean(0) - b.mean(0)
  return shift @ shift + np.cov(a.T).trace() + np.cov(b.T).trace() - 2 * roots


def boxes(images: np.ndarray) -> np.ndarray:
  parts = images.astype(np.float64).reshape(-1, 8, 2, 8, 2, 1)
  return parts.mean((2, 4)).reshape(-1, 64)


def by_features(params, features, step):
  """Reveals another number of tokens in each sample."""
  signal = jnp.sin(8 * features.mean((1, 2)))
  mean = jnp.stack([2 * signal, signal, signal, signal], axis=1) + params
  return mean - step[:, None] / 2, signal


class BenchmarkTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.generator = random_generator(tiny_config())

  def setUp(self):
    super().setUp()
    self.enter_context(contextlib.redirect_stdout(io.StringIO()))
    self.enter_context(
      mock.patch.object(Experiment, 'generator', lambda *_: self.generator)
    )
    self.workdir = pathlib.Path(self.create_tempdir().full_path)

  def evaluate(self, config, workdir=None):
    directory = workdir or self.workdir
    evaluate.run(Experiment(config, directory))
    return files.read_json(directory / 'evaluate/results.json')

  def test_enat_by_its_published_schedule(self):
    config = tiny_config(
      policies=('enat_256',), precision_recall=0, save_npz=False
    )
    config.nat.update(network='enat', encoder_depth=1, decoder_depth=1)
    generator = random_generator(config)
    with mock.patch.object(Experiment, 'generator', lambda *_: generator):
      (row,) = self.evaluate(config)['rows']
    self.assertEqual(row['label'], "ENAT's hand-made")
    images = generator.run(
      Schedule('enat_256', tables.enat_256(2)),
      np.arange(COUNT) % 2,
      Experiment(config, 'unused').key('scores/0'),
    ).images
    real = Experiment(config, self.workdir).examples('train', 'images')
    expected = frechet_by_eigenvalues(
      boxes(images), boxes(real.arrays['images'])
    )
    np.testing.assert_allclose(
      row['figures']['frechet_pixels_42'], expected, rtol=1e-5
    )

  def test_buckets_of_an_enat_change_no_figure(self):
    config = tiny_config(
      policies=('learned',), precision_recall=0, save_npz=False
    )
    config.nat.update(network='enat', encoder_depth=1, decoder_depth=1)
    agent = Agent(jnp.float32(0.2), jnp.zeros((2, 4)), by_features)
    generator = dataclasses.replace(random_generator(config), agents={2: agent})
    rows, shapes = [], []
    measure = scores.Scorer.tally

    def spy(scorer, generator, *args, **options):
      shapes.append(len(generator.buckets.get(2, ())))
      return measure(scorer, generator, *args, **options)

    with (
      mock.patch.object(Experiment, 'generator', lambda *_: generator),
      mock.patch.object(scores.Scorer, 'tally', spy),
    ):
      for num_buckets in (0, 3):
        config.evaluate.num_buckets = num_buckets
        rows += self.evaluate(config, self.workdir / str(num_buckets))['rows']
    self.assertEqual(shapes, [0, 3])
    for name, value in rows[0]['figures'].items():
      self.assertAlmostEqual(rows[1]['figures'][name], value, places=4)

  def test_figures_are_those_of_a_second_computation(self):
    config = tiny_config(
      rounding='floor', density_coverage=30, kernel_distance=12
    )
    results = self.evaluate(config)
    labels = np.arange(COUNT) % 2
    real = Experiment(config, self.workdir).examples('train', 'images')
    reference = boxes(real.arrays['images'])
    names = [row['name'] for row in results['rows']]
    self.assertEqual(names, ['maskgit', 'residual'])
    for row in results['rows']:
      images = self.generator.run(
        self.generator.schedule(row['name'], 2),
        labels,
        Experiment(config, 'unused').key('scores/0'),
      ).images
      pixels = np.floor(255 * images).astype(np.uint8)
      found = boxes(pixels / 255)
      figures = row['figures']
      np.testing.assert_allclose(
        figures['frechet_pixels_42'],
        frechet_by_eigenvalues(found, reference),
        rtol=1e-5,
      )
      with np.load(
        self.workdir / 'evaluate' / f'{row["name"]}-T2' / row['samples']
      ) as file:
        self.assertEqual(sorted(file.files), ['arr_0', 'arr_1'])
        np.testing.assert_array_equal(file['arr_0'], pixels)
        np.testing.assert_array_equal(file['arr_1'], labels)
      with np.load(self.workdir / 'evaluate/real-train.npz') as real:
        real = real['features']
      shares = precision_recall.precision_recall(real[:20], found[:20])
      self.assertEqual(figures['precision_pixels_20'], shares.precision)
      self.assertEqual(figures['recall_pixels_20'], shares.recall)
      balls = precision_recall.density_coverage(real, found[:30])
      self.assertEqual(figures['density_pixels_30'], balls.density)
      self.assertEqual(figures['coverage_pixels_30'], balls.coverage)
      kernel = kernel_distance.kernel_distance(real[:12], found[:12])
      np.testing.assert_allclose(
        [figures[f'kernel_distance_pixels_12{x}'] for x in ('', '_std')],
        [kernel.mean, kernel.std],
        rtol=1e-4,
      )
      self.assertLen(figures, 7)

  def test_results_say_what_they_rest_on(self):
    config = tiny_config(policies=('maskgit',), save_npz=False)
    tokenizer = files.make_directory(self.workdir / 'tokenizer')
    journal.mark_complete(tokenizer, 0, {}, warnings=['a blur'])
    results = self.evaluate(config)
    settings = results['settings']
    moments = self.workdir / 'statistics/train-pixels.npz'
    self.assertEqual(
      settings['statistics']['sha256'],
      hashlib.sha256(moments.read_bytes()).hexdigest(),
    )
    self.assertEqual(settings['statistics']['file'], moments.name)
    self.assertEqual(settings['conditions'], 'balanced')
    page = (self.workdir / 'evaluate/results.md').read_text()
    self.assertIn('frechet_pixels_42', page)
    self.assertIn('| AdaNAT-L | 8 | 2.86 | 265.4 | 206M |', page)
    self.assertIn(settings['statistics']['sha256'], page)
    self.assertIn('`train-pixels.npz`, those below from `fid_stats_', page)
    # Of 1433 real images there are enough, for 64 features.
    few = 'evaluate: 42 generated images are too few'
    self.assertIn(f'## Warnings\n\n- tokenizer: a blur\n- {few}', page)
    self.assertNotIn('real images are', page)
    marker = journal.read_complete(self.workdir / 'evaluate')
    self.assertStartsWith(f'evaluate: {marker["warnings"][0]}', few)
    # Ours is no FID, and nowhere called one.
    (row,) = results['rows']
    self.assertFalse([name for name in row['figures'] if 'FID' in name])
    # A finished evaluation is not repeated.
    with mock.patch.object(scores.Scorer, 'tally', side_effect=RuntimeError):
      self.evaluate(config)

  def test_a_killed_run_goes_on_to_the_same_bytes(self):
    whole = self.workdir / 'whole'
    self.evaluate(tiny_config(), whole)
    stops = {'left': 2}
    update = scores.SampleTally.update

    def killed(self, *arguments):
      if not stops['left']:
        raise KeyboardInterrupt
      stops['left'] -= 1
      update(self, *arguments)

    stopped = self.workdir / 'stopped'
    counted = []
    # Three batches a policy: killed within the first, and within the second.
    for left in (2, 2):
      stops['left'] = left
      with (
        mock.patch.object(scores.SampleTally, 'update', killed),
        self.assertRaises(KeyboardInterrupt),
      ):
        self.evaluate(tiny_config(), stopped)

    def counting(self, found, *rest):
      counted.append(len(found))
      update(self, found, *rest)

    with mock.patch.object(scores.SampleTally, 'update', counting):
      self.evaluate(tiny_config(), stopped)
    # 1 of the first policy and 1 of the second are done already.
    self.assertEqual(counted, [16, 10])
    for name in ('results.json', 'results.md', 'residual-T2/samples.npz'):
      self.assertEqual(
        (stopped / 'evaluate' / name).read_bytes(),
        (whole / 'evaluate' / name).read_bytes(),
        name,
      )
    self.assertFalse(list(stopped.glob('evaluate/*/tally.npz')))
    self.assertFalse(list(stopped.glob('evaluate/*/samples.uint8')))

  def test_two_processes_give_the_same_figures(self):
    config = tiny_config(policies=('maskgit',))
    self.evaluate(config, self.workdir / 'alone')
    port = str(addresses.free_port())
    pair = [
      children.start(
        [__file__, '--child', self.workdir, i, port],
        self.workdir / f'said-{i}.txt',
      )
      for i in range(2)
    ]
    for i, process in enumerate(pair):
      process.join(600)
      said = (self.workdir / f'said-{i}.txt').read_text()
      self.assertEqual(process.exitcode, 0, said[-2000:])
    for name in (
      'statistics/train-pixels.npz',
      'evaluate/real-train.npz',
      'evaluate/maskgit-T2/samples.npz',
    ):
      self.assertEqual(
        (self.workdir / 'together' / name).read_bytes(),
        (self.workdir / 'alone' / name).read_bytes(),
        name,
      )
    ours, theirs = (
      files.read_json(self.workdir / name / 'evaluate/results.json')['rows'][0]
      for name in ('alone', 'together')
    )
    # A device decodes other batches, in other shapes.
    for name, value in ours['figures'].items():
      self.assertAlmostEqual(theirs['figures'][name], value, places=6)

  def test_other_measures_see_each_image_with_its_number(self):
    config = tiny_config(save_npz=False)

    class Observer:
      params = jnp.float32(2.0)
      names = ('sum',)

      def inputs(self, index):
        return jnp.asarray(index, jnp.float32)

      def measure(self, params, images, inputs):
        return {'sum': params * images.mean((1, 2, 3)) * inputs}

    schedule = self.generator.schedule('maskgit', 2)
    scorer = scores.Scorer(Experiment(config, self.workdir))
    directory = self.workdir / 'observed'
    tally = scorer.tally(
      self.generator,
      schedule,
      num_samples=COUNT,
      observers=(Observer(),),
      directory=directory,
    )
    # A run with other measures does not go on with this tally.
    with np.load(directory / 'tally.npz') as file:
      self.assertEqual(json.loads(str(file['about']))[-1], ['sum'])
    images = self.generator.run(
      schedule,
      scorer.conditions.of(COUNT, 0),
      Experiment(config, 'unused').key('scores/0'),
    ).images
    expected = 2 * images.mean((1, 2, 3)) * np.arange(COUNT)
    self.assertAlmostEqual(tally.means()['sum'], expected.mean(), places=4)

  def test_too_few_real_images_are_told_before_any_is_generated(self):
    few = np.zeros((5, 64), np.float32)
    with (
      mock.patch.object(real_images, 'some_features', return_value=few),
      mock.patch.object(scores.Scorer, 'tally', side_effect=RuntimeError),
      self.assertRaisesRegex(UserError, '5 images.*density_coverage.* 6: give'),
    ):
      self.evaluate(tiny_config(density_coverage=8, kernel_distance=8))

  def test_a_learned_policy_that_is_not_there(self):
    with self.assertRaisesRegex(UserError, 'no learned policy for 2 steps'):
      self.evaluate(tiny_config(policies=('learned',)))

  @parameterized.parameters(
    ({'network': 'inception'}, 'inception.init_from is empty'),
    ({'statistics': '/nowhere.npz'}, '/nowhere.npz: there is no such file'),
    ({'policies': ('autonat_large',)}, 'num_steps=2'),
  )
  def test_mistakes_are_named_before_anything_runs(self, fields, words):
    with self.assertRaisesRegex(UserError, words):
      evaluate.check_config(Experiment(tiny_config(**fields), 'unused'))

  def test_moments_of_another_network(self):
    path = self.workdir / 'moments.npz'
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    with self.assertRaisesRegex(UserError, '3 features.*pixels.*64'):
      self.evaluate(tiny_config(statistics=str(path)))


def _child(root: str, process: str, port: str) -> None:
  """One of two processes of an evaluation."""
  processes.start(
    'on',
    coordinator_address=f'localhost:{port}',
    num_processes=2,
    process_id=int(process),
  )
  config = tiny_config(policies=('maskgit',))
  generator = random_generator(config)
  with mock.patch.object(Experiment, 'generator', lambda *_: generator):
    evaluate.run(Experiment(config, pathlib.Path(root) / 'together'))
  processes.barrier()


if __name__ == '__main__':
  if '--child' in sys.argv:
    _child(*sys.argv[sys.argv.index('--child') + 1 :])
  else:
    absltest.main()
