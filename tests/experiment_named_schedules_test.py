"""Schedules by the names of configs: entries, functions of users, files."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import sys
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import schedules, step, tables
from adanat_jax.errors import UserError
from adanat_jax.experiment import named_schedules
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.stages import evaluate, sample
from adanat_jax.types import PolicyValues
from support.evaluating import random_generator, tiny_config

TABLE = dict(
  mask_ratio=[0.5, 0.0],
  sampling_temperature=[1.0, 0.5],
  masking_temperature=[2, 0],
  guidance_scale=[0, 1],
)


# What a stranger writes.
def sure_of_half(step, observation, keys, carry):
  """Masks again what is entropic; the second step makes all known."""
  unsure = (observation.entropy > 3.0) & observation.masked
  ratio = jnp.where(step == 0, unsure.mean(-1), 0.0)
  warm = jnp.ones(keys.shape)
  return PolicyValues(ratio, warm, 0 * warm, 0 * warm), (), carry


def a_factory(num_steps, num_tokens):
  """Makes a schedule for any number of steps."""
  table = tables.hand_made(num_steps, total=num_tokens)
  return schedules.Schedule('mine', table, options=step.MUSE)


a_table = TABLE
a_number = 7
HERE = __name__


class MakeTest(parameterized.TestCase):
  def file(self, content, suffix='.json'):
    path = pathlib.Path(self.create_tempdir().full_path, f'mine{suffix}')
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text)
    return str(path)

  def setUp(self):
    super().setUp()
    # Run alone, this module has another name.
    sys.modules.setdefault(HERE, sys.modules[__name__])

  def test_entries(self):
    made = named_schedules.make('entropy_bound(bound=2.5)', 3, 16)
    self.assertEqual(made.policy.mask_ratio.tolist(), [2.5] * 3)

  def test_functions_tables_and_factories_of_a_module(self):
    made = named_schedules.make(f'{HERE}:sure_of_half', 2, 16)
    self.assertEqual((made.num_steps, made.is_table), (2, False))
    self.assertEqual(made.label, f'{HERE}:sure_of_half')
    self.assertNotRegex(made.name, '[:/]')
    made = named_schedules.make(f'{HERE}:a_table', 2, 16)
    np.testing.assert_array_equal(made.policy.guidance_scale, [0, 1])
    made = named_schedules.make(f'{HERE}:a_factory', 5, 16)
    self.assertEqual((made.num_steps, made.options), (5, step.MUSE))

  def test_files(self):
    path = self.file(
      {
        **TABLE,
        'mask_ratio': [2.0, 2.0],
        'guided': False,
        'label': 'bounded',
        'options': {'commit': 'entropy_bound', 'order': 'given'},
        'priority': [3, 2, 1, 0],
      }
    )
    made = named_schedules.make(path, 2, 4)
    self.assertEqual((made.label, made.guided), ('bounded', False))
    self.assertTrue(made.options.is_adaptive)
    self.assertEqual(made.priority.tolist(), [3, 2, 1, 0])
    made = named_schedules.make(self.file(TABLE), 2, 4)
    self.assertEqual((made.guided, made.options), (True, step.ADANAT))

  def test_autonats_file_ends_one_step_early(self):
    published = tables.autonat_large()
    lists = {name: x.tolist() for name, x in published.by_name().items()}
    content = '\n'.join(
      [
        f'manual_gen_ratios: {lists["mask_ratio"][:-1]}',
        f'manual_temp: {lists["masking_temperature"][:-1]}',
        f'manual_samp_temp: {lists["sampling_temperature"]}',
        f'manual_cfg: {lists["guidance_scale"]}',
      ]
    )
    made = named_schedules.make(self.file(content, '.yaml'), 8, 256)
    self.assertEqual(made.options, step.AUTONAT)
    jax.tree.map(np.testing.assert_array_equal, made.policy, published)

  @parameterized.parameters(
    ('best', 'no schedule'),
    ('nowhere.json', 'no such file'),
    ('nowhere.yaml', 'no such file'),
    ('not_there_at_all:policy', 'no module not_there_at_all'),
    (f'{HERE}:not_there', 'no attribute'),
    (f'{HERE}:a_number', 'policy is 7; give'),
    (f'{HERE}:a_table', '2 steps, .* 3 were asked for|2 steps, num_steps is 3'),
  )
  def test_wrong_names(self, name, message):
    with self.assertRaisesRegex(UserError, message) as caught:
      named_schedules.make(name, 3, 16)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    ({'options': {'order': 'best'}}, 'options.order is .best.; allowed'),
    ({'options': {'history': 2.5}}, 'options.history is 2.5; allowed is int'),
    ({'options': {'rolled': 1}}, 'options.rolled is 1; allowed is bool'),
    ({'options': {'ordre': 'given'}}, 'known are count_from'),
    ({'options': [1]}, 'known are count_from'),
    ({'guided': 1}, 'give true or false'),
    ({'priority': [1, 'a']}, 'priority is'),
    ({'priority': 3}, 'priority is 3'),
    ({'mask_ratio': [2.0, 0.0]}, 'mask_ratio holds 2.0'),
    ({'mask_ratio': None}, 'give a list of numbers'),
  )
  def test_wrong_files(self, changes, message):
    given = {**TABLE, **changes}
    # JSON is YAML, too.
    for path in (self.file(given), self.file(given, '.yaml')):
      with self.assertRaisesRegex(UserError, message) as caught:
        named_schedules.make(path, 2, 4)
      self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
    '- 1', '{', 'a: !!python/object/apply:os.getcwd []', '[' * 5000, '\x00',
    'manual_gen_ratios: 1\nmanual_temp: 1\nmanual_samp_temp: 1\nmanual_cfg: 1',
  )  # fmt: skip
  def test_no_yaml(self, content):
    with self.assertRaises(UserError) as caught:
      named_schedules.make(self.file(content, '.yaml'), 2, 4)
    self.assertNotIn('\n', str(caught.exception))


class StagesTest(absltest.TestCase):
  """A function of a user, in the modes that take schedules."""

  def setUp(self):
    super().setUp()
    self.enter_context(contextlib.redirect_stdout(io.StringIO()))
    sys.modules.setdefault(HERE, sys.modules[__name__])
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.config = tiny_config(
      policies=(f'{HERE}:sure_of_half', 'maskgit'),
      num_samples=10,
      precision_recall=0,
      save_npz=False,
    )
    generator = random_generator(self.config)
    self.enter_context(
      mock.patch.object(Experiment, 'generator', lambda *_: generator)
    )

  def test_it_is_sampled_and_measured(self):
    self.config.sample.update(
      policy=f'{HERE}:sure_of_half', num_steps=2, classes=(0,)
    )
    sample.run(Experiment(self.config, self.workdir))
    self.assertTrue((self.workdir / 'sample/grid.png').is_file())
    evaluate.run(Experiment(self.config, self.workdir))
    results = json.loads((self.workdir / 'evaluate/results.json').read_text())
    ours, maskgit = results['rows'][:2]
    self.assertIn('sure_of_half', json.dumps(ours))
    self.assertNotEqual(ours['figures'], maskgit['figures'])


if __name__ == '__main__':
  absltest.main()
