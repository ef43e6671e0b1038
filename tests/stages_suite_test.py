"""Mode suite: equal passes, guided or adaptive or not; resumed; one table."""

import contextlib
import dataclasses
import io
import pathlib
import types
from unittest import mock

from absl.testing import absltest
import numpy as np

from adanat_jax import main
from adanat_jax.decoding import schedules
from adanat_jax.errors import UserError
from adanat_jax.experiment import adversarial_reward, policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import study
from adanat_jax.measuring.evaluation import Evaluation
from adanat_jax.runtime import files, sharding
from adanat_jax.runtime.journal import is_complete
from adanat_jax.sampling import calibration, generator as generator_lib
from adanat_jax.stages import policy, search, search_common, suite
from adanat_jax.types import PolicyValues
from support import configs

LIST = (
  'maskgit',
  'amused',
  'random(sampling_temperature=0.7)',
  'autonat_large',
  'entropy_bound',
  'klass',
  'learned',
)
VALUES = (
  *('mask_ratio', 'sampling_temperature', 'masking_temperature'),
  'guidance_scale',
)


class SuiteTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(self.create_tempdir().full_path)
    self.config = configs.load('digits.py:tiny')
    self.config.suite.update(passes=(16, 8), schedules=LIST)
    self.measured, self.calibrated, self.generators = [], [], {}

  def sample(self, schedule, seed, count, record, generator):
    """Samples whose distance says which schedule made them."""
    self.assertIs(generator, self.generators[1])
    self.measured.append((schedule.name, schedule.num_steps, seed))
    self.assertEqual((count, record), (100, True))
    return schedule

  def row(self, schedule, samples):
    self.assertIs(schedule, samples)
    table = schedule.policy
    self.assertIsInstance(table, PolicyValues)
    steps = [*range(schedule.num_steps)]
    over = dict.fromkeys(('mean', 'std'), [0.0] * len(steps))
    return {
      'measures': dict.fromkeys(study.MEASURES, float(len(schedule.name))),
      'values_per_step': {'effective_temperature': over},
      'passes': (
        7.5
        if schedule.options.is_adaptive
        else float(len(steps) * (1 + schedule.guided))
      ),
      'committed_per_step': over,
    }

  def calibrate(self, generator, name, passes, labels, *, seed):
    self.assertLen(labels, 400)
    self.calibrated.append((name, passes))
    if name == 'klass':
      raise UserError(f'passes={passes} is not to be had with {name}')
    made = schedules.make(name, 16, 16)
    return calibration.with_bound(made, passes / 10)

  def run_stage(self):
    generator = types.SimpleNamespace(agents={}, num_classes=2)
    self.generators[1] = generator
    with (
      mock.patch.object(Experiment, 'generator', return_value=generator),
      mock.patch.object(Evaluation, 'sample', side_effect=self.sample),
      mock.patch.object(Evaluation, 'row', side_effect=self.row),
      mock.patch.object(calibration, 'calibrate', side_effect=self.calibrate),
      contextlib.redirect_stdout(io.StringIO()) as said,
    ):
      suite.run(Experiment(self.config, self.workdir))
    return said.getvalue()

  def test_equal_passes(self):
    said = self.run_stage()
    directory = self.workdir / 'suite'
    self.assertTrue(is_complete(directory))
    # A guided schedule takes half as many steps, an adaptive one up to N.
    seeds = ('seed-0', 'seed-1')
    warm = 'random(sampling_temperature=0.7)'
    self.assertEqual(
      self.measured,
      [
        (name, num_steps, seed)
        for name, num_steps in (
          *(('maskgit', 8), ('amused', 4), (warm, 8), ('entropy_bound', 16)),
          *(('maskgit', 16), ('amused', 8), (warm, 16)),
          # Published for eight guided steps.
          *(('autonat_large', 8), ('entropy_bound', 16)),
        )
        for seed in seeds
      ],
    )
    results = files.read_json(directory / 'results.json')
    bounds = [row['bound'] for row in results['rows']]
    self.assertEqual(
      [b for b in bounds if b is not None],
      [float(np.float32(0.8)), float(np.float32(1.6))],
    )
    self.assertEqual(
      results['missing'],
      [
        'autonat_large has no table of 8 passes',
        'passes=8.0 is not to be had with klass',
        'no policy of 8 passes has been trained here',
        'passes=16.0 is not to be had with klass',
        'no policy of 16 passes has been trained here',
      ],
    )
    lines = said.splitlines()
    start = '| schedule | 8 passes: FD | recall | accuracy | temperature | 16 '
    table = [line for line in lines if line.startswith('|')]
    self.assertStartsWith(table[0], start)
    self.assertIn('| `amused` | **6.00** ± 0.00 | 6.000 | 6.000 |', table[3])
    self.assertIn('| `random(sampling_temperature=0.7)` |', table[4])
    self.assertIn('| 0.70 | 32.00 ± 0.00 |', table[4])
    self.assertIn('| `autonat_large` |  |  |  |  | 13.00 ±', table[5])
    self.assertIn('| (7.50) 13.00 ± 0.00 |', table[6])
    self.assertIn('1.00 | (7.50) 13.00', table[6])
    self.assertLen(table, 7)
    page = (directory / 'suite.md').read_text()
    self.assertIn(table[5], page)
    self.assertIn('`entropy_bound` 0.8 at 8 passes; ', page)
    self.assertIn('* passes=8.0 is not to be had with klass', page)

  def test_goes_on_where_it_was(self):
    said = self.run_stage()
    ledger = self.workdir / 'suite' / 'ledger.jsonl'
    lines = ledger.read_text().splitlines(keepends=True)
    # A row, and that KLASS has no bound of 16 passes.
    ledger.write_text(''.join(lines[:-2]))
    last, self.measured, self.calibrated = self.measured[-1], [], []
    # The list may grow, too.
    self.config.suite.schedules = (*LIST, 'halton(guidance_scale=0.0)')
    again = self.run_stage()
    new = ('halton(guidance_scale=0.0)', 8), ('halton(guidance_scale=0.0)', 16)
    self.assertEqual(
      self.measured,
      [
        *((*new[0], seed) for seed in ('seed-0', 'seed-1')),
        last,
        *((*new[1], seed) for seed in ('seed-0', 'seed-1')),
      ],
    )
    self.assertEqual(self.calibrated, [('klass', 16.0)])
    table = lambda text: [x for x in text.splitlines() if x.startswith('| `')]
    self.assertEqual(table(again)[:-1], table(said))

  def test_a_policy_of_the_workdir(self):
    made = {count: schedules.make('guidance-3', count, 16) for count in (2, 4)}
    generator = types.SimpleNamespace(
      agents=made, schedule=lambda name, num_steps: made[num_steps]
    )
    experiment = Experiment(configs.load('digits.py'), self.workdir)
    evaluation = types.SimpleNamespace(
      generator=generator, experiment=experiment
    )
    ledger = mock.Mock()

    def find(passes):
      found = suite._schedules(evaluation, 'learned', passes, '', ledger)
      return found['']

    self.assertIs(find(8), made[4])
    with self.assertRaisesRegex(UserError, 'no policy of 16 passes'):
      find(16)
    # In two guided steps, too; the more steps come first.
    self.assertIs(find(4), made[2])
    made[4] = schedules.make('maskgit', 4, 16)
    self.assertIs(find(4), made[4])
    with self.assertRaisesRegex(UserError, 'no table of 4 passes has been sea'):
      suite._schedules(evaluation, 'searched', 4, '', ledger)
    ahead = suite._named(experiment, 'maskgit(candidates=4)', 9)
    self.assertEqual(ahead.num_steps, 3)
    ledger.get.assert_not_called()

  def test_every_training_of_a_policy(self):
    config = configs.load('digits.py:frontier')
    experiment = Experiment(config, self.workdir)
    agents = [schedules.make('maskgit', 4, 16) for _ in range(3)]
    # Of three trainings two are finished.
    finished = {
      'policy/adversarial-shared-T2to16-0': agents[0],
      'policy/adversarial-shared-T2to16-2': agents[2],
    }

    @dataclasses.dataclass
    class Stub:
      agents: dict

      def schedule(self, name, num_steps):
        return self.agents[num_steps]

    evaluation = types.SimpleNamespace(
      generator=Stub({4: agents[0]}), experiment=experiment
    )
    with (
      mock.patch.object(Experiment, 'is_complete', lambda _, x: x in finished),
      mock.patch.object(
        policies,
        'load_agent',
        lambda _, training, steps: finished[f'policy/{training.name}'],
      ),
    ):
      found = suite._learned(evaluation, 'learned', 4)
    # By its number, whichever others are finished.
    self.assertEqual([*found], ['', '/training-2'])
    self.assertIs(found[''], agents[0])
    self.assertIs(found['/training-2'], agents[2])

  def test_the_frontier(self):
    config = configs.load('digits.py:frontier')
    stages = ('tokenizer', 'judges', 'nat', 'policy', 'search', 'suite')
    self.assertEqual(main._names_of_stages(config), stages)
    experiment = Experiment(config, self.workdir)
    for stage in (suite, policy, search):
      stage.check_config(experiment)
    # Everything takes a pass a step.
    for name in config.suite.schedules:
      if name in ('learned', 'searched'):
        continue
      for passes in config.suite.passes:
        with self.subTest(name, passes=passes):
          self.assertEqual(
            suite._named(experiment, name, passes).num_steps, passes
          )
    self.assertEqual(
      {which.num_steps for which in search_common.of(experiment)}, {2, 4, 8, 16}
    )

  def test_the_best_of_several_draws(self):
    self.config.suite.update(
      passes=(8, 9), schedules=('maskgit',), num_draws=(1, 2)
    )
    with self.assertRaisesRegex(UserError, 'holds no discriminator; first run'):
      self.run_stage()
    asked = []

    def sample(schedule, seed, count, record, generator):
      asked.append((schedule.num_steps, generator.num_draws, seed))
      return schedule

    plain = generator_lib.Generator(
      *([None] * 4), 2, {}, mesh=sharding.make_mesh()
    )
    with (
      mock.patch.object(adversarial_reward, 'discriminator_stage'),
      mock.patch.object(adversarial_reward, 'discriminator_score'),
      mock.patch.object(Experiment, 'generator', return_value=plain),
      mock.patch.object(Evaluation, 'sample', side_effect=sample),
      mock.patch.object(Evaluation, 'row', side_effect=self.row),
      contextlib.redirect_stdout(io.StringIO()) as said,
    ):
      self.config.suite.num_draws = (2,)
      suite.run(Experiment(self.config, self.workdir))
    self.assertEqual(asked, [(4, 2, 'seed-0'), (4, 2, 'seed-1')])
    self.assertIn('| `maskgit, best of 2` |', said.getvalue())
    results = files.read_json(self.workdir / 'suite/results.json')
    self.assertEqual(
      results['missing'], ['9 passes cannot be divided among 2 draws']
    )

  def test_the_list_is_complete(self):
    config = configs.load('digits.py')
    self.assertContainsSubset(schedules.SCHEDULES, config.suite.schedules)
    self.assertEqual(config.suite.passes, (4, 8, 16))
    suite.check_config(Experiment(config, self.workdir))
    config.mode = 'suite'
    self.assertEqual(main._names_of_stages(config), main.SUITE)

  def test_pictures_in_classes_have_a_suite_too(self):
    config = configs.load('emoji.py:quick')
    config.mode = 'suite'
    self.assertEqual(
      main._names_of_stages(config),
      ('tokenizer', 'judges', 'prepare', 'nat', 'suite'),
    )
    config.data.path = ''
    config.data.validation_path = ''
    with self.assertRaisesRegex(UserError, 'config.data.path is empty'):
      suite.check_config(Experiment(config, self.workdir))
    config.data.path = self.create_tempdir().full_path
    suite.check_config(Experiment(config, self.workdir))
    config.data.condition = 'text'
    with self.assertRaisesRegex(UserError, 'condition=text is not allowed in'):
      suite.check_config(Experiment(config, self.workdir))

  def test_mistakes_are_named(self):
    table = self.workdir / 'own.json'
    numbers = dict.fromkeys(VALUES, [0.5, 0.5, 0.5])
    files.write_json(table, numbers)
    self.config.suite.update(passes=(8,), schedules=(str(table),))
    with self.assertRaisesRegex(UserError, 'own.json has 3 steps, and 8 were'):
      self.run_stage()
    files.write_json(table, dict.fromkeys(VALUES, [0.5] * 8))
    with self.assertRaisesRegex(UserError, 'own.json takes none of'):
      self.run_stage()
    table.unlink()
    self.config.suite.schedules = ('halton(rows=5)',)
    with self.assertRaisesRegex(UserError, 'halton has rows=5'):
      self.run_stage()
    self.config.suite.passes = (1,)
    with self.assertRaisesRegex(UserError, r'config.suite.passes=\(1,\)'):
      self.run_stage()
    # Every guided step is two passes.
    self.config.suite.update(
      passes=(5,), schedules=('maskgit(guidance_scale=1.0)',)
    )
    with self.assertRaisesRegex(UserError, r'takes none of .*passes=\(5,\)'):
      self.run_stage()
    for changes, message in (
      ({'schedules': ('learned(dial=0.5)',)}, 'config.policy.dial is empty'),
      ({'schedules': ('learned(candidates=65)',)}, 'schedules=.* is not allow'),
      ({'num_draws': (1, 2)}, r'none of config.suite.passes=\(5,\) can be'),
    ):
      config = self.config.copy_and_resolve_references()
      config.suite.update(**{'schedules': ('maskgit',), **changes})
      with (
        mock.patch.object(adversarial_reward, 'discriminator_stage'),
        self.assertRaisesRegex(UserError, message),
      ):
        suite.check_config(Experiment(config, self.workdir))
    self.assertEmpty([*self.workdir.iterdir()])


if __name__ == '__main__':
  absltest.main()
