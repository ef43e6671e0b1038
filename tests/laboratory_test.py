"""Schedules on a law that is known: what they keep of it and what they lose."""

import dataclasses
import functools
import itertools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import halton, likelihood, tables
from adanat_jax.decoding.schedules import FunctionPolicy, Schedule
from adanat_jax.decoding.step import StepOptions
from adanat_jax.laboratory import exact
from adanat_jax.laboratory.law import PottsLaw
from adanat_jax.types import PolicyValues

LAW = PottsLaw()
N, K = LAW.num_tokens, LAW.num_values


@functools.cache
def outcome(name, num_steps):
  return exact.outcome(LAW, LAW.schedule(name, num_steps))


def distance(name, num_steps):
  return outcome(name, num_steps).total_variation(LAW)


def with_counts(order, revealed):
  """A schedule whose steps have revealed so many tokens in all."""
  ratio = [(N - count + 0.5) / N for count in revealed[:-1]]
  priority = halton.priority(2, 3) if order == 'given' else None
  return Schedule(
    'counted',
    tables.of_numbers(len(revealed), [*ratio, 0.0]),
    guided=False,
    options=StepOptions(order=order),
    priority=priority,
  )


class LawTest(absltest.TestCase):
  def test_posterior_is_what_counting_grids_gives(self):
    self.assertAlmostEqual(LAW.probabilities.sum(), 1.0, places=12)
    for canvas in ([K] * N, [0, K, 2, K, K, 1], [K, 1, 1, 0, 2, 2]):
      index = LAW.index(np.array(canvas))
      np.testing.assert_array_equal(LAW.canvases[index], canvas)
      known = np.array(canvas) != K
      fits = (LAW.grids == canvas)[:, known].all(1)
      self.assertAlmostEqual(LAW.known[index], LAW.probabilities[fits].sum())
      for i in np.flatnonzero(~known):
        expected = [
          LAW.probabilities[fits & (LAW.grids[:, i] == k)].sum()
          for k in range(K)
        ]
        np.testing.assert_allclose(
          LAW.posterior[index, i], expected / np.sum(expected)
        )

  def test_denoiser_reads_the_posterior(self):
    canvases = LAW.canvases[::97]
    _, logits, cache = LAW.denoiser()(jnp.asarray(canvases), None, 'kept')
    self.assertEqual(cache, 'kept')
    np.testing.assert_allclose(
      jax.nn.softmax(logits), LAW.posterior[::97], atol=1e-6
    )

  def test_one_step_keeps_the_marginals_alone(self):
    marginals = LAW.posterior[-1]
    product = marginals[np.arange(N), LAW.grids].prod(1)
    one_step = outcome('max_prob', 1).probabilities
    np.testing.assert_allclose(one_step, product, atol=1e-7)
    self.assertAlmostEqual(distance('max_prob', 1), 0.725, delta=1e-3)


