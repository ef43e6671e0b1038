"""The published schedules: the counts and numbers their sources state."""

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import actions, loop, schedules, step
from adanat_jax.errors import UserError


class AutoNATTest(absltest.TestCase):
  def test_only_eight_steps(self):
    with self.assertRaisesRegex(UserError, 'num_steps=4'):
      schedules.autonat_large(4)

  def test_no_guidance_at_first_and_the_sharpest_sampling_last(self):
    table = schedules.autonat_large()
    np.testing.assert_allclose(table.guidance_scale[:3], 1e-4)
    self.assertEqual(int(np.argmin(table.sampling_temperature)), 7)


class AdaGenTest(parameterized.TestCase):
  def test_published_numbers(self):
    table = schedules.adagen(16)
    np.testing.assert_allclose(
      table.mask_ratio[jnp.array([0, 1, 7, 14, 15])],
      [0.99519, 0.98080, 0.70718, 0.09811, 0.00010],
      atol=6e-6,
    )
    np.testing.assert_allclose(
      table.masking_temperature[jnp.array([0, 15])],
      [0.93756, 0.00006],
      atol=6e-6,
    )
    np.testing.assert_allclose(
      table.guidance_scale[jnp.array([0, 15])], [0.00006, 0.93756], atol=6e-6
    )

  @parameterized.parameters(4, 8)
  def test_is_what_a_zero_action_of_adanat_gives(self, num_steps):
    values = actions.values_from_action(
      jnp.zeros((num_steps, 4)), actions.published_residual(num_steps)
    )
    table = schedules.adagen(num_steps)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), values, table
    )


class ENATTest(parameterized.TestCase):
  """LeapLabTHU/ENAT's README and `libs/nat_misc.py`."""

  @parameterized.parameters(
    ('enat_256', 8, (251, 236, 212, 181, 142, 97, 49, 0)),
    ('enat_256', 4, (236, 181, 97, 0)),
    ('enat_512', 8, (1004, 946, 851, 724, 568, 391, 199, 0)),
    ('enat_512', 4, (946, 724, 391, 0)),
  )
  def test_counts_of_masked_tokens(self, name, num_steps, masked):
    total = int(name.removeprefix('enat_')) ** 2 // 256
    ratio = schedules.make(name, num_steps, total).policy.mask_ratio
    np.testing.assert_array_equal(np.floor(total * np.asarray(ratio)), masked)

  @parameterized.parameters(
    ('enat_256', 5.25, 1.3125, 2.1875), ('enat_512', 3.5, 1.3125, 3.0625)
  )
  def test_published_numbers(self, name, sampling, masking, guidance):
    table = schedules.make(name, 8, 256).policy
    np.testing.assert_allclose(
      table.sampling_temperature[jnp.array([0, 7])], [sampling, 1e-3]
    )
    np.testing.assert_allclose(
      table.masking_temperature[jnp.array([0, 7])], [masking, 0], atol=1e-7
    )
    # It lags a step, so that the first one is unguided.
    np.testing.assert_allclose(
      table.guidance_scale[jnp.array([0, 7])], [0, guidance]
    )


class DecodeTest(parameterized.TestCase):
  @parameterized.parameters(
    ('autonat_large', 8, step.MASKGIT),
    ('adagen', 16, step.ADANAT),
    ('enat_256', 8, step.ADANAT),
  )
  def test_reveals_every_token(self, name, num_steps, options):
    def denoiser(tokens, condition, cache):
      del condition
      logits = jnp.sin(jnp.arange(64 * 5.0)).reshape(1, 64, 5)
      return tokens[..., None], jnp.repeat(logits, len(tokens), 0), cache

    schedule = schedules.make(name, num_steps, 64)
    self.assertEqual(schedule.options, options)

    @jax.jit
    def decode():
      return loop.decode(
        denoiser,
        schedules.as_policy(schedule.policy),
        tokens=loop.full_mask(2, 64, 5),
        condition=jnp.zeros(2, jnp.int32),
        null_condition=jnp.int32(1),
        keys=loop.sample_keys(jax.random.key(0), 2),
        num_steps=num_steps,
        mask_token=5,
        options=options,
        record=True,
      )

    decoded = decode()
    self.assertLess(int(decoded.tokens.max()), 5)
    masked = np.asarray((decoded.trajectory.tokens == 5).sum(-1))
    ratio = np.asarray(schedule.policy.mask_ratio)
    expected = np.floor(64 * ratio)
    if options.clamp == 'progress':
      expected = np.maximum(expected, 1)
    np.testing.assert_array_equal(masked, np.stack([expected] * 2, 1))


if __name__ == '__main__':
  absltest.main()
