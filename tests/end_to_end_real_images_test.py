"""From raw files to figures, through every stage, in each benchmark's format.

Each case runs the real config, shrunken (`:mini`), by the command a user types;
a folder of one's own goes from `image_folder.py:tiny` to a report, without any
published weights. What the format of raw files changes ends with the prepared
set: one format of captions goes on from there, and one folder; the others are
prepared with a tokenizer that is there. Programs are compiled once: the cases
share a compilation cache.
"""

import json
import pathlib

from absl.testing import absltest, parameterized
import tensorflow_datasets as tfds

import adanat_jax
from adanat_jax.experiment import config as config_lib
from support import children, raw_files, small_weights

ROOT = pathlib.Path(__file__).parent.parent

try:
  import ftfy  # noqa: F401
  import instant_clip_tokenizer  # noqa: F401

  HAS_TOKENIZER = True
except ImportError:
  HAS_TOKENIZER = False


def folder_of_classes(root):
  found = raw_files.image_folder(root, per_class=8, odd=True, corrupt=True)
  return {
    'source': 'image_folder',
    'path': found.path,
    'held_out': 8,
    'max_corrupt_share': 0.5,
  }


def official_tars(root):
  found = raw_files.imagenet_tars(root, per_class=8, held=8)
  return {
    'source': 'imagenet_tar',
    'path': found.train,
    'validation_path': found.validation,
    'validation_annotations': found.devkit,
  }


def coco(root):
  train, validation = (
    raw_files.coco(root, split) for split in ('train', 'val')
  )
  return {
    'source': 'coco',
    'path': train.path,
    'annotations': train.annotations,
    'validation_path': validation.path,
    'validation_annotations': validation.annotations,
  }


def table(root):
  return {
    'source': 'cc3m_tsv',
    'path': raw_files.cc3m_tsv(root, count=12).path,
    'validation_path': raw_files.cc3m_prompts(root).path,
    'text_embeddings': 'compute',
  }


def shards(root):
  return {
    'source': 'webdataset',
    'path': raw_files.webdataset(root, shards=3, per_shard=6).path,
    'held_out': 4,
  }


EVERY_STAGE = ('all',)
ONLY_TOKENS = ('prepare',)

# Smaller still than `:mini`: compiling and tracing take the time.
SMALLER = {
  'data.image_size': 16,
  'tokenizer.width_multipliers': (1, 1, 1),
  'judges.reward.image_size': 8,
  'judges.reward.patch_size': 4,
  'judges.reward.depth': 1,
  'judges.reward.hooks': (0,),
  'policy.discriminator.updates': 1,
}
# What `image_folder.py:tiny` needs to be as small.
OWN = {
  'data.image_size': 16,
  'data.image_width': 24,
  'tokenizer.width_multipliers': (1, 1, 1),
  'judges.measure.widths': (4, 4),
  'judges.reward.depth': 1,
  'judges.reward.hooks': (0,),
  'judges.reward.cutout': 4,
  'policy.discriminator.updates': 1,
}


class RealImagesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls.enter_context_of_class())

  @classmethod
  def enter_context_of_class(cls):
    return cls().create_tempdir('real_images').full_path

  def run_benchmark(self, name, make, modes):
    """Runs a shrunken config in these modes; returns its workdir."""
    config_file = f'{ROOT / "configs" / name}.py:mini'
    config = config_lib.load(config_file, SMALLER)
    weights = self.folder / f'weights-{config.data.condition}'
    overrides = {**SMALLER, 'judges.reward.init_from': weights / 'reward'}
    if not (weights / 'reward').exists():
      small_weights.reward(config, weights)
    if config.data.condition == 'text':
      overrides['text.init_from'] = weights / 'text'
      if not (weights / 'text').exists():
        small_weights.text(config, weights)
    if modes == ONLY_TOKENS:
      overrides['tokenizer.init_from'] = weights / 'tokenizer'
      if not (weights / 'tokenizer').exists():
        small_weights.tokenizer(config, weights)
    # Features without a network: Inception-v3 takes minutes to compile.
    overrides['evaluate.network'] = 'pixels'
    return self.run_modes(config_file, make, modes, overrides)

  def run_modes(self, config_file, make, modes, overrides):
    """Runs a config in these modes; returns its workdir."""
    fields = make(self.folder / make.__name__)
    overrides = overrides | {f'data.{k}': v for k, v in fields.items()}
    workdir = self.folder / f'run-{make.__name__}'
    for mode in modes:
      process = children.call(
        [
          *('-m', 'adanat_jax.main'),
          f'--config={config_file}',
          f'--workdir={workdir}',
          f'--config.mode={mode}',
          f'--jax_cache_dir={self.folder / "cache"}',
          *(f'--config.{name}={value}' for name, value in overrides.items()),
        ],
      )
      self.assertEqual(process.returncode, 0, process.stderr[-3000:])
    return workdir

  def check_run(self, name, make, records, modes):
    """Prepared sets are readable by tfds, and figures have honest names."""
    workdir = self.run_benchmark(name, make, modes)
    builder = tfds.builder_from_directory(workdir / 'prepare')
    source = builder.as_data_source('train')
    self.assertLen(source, records)
    self.assertEqual(source[0]['tokens'].shape, (2, 16))
    if modes == ONLY_TOKENS:
      return
    result = json.loads((workdir / 'evaluate' / 'results.json').read_text())
    text = json.dumps(result)
    self.assertIn('pixels', text)
    self.assertNotIn('FID', text)
    self.assertTrue((workdir / 'evaluate' / 'results.md').is_file())

  def test_official_tars(self):
    self.check_run('in256', official_tars, 24, ONLY_TOKENS)

  def test_a_folder_of_ones_own_as_wide_pictures(self):
    workdir = self.run_modes(
      f'{ROOT / "configs" / "image_folder.py"}:tiny',
      folder_of_classes,
      EVERY_STAGE,
      OWN,
    )
    results = json.loads((workdir / 'report' / 'results.json').read_text())
    for judge in ('judges/measure', 'judges/reward'):
      self.assertIn('test_accuracy', results['training'][judge])
    measures = results['methods'][0]['measures']
    self.assertContainsSubset({'frechet', 'accuracy'}, measures)
    self.assertEqual(
      results['settings']['reference'], 'training split, 30 images'
    )
    report = (workdir / 'report' / 'report.md').read_text()
    self.assertIn('# AdaNAT on folder_of_classes', report)
    self.assertNotIn('FID', report.replace('not FID', ''))
    generator = adanat_jax.load(workdir / 'export')
    self.assertEqual(generator.class_names[0], 'class_0')
    self.assertIn(2, generator.agents)
    self.assertEqual(generator.image_shape, (16, 24, 3))
    self.assertEqual(generator.nat.num_tokens, 4 * 6)
    page = (workdir / 'report' / 'page.html').read_text()
    self.assertIn('"grid": [4, 6]', page)

  @parameterized.parameters(
    ('coco256', coco, 33, EVERY_STAGE),
    ('cc3m256', table, 12, ONLY_TOKENS),
    ('cc3m256', shards, 14, ONLY_TOKENS),
  )
  @absltest.skipUnless(HAS_TOKENIZER, "needs the extra 'text'")
  def test_captions(self, name, make, records, modes):
    self.check_run(name, make, records, modes)


if __name__ == '__main__':
  absltest.main()
