"""Every schedule of the list: numbers of their sources, and what they keep."""

import functools
import math

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import (
  halton,
  loop,
  schedules,
  step as step_lib,
  tables,
)
from adanat_jax.decoding.step import StepOptions
from adanat_jax.types import PolicyValues
from support import trajectories

# AutoNAT's table has eight steps.
B, N, K, C, T = 4, 16, 5, 3, 8
MASK = K
CALLS = []


def denoiser(tokens, condition, cache):
  """Mixes positions, and notes the canvases that it is asked about."""
  jax.debug.callback(lambda x: CALLS.append(np.asarray(x)), tokens)
  draw = lambda seed, *shape: jnp.float32(
    np.random.default_rng(seed).normal(size=shape)
  )
  x = draw(0, K + 1, 6)[tokens] + draw(1, N, 6)[None]
  x = jnp.sin(x + draw(2, C + 1, 6)[condition][:, None] + x.mean(1)[:, None])
  # Some laws are sharp from the start, so that adaptive rules are at work.
  return x, 4 * x @ draw(3, 6, K) * (jnp.arange(N) % 3)[None, :, None], cache


# Small programs that run a few times: compiling takes the time.
@functools.partial(
  jax.jit,
  static_argnames=('options', 'guided'),
  compiler_options={'xla_backend_optimization_level': 0},
)
def run(tokens, condition, seed, table, priority, options, guided):
  return loop.decode(
    denoiser,
    tables.table_policy(table),
    tokens=tokens,
    condition=condition,
    null_condition=jnp.int32(C) if guided else None,
    keys=loop.sample_keys(jax.random.key(seed), len(tokens)),
    num_steps=len(table.mask_ratio),
    mask_token=MASK,
    options=options,
    priority=priority,
    record=True,
  )


def decode(schedule, tokens, condition=None, seed=0):
  """The decode of canvases, and the canvases that the network was shown."""
  CALLS.clear()
  if condition is None:
    condition = np.arange(len(tokens), dtype=np.int32) % C
  decoded = run(
    tokens,
    condition,
    seed,
    schedule.policy,
    schedule.priority,
    schedule.options,
    schedule.guided,
  )
  jax.effects_barrier()
  return jax.device_get(decoded), list(CALLS)


def empty(batch_size):
  return np.full((batch_size, N), MASK, np.int32)


revealed_at = jax.jit(trajectories.revealed_at, static_argnums=2)


