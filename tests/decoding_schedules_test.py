"""The list of schedules: what is added there is known wherever one is named."""

from __future__ import annotations

import contextlib
import io
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import numpy as np

from adanat_jax.decoding import schedules, step
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import schedule_search
from adanat_jax.learning.agent import Agent
from adanat_jax.measuring import study
from adanat_jax.measuring.evaluation import Evaluation
from adanat_jax.runtime import files
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import (
  compare,
  evaluate,
  nat,
  nat_held_out,
  sample,
  search,
  search_common,
)
from support.evaluating import random_generator, tiny_config

T = 2


def eager(num_steps: int, num_tokens: int) -> Schedule:
  """No other schedule has these numbers, guidance and options."""
  return Schedule(
    'eager',
    schedules.hand_made(num_steps, curve='pow2', total=num_tokens),
    guided=False,
    options=step.MUSE,
    label='the eager one',
    note='made here',
  )


class ScheduleTest(parameterized.TestCase):
  def test_steps_of_tables_and_agents(self):
    table = schedules.hand_made(5)
    agent = Agent({}, np.zeros((3, 4)), lambda *_: None)
    columns = jax.tree.map(lambda x: np.stack([x, x], axis=1), table)
    for policy, num_steps, is_table in (
      (table, 5, True),
      (columns, 5, True),
      (agent, 3, False),
    ):
      schedule = Schedule('mine', policy)
      self.assertEqual(schedule.num_steps, num_steps)
      self.assertEqual(schedule.is_table, is_table)
      self.assertEqual(schedule.label, 'mine')

  @parameterized.parameters(*schedules.SCHEDULES)
  def test_every_schedule_has_its_name_and_a_label(self, name):
    schedule = schedules.make(name, 8, 256)
    self.assertEqual((schedule.name, schedule.num_steps), (name, 8))
    self.assertNotEqual(schedule.label, name)
    self.assertTrue(schedule.is_table)
    for values in jax.tree.leaves(schedule.policy):
      self.assertEqual((values.shape, values.dtype), ((8,), np.float32))

  def test_mistakes(self):
    with self.assertRaisesRegex(UserError, "no schedule 'best'; .* maskgit"):
      schedules.make('best', T, 16)
    with (
      mock.patch.dict(schedules.SCHEDULES, {'other': eager}),
      self.assertRaisesRegex(UserError, "'eager' of 2 .* must be 'other'"),
    ):
      schedules.make('other', T, 16)


