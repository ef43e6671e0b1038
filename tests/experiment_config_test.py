"""Every mistake in a config or a flag is one line that names it."""

import json
import pathlib
import re
import shutil
import tempfile
import textwrap

from absl import flags
from absl.testing import absltest, parameterized

from adanat_jax.errors import ConfigError, UserError
from adanat_jax.experiment import (
  config as config_lib,
  config_help,
  fields,
  workdir,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import files
from support import configs, raw_files

_TOY = """
import ml_collections

PRESETS = ('default', 'tiny')

def get_config(preset='default'):
  config = ml_collections.ConfigDict()
  config.mode = 'all'
  config.seed = 0
  config.profile = False
  config.limit = ml_collections.config_dict.placeholder(int)
  config.nat = nat = ml_collections.ConfigDict()
  nat.width = 8 if preset == 'tiny' else 64
  nat.depth = 2
  nat.learning_rate = 1e-3
  nat.betas = (0.9, 0.99)
  nat.levels = (1, 2)
  nat.head_width = config.nat.get_ref('width') // 4
  config.sample = ml_collections.ConfigDict({'count': 4})
  return config
"""


def _toy_file(test: absltest.TestCase, text: str = _TOY) -> str:
  directory = test.enter_context(tempfile.TemporaryDirectory())
  path = pathlib.Path(directory) / 'toy.py'
  path.write_text(textwrap.dedent(text))
  return str(path)


def _parse(*arguments: str) -> flags.FlagValues:
  """Parses a command line into flags of its own."""
  values = flags.FlagValues()
  argv = ['program', *arguments]
  config_lib.define_flag(values)
  flags.DEFINE_string('workdir', None, 'A directory.', flag_values=values)
  config_lib.parse_flags(argv, values)
  return values


class ParseFlagsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.toy = _toy_file(self)

  def test_preset_and_overrides_of_each_type(self):
    values = _parse(
      f'--config={self.toy}:tiny',
      '--config.nat.learning_rate=1',
      '--config.nat.betas=0.5,1',
      '--config.profile',
      '--config.limit',
      '7',
      '--config.mode=nat',
    )
    config = values.config
    self.assertEqual(config.nat.width, 8)
    self.assertEqual(config.nat.betas, (0.5, 1))
    self.assertEqual(config.limit, 7)
    self.assertIs(config.profile, True)
    self.assertEqual(
      config_lib.overrides_of(values),
      {
        'nat.learning_rate': 1.0,
        'nat.betas': (0.5, 1),
        'profile': True,
        'limit': 7,
        'mode': 'nat',
      },
    )
    self.assertEqual(config_lib.source_of(values), f'{self.toy}:tiny')

  def test_derived_fields_follow_an_override(self):
    values = _parse(f'--config={self.toy}', '--config.nat.width=32')
    self.assertEqual(config_lib.to_dict(values.config)['nat']['head_width'], 8)

  def test_resolved_config_is_json(self):
    config = _parse(f'--config={self.toy}').config
    resolved = json.loads(config_lib.to_json(config))
    self.assertEqual(resolved, config_lib.to_dict(config))
    self.assertEqual(resolved['nat']['betas'], [0.9, 0.99])
    self.assertIsNone(resolved['limit'])

  @parameterized.parameters(
    # What is given, and the parts that the line must hold.
    (['nat.wdith=3'], 'config.nat.wdith', 'mean config.nat.width', 'depth'),
    (['width=3'], 'config.width: no such field', 'config.nat.width'),
    (['nat.width.x=3'], 'config.nat.width is a value, not a group'),
    (['nat=3'], 'config.nat is a group', 'learning_rate'),
    (['nat.width=a'], 'config.nat.width=a: wrong type', 'an integer'),
    (['nat.width='], 'config.nat.width=: wrong type', 'an integer'),
    (['nat.width=2.5'], 'config.nat.width=2.5: wrong type', 'an integer'),
    (['nat.width', 'a'], 'config.nat.width=a: wrong type', 'an integer'),
    (['nat.learning_rate=fast'], 'learning_rate=fast', 'a number'),
    (['nat.learning_rate=nan'], 'learning_rate=nan', 'not a number'),
    (['profile=maybe'], 'config.profile=maybe', 'true or false'),
    (['limit=x'], 'config.limit=x', 'an integer'),
    (['nat.levels=1,2.5'], 'config.nat.levels=(1, 2.5)', 'tuple of int'),
    (['nat.levels=a'], "config.nat.levels=('a',)", 'tuple of int'),
    (['nat.betas=(1,'], 'config.nat.betas=(1,', 'a tuple'),
    (['seed'], 'config.seed'),
    ([''], '--config.: no such field', 'config has: limit'),
    (['=3'], '--config.: no such field', 'config has: limit'),
    (['nat.=3'], '--config.nat.: no such field', 'config.nat has: betas'),
  )
  def test_wrong_field_is_named(self, override, *parts):
    override = [f'--config.{override[0]}', *override[1:]]
    with self.assertRaises(UserError) as caught:
      _parse(f'--config={self.toy}', *override)
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    for part in parts:
      self.assertIn(part, message)

  @parameterized.parameters(
    (['--config={toy}:tyni'], "'tyni'", 'default, tiny'),
    (
      ['--config={toy}x'],
      'no such config (did you mean {toy}?); give',
      'in256',
    ),
    (['--config=in265'], 'did you mean in256 or', 'cc3m256, coco256, digits'),
    (
      ['--config={toy}', 'mode=nat'],
      "'mode=nat' is not a flag; did you mean --config.mode=nat?",
    ),
    (['--config={toy}', '--wrokdir=x'], "'--wrokdir=x'", 'mean --workdir=x?'),
    (
      ['--config={toy}', '--nat.width', '3'],
      "'--nat.width' is not a flag; did you mean --config.nat.width?",
    ),
    (['--config={toy}', '--nat.wdith=3'], 'mean --config.nat.width=3 or'),
    (['--config.seed=1'], '--config.seed', 'needs --config=NAME'),
    (['--config'], 'Missing value for flag --config'),
    (['--config={toy}', '--flagfile=/none'], '/none'),
  )
  def test_wrong_command_line_is_named(self, arguments, *parts):
    arguments = [argument.format(toy=self.toy) for argument in arguments]
    with self.assertRaises(UserError) as caught:
      _parse(*arguments)
    self.assertLen(caught.exception.problems, 1)
    for part in parts:
      self.assertIn(part.format(toy=self.toy), str(caught.exception))

  def test_all_mistakes_are_in_one_error_and_the_rest_is_parsed(self):
    values = flags.FlagValues()
    config_lib.define_flag(values)
    flags.DEFINE_integer('count', 1, 'A number.', flag_values=values)
    mistakes = {
      '--nat.width=3': '--config.nat.width=3',
      '--config.nat.widht=3': 'config.nat.width?',
      '--config.nat.depth=a': 'an integer',
      '--config.nat.levels=a': 'tuple of int',
      '--config.limit=x': 'an integer',
      '--config.nat.learning_rate=nan': 'not a number',
      '--count=x': '--count=x',
      '--config.seed': 'Missing value for flag --config.seed',
    }
    right = [f'--config={self.toy}', '--config.nat.betas=0.5,1', '--count=3']
    with self.assertRaises(ConfigError) as caught:
      config_lib.parse_flags(['program', *right, *mistakes], values)
    problems = caught.exception.problems
    self.assertLen(problems, len(mistakes))
    for given, said in mistakes.items():
      about = [line for line in problems if given.partition('=')[0] in line]
      self.assertTrue(any(said in line for line in about), given)
    self.assertEqual(values.config.nat.betas, (0.5, 1))
    self.assertEqual((values.config.nat.width, values.count), (64, 3))

  def test_ours_are_found_by_name(self):
    values = _parse('--config.nat.width=9', '--config=in256:mini')
    self.assertEqual(values.config.data.num_classes, 3)
    self.assertEqual(values.config.nat.width, 9)
    self.assertEqual(config_lib.source_of(values), 'in256:mini')
    self.assertEqual(
      [str(config_lib.default_workdir(s)) for s in ('in256:mini', 'a/b.py')],
      ['runs/in256-mini', 'runs/b'],
    )
    with self.assertRaisesRegex(UserError, 'digits: unknown preset'):
      config_lib.load('digits:digits')

  def test_rerun_keeps_the_other_flags(self):
    _parse(f'--config={self.toy}', '--workdir', 'a b', '--config.mode=nat')
    self.assertEqual(
      config_lib.rerun('--config.mode=all', '--workdir=w'),
      f'python -m adanat_jax.main --config={self.toy} --config.mode=all'
      ' --workdir=w',
    )
    with self.assertRaises(UserError):
      _parse('--hlep', 'me', '--workdir=w')
    self.assertEqual(
      config_lib.rerun('--config=digits'),
      'python -m adanat_jax.main --workdir=w --config=digits',
    )

  @parameterized.parameters(
    ('def get_config(:', 'line 1 of the file: SyntaxError'),
    ('\nimport no_such_thing', 'line 2 of the file: ModuleNotFoundError'),
    ('\n\ndef get_config():\n  return 1 / 0', 'line 4 of the file: ZeroDiv'),
    ('def get_config():\n  return {}', 'returned dict'),
    ('x = 1', 'has no get_config()'),
  )
  def test_broken_file_is_one_line(self, text, expected):
    path = _toy_file(self, text)
    with self.assertRaisesRegex(UserError, 'toy.py') as caught:
      config_lib.load(path)
    self.assertIn(expected, str(caught.exception))

  def test_load_takes_overrides_and_locks(self):
    config = config_lib.load(self.toy, {'nat.width': 16, 'seed': 3})
    self.assertEqual((config.nat.width, config.seed), (16, 3))
    with self.assertRaises(AttributeError):
      config.nat.new_field = 1
    with self.assertRaisesRegex(UserError, 'config.nat.width=a: wrong type'):
      config_lib.load(self.toy, {'nat.width': 'a'})
    with self.assertRaisesRegex(UserError, 'config.nat.x: no such field'):
      config_lib.load(self.toy, {'nat.x': 1})


class HelpTest(absltest.TestCase):
  def test_every_field_of_ours_is_shown_once_with_its_value(self):
    for name in config_lib.known_names():
      config = config_lib.load(name)
      values = dict(config_lib.fields(config))
      lines = config_help.fields(values, name).splitlines()
      shown = [line for line in lines if line.startswith('--')]
      self.assertCountEqual(
        [re.split('[ =]', line)[0] for line in shown],
        [f'--config.{field}' for field in values],
      )

  def test_comments_are_those_of_the_files(self):
    config = config_lib.load('in256', {'nat.width': 5})
    text = config_help.fields(dict(config_lib.fields(config)), 'in256')
    # One of digits.py with the value of in256.py, of a group, of both files.
    self.assertIn(
      '# Decay, at each step, of the moving average of the parameters, which'
      ' decoding\n# uses.\n# ImprovedNAT utils.py.\n--config.nat.ema_decay=',
      text,
    )
    self.assertIn('--config.nat.width=5\n', text)
    self.assertIn('\n--config.policy.ppo.num_epochs is unset\n', text)
    self.assertIn(
      '# CMA-ES: its initial standard deviations; for temperatures they are'
      ' those of\n# the logarithm. For 16 tokens a ratio of 0.07 is about one'
      ' token.\n--config.search.spread.ratio=0.07\n',
      text,
    )
    # Nothing of fields that a preset lacks.
    config = config_lib.load('in256:tiny')
    text = config_help.fields(dict(config_lib.fields(config)), 'in256:tiny')
    self.assertNotIn('EXIF', text)


class ClaimTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.toy = _toy_file(self)
    self.workdir = pathlib.Path(self.toy).parent / 'runs' / 'toy'

  def _claim(self, **overrides):
    overrides = {name.replace('__', '.'): v for name, v in overrides.items()}
    config = config_lib.load(self.toy, overrides)
    workdir.claim(self.workdir, config, overrides, self.toy)

  def test_records_config_overrides_and_source(self):
    self._claim(nat__width=16)
    record = json.loads((self.workdir / config_lib.CONFIG_FILE).read_text())
    self.assertEqual(record['overrides'], {'nat.width': 16})
    self.assertEqual(record['source'], self.toy)
    self.assertEqual(record['config']['nat']['head_width'], 4)

  def test_same_config_and_fields_of_one_run_are_let_in(self):
    self._claim()
    before = (self.workdir / config_lib.CONFIG_FILE).read_bytes()
    self._claim()
    self._claim(mode='sample', sample__count=9, profile=True)
    after = (self.workdir / config_lib.CONFIG_FILE).read_bytes()
    self.assertEqual(before, after)

  def test_other_config_is_refused_with_both_values(self):
    self._claim()
    with self.assertRaises(UserError) as caught:
      self._claim(nat__width=16, seed=5)
    message = str(caught.exception)
    self.assertIn('config.seed is 0 there and 5 here', message)
    self.assertIn('config.nat.width is 64 there and 16 here', message)
    self.assertIn(str(self.workdir), message)

  def test_field_that_one_side_lacks_is_named(self):
    self._claim()
    newer = _toy_file(self, _TOY.replace('nat.depth = 2', 'nat.height = 3'))
    with self.assertRaises(UserError) as caught:
      workdir.claim(self.workdir, config_lib.load(newer), {})
    message = str(caught.exception)
    self.assertIn('config.nat.depth is 2 there and absent here', message)
    self.assertIn('config.nat.height is absent there and 3 here', message)
    # One that nobody has set says nothing.
    unset = _TOY.replace('nat.depth = 2', 'nat.depth = 2\n  nat.height = None')
    workdir.claim(self.workdir, config_lib.load(_toy_file(self, unset)), {})

  def test_a_workdir_of_an_earlier_version_does_what_that_did(self):
    white = (
      'config.data = ml_collections.ConfigDict({"background": (255,) * 3})'
    )
    newer = _toy_file(self, _TOY.replace('  return', f'  {white}\n  return'))
    config = config_lib.load(newer)
    workdir.claim(self.workdir, config, {})
    workdir.claim(self.workdir, config, {})
    self.assertEqual(config.data.background, (255, 255, 255))
    path = self.workdir / config_lib.CONFIG_FILE
    record = json.loads(path.read_text())
    del record['config']['data'], record['format'], record['checksum']
    path.write_text(json.dumps(record))
    workdir.claim(self.workdir, config, {})
    self.assertEqual(config.data.background, ())
    overrides = {'data.background': ()}
    workdir.claim(self.workdir, config_lib.load(newer, overrides), overrides)
    overrides = {'data.background': (0, 0, 0)}
    with self.assertRaisesRegex(UserError, r'background is \[\] there and \[0'):
      workdir.claim(self.workdir, config_lib.load(newer, overrides), overrides)

  def test_file_in_the_way_and_foreign_config_are_one_line(self):
    with self.assertRaisesRegex(UserError, 'toy.py'):
      workdir.claim(pathlib.Path(self.toy), config_lib.load(self.toy), {})
    self.workdir.mkdir(parents=True)
    (self.workdir / config_lib.CONFIG_FILE).write_text('[1]')
    with self.assertRaisesRegex(UserError, 'config.json: .* an object'):
      self._claim()


class CountClassesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.pictures = raw_files.image_folder(self.root / 'pictures', 4).path

  def count(self, workdir_name, **changes):
    given = {'data.path': str(self.pictures), **changes}
    config = configs.load('image_folder.py:tiny', given)
    directory = self.root / workdir_name
    count = workdir.count_classes(Experiment(config, directory))
    if count:
      config.data.num_classes = count
    workdir.claim(directory, config, given)
    return config.data.num_classes

  def test_the_first_run_counts_and_the_workdir_keeps_the_number(self):
    self.assertEqual(self.count('run'), 4)
    self.assertEqual(self.count('text', **{'data.condition': 'text'}), 0)
    self.assertEqual(self.count('given', **{'data.num_classes': 7}), 7)
    shutil.rmtree(self.pictures)
    self.assertEqual(self.count('run'), 4)
    self.assertEqual(Experiment.of_workdir(self.root / 'run').num_classes, 4)
    with self.assertRaisesRegex(UserError, f'{self.pictures}: no such folder'):
      self.count('other')
    self.assertEqual(self.count('none', **{'data.path': ''}), 0)

  def test_prepared_tokens_know_it_without_images(self):
    manifest = {
      'settings': {},
      'layout': {'num_tokens': 16, 'num_classes': 9},
      'splits': {},
    }
    files.write_json(self.root / 'manifest.json', manifest, sealed=True)
    there = {'data.path': '', 'data.prepared': str(self.root)}
    self.assertEqual(self.count('run', **there), 9)


class RulesTest(parameterized.TestCase):
  @parameterized.parameters(
    ('seed', fields.integer(1, 9), '0 is not allowed', 'from 1 to 9'),
    ('mode', fields.choice('a', ''), "'all' is not", "one of a, ''"),
    ('profile', fields.integer(0, 9), 'False is not', 'an integer'),
    ('nat.width', fields.between(0.0, 1.0), '64', 'from 0.0 to 1.0'),
    (
      'seed',
      fields.between(0.0, 1.0, above_low=True),
      '0 is',
      'a number above 0.0, at most 1.0',
    ),
    (
      'nat.width',
      fields.between(0.0, 64.0, below_high=True),
      '64 is',
      'a number from 0.0 to below 64.0',
    ),
    (
      'nat.betas',
      fields.tuple_of(fields.between(0, 1), length=3),
      '(0.9, 0.99)',
      'a tuple of 3 elements, each a number from 0 to 1',
    ),
    (
      'nat.betas',
      fields.tuple_of(fields.integer(0, 1)),
      '(0.9, 0.99)',
      'a tuple of elements, each an integer',
    ),
    (
      'nat.betas',
      fields.some_of(fields.between(0, 1), most=1),
      'at least one element and at most 1, none twice, each a number',
    ),
    ('nat.width', fields.integer(1, 9, step=2), '64', 'an odd integer'),
    (
      'seed',
      fields.integer(2, 8, step=2),
      '0 is',
      'an even integer from 2 to 8',
    ),
    (
      'nat.width',
      fields.zero_or(fields.integer(1, 2)),
      '64',
      '0 or an integer',
    ),
    ('profile', fields.steps(9), 'False is', 'a tuple of 2'),
    ('mode', fields.path('.npz'), "'all'", 'a path that ends in .npz'),
    ('mode', fields.text(2), "'all'", 'a text of at most 2 characters'),
    ('limit', fields.integer(1, 2), 'None is', 'from 1 to 2'),
  )
  def test_broken_rule_names_field_value_and_allowed(self, name, rule, *parts):
    config = config_lib.load(_toy_file(self))
    with self.assertRaises(UserError) as caught:
      fields.check(config, {name: rule})
    for part in (f'config.{name}=', *parts):
      self.assertIn(part, str(caught.exception))

  def test_kept_rules_pass(self):
    rules = {
      'nat.width': fields.integer(1, 64),
      'nat.learning_rate': fields.between(0.0, 1.0, above_low=True),
      'nat.betas': fields.tuple_of(fields.between(0, 1), length=2),
      'limit': fields.optional(fields.integer(1, 2)),
      'profile': fields.boolean,
      'seed': fields.zero_or(fields.integer(5, 9)),
      'nat.none': fields.boolean,
    }
    fields.check(config_lib.load(_toy_file(self)), rules)

  def test_all_mistakes_are_in_one_error(self):
    config = config_lib.load(_toy_file(self))
    rules = {'seed': fields.integer(1, 9), 'nat.none': fields.boolean}

    def joined(config):
      if config.nat.width > config.nat.depth:
        raise UserError('config.nat.width is more than config.nat.depth')

    def needs_seed(config):
      raise UserError(f'never: {config.seed}')

    with self.assertRaises(ConfigError) as caught:
      fields.check(
        config, rules, [joined, needs_seed, joined], required=['nat.none']
      )
    self.assertEqual(
      caught.exception.problems,
      (
        'config.nat.none is missing: give true or false',
        'config.seed=0 is not allowed: give an integer from 1 to 9',
        'config.nat.width is more than config.nat.depth',
      ),
    )

  @parameterized.parameters(float('inf'), float('nan'), -1.0, True, 'x', 1j)
  def test_numbers_refuse(self, value):
    self.assertFalse(fields.between(0.0, 1e300).accepts(value))


if __name__ == '__main__':
  absltest.main()
