"""The likelihood of grids: guided, by learned policies, and of generators."""

import dataclasses
import functools
import itertools
from typing import Any

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

import adanat_jax
from adanat_jax.decoding import likelihood, loop, schedules
from adanat_jax.decoding.schedules import FunctionPolicy, Schedule
from adanat_jax.decoding.step import StepOptions
from adanat_jax.errors import UserError
from adanat_jax.learning.agent import Agent
from adanat_jax.sampling.generator import Generator
from adanat_jax.types import PolicyValues

N, K, C, T = 4, 3, 2, 3
GRIDS = np.array([*itertools.product(range(K), repeat=N)], np.int32)


@dataclasses.dataclass(frozen=True)
class ToyNat:
  """Stands for a module: its parameters decide between tokens."""

  num_tokens: int = N
  codebook_size: int = K

  def apply(self, variables: Any, tokens: Any, condition: Any) -> Any:
    words, head = variables['params']
    x = words[tokens] + condition[:, None, None] + jnp.arange(N)[:, None]
    features = jnp.sin(x + x.mean(1, keepdims=True))
    return features, 2 * features @ head


def parameters():
  rng = np.random.default_rng(0)
  return jnp.float32(rng.normal(size=(K + 1, 6))), jnp.float32(
    rng.normal(size=(6, K))
  )


def denoiser(tokens, condition, cache):
  features, logits = ToyNat().apply({'params': parameters()}, tokens, condition)
  return features, logits, cache


def watching(step, observation, keys, carry):
  """Reveals more of canvases that are sure of more, and counts its steps."""
  del keys
  sure = jnp.where(observation.masked, observation.max_prob, 0).max(-1)
  values = PolicyValues(
    mask_ratio=(1 - sure) * (1 - (step + 1) / T),
    sampling_temperature=0.7 + sure / (1 + carry),
    masking_temperature=sure,
    guidance_scale=1 + sure,
  )
  return values, (), carry + 1


def learned(params, features, step):
  signal = features.mean((1, 2))
  return signal[:, None] + params + step[:, None] / T, signal


def schedule_of(name):
  options = StepOptions(order='entropy', noise=False, clamp='progress')
  if name == 'function':
    start = lambda keys: jnp.zeros(len(keys))
    policy = FunctionPolicy(watching, T, start)
    return Schedule(name, policy, options=options)
  if name == 'agent':
    agent = Agent(jnp.float32(0.1), jnp.zeros((T, 4)), learned)
    return Schedule(name, agent, options=options)
  return schedules.make(name, T, N)


def arguments(schedule):
  return dict(
    null_condition=jnp.int32(C) if schedule.guided else None,
    num_steps=T,
    mask_token=K,
    options=schedule.options,
    priority=schedule.priority,
  )


