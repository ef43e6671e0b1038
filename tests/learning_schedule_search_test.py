"""Searching schedules, by hand on quadratics; AutoNAT's trajectory."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import loop, step as step_lib, tables
from adanat_jax.learning import schedule_search
from adanat_jax.stages import search_common
from parity_cases import suite
from support import reference_arrays

DATA = pathlib.Path(__file__).parent / 'data'


def ask(proposals, function, count):
  """The points that an optimizer asks for, and where it is after them."""
  points, proposal = [], next(proposals)
  for _ in range(count):
    points.append(proposal.point)
    proposal = proposals.send(function(proposal.point))
  return points, proposal.centre


class PointTest(absltest.TestCase):
  def test_first_point(self):
    # T = 8, as the original's lists begin.
    ratio, masking, sampling, guidance = np.split(
      schedule_search.first_point(8), [7, 14, 22]
    )
    np.testing.assert_allclose(
      ratio, [math.cos(math.pi * k / 16) for k in range(1, 8)], rtol=1e-15
    )
    np.testing.assert_array_equal(masking, np.arange(8, 1, -1) / 8)
    np.testing.assert_array_equal(sampling, np.ones(8))
    np.testing.assert_array_equal(guidance, np.arange(1, 9) / 8)

  def test_table_ends_with_nothing_masked(self):
    table = schedule_search.table_of(np.arange(1.0, 11.0))
    np.testing.assert_array_equal(table.mask_ratio, [1, 2, 0])
    np.testing.assert_array_equal(table.masking_temperature, [3, 4, 0])
    np.testing.assert_array_equal(table.sampling_temperature, [5, 6, 7])
    np.testing.assert_array_equal(table.guidance_scale, [8, 9, 10])

  def test_one_step_has_two_numbers(self):
    table = schedule_search.table_of(schedule_search.first_point(1))
    values = [*table.by_name().values()]
    np.testing.assert_array_equal(values, [[0.0], [1.0], [0.0], [1.0]])

  def test_clamped(self):
    point = np.array([-0.5, 1.0, 0.0, 2.0, -1.0, 5.0, 0.5, 0.0, 1e-5, 7.0])
    expected = [0.0, 0.99, 1e-4, 2.0, 1e-4, 5.0, 0.5, 1e-4, 1e-4, 7.0]
    np.testing.assert_array_equal(schedule_search.clamped(point), expected)

  def test_a_table_is_a_point_again(self):
    point = np.arange(1.0, 11.0)
    again = schedule_search.point_of(schedule_search.table_of(point))
    np.testing.assert_array_equal(again, point)
    self.assertEqual(again.dtype, np.float64)

  def test_stretched_to_more_steps(self):
    # T = 2: one ratio at half of the way, temperatures and guidance at a
    # quarter and at three quarters.
    point = np.array([0.8, 3.0, 1.0, 5.0, 0.0, 2.0])
    expected = [0.9, 0.8, 0.4]
    expected += [3.0, 3.0, 3.0]
    # At an eighth, three, five and seven.
    expected += [1.0, 2.0, 4.0, 5.0]
    expected += [0.0, 0.5, 1.5, 2.0]
    np.testing.assert_allclose(schedule_search.stretched(point, 4), expected)
    np.testing.assert_allclose(schedule_search.stretched(point, 2), point)

  def test_stretched_from_one_step(self):
    # Nothing is known of masks: a line, and the temperatures of the beginning.
    np.testing.assert_allclose(
      schedule_search.stretched(np.array([2.0, 0.5]), 3),
      [2 / 3, 1 / 3, 1.0, 2 / 3, 2.0, 2.0, 2.0, 0.5, 0.5, 0.5],
    )

  def test_counts_of_the_published_table(self):
    self.assertEqual(
      schedule_search.masked_counts(tables.autonat_large(), 256),
      [244, 225, 203, 190, 159, 104, 66, 1],
    )

  def test_settled_tables_mean_the_same_under_all_options(self):
    random = np.random.default_rng(0)
    embedding = jnp.asarray(random.normal(size=(6, 5)), jnp.float32)

    def denoiser(tokens, condition, cache):
      seen = embedding[tokens]
      logits = seen + jnp.roll(seen, 1, axis=1) + condition[:, None, None]
      return seen, logits, cache

    @jax.jit
    def tokens_of(table, noise):
      return [
        loop.decode(
          denoiser,
          tables.table_policy(table),
          tokens=loop.full_mask(3, 9, 5),
          condition=jnp.zeros(3),
          null_condition=None,
          keys=jax.random.split(jax.random.key(0), 3),
          num_steps=4,
          mask_token=5,
          options=options,
          noise=noise,
        ).tokens
        for options in (step_lib.AUTONAT, step_lib.ADANAT, step_lib.MASKGIT)
      ]

    noise = loop.Noise(
      jnp.asarray(random.gumbel(size=(4, 3, 9, 5)), jnp.float32),
      jnp.asarray(random.gumbel(size=(4, 3, 9)), jnp.float32),
    )
    # Ratios that rise, that ask for all, for nothing, and for what they get.
    differs = []
    for ratio, counts in (
      ([0.3, 0.9, 0.5], [2, 1, 1, 1]),
      ([1.0, 1.0, 1.0], [8, 7, 6, 1]),
      ([0.0, 0.0, 0.9], [1, 1, 1, 1]),
      ([0.8, 0.5, 0.2], [7, 4, 1, 1]),
    ):
      table = schedule_search.table_of(
        np.concatenate([ratio, schedule_search.first_point(4)[3:]])
      )
      self.assertEqual(schedule_search.masked_counts(table, 9), counts)
      expected, unclamped, _ = tokens_of(table, noise)
      differs.append(not np.array_equal(expected, unclamped))
      for found in tokens_of(schedule_search.settled(table, 9), noise):
        np.testing.assert_array_equal(found, expected)
    self.assertEqual(differs, [True, True, True, False])


class FiniteDifferencesTest(absltest.TestCase):
  def test_three_updates_by_hand(self):
    # T = 1: sampling temperature s and guidance scale g, both from 1.
    function = lambda point: (point[0] - 2) ** 2 + 3 * point[1]
    proposals = schedule_search.finite_differences(
      schedule_search.first_point(1), schedule_search.Descent()
    )
    points, centre = ask(proposals, function, 9)
    # Derivatives (0.81 - 1) / 0.1 and 3; then (0.5041 - 0.6561) / 0.1 and 3,
    # with half of the steps before; then g would come to -0.275.
    expected = [[1, 1], [1.1, 1], [1, 1.1]]
    expected += [[1.19, 0.7], [1.29, 0.7], [1.19, 0.8]]
    expected += [[1.437, 0.25], [1.537, 0.25], [1.437, 0.35]]
    np.testing.assert_allclose(points, expected, rtol=1e-12)
    derivative = (0.463**2 - 0.563**2) / 0.1
    np.testing.assert_allclose(
      centre, [1.437 - 0.1 * (derivative - 0.5 * 2.47), 1e-4], rtol=1e-12
    )

  def test_a_mask_ratio_is_moved_to_1_at_most(self):
    # The derivative is that along the way that was left: 1, not 0.59.
    first = schedule_search.first_point(2)
    descent = schedule_search.Descent(ratio_difference=0.5, momentum=0.0)
    points, centre = ask(
      schedule_search.finite_differences(first, descent), lambda p: p[0], 7
    )
    self.assertEqual(points[1][0], 1.0)
    self.assertAlmostEqual(centre[0], first[0] - 1e-3, places=12)
    # And it stays below 1.
    _, centre = ask(
      schedule_search.finite_differences(first, descent),
      lambda p: -1e4 * p[0],
      7,
    )
    self.assertEqual(centre[0], 0.99)
    np.testing.assert_array_equal(centre[1:], first[1:])

  def test_limit_on_derivatives(self):
    descent = schedule_search.Descent(clip_gradient=0.5)
    _, centre = ask(
      schedule_search.finite_differences(
        schedule_search.first_point(1), descent
      ),
      lambda p: 9 * p[0] - 0.2 * p[1],
      3,
    )
    np.testing.assert_allclose(centre, [1 - 0.05, 1 + 0.02], rtol=1e-12)


class CovarianceAdaptationTest(absltest.TestCase):
  def propose(self, seed=3, guided=True):
    return schedule_search.covariance_adaptation(
      schedule_search.first_point(4), schedule_search.Spread(), seed, guided
    )

  def test_comes_closer_within_bounds_and_again(self):
    # A ratio and guidance scales come to their bounds, temperatures to a third
    # and three times of where they begin.
    first = schedule_search.first_point(4)
    is_temperature = schedule_search.is_temperature(first)
    goal = first + np.tile([0.3, -0.5], 7)
    goal[is_temperature] = first[is_temperature] * np.tile([3, 1 / 3, 3], 3)[:7]
    goal = schedule_search.clamped(goal)
    self.assertEqual(goal[0], 0.99)
    self.assertEqual(goal[11], 1e-4)
    function = lambda point: float(np.sum((point - goal) ** 2))
    points, centre = ask(self.propose(), function, 300)
    np.testing.assert_array_equal(points[0], first)
    self.assertLess(function(centre), 0.1 * function(first))
    for point in points:
      np.testing.assert_array_equal(point, schedule_search.clamped(point))
    np.testing.assert_array_equal(points, ask(self.propose(), function, 300)[0])
    other = ask(self.propose(seed=4), function, 2)[0]
    self.assertFalse(np.array_equal(points[1], other[1]))

  def test_first_spread(self):
    points, _ = ask(self.propose(), lambda point: 0.0, 12)
    points = np.array(points)
    # Logarithms of temperatures and the others as they are, by the settings.
    for part, value, spread in (
      (slice(0, 3), points, 0.07),
      (slice(3, 10), np.log(points), 0.4),
      (slice(10, 14), points, 0.3),
    ):
      moved = (value[1:] - value[0])[:, part]
      self.assertBetween(moved.std(), 0.75 * spread, 1.25 * spread)

  def test_without_guidance_its_scales_stay(self):
    points, centre = ask(
      self.propose(guided=False), lambda point: float(point[:10].sum()), 60
    )
    for point in (*points, centre):
      np.testing.assert_array_equal(point[10:], points[0][10:])
    self.assertLess(centre[:10].sum(), 0.8 * points[0][:10].sum())


class CommonNoiseTest(absltest.TestCase):
  def test_gradients_vary_less(self):
    def distance(point, seed):
      noise = np.random.default_rng(seed).normal(size=(50, len(point)))
      return float(np.mean((noise + point) ** 2))

    def first_steps(common_noise):
      steps = []
      for repetition in range(40):
        which = search_common.Search(2, 'finite_differences', common_noise, 0)
        which = dataclasses.replace(which, repetition=repetition)
        first = schedule_search.first_point(2)
        proposals = schedule_search.finite_differences(
          first, schedule_search.Descent()
        )
        proposal = next(proposals)
        for evaluation in range(7):
          value = distance(proposal.point, which.seed(evaluation))
          proposal = proposals.send(value)
        steps.append(proposal.centre - first)
      return np.array(steps)[:, 1:]  # Mask ratios take steps of their own.

    on, off = first_steps('on'), first_steps('off')
    self.assertLess(on.var(0).max(), 0.1 * off.var(0).min())
    # Without bias: d/dx of the mean of (n + x)^2 over 6 numbers, times -0.1.
    first = schedule_search.first_point(2)[1:]
    np.testing.assert_allclose(
      on.mean(0), -0.1 * (2 * first + 0.1) / 6, atol=5e-3
    )


class BetaTest(absltest.TestCase):
  def test_neighbours(self):
    # The odds of the mean, 4, become 8 and 2; the concentration 30 and 7.5.
    mean = schedule_search.beta_directions((12.0, 3.0), 0, 2.0)
    np.testing.assert_allclose(mean, [[40 / 3, 5 / 3], [10, 5]])
    concentration = schedule_search.beta_directions((12.0, 3.0), 1, 2.0)
    np.testing.assert_allclose(concentration, [[24, 6], [6, 1.5]])


def _one_more(ratio, num_masked, num_unknown, num_tokens, options):
  del num_unknown, options
  count = jnp.floor(num_tokens * ratio).astype(jnp.int32) + 1
  return jnp.maximum(1, jnp.minimum(num_masked - 1, count))


class AutonatParityTest(parameterized.TestCase):
  """The reference's whole trajectory is compared, and tells mistakes."""

  def test_all_steps_are_compared(self):
    reference = reference_arrays.read(DATA / 'autonat_decode_shared.npz')
    outputs = reference.outputs
    self.assertEqual(set(outputs), {'masked_ids', 'final_ids'})
    masked = (outputs['masked_ids'] == reference.config['codebook_size']).sum(2)
    table = tables.autonat_large()
    counts = [256, *schedule_search.masked_counts(table, 256)[:-1]]
    np.testing.assert_array_equal(masked, np.stack([counts, counts], axis=1))

  @parameterized.named_parameters(
    ('one_more_masked', 'count_to_mask', _one_more),
    (
      'drawn_again_at_temperature_1',
      'sample_tokens',
      lambda logits, temperature, gumbel: step_lib.jnp.argmax(
        logits + gumbel, axis=-1
      ).astype(jnp.int32),
    ),
    (
      'confidence_is_the_logit',
      'score_tokens',
      lambda logits, sampled, confidence: jnp.take_along_axis(
        logits, sampled[..., None], axis=-1
      )[..., 0],
    ),
    ('guided_to_1_plus_w', 'guide', lambda c, u, w: u + w[:, None, None] * c),
  )
  def test_mistakes_are_told(self, name, mistake):
    reference = reference_arrays.read(DATA / 'autonat_decode_shared.npz')
    with mock.patch.object(step_lib, name, mistake):
      self.assertNotEmpty(suite.disagreements(reference))


if __name__ == '__main__':
  absltest.main()