def canvases(seed=0):
  """A full mask, one with given tokens, one with a hole, one without."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, K, (B, N)).astype(np.int32)
  tokens[0] = MASK
  tokens[1, rng.random(N) < 0.5] = MASK
  tokens[2, 5] = MASK
  return tokens


@functools.partial(jax.jit, static_argnames='options')
def step(state, probs, values, gumbel, even_share, options):
  """A step of a state, or of a canvas int32[1, N], without noise of tokens."""
  mask_token = probs.shape[-1]
  if not isinstance(state, step_lib.DecodeState):
    state = step_lib.start(state, mask_token, options)
  return step_lib.decode_step(
    state,
    jnp.log(probs),
    values,
    jnp.zeros(probs.shape),
    gumbel,
    mask_token=mask_token,
    options=options,
    even_share=even_share,
  )


def one_step(
  options, masked, probs, values=None, state=None, gumbel=None, even_share=1
):
  """A step of one sample whose laws are `probs`, without noise.

  Returns the new state and the positions that became known.
  """
  probs = np.float32(probs)[None]
  numbers = dict(
    mask_ratio=0.0,
    sampling_temperature=1.0,
    masking_temperature=0.0,
    guidance_scale=0.0,
  )
  numbers.update(values or {})
  values = PolicyValues(**{k: np.float32([v]) for k, v in numbers.items()})
  mask_token = probs.shape[-1]
  if state is None:
    state = np.where([masked], mask_token, 0).astype(np.int32)
  if gumbel is None:
    gumbel = np.zeros(probs.shape[:2], np.float32)
  new = step(state, probs, values, gumbel, even_share, options)
  before = state if isinstance(state, np.ndarray) else np.asarray(state.tokens)
  known = (before == mask_token) & (np.asarray(new.tokens) != mask_token)
  return new, np.flatnonzero(known[0]).tolist()


def of_two(*best):
  """Laws of two tokens, the first of which has these probabilities."""
  return [[p, 1 - p] for p in best]


class EveryScheduleTest(parameterized.TestCase):
  @parameterized.parameters(*schedules.SCHEDULES)
  def test_what_every_schedule_keeps(self, name):
    schedule = schedules.make(name, T, N)
    start = canvases()
    decoded, calls = decode(schedule, start)
    tokens, given = decoded.tokens, start != MASK
    with self.subTest('no token is masked at the end'):
      self.assertTrue(((tokens >= 0) & (tokens < K)).all())
    with self.subTest('given tokens are never touched'):
      np.testing.assert_array_equal(tokens[given], start[given])
      history = decoded.trajectory.tokens
      kept = np.broadcast_to(np.where(given, start, 0), history.shape)
      np.testing.assert_array_equal(np.where(given, history, 0), kept)
    rows = 1 + schedule.guided
    with self.subTest('passes counted are passes run'):
      self.assertEqual({len(call) for call in calls}, {rows * B})
      unfinished = [(call[::rows] == MASK).any(-1) for call in calls]
      if schedule.options.revisit != 'never':
        unfinished = np.ones((T, B))
      np.testing.assert_array_equal(
        decoded.passes, rows * np.sum(unfinished, axis=0)
      )
      if schedule.options.is_adaptive:
        self.assertEqual(len(calls) * rows, decoded.passes.max())
      else:
        self.assertLen(calls, T)
    with self.subTest('a sample does not know its batch'):
      # With others beside it that are full at once, or never.
      for row, token in ((0, 1), (slice(2, None), MASK)):
        others = start.copy()
        others[row] = token
        again, _ = decode(schedule, others, np.int32([2, 1, 2, 1]))
        np.testing.assert_array_equal(again.tokens[1], tokens[1])
        self.assertEqual(again.passes[1], decoded.passes[1])
      self.assertLess(given[1].sum(), N)

  def test_a_batch_stops_when_its_last_sample_is_full(self):
    # One token a step of each; the canvas with a hole is full after one.
    schedule = schedules.make('entropy_bound(bound=0.0)', T, N)
    start = canvases()
    start[:2] = 1
    decoded, calls = decode(schedule, start)
    self.assertLen(calls, 1)
    self.assertEqual(decoded.passes.tolist(), [0, 0, 1, 0])
    # At most T steps, whatever the bound: the last makes all known.
    decoded, calls = decode(schedule, canvases())
    self.assertLen(calls, T)
    self.assertEqual(decoded.passes[0], T)

  def test_more_steps_than_tokens(self):
    for name in ('halton', 'max_prob', 'maskgit', 'remdm_cap'):
      decoded, _ = decode(schedules.make(name, N + 3, N), empty(B))
      self.assertLess(decoded.tokens.max(), K)


class HaltonTest(parameterized.TestCase):
  """valeoai/Halton-MaskGIT."""

  @parameterized.parameters(
    (4, '9 6 12 1 11 4 14 3 8 5 0 7 13 2 15 10'),
    (
      16,
      '133 74 193 39 172 99 232 30 144 85 219 50 183 125 244 9 142 65 198 43',
    ),
    (32, '522 277 771 142 664 391 913 92 577 331'),
  )
  def test_published_order(self, side, first):
    order = halton.halton_order(side, side)
    golden = [int(word) for word in first.split()]
    self.assertEqual(order[: len(golden)].tolist(), golden)
    self.assertEqual(sorted(order), list(range(side * side)))
    priority = halton.priority(side, side)
    np.testing.assert_array_equal(np.argsort(-priority), order)

  def test_other_grids(self):
    for rows, columns in ((9, 9), (3, 5), (1, 7), (27, 2)):
      order = halton.halton_order(rows, columns)
      self.assertEqual(sorted(order), list(range(rows * columns)))
    # Van der Corput: 1/2, 1/4, 3/4, 1/8, 5/8, ...
    self.assertEqual(
      halton.halton_order(8, 1).tolist(), [4, 2, 6, 1, 5, 3, 7, 0]
    )

  @parameterized.parameters(
    (256, '41 85 138 256'),
    (256, '20 41 62 85 110 138 173 256'),
    (256, '10 20 30 41 51 62 73 85 97 110 123 138 154 173 198 256'),
    (16, '2 5 8 16'),
    (16, '1 2 3 5 6 8 10 16'),
  )
  def test_published_counts(self, num_tokens, golden):
    golden = [int(word) for word in golden.split()]
    num_steps = len(golden)
    counts = halton.halton_counts(num_tokens, num_steps)
    self.assertEqual(counts.tolist(), golden)
    self.assertEqual(
      revealed_counts('halton', num_steps, num_tokens).tolist(), golden
    )

  def test_ratios_have_these_counts_in_float32(self):
    for num_tokens in (1, 2, 16, 32, 60, 64, 128, 256, 576, 1024):
      for num_steps in (1, 2, 3, 5, 8, 12, 16, 24, 32, 64):
        ratio = halton.mask_ratio(num_tokens, num_steps)
        masked = np.ceil(np.float32(num_tokens) * ratio)
        np.testing.assert_array_equal(
          num_tokens - masked, halton.halton_counts(num_tokens, num_steps)
        )

  def test_randomize_is_one_roll_a_sample(self):
    order = halton.halton_order(4, 4)
    offsets = []
    for randomize in (True, False):
      schedule = schedules.make(f'halton(randomize={randomize})', N, N)
      decoded, _ = decode(schedule, empty(24))
      at = revealed_at(decoded.trajectory, empty(24), MASK)
      for row in np.asarray(at):
        np.testing.assert_array_equal(np.sort(row), np.arange(N) + 1)
        first = int(np.flatnonzero(order == row.argmin())[0])
        np.testing.assert_array_equal(np.argsort(row), np.roll(order, -first))
        offsets.append(first)
    self.assertGreater(len(set(offsets[:24])), 8)
    self.assertEqual(set(offsets[24:]), {0})

  def test_given_tokens_are_dropped_from_the_order(self):
    schedule = schedules.make('halton(randomize=False)', 4, N)
    start = empty(B)
    start[:, ::2] = 1
    decoded, _ = decode(schedule, start)
    at = np.asarray(revealed_at(decoded.trajectory, start, MASK))
    unknown = [cell for cell in halton.halton_order(4, 4) if cell % 2]
    # 8 unknown of 16: arccos counts are 1 2 4 8.
    np.testing.assert_array_equal(at[0, unknown], [1, 2, 3, 3, 4, 4, 4, 4])

  def test_it_sees_the_grid(self):
    for name, columns, shape in (
      ('halton', 8, (2, 8)),
      ('halton', 0, (4, 4)),
      ('halton(rows=8)', 4, (8, 2)),
    ):
      found = schedules.make(name, 4, N, columns).priority
      np.testing.assert_array_equal(found, halton.priority(*shape))

  def test_sharpness_multiplies_logits(self):
    schedule = schedules.make('halton', 3, N)
    np.testing.assert_allclose(
      schedule.policy.sampling_temperature, [1, 1 / 1.1, 1 / 1.2], rtol=1e-6
    )
    self.assertEqual(schedule.policy.guidance_scale.tolist(), [2, 2, 2])


def revealed_counts(name, num_steps, num_tokens):
  """How many tokens are known after each step, by the step's arithmetic."""
  schedule = schedules.make(name, num_steps, num_tokens)
  total = masked = np.int32([num_tokens])
  counts = []
  for ratio in np.asarray(schedule.policy.mask_ratio):
    masked = step_lib.count_to_mask(
      ratio[None], masked, total, num_tokens, schedule.options
    )
    counts.append(num_tokens - np.asarray(masked)[0])
  return np.array(counts)