class ExactTest(parameterized.TestCase):
  @parameterized.parameters(
    'max_prob(curve="uniform")',
    'entropy(curve="uniform")',
    'margin(curve="uniform")',
    'random(curve="uniform")',
    'halton(final_sharpness=1.0, randomize=False)',
    'halton(final_sharpness=1.0)',
    'entropy_bound(bound=0.0)',
    'threshold(bound=1.0)',
  )
  def test_one_token_a_step_is_the_law_whatever_the_order(self, name):
    self.assertLess(distance(name, N), 1e-6)
    self.assertAlmostEqual(outcome(name, N).passes, N, places=5)

  def test_so_is_the_order_moment_at_an_effective_temperature_of_one(self):
    # 1 / 2 + 1 / 2: the draw is at temperature 1, the order is MaskGIT's.
    for options in (StepOptions(order='moment'),
                    StepOptions(order='moment', noise=False)):  # fmt: skip
      counted = with_counts('moment', [1, 2, 3, 4, 5, 6])
      table = dataclasses.replace(
        counted.policy,
        sampling_temperature=jnp.full(N, 2.0),
        masking_temperature=jnp.full(N, 2.0),
      )
      schedule = dataclasses.replace(counted, policy=table, options=options)
      found = exact.outcome(LAW, schedule)
      self.assertLess(found.total_variation(LAW), 1e-6)

  @parameterized.parameters(
    ('entropy(curve="uniform")', 2, 2, 0.581),
    ('entropy(curve="uniform")', 3, 3, 0.434),
    ('margin(curve="uniform")', 3, 3, 0.459),
    ('entropy_bound(bound=1.0)', 6, 3.00, 0.425),
    ('entropy_bound(bound=0.9)', 6, 3.20, 0.103),
    ('entropy_bound(bound=0.8)', 6, 4.01, 0.066),
    ('entropy_bound(bound=0.6)', 6, 4.09, 0.057),
    ('entropy_bound(bound=0.4)', 6, 5.17, 0.0),
    ('maskgit(curve="uniform",masking_temperature=0.0)', 6, 6, 0.6),
  )
  def test_what_an_independent_script_found(
    self, name, num_steps, passes, expected
  ):
    self.assertAlmostEqual(outcome(name, num_steps).passes, passes, delta=5e-3)
    self.assertAlmostEqual(distance(name, num_steps), expected, delta=1e-3)

  @parameterized.parameters(
    ('given', (2, 4, 6), 0.387),
    ('given', (1, 3, 6), 0.075),
    ('entropy', (1, 4, 6), 0.090),
    ('entropy', (1, 2, 4, 6), 0.024),
  )
  def test_counts_matter_more_than_the_order(self, order, revealed, expected):
    found = exact.outcome(LAW, with_counts(order, revealed))
    self.assertAlmostEqual(found.total_variation(LAW), expected, delta=1e-3)

  def test_maskgit_sharpens_and_more_passes_do_not_help(self):
    even = 'maskgit(curve="uniform",masking_temperature={})'
    cold = [distance(even.format(0.0), T) for T in (2, 3, 6)]
    self.assertEqual(cold, sorted(cold))
    self.assertLess(outcome(even.format(0.0), 6).entropy, 1.0)
    hot = [distance(even.format(x), 6) for x in (0.0, 1.0, 4.5, 1000.0)]
    self.assertEqual(hot, sorted(hot, reverse=True))
    self.assertLess(hot[-1], 0.1)

  def assert_drawn_from(self, expected, drawn):
    # Chi-square, of the grids that are met often and all others in one.
    often = expected.probabilities * drawn.draws > 5
    bins = lambda x: drawn.draws * np.append(x[often], x[~often].sum())
    mean = bins(expected.probabilities)
    found = (bins(drawn.probabilities) - mean)[mean > 5] ** 2
    mean = mean[mean > 5]
    excess = (found / mean).sum() - len(mean)
    self.assertLess(excess, 4 * np.sqrt(2 * len(mean)))

  @parameterized.parameters(
    ('maskgit', 4),
    ('muse', 3),
    ('moment', 3),
    ('random', 3),
    ('halton', 3),
    ('entropy_bound(bound=0.8)', 6),
    ('klass(bound=0.6)', 6),
    ('mdlm', 4),
    ('remdm_rescale(eta=0.5)', 4),
  )
  def test_what_is_decoded_has_this_law(self, name, num_steps):
    count = 20_000
    expected = outcome(name, num_steps)
    self.assertEqual(expected.draws, 0)
    self.assertAlmostEqual(expected.probabilities.sum(), 1, places=5)
    drawn = exact.draw(LAW, LAW.schedule(name, num_steps), count, seed=3)
    self.assert_drawn_from(expected, drawn)
    self.assertAlmostEqual(drawn.passes, expected.passes, delta=0.04)

  def test_stored_confidences_have_to_be_drawn(self):
    found = exact.outcome(
      LAW, LAW.schedule('remdm_conf', 3), draws=2000, seed=1
    )
    self.assertEqual(found.draws, 2000)
    self.assertAlmostEqual(found.probabilities.sum(), 1)

  @parameterized.parameters(False, True)
  def test_policies_that_see_the_canvas(self, noise):
    def watching(step, observation, keys, carry):
      sure = jnp.where(observation.masked, observation.max_prob, 0).max(-1)
      values = PolicyValues(
        mask_ratio=(1 - sure) * (1 - (step + 1) / 3),
        sampling_temperature=jnp.ones(keys.shape),
        masking_temperature=carry,
        guidance_scale=jnp.zeros(keys.shape),
      )
      return values, (), carry + 1

    policy = FunctionPolicy(watching, 3, lambda keys: jnp.ones(len(keys)))
    options = StepOptions(order='entropy', noise=noise)
    schedule = Schedule('watching', policy, False, options)
    found = exact.outcome(LAW, schedule, draws=20_000)
    self.assertEqual(found.draws, 20_000 if noise else 0)
    self.assertAlmostEqual(found.probabilities.sum(), 1, delta=1e-5)
    if not noise:
      drawn = exact.draw(LAW, schedule, 20_000, seed=5)
      self.assert_drawn_from(found, drawn)

  def test_floor_is_the_distance_of_draws_of_the_law_itself(self):
    draws = np.random.default_rng(0).multinomial(
      5000, LAW.probabilities, size=20
    )
    found = [exact.total_variation(x / 5000, LAW.probabilities) for x in draws]
    self.assertAlmostEqual(exact.floor(LAW, 5000), np.mean(found), delta=2e-3)


