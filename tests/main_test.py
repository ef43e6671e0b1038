"""The command line, as a user meets it: in a process of its own.

It is forked after the imports, but for one that is fresh.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap

from absl.testing import absltest

import adanat_jax
from adanat_jax.runtime import files, journal
from support import children

_CONFIG = """
import ml_collections

PRESETS = ('tiny',)

def get_config(preset=''):
  return ml_collections.ConfigDict(
    {
      'mode': 'all',
      'seed': 0,
      'data': {'source': 'digits', 'prepared': ''},
      'evaluate': {'protocol': 'published'},
      'width': 8 if preset else 64,
    }
  )
"""

# Runs main with stages that only tell that they ran, or stop as users do.
_STUBBED = """
import sys, types
from adanat_jax import main
from adanat_jax.errors import UserError

def run(name):
  def stage(experiment):
    config = experiment.config
    print(name, config.width, experiment.workdir.name, flush=True)
    if name == 'nat' and config.seed == 1:
      raise UserError('nat/done is missing:\\nrun config.mode=nat')
    if name == 'nat' and config.seed == 2:
      raise KeyboardInterrupt

  def check_config(experiment):
    if name == 'report' and experiment.config.seed == 3:
      raise UserError('config.seed is 3; the report does not like it')

  return types.SimpleNamespace(run=stage, check_config=check_config)

for name, module in main.STAGES.items():
  sys.modules[module] = run(name)