class CountsTest(parameterized.TestCase):
  def test_titok(self):
    # bytedance/1d-tokenizer: L-32, masked after each of 8 steps. The last
    # step leaves one, which the end of the decode fills in.
    masked = 32 - revealed_counts('titok_l32', 8, 32)
    self.assertEqual(masked.tolist(), [29, 26, 24, 21, 18, 14, 10, 1])
    table = schedules.make('titok_l32', 8, 32).policy
    np.testing.assert_allclose(
      table.sampling_temperature, 9.5 * (1 - np.arange(1, 9) / 8)
    )
    np.testing.assert_array_equal(
      table.sampling_temperature, table.masking_temperature
    )
    np.testing.assert_allclose(
      table.guidance_scale, 4.5 * np.arange(8) / 8, rtol=1e-6
    )

  @parameterized.parameters('titok_l32', 'maskgen', 'muse')
  def test_temperatures_end_at_zero_and_not_below(self, name):
    for num_steps in (1, 3, 7, 15, 63):
      table = schedules.make(name, num_steps, N).policy
      self.assertEqual(table.sampling_temperature.min(), 0)
      self.assertEqual(table.masking_temperature[-1], 0)

  def test_power_cosine_and_cosine_guidance(self):
    scale = schedules.make('titok_s128', 64, 128).policy.guidance_scale
    half = (6.9 - 1) * (1 - math.cos(math.pi / 8)) / 2
    np.testing.assert_allclose(scale[::32], [0, half], rtol=1e-5)
    scale = schedules.make('maskgen', 16, 128).policy.guidance_scale
    np.testing.assert_allclose(scale[7::8], [6.5, 12], rtol=1e-6)

  def test_amused_falls_from_two_to_zero(self):
    table = schedules.make('amused', 12, 256).policy
    np.testing.assert_allclose(
      table.masking_temperature, np.linspace(2, 0, 12), rtol=1e-6
    )
    self.assertEqual(set(table.guidance_scale.tolist()), {9.0})

  @parameterized.parameters('max_prob', 'entropy', 'margin', 'moment', 'random')
  def test_even_counts_are_even(self, name):
    self.assertEqual(
      revealed_counts(f'{name}(curve="uniform")', 6, 6).tolist(),
      [1, 2, 3, 4, 5, 6],
    )


