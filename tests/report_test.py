"""Tests of the report: rounding, places of pictures, figures of tables."""

import copy
import io
import math
import pathlib

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from adanat_jax.report import curves, document, pictures, plots, results, tables


def _open(path) -> np.ndarray:
  with Image.open(path) as image:
    return np.asarray(image.convert('RGB'))


def _flat(colour, count=1, size=4):
  """`count` images of one colour (0 to 255), float32[count, size, size, 3]."""
  pixels = np.array(colour, np.float32) / 255
  return np.broadcast_to(pixels, (count, size, size, 3)).copy()


def _box(picture: np.ndarray, colour) -> tuple[int, int, int, int]:
  """Left, top, right, bottom of all pixels of a colour, the last inclusive."""
  rows, columns = np.nonzero((picture == np.array(colour)).all(axis=-1))
  return columns.min(), rows.min(), columns.max(), rows.max()


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
    'num_steps': num_steps,
    'training': training,
    'seeds': list(range(len(values))),
    'samples_per_seed': 2000,
    'measures': {
      'frechet': numbers,
      'precision': {'mean': 0.5, 'std': 0.1, 'values': [0.4, 0.6]},
    },
    'values_per_step': {
      key: steps
      for key in (
        'mask_ratio',
        'sampling_temperature',
        'masking_temperature',
        'guidance_scale',
      )
    },
    **more,
  }


