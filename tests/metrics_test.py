"""Tests of the measures: closed forms, hand-computed numbers, invariants."""

import json
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.metrics import (
  frechet,
  inception_score,
  kernel_distance,
  precision_recall,
)
from adanat_jax.metrics.pixels import PixelPrincipalComponents
from adanat_jax.metrics.tally import SampleTally

DATA = pathlib.Path(__file__).parent / 'data'


def _features(count: int = 60, dimensions: int = 5, seed: int = 0):
  rng = np.random.RandomState(seed)
  mixing = rng.randn(dimensions, dimensions)
  return (rng.randn(count, dimensions) @ mixing + 3.0).astype(np.float32)


class FrechetTest(parameterized.TestCase):
  def test_commuting_gaussians_have_a_closed_form(self):
    # Diagonal covariances: |shift|^2 + sum (s_a - s_b)^2 of the deviations.
    a = frechet.Gaussian(np.array([1.0, 2.0, 0.0]), np.diag([4.0, 9.0, 0.0]))
    b = frechet.Gaussian(np.array([0.0, 2.0, 2.0]), np.diag([1.0, 1.0, 0.25]))
    expected = 1.0 + 4.0 + (2 - 1) ** 2 + (3 - 1) ** 2 + 0.5**2
    self.assertAlmostEqual(frechet.frechet_distance(a, b), expected, places=12)
    self.assertAlmostEqual(frechet.frechet_distance(b, a), expected, places=12)

  def test_covariances_that_do_not_commute(self):
    # In two dimensions tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)). Here
    # M = [[2, 1], [1, 2]] diag(1, 4): tr = 10, det = 12, and the traces of
    # the two covariances are 4 and 5.
    a = frechet.Gaussian(np.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]]))
    b = frechet.Gaussian(np.zeros(2), np.diag([1.0, 4.0]))
    expected = 9.0 - 2.0 * np.sqrt(10.0 + 2.0 * np.sqrt(12.0))
    self.assertAlmostEqual(frechet.frechet_distance(a, b), expected, places=12)

  def test_moments_of_numbers_by_hand(self):
    # Means 2 and 3; deviations (-1, 1, 0) and (-2, 2, 0): unbiased.
    gaussian = frechet.gaussian_of(np.array([[1.0, 1.0], [3, 5], [2, 3]]))
    np.testing.assert_allclose(gaussian.mean, [2.0, 3.0])
    np.testing.assert_allclose(gaussian.covariance, [[1.0, 2.0], [2.0, 4.0]])

  def test_a_set_is_at_distance_zero_of_itself(self):
    for count in (4, 60):  # Rank-deficient and of full rank.
      gaussian = frechet.gaussian_of(_features(count, 8))
      distance = frechet.frechet_distance(gaussian, gaussian)
      self.assertBetween(distance, 0.0, 1e-12 * np.trace(gaussian.covariance))

  @parameterized.parameters(1, 7, 25, 60)
  def test_streaming_equals_one_batch(self, batch_size):
    # A large offset would ruin sums of squares.
    features = _features().astype(np.float64) + 1e6
    accumulator = frechet.MomentAccumulator()
    for first in range(0, 60, batch_size):
      accumulator.update(features[first : first + batch_size])
    self.assertEqual(accumulator.count, 60)
    result = accumulator.result()
    np.testing.assert_allclose(result.mean, features.mean(0), rtol=1e-14)
    np.testing.assert_allclose(
      result.covariance, np.cov(features.T), rtol=1e-8, atol=1e-8
    )

  def test_order_and_portions_do_not_matter(self):
    features = _features()
    straight = frechet.gaussian_of(features)
    accumulator = frechet.MomentAccumulator()
    shuffled = features[np.random.RandomState(1).permutation(60)]
    with mock.patch.object(frechet, '_BLOCK', 12):
      for part in np.split(shuffled, [13, 13, 50]):
        accumulator.update(part)
    merged = accumulator.result()
    np.testing.assert_allclose(merged.mean, straight.mean, rtol=1e-12)
    np.testing.assert_allclose(
      merged.covariance, straight.covariance, rtol=1e-10, atol=1e-12
    )

  def test_padding_is_not_counted(self):
    features = _features(12)
    padded = np.concatenate([features, np.full((4, 5), np.nan, np.float32)])
    mask = np.arange(16) < 12
    accumulator = frechet.MomentAccumulator()
    accumulator.update(padded, mask)
    accumulator.update(padded, np.zeros(16, bool))
    self.assertEqual(accumulator.count, 12)
    np.testing.assert_array_equal(
      accumulator.result().covariance, frechet.gaussian_of(features).covariance
    )

  def test_the_published_form_gives_the_same(self):
    # The original sums real parts of the square roots of the eigenvalues of
    # the product, which is not symmetric.
    a, b = _features(300, 40), 0.7 * _features(200, 40, seed=1) + 0.1
    one, other = frechet.gaussian_of(a), frechet.gaussian_of(b)
    roots = np.emath.sqrt(
      np.linalg.eigvals(np.cov(a.T, dtype=float) @ np.cov(b.T, dtype=float))
    )
    shift = a.astype(float).mean(0) - b.astype(float).mean(0)
    traces = one.covariance.trace() + other.covariance.trace()
    expected = shift @ shift + traces - 2 * roots.real.sum()
    np.testing.assert_allclose(
      frechet.frechet_distance(one, other), expected, rtol=1e-9
    )

  def test_memory_does_not_grow_with_the_number_of_small_batches(self):
    sizes = []
    for batches in (400, 1200):
      accumulator = frechet.MomentAccumulator()
      for batch in np.split(_features(4 * batches, 8), batches):
        accumulator.update(batch)
      self.assertEqual(accumulator.count, 4 * batches)
      sizes.append(sum(x.nbytes for x in accumulator.state().values()))
    # No more than the moments and a block of rows that wait to be merged.
    self.assertLess(max(sizes), 8 * (8 + 64 + 1024 * 8 + 1))

  def test_looking_and_putting_aside_change_no_bit(self):
    features = _features(2500, 6)
    straight, stopped = frechet.MomentAccumulator(), frechet.MomentAccumulator()
    for batch in np.split(features, 50):
      straight.update(batch)
      stopped.update(batch)
      if stopped.count in (100, 1050, 2000):
        stopped.result()
        state = stopped.state()
        stopped = frechet.MomentAccumulator()
        stopped.restore(state)
    np.testing.assert_array_equal(
      stopped.result().covariance, straight.result().covariance
    )
    np.testing.assert_allclose(
      straight.result().covariance, np.cov(features.T, dtype=float), rtol=1e-10
    )

  def test_mistakes_are_named(self):
    accumulator = frechet.MomentAccumulator()
    with self.assertRaisesRegex(ValueError, 'at least 2 features, got 0'):
      accumulator.result()
    with self.assertRaisesRegex(ValueError, '1 of 2 features are not finite'):
      accumulator.update(np.array([[1.0, np.inf], [0.0, 0.0]]))
    accumulator.update(np.zeros((3, 4)))
    with self.assertRaisesRegex(ValueError, '5 dimensions, earlier ones had 4'):
      accumulator.update(np.zeros((3, 5)))
    with self.assertRaisesRegex(ValueError, r'mask must be .n. = \(3,\)'):
      accumulator.update(np.zeros((3, 4)), np.ones(2, bool))
    with self.assertRaisesRegex(ValueError, '4 and 5 dimensions'):
      frechet.frechet_distance(
        frechet.gaussian_of(np.zeros((2, 4))),
        frechet.gaussian_of(np.zeros((2, 5))),
      )

  def test_moments_from_files(self):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20, 300)) ** 3
    whole = frechet.gaussian_of(features)
    mean, covariance = whole.mean, whole.covariance
    # Rounding in other people's sums is no mistake.
    for mu, sigma in (
      (mean, covariance),
      (mean.astype(np.float32), covariance.astype(np.float32)),
      (mean, covariance + 1e-7 * rng.normal(size=covariance.shape)),
      (mean, np.cov(features.astype(np.float32).T, dtype=np.float32)),
      (np.arange(3), np.eye(3, dtype=int)),
      (np.zeros(2), np.zeros((2, 2))),
      (np.zeros(2), np.eye(2) * 1e-30),
      (np.zeros(1), np.ones((1, 1))),
    ):
      checked = frechet.checked(mu, sigma)
      np.testing.assert_array_equal(checked.mean, mu)
      np.testing.assert_array_equal(checked.covariance, sigma)
      self.assertEqual(checked.mean.dtype, np.float64)

  def test_moments_of_nothing(self):
    eye, zeros = np.eye(3), np.zeros(3)
    swapped = np.diag([1.0, 1e-3, 1e-3])
    swapped[1, 2] = swapped[2, 1] = 2e-3
    skew = np.eye(300)
    skew[290, 3] += 1e-3
    for mu, sigma, words in (
      (zeros, np.eye(2), r'\(3,\) and sigma \(2, 2\)'),
      (eye, eye, 'not the moments'),
      (np.zeros(0), np.zeros((0, 0)), 'not the moments'),
      (zeros, eye * np.nan, r'sigma holds NaN or infinity \(9 of 9\)'),
      (zeros + [0, np.inf, 0], eye, r'mu holds NaN or infinity \(1 of 3\)'),
      (zeros + 1e200, eye, r'mu holds 1e\+200: no features do'),
      (zeros, -eye, '3 variances are negative'),
      (zeros, np.triu(np.ones((3, 3))), 'differs from its transpose by 1'),
      (np.zeros(300), skew, 'differs from its transpose by 0.001'),
      (zeros, np.ones((3, 3)) - eye, 'some direction is negative'),
      (zeros, swapped, 'some direction is negative'),
      (zeros, 1j * eye, 'sigma holds complex128'),
      (zeros.astype(str), eye, 'mu holds <U32'),
      (zeros, eye.astype(bool), 'sigma holds bool'),
    ):
      with self.assertRaisesRegex(UserError, words):
        frechet.checked(mu, sigma)

  def test_no_distance_from_nonsense(self):
    good = frechet.Gaussian(np.zeros(3), np.eye(3))
    for bad in (
      frechet.Gaussian(np.zeros(3), -np.eye(3)),
      frechet.Gaussian(np.zeros(3), np.eye(3) * np.nan),
      frechet.Gaussian(np.zeros(3), np.ones((3, 3)) - np.eye(3)),
    ):
      with self.assertRaises(ValueError):
        frechet.frechet_distance(good, bad)
      with self.assertRaises(ValueError):
        frechet.frechet_distance(bad, good)


