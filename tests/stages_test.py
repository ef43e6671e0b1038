"""The parts of the stages: numbers by hand, ledger, methods, measures."""

import json
import pathlib
import types
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.data import digits
from adanat_jax.decoding import schedules
from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import vq
from adanat_jax.learning.agent import Agent
from adanat_jax.measuring import study as measures_lib
from adanat_jax.measuring.evaluation import Evaluation
from adanat_jax.models.classifier import ConvClassifier
from adanat_jax.runtime import journal
from adanat_jax.runtime.journal import Ledger
from adanat_jax.stages import evaluate_study
from adanat_jax.types import PolicyValues
from support import configs

T = 3


class CodebookTest(absltest.TestCase):
  def test_codebook_follows_the_encodings(self):
    # Decay 1/2. Code 0 gets 1, 3, 5: count (2 + 3) / 2, sum (2 + 9) / 2; code
    # 1 gets 7: count (2 + 1) / 2, sum (8 + 7) / 2.
    counts, sums = vq.update_codebook(
      jnp.float32([2, 2]),
      jnp.float32([[2], [8]]),
      jnp.float32([[1], [3], [5], [7]]),
      jnp.array([0, 0, 0, 1]),
      jax.random.key(0),
      0.5,
    )
    np.testing.assert_allclose(counts, [2.5, 1.5])
    np.testing.assert_allclose(sums, [[5.5], [7.5]])

  def test_unused_codes_restart(self):
    # The even share is 4 / 2 = 2. Code 1 falls to 0.15 < 0.2: it restarts
    # at an encoding. At 0.25 it would stay.
    encodings = jnp.float32([[1], [3], [5], [7]])
    restarted = set()
    for seed in range(12):
      counts, sums = vq.update_codebook(
        jnp.float32([4, 0.3]),
        jnp.float32([[4], [9]]),
        encodings,
        jnp.zeros(4, int),
        jax.random.key(seed),
        0.5,
      )
      np.testing.assert_allclose(counts, [4, 2])
      np.testing.assert_allclose(sums[0], [10])
      restarted.add(float(sums[1, 0] / counts[1]))
    self.assertContainsSubset(restarted, {1.0, 3.0, 5.0, 7.0})
    self.assertGreater(len(restarted), 1)
    counts, sums = vq.update_codebook(
      jnp.float32([4, 0.5]),
      jnp.float32([[4], [9]]),
      encodings,
      jnp.zeros(4, int),
      jax.random.key(0),
      0.5,
    )
    np.testing.assert_allclose(counts, [4, 0.25])
    np.testing.assert_allclose(sums, [[10], [4.5]])

  def test_perplexity(self):
    for usage, expected in (
      ([2, 2, 0, 0], 2.0),
      ([0, 9], 1.0),
      # exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = 4 / 3^(3/4)
      ([3, 1], 4 / 3**0.75),
    ):
      got = float(vq.perplexity(jnp.array(usage)))
      self.assertAlmostEqual(got, expected, 5)


class LedgerTest(absltest.TestCase):
  def test_cut_at_any_byte_it_ends_the_same(self):
    pieces = {'a': {'x': 0.1}, 'b/é': [1, 2.5], 'c': 1 / 3}
    directory = pathlib.Path(self.create_tempdir().full_path)

    def fill(path):
      made = []
      ledger = Ledger(path)
      values = {
        name: ledger.get(name, lambda n=name: made.append(n) or pieces[n])
        for name in pieces
      }
      return values, made

    whole = directory / 'whole.jsonl'
    self.assertEqual(fill(whole), (pieces, list(pieces)))
    content = whole.read_bytes()
    self.assertEqual(fill(whole), (pieces, []))
    ends = [i + 1 for i, byte in enumerate(content) if byte == ord('\n')]
    path = directory / 'cut.jsonl'
    for size in range(len(content) + 1):
      path.write_bytes(content[:size])
      values, made = fill(path)
      self.assertEqual(values, pieces)
      # Only what was cut is made again.
      self.assertLen(made, 3 - sum(end <= size for end in ends), size)
      self.assertEqual(path.read_bytes(), content, size)

  def test_a_ledger_belongs_to_its_settings(self):
    directory = pathlib.Path(self.create_tempdir().full_path)
    open_ledger = lambda **about: journal.open_ledger(
      directory, about, 'config'
    )
    open_ledger(a=(1, 2), gone=0).get('piece', lambda: 5)
    # An earlier version had a field more, and did not have one that is unset.
    ledger = open_ledger(a=[1, 2], added=None)
    self.assertEqual(ledger.get('piece', lambda: 6), 5)
    with self.assertRaisesRegex(UserError, r'config.a=\[1, 2\] and not \[1\]'):
      open_ledger(a=[1])
    with self.assertRaisesRegex(UserError, 'config.added=None and not 3'):
      open_ledger(a=[1, 2], added=3)
    later = lambda value: journal.open_ledger(
      *(directory, {'a': [1, 2], 'late': value}, 'config'),
      added={'late': True},
    )
    self.assertEqual(later(True).get('piece', lambda: 6), 5)
    with self.assertRaisesRegex(UserError, 'config.late=True and not False'):
      later(False)


