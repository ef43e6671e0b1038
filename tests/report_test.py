"""Tests of the report's plots, tables and text."""

import copy
import io
import math
import pathlib

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

from adanat_jax.report import document, plots, results, tables
from adanat_jax.runtime import files


def _open(path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image.convert('RGB'))


_ROLES = {
  'tuned': results.TUNED,
  'non_adaptive': results.NON_ADAPTIVE,
  'adanat': results.ADAPTIVE,
  'adanat_frozen': results.FROZEN,
}


def _entry(name, values, num_steps=4, training=None, **more):
  values = np.array(values, float)
  numbers = {
    'mean': values.mean(),
    'std': values.std(ddof=1) if len(values) > 1 else math.nan,
    'values': values.tolist(),
  }
  steps = {'mean': [0.5] * num_steps, 'std': [0.25] * num_steps}
  return {
    'name': name,
    'label': name.replace('_', ' '),
    'role': _ROLES.get(name, results.HAND_MADE),
    'reward': None,
    'note': '',
    'num_steps': num_steps,
    'training': training,
    'seeds': list(range(len(values))),
    'samples_per_seed': 2000,
    'measures': {
      'frechet': numbers,
      'precision': {'mean': 0.5, 'std': 0.1, 'values': [0.4, 0.6]},
    },
    'values_per_step': dict.fromkeys(
      (
        'mask_ratio',
        'sampling_temperature',
        'masking_temperature',
        'guidance_scale',
      ),
      steps,
    ),
    **more,
  }


def _results():
  return {
    'settings': {'condition': 'parity'},
    'floors': {
      'test images': {'frechet': 2.0},
      'many steps': {'frechet': 6.0, 'precision': 0.9},
    },
    'methods': [
      _entry('maskgit', [20.0, 22.0]),
      _entry('guidance', [59.0, 61.0]),
      _entry('tuned', [10.5, 11.5]),
      _entry('non_adaptive', [12.0, 13.0], training=0),
      _entry('adanat', [9.0, 11.0], training=0),
      _entry('adanat', [10.0, 12.0], training=1),
      _entry('adanat_frozen', [13.0, 15.0], training=0),
      _entry('maskgit', [14.0, 15.0], num_steps=8),
      _entry('adanat', [8.0, 9.0], num_steps=8, training=0),
    ],
    'grid': [
      {
        'num_steps': 4,
        'evaluations': 3,
        'best': {},
        'rows': [
          {'curve': 'pow2', 'guidance_scale': 1.0, 'frechet': 12.0},
          {'curve': 'cosine', 'guidance_scale': 0.5, 'frechet': 11.0},
          {'curve': 'cosine', 'guidance_scale': 0.0, 'frechet': 13.0},
        ],
      }
    ],
  }


class PlotsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'plot.png'

  @parameterized.parameters('frechet', 'precision')
  def test_distances_at_one_number_of_steps(self, measure):
    plots.save_distance_plot(self.path, _results(), 4, measure)
    first = self.path.read_bytes()
    height, width, _ = _open(io.BytesIO(first)).shape
    self.assertGreater(width, 600)
    self.assertGreater(height, 200)
    self.path.write_bytes(first[:100])
    plots.save_distance_plot(self.path, _results(), 4, measure)
    self.assertEqual(self.path.read_bytes(), first)

  def test_a_plot_without_data_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'no method has recall at T = 4'):
      plots.save_distance_plot(self.path, _results(), 4, 'recall')

  def test_distances_over_steps(self):
    plots.save_steps_plot(self.path, _results())
    self.assertGreater(_open(self.path).shape[1], 600)

  def test_values_at_each_step(self):
    data = _results()
    by_name = {e['name']: e for e in data['methods'] if e['num_steps'] == 4}
    plots.save_values_plot(
      self.path, data, [by_name['adanat']], [by_name['maskgit']]
    )
    picture = _open(self.path)
    self.assertGreater(picture.shape[0], 400)

  def test_methods_keep_their_own_look(self):
    data = _results()
    styles = plots.method_styles(data)
    self.assertLen(set(styles.values()), len(styles))
    data['methods'] = data['methods'][:7]
    self.assertEqual(plots.method_styles(data), styles)

  def test_training_curves_skip_what_was_not_written(self):
    rows = [{'step': i, 'reward': i / 10} for i in range(1, 80)]
    rows[3]['accuracy'] = 0.5
    panels = [
      plots.Panel('reward', {'reward': ''}),
      plots.Panel('accuracy', {'accuracy': 'all', 'absent': 'none'}, (0, 1)),
      plots.Panel('nothing', {'absent': ''}),
    ]
    plots.save_training_plot(self.path, rows, panels, 'Training')
    two = _open(self.path).shape
    plots.save_training_plot(self.path, rows, panels[:1])
    self.assertGreater(two[1], _open(self.path).shape[1])
    with self.assertRaisesRegex(ValueError, 'none of the metrics'):
      plots.save_training_plot(self.path, rows, panels[2:])

  def test_metrics_of_every_step_become_lines(self):
    rows = [
      {'step': i, 'reward': 0.5, 'committed': [1.0, 'nan', 9.0]}
      for i in range(1, 9)
    ]
    plots.save_training_plot(self.path, rows, plots.POLICY_PANELS)
    picture = _open(self.path)
    for part in (0.0, 1.0):
      colour = tuple(bytes.fromhex(plots.style.shade(part)[1:]))
      self.assertTrue((picture == colour).all(axis=-1).any())

  def test_smoothing_keeps_straight_lines_and_skips_holes(self):
    line = np.arange(300.0)
    smooth = plots._smooth(line)
    np.testing.assert_allclose(smooth[5:-5], line[5:-5])
    self.assertTrue(np.isnan(smooth[[0, 4, -5, -1]]).all())
    constant = np.ones(300)
    constant[7] = np.nan
    np.testing.assert_allclose(plots._smooth(constant)[5:-5], 1.0)
    noise = np.random.RandomState(0).randn(300)
    self.assertLess(np.nanstd(plots._smooth(noise)), 0.5)


