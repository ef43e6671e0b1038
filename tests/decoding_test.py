"""Decoding: numbers worked out by hand."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import (
  actions,
  loop,
  step as step_lib,
  tables,
)
from adanat_jax.types import DecodeState, PolicyValues

ALL = step_lib.StepOptions(count_from='all')


class DecodingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_rank_promotion('raise'))


class HandComputedTest(DecodingTest):
  def test_guide(self):
    # c + w (c - u) = [1, 2] + 0.5 [1, -2] = [1.5, 1]; w = 0 leaves c.
    c, u = jnp.float32([[[1, 2]]] * 2), jnp.float32([[[0, 4]]] * 2)
    guided = step_lib.guide(c, u, jnp.float32([0.5, 0.0]))
    np.testing.assert_array_equal(guided, [[[1.5, 1.0]], [[1.0, 2.0]]])

  @parameterized.parameters(
    # N = 10. options, mask ratio, masked, unknown at the start -> count.
    (ALL, 0.55, 10, 4, 5),  # floor(5.5) of all
    (ALL, 1.0, 10, 10, 9),  # never all
    (ALL, 1.0, 4, 4, 9),  # all but one of all, more than are masked
    (step_lib.ADANAT, 0.55, 4, 4, 2),  # floor(2.2) of the unknown
    (step_lib.ADANAT, 1.0, 4, 4, 3),
    (step_lib.ADANAT, 0.0, 4, 4, 0),  # may reveal everything
    (step_lib.ADANAT, 0.95, 2, 10, 9),  # may reveal nothing
    (step_lib.ADANAT, 1.0, 0, 0, 0),
    (step_lib.MASKGIT, 0.0, 4, 4, 1),  # one stays masked
    (step_lib.MASKGIT, 0.95, 3, 10, 2),  # one is revealed
    (step_lib.MASKGIT, 0.55, 9, 10, 5),
    (step_lib.MASKGIT, 0.5, 1, 10, 1),  # at the end: the loop fills it in
  )
  def test_count_to_mask(self, options, ratio, masked, unknown, expected):
    count = step_lib.count_to_mask(
      jnp.float32([ratio]), jnp.array([masked]), jnp.array([unknown]), 10,
      options,
    )  # fmt: skip
    self.assertEqual(count.tolist(), [expected])

  @parameterized.parameters(
    (0, []), (1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])
  )
  def test_least_confident_breaks_ties_from_the_left(self, count, expected):
    confidence = jnp.float32([[0.5, 0.1, 0.5, 0.1, jnp.inf]])
    marked = step_lib.least_confident(confidence, jnp.array([count]))
    self.assertEqual(np.flatnonzero(marked[0]).tolist(), expected)

  def test_maskgit_residual(self):
    # T = 4: cos(pi/2 (t + 1) / 4) of 16 tokens, 4.5 falling, nothing else.
    residual = tables.maskgit_residual(4)
    values = actions.values_from_action(jnp.zeros((4, 4)), residual)
    counts = np.floor(16 * np.asarray(values.mask_ratio))
    np.testing.assert_array_equal(counts, [14, 11, 6, 0])
    close = functools.partial(np.testing.assert_allclose, atol=2e-5)
    close(values.masking_temperature, [3.375, 2.25, 1.125, 0.1])
    close(values.sampling_temperature, 1.0)
    close(values.guidance_scale, 0.1)
    # Everywhere an action of 1 is felt.
    moved = actions.values_from_action(jnp.ones((4, 4)), residual)
    for new, old in zip(
      jax.tree.leaves(moved), jax.tree.leaves(values), strict=True
    ):
      self.assertGreater(np.min(np.abs(new - old)), 0.005)

  def test_residual_of_is_undone_by_a_zero_action(self):
    table = PolicyValues(
      mask_ratio=jnp.float32([0.9, 0.3, 0.0]),
      sampling_temperature=jnp.float32([1.0, 0.05, 30.0]),
      masking_temperature=jnp.float32([4.5, 1.0, 0.0]),
      guidance_scale=jnp.float32([0.0, 2.0, 9.0]),
    )
    values = actions.values_from_action(
      jnp.zeros((3, 4)), actions.residual_of(table)
    )
    jax.tree.map(
      # What saturates is moved by a thousandth, all else comes back.
      lambda new, old: np.testing.assert_allclose(
        new, np.maximum(old, 1e-3), rtol=1e-4
      ),
      values,
      table,
    )
    zero = actions.values_from_action(jnp.zeros(4), actions.no_residual(1)[0])
    np.testing.assert_allclose(zero.guidance_scale, np.log(2), rtol=1e-6)

  @parameterized.parameters('cos', 'pow', 'powx', '')
  def test_unknown_curve(self, curve):
    with self.assertRaisesRegex(ValueError, f"'{curve}'.*cosine"):
      tables.mask_ratio_curve(jnp.float32([0.5]), 256, curve)

  def test_numbers_of_a_table_may_be_traced(self):
    @jax.jit
    def make(x):
      table = tables.of_numbers(3, 0.5, sampling_temperature=x)
      return table.sampling_temperature, tables.muse(2, temperature=x)

    row, muse = make(4.0)
    np.testing.assert_array_equal(row, [4.0, 4.0, 4.0])
    known = tables.muse(2, temperature=4.0)
    np.testing.assert_allclose(
      muse.masking_temperature, known.masking_temperature
    )

  def test_hand_made_and_muse_tables(self):
    # T = 2: progress 1/2 and 1.
    table = tables.hand_made(
      2, curve='uniform', masking_temperature=4.0, guidance_scale=3.0
    )
    np.testing.assert_allclose(table.mask_ratio, [0.5, 1e-6])
    np.testing.assert_allclose(table.masking_temperature, [2.0, 0.0])
    np.testing.assert_allclose(table.guidance_scale, [1.5, 3.0])
    table = tables.muse(2, temperature=4.0, guidance_scale=3.0)
    np.testing.assert_allclose(table.sampling_temperature, [2.0, 0.0])
    np.testing.assert_allclose(table.masking_temperature, [2.0, 0.0])
    np.testing.assert_allclose(table.guidance_scale, [0.0, 1.5])

  # Position 1 is given. Of the others the most likely tokens are 0, 1, 2 with
  # log-probabilities -ln(1 + 2e^-2) = -0.24, -ln(1 + 2e^-1) = -0.55 and
  # -ln(1 + 2e^-3) = -0.09, and logits 2, 6, 3. One of three (0.4) is masked.
  @parameterized.named_parameters(
    ('log_prob', {}, [0, 1, 3, 2]),
    ('logit', dict(confidence='logit'), [3, 1, 1, 2]),
    ('masking_noise', dict(masking=1.0), [0, 1, 1, 3]),
    ('sampling_noise', dict(sampling=1.0), [3, 1, 1, 2]),
    ('cold', dict(sampling=0.6), [0, 1, 3, 2]),
    ('share_of_all', dict(count_from='all', ratio=0.5), [3, 1, 3, 2]),
    ('more_than_unknown', dict(count_from='all', ratio=0.8), [3, 1, 3, 3]),
    ('nothing_masked', dict(ratio=0.0), [0, 1, 1, 2]),
    ('one_must_stay', dict(ratio=0.0, clamp='progress'), [0, 1, 3, 2]),
  )
  def test_decode_step(self, case, expected):
    case = dict(case)
    values = PolicyValues(
      mask_ratio=jnp.float32([case.pop('ratio', 0.4)]),
      sampling_temperature=jnp.float32([case.pop('sampling', 0.0)]),
      masking_temperature=jnp.float32([case.pop('masking', 0.0)]),
      guidance_scale=jnp.float32([9.0]),  # Logits come guided.
    )
    logits = jnp.float32([[[2, 0, 0], [0, 0, 9], [5, 6, 5], [0, 0, 3]]])
    # Token 1 at position 0 gains 3: at temperature 1 it is drawn (3 > 2) with
    # log-probability -2.24, at 0.6 it is not (1.8 < 2).
    token_noise = jnp.zeros((1, 4, 3)).at[0, 0, 1].set(3.0)
    start = jnp.array([[3, 1, 3, 3]])
    state = step_lib.decode_step(
      DecodeState(start, start, jnp.array([3])),
      logits,
      values,
      token_noise,
      jnp.float32([[0, -99, 0, -10]]),
      mask_token=3,
      options=step_lib.StepOptions(**case),
    )
    self.assertEqual(state.tokens[0].tolist(), expected)
    drawn = 1 if values.sampling_temperature[0] == 1 else 0
    self.assertEqual(state.sampled[0].tolist(), [drawn, 1, 1, 2])

  def test_editing_a_small_region_reveals_at_every_step(self):
    # 3 of 9 unknown, T = 3, cosine: floor(3 cos(30 deg)) = 2, then 1, then 0.
    # Counted from all 9 it would be floor(7.8) = 7 and floor(4.5) = 4: all 3
    # stay masked until the last step.
    tokens = jnp.zeros((1, 9), jnp.int32).at[0, 3:6].set(5)
    for options, committed in ((step_lib.ADANAT, [1, 1, 1]), (ALL, [0, 0, 3])):
      decoded = loop.decode(
        lambda tokens, condition, cache: (
          jnp.zeros((1, 9, 1)),
          jnp.zeros((1, 9, 5)),
          cache,
        ),
        tables.table_policy(tables.hand_made(3)),
        tokens=tokens,
        condition=jnp.zeros(1, jnp.int32),
        null_condition=None,
        keys=loop.sample_keys(jax.random.key(0), 1),
        num_steps=3,
        mask_token=5,
        options=options,
        record=True,
      )
      self.assertEqual(
        decoded.trajectory.num_committed[:, 0].tolist(), committed
      )


if __name__ == '__main__':
  absltest.main()
