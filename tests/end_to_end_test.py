"""The whole of the tiny config, in processes of its own, killed and resumed."""

from collections.abc import Callable
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from absl import logging
from absl.testing import absltest
import jax
import matplotlib.image
import numpy as np

import adanat_jax
from adanat_jax.errors import UserError
from adanat_jax.runtime import checkpoint, checkpoint_format, files
from adanat_jax.runtime.metric_writer import read_metrics
from support import children

ROOT = pathlib.Path(__file__).parents[1]
TRAININGS = (
  'tokenizer',
  'judges/measure',
  'judges/reward',
  'nat',
  'policy/adversarial-adaptive-T4-0',
  'policy/adversarial-constant-T4-0',
)
# Smaller still than the preset; every stage saves more than once.
OVERRIDES = {
  'data.image_size': 8,
  'tokenizer.width_multipliers': (1, 1),
  'judges.reward.depth': 1,
  'judges.reward.hooks': (0,),
  'judges.reward.cutout': 2,
  'tokenizer.num_steps': 20,
  'judges.measure.num_steps': 11,
  'judges.reward.num_steps': 11,
  'nat.num_steps': 20,
  'nat.depth': 0,
  'policy.iterations': 3,
  'policy.save_every': 1,
  'policy.discriminator.updates': 1,
  'policy.discriminator.spectral_warmup': 2,
  'evaluate.max_grid': 2,
  'evaluate.num_seeds': 1,
  'report.images_per_class': 2,
  'tensorboard': False,
}
_SECONDS = 900


def command(workdir: pathlib.Path, cache: pathlib.Path, **fields) -> list[str]:
  """What `python` runs."""
  overrides = OVERRIDES | {k.replace('__', '.'): v for k, v in fields.items()}
  return [
    *('-m', 'adanat_jax.main', '--config=configs/digits.py:tiny'),
    f'--workdir={workdir}',
    f'--jax_cache_dir={cache}',
    *(f'--config.{name}={value}' for name, value in overrides.items()),
  ]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
  return children.call(arguments, directory=ROOT)


def run_until(arguments: list[str], reached: Callable[[], bool]) -> int:
  """Starts a run and kills it as soon as `reached`; returns its exit code."""
  with tempfile.NamedTemporaryFile('r') as log:
    process = children.start(arguments, pathlib.Path(log.name), directory=ROOT)
    try:
      deadline = time.monotonic() + _SECONDS
      while not reached() and process.is_alive():
        if time.monotonic() > deadline:
          raise TimeoutError('the run came to no progress')
        time.sleep(0.002)
    finally:
      process.kill()
      process.join()
    if process.exitcode != -signal.SIGKILL:
      raise AssertionError(log.read()[-3000:])
    return process.exitcode


def without_times(rows: list[dict]) -> list[dict]:
  return [
    {k: v for k, v in row.items() if not k.startswith('time/')} for row in rows
  ]


class EndToEndTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.
    directory = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.directory = pathlib.Path(directory)
    cls.cache = cls.directory / 'cache'
    cls.whole = cls.directory / 'whole'
    # By a fresh interpreter, as users start it.
    result = subprocess.run(
      [sys.executable, *command(cls.whole, cls.cache)],
      cwd=ROOT,
      env=children.environment(1),
      capture_output=True,
      text=True,
      timeout=_SECONDS,
      check=False,
    )
    if result.returncode:
      raise AssertionError(result.stderr[-3000:])
    cls.output = result.stdout

  def test_everything_is_there(self):
    results = json.loads((self.whole / 'report/results.json').read_text())
    roles = [method['role'] for method in results['methods']]
    self.assertEqual(
      roles,
      ['hand-made'] * 3
      + ['tuned', 'adaptive', 'frozen', 'shuffled', 'non-adaptive'],
    )
    for method in results['methods']:
      measures = {k: v['mean'] for k, v in method['measures'].items()}
      self.assertTrue(np.isfinite(list(measures.values())).all(), measures)
      self.assertLen(method['committed_per_step']['mean'], 4)
    self.assertEqual(results['grid'][0]['evaluations'], 2)
    self.assertLess(
      results['floors']['held-out images']['frechet'],
      results['methods'][0]['measures']['frechet']['mean'],
    )
    report = (self.whole / 'report/report.md').read_text()
    self.assertIn('AdaNAT', report)
    pictures = list((self.whole / 'report').glob('*.png'))
    self.assertGreater(len(pictures), 4)
    for picture in pictures:
      self.assertIn(picture.name, report)
      self.assertGreater(matplotlib.image.imread(picture).std(), 0.01)
    self.assertIn('page.html', report)
    self.assertTrue((self.whole / 'report/page.html').is_file())
    # One command, as it was given, reproduces the report.
    self.assertIn('--config=configs/digits.py:tiny', report)
    self.assertIn('--config.nat.num_steps=20', report)

  def test_the_same_command_again_repeats_no_training(self):
    markers = {
      stage: (self.whole / stage / 'complete.json').stat().st_mtime_ns
      for stage in (*TRAININGS, 'evaluate')
    }
    for mode in ('nat', 'evaluate'):
      result = run(command(self.whole, self.cache, mode=mode))
      self.assertEqual(result.returncode, 0, result.stderr)
    for stage, written in markers.items():
      path = self.whole / stage / 'complete.json'
      self.assertEqual(path.stat().st_mtime_ns, written, stage)

  def test_killed_anywhere_it_ends_with_the_same_bits(self):
    work = self.directory / 'killed'
    # runtime_loop_test kills trainings like these two.
    for stage in ('tokenizer', 'judges'):
      shutil.copytree(self.whole / stage, work / stage)
    shutil.copy(self.whole / 'config.json', work)
    ledger = work / 'evaluate/ledger.jsonl'
    holds = lambda path, text: path.is_file() and text in path.read_text()
    some = lambda pattern: any(work.glob(pattern))
    # When the run is killed, and what it would have written next.
    moments = (
      # When the first save begins.
      (lambda: some('nat/checkpoints/*'), 'nat/complete.json'),
      (
        lambda: some('policy/*-adaptive-*/checkpoints/1'),
        f'{TRAININGS[4]}/complete.json',
      ),
      (lambda: holds(ledger, 'T4/grid/0'), 'evaluate/results.json'),
      (lambda: some('report/*.png'), 'report/report.md'),
    )
    for reached, missing in moments:
      self.assertFalse(reached(), missing)
      run_until(command(work, self.cache), reached)
      late = f'killed too late for {missing}'
      self.assertFalse((work / missing).exists(), late)
    result = run(command(work, self.cache))
    self.assertEqual(result.returncode, 0, result.stderr[-3000:])

    for stage in TRAININGS:
      whole, killed = self.whole / stage, work / stage
      with self.subTest(stage):
        fields = ('params', 'ema') if stage == 'nat' else ('params',)
        for field in fields:
          jax.tree.map(
            np.testing.assert_array_equal,
            checkpoint.load_params(whole, field),
            checkpoint.load_params(killed, field),
          )
        # Optimizer, discriminator and codebook: their checksums.
        step = json.loads((whole / 'complete.json').read_text())['step']
        leaves = [
          checkpoint_format.checksums(
            checkpoint_format.read(path / 'checkpoints' / str(step))
          )
          for path in (whole, killed)
        ]
        self.assertEqual(*leaves)
        self.assertEqual(
          *(without_times(read_metrics(path)) for path in (whole, killed))
        )
    for name in ('evaluate/results.json', 'report/results.json'):
      self.assertEqual(
        *(json.loads((path / name).read_text()) for path in (self.whole, work)),
        name,
      )

  def test_sampling_writes_pictures(self):
    output = self.directory / 'pictures'
    result = run(
      command(
        self.whole,
        self.cache,
        mode='sample',
        sample__classes='1,0',
        sample__images_per_class=2,
        sample__num_draws=3,
        sample__output=output,
      )
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    # Sampled once; it is timed if `sample.timing_rounds` asks for it.
    self.assertRegex(result.stdout, r'4 images in .*grid\.png\n')
    names = sorted(path.name for path in output.iterdir())
    classes = (1, 1, 0, 0)
    expected = [f'{i:05d}-class{c}.png' for i, c in enumerate(classes)]
    self.assertEqual(names, [*expected, 'grid.png'])
    # They are the best of three draws.
    generator = adanat_jax.best_of(
      adanat_jax.load(self.whole, compile_cache=False),
      adanat_jax.load_discriminator(self.whole),
      3,
    )
    samples = generator.sample(classes, num_steps=4)
    shown = [
      matplotlib.image.imread(output / name)
      for name in names
      if 'class' in name
    ]
    self.assertGreater(np.std(shown), 0)
    np.testing.assert_allclose(shown, samples.images[..., 0], atol=0.6 / 255)

  def test_the_library(self):
    # A workdir of eight devices is loaded on one.
    elsewhere = self.directory / 'elsewhere'
    elsewhere.mkdir()
    record = files.read_json(self.whole / 'config.json')
    record['config']['mesh']['fsdp'] = 8
    files.write_json(elsewhere / 'config.json', record)
    for stage in ('tokenizer', 'nat', 'policy'):
      (elsewhere / stage).symlink_to(self.whole / stage)
    generator = adanat_jax.load(elsewhere, compile_cache=False)
    images = generator.sample([0, 1, 1], num_steps=4, seed=0).images
    self.assertEqual((images.shape, images.dtype), ((3, 8, 8, 1), np.float32))
    self.assertTrue(((images >= 0) & (images <= 1)).all())
    np.testing.assert_array_equal(generator.sample([0])[0], images[0])
    self.assertTrue((generator.sample([0], seed=1)[0] != images[0]).any())
    # Its discriminator chooses among draws, as mode `sample` did.
    score = adanat_jax.load_discriminator(self.whole)
    labels = np.array([0] * 8 + [1] * 4, np.int32)
    plain = generator.sample(labels)
    draws = plain.images
    scores = score(draws, labels)
    self.assertEqual((scores.shape, scores.dtype), ((12,), np.float32))
    self.assertBetween(scores.min(), 1e-6, scores.max() - 1e-6)
    self.assertLess(scores.max(), 1)
    np.testing.assert_array_equal(score(draws, labels), scores)
    self.assertTrue((score(draws, 1 - labels) != scores).all())
    best = adanat_jax.best_of(generator, score, 4).sample(labels)
    np.testing.assert_array_equal(best.passes, 4 * plain.passes)
    self.assertTrue((best.tokens != plain.tokens).any())
    with self.assertRaisesRegex(UserError, 'no workdir: it has no config'):
      adanat_jax.load_discriminator(self.directory)
    with self.assertRaisesRegex(UserError, 'num_steps=3.*learned: 4'):
      generator.sample([0], num_steps=3)

  def test_what_is_missing_is_one_line(self):
    for mode, stage in (('nat', 'tokenizer'), ('report', 'evaluate')):
      result = run(command(self.directory / 'empty', self.cache, mode=mode))
      self.assertEqual(result.returncode, 2, result.stderr)
      self.assertLen(result.stderr.splitlines(), 1, result.stderr)
      self.assertIn('first run: python -m adanat_jax.main --', result.stderr)
      self.assertIn(f' --config.mode={stage}\n', result.stderr)
    result = run(
      command(self.whole, self.cache, mode='sample', sample__num_steps=3)
    )
    self.assertEqual(result.returncode, 2, result.stderr)
    self.assertLen(result.stderr.splitlines(), 1, result.stderr)
    self.assertIn('num_steps=3', result.stderr)
    unjudged = self.directory / 'unjudged'
    unjudged.mkdir()
    shutil.copy(self.whole / 'config.json', unjudged)
    with self.assertRaisesRegex(UserError, 'holds no discriminator; first run'):
      adanat_jax.load_discriminator(unjudged)


if __name__ == '__main__':
  absltest.main()
