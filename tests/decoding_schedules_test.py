"""Schedules: their list, the numbers their sources state, one that is added."""

from __future__ import annotations

import contextlib
import io
import pathlib
import re
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import (
  actions,
  halton,
  loop,
  schedules,
  step,
  tables,
)
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import schedule_search
from adanat_jax.learning.agent import Agent
from adanat_jax.measuring import study
from adanat_jax.measuring.evaluation import Evaluation
from adanat_jax.runtime import files, journal
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import (
  compare,
  evaluate,
  evaluate_study,
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
    tables.hand_made(num_steps, curve='pow2', total=num_tokens),
    guided=False,
    options=step.MUSE,
    label='the eager one',
    note='made here',
  )


class ScheduleTest(parameterized.TestCase):
  def test_steps_of_tables_and_agents(self):
    table = tables.hand_made(5)
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

  @parameterized.parameters('learned', 'hand-made', 'table', 'adanat')
  def test_a_name_that_means_something_else(self, name):
    with self.assertRaisesRegex(UserError, f"can be called '{name}'"):
      schedules.SCHEDULES[name] = eager
    self.assertNotIn(name, schedules.SCHEDULES)

  def test_mistakes(self):
    with self.assertRaisesRegex(UserError, "no schedule 'best'; .* maskgit"):
      schedules.make('best', T, 16)
    with (
      mock.patch.dict(schedules.SCHEDULES, {'other': eager}),
      self.assertRaisesRegex(UserError, "'eager' of 2 .* must be 'other'"),
    ):
      schedules.make('other', T, 16)


class CountsTest(parameterized.TestCase):
  """Counts against google-research/maskgit's arithmetic, in float32."""

  def test_progress(self):
    # A multiplication by 1/T would give .99999994 and .6666667 * .99999994.
    np.testing.assert_array_equal(
      tables.progress_of(6),
      [np.float32(t) / np.float32(6) for t in range(1, 7)],
    )

  @parameterized.parameters(
    *('uniform', 'cosine', 'log', 'exp'), *('pow0.5', 'pow2', 'pow2.5', 'pow3')
  )
  def test_every_number_of_steps_and_of_unknown_tokens(self, curve):
    progress = np.concatenate([tables.progress_of(t) for t in range(1, 65)])
    unknown = np.arange(2, 1025)
    shape = (len(progress), len(unknown))
    # Only these curves ask for the number of unknown tokens.
    columns = len(unknown) if curve in ('log', 'exp') else 1
    done = jnp.broadcast_to(progress[:, None], (len(progress), columns))
    total = jnp.broadcast_to(jnp.float32(unknown[:columns]), done.shape)
    if curve == 'uniform':
      ratio = 1.0 - done
    elif curve == 'cosine':
      ratio = jnp.cos(np.pi / 2.0 * done)
    elif curve == 'log':
      ratio = -jnp.log2(done) / jnp.log2(total)
    elif curve == 'exp':
      ratio = 1 - jnp.exp2(-jnp.log2(total) * (1 - done))
    else:
      ratio = 1.0 - done ** float(curve[3:])
    ratio = np.clip(ratio, np.float32(1e-6), np.float32(1))
    expected = np.floor(unknown.astype(np.float32) * ratio)
    ours = tables.mask_ratio_curve(done, jnp.asarray(unknown[:columns]), curve)
    counts = jax.vmap(
      lambda ratio: step.count_to_mask(
        jnp.broadcast_to(ratio, unknown.shape),
        jnp.asarray(unknown),
        jnp.asarray(unknown),
        1024,
        step.ADANAT,
      )
    )(ours)
    # Never all of them: the decoder's own clamp.
    np.testing.assert_array_equal(
      counts, np.minimum(np.broadcast_to(expected, shape), unknown - 1)
    )

  def test_halton(self):
    for num_steps in range(1, 65):
      for num_tokens in (1, 9, 16, 32, 100, 256, 576, 802, 1024):
        known = halton.halton_counts(num_tokens, num_steps)
        exact = np.float32(num_tokens) * halton.mask_ratio(
          num_tokens, num_steps
        )
        np.testing.assert_array_equal(num_tokens - np.ceil(exact), known)


class ParametersTest(parameterized.TestCase):
  def test_they_are_read_from_the_name(self):
    name = 'halton(rows=2, columns=8, randomize=False, guidance_scale=0)'
    schedule = schedules.make(name, 4, 16)
    self.assertEqual(schedule.name, name)
    self.assertFalse(schedule.guided)
    self.assertFalse(schedule.options.rolled)
    order = np.argsort(-schedule.priority)
    np.testing.assert_array_equal(order, schedules.halton_order(2, 8))
    bound = schedules.make('entropy_bound(bound=0.5)', 4, 16).policy.mask_ratio
    np.testing.assert_array_equal(bound, [0.5] * 4)

  @parameterized.parameters(
    ('halton(rows=3)', 'rows=3 and columns=5'),
    ('halton(rows=2.0)', 'rows=0, columns=0'),
    ('halton(randomize=1)', 'randomize=True'),
    ('halton(16)', 'name=value'),
    ('halton(rows=4', 'name=value'),
    ('halton(rows=4) + 1', 'name=value'),
    ('halton(__import__=4)', 'its parameters'),
    ('halton(rows=open("x"))', 'name=value'),
    ('entropy_bound(bound=float("nan"))', 'name=value'),
    ('entropy_bound(bound=1e999)', 'bound=0.1'),
    ('enat_256(total=9)', 'parameters: guided_steps='),
    ('muse(guided_steps=-1)', 'guidance_scale=10.0, guided_steps=()'),
    ('muse(guided_steps=(0.5,))', 'give numbers of steps'),
    ('best(bound=1)', 'no schedule'),
    ('muse(' + '[' * 300, 'temperature=4.5'),
  )
  def test_mistakes_are_one_line(self, name, message):
    with self.assertRaisesRegex(UserError, re.escape(message)) as caught:
      schedules.make(name, 8, 16)
    self.assertNotIn('\n', str(caught.exception))