def _results():
  return {
    'settings': {'condition': 'parity'},
    'floors': {
      'test images': {'frechet': 2.0},
      'many steps': {'frechet': {'mean': 6.0, 'std': 0.5}, 'precision': 0.9},
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
    'grid': {
      'num_steps': 4,
      'evaluations': 3,
      'best': {},
      'rows': [
        {'curve': 'pow2', 'guidance_scale': 1.0, 'frechet': 12.0},
        {'curve': 'cosine', 'guidance_scale': 0.5, 'frechet': 11.0},
        {'curve': 'cosine', 'guidance_scale': 0.0, 'frechet': 13.0},
      ],
    },
  }


class RoundingTest(parameterized.TestCase):
  def test_every_level_comes_back(self):
    levels = np.arange(256, dtype=np.uint8)
    for dtype in (np.float32, np.float64):
      images = levels.astype(dtype) / dtype(255)
      np.testing.assert_array_equal(pictures.to_uint8(images), levels)

  def test_halves_go_up(self):
    # 0.5 * 255 = 127.5 exactly; half to even would give 128 too, but also
    # turn 0.5 / 255 (0.5 in float32 arithmetic) into 0.
    self.assertEqual(pictures.to_uint8(np.array([0.5])), 128)
    self.assertEqual(pictures.to_uint8(np.array([0.5 / 255])), 1)
    self.assertEqual(pictures.to_uint8(np.array([2.5 / 255])), 3)

  def test_boundaries_lie_between_levels(self):
    halves = (np.arange(255) + 0.5) / 255
    np.testing.assert_array_equal(
      pictures.to_uint8(halves - 1e-5), np.arange(255)
    )
    np.testing.assert_array_equal(
      pictures.to_uint8(halves + 1e-5), np.arange(255) + 1
    )

  def test_values_outside_are_clipped(self):
    images = np.array([-0.2, -1e-9, 1.0, 1.3, np.inf], np.float32)
    np.testing.assert_array_equal(
      pictures.to_uint8(images), [0, 0, 255, 255, 255]
    )

  def test_refuses_nan_and_integers(self):
    with self.assertRaisesRegex(ValueError, 'NaN'):
      pictures.to_uint8(np.array([np.nan]))
    with self.assertRaisesRegex(ValueError, 'uint8'):
      pictures.to_uint8(np.zeros(3, np.uint8))


class PicturesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'picture.png'

  def test_single_images_keep_their_kind(self):
    grey = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3, 1)
    pictures.save_image(self.path, grey, scale=2)
    with Image.open(self.path) as image:
      self.assertEqual((image.mode, image.size), ('L', (6, 4)))
      np.testing.assert_array_equal(
        np.asarray(image)[::2, ::2], pictures.to_uint8(grey[..., 0])
      )
    pictures.save_image(self.path, _flat((10, 20, 30))[0])
    with Image.open(self.path) as image:
      self.assertEqual((image.mode, image.size), ('RGB', (4, 4)))
      self.assertEqual(image.getpixel((1, 1)), (10, 20, 30))

  def test_a_grid_reads_from_left_to_right(self):
    colours = [(10 * i, 0, 0) for i in range(1, 6)]
    images = np.concatenate([_flat(colour) for colour in colours])
    pictures.save_grid(self.path, images, columns=3, scale=2, gap=2)
    picture = _open(self.path)
    # Three images of 8 pixels with two gaps, in two lines with one gap.
    self.assertEqual(picture.shape, (18, 28, 3))
    self.assertEqual(_box(picture, colours[1]), (10, 0, 17, 7))
    self.assertEqual(_box(picture, colours[3]), (0, 10, 7, 17))
    self.assertTrue((picture[10:, 20:] == 255).all())

  def test_classes_are_columns_and_methods_rows(self):

    def colour(row, group):
      return (50 + row, 100 + group, 7)

    methods = [
      (
        f'method {row}',
        np.stack([_flat(colour(row, group), 5) for group in range(3)]),
      )
      for row in range(2)
    ]
    pictures.save_class_grid(
      self.path, methods, ['a', 'b', 'c'], columns=3, scale=2, title='Title'
    )
    picture = _open(self.path)
    boxes = {
      (row, group): _box(picture, colour(row, group))
      for row in range(2)
      for group in range(3)
    }
    for row in range(2):
      lefts = [boxes[row, group][0] for group in range(3)]
      self.assertEqual(lefts, sorted(set(lefts)))
    for group in range(3):
      self.assertLess(boxes[0, group][3], boxes[1, group][1])
    # Three images wide and two lines high: 3 * 8 + 2 * 2 by 2 * 8 + 2.
    left, top, right, bottom = boxes[1, 2]
    self.assertEqual((right - left + 1, bottom - top + 1), (28, 18))
    with self.assertRaisesRegex(ValueError, 'images of 3 classes for the 2'):
      pictures.save_class_grid(self.path, methods, ['a', 'b'])

  def test_versions_stand_above_each_other(self):
    original, rebuilt = _flat((1, 2, 3), 5), _flat((4, 5, 6), 5)
    pictures.save_pairs(
      self.path,
      [('original', original), ('rebuilt', rebuilt)],
      columns=4,
      scale=2,
    )
    picture = _open(self.path)
    first, second = _box(picture, (1, 2, 3)), _box(picture, (4, 5, 6))
    self.assertEqual((first[0], first[2]), (second[0], second[2]))
    self.assertEqual(second[1] - first[1], 8 + 2)
    with self.assertRaisesRegex(ValueError, 'differ in shape'):
      pictures.save_pairs(self.path, [('a', original), ('b', rebuilt[:2])])

  def test_hidden_tokens_are_covered_and_fresh_ones_framed(self):
    colour = (9, 200, 9)
    masked = np.array([[0, 1, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]], bool)
    images = _flat(colour, 3, size=8)
    pictures.save_reveal(self.path, [('a', images, masked)], scale=3)
    picture = _open(self.path)
    _, top, right, bottom = _box(picture, colour)
    size, gap = 24, 14
    # The result, the last of four columns, is bare and ends the box.
    self.assertTrue(
      (picture[top : top + size, right + 1 - size : right + 1] == colour).all()
    )
    start = right + 1 - size - 3 * (size + gap)
    for step in range(3):
      x = start + step * (size + gap)
      canvas = picture[bottom + 1 - size : bottom + 1, x : x + size]
      for token in range(4):
        row, column = divmod(token, 2)
        cell = canvas[row * 12 : row * 12 + 12, column * 12 : column * 12 + 12]
        hidden = masked[step, token]
        centre = pictures.HIDDEN if hidden else colour
        self.assertEqual(tuple(cell[6, 6]), centre)
        fresh = not hidden and (step == 0 or masked[step - 1, token])
        self.assertEqual(tuple(cell[0, 6]) == pictures.ACCENT, fresh)

  def test_reveal_refuses_masks_of_another_grid(self):
    images = _flat((1, 1, 1), 2, size=8)
    for shape in ((3, 4), (2, 9), (2, 5)):
      with self.assertRaisesRegex(ValueError, 'do not fit'):
        pictures.save_reveal(self.path, [('a', images, np.zeros(shape, bool))])

  def test_half_a_file_is_replaced_and_a_whole_one_survives_a_failure(self):
    images = np.concatenate([_flat((1, 1, 1)), _flat((9, 9, 9))])
    pictures.save_grid(self.path, images, 2)
    whole = self.path.read_bytes()
    self.path.write_bytes(whole[: len(whole) // 2])
    pictures.save_grid(self.path, images, 2)
    self.assertEqual(self.path.read_bytes(), whole)
    with self.assertRaisesRegex(ValueError, 'NaN'):
      pictures.save_grid(self.path, images * np.nan, 2)
    self.assertEqual(self.path.read_bytes(), whole)
    self.assertEqual(
      [p.name for p in self.path.parent.iterdir()], [self.path.name]
    )


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
      curves.Panel('reward', {'reward': ''}),
      curves.Panel('accuracy', {'accuracy': 'all', 'absent': 'none'}, (0, 1)),
      curves.Panel('nothing', {'absent': ''}),
    ]
    curves.save_training_plot(self.path, rows, panels, 'Training')
    two = _open(self.path).shape
    curves.save_training_plot(self.path, rows, panels[:1])
    self.assertGreater(two[1], _open(self.path).shape[1])
    with self.assertRaisesRegex(ValueError, 'none of the metrics'):
      curves.save_training_plot(self.path, rows, panels[2:])

  def test_smoothing_keeps_straight_lines_and_skips_holes(self):
    line = np.arange(300.0)
    np.testing.assert_allclose(curves._smooth(line), line)
    constant = np.ones(300)
    constant[7] = np.nan
    np.testing.assert_allclose(curves._smooth(constant), np.ones(300))
    self.assertLess(
      curves._smooth(np.random.RandomState(0).randn(300)).std(), 0.5
    )


class ResultsTest(parameterized.TestCase):
  @parameterized.parameters(
    ('maskgit', results.HAND_MADE),
    ('grid', results.TUNED),
    ('non-adaptive_frechet', results.NON_ADAPTIVE),
    ('adanat_frechet', results.ADAPTIVE),
    ('adanat_mean_table', results.FROZEN),
    ('adanat_shuffled', results.SHUFFLED),
  )
  def test_roles_by_name(self, name, role):
    self.assertEqual(results.role_of({'name': name}), role)
    self.assertEqual(
      results.role_of({'name': name, 'role': results.TUNED}), results.TUNED
    )

  def test_trainings_are_pooled(self):
    data = _results()
    pooled = results.pool(results.entries_of(data, 'adanat', 4), 'frechet')
    # 9, 11, 10, 12: mean 10.5, variance 5 / 3. The trainings' means are 10
    # and 11: their standard error, .5, is less than that of the values, .645.
    self.assertAlmostEqual(pooled.mean, 10.5)
    self.assertAlmostEqual(pooled.std, math.sqrt(5 / 3))
    self.assertAlmostEqual(pooled.standard_error, math.sqrt(5 / 12))
    apart = [_entry('a', [1.0, 1.0]), _entry('a', [3.0, 3.0])]
    # Four values tell .577, the two trainings only 1.
    self.assertAlmostEqual(results.pool(apart, 'frechet').standard_error, 1.0)
    self.assertIsNone(results.pool(apart, 'recall'))


class TablesTest(absltest.TestCase):
  def test_method_table(self):
    lines = tables.method_table(_results(), 8).splitlines()
    self.assertEqual(lines[0], '| method | Fréchet distance | precision |')
    self.assertEqual(lines[2], '| maskgit | 14.50 ± 0.71 | **0.500** ± 0.100 |')
    self.assertEqual(
      lines[3], '| adanat | **8.50** ± 0.71 | **0.500** ± 0.100 |'
    )
    self.assertLen(lines, 4)

  def test_trainings_get_a_column_when_there_are_several(self):
    lines = tables.method_table(_results(), 4).splitlines()
    self.assertStartsWith(lines[0], '| method | training | Fréchet')
    self.assertStartsWith(lines[2], '| maskgit |  | 21.00 ± 1.41 |')
    self.assertStartsWith(lines[6], '| adanat | 1 | **10.00** ± 1.41 |')
    self.assertStartsWith(lines[7], '| adanat | 2 | 11.00 ± 1.41 |')

  def test_floor_table(self):
    lines = tables.floor_table(_results()).splitlines()
    self.assertEqual(lines[0], '| floor | Fréchet distance | precision |')
    self.assertEqual(lines[2], '| test images | 2.00 |  |')
    self.assertEqual(lines[3], '| many steps | 6.00 | 0.900 |')

  def test_grid_table_begins_with_the_best(self):
    lines = tables.grid_table(_results()['grid'], count=2).splitlines()
    self.assertEqual(lines[0], '| curve | guidance scale | Fréchet distance |')
    self.assertEqual(lines[2], '| cosine | 0.5 | 11.00 |')
    self.assertEqual(lines[3], '| pow2 | 1 | 12.00 |')
    self.assertLen(lines, 4)

  def test_values_table(self):
    line = tables.values_table(_results()['methods'][-1:]).splitlines()[2]
    self.assertEqual(line, '| adanat | mask ratio |' + ' 0.50 ± 0.25 |' * 8)

  def test_differences(self):

    def pooled(mean, error):
      return results.Pooled(mean, 2 * error, error)

    # Standard errors .3 and .4: a difference is clear beyond 2 * .5 = 1.
    self.assertEqual(
      tables.difference(pooled(8.9, 0.3), pooled(10.0, 0.4), 'X'),
      '11 % below X',
    )
    self.assertEqual(
      tables.difference(pooled(10.9, 0.3), pooled(10.0, 0.4), 'X'),
      'not told apart from X by these seeds (9 % above)',
    )
    self.assertEqual(
      tables.difference(pooled(15.0, math.nan), pooled(10.0, 0.4), 'X'),
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
    )
    self.assertStartsWith(text, '# Digits\n')
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