class MethodsTest(absltest.TestCase):
  def test_grid(self):
    settings = evaluate_study.grid_settings()
    self.assertGreaterEqual(len(settings), 60)
    self.assertLen({json.dumps(s) for s in settings}, len(settings))
    scales = [setting['guidance_scale'] for setting in settings]
    self.assertEqual(scales.count(0.0) * 3, len(settings))
    for setting in settings[:3]:
      schedule = evaluate_study.schedule_of_setting(setting, T, 16, 72)
      self.assertEqual(schedule.guided, setting['guidance_scale'] > 0)
      self.assertEqual(schedule.label, 'hand-made, best of 72')
      np.testing.assert_allclose(
        schedule.policy.sampling_temperature, setting['sampling_temperature']
      )
      np.testing.assert_allclose(
        schedule.policy.guidance_scale[-1], setting['guidance_scale']
      )

  def test_no_seed_serves_two_purposes(self):
    # Of an Evaluation only what chooses keys; the rest is not there.
    evaluation = object.__new__(Evaluation)
    evaluation.experiment = Experiment(configs.load('digits.py:tiny'), 'unused')
    keys = []
    images = np.zeros((4, 1))

    def run(schedule, labels, key, **unused):
      del schedule, labels, unused
      keys.append(jax.random.key_data(key).tolist())
      values = PolicyValues(*(np.full((T, 4), 2.0) for _ in range(4)))
      trajectory = types.SimpleNamespace(
        values=values, num_committed=np.zeros((T, 4))
      )
      return types.SimpleNamespace(
        images=images, trajectory=trajectory, passes=np.full(4, T)
      )

    evaluation.generator = types.SimpleNamespace(
      run=run, num_classes=2, nat=types.SimpleNamespace(num_tokens=16)
    )
    evaluation.measures = mock.MagicMock()
    for index in (0, 50):
      setting = evaluate_study.grid_settings()[index]
      evaluate_study._grid_row(evaluation, setting, T)
    first, second = (
      schedules.make(name, T, 16) for name in ('maskgit', 'residual')
    )
    for seed in range(3):
      row = evaluation.seed_row(first, seed)
    evaluation.seed_row(second, 0)
    # MaskGIT's choice sharpens: 1 / (1 / 2 + 1 / 2).
    effective = row['values_per_step']['effective_temperature']
    self.assertEqual((effective['mean'], row['passes']), ([1.0] * T, T))
    # It says 2 for everything, and is not guided.
    scale = row['values_per_step']['guidance_scale']
    self.assertEqual(scale['mean'], [0.0] * T)
    for purpose in ('mean', 'floors', 'report'):
      evaluation.sample(first, purpose, 4)
    grid, other_grid, *seeds, again, mean, floors, report = map(tuple, keys)
    self.assertEqual(grid, other_grid)
    # All methods see the same noise.
    self.assertEqual(seeds[0], again)
    self.assertLen({grid, *seeds, mean, floors, report}, 7)

  def test_mean_table(self):
    # sigmoid(mean + residual), not the mean of sigmoids.
    raw = np.zeros((2, 2, 4), np.float32)
    raw[0, :, 0] = [0, 2 * np.log(3)]
    residual = jnp.zeros((2, 4)).at[1, 0].set(-np.log(3))
    agent = Agent({}, residual, lambda *_: None)
    table = evaluate_study.mean_table(raw, agent)
    np.testing.assert_allclose(table.mask_ratio, [0.75, 0.25], rtol=1e-5)
    # The second action is half of the first, ln(3) / 2: sqrt(3) / 3 in odds.
    agent = Agent({}, residual, lambda *_: None, smoothing=0.5)
    smoothed = evaluate_study.mean_table(raw, agent).mask_ratio
    np.testing.assert_allclose(smoothed, [0.75, 0.366025], rtol=1e-5)
    self.assertEqual(table.guidance_scale.shape, (2,))

  def test_a_shared_policy_is_a_method_at_every_number_of_steps(self):
    config = configs.load('digits.py:tiny')
    config.policy.update(kinds=('adaptive', 'shared'), num_steps=(2, 3, 4))
    config.policy.drawn_num_steps = (2, 4)
    evaluation = mock.MagicMock(experiment=Experiment(config, 'unused'))
    evaluation.generator.nat.num_tokens = 16
    evaluation.labels.return_value = np.zeros(4, np.int32)
    load = lambda _, which, steps: Agent(which, jnp.zeros((steps, 4)), None)
    self.enter_context(
      mock.patch.object(evaluate_study.policies, 'load_agent', load)
    )
    best = evaluate_study.grid_settings()[0]
    found = {}
    for steps in (2, 3, 4):
      values = PolicyValues(*(np.zeros((steps, 4)) for _ in range(4)))
      evaluation.sample.return_value.trajectory = types.SimpleNamespace(
        values=values, aux=mock.Mock(action=np.zeros((steps, 4, 4)))
      )
      grid = {'num_steps': steps, 'best': best, 'evaluations': 1}
      for method in evaluate_study.methods(evaluation, grid):
        if method.role in ('adaptive', 'shared'):
          found[steps, method.role] = method.schedule
    # One training serves three T, beside three that serve one.
    trainings = {key: x.policy.params.name for key, x in found.items()}
    self.assertLen(set(trainings.values()), 4)
    self.assertEqual(trainings[3, 'shared'], trainings[2, 'shared'])
    self.assertEqual(found[3, 'shared'].num_steps, 3)
    self.assertEqual(found[3, 'shared'].name, 'adanat-shared-adversarial')

  def test_shuffled_table_stays_within_a_class(self):
    labels = np.arange(200) % 2
    values = PolicyValues(
      *(np.arange(200.0) + 1000 * i + [[0], [500]] for i in range(4))
    )
    table = evaluate_study.shuffled_table(values, labels, seed=0)
    order = table.mask_ratio[0].astype(int)
    self.assertCountEqual(order.tolist(), range(200))
    np.testing.assert_array_equal(labels[order], labels)
    self.assertLess((order == np.arange(200)).mean(), 0.1)
    # A sample's four numbers stay together, and its steps.
    jax.tree.map(
      lambda new, old: np.testing.assert_array_equal(new, old[:, order]),
      table,
      values,
    )