class ResultsTest(absltest.TestCase):
  def test_trainings_are_pooled(self):
    data = _results()
    pooled = results.pool(
      results.select(data, name='adanat', num_steps=4), 'frechet'
    )
    # 9, 11, 10, 12: mean 10.5, variance 5 / 3; the seeds' means over trainings
    # are 9.5 and 11.5, the trainings' means 10 and 11, standard error .5.
    self.assertAlmostEqual(pooled.mean, 10.5)
    self.assertAlmostEqual(pooled.std, math.sqrt(5 / 3))
    self.assertEqual(pooled.seeds, (9.5, 11.5))
    self.assertAlmostEqual(pooled.between, 0.5)
    self.assertIsNone(results.pool([_entry('a', [1.0])], 'recall'))

  def test_differences_are_taken_seed_by_seed(self):
    one = results.pool([_entry('a', [4.0, 6.0, 8.0])], 'frechet')
    other = results.pool([_entry('b', [5.0, 7.5, 8.5])], 'frechet')
    # Differences -1, -1.5, -.5: standard deviation .5; each method's own is
    # far more.
    error = results.error_of_difference(one, other)
    self.assertAlmostEqual(error, 0.5 / math.sqrt(3))
    fewer = results.pool([_entry('b', [5.0, 7.0])], 'frechet')
    # Standard errors 2 / sqrt(3) and sqrt(2) / sqrt(2).
    error = results.error_of_difference(one, fewer)
    self.assertAlmostEqual(error, math.sqrt(4 / 3 + 1))