class AdaptiveTest(parameterized.TestCase):
  ENTROPIES = (0.05, 0.02, 0.4, 0.3)

  @parameterized.parameters(
    (0.0, [1]), (0.05, [0, 1]), (0.1, [0, 1, 3]), (0.4, [0, 1, 2, 3])
  )
  def test_entropy_bound_by_hand(self, bound, known):
    rising = jnp.sort(jnp.array(self.ENTROPIES))
    count = step_lib.bounded_prefix(rising, jnp.float32(bound))
    self.assertLen(known, int(count))
    # Laws of two tokens with these entropies, by bisection.
    probs = []
    for target in self.ENTROPIES:
      low, high = 0.5, 1.0
      for _ in range(60):
        p = (low + high) / 2
        entropy = -p * math.log(p) - (1 - p) * math.log(max(1 - p, 1e-300))
        low, high = (p, high) if entropy > target else (low, p)
      probs.append(low)
    options = StepOptions(commit='entropy_bound', order='entropy')
    _, made_known = one_step(
      options, [1] * 4, of_two(*probs), {'mask_ratio': bound}
    )
    self.assertEqual(made_known, known)

  def test_more_entropy_is_allowed_by_a_higher_bound(self):
    rows = np.random.default_rng(0).exponential(size=(200, 9))
    rows = np.sort(rows.astype(np.float32))
    before = np.zeros(200, np.int32)
    bounded_prefix = jax.jit(step_lib.bounded_prefix)
    for bound in (0.0, 0.1, 0.5, 2.0, 100.0):
      bounds = np.full(200, bound, np.float32)
      counts = np.asarray(bounded_prefix(rows, bounds))
      self.assertTrue((counts >= np.maximum(before, 1)).all())
      total = np.where(np.arange(9) < counts[:, None], rows, 0)
      self.assertTrue((total.sum(1) - total.max(1) <= bound + 1e-6).all())
      before = counts
    self.assertEqual(set(before.tolist()), {9})

  def test_of_equal_entropies_the_leftmost_is_known_first(self):
    options = StepOptions(commit='entropy_bound', order='entropy')
    _, known = one_step(options, [0, 1, 1, 1], of_two(0.6, 0.6, 0.6, 0.6))
    self.assertEqual(known, [1])
    # What is certain costs nothing.
    _, known = one_step(options, [1] * 4, of_two(1.0, 0.6, 1.0, 0.7))
    self.assertEqual(known, [0, 2, 3])

  @parameterized.parameters(
    (0.9, [0, 2]), (0.95, [2]), (0.99, [2]), (0.2, [0, 2, 3])
  )
  def test_threshold_by_hand(self, bound, known):
    options = StepOptions(commit='threshold', order='max_prob')
    # Position 1 is given; where none is above the bound the surest one is.
    _, made_known = one_step(
      options, [1, 0, 1, 1], of_two(0.9, 0.99, 0.95, 0.6),
      {'mask_ratio': bound, 'sampling_temperature': 5.0},
    )  # fmt: skip
    self.assertEqual(made_known, known)

  @parameterized.parameters((False, [0, 3]), (True, [0]))
  def test_klass_by_hand(self, moves, stable):
    options = StepOptions(commit='stable', order='max_prob')
    before = of_two(0.95, 0.97, 0.6, 0.91, 0.8, 0.99)
    # KL(.97 || .91) = .026 is above .01; KL(.92 || .91) = .0006 is not.
    after = of_two(0.95, 0.97, 0.6, 0.97 if moves else 0.92, 0.8, 0.99)
    state, history = None, []
    for probs in (before, before, after, after):
      state, known = one_step(
        options, [1] * 6, probs, {'mask_ratio': 0.9}, state, even_share=1
      )
      history.append(known)
    # Nothing has a history at first: an even share, the surest.
    self.assertEqual(history[:2], [[5], [1]])
    self.assertEqual(history[2], stable)
    # Nothing else is above .9, or not for two steps.
    self.assertEqual(history[3], [3] if moves else [4])