def _inception_scores(logits, splits=10, seed=2020):
  """The score of each split, all logits counted at once."""
  accumulator = inception_score.ScoreAccumulator(len(logits), splits, seed)
  accumulator.update(logits)
  return accumulator.scores()


class InceptionScoreTest(absltest.TestCase):
  def test_certain_and_even_predictions_score_the_number_of_classes(self):
    logits = np.tile(1e4 * np.eye(4), (5, 1))
    self.assertAlmostEqual(
      _inception_scores(logits, splits=5, seed=None).mean(), 4.0
    )

  def test_equal_predictions_score_one(self):
    logits = np.tile([2.0, -1.0, 0.5], (30, 1))
    self.assertAlmostEqual(_inception_scores(logits).mean(), 1.0)

  def test_two_predictions_by_hand(self):
    # p = (.9, .1) and (.1, .9), marginal (.5, .5): both KL are
    # .9 log 1.8 + .1 log .2 = .368064, and exp of it 1.444935.
    logits = np.log([[0.9, 0.1], [0.1, 0.9]]) + 7.0
    (score,) = _inception_scores(logits, splits=1)
    self.assertAlmostEqual(
      score, np.exp(0.9 * np.log(1.8) + 0.1 * np.log(0.2)), places=12
    )

  def test_splits_are_scored_apart(self):
    # Each half alone holds one kind of prediction only: 1; together: 2.
    logits = np.repeat(1e4 * np.eye(2), 3, axis=0)
    np.testing.assert_allclose(_inception_scores(logits, 2, None), [1.0, 1.0])
    np.testing.assert_allclose(_inception_scores(logits, 1, None), [2.0])

  def test_mistakes_are_named(self):
    with self.assertRaisesRegex(ValueError, '3 samples into 10 splits'):
      _inception_scores(np.zeros((3, 2)))
    with self.assertRaisesRegex(ValueError, 'finite'):
      _inception_scores(np.full((30, 2), np.nan))

  def test_in_batches_put_aside_and_taken_up_again(self):
    logits = 3 * np.random.RandomState(0).randn(203, 7)
    whole = _split_scores(logits)
    one = inception_score.ScoreAccumulator(203)
    one.update(logits[:90])
    other = inception_score.ScoreAccumulator(203)
    other.restore(one.state())
    with self.assertRaisesRegex(ValueError, '90 of 203 samples'):
      other.scores()
    other.update(logits[90:91])
    other.update(logits[91:])
    np.testing.assert_allclose(other.scores(), whole, rtol=1e-12)
    with self.assertRaisesRegex(ValueError, '204 samples, 203 were'):
      other.update(logits[:1])


