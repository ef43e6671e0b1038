"""Stage `search`: what it leaves, killed and resumed, with trainings too."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import sys
from unittest import mock

from absl import logging
from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax import main
from adanat_jax.data.examples import ArrayExamples
from adanat_jax.decoding import step as step_lib
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  config as config_lib,
  named_schedules,
  networks,
  workdir as workdir_lib,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import schedule_search
from adanat_jax.measuring import scores
from adanat_jax.runtime import files, metric_writer
from adanat_jax.sampling import program
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import nat as nat_stage, search, search_common
from support import configs, random_weights, small_weights

Scorer = scores.Scorer


def setUpModule():
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.


def tiny_config(**fields):
  """A search of two numbers of steps by little networks."""
  return configs.load(
    'digits.py:tiny',
    {
      'tensorboard': False,
      'nat.width': 16,
      'nat.depth': 0,
      'nat.num_heads': 2,
      'tokenizer.width_multipliers': (1, 1, 1),
      'evaluate.network': 'pixels',
      'evaluate.batch_size': 24,
      'search.num_steps': (2,),
      'search.evaluations': 5,
      'search.num_samples': 24,
      'search.fresh_samples': 24,
    },
    **fields,
  )


def tree_of(directory):
  """Contents of all files that a search leaves, by name."""
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


class Dies:
  """Lets a function be called so often, and once no more."""

  def __init__(self, function, calls):
    self.function, self.calls, self.died = function, calls, False

  def __call__(self, *args, **kwargs):
    if not self.calls and not self.died:
      self.died = True
      raise InterruptedError('killed')
    self.calls -= 1
    return self.function(*args, **kwargs)

  def __get__(self, instance, owner):
    return lambda *args, **kwargs: self(instance, *args, **kwargs)


class StageTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    config = tiny_config()
    nat = networks.nat_module(config)
    tokenizer = networks.tokenizer_module(config)
    make = random_weights.random_variables
    tokens = jnp.zeros((1, nat.num_tokens), jnp.int32)
    cls.tokenizer_params = make(tokenizer, jnp.zeros((1, 16, 16, 1)))['params']
    cls.generator = Generator(
      nat,
      make(nat, tokens, jnp.zeros(1, jnp.int32))['params'],
      tokenizer,
      cls.tokenizer_params,
      networks.num_classes(config),
      {},
      config.evaluate.batch_size,
    )
    # Its settings are those of all searches here.
    directory = pathlib.Path(cls().create_tempdir('scorer').full_path)
    with contextlib.redirect_stdout(io.StringIO()):
      cls.scorer = Scorer(Experiment(config, directory))

  def setUp(self):
    super().setUp()
    self.output = self.enter_context(contextlib.redirect_stdout(io.StringIO()))
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.enter_context(
      mock.patch.object(scores, 'Scorer', lambda *_: self.scorer)
    )

  def search(self, config, workdir=None):
    """Runs the stage on the random networks."""
    with mock.patch.object(Experiment, 'generator', lambda *_: self.generator):
      search.run(Experiment(config, workdir or self.workdir))

  def test_what_a_search_leaves(self):
    config = tiny_config(search__common_noise=('on', 'off'))
    seen, measure = [], Scorer.__call__

    def spy(scorer, generator, schedule, **options):
      seen.append({**options, 'options': schedule.options})
      return measure(scorer, generator, schedule, **options)

    compiled = program.decode_batch._cache_size()
    with mock.patch.object(Scorer, '__call__', spy):
      self.search(config)
    # Two searches, all points, and on two fresh seeds the best table of each
    # and that at which both begin; within a generation they are still there.
    self.assertLen(seen, 2 * (5 + 2) + 2)
    # Once, unless another test has.
    self.assertLess(program.decode_batch._cache_size(), compiled + 2)
    self.assertEqual({o['options'] for o in seen}, {step_lib.AUTONAT})
    seeds = [options['seed'] for options in seen]
    self.assertLen(set(seeds[:5]), 1)
    self.assertLen(set(seeds[9:14]), 5)
    self.assertLen(set(seeds[5:9]), 2)
    self.assertEqual(seeds[7:9], seeds[14:])
    self.assertEmpty(set(seeds[5:9]) & set(seeds[:5] + seeds[9:14]))

    directory = self.workdir / 'search/T2-cma-on-0'
    rows = metric_writer.read_metrics(directory)
    self.assertEqual([row['step'] for row in rows], [1, 2, 3, 4, 5])
    distances = [row['distance'] for row in rows]
    results = files.read_json(directory / 'results.json')
    tables = results['tables']
    self.assertEqual(results['best_distance_in_search'], min(distances))
    best = rows[int(np.argmin(distances))]
    self.assertEqual(
      tables['best']['searched'],
      {name: best[name] for name in tables['best']['searched']},
    )
    self.assertEqual(tables['start']['searched']['guidance_scale'], [0.5, 1.0])
    self.assertNotEqual(tables['last']['searched'], tables['best']['searched'])
    for row in tables.values():
      self.assertAlmostEqual(
        row['fresh']['mean'], np.mean(row['fresh']['values']), places=12
      )
    # The sampler takes the table, and makes of it what the search measured.
    labels = np.arange(24) % 2
    point = json.loads((directory / 'ledger.jsonl').read_text().split('\n')[1])
    point = np.array(point['value']['point'])
    key = jax.random.key(5)
    images = self.generator.run(
      Schedule(
        'searched', schedule_search.table_of(point), options=step_lib.AUTONAT
      ),
      labels,
      key,
    ).images
    path = self.workdir / 'start.json'
    search_common.write_table(path, tables['start'])
    table = named_schedules.read_file(str(path)).policy
    np.testing.assert_array_equal(
      self.generator.sample(labels, 2, 5, table), images
    )
    for name in ('last', 'best'):
      table = named_schedules.read_file(str(directory / f'{name}.json')).policy
      self.assertEqual(search_common.table_lists(table), tables[name]['table'])

  @parameterized.parameters('cma', 'finite_differences')
  def test_killed_and_resumed(self, optimizer):
    config = tiny_config(search__optimizers=(optimizer,))
    other = self.workdir / 'other'
    self.search(config, other)
    # In its fourth evaluation; in the second seed of its first table.
    for calls in (3, 2 + 1):
      dies = Dies(Scorer.__call__, calls)
      with (
        mock.patch.object(Scorer, '__call__', dies),
        self.assertRaises(InterruptedError),
      ):
        self.search(config)
    ledger = self.workdir / f'search/T2-{optimizer}-on-0/ledger.jsonl'
    with ledger.open('a') as file:
      file.write('{"name": "fresh/la')
    self.search(config)
    self.assertEqual(
      tree_of(self.workdir / 'search'), tree_of(other / 'search')
    )

  def test_a_search_is_made_longer(self):
    self.search(tiny_config(search__evaluations=3))
    directory = self.workdir / 'search/T2-cma-on-0'
    before = metric_writer.read_metrics(directory)
    self.search(tiny_config())
    after = metric_writer.read_metrics(directory)
    self.assertLen(after, 5)
    self.assertEqual(after[:3], before)
    self.assertEqual(files.read_json(directory / 'complete.json')['step'], 5)
    # What is finished is left alone.
    with mock.patch.object(Scorer, '__call__', None):
      self.search(tiny_config())
      self.search(tiny_config(search__evaluations=4))

  def test_searches_of_more_steps_start_where_those_of_fewer_ended(self):
    config = tiny_config(search__num_steps=(4, 2), search__start='fewer_steps')
    distances = lambda scorer, generator, schedule, **_: {
      'frechet_pixels_24': float(np.sum(schedule.policy.guidance_scale))
    }
    with mock.patch.object(Scorer, '__call__', distances):
      self.search(config)
    start, ended = (
      files.read_json(self.workdir / f'search/{name}-cma-on-0/results.json')
      for name in ('T4', 'T2')
    )
    ended, start = (
      schedule_search.point_of(
        search_common.table_of_lists(results['tables'][name]['searched'])
      )
      for results, name in ((ended, 'last'), (start, 'start'))
    )
    expected = schedule_search.stretched(ended, 4)
    np.testing.assert_allclose(start, expected, rtol=1e-6)
    self.assertFalse(np.allclose(start, schedule_search.first_point(4)))
    # And they look around by half.
    for num_steps, low, high in ((2, 0.15, 1.0), (4, 0.02, 0.15)):
      rows = metric_writer.read_metrics(
        self.workdir / f'search/T{num_steps}-cma-on-0'
      )
      guidance = np.array([row['guidance_scale'] for row in rows])
      spread = np.abs(guidance[1:] - guidance[0]).mean()
      self.assertBetween(spread, low, high)
    # Made longer, those of fewer steps end elsewhere, and these go on.
    config.search.evaluations = 12
    with mock.patch.object(Scorer, '__call__', distances):
      self.search(config)
    longer = metric_writer.read_metrics(self.workdir / 'search/T4-cma-on-0')
    self.assertEqual(longer[: len(rows)], rows)

  def test_other_settings_and_other_points_are_refused(self):
    self.search(tiny_config(search__evaluations=1))
    with self.assertRaisesRegex(UserError, 'config.search.num_samples=24 and'):
      self.search(tiny_config(search__num_samples=48))
    with (
      mock.patch.object(
        schedule_search, 'first_point', lambda num_steps: np.full(6, 0.5)
      ),
      self.assertRaisesRegex(UserError, 'evaluation 0 was made elsewhere'),
    ):
      self.search(tiny_config())

  def test_a_distance_that_is_none_ends_the_search(self):
    figures = {'frechet_pixels_24': float('nan')}
    with (
      mock.patch.object(Scorer, '__call__', lambda *_, **__: figures),
      self.assertRaisesRegex(UserError, 'evaluation 0 is nan'),
    ):
      self.search(tiny_config())

  def test_autonats_search_as_published(self):
    config = configs.load(
      'in256.py:autonat',
      {
        'nat.init_from': 'nat',
        'tokenizer.init_from': 'vqgan',
        'evaluate.inception.init_from': 'inception',
        # Whether it can be read, the run finds out.
        'evaluate.statistics': __file__,
      },
    )
    self.assertEqual(main._names_of_stages(config), ('search',))
    experiment = Experiment(config, 'unused')
    search.check_config(experiment)
    (which,) = search_common.of(experiment)
    self.assertEqual(
      which, search_common.Search(8, 'finite_differences', 'off', 0)
    )
    # An evaluation has noise of its own.
    self.assertLen({which.seed(i) for i in range(3101)}, 3101)
    section = config.search
    self.assertEqual(
      schedule_search.Descent(**section.descent),
      schedule_search.Descent(0.01, 0.1, 1e-3, 0.1, 0.5, 0.0),
    )
    first = search_common.first_point(experiment, 8)
    steps = np.arange(1, 9)
    np.testing.assert_allclose(
      first,
      [
        *np.cos(np.pi / 2 * steps[:-1] / 8),
        *(1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25),
        *[1.0] * 8,
        *steps / 8,
      ],
    )
    # 100 updates, and where they end: 155 million images.
    self.assertEqual(section.evaluations, 100 * (len(first) + 1) + 1)
    self.assertEqual(section.evaluations * section.num_samples, 155_050_000)
    self.assertEqual(config.evaluate.labels, 'uniform')
    self.assertEqual(
      (config.nat.mask_ratio, config.nat.beta), ('beta', (12, 3))
    )

  def test_autonats_search_in_little(self):
    config = configs.load(
      'in256.py:autonat_tiny',
      search__num_samples=24,
      search__fresh_samples=24,
      evaluate__batch_size=24,
      tensorboard=False,
    )
    published = configs.load('in256.py:autonat').search
    # Sizes, and the difference that 16 tokens need.
    apart = {
      name
      for name, value in config_lib.fields(config.search)
      if dict(config_lib.fields(published))[name] != value
    }
    self.assertEqual(
      apart,
      {
        *('num_steps', 'evaluations', 'num_samples', 'fresh_samples'),
        *('training_steps', 'descent.ratio_difference'),
      },
    )
    self.search(config)
    directory = self.workdir / 'search/T2-finite_differences-off-0'
    rows = metric_writer.read_metrics(directory)
    self.assertLen(rows, 2 * 7 + 1)
    results = files.read_json(directory / 'results.json')
    self.assertEqual(
      results['tables']['last']['searched']['guidance_scale'],
      rows[-1]['guidance_scale'],
    )

  def test_a_workdir_takes_another_search(self):
    workdir_lib.claim(self.workdir, tiny_config(), {})
    workdir_lib.claim(self.workdir, tiny_config(search__repetitions=2), {})
    with self.assertRaisesRegex(UserError, 'config.nat.width'):
      workdir_lib.claim(self.workdir, tiny_config(nat__width=32), {})

  def test_a_table_without_guidance(self):
    config = tiny_config(search__guided=False)
    seen, measure = [], Scorer.__call__

    def spy(scorer, generator, schedule, **options):
      seen.append(
        (schedule.guided, np.asarray(schedule.policy.guidance_scale).tolist())
      )
      return measure(scorer, generator, schedule, **options)

    with mock.patch.object(Scorer, '__call__', spy):
      self.search(config)
    self.assertEqual({(x, *y) for x, y in seen}, {(False, 0, 0)})
    path = self.workdir / 'search/T2-cma-on-0/best.json'
    read = named_schedules.read_file(str(path))
    experiment = Experiment(config, self.workdir)
    (which,) = search_common.of(experiment)
    found = search_common.found(experiment, which)
    for schedule in (read, found):
      self.assertFalse(schedule.guided)
      self.assertEqual(schedule.passes.tolist(), [1, 1])
    with self.assertRaisesRegex(
      UserError, 'begun with config.search.guided=False'
    ):
      self.search(tiny_config())

  @parameterized.parameters(
    (
      {
        'search__guided': False,
        'search__optimizers': ('finite_differences',),
      },
      'config.search.guided=False works only with config.search.optim',
    ),
    ({'search__rounds': 1}, 'evaluations is 5; give a multiple of 2'),
    (
      {'search__rounds': 4, 'search__start': 'fewer_steps'},
      'config.search.start=fewer_steps needs finished searches',
    ),
    ({'evaluate__network': 'inception'}, 'config.evaluate.inception.init_from'),
  )
  def test_mistakes_are_one_line(self, fields, part):
    with self.assertRaises(UserError) as caught:
      search.check_config(Experiment(tiny_config(**fields), 'unused'))
    self.assertIn(part, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_missing_library_is_one_line(self):
    with (
      mock.patch.dict(sys.modules, {'cmaes': None}),
      self.assertRaisesRegex(UserError, r"^optimizer 'cma' needs .*\[search\]"),
    ):
      search.check_config(Experiment(tiny_config(), 'unused'))

  def test_missing_nat_is_named(self):
    with self.assertRaisesRegex(UserError, '--config.mode=nat'):
      search.run(Experiment(tiny_config(), self.workdir))

  def test_training_and_schedule_take_turns(self):
    config = tiny_config(
      search__rounds=1,
      search__evaluations=4,
      search__training_steps=2,
      nat__batch_size=8,
    )
    with self.assertRaisesRegex(UserError, '--config.mode=tokenizer'):
      search.run(Experiment(config, self.workdir))
    small_weights.save(self.workdir / 'tokenizer', params=self.tokenizer_params)
    # Killed when it comes to the second NAT.
    dies = Dies(nat_stage.run, 1)
    examples = ArrayExamples(
      {
        'tokens': np.arange(16 * 16, dtype=np.int32).reshape(16, 16) % 128,
        'condition': np.arange(16, dtype=np.int32) % 2,
      }
    )
    with (
      mock.patch.object(nat_stage, 'run', lambda *a: dies(*a)),
      mock.patch.object(Experiment, 'examples', lambda *_: examples),
    ):
      with self.assertRaises(InterruptedError):
        search.run(Experiment(config, self.workdir))
      before = (self.workdir / 'search').glob('*/ledger.jsonl')
      before = next(before).read_text()
      search.run(Experiment(config, self.workdir))
    directory = self.workdir / 'search/alternating-T2-cma-on-0'
    after = (directory / 'ledger.jsonl').read_text()
    self.assertStartsWith(after, before)
    self.assertFalse((self.workdir / 'nat').exists())
    self.assertLen(metric_writer.read_metrics(directory), 4)
    results = files.read_json(directory / 'results.json')
    tried = [row['beta'] for row in results['turns'][0]['tried']]
    values = [row['distance'] for row in results['turns'][0]['tried']]
    neighbours = [[40 / 3, 5 / 3], [10.0, 5.0]]
    np.testing.assert_allclose(tried, neighbours[: len(tried)])
    kept = results['turns'][0]['schedule_found']
    is_better = [value < kept for value in values]
    # The second neighbour is trained only if the first is no better.
    self.assertEqual(is_better[:-1], [False] * (len(tried) - 1))
    self.assertTrue(is_better[-1] or len(tried) == 2)
    expected = tried[-1] if is_better[-1] else [12.0, 3.0]
    np.testing.assert_allclose(results['last_beta'], expected)
    self.assertEqual(
      {
        path.parent.parent.name
        for path in directory.glob('*/nat/complete.json')
      },
      {'nat-12-3', 'nat-13.33-1.667', 'nat-10-5'}
      if len(tried) == 2
      else {'nat-12-3', 'nat-13.33-1.667'},
    )
    self.assertTrue((directory / results['last_nat'] / 'nat').is_dir())
    named_schedules.read_file(str(directory / 'last.json'))


if __name__ == '__main__':
  absltest.main()