class EntropyBoundTest(absltest.TestCase):
  def test_total_correlation_of_what_is_known_at_once(self):
    options = StepOptions(commit='entropy_bound', order='entropy')
    logits = jnp.asarray(np.log(LAW.posterior), jnp.float32)
    several = 0
    for bound in (0.3, 0.8, 1.0):
      values = jax.tree.map(
        lambda x: jnp.full(len(LAW.canvases), x[0]),
        tables.of_numbers(1, bound),
      )
      after = np.asarray(
        exact.one_step(jnp.asarray(LAW.canvases), logits, values, options)
      )
      known = (LAW.canvases == K) & (after != K)
      np.testing.assert_array_equal(known.any(1), (LAW.canvases == K).any(1))
      for index in np.flatnonzero(known.sum(1) > 1)[::3]:
        places = np.flatnonzero(known[index])
        filled = np.repeat(LAW.canvases[index][None], K ** len(places), 0)
        filled[:, places] = [*itertools.product(range(K), repeat=len(places))]
        joint = LAW.known[LAW.index(filled)] / LAW.known[index]
        marginals = LAW.posterior[index, places]
        correlation = (joint * np.log(joint)).sum() - (
          marginals * np.log(marginals)
        ).sum()
        self.assertLessEqual(correlation, bound + 1e-5)
        several += 1
    self.assertGreater(several, 300)

  def test_more_passes_the_lower_the_bound(self):
    passes = [
      outcome(f'entropy_bound(bound={bound})', N).passes
      for bound in (0.0, 0.4, 0.8, 1.0, 9.0)
    ]
    self.assertEqual(passes, sorted(passes, reverse=True))
    self.assertEqual(passes[-1], 1)


class LikelihoodTest(parameterized.TestCase):
  @parameterized.parameters(
    ('entropy', 4),
    ('margin', 3),
    ('halton(randomize=False)', 4),
    ('entropy_bound(bound=0.8)', 6),
    ('threshold(bound=0.6)', 4),
  )
  def test_is_the_law_of_what_is_decoded(self, name, num_steps):
    schedule = LAW.schedule(name, num_steps)
    self.assertEqual(likelihood.obstacle(schedule), '')
    logs, passes = exact.log_likelihoods(LAW, schedule)
    probs = np.exp(np.asarray(logs, np.float64))
    self.assertAlmostEqual(probs.sum(), 1.0, delta=1e-5)
    np.testing.assert_allclose(
      probs, outcome(name, num_steps).probabilities, atol=1e-6
    )
    self.assertAlmostEqual(
      probs @ np.asarray(passes), outcome(name, num_steps).passes, delta=1e-4
    )

  def test_a_bound_of_zero_is_one_token_a_step(self):
    one, _ = exact.log_likelihoods(
      LAW, LAW.schedule('entropy_bound(bound=0.0)', N)
    )
    even = LAW.schedule('entropy(curve="uniform")', N)
    other, _ = exact.log_likelihoods(LAW, even)
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(one, np.log(LAW.probabilities), atol=1e-4)


if __name__ == '__main__':
  absltest.main()
