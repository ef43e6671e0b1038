"""TiTok's, aMUSEd's and AdaGen's decodes, token by token and step by step.

`support/other_decoders.py` says how the arrays were made.
"""

import dataclasses

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import actions, loop, schedules, step
from adanat_jax.learning.agent import Agent
from adanat_jax.types import PolicyValues
from support.converting import DATA

N, K, B = 16, 12, 3
# The schedule, or the smoothing of a policy.
SCENARIOS = {
  'titok_l32': 'titok_l32',
  'titok_s128': 'titok_s128',
  'amused': 'amused',
  'amused_known': 'amused',
  'adagen': 0.8,
  'adagen_unsmoothed': 0.0,
}


def arrays_of(scenario):
  with np.load(DATA / 'other_decoders.npz') as file:
    return {
      key.partition('/')[2]: file[key]
      for key in file.files
      if key.startswith(f'{scenario}/')
    }


def denoiser_of(given):
  distance = (np.arange(N)[:, None] - np.arange(N)) % N

  def denoiser(tokens, condition, cache):
    pairs = jnp.asarray(given['pairs'])[distance[None], tokens[:, None]]
    labels = jnp.asarray(given['labels'])[condition]
    logits = given['places'] + pairs.sum(2) + labels[:, None]
    return jnp.zeros((len(tokens), N, 1)), logits, cache

  return denoiser


def schedule_of(scenario, given):
  """The schedule of a name, or the hand schedule that a policy corrects."""
  made = SCENARIOS[scenario]
  num_steps = len(given['canvases'])
  if isinstance(made, str):
    return schedules.make(made, num_steps, N)
  agent = Agent(
    {},
    actions.published_residual(num_steps),
    # Its actions are the file's, whatever it sees.
    lambda params, features, steps: (
      jnp.asarray(given['actions'])[steps[0]], jnp.zeros(B)
    ),
    smoothing=made,
  )  # fmt: skip
  return schedules.Schedule('given', agent, options=step.ADANAT)


def decode(scenario, given, schedule):
  keys = jax.random.split(jax.random.key(0), B)
  decoded = loop.decode(
    denoiser_of(given),
    schedules.as_policy(schedule.policy),
    tokens=jnp.asarray(given['start']),
    condition=jnp.arange(B),
    null_condition=jnp.int32(3),
    keys=keys,
    num_steps=schedule.num_steps,
    mask_token=K,
    options=schedule.options,
    noise=loop.Noise(given['noise_tokens'], given['noise_confidence']),
    policy_carry=schedules.initial_carry(schedule.policy, keys),
    record=True,
  )
  trajectory = decoded.trajectory
  return {
    'canvases': np.asarray(trajectory.tokens)[:-1],
    'sampled': np.asarray(trajectory.sampled),
    'final': np.asarray(decoded.tokens),
  }, trajectory


def expected(given):
  return {
    'canvases': given['canvases'][:-1],
    'sampled': given['sampled'],
    'final': given['sampled'][-1],
  }


class OtherDecodersTest(parameterized.TestCase):
  @parameterized.parameters(*SCENARIOS)
  def test_token_by_token(self, scenario):
    given = arrays_of(scenario)
    ours, trajectory = decode(scenario, given, schedule_of(scenario, given))
    for name, theirs in expected(given).items():
      np.testing.assert_array_equal(ours[name], theirs, name)
    # It is a decode: something stays masked at each step but the last.
    self.assertTrue((given['canvases'][:-1] == K).any(-1).any(-1).all())
    self.assertFalse((ours['final'] == K).any())
    if 'values' in given:
      # Near 0 the inverse of softplus loses digits in float32.
      for name, theirs in zip(
        ('mask_ratio', 'sampling_temperature', 'masking_temperature')
        + ('guidance_scale',),
        given['values'],
        strict=True,
      ):
        np.testing.assert_allclose(
          getattr(trajectory.values, name), theirs, rtol=1e-3, err_msg=name
        )

  def test_mistakes_show(self):
    option = lambda schedule, **options: dataclasses.replace(
      schedule, options=dataclasses.replace(schedule.options, **options)
    )

    def table(schedule, **columns):
      assert isinstance(schedule.policy, PolicyValues)
      policy = dataclasses.replace(schedule.policy, **columns)
      return dataclasses.replace(schedule, policy=policy)

    def smoothing(schedule, value):
      policy = schedule.policy.replace(smoothing=value)
      return dataclasses.replace(schedule, policy=policy)

    last = lambda schedule: schedule.policy.guidance_scale
    mistakes = (
      ('titok_l32', lambda s: option(s, confidence='log_prob')),
      ('titok_l32', lambda s: table(s, guidance_scale=jnp.roll(last(s), -1))),
      ('titok_s128', lambda s: table(s, guidance_scale=last(s) + 1)),
      ('amused', lambda s: option(s, confidence='logit')),
      # Diffusers' guidance of 10 is 9 here.
      ('amused', lambda s: table(s, guidance_scale=last(s) + 1)),
      ('amused_known', lambda s: option(s, count_from='all')),
      ('adagen', lambda s: smoothing(s, 0.0)),
      ('adagen_unsmoothed', lambda s: smoothing(s, 0.8)),
      ('adagen', lambda s: option(s, clamp='progress', confidence='logit')),
    )
    for index, (scenario, change) in enumerate(mistakes):
      given = arrays_of(scenario)
      wrong = change(schedule_of(scenario, given))
      ours, _ = decode(scenario, given, wrong)
      same = [
        np.array_equal(ours[name], theirs)
        for name, theirs in expected(given).items()
      ]
      self.assertFalse(all(same), f'mistake {index} of {scenario}')


if __name__ == '__main__':
  absltest.main()