class TablesTest(absltest.TestCase):
  def test_method_table(self):
    lines = tables.method_table(_results(), 8).splitlines()
    self.assertEqual(lines[0], '| method | Fréchet distance | precision |')
    self.assertEqual(lines[2], '| maskgit | 14.50 ± 0.71 | **0.500** ± 0.100 |')
    self.assertEqual(
      lines[3], '| adanat | **8.50** ± 0.71 | **0.500** ± 0.100 |'
    )
    self.assertLen(lines, 4)

  def test_passes_and_the_effective_temperature_are_shown_where_known(self):
    data = {'methods': [_entry('adanat', [3.0], passes=7.25)], 'floors': {}}
    lines = tables.method_table(data, 4).splitlines()
    self.assertStartsWith(lines[0], '| method | passes | Fréchet')
    self.assertStartsWith(lines[2], '| adanat | 7.25 | ')
    (entry,) = data['methods']
    entry['values_per_step']['effective_temperature'] = {
      'mean': [0.5, 0.25, 0.125, 0.0], 'std': [0.0] * 4,
    }  # fmt: skip
    last = tables.values_table([entry]).splitlines()[-1]
    self.assertEqual(
      last, '| adanat | effective temperature | 0.50 | 0.25 | 0.12 | 0.00 |'
    )

  def test_trainings_get_a_column_when_there_are_several(self):
    lines = tables.method_table(_results(), 4).splitlines()
    self.assertStartsWith(lines[0], '| method | training | Fréchet')
    self.assertStartsWith(lines[2], '| maskgit |  | 21.00 ± 1.41 |')
    self.assertStartsWith(lines[6], '| adanat | 1 | **10.00** ± 1.41 |')
    self.assertStartsWith(lines[7], '| adanat | 2 | 11.00 ± 1.41 |')

  def test_one_seed_has_no_spread(self):
    data = files.to_json({'methods': [_entry('adanat', [3.0])], 'floors': {}})
    self.assertEqual(data['methods'][0]['measures']['frechet']['std'], 'nan')
    self.assertIn('| **3.00** | ', tables.method_table(data, 4))
    self.assertIn('*adanat*: 3.00.', tables.findings(data)[0])
    path = pathlib.Path(self.create_tempdir().full_path) / 'plot.png'
    plots.save_distance_plot(path, data, 4)
    plots.save_steps_plot(path, data)

  def test_floor_table(self):
    lines = tables.floor_table(_results()).splitlines()
    self.assertEqual(lines[0], '| images | Fréchet distance | precision |')
    self.assertEqual(lines[2], '| test images | 2.00 |  |')
    self.assertEqual(lines[3], '| many steps | 6.00 | 0.900 |')

  def test_distances_without_a_scale_keep_their_digits(self):
    self.assertEqual(tables.number(-1.234e-4, 'kernel_distance'), '-0.000123')
    self.assertEqual(tables.number(1.234e-4, 'density'), '0.000')

  def test_grid_table_begins_with_the_best(self):
    lines = tables.grid_table(_results()['grid'][0], count=2).splitlines()
    self.assertEqual(lines[0], '| curve | guidance scale | Fréchet distance |')
    self.assertEqual(lines[2], '| cosine | 0.5 | 11.00 |')
    self.assertEqual(lines[3], '| pow2 | 1 | 12.00 |')
    self.assertLen(lines, 4)

  def test_values_table(self):
    line = tables.values_table(_results()['methods'][-1:]).splitlines()[2]
    self.assertEqual(line, '| adanat | mask ratio |' + ' 0.50 ± 0.25 |' * 8)

  def test_differences(self):

    def pooled(mean, between, num_seeds=2):
      return results.Pooled(mean, 1.0, (mean,) * num_seeds, between)

    # Equal seeds, trainings' errors .3 and .4: clear beyond 3.2 * .5 = 1.6.
    self.assertEqual(
      tables.difference(pooled(8.3, 0.3), pooled(10.0, 0.4), 'X'),
      '17 % below X',
    )
    self.assertEqual(
      tables.difference(pooled(11.5, 0.3), pooled(10.0, 0.4), 'X'),
      'not told apart from X by these seeds (15 % above)',
    )
    self.assertEqual(
      tables.difference(pooled(15.0, 0.0, 1), pooled(10.0, 0.0, 1), 'X'),
      '50 % above X (one seed: no spread known)',
    )

  def test_findings_name_the_best_and_compare_like_with_like(self):
    data = _results()
    first, second, *rest = tables.findings(data)
    self.assertIn(
      'At T = 4 the lowest Fréchet distance is that of *adanat*', first
    )
    self.assertStartsWith(second, '*adanat* at T = 4 reaches 10.50 ± 1.29: ')
    self.assertIn('50 % below *maskgit*', second)
    self.assertIn('82 % below *guidance*', second)
    self.assertIn('not told apart from *tuned* by these seeds (5 % b', second)
    self.assertIn('25 % below *adanat frozen*', second)
    self.assertLen(rest, 2)
    # A policy of another reward is no rival.
    other = copy.deepcopy(data)
    for entry in other['methods']:
      if entry['name'] == 'non_adaptive':
        entry['reward'] = 'preference'
    self.assertIn('*non adaptive*', second)
    self.assertNotIn('*non adaptive*', tables.findings(other)[1])

  def test_a_shared_policy_is_compared_with_that_of_its_steps(self):
    data = _results()
    shared = _entry('adanat', [8, 10]) | {'name': 'shared', 'role': 'shared'}
    data['methods'] += [shared | {'label': 'one for all'}]
    *_, last = (x for x in tables.findings(data) if x.startswith('*one for'))
    self.assertIn('below *maskgit*', last)
    self.assertIn('*adanat*', last)
    # The other's mean action is no rival of its own.
    self.assertNotIn('*adanat frozen*', last)

  def test_a_loss_is_not_called_a_win(self):
    data = _results()
    data['methods'] = [_entry('maskgit', [5, 6]), _entry('adanat', [10, 11])]
    best, comparison = tables.findings(data)
    self.assertIn('that of *maskgit*', best)
    self.assertIn('91 % above *maskgit*', comparison)


class DocumentTest(absltest.TestCase):
  def test_holds_all_parts(self):
    data = _results()
    data['methods'][0]['note'] = 'A remark.'
    text = document.compose(
      data,
      [document.Picture('samples.png', 'Samples', 'By class.')],
      'Digits',
      'python -m adanat_jax.main',
      ['tokenizer: a blur'],
    )
    self.assertStartsWith(text, '# Digits\n')
    self.assertIn('\n\n## Warnings\n\n- tokenizer: a blur\n\n## Meth', text)
    self.assertIn('![Samples](samples.png)\n\nBy class.', text)
    self.assertIn('```\npython -m adanat_jax.main\n```', text)
    self.assertIn(tables.method_table(data, 4), text)
    self.assertIn(tables.floor_table(data), text)
    self.assertIn('The best of 3 evaluations', text)
    self.assertIn('2 sampling seeds of 2,000 images each', text)
    self.assertIn('trained 2 times', text)
    self.assertIn('- maskgit: A remark.', text)
    self.assertIn('| condition | `parity` |', text)


if __name__ == '__main__':
  absltest.main()