class AutoNATTest(absltest.TestCase):
  def test_only_eight_steps(self):
    with self.assertRaisesRegex(UserError, 'num_steps=4'):
      tables.autonat_large(4)

  def test_no_guidance_at_first_and_the_sharpest_sampling_last(self):
    table = tables.autonat_large()
    np.testing.assert_allclose(table.guidance_scale[:3], 1e-4)
    self.assertEqual(int(np.argmin(table.sampling_temperature)), 7)


class AdaGenTest(parameterized.TestCase):
  def test_published_numbers(self):
    table = tables.adagen(16)
    np.testing.assert_allclose(
      table.mask_ratio[jnp.array([0, 1, 7, 14, 15])],
      [0.99519, 0.98080, 0.70718, 0.09811, 0.00010],
      atol=6e-6,
    )
    np.testing.assert_allclose(
      table.masking_temperature[jnp.array([0, 15])],
      [0.93756, 0.00006],
      atol=6e-6,
    )
    np.testing.assert_allclose(
      table.guidance_scale[jnp.array([0, 15])], [0.00006, 0.93756], atol=6e-6
    )

  @parameterized.parameters(4, 8)
  def test_is_what_a_zero_action_of_adanat_gives(self, num_steps):
    values = actions.values_from_action(
      jnp.zeros((num_steps, 4)), actions.published_residual(num_steps)
    )
    table = tables.adagen(num_steps)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), values, table
    )


class ENATTest(parameterized.TestCase):
  """LeapLabTHU/ENAT's README and `libs/nat_misc.py`."""

  @parameterized.parameters(
    ('enat_256', 8, (251, 236, 212, 181, 142, 97, 49, 0)),
    ('enat_256', 4, (236, 181, 97, 0)),
    ('enat_512', 8, (1004, 946, 851, 724, 568, 391, 199, 0)),
    ('enat_512', 4, (946, 724, 391, 0)),
  )
  def test_counts_of_masked_tokens(self, name, num_steps, masked):
    total = int(name.removeprefix('enat_')) ** 2 // 256
    ratio = schedules.make(name, num_steps, total).policy.mask_ratio
    np.testing.assert_array_equal(np.floor(total * np.asarray(ratio)), masked)

  @parameterized.parameters(
    ('enat_256', 5.25, 1.3125, 2.1875), ('enat_512', 3.5, 1.3125, 3.0625)
  )
  def test_published_numbers(self, name, sampling, masking, guidance):
    table = schedules.make(name, 8, 256).policy
    np.testing.assert_allclose(
      table.sampling_temperature[jnp.array([0, 7])], [sampling, 1e-3]
    )
    np.testing.assert_allclose(
      table.masking_temperature[jnp.array([0, 7])], [masking, 0], atol=1e-7
    )
    # It lags a step, so that the first one is unguided.
    np.testing.assert_allclose(
      table.guidance_scale[jnp.array([0, 7])], [0, guidance]
    )


class PublishedDecodeTest(parameterized.TestCase):
  @parameterized.parameters(
    ('autonat_large', 8, step.MASKGIT),
    ('adagen', 16, step.ADANAT),
    ('enat_256', 8, step.ADANAT),
  )
  def test_reveals_every_token(self, name, num_steps, options):
    def denoiser(tokens, condition, cache):
      del condition
      logits = jnp.sin(jnp.arange(64 * 5.0)).reshape(1, 64, 5)
      return tokens[..., None], jnp.repeat(logits, len(tokens), 0), cache

    schedule = schedules.make(name, num_steps, 64)
    self.assertEqual(schedule.options, options)

    @jax.jit
    def decode():
      return loop.decode(
        denoiser,
        schedules.as_policy(schedule.policy),
        tokens=loop.full_mask(2, 64, 5),
        condition=jnp.zeros(2, jnp.int32),
        null_condition=jnp.int32(1),
        keys=loop.sample_keys(jax.random.key(0), 2),
        num_steps=num_steps,
        mask_token=5,
        options=options,
        record=True,
      )

    decoded = decode()
    self.assertLess(int(decoded.tokens.max()), 5)
    masked = np.asarray((decoded.trajectory.tokens == 5).sum(-1))
    ratio = np.asarray(schedule.policy.mask_ratio)
    expected = np.floor(64 * ratio)
    if options.clamp == 'progress':
      expected = np.maximum(expected, 1)
    np.testing.assert_array_equal(masked, np.stack([expected] * 2, 1))


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
    for name in ('parts', 'stream'):
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
    measures.warnings.return_value = ['too few']
    measures.num_real = 30
    judge = files.make_directory(self.workdir / 'judges/measure')
    journal.mark_complete(judge, 1, {'test_accuracy': 1.0})
    with (
      # Floors are decoded by other schedules, in six programs.
      mock.patch.object(evaluate_study, '_floors', lambda _: {}),
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
    told = self.experiment.warnings()
    self.assertIn(('evaluate', 'too few'), told)
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
    # A ledger that an earlier version began lacks some measures.
    row = {'values_per_step': {}, 'committed_per_step': {}}
    measures = dict.fromkeys(study.MEASURES, 1.0)
    rows = [{**row, 'measures': x} for x in ({'recall': 0.5}, measures)]
    entry = evaluation.entry(method, rows)
    self.assertEqual(entry['measures'].keys(), {'recall'})
    self.assertEqual(entry['measures']['recall']['mean'], 0.75)
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
