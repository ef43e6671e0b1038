"""What scores are made of: conditions, networks, CLIP; and their names."""

from __future__ import annotations

import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import clip_score, features, published_weights, scores
from adanat_jax.models import clip
from adanat_jax.report.published_figures import BENCHMARKS
from support import random_weights, small_weights
from support.evaluating import tiny_config


class ConditionsTest(absltest.TestCase):
  def conditions(self, **fields):
    return scores.Conditions(
      Experiment(tiny_config(**fields), pathlib.Path('unused'))
    )

  def test_labels(self):
    np.testing.assert_array_equal(
      self.conditions(labels='balanced').of(5, 0), [0, 1, 0, 1, 0]
    )
    uniform = self.conditions(labels='uniform')
    drawn = uniform.of(4000, 0)
    self.assertAlmostEqual(drawn.mean(), 0.5, delta=0.03)
    self.assertNotEqual(drawn[::2].sum(), 1000)
    np.testing.assert_array_equal(drawn, uniform.of(4000, 0))
    self.assertFalse(np.array_equal(drawn, uniform.of(4000, 1)))

  def test_captions_go_round_in_another_order(self):
    conditions = self.conditions()
    conditions._prompts = range(7)
    chosen = conditions.of(16, 0)
    for part in (chosen[:7], chosen[7:14]):
      self.assertEqual(sorted(part.tolist()), list(range(7)))
    self.assertNotEqual(chosen[:7].tolist(), list(range(7)))


class NamesTest(parameterized.TestCase):
  @parameterized.parameters(
    (True, 50_000, 'FID-50K', 'IS-50K'),
    (True, 30_000, 'FID-30K', 'IS-30K'),
    (True, 49_999, 'frechet_inception_49999', 'class_score_inception_49999'),
    (False, 50_000, 'frechet_inception_50000', 'class_score_inception_50000'),
  )
  def test_only_published_weights_and_counts_have_titles(
    self, published, count, distance, score
  ):
    for figure, expected in (('frechet', distance), ('class_score', score)):
      name = published_weights.figure_name(
        figure, 'inception', published, count
      )
      self.assertEqual(name, expected)

  def test_any_number_of_images_measures_a_kid(self):
    name = published_weights.figure_name
    self.assertEqual(name('kernel_distance', 'inception', True, 700), 'KID-700')
    self.assertEqual(
      name('kernel_distance', 'measure', False, 50_000),
      'kernel_distance_measure_50000',
    )
    self.assertEqual(
      name('density', 'inception', True, 50_000), 'density_inception_50000'
    )

  def test_published_weights_are_known_by_their_hash(self):
    (digest, name), *_ = published_weights.INCEPTION.items()
    # The first digits of the hash stand in the file's own name.
    self.assertIn(digest[:8], name)
    directory = pathlib.Path(self.create_tempdir().full_path)
    for found, expected in (({name: digest}, True), ({name: '0' * 64}, False)):
      path = directory / str(expected)
      meta = {'converted': {'sha256': found}}
      with mock.patch.object(
        small_weights.checkpoint.Checkpointer,
        'save',
        _saver(meta),
      ):
        small_weights.save(path, params={'a': jnp.zeros(2)})
      source = published_weights.source_of(path)
      self.assertEqual(source, found)
      self.assertEqual(
        published_weights.is_published(source, published_weights.INCEPTION),
        expected,
      )
    self.assertEqual(published_weights.source_of(directory / 'none'), {})
    self.assertFalse(
      published_weights.is_published({}, published_weights.INCEPTION)
    )

  def test_published_figures_have_their_sources(self):
    for entry in BENCHMARKS.values():
      methods_and_steps = [(f.method, f.num_steps) for f in entry.figures]
      self.assertLen(set(methods_and_steps), len(methods_and_steps))
      self.assertTrue(all(figure.source for figure in entry.figures))


