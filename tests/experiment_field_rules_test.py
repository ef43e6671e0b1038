"""Every field of every config has a rule, and all mistakes come at once."""

import json
import math
import pathlib

from absl.testing import absltest, parameterized
import ml_collections

from adanat_jax import main
from adanat_jax.data import digits, images
from adanat_jax.data.sources import registry
from adanat_jax.errors import ConfigError, UserError
from adanat_jax.experiment import (
  config as config_lib,
  field_rules,
  fields,
  policies,
  rewards,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import ppo, vq
from adanat_jax.learning.discriminator import LOSSES
from adanat_jax.models import clip, discriminator
from adanat_jax.report import published_figures
from adanat_jax.runtime import files
from support import configs, workdirs


class TableTest(parameterized.TestCase):
  def test_every_preset_is_looked_at(self):
    self.assertGreater(len([*configs.presets()]), 30)

  def test_every_field_has_a_rule_that_its_defaults_keep(self):
    self.assertSameElements(configs.defaults(), field_rules.RULES)
    for name, values in configs.defaults().items():
      for value in values:
        self.assertTrue(
          field_rules.RULES[name].accepts(value), f'{name}={value!r}'
        )

  def test_wrong_values_are_refused_and_nothing_is_raised(self):
    taken = {}
    for name, values in configs.defaults().items():
      rule = field_rules.RULES[name]
      for odd in configs.odd_values(values[0]):
        # Nothing is right for what may be left unset.
        if rule.accepts(odd) and not (odd is None and None in values):
          taken.setdefault(name, []).append(odd)
    expected = {
      name: ['no such name'] for name in taken if '' in configs.defaults()[name]
    }
    expected['seed'] = expected['sample.seed'] = [10**9]
    # No colour: alpha is dropped.
    expected['data.background'] = expected['export.tables'] = [()]
    expected['edit.labels'] = [(), ('no such name',), ('x' * 300,)]
    expected['edit.box'] = expected['edit.sides'] = [()]
    expected['policy.drawn_num_steps'] = [()]
    expected['policy.guided_steps'] = [(), (-1,)]
    expected['sample.captions'] = [(), ('no such name',) * 2, ('x' * 300,) * 2]
    self.assertEqual(taken, expected)

  @parameterized.parameters(
    ('nat.dropout_rate', 1.0),
    ('nat.condition_dropping', 1.0),
    ('nat.label_smoothing', 1.0),
    ('nat.ema_decay', 1.0),
    ('policy.ema_decay', 1.0),
    ('tokenizer.codebook_decay', 1.0),
    ('tokenizer.betas', (0.9, 1.0)),
    ('tokenizer.warmup_fraction', 1.0),
    ('judges.measure.learning_rate', 0.0),
    ('judges.reward.learning_rate', math.inf),
    ('policy.discriminator.learning_rate', 0.0),
    ('judges.reward.patch_size', 0),
    ('judges.reward.depth', 1_000_000_007),
    ('judges.reward.hooks', ()),
    ('judges.measure.widths', ()),
    ('tokenizer.width_multipliers', ()),
    ('nat.depth', 3),
    ('nat.depth', -2),
    ('nat.mlp_ratio', 0),
    ('log_every', 0),
    ('save_every', 0),
    ('keep_every', -1),
    ('policy.log_every', 0),
    ('evaluate.num_buckets', -1),
    ('evaluate.precision_recall', 3),
    ('evaluate.density_coverage', 5),
    ('evaluate.kernel_distance', 3),
    ('nat.frechet_samples', 1),
    ('profile', (5, 3)),
    ('seed', 2**32),
    ('sample.seed', 2**32),
    ('mesh.fsdp', -1),
    ('statistics.output', 'moments.txt'),
    ('nat.init_from', 'x' * 5000),
    ('nat.beta', (12.0,)),
    ('nat.mask_ratio', 'pow0'),
    ('nat.mask_ratio', 'pow<exponent>'),
    ('nat.encoder_depth', 0),
    ('nat.decoder_depth', 0),
    ('nat.reuse_probability', 1.5),
    ('tokenizer.betas', (0.5,)),
    ('tokenizer.adversarial.start_fraction', 1.5),
    ('policy.num_steps', (4, 4)),
    ('policy.network.hidden_size', 0),
    ('policy.network.mlp_widths', (8,)),
    ('policy.ppo.final_std', 0.0),
    ('policy.ppo.num_epochs', 0),
    ('policy.ppo.clip_epsilon', 0.0),
    ('policy.ppo.micro_batches', 0),
    ('policy.discriminator.kernel_size', 8),
    ('search.num_steps', (0,)),
    ('search.evaluations', 0),
    ('search.num_samples', 1),
    ('search.training_steps', 0),
    ('search.descent.ratio_rate', 0.0),
    ('compare.num_steps', (1,)),
    ('compare.num_steps', (4, 4)),
    ('compare.num_buckets', 0),
    ('evaluate.num_samples', 5),
  )
  def test_what_would_go_wrong_hours_later_is_refused(self, name, value):
    self.assertFalse(field_rules.RULES[name].accepts(value))

  @parameterized.parameters(
    ('nat.depth', 0),
    ('nat.dropout_rate', 0),
    ('nat.mask_ratio', 'arccos'),
    ('nat.mask_ratio', 'pow2.5'),
    ('policy.ppo.learning_rate', None),
    ('seed', 2**32 - 1),
    ('sample.seed', 2**32 - 1),
    ('profile', (2, 4)),
    ('evaluate.precision_recall', 0),
    ('evaluate.density_coverage', 0),
    ('evaluate.kernel_distance', 4),
    ('data.path', 'pictures/{00000..00099}.tar'),
    ('sample.captions', ()),
  )
  def test_what_works_is_allowed(self, name, value):
    self.assertTrue(field_rules.RULES[name].accepts(value))

  @parameterized.parameters(
    ('mode', ('all', *main.STAGES, 'frontier')),
    ('tokenizer.error', vq.ERRORS),
    ('policy.preset', ppo.PRESETS),
    ('policy.residual', policies.RESIDUALS),
    ('policy.discriminator.loss', LOSSES),
    ('evaluate.rounding', ('none', *images.ROUNDINGS)),
    ('evaluate.benchmark', ('', *published_figures.BENCHMARKS)),
    ('evaluate.clip.tower', clip.TOWERS),
    ('data.source', ('digits', *registry.SOURCES)),
  )
  def test_choices_are_those_that_there_are(self, name, options):
    self.assertEqual(
      field_rules.RULES[name].allowed, fields.choice(*options).allowed
    )

  def test_elements_and_conditions_are_those_that_there_are(self):
    kinds = fields.some_of(fields.choice(*policies.KINDS))
    self.assertEqual(field_rules.RULES['policy.kinds'].allowed, kinds.allowed)
    several = fields.some_of(fields.choice(*rewards.REWARDS))
    allowed = field_rules.RULES['policy.rewards'].allowed
    self.assertEqual(allowed, several.allowed)
    self.assertEqual(field_rules.GROUP_SIZE, discriminator.GROUP_SIZE)
    for name in digits.CONDITION_NAMES:
      self.assertTrue(field_rules.RULES['data.condition'].accepts(name))


class CheckTest(parameterized.TestCase):
  def test_presets_of_the_digits_pass(self):
    for source in ('digits.py', 'digits.py:full', 'in256.py:tiny'):
      configs.check(source)

  def test_all_that_is_missing_is_said_at_once(self):
    with self.assertRaises(ConfigError) as caught:
      configs.check('in256.py')
    problems = caught.exception.problems
    self.assertLen(problems, 4)
    for problem, field in zip(
      problems,
      (
        'data.path',
        'evaluate.inception.init_from',
        'policy.discriminator.held_out',
        'judges.reward.init_from',
      ),
      strict=True,
    ):
      self.assertStartsWith(problem, f'config.{field} is ')
      self.assertNotIn('\n', problem)

  def test_fields_and_what_joins_them_come_in_one_message(self):
    with self.assertRaises(ConfigError) as caught:
      configs.check(
        'in256.py',
        nat__depth=3,
        nat__num_heads=5,
        evaluate__batch_size=-1,
        seed=-1,
      )
    message = str(caught.exception)
    self.assertLen(message.splitlines(), 8)
    for part in (
      'config.nat.depth=3 is not allowed: give an even integer from 0',
      'config.nat.num_heads is 5; give a divisor of config.nat.width',
      'config.evaluate.batch_size=-1 is not allowed: give an integer from 0',
      'config.seed=-1 is not allowed: give an integer from 0 to 4294967295',
    ):
      self.assertIn(part, message)

  def test_what_a_broken_field_decides_is_left_for_later(self):
    # 5 heads do not divide any width, but this one says nothing.
    with self.assertRaises(ConfigError) as caught:
      configs.check('digits.py', nat__width='wide', nat__num_heads=5)
    self.assertEqual(
      caught.exception.problems,
      (
        "config.nat.width='wide' is not allowed: give an integer from 1 to"
        ' 16384',
      ),
    )

  def test_a_field_that_is_missing_is_named_by_who_reads_it(self):
    config = configs.load('digits.py')
    with config.unlocked():
      del config.nat.width
      del config.report
    field_rules.check(config)
    with self.assertRaisesRegex(
      UserError,
      '^config.nat.width is missing: give an integer from 1 to 16384$',
    ):
      field_rules.check(config, reads=('nat',))
    with self.assertRaisesRegex(
      UserError, 'config.report is missing: .* report.images_per_class, report'
    ):
      field_rules.check(config, reads=('data', 'report'))
    # Fields of files and of captions are missed where they are read alone.
    field_rules.check(config, reads=('data', 'prepare', 'text'))
    config.data.source = 'coco'
    with self.assertRaisesRegex(UserError, r'config\.data\.path is missing'):
      field_rules.check(config, reads=('data',))

  def test_an_error_in_a_check_is_not_hidden(self):
    config = ml_collections.ConfigDict({'seed': 0})
    with self.assertRaises(AttributeError):
      field_rules.check(config, lambda config: config.no_such_field)

  def test_values_are_shortened(self):
    for value in ('x' * 10_000, 10**5000, (0,) * 10_000):
      config = ml_collections.ConfigDict({'nat': {'width': value}})
      with self.assertRaises(UserError) as caught:
        field_rules.check(config)
      self.assertLess(len(str(caught.exception)), 400)

  def test_values_keep_their_characters_escaped(self):
    config = ml_collections.ConfigDict({'data': {'path': 'a\n\x1b[2Jb'}})
    with self.assertRaisesRegex(UserError, r"config.data.path='a\\n\\x1b"):
      field_rules.check(config)


class LoadTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = workdirs.unpack(
      pathlib.Path(self.create_tempdir().full_path)
    )
    self.record = files.read_json(self.workdir / 'config.json')

  def load(self, **overrides):
    """The config of an older workdir, with some of its fields changed."""
    for name, value in overrides.items():
      section, _, field = name.partition('__')
      self.record['config'][section][field] = value
    files.write_json(self.workdir / 'config.json', self.record)
    return Experiment.of_workdir(self.workdir).config

  def test_fields_of_newer_versions_are_not_missed(self):
    for name in ('network', 'attention', 'reuse_probability'):
      self.record['config']['nat'].pop(name, None)
    config = self.load(search__start='in a way that is gone')
    self.assertIsInstance(config.tokenizer.width_multipliers, tuple)

  def test_what_cannot_be_made_is_refused(self):
    with self.assertRaisesRegex(
      UserError, 'config.nat.depth=1000000000 is not'
    ):
      self.load(nat__depth=10**9)

  @parameterized.parameters(
    ([], 'an object'),
    ({}, 'config is missing'),
    (None, 'an object'),
    ({'config': 3}, 'config must be an object'),
    ({'config': {'nat': {}}}, 'config.nat.width is missing'),
    ({'config': {'nat': 3, 'mesh': []}}, 'config.mesh.fsdp is missing'),
  )
  def test_another_file_is_refused(self, record, words):
    self.record = record
    with self.assertRaisesRegex(UserError, words):
      self.load()

  def test_every_preset_survives_being_written(self):
    for source in configs.presets():
      written = json.loads(config_lib.to_json(config_lib.load(source)))
      config = config_lib.from_json(written)
      field_rules.check(config)
      self.assertEqual(config_lib.to_dict(config), written)


if __name__ == '__main__':
  absltest.main()