main.run()
"""


class MainTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    directory = self.enter_context(tempfile.TemporaryDirectory())
    self.directory = pathlib.Path(directory)
    self.config = self.directory / 'toy.py'
    self.config.write_text(textwrap.dedent(_CONFIG))

  def _run(self, *arguments, stubbed=True, **environment):
    home = {'HOME': str(self.directory)}
    command = ['-c', _STUBBED] if stubbed else ['-m', 'adanat_jax.main']
    return children.call(
      [*command, *arguments],
      directory=self.directory,
      variables=home | environment,
    )

  def _run_fresh(self, *arguments):
    return subprocess.run(
      [sys.executable, '-m', 'adanat_jax.main', *arguments],
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
      cwd=self.directory,
      env={
        **os.environ,
        'HOME': str(self.directory),
        'PYTHONPATH': str(pathlib.Path(__file__).parents[1]),
      },
    )

  def _run_toy(self, *arguments, preset='', **kwargs):
    return self._run(
      f'--config={self.config}{preset}',
      f'--workdir={self.directory}/w',
      *arguments,
      **kwargs,
    )

  def assert_one_line(self, result, *parts):
    self.assertEqual(result.returncode, 2, result.stderr)
    self.assertLen(result.stderr.splitlines(), 1, result.stderr)
    self.assertStartsWith(result.stderr, 'adanat_jax: ')
    for part in parts:
      self.assertIn(part, result.stderr)

  def test_all_runs_the_pipeline_in_order(self):
    warnings = ['a blur']
    journal.mark_complete(
      files.make_directory(self.directory / 'w/tokenizer'),
      8,
      {},
      None,
      warnings,
    )
    result = self._run_toy(preset=':tiny')
    self.assertEqual(result.returncode, 0, result.stderr)
    # What a finished stage warned of is told again.
    warning, *lines = result.stdout.splitlines()
    self.assertEqual(warning, 'tokenizer: warning: a blur')
    names = [line.split()[0] for line in lines]
    pipeline = ['tokenizer', 'judges', 'nat', 'policy', 'evaluate', 'report']
    self.assertEqual(names, pipeline)
    self.assertEqual(lines[0], 'tokenizer 8 w')
    record = json.loads((self.directory / 'w/config.json').read_text())
    self.assertEqual(record['config']['width'], 8)
    # Without a workdir, in one that is named after the config.
    other = self._run(
      f'--config={self.config}:tiny', '--config.data.source=coco'
    )
    said, *lines = other.stdout.splitlines()
    self.assertIn('this run is kept in runs/toy-tiny', said)
    self.assertTrue((self.directory / 'runs/toy-tiny/config.json').is_file())
    pipeline = ['tokenizer', 'judges', 'prepare', 'nat', 'policy', 'evaluate']
    self.assertEqual(lines, [f'{name} 8 toy-tiny' for name in pipeline])
    own = self._run(
      *(f'--config={self.config}', '--config.data.source=image_folder'),
      '--config.evaluate.protocol=study',
    )
    names = [line.split()[0] for line in own.stdout.splitlines()[1:]]
    self.assertEqual(names, [*pipeline, 'report', 'export'])
    # The same workdir, one stage, and then another config in it.
    result = self._run_toy('--config.mode=sample', preset=':tiny')
    self.assertEqual(result.stdout, 'sample 8 w\n')
    self.assert_one_line(
      self._run_toy(), 'config.width is 8 there and 64 here', 'w was made'
    )

  def test_a_config_that_measures_no_images_has_no_protocol(self):
    text = self.config.read_text()
    self.config.write_text(
      text.replace("'evaluate': {'protocol': 'published'},", '')
    )
    result = self._run_toy('--config.mode=laboratory')
    self.assertEqual(result.stdout, 'laboratory 64 w\n', result.stderr)
    self.assert_one_line(
      self._run_toy('--config.mode=all'), 'config.evaluate is missing'
    )

  def test_a_second_run_of_a_stage_is_refused(self):
    mine = files.only_one(self.directory / 'w', 'nat', 'somebody else is here')
    with mine:
      self.assert_one_line(
        self._run_toy('--config.mode=nat'),
        'another process',
        'running stage nat',
      )
      for mode in ('policy', 'sample'):
        result = self._run_toy(f'--config.mode={mode}')
        self.assertEqual(result.stdout, f'{mode} 64 w\n', result.stderr)
    self.assertEqual(self._run_toy('--config.mode=nat').returncode, 0)

  def test_cache_is_where_it_is_asked_for(self):
    self._run_toy('--jax_cache=off')
    self.assertFalse((self.directory / '.cache').exists())
    self._run_toy(f'--jax_cache_dir={self.directory}/here')
    self.assertLen(list((self.directory / 'here').iterdir()), 1)
    self._run_toy()
    self.assertTrue((self.directory / '.cache/adanat_jax').is_dir())

  def test_mistakes_of_users_are_one_line_and_status_2(self):
    self.assert_one_line(
      self._run('--workdir=here', stubbed=False),
      '--config=NAME is missing',
      'python -m adanat_jax.main --workdir=here --config=digits',
    )
    self.assert_one_line(
      self._run_toy('--config.mode=trian', stubbed=False),
      "config.mode='trian' is not allowed",
      'all, tokenizer, judges, prepare, nat, policy, search, evaluate, report',
    )
    self.assert_one_line(self._run_toy('--config.widht=3'), 'config.width')
    self.assert_one_line(
      self._run_toy('--workdir=gs://bucket/run'), 'gs://bucket/run: a directory'
    )
    self.assert_one_line(
      self._run_toy(f'--workdir={"x" * 300}'), 'no name that'
    )
    for mistake in (['--workdir= '], ['--workdir', '--jax_cache=off']):
      self.assert_one_line(self._run_toy(*mistake), 'a directory is needed')
    self.assert_one_line(
      self._run_toy('--distributed=on', stubbed=False),
      '--coordinator_address=HOST:PORT is missing',
      '--distributed=off runs one process',
    )

  def test_all_mistakes_are_told_at_once_and_nothing_is_written(self):
    result = self._run(
      *('--config=in256', '--workdir=w', '--nat.width=3', '--num_processes=x'),
      *('--config.nat.widht=3', '--config.policy.iterate=bset'),
      stubbed=False,
    )
    self.assertEqual(result.returncode, 2)
    lines = result.stderr.splitlines()
    expected = (
      ('config.policy.iterate=', 'give one of last, best, average'),
      ('--config.nat.widht: ', 'did you mean config.nat.width?'),
      ('flag --num_processes=x', ''),
      ("'--nat.width=3' is not a flag", '--config.nat.width=3'),
      ('config.data.path is empty; give', '(docs/imagenet256.md)'),
      ('config.evaluate.inception.init_from is empty', '(docs/weights.md)'),
      ('config.policy.discriminator.held_out is 1024', '(docs/imagenet256.md)'),
      ('config.judges.reward.init_from is empty', '(docs/weights.md)'),
    )
    for line, (start, remedy) in zip(lines, expected, strict=True):
      self.assertStartsWith(line, f'adanat_jax: {start}')
      self.assertIn(remedy, line)
    self.assertFalse((self.directory / 'w').exists())
    # Where processes are to meet, flags come first.
    self.assert_one_line(
      self._run_toy('--distributed=local', '--wrokdir=x'), '--workdir=x'
    )

  def test_help_and_version(self):
    result = self._run_fresh('--help')
    self.assertEqual(result.returncode, 0, result.stderr)
    for part in ('--workdir  ', '  in256_enat  ', '--config=NAME --help'):
      self.assertIn(part, result.stdout)
    result = self._run(
      *(f'--config={self.config}:tiny', '--help', '--config.seed=7')
    )
    self.assertIn('--config.width=8\n', result.stdout)
    self.assertIn('--config.seed=7\n', result.stdout)
    result = self._run('--version', stubbed=False)
    self.assertEqual(result.stdout, f'adanat_jax {adanat_jax.__version__}\n')

  def test_last_stage_may_refuse_the_config_before_the_first_runs(self):
    result = self._run_toy('--config.seed=3')
    self.assert_one_line(result, 'config.seed is 3')
    self.assertEqual(result.stdout, '')
    self.assertFalse((self.directory / 'w').exists())

  def test_mistake_found_by_a_stage_is_one_line(self):
    result = self._run_toy('--config.seed=1')
    self.assert_one_line(result, 'nat/done is missing: run config.mode=nat')
    self.assertNotIn('policy', result.stdout)

  def test_a_run_that_is_refused_at_once_does_not_keep_the_directory(self):
    for name in ('w', 'a/b/w'):
      place = self.directory / name
      arguments = (f'--workdir={place}', '--config.mode=nat')
      self.assert_one_line(self._run_toy('--config.seed=1', *arguments))
      self.assertFalse((self.directory / name.split('/')[0]).exists())
    place.mkdir(parents=True)
    self.assert_one_line(self._run_toy('--config.seed=1', *arguments))
    self.assertEmpty(list(place.iterdir()))
    # Where there is something, it belongs to the config that made it.
    self.assertEqual(self._run_toy(*arguments).returncode, 0)
    (place / 'config.json').rename(place / 'other')
    self.assert_one_line(self._run_toy('--config.seed=1', *arguments))
    self.assertLen(list(place.iterdir()), 2)

  def test_the_home_directory(self):
    result = self._run_toy('--workdir=~/in/house', '--config.mode=nat')
    self.assertEqual(result.stdout, 'nat 64 house\n', result.stderr)
    self.assertTrue((self.directory / 'in/house/config.json').is_file())
    result = self._run_toy(
      '--config.data.prepared=~/p', '--config.mode=prepare'
    )
    self.assertEqual(result.returncode, 0, result.stderr)
    record = json.loads((self.directory / 'w/config.json').read_text())
    self.assertEqual(record['config']['data']['prepared'], '~/p')
    self.assertTrue((self.directory / 'p').is_dir())

  def test_a_cache_that_others_may_write_is_refused(self):
    place = self.directory / 'cache'
    place.mkdir()
    place.chmod(0o777)
    self.assert_one_line(
      self._run_toy(f'--jax_cache_dir={place}', '--config.mode=nat'),
      f'{place} may be written by others',
    )

  def test_ctrl_c_between_training_loops_has_no_traceback(self):
    result = self._run_toy('--config.seed=2')
    self.assertEqual(result.returncode, 130)
    self.assertNotIn('Traceback', result.stderr)
    self.assertIn('the same command continues', result.stderr)


if __name__ == '__main__':
  absltest.main()