class ReMDMTest(parameterized.TestCase):
  """Wang et al., arXiv 2503.00307."""

  @parameterized.parameters(
    ('remdm_cap(eta=0.02)', (0.02, 0.02, 0.02, 0), (0.25, 0.34, 0.52, 1)),
    ('remdm_rescale', (0.05, 0.05, 0.025, 0), (0.25, 0.35, 0.525, 1)),
    ('mdlm', (0, 0, 0, 0), (1 / 4, 1 / 3, 1 / 2, 1)),
  )
  def test_rates_and_chances(self, name, rates, chances):
    schedule = schedules.make(name, 4, N)
    table, options = schedule.policy, schedule.options
    np.testing.assert_allclose(table.revisit_rate, rates, atol=1e-7)
    for t, chance in enumerate(chances):
      # 1000 known and 1000 masked positions, and uniform numbers in a grid.
      masked = np.arange(2000) < 1000
      uniform = (np.arange(2000) % 1000 + 0.5) / 1000
      state = step_lib.start(np.full((1, 2000), 2), 2, options)
      state = state.replace(
        tokens=np.where(masked, 2, 0).astype(np.int32)[None],
        share_masked=np.float32([1 - t / 4]),
      )
      if state.confidence is not None:
        state = state.replace(confidence=np.ones((1, 2000), np.float32))
      values = {k: v[t] for k, v in table.by_name().items()}
      new, known = one_step(
        options, masked, [[0.5, 0.5]] * 2000, values, state,
        gumbel=np.float32(-np.log(-np.log(uniform)))[None],
      )  # fmt: skip
      self.assertAlmostEqual(len(known) / 1000, chance, delta=1e-3)
      again = (np.asarray(new.tokens[0]) == 2) & ~masked
      self.assertAlmostEqual(again.mean() * 2, rates[t], delta=1e-3)

  def test_loop_revisits_while_the_share_stands_still(self):
    table = schedules.make('remdm_loop', 20, N).policy
    known, rates = 1 - table.mask_ratio, np.asarray(table.revisit_rate)
    self.assertTrue((np.diff(known) >= -1e-6).all())
    at = np.flatnonzero(rates)
    # From time .55 on, which is after 9 of 20 steps, to time .05.
    self.assertEqual(at.tolist(), list(range(9, 19)))
    np.testing.assert_allclose(rates[at], 0.02)
    np.testing.assert_allclose(known[8:19], 0.9, atol=1e-6)
    self.assertEqual(known[-1], 1)

  @parameterized.parameters(
    'mdlm',
    'remdm_cap(eta=0.3)',
    'remdm_rescale(eta=0.5)',
    'remdm_loop(eta=0.2)',
  )
  def test_expected_share_known_is_the_tables(self, name):
    schedule = schedules.make(name, 6, N)
    decoded, _ = decode(schedule, empty(1500))
    masked = (decoded.trajectory.tokens == MASK).mean((1, 2))
    share = np.asarray(schedule.policy.mask_ratio)
    # Positions are independent of each other.
    error = np.sqrt(share * (1 - share) / (1500 * N))
    self.assertTrue((np.abs(masked - share) <= 4 * error + 1e-9).all())
    self.assertEqual(masked[-1], 0)

  @parameterized.parameters('remdm_cap', 'remdm_conf', 'remdm_rescale')
  def test_exact_counts(self, name):
    rate = ', eta=0.4' if name != 'remdm_conf' else ''
    schedule = schedules.make(f'{name}(exact=True{rate})', 4, N)
    decoded, _ = decode(schedule, empty(B))
    masked = decoded.trajectory.tokens == MASK
    self.assertEqual(masked.sum(-1).tolist(), [[n] * B for n in (12, 8, 4, 0)])
    # floor(rate * known) of them were known before.
    again = (masked[1:] & ~masked[:-1]).sum(-1)
    rates = schedule.policy.revisit_rate
    expected = [
      int(float(r) * n) for r, n in zip(rates[1:], (4, 8, 12), strict=True)
    ]
    self.assertEqual(again.tolist(), [[n] * B for n in expected])

  def test_scored_revisits_what_was_least_probable(self):
    options = StepOptions(order='given', revisit='scored')
    state = step_lib.start(np.full((1, 6), 2), 2, options)
    state = state.replace(
      tokens=np.int32([[0, 0, 0, 0, 2, 2]]),
      confidence=np.float32([[0.9, 0.3, 0.5, 0.8, 0, 0]]),
    )
    values = {'mask_ratio': 2.5 / 6, 'revisit_rate': 0.5}
    new, known = one_step(options, None, of_two(*[0.5] * 6), values, state)
    self.assertEqual(known, [4, 5])
    self.assertEqual(
      np.flatnonzero(np.asarray(new.tokens[0]) == 2).tolist(), [1, 2]
    )


