"""The published protocol: figures computed again, resumed, rightly named."""

from __future__ import annotations

import contextlib
import hashlib
import io
import pathlib
import subprocess
import sys
from unittest import mock

from absl.testing import absltest, parameterized
import children
import jax
import jax.numpy as jnp
import numpy as np
import random_weights
import small_weights

from adanat_jax import config as config_lib, distributed, files, rendezvous
from adanat_jax.errors import UserError
from adanat_jax.metrics.precision_recall import precision_recall
from adanat_jax.metrics.published_figures import BENCHMARKS
from adanat_jax.models import clip, clip_image
from adanat_jax.sampler import Generator
from adanat_jax.stages import (
  benchmark,
  clip_score,
  evaluate,
  features,
  load,
  methods,
  networks,
  provenance,
  scores,
)

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
COUNT = 42


def tiny_config(**evaluate_fields):
  config = config_lib.load(f'{CONFIGS}/digits.py:tiny')
  config.policy.num_steps = (2,)
  # Little to compile.
  config.nat.depth = 0
  config.tokenizer.width_multipliers = (1, 1)
  config.evaluate.update(
    protocol='published',
    network='pixels',
    num_samples=COUNT,
    batch_size=16,
    save_every=16,
    policies=('maskgit', 'residual'),
    precision_recall=20,
    save_npz=True,
    benchmark='imagenet256',
  )
  config.evaluate.update(evaluate_fields)
  return config


def random_generator(config) -> Generator:
  nat = networks.nat_module(config)
  tokenizer = networks.tokenizer_module(config)
  tokens = jnp.zeros((1, nat.num_tokens), jnp.int32)
  image = jnp.zeros((1, 16, 16, 1))
  make = random_weights.random_variables
  return Generator(
    nat,
    make(nat, tokens, jnp.zeros(1, jnp.int32))['params'],
    tokenizer,
    make(tokenizer, image)['params'],
    networks.num_classes(config),
    {},
    config.evaluate.batch_size,
  )


def frechet_by_eigenvalues(a: np.ndarray, b: np.ndarray) -> float:
  product = np.cov(a.T) @ np.cov(b.T)
  roots = np.emath.sqrt(np.linalg.eigvals(product)).real.sum()
  shift = a.mean(0) - b.mean(0)
  return shift @ shift + np.cov(a.T).trace() + np.cov(b.T).trace() - 2 * roots


class BenchmarkTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.generator = random_generator(tiny_config())

  def setUp(self):
    super().setUp()
    self.enter_context(contextlib.redirect_stdout(io.StringIO()))
    self.enter_context(
      mock.patch.object(load, 'generator', lambda *_: self.generator)
    )
    self.workdir = pathlib.Path(self.create_tempdir().full_path)

  def evaluate(self, config, workdir=None):
    directory = workdir or self.workdir
    evaluate.run(config, directory)
    return files.read_json(directory / 'evaluate/results.json')

  def test_figures_are_those_of_a_second_computation(self):
    config = tiny_config(rounding='floor')
    results = self.evaluate(config)
    labels = np.arange(COUNT) % 2
    real = benchmark.datasets.image_examples(config, self.workdir, 'train')
    boxes = lambda images: (
      images.astype(np.float64)
      .reshape(-1, 8, 2, 8, 2, 1)
      .mean((2, 4))
      .reshape(-1, 64)
    )
    reference = boxes(real.arrays['images'])
    names = [row['name'] for row in results['rows']]
    self.assertEqual(names, ['maskgit', 'residual'])
    for row, method in zip(
      results['rows'],
      methods.hand_made(2, self.generator.nat.num_tokens),
      strict=False,
    ):
      images = self.generator.decode(
        method.policy,
        labels,
        networks.stage_key(config, 'scores/0'),
        num_steps=2,
        guided=method.guided,
        options=method.options,
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
      shares = precision_recall(
        np.load(self.workdir / 'evaluate/real-train.npy'), found[:20]
      )
      self.assertEqual(figures['precision_pixels_20'], shares.precision)
      self.assertEqual(figures['recall_pixels_20'], shares.recall)
      self.assertLen(figures, 3)

  def test_results_say_what_they_rest_on(self):
    config = tiny_config(policies=('maskgit',), save_npz=False)
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
    self.assertFalse(list(stopped.glob('evaluate/*/samples.npy')))

  def test_two_processes_give_the_same_figures(self):
    config = tiny_config(policies=('maskgit',))
    self.evaluate(config, self.workdir / 'alone')
    port = str(rendezvous.free_port())
    pair = [
      subprocess.Popen(
        [sys.executable, __file__, '--child', str(self.workdir), str(i), port],
        env=children.environment(1),
        stderr=subprocess.PIPE,
        text=True,
      )
      for i in range(2)
    ]
    for process in pair:
      _, said = process.communicate(timeout=600)
      self.assertEqual(process.returncode, 0, said[-2000:])
    for name in (
      'statistics/train-pixels.npz',
      'evaluate/real-train.npy',
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

      def inputs(self, index):
        return jnp.asarray(index, jnp.float32)

      def measure(self, params, images, inputs):
        return {'sum': params * images.mean((1, 2, 3)) * inputs}

    policy = methods.hand_made(2, self.generator.nat.num_tokens)[0].policy
    scorer = scores.Scorer(config, self.workdir)
    tally = scorer.tally(
      self.generator, policy, num_steps=2, observers=(Observer(),)
    )
    images = self.generator.decode(
      policy,
      scorer.conditions.of(COUNT, 0),
      networks.stage_key(config, 'scores/0'),
      num_steps=2,
    ).images
    expected = 2 * images.mean((1, 2, 3)) * np.arange(COUNT)
    self.assertAlmostEqual(tally.means()['sum'], expected.mean(), places=4)

  def test_a_learned_policy_that_is_not_there(self):
    with self.assertRaisesRegex(UserError, 'no learned policy for 2 steps'):
      self.evaluate(tiny_config(policies=('learned',)))

  @parameterized.parameters(
    ({'num_samples': 5}, 'num_samples=5'),
    ({'labels': 'even'}, 'uniform, balanced'),
    ({'rounding': 'up'}, 'none, floor, nearest'),
    ({'policies': ('best',)}, 'learned, maskgit'),
    ({'benchmark': 'cifar10'}, 'imagenet256'),
    ({'network': 'inception'}, 'inception.init_from is empty'),
    ({'statistics': '/nowhere.npz'}, '/nowhere.npz: there is no such file'),
    ({'precision_recall': 3}, 'more than 3 images'),
    ({'policies': ('autonat_large',)}, 'num_steps=2'),
    ({'protocol': 'other'}, 'study, published'),
  )
  def test_mistakes_are_named_before_anything_runs(self, fields, words):
    with self.assertRaisesRegex(UserError, words):
      evaluate.check_config(tiny_config(**fields))

  def test_a_study_is_of_digits(self):
    config = config_lib.load(f'{CONFIGS}/in256.py:mini')
    config.evaluate.protocol = 'study'
    with self.assertRaisesRegex(UserError, 'protocol=study.*image_folder'):
      evaluate.check_config(config)

  def test_moments_of_another_network(self):
    path = self.workdir / 'moments.npz'
    np.savez(path, mu=np.zeros(3), sigma=np.eye(3))
    with self.assertRaisesRegex(UserError, '3 features.*pixels.*64'):
      self.evaluate(tiny_config(statistics=str(path)))


class ConditionsTest(absltest.TestCase):
  def conditions(self, **fields):
    return scores.Conditions(tiny_config(**fields), pathlib.Path('unused'))

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
    name = provenance.distance_name
    self.assertEqual(name('inception', published, count), distance)
    name = provenance.class_score_name
    self.assertEqual(name('inception', published, count), score)

  def test_published_weights_are_known_by_their_hash(self):
    (digest, name), *_ = provenance.INCEPTION.items()
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
      source = provenance.source_of(path)
      self.assertEqual(source, found)
      self.assertEqual(
        provenance.is_published(source, provenance.INCEPTION), expected
      )
    self.assertEqual(provenance.source_of(directory / 'none'), {})
    self.assertFalse(provenance.is_published({}, provenance.INCEPTION))

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
      clip_image.CLIPImage(16, 8, 8, 1, 2, 16, 4, 'gelu'),
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
      mock.patch.dict(clip_image.TOWERS, {'ViT-L/14': towers}),
      mock.patch.object(clip_score.clip_tokens, 'tokenize', tokenize),
      mock.patch.object(
        clip_score.networks,
        'load_converted',
        lambda config, section, *_: params[section.split('.')[-1]],
      ),
    ):
      observer = clip_score.ClipScore(
        tiny_config(), conditions, np.array([1, 0])
      )
      given = observer.inputs(np.arange(2))
    np.testing.assert_array_equal(given, ids[::-1])
    (name, found), *_ = observer.measure(observer.params, images, given).items()
    # Random towers are no published ones.
    self.assertEqual(name, 'clip_cosine_2')
    apply = lambda i, params, x: jax.jit(towers[i].apply)({'params': params}, x)
    text = apply(0, params['text'], ids[::-1]).pooled
    image = apply(1, params['image'], clip_image.prepare(images, 16))
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
    found, logits = features.load(tiny_config(), pathlib.Path('unused')).apply(
      {}, images
    )
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
      mock.patch.object(features.networks, 'param_shapes'),
      mock.patch.object(features.networks, 'load_converted', lambda *_: {}),
      mock.patch.object(
        features.provenance,
        'source_of',
        lambda _: dict.fromkeys(['a'], next(iter(provenance.INCEPTION))),
      ),
    ):
      network = features.load(
        tiny_config(network='inception'), pathlib.Path('unused')
      )
      found = network.apply({}, jnp.zeros((2, 16, 16, 1)))
    self.assertEqual(found, ('pool3', 'unbiased'))
    self.assertEqual(seen['shape'], (2, 16, 16, 3))
    self.assertTrue(network.is_published)


def _child(root: str, process: str, port: str) -> None:
  """One of two processes of an evaluation."""
  distributed.start(
    'on',
    coordinator_address=f'localhost:{port}',
    num_processes=2,
    process_id=int(process),
  )
  config = tiny_config(policies=('maskgit',))
  generator = random_generator(config)
  with mock.patch.object(load, 'generator', lambda *_: generator):
    evaluate.run(config, pathlib.Path(root) / 'together')
  distributed.finish()


if __name__ == '__main__':
  if '--child' in sys.argv:
    _child(*sys.argv[sys.argv.index('--child') + 1 :])
  else:
    absltest.main()