class MeasuresTest(absltest.TestCase):
  def test_floors(self):
    # An untrained network measures, too.
    module = ConvClassifier(widths=(4, 8), num_classes=10, feature_width=8)
    data = digits.load(16)
    params = jax.jit(module.init)(jax.random.key(0), data.train_images[:1])
    config = configs.load('digits.py:tiny')
    with mock.patch.object(
      Experiment, 'network', return_value=(module, params['params'])
    ):
      measures = measures_lib.Measures(
        Experiment(config, pathlib.Path('unused'))
      )
    condition = lambda labels: digits.condition_of(labels, 'parity')
    itself = measures(data.train_images, condition(data.train_labels))
    held_out = measures(data.test_images, condition(data.test_labels))
    noise = np.random.default_rng(0).random((200, 16, 16, 1), np.float32)
    noisy = measures(noise, np.zeros(200, np.int32))
    self.assertCountEqual(itself, measures_lib.MEASURES)
    for name in ('frechet', 'pixel_frechet'):
      self.assertLess(itself[name], 1e-3 * held_out[name] + 1e-6)
      self.assertLess(held_out[name], 0.2 * noisy[name])
    self.assertEqual((itself['precision'], itself['recall']), (1.0, 1.0))
    self.assertGreater(held_out['precision'], noisy['precision'])
    self.assertGreater(held_out['recall'], noisy['recall'])
    self.assertEqual(itself['coverage'], 1.0)
    self.assertEmpty(measures.warnings(9))
    (few,) = measures.warnings(8)
    self.assertStartsWith(few, '8 generated images are too few')
    self.assertGreater(held_out['density'], noisy['density'])
    self.assertGreater(held_out['coverage'], noisy['coverage'])
    for real in (itself, held_out):
      distance = abs(real['kernel_distance'])
      self.assertLess(distance, 0.1 * noisy['kernel_distance'])
    self.assertAlmostEqual(
      measures.distance(data.test_images), held_out['frechet'], 6
    )
    # Asked for the opposite, what was right is wrong.
    opposite = measures(data.test_images, 1 - condition(data.test_labels))
    self.assertAlmostEqual(opposite['accuracy'], 1 - held_out['accuracy'], 6)


if __name__ == '__main__':
  absltest.main()