class EffectiveTemperatureTest(parameterized.TestCase):
  @parameterized.parameters((1.0, 1.0, 0.5), (0.8, 2.0, 4 / 7))
  def test_the_kept_tokens_are_as_sharp_as_it_says(
    self, sampling, masking, expected
  ):
    # 20 of 400 are kept in each of 500 samples.
    size, kept = (500, 400), 20
    law = np.array([0.45, 0.3, 0.15, 0.07, 0.03])
    values = PolicyValues(
      *(
        np.full(size[0], x, np.float32)
        for x in ((400 - kept + 0.5) / 400, sampling, masking, 0.0)
      )
    )
    temperature = step_lib.effective_temperature(values, step_lib.ADANAT)
    np.testing.assert_allclose(temperature, expected, rtol=1e-6)
    rng = np.random.default_rng(1)
    noise = [
      rng.gumbel(size=shape).astype(np.float32) for shape in ((*size, 5), size)
    ]
    decode_step = jax.jit(
      step_lib.decode_step, static_argnames=('mask_token', 'options')
    )
    distances = {}
    for order in ('sampled', 'moment'):
      options = StepOptions(order=order)
      state = decode_step(
        step_lib.start(np.full(size, 5), 5, options),
        np.broadcast_to(np.log(np.float32(law)), (*size, 5)),
        values,
        *noise,
        mask_token=5,
        options=options,
      )
      counts = np.bincount(np.asarray(state.tokens).ravel(), minlength=6)
      self.assertEqual(counts[5], size[0] * (400 - kept))
      found = counts[:5] / counts[:5].sum()
      for power in (1 / expected, 1 / sampling):
        sharp = law**power / (law**power).sum()
        distances[order, power] = np.abs(found - sharp).sum() / 2
    for order in ('sampled', 'moment'):
      # 10,000 tokens: about .008 from their own law.
      self.assertLess(distances[order, 1 / expected], 0.02)
      self.assertGreater(distances[order, 1 / sampling], 0.06)

  def test_choosing_without_the_draw_does_not_sharpen(self):
    values = PolicyValues(*jnp.float32([[0.5], [0.8], [2.0], [0.0]]))
    for order in ('max_prob', 'entropy', 'margin', 'given'):
      options = StepOptions(order=order)
      self.assertAlmostEqual(
        float(step_lib.effective_temperature(values, options)[0]), 0.8
      )

  def test_the_order_moment_sharpens_as_maskgit_does(self):
    # Where some are kept; the last step keeps all that is left.
    schedule = schedules.make('moment(masking_temperature=4.0)', 4, N)
    found = step_lib.effective_temperature(schedule.policy, schedule.options)
    np.testing.assert_allclose(found, [3 / 4, 2 / 3, 1 / 2, 1], rtol=1e-5)

  @parameterized.parameters(
    ('max_prob', [1, 2]), ('entropy', [0, 2]), ('margin', [1, 3])
  )
  def test_orders_by_hand(self, order, known):
    # Entropies .69, 1.00, .67, 1.04 nats; margins .04, .32, .2, .25.
    laws = [
      [0.52, 0.48, 0.0],
      [0.55, 0.23, 0.22],
      [0.6, 0.4, 0.0],
      [0.5, 0.25, 0.25],
    ]
    options = StepOptions(order=order)
    _, made_known = one_step(options, [1] * 4, laws, {'mask_ratio': 0.5})
    self.assertEqual(made_known, known)


if __name__ == '__main__':
  absltest.main()