class LikelihoodTest(parameterized.TestCase):
  @parameterized.parameters(
    'function',
    'agent',
    'max_prob(guidance_scale=2.0, sampling_temperature=0.8)',
    'entropy_bound(bound=0.9, order="margin", guidance_scale=1.0)',
    'halton(randomize=False)',
    'klass(bound=0.5)',
  )
  def test_sums_to_one_and_is_what_is_drawn(self, name):
    schedule, count = schedule_of(name), 30_000

    @jax.jit
    def run(grids, labels):
      keys = loop.sample_keys(jax.random.key(0), len(grids))
      return likelihood.log_likelihood(
        denoiser,
        schedules.as_policy(schedule.policy),
        grids,
        labels,
        policy_carry=schedules.initial_carry(schedule.policy, keys),
        **arguments(schedule),
      )

    @jax.jit
    def draw(seed):
      keys = loop.sample_keys(jax.random.key(seed), count)
      return loop.decode(
        denoiser,
        schedules.as_policy(schedule.policy),
        tokens=loop.full_mask(count, N, K),
        condition=jnp.ones(count, jnp.int32),
        keys=keys,
        policy_carry=schedules.initial_carry(schedule.policy, keys),
        **arguments(schedule),
      )

    for label in (0, 1):
      logs, passes = jax.device_get(
        run(GRIDS, np.full(len(GRIDS), label, np.int32))
      )
      self.assertAlmostEqual(np.exp(logs).sum(), 1.0, delta=1e-5)
    if not schedule.options.is_adaptive:
      self.assertLessEqual(passes.max(), T * (1 + schedule.guided))
    decoded = jax.device_get(draw(1))
    numbers = np.asarray(decoded.tokens) @ K ** np.arange(N)[::-1]
    found = np.bincount(numbers, minlength=len(GRIDS))
    expected = count * np.exp(np.asarray(logs, np.float64))
    error = np.sqrt(np.maximum(expected, 1))
    self.assertLess((np.abs(found - expected) / error).max(), 4)
    # A sample takes the passes that its grid is said to take.
    np.testing.assert_array_equal(decoded.passes, passes[numbers])

  @parameterized.parameters(
    ('maskgit', 'looks at the tokens that are drawn'),
    ('entropy_bound(order="sampled")', 'looks at the tokens that are drawn'),
    ('random', 'masking temperature makes the order random; give 0'),
    ('moment', 'masking temperature makes the order random'),
    ('max_prob(masking_temperature=1.0)', 'the order random'),
    ('halton', 'begins elsewhere in its order; give randomize=False'),
    ('mdlm', 'chance decides what becomes known'),
    ('remdm_cap(exact=True)', 'masks known tokens again'),
  )
  def test_what_has_none_is_refused_in_one_line(self, name, words):
    made = schedules.make(name, T, N)
    with self.assertRaisesRegex(UserError, words) as caught:
      likelihood.check(made)
    self.assertIn(f'the schedule {name} has no exact', str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_noise_of_learned_policies_is_refused(self):
    noisy = dataclasses.replace(
      schedule_of('agent'), options=StepOptions(order='entropy')
    )
    with self.assertRaisesRegex(UserError, r'StepOptions\(noise=False\)'):
      likelihood.check(noisy)


class GeneratorTest(parameterized.TestCase):
  @functools.cached_property
  def generator(self):
    return Generator(ToyNat(), parameters(), None, None, C, {}, batch_size=30)

  @parameterized.parameters(
    'max_prob(guidance_scale=2.0)',
    'halton(randomize=False)',
    'entropy_bound(bound=1.5)',
  )
  def test_batches_do_not_show(self, name):
    labels = np.arange(len(GRIDS)) % C
    schedule = schedules.make(name, T, N)
    found = adanat_jax.log_likelihood(
      self.generator, GRIDS, labels, schedule, T
    )
    self.assertEqual((found.shape, found.dtype), ((81,), np.float32))
    expected = jax.jit(
      lambda: likelihood.log_likelihood(
        denoiser,
        schedules.as_policy(schedule.policy),
        GRIDS,
        jnp.asarray(labels),
        **arguments(schedule),
      )[0]
    )()
    np.testing.assert_allclose(found, expected, rtol=1e-5)

  @parameterized.parameters(
    (dict(schedule='maskgit'), 'the schedule maskgit has no exact likelihood'),
    (dict(tokens=GRIDS[:, :3]), r'tokens are int32\[2, 3\]; give integers'),
    (dict(tokens=GRIDS[:2] + K), 'tokens lie in 3 to 4; allowed are 0 to 2'),
    (dict(labels=[0]), r'tokens are int32\[2, 4\]; give integers \[1, 4\]'),
    (dict(labels=[0, C]), r'labels hold \[0, 2\]; classes are 0 to 1'),
  )
  def test_mistakes(self, changes, message):
    given = dict(tokens=GRIDS[:2], labels=[0, 1], schedule='max_prob')
    given.update(changes)
    given['tokens'] = given['tokens'][:2]
    with self.assertRaisesRegex(UserError, message):
      adanat_jax.log_likelihood(self.generator, **given, num_steps=T)


if __name__ == '__main__':
  absltest.main()
