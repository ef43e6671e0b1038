"""Stage `compare`: from nothing to its tables, killed and resumed; counts."""

from __future__ import annotations

import contextlib
import copy
import io
import pathlib
import tempfile
import types
from unittest import mock

from absl import logging
from absl.testing import absltest, parameterized
import jax.numpy as jnp
import matplotlib.image
import numpy as np

import adanat_jax
from adanat_jax import main
from adanat_jax.decoding import schedules, step as step_lib
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  networks,
  policies,
  reward_network,
  workdir as workdir_lib,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning.agent import Agent
from adanat_jax.models import operations
from adanat_jax.models.enat import ENAT
from adanat_jax.models.nat import NAT
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.report import comparison
from adanat_jax.runtime import files
from adanat_jax.stages import (
  compare,
  compare_costs as costs,
)
from adanat_jax.types import TokenCounts
from support import configs, random_weights, small_weights

# Little to compile.
SMALL = {
  'mode': 'compare',
  'tensorboard': False,
  'data.image_size': 8,
  'tokenizer.width_multipliers': (1, 1),
  'judges.measure.widths': (4, 8),
  'judges.reward.depth': 1,
  'judges.reward.hooks': (0,),
  'judges.reward.cutout': 2,
  'nat.width': 16,
  'nat.depth': 0,
  'nat.num_heads': 2,
  'compare.enat.encoder_depth': 1,
  'policy.rewards': ('pretrained',),
  'evaluate.network': 'pixels',
  'evaluate.num_seeds': 2,
  'search.evaluations': 1,
  'search.num_samples': 20,
  'search.fresh_seeds': 1,
  'search.fresh_samples': 20,
}


def setUpModule():
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.


def small_config(**fields):
  """A comparison of little networks at T = 2."""
  return configs.load(
    'digits.py:tiny',
    SMALL,
    **fields,
  )


def save_networks(config, workdir):
  """Random networks in place of all that stages train."""
  side = config.data.image_size
  image = jnp.zeros((1, side, side, 1))
  params = lambda *x: random_weights.random_variables(*x)['params']
  for stage, module in (
    ('tokenizer', networks.tokenizer_module(config)),
    ('judges/measure', networks.measuring_module(config)),
    ('judges/reward', networks.reward_module(config)),
  ):
    small_weights.save(workdir / stage, params=params(module, image))
  for network in config.compare.networks:
    ours = compare.network_experiment(Experiment(config, workdir), network)
    nat = networks.nat_module(ours.config)
    tokens = jnp.zeros((1, nat.num_tokens), jnp.int32)
    directory = workdir / 'compare' / network
    small_weights.save(
      directory / 'nat', ema=params(nat, tokens, jnp.zeros(1, jnp.int32))
    )
    features = jnp.zeros((1, nat.num_tokens, nat.width))
    agents = {
      name: params(module, features, 0)
      for name, module in zip(
        ('actor', 'critic'), networks.policy_modules(ours.config), strict=True
      )
    }
    for which in policies.trainings(ours):
      small_weights.save(directory / 'policy' / which.name, params=agents)


def timed(calls, num_rounds):
  """Runs two ways of the ENAT once: each has to be compiled."""
  for name in ('enat/T2/maskgit/0/static', 'enat/T2/adanat/0/buckets'):
    calls[name](0)
  return {name: [1.0 + i] * num_rounds for i, name in enumerate(calls)}


class StageTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    directory = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.workdir = pathlib.Path(directory)
    cls.config = small_config()
    save_networks(cls.config, cls.workdir)
    # An agent that is loaded again would be compiled again.
    known, loaded = {}, policies.load_agent

    def load_agent(experiment, which, num_steps=None):
      key = experiment.workdir, which, num_steps
      if key not in known:
        known[key] = loaded(experiment, which, num_steps)
      return known[key]

    cls.enterClassContext(mock.patch.object(policies, 'load_agent', load_agent))
    cls.enterClassContext(mock.patch.object(costs, 'seconds_of', timed))
    cls.directory = cls.workdir / 'compare'
    rows, measure = [], compare._row

    def row(evaluation, generator, schedule, seed):
      network = evaluation.experiment.config.nat.network
      rows.append((network, schedule.name, seed))
      if len(rows) == 5:
        raise InterruptedError('killed')
      return measure(evaluation, generator, schedule, seed)

    def killed():
      with cls().assertRaises(InterruptedError):
        compare.run(Experiment(cls.config, cls.workdir))

    with contextlib.redirect_stdout(io.StringIO()):
      with mock.patch.object(compare, '_row', row):
        killed()
        # And again when all there is to do is to time it.
        dies = mock.Mock(side_effect=InterruptedError)
        with mock.patch.object(costs, 'seconds_of', dies):
          killed()
      compare.run(Experiment(cls.config, cls.workdir))
    cls.rows = rows
    cls.results = files.read_json(cls.directory / 'results.json')

  def test_judges_are_read_with_their_heads(self):
    ours = compare.network_experiment(
      Experiment(self.config, self.workdir), 'nat'
    )
    module, params = ours.network('reward')
    self.assertEqual(module.num_outputs, 10)
    self.assertEqual(params['head']['bias'].shape, (10,))
    ours.config.judges.reward.depth = 2
    with self.assertRaisesRegex(UserError, 'has 1 blocks; .* 2 blocks'):
      ours.check(reward_network.problems)

  def test_a_killed_one_goes_on_and_gives_the_same(self):
    # Two networks, three schedules, two seeds; the fifth was asked for twice.
    self.assertLen(self.rows, 13)
    self.assertLen(set(self.rows), 12)
    self.assertEqual(self.rows[4], self.rows[5])
    names = ['results.json', 'ledger.jsonl', 'complete.json']
    before = {name: (self.directory / name).read_bytes() for name in names}
    for name in names:
      (self.directory / name).unlink()
    try:
      # What was trained and searched stays, all else is measured again.
      with contextlib.redirect_stdout(io.StringIO()):
        compare.run(Experiment(self.config, self.workdir))
      again = files.read_json(self.directory / 'results.json')
    finally:
      for name, content in before.items():
        (self.directory / name).write_bytes(content)
    again['machine'] = self.results['machine']  # Its load is another one.
    self.assertEqual(again, self.results)

  def test_what_it_leaves(self):
    found = {
      (entry['network'], entry['schedule'], entry['path']): list(entry['paths'])
      for entry in self.results['methods']
    }
    self.assertEqual(
      found,
      {
        ('nat', 'maskgit', 'all'): ['all'],
        ('nat', 'autonat', 'all'): ['all'],
        ('nat', 'adanat', 'all'): ['all'],
        ('enat', 'maskgit', 'static'): ['static'],
        ('enat', 'autonat', 'static'): ['static'],
        ('enat', 'adanat', 'buckets'): ['masked', 'buckets', 'own'],
      },
    )
    for entry in self.results['methods']:
      self.assertTrue(np.isfinite(entry['measures']['frechet']['values']).all())
      self.assertLen(entry['measures']['frechet']['values'], 2)
      for path, figures in entry['paths'].items():
        self.assertGreater(
          figures['operations_with_decoder'], figures['operations']
        )
        self.assertEqual(figures['seconds'] is None, path == 'own')
    # The fourth of seven that are timed, 20 images.
    self.assertEqual(
      self.results['methods'][3]['paths']['static']['seconds']['values'],
      [4 / 20, 4 / 20],
    )
    *_, adaptive = self.results['methods']
    by_path = {k: v['operations'] for k, v in adaptive['paths'].items()}
    self.assertLessEqual(by_path['own'], by_path['buckets'])
    self.assertLess(by_path['buckets'], by_path['masked'])
    text = (self.directory / 'comparison.md').read_text()
    self.assertIn('| ENAT | AutoNAT | 2 |', text)
    self.assertIn('| ENAT | 2 | each sample by itself |', text)
    picture = matplotlib.image.imread(self.directory / 'comparison.png')
    self.assertGreater(picture.std(), 0.01)

  def test_one_more_schedule_has_its_lines(self):
    results = copy.deepcopy(self.results)
    for entry in results['methods'][::3]:
      network = entry['network'].upper()
      changes = {'schedule': 'mine', 'label': f'My own on {network}'}
      results['methods'].append({**entry, **changes})
    self.assertIn('| ENAT | My own | 2 |', comparison.compose(results))
    path = self.workdir / 'more.png'
    comparison.save_plot(path, results)
    self.assertGreater(matplotlib.image.imread(path).std(), 0.01)

  def test_the_table_that_is_best_on_fresh_noise_is_taken(self):
    path = self.directory / 'nat/search/T2-cma-on-0/results.json'
    tables = files.read_json(path)['tables']
    self.assertCountEqual(tables, ('start', 'last', 'best'))
    best = min(tables, key=lambda x: tables[x]['fresh']['mean'])
    _, autonat, *_ = self.results['methods']
    self.assertStartsWith(autonat['note'], best)
    np.testing.assert_allclose(
      autonat['values_per_step']['guidance_scale']['mean'],
      tables[best]['table']['guidance_scale'],
      rtol=1e-6,
    )

  def test_each_network_is_a_workdir(self):
    for network, kind in (('nat', NAT), ('enat', ENAT)):
      generator = adanat_jax.load(self.directory / network)
      self.assertIsInstance(generator.nat, kind)
      self.assertEqual(list(generator.agents), [2])

  def test_what_is_finished_is_left_alone(self):
    with mock.patch.object(compare, '_train', None):
      compare.run(Experiment(self.config, self.workdir))
    workdir_lib.claim(self.workdir / 'claimed', self.config, {})
    other = small_config(compare__batch_size=10)
    workdir_lib.claim(self.workdir / 'claimed', other, {})
    with mock.patch.object(compare, 'open_ledger') as opened:
      compare.run(Experiment(self.config, self.workdir))
    # Those of earlier versions were guided, and say nothing of it.
    self.assertEqual(opened.call_args.kwargs['added'], {'search.guided': True})
    # Also of one that has ended: it is not what was asked for.
    with self.assertRaisesRegex(
      UserError, 'config.compare.batch_size=20 and not 10'
    ):
      compare.run(Experiment(other, self.workdir))