def _split_scores(logits: np.ndarray) -> np.ndarray:
  """The score of each of ten splits, by its definition."""
  p = np.exp(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
  p = p[np.random.RandomState(2020).permutation(len(p))]
  parts = [p[i * len(p) // 10 : (i + 1) * len(p) // 10] for i in range(10)]
  return np.array(
    [np.exp((q * np.log(q / q.mean(0))).sum(1).mean()) for q in parts]
  )


class SampleTallyTest(absltest.TestCase):
  def test_counts_what_it_says(self):
    features, logits = _features(30), _features(30, 4, seed=1)
    values = np.linspace(0, 1, 30)
    tally = SampleTally(30, num_kept=12)
    for part in (slice(0, 10), slice(10, 25), slice(25, 30)):
      if part.start == 25:
        state, tally = tally.state(), SampleTally(30, num_kept=12)
        tally.restore(state)
      tally.update(features[part], logits[part], {'value': values[part]})
    self.assertEqual(tally.count, 30)
    np.testing.assert_array_equal(tally.kept, features[:12])
    self.assertAlmostEqual(tally.means()['value'], 0.5, places=12)
    self.assertAlmostEqual(
      tally.class_score(), _inception_scores(logits).mean(), places=12
    )
    np.testing.assert_allclose(
      tally.moments.result().covariance,
      np.cov(features.T, dtype=float),
      rtol=1e-10,
    )

  def test_mistakes_are_named(self):
    tally = SampleTally(4)
    with self.assertRaisesRegex(ValueError, '5 samples, 4 were expected'):
      tally.update(_features(5))
    with self.assertRaisesRegex(ValueError, 'value of some samples'):
      tally.update(_features(2), None, {'value': np.array([0.0, np.nan])})
    tally = SampleTally(4)
    tally.update(_features(4))
    self.assertIsNone(tally.class_score())


class ReferenceTest(absltest.TestCase):
  def test_agrees_with_the_published_implementation(self):
    with np.load(DATA / 'fid_is_shared.npz') as file:
      case = dict(file)
    self.assertIn('calc_fid', json.loads(case['meta/json'].tobytes())['note'])
    distance = frechet.frechet_distance(
      frechet.gaussian_of(case['in/features']),
      frechet.Gaussian(case['in/mu_ref'], case['in/sigma_ref']),
    )
    # Theirs takes the moments in float32.
    np.testing.assert_allclose(distance, case['out/fid'], rtol=1e-5)
    score = lambda *args, **kwargs: _inception_scores(*args, **kwargs).mean()
    logits = case['in/logits']
    for ours, name in (
      (score(logits), 'isc'),
      (score(logits, seed=None), 'isc_noshuffle'),
      (score(logits, splits=3, seed=7), 'isc_splits3_seed7'),
    ):
      np.testing.assert_allclose(ours, case[f'out/{name}'], rtol=1e-12)


class PrecisionRecallTest(parameterized.TestCase):
  def test_identical_sets_cover_each_other(self):
    features = _features(50)
    features[10:20] = features[0]  # Equal samples have balls of radius 0.
    result = precision_recall.precision_recall(features, features)
    self.assertEqual((result.precision, result.recall), (1.0, 1.0))

  def test_distant_sets_do_not_touch(self):
    features = _features(50)
    result = precision_recall.precision_recall(features, features + 1e3)
    self.assertEqual((result.precision, result.recall), (0.0, 0.0))

  def test_a_line_by_hand(self):
    real = np.array([[0.0], [1.0], [2.0], [9.0]])
    generated = np.array([[0.0], [0.5], [-5.0], [20.0]])
    # k = 1. Radii of the generated: .5, .5, 5, 19.5; they cover [-.5, 1],
    # [-10, 0] and [.5, 39.5]: every real point. Radii of the real: 1, 1, 1,
    # 7; they cover [-1, 3] and [2, 16]: two of four generated points.
    result = precision_recall.precision_recall(real, generated, 1)
    self.assertEqual((result.precision, result.recall), (0.5, 1.0))

  def test_a_lost_mode_costs_recall_and_not_precision(self):
    rng = np.random.RandomState(0)
    modes = np.array([[0.0, 0.0], [50.0, 0.0]])
    real = modes[np.arange(80) % 2] + rng.randn(80, 2)
    generated = rng.randn(80, 2)
    result = precision_recall.precision_recall(real, generated)
    self.assertGreater(result.precision, 0.8)
    self.assertBetween(result.recall, 0.3, 0.5)

  @parameterized.parameters(1, 7)
  def test_chunks_of_the_distances_do_not_matter(self, num_rows):
    real, generated = _features(40), _features(30, seed=1)
    whole = precision_recall.precision_recall(real, generated)
    mebibytes = num_rows * 8 * len(real) / 2**20
    with mock.patch.object(precision_recall, '_WORKING_MEMORY', mebibytes):
      cut = precision_recall.precision_recall(real, generated)
    self.assertEqual(whole, cut)

  def test_mistakes_are_named(self):
    with self.assertRaisesRegex(ValueError, '3 neighbours.*3 real and 9'):
      precision_recall.precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with self.assertRaisesRegex(ValueError, r'\(9, 2\) and \(9, 3\)'):
      precision_recall.precision_recall(np.zeros((9, 2)), np.zeros((9, 3)))


class DensityCoverageTest(absltest.TestCase):
  def test_a_line_by_hand(self):
    real = np.array([[0.0], [1.0], [2.0], [9.0]])
    generated = np.array([[0.0], [0.5], [-5.0], [9.0]])
    # k = 1. Balls of the real: [-1, 1], [0, 2], [1, 3] and [2, 16]. The
    # generated lie in 2, 2, 0 and 1 of them, and three of them hold any.
    result = precision_recall.density_coverage(real, generated, 1)
    self.assertEqual((result.density, result.coverage), (1.25, 0.75))

  def test_sets_of_one_law(self):
    random = np.random.RandomState(0)
    result = precision_recall.density_coverage(
      random.randn(600, 3), random.randn(600, 3)
    )
    self.assertAlmostEqual(result.density, 1.0, delta=0.1)
    self.assertAlmostEqual(result.coverage, 1 - 0.5**5, delta=0.02)

  def test_an_outlier_raises_precision_alone(self):
    real = _features(80)
    real[0] = 1e3
    generated = _features(80, seed=1) + 300.0
    self.assertEqual(
      precision_recall.precision_recall(real, generated).precision, 1.0
    )
    result = precision_recall.density_coverage(real, generated)
    self.assertEqual((result.density, result.coverage), (1 / 5, 1 / 80))


class KernelDistanceTest(parameterized.TestCase):
  @parameterized.parameters(
    # Pairs within the sets: 1^3 and 3^3; across: 1, 1, 2^3 and 3^3.
    ([[0], [1]], [[1], [2]], 1 + 27 - 2 * 37 / 4),
    # Products are halved: 1 and 1; across: 3^3, 1, 3^3 and 1.
    ([[2, 0], [0, 2]], [[2, 2], [0, 0]], 1 + 1 - 2 * 56 / 4),
  )
  def test_two_points_each_by_hand(self, real, generated, expected):
    for rows in (1, 1024):
      with mock.patch.object(kernel_distance, '_ROWS', rows):
        found = kernel_distance.squared_mmd(np.array(real), np.array(generated))
      self.assertAlmostEqual(found, expected, places=12)

  def test_few_samples_do_not_bias_it(self):
    random = np.random.RandomState(0)
    for shift in (0.0, 0.5):
      few, many = (
        [
          kernel_distance.squared_mmd(
            random.randn(size, 4), random.randn(size, 4) + shift
          )
          for _ in range(count)
        ]
        for size, count in ((6, 1500), (200, 20))
      )
      error = np.std(few) / np.sqrt(1500)
      self.assertAlmostEqual(np.mean(few), np.mean(many), delta=4 * error)

  def test_halves_of_small_sets_tell_the_error(self):
    random = np.random.RandomState(0)
    sets = [
      (random.randn(60, 4), random.randn(90, 4) + 0.5) for _ in range(100)
    ]
    whole = [kernel_distance.squared_mmd(*pair) for pair in sets]
    found = [kernel_distance.kernel_distance(*pair) for pair in sets[:8]]
    self.assertEqual(found[0], kernel_distance.kernel_distance(*sets[0]))
    for ours, estimate in zip(found, whole, strict=False):
      self.assertAlmostEqual(ours.mean, estimate, delta=0.3 * ours.std)
    error = np.mean([ours.std for ours in found])
    self.assertBetween(error / np.std(whole), 0.75, 1.25)

  def test_mistakes_are_named(self):
    with self.assertRaisesRegex(ValueError, '1 real and 9 generated'):
      kernel_distance.squared_mmd(np.zeros((1, 2)), np.zeros((9, 2)))
    with self.assertRaisesRegex(ValueError, r'\(9, 2\) and \(9, 3\)'):
      kernel_distance.squared_mmd(np.zeros((9, 2)), np.zeros((9, 3)))
    with self.assertRaisesRegex(ValueError, 'finite'):
      kernel_distance.squared_mmd(np.ones((2, 2)), np.full((2, 2), np.nan))


class PixelsTest(absltest.TestCase):
  def test_finds_the_direction_in_which_images_vary(self):
    # All variance lies in the brightness of one 2x2 box of 4x4 images.
    rng = np.random.RandomState(0)
    images = np.full((20, 4, 4, 1), 0.25)
    brightness = rng.rand(20)
    images[:, :2, 2:] = brightness[:, None, None, None]
    projection = PixelPrincipalComponents.fit(images, 1, size=2)
    np.testing.assert_allclose(
      projection.components[:, 0], [0, 1, 0, 0], atol=1e-12
    )
    np.testing.assert_allclose(
      projection.features(images)[:, 0],
      brightness - brightness.mean(),
      atol=1e-12,
    )

  def test_all_components_keep_all_distances(self):
    images = np.random.RandomState(1).rand(30, 8, 8, 1).astype(np.float32)
    projection = PixelPrincipalComponents.fit(images, 16, size=4)
    boxes = images.astype(np.float64).reshape(30, 4, 2, 4, 2).mean((2, 4))
    features = projection.features(images)
    np.testing.assert_allclose(
      np.linalg.norm(features[3] - features[5]),
      np.linalg.norm(boxes[3] - boxes[5]),
      rtol=1e-10,
    )
    variance = features.var(axis=0)
    np.testing.assert_array_equal(variance, np.sort(variance)[::-1])

  def test_a_set_of_brighter_images_is_farther(self):
    rng = np.random.RandomState(2)
    images = rng.rand(60, 16, 16, 1)
    projection = PixelPrincipalComponents.fit(images)
    reference = frechet.gaussian_of(projection.features(images))
    near, far = (
      frechet.frechet_distance(
        frechet.gaussian_of(projection.features(images + shift)), reference
      )
      for shift in (0.05, 0.2)
    )
    self.assertLess(near, far)

  def test_mistakes_are_named(self):
    with self.assertRaisesRegex(ValueError, 'multiples of 8'):
      PixelPrincipalComponents.fit(np.zeros((40, 12, 16, 1)))
    with self.assertRaisesRegex(ValueError, '10 images.*allow 1 to 9'):
      PixelPrincipalComponents.fit(np.zeros((10, 8, 8, 1)))


if __name__ == '__main__':
  absltest.main()