class OneMoreTest(absltest.TestCase):
  """A schedule that is added in one place."""

  def setUp(self):
    super().setUp()
    self.enter_context(contextlib.redirect_stdout(io.StringIO()))
    self.enter_context(mock.patch.dict(schedules.SCHEDULES, {'eager': eager}))
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.config = tiny_config(
      policies=('eager',), num_samples=10, precision_recall=0, save_npz=False
    )
    self.experiment = Experiment(self.config, self.workdir)
    self.generator = random_generator(self.config)
    self.enter_context(
      mock.patch.object(Experiment, 'generator', lambda *_: self.generator)
    )
    # Whatever is decoded, it is by that schedule, and as it asks for.
    self.decoded = []
    for name in ('decode', 'stream'):
      self.enter_context(
        mock.patch.object(Generator, name, self._watched(name))
      )

  def _watched(self, name):
    decode = getattr(Generator, name)

    def watched(generator, schedule, *args, **options):
      self.decoded.append(schedule)
      return decode(generator, schedule, *args, **options)

    return watched

  def assert_decoded(self):
    self.assertNotEmpty(self.decoded)
    expected = eager(T, self.generator.nat.num_tokens)
    for schedule in self.decoded:
      self.assertEqual(schedule.name, 'eager')
      self.assertEqual(schedule.guided, expected.guided)
      self.assertEqual(schedule.options, expected.options)
      np.testing.assert_array_equal(
        schedule.policy.mask_ratio, expected.policy.mask_ratio
      )

  def test_library(self):
    labels = [0, 1, 1]
    images = self.generator.sample(labels, T, 3, 'eager')
    self.assert_decoded()
    made = eager(T, self.generator.nat.num_tokens)
    np.testing.assert_array_equal(
      self.generator.sample(labels, T, 3, made), images
    )

  def test_sample(self):
    self.config.sample.update(
      policy='eager', num_steps=T, classes=(0,), images_per_class=2
    )
    sample.run(self.experiment)
    self.assert_decoded()
    self.assertTrue((self.workdir / 'sample/grid.png').is_file())

  def test_nat_while_it_trains(self):
    self.config.nat.update(
      sample_schedule='eager',
      sample_num_steps=T,
      sample_grid=4,
      frechet_samples=10,
    )
    nat.check_config(self.experiment)
    made = self.generator.tokenizer, self.generator.tokenizer_params
    with mock.patch.object(Experiment, 'network', lambda *_: made):
      samples = nat_held_out.TrainingSamples(self.experiment, {})
    figures = samples(self.generator.nat_params, self.config.nat.num_steps)
    self.assert_decoded()
    self.assertLen(self.decoded, 2)
    self.assertLen(figures, 1)

  def test_published_protocol(self):
    evaluate.run(self.experiment)
    self.assert_decoded()
    (row,) = files.read_json(self.workdir / 'evaluate/results.json')['rows']
    self.assertEqual(
      [row[name] for name in ('name', 'label', 'note', 'num_steps')],
      ['eager', 'the eager one', 'made here', T],
    )
    page = (self.workdir / 'evaluate/results.md').read_text()
    self.assertIn('the eager one', page)

  def test_study(self):
    self.config.evaluate.update(
      protocol='study',
      schedules=('eager',),
      num_seeds=1,
      num_samples=100,
      grid_samples=100,
      max_grid=1,
    )
    measures = mock.Mock(return_value=dict.fromkeys(study.MEASURES, 0.5))
    measures.distance.return_value = 0.5
    with (
      mock.patch.object(study, 'Measures', lambda *_: measures),
      mock.patch.object(policies, 'trainings', lambda *_: []),
    ):
      evaluate.run(self.experiment)
    results = files.read_json(self.workdir / 'evaluate/results.json')
    eager_one, tuned = results['methods']
    self.assertEqual(
      [eager_one[name] for name in ('name', 'label', 'role', 'note')],
      ['eager', 'the eager one', 'hand-made', 'made here'],
    )
    self.assertEqual(tuned['name'], 'tuned')
    *_, measured, _ = self.decoded
    self.decoded = [measured]
    self.assert_decoded()

  def test_comparison(self):
    self.config.evaluate.num_samples = 100
    self.config.compare.schedules = ('eager',)
    compare.check_config(self.experiment)
    evaluation = Evaluation(self.experiment)
    method = next(compare._methods(evaluation, T))
    self.assertEqual(method.role, 'hand-made')
    evaluation.sample(method.schedule, 'seed-0', 2)
    self.assert_decoded()

  def test_search_starts_there(self):
    self.config.search.update(start='eager', num_steps=(T,))
    search.check_config(self.experiment)
    point = search_common.first_point(self.experiment, T)
    table = schedule_search.table_of(point)
    expected = eager(T, self.generator.nat.num_tokens).policy
    np.testing.assert_allclose(table.mask_ratio[:-1], expected.mask_ratio[:-1])
    np.testing.assert_allclose(
      table.sampling_temperature, expected.sampling_temperature
    )

  def test_a_schedule_that_is_not_there_is_named_first(self):
    for mode, field, stage in (
      ('evaluate', 'policies', evaluate),
      ('compare', 'schedules', compare),
    ):
      with self.subTest(mode):
        before = self.config[mode][field]
        self.config[mode][field] = ('autonat_large',)
        with self.assertRaisesRegex(UserError, 'num_steps=2 was given'):
          stage.check_config(self.experiment)
        self.config[mode][field] = before


if __name__ == '__main__':
  absltest.main()