def _saver(meta):
  save = small_weights.checkpoint.Checkpointer.save
  return lambda self, step, state, _: save(self, step, state, meta)


class ClipScoreTest(absltest.TestCase):
  def test_cosine_of_both_towers(self):
    towers = (
      clip.CLIPText(8, 1, 2, 16, 4, 'gelu', 49408, 77),
      clip.CLIPImage(16, 8, 8, 1, 2, 16, 4, 'gelu'),
    )
    ids = np.array([[49406, 5, 49407], [49406, 7, 49407]], np.int32)
    ids = np.pad(ids, ((0, 0), (0, 74)))
    images = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    params = {
      name: random_weights.random_variables(module, given)['params']
      for name, module, given in (
        ('text', towers[0], ids),
        ('image', towers[1], images),
      )
    }
    conditions = mock.Mock(captions=lambda rows: [f'text {i}' for i in rows])
    tokenize = lambda texts, *_: ids[[int(text[-1]) for text in texts]]
    with (
      mock.patch.dict(clip.TOWERS, {'ViT-L/14': towers}),
      mock.patch.object(clip_score.clip_tokens, 'tokenize', tokenize),
      mock.patch.object(
        Experiment,
        'load_converted',
        lambda self, section, *_: params[section.split('.')[-1]],
      ),
    ):
      observer = clip_score.ClipScore(
        Experiment(tiny_config(), 'unused'), conditions, np.array([1, 0])
      )
      given = observer.inputs(np.arange(2))
    np.testing.assert_array_equal(given, ids[::-1])
    (name, found), *_ = observer.measure(observer.params, images, given).items()
    # Random towers are no published ones.
    self.assertEqual(name, 'clip_cosine_2')
    apply = lambda i, params, x: jax.jit(towers[i].apply)({'params': params}, x)
    text = apply(0, params['text'], ids[::-1]).pooled
    image = apply(1, params['image'], clip.prepare_images(images, 16))
    for i in range(2):
      expected = np.dot(text[i], image[i]) / (
        np.linalg.norm(text[i]) * np.linalg.norm(image[i])
      )
      self.assertAlmostEqual(float(found[i]), expected, places=5)


class FeaturesTest(parameterized.TestCase):
  def test_pixels_are_means_of_boxes(self):
    images = np.zeros((1, 16, 16, 3), np.float32)
    images[0, 2:4, 4:6, 1] = 1.0
    images[0, 0, 0, 2] = 1.0
    found, logits = features.load(
      Experiment(tiny_config(), pathlib.Path('unused'))
    ).apply({}, images)
    self.assertIsNone(logits)
    grid = found.reshape(8, 8, 3)
    self.assertEqual(grid[1, 2].tolist(), [0, 1, 0])
    self.assertEqual(grid[0, 0].tolist(), [0, 0, 0.25])
    self.assertAlmostEqual(float(grid.sum()), 1.25)

  def test_inception_reads_pool3_and_unbiased_logits(self):
    seen = {}

    class Out:
      pool3, unbiased_logits = 'pool3', 'unbiased'

    class Fake:
      def apply(self, variables, images):
        seen['shape'] = images.shape
        return Out

    with (
      mock.patch.object(features, 'InceptionV3', Fake),
      mock.patch.object(Experiment, 'param_shapes'),
      mock.patch.object(Experiment, 'load_converted', lambda *_: {}),
      mock.patch.object(
        features.published_weights,
        'source_of',
        lambda _: dict.fromkeys(['a'], next(iter(published_weights.INCEPTION))),
      ),
    ):
      network = features.load(
        Experiment(tiny_config(network='inception'), pathlib.Path('unused'))
      )
      found = network.apply({}, jnp.zeros((2, 16, 16, 1)))
    self.assertEqual(found, ('pool3', 'unbiased'))
    self.assertEqual(seen['shape'], (2, 16, 16, 3))
    self.assertTrue(network.is_published)


if __name__ == '__main__':
  absltest.main()