class CostsTest(parameterized.TestCase):
  """By hand: N = 4, D = 2, K = 3, MLPs of 4 D, one block or one of each."""

  nat = NAT(3, 4, 2, 0, 1, num_classes=2)
  enat = ENAT(3, 4, 2, 1, 1, 1, num_classes=2)
  actor = PolicyNetwork(4, 2, 2, 2, (2, 2))

  def generator(self, nat):
    return types.SimpleNamespace(nat=nat)

  def agent(self):
    agent = Agent({}, jnp.zeros((2, 4)), lambda *_: None)
    return Schedule('adanat', agent)

  def test_nat(self):
    # A block on 4 tokens and the class: 12 D^2 5 + 2 5^2 D = 340; the head
    # 4 (D^2 + D K) = 40.
    maskgit = schedules.make('maskgit', 2, 4)
    count = costs.path_operations(self.generator(self.nat), maskgit, self.actor)
    self.assertEqual(count, {'all': 2 * 2 * 380})
    policy = operations.policy_operations(self.actor, 2)
    count = costs.path_operations(
      self.generator(self.nat), self.agent(), self.actor
    )
    self.assertEqual(count, {'all': 2 * (2 * 2 * 380 + policy)})

  def test_looking_ahead_takes_passes_of_its_own(self):
    ahead = schedules.make('maskgit(candidates=3)', 2, 4)
    for network, path, forward in (
      *((self.nat, 'all', 380), (self.enat, 'masked', 808)),
    ):
      generator = self.generator(network)
      count = costs.path_operations(generator, ahead, self.actor)
      self.assertEqual(count, {path: 2 * (1 + 3) * forward})
      self.assertEqual(costs.paths_of(generator, ahead), [path])

  def test_enat_by_a_table(self):
    # floor(4 cos(pi/4)) = 2 stay masked. Step 1, 4 masked: decoder
    # (10 4 + 2 4 + 8) D^2 + 2 4 4 D = 288, head 40. Step 2, 2 new and 2 masked:
    # encoder (10 2 + 2 2 + 8) D^2 + 2 2 2 D = 144, decoder
    # (10 2 + 2 4 + 8) D^2 + 2 2 4 D = 176, head 40.
    maskgit = schedules.make('maskgit', 2, 4)
    self.assertEqual(maskgit.options, step_lib.MASKGIT)
    count = costs.path_operations(
      self.generator(self.enat), maskgit, self.actor
    )
    self.assertEqual(count, {'static': 2 * (328 + 360)})

  def test_enat_at_every_position(self):
    # Carried over: 8 D^2 4 = 128; both blocks (10 4 + 2 8 + 8) D^2 + 2 4 4 D =
    # 320; head 40.
    policy = operations.policy_operations(self.actor, 2)
    count = costs.path_operations(
      self.generator(self.enat), self.agent(), self.actor
    )
    self.assertEqual(count, {'masked': 2 * (2 * 2 * 808 + policy)})

  def test_adaptive_counts(self):
    found = np.array(
      [
        [[0, 0, 4], [0, 0, 4], [0, 0, 4]],
        [[0, 1, 3], [0, 2, 2], [0, 4, 0]],
      ]
    )
    buckets = (TokenCounts(0, 2, 3), TokenCounts(0, 0, 4))
    prices = {
      (0, 0, 4): 5,
      (0, 1, 3): 7,
      (0, 2, 2): 11,
      (0, 4, 0): 13,
      (0, 2, 3): 17,
      None: 100,
    }
    with mock.patch.object(
      operations, 'enat_operations', lambda _, counts: prices[counts]
    ):
      count = costs.adaptive_operations(self.enat, found, buckets, 2)
    # Two forwards each. Step 1: the second bucket for both batches. Step 2: the
    # first batch needs (0, 2, 3), the other one fits into none.
    self.assertAlmostEqual(count['buckets'], 2 * (3 * 5 + 2 * 17 + 100) / 3)
    self.assertAlmostEqual(count['own'], 2 * (3 * 5 + 7 + 11 + 13) / 3)
    self.assertEqual(count['beyond'], 1 / 4)

  def test_rounds_take_turns(self):
    log = []
    calls = {
      name: lambda seed, name=name: log.append((name, seed)) for name in 'ab'
    }
    seconds = costs.seconds_of(calls, 2)
    self.assertEqual(
      log, [('a', 0), ('b', 0), ('a', 1), ('b', 1), ('b', 2), ('a', 2)]
    )
    self.assertEqual([len(x) for x in seconds.values()], [2, 2])


class MistakesTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      {'search__optimizers': ('cma', 'finite_differences')},
      'give a tuple of 1 element',
    ),
    ({'search__rounds': 1, 'search__evaluations': 2}, 'search.rounds=1'),
    (
      {'policy__rewards': ('frechet', 'adversarial')},
      'give a tuple of 1 element',
    ),
    (
      {'compare__enat__reuse_probability': 0.0},
      'as config.compare.enat has it',
    ),
    ({'evaluate__num_samples': 10}, 'config.evaluate.num_samples=10'),
    ({'nat__num_heads': 3}, 'give a divisor of config.nat.width, which is 16'),
  )
  def test_they_are_one_line(self, fields, part):
    with self.assertRaises(UserError) as caught:
      compare.check_config(Experiment(small_config(**fields), 'unused'))
    self.assertIn(part, str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_a_field_that_the_nat_has_not(self):
    config = small_config()
    with config.unlocked():
      config.compare.enat.depths = 3
    with self.assertRaisesRegex(UserError, 'config.compare.enat.depths'):
      compare.check_config(Experiment(config, 'unused'))

  def test_networks_that_are_there_already(self):
    config = small_config()
    with config.unlocked():
      config.nat.init_from = 'weights/nat'
    with self.assertRaisesRegex(UserError, "nat.init_from='weights/nat' is"):
      compare.check_config(Experiment(config, 'unused'))

  def test_the_preset_and_its_stages(self):
    config = configs.load('digits.py:relatives')
    self.assertEqual(config.mode, 'compare')
    compare.check_config(Experiment(config, 'unused'))
    self.assertEqual(main.COMPARISON, ('tokenizer', 'judges', 'compare'))
    workdir = pathlib.Path(self.create_tempdir().full_path)
    with self.assertRaisesRegex(UserError, '--config.mode=tokenizer'):
      compare.run(Experiment(config, workdir))
    # The NAT is that of the default job: nothing but what it reads differs.
    ours = compare.network_experiment(Experiment(config, workdir), 'nat')
    default = configs.load('digits.py')
    self.assertEqual(dict(ours.config.nat.items()), dict(default.nat.items()))


if __name__ == '__main__':
  absltest.main()
