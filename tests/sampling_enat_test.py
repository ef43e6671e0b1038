"""An ENAT in the generator: every way to run it gives the same samples."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from typing import Any
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import buckets, tables, unrolled
from adanat_jax.errors import UserError
from adanat_jax.learning.agent import Agent
from adanat_jax.models import denoisers
from adanat_jax.models.enat import ENAT
from adanat_jax.models.nat import NAT
from adanat_jax.runtime import sharding
from adanat_jax.sampling import program
from adanat_jax.sampling.generator import Generator
from adanat_jax.types import PolicyValues
from support import children
from support.random_weights import random_variables

N, K, C, T = 9, 6, 3, 3
LABELS = np.array([0, 1, 2, 2, 1, 0, 1], np.int32)


@dataclasses.dataclass(frozen=True)
class NoTokenizer:
  """Its images are the tokens."""

  def apply(self, variables: Any, tokens: Any, method: str) -> Any:
    del variables, method
    return tokens.reshape(-1, 3, 3, 1)


def actor_critic(params: Any, features: Any, step: Any) -> Any:
  """Another number of tokens in each sample, by what is seen in it."""
  signal = jnp.sin(8 * features.mean((1, 2)))
  mean = jnp.stack([2 * signal - 1.5, signal, signal, signal], axis=1) + params
  return mean - step[:, None] / T, signal


@functools.cache
def generator(**changes: Any) -> Generator:
  module = ENAT(K, N, 8, 1, 1, 2, num_classes=C)
  tokens = jnp.zeros((1, N), jnp.int32)
  variables = random_variables(module, tokens, jnp.zeros(1, jnp.int32))
  # Blocks whose gates are open, so that what is reused matters.
  params = jax.tree.map(lambda x: 3 * x, variables['params'])
  agent = Agent(jnp.float32(0.5), jnp.zeros((T, 4)), actor_critic)
  whole = Generator(module, params, NoTokenizer(), {}, C, {T: agent}, 4)
  return dataclasses.replace(whole, **changes)


def plans(which: Generator, *args: Any, **options: Any) -> Any:
  """Samples, and the plans by which they were decoded."""
  seen = []
  decode = program.decode_batch

  def spy(nat: Any, tokenizer: Any, plan: Any, *rest: Any) -> Any:
    seen.append(plan)
    return decode(nat, tokenizer, plan, *rest)

  with mock.patch('adanat_jax.sampling.generator.decode_batch', spy):
    return which.generate(*args, **options), seen


class TablesTest(absltest.TestCase):
  def test_static_counts_change_no_token(self):
    table = tables.hand_made(T, total=N, guidance_scale=1.0)
    static, seen = plans(generator(), LABELS, T, 3, table)
    expected = unrolled.counts_of(table, N)
    self.assertEqual([plan.counts for plan in seen], [expected] * 2)
    masked, seen = plans(generator(static_counts=False), LABELS, T, 3, table)
    self.assertEqual([plan.counts for plan in seen], [None] * 2)
    np.testing.assert_array_equal(static.tokens, masked.tokens)
    # Without guidance, with one cache.
    unguided, seen = plans(generator(), LABELS, T, 3, 'hand-made')
    self.assertEqual([plan.guided for plan in seen], [False] * 2)
    self.assertTrue((unguided.tokens != static.tokens).any())

  def test_given_tokens_are_counted(self):
    canvases = np.full((2, N), K, np.int32)
    canvases[:, 2:4] = 1
    table = tables.hand_made(2, total=N)
    samples, seen = plans(generator(), LABELS[:2], 2, 3, table, tokens=canvases)
    self.assertEqual(seen[0].counts[0], (0, 2, N - 2))
    np.testing.assert_array_equal(samples.tokens[:, 2:4], 1)
    self.assertTrue((samples.tokens < K).all())
    # Of canvases that differ no count is that of all samples.
    canvases[0, 5] = 2
    planned = generator().planned(
      dataclasses.replace(seen[0], counts=None), table, canvases, LABELS[:2]
    )
    self.assertIsNone(planned.counts)


class PoliciesTest(absltest.TestCase):
  def test_buckets_change_no_token(self):
    plain, seen = plans(generator(), LABELS, T, 5, record=True)
    self.assertEqual([plan.buckets for plan in seen], [()] * 2)
    found = buckets.counts_of_decode(
      plain.trajectory.tokens, np.full_like(plain.tokens, K), K
    )
    self.assertGreater(np.asarray(found)[1:, :, 2].std(axis=1).max(), 0.5)

    key = jax.random.key(7)
    quick = generator().with_buckets(
      'learned', LABELS, key, num_steps=T, num_buckets=3
    )
    first, second, _ = quick.buckets[T]
    self.assertEqual(first, (0, 0, N))
    self.assertLess(second.masked, N)
    samples, seen = plans(quick, LABELS, T, 5)
    self.assertEqual([plan.buckets for plan in seen], [quick.buckets[T]] * 2)
    np.testing.assert_array_equal(samples.tokens, plain.tokens)
    # A table for each sample is a policy that decides for each.
    tables = jax.tree.map(np.asarray, plain.trajectory.values)
    assert isinstance(tables, PolicyValues)
    again, seen = plans(quick, LABELS, T, 5, tables)
    self.assertEqual(seen[0].buckets, quick.buckets[T])
    np.testing.assert_array_equal(again.tokens, plain.tokens)

  def test_what_is_the_same_for_all_samples_needs_no_buckets(self):
    key = jax.random.key(0)
    table = tables.hand_made(T, total=N)
    for policy in ('hand-made', table):
      same = generator().with_buckets(policy, LABELS, key, num_steps=T)
      self.assertIs(same, generator())
    with self.assertRaisesRegex(UserError, 'no policy .* num_steps=5'):
      generator().with_buckets('learned', LABELS, key, num_steps=5)
    agent = generator().agents[T]
    with self.assertRaisesRegex(UserError, 'made for 3 steps, num_steps is 5'):
      generator().sample(LABELS, 5, 0, agent)

  def test_batches_do_not_show(self):
    expected = generator().sample(LABELS, T, 3)
    other = generator(batch_size=3).sample(LABELS, T, 3)
    np.testing.assert_array_equal(other, expected)

  def test_a_nat_needs_none(self):
    nat = NAT(K, N, 8, 2, 2, num_classes=C)
    one = dataclasses.replace(generator(), nat=nat)
    agent = one.agents[T]
    same = one.with_buckets(agent, LABELS, jax.random.key(0), num_steps=T)
    self.assertIs(same, one)
    self.assertEqual(denoisers.empty_cache(nat, 4), ())


def tokens_of_all_ways(num_devices: int, fsdp: int) -> dict[str, Any]:
  """Tokens by what is gathered, on some of this process's devices."""
  mesh = sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:num_devices])
  one = generator()
  agent = one.agents[T]
  params = sharding.shard_state(one.nat_params, mesh)
  some = dataclasses.replace(
    one,
    nat_params=params,
    agents={T: agent.replace(params=sharding.shard_state(agent.params, mesh))},
    mesh=mesh,
  )
  quick = some.with_buckets(
    'learned', LABELS, jax.random.key(7), num_steps=T, num_buckets=3
  )
  kernel = params['blocks_0']['attention']['query']['kernel']
  table = tables.hand_made(T, total=N, guidance_scale=1.0)
  samples = {
    'static': some.generate(LABELS, T, 3, table),
    'masked': some.generate(LABELS, T, 5),
    'buckets': quick.generate(LABELS, T, 5),
  }
  return {
    'tokens': {name: x.tokens.tolist() for name, x in samples.items()},
    'shapes': quick.buckets[T],
    'pieces': len({str(x.index) for x in kernel.addressable_shards}),
  }


class DevicesTest(absltest.TestCase):
  def test_devices_do_not_show(self):
    one, four = children.run(__file__, 4)
    self.assertEqual([x['pieces'] for x in (one, four)], [1, 2])
    self.assertEqual(four['tokens'], one['tokens'])
    self.assertEqual(four['shapes'], one['shapes'])
    self.assertEqual(one['tokens']['buckets'], one['tokens']['masked'])
    self.assertLess(one['shapes'][1][2], N)


if __name__ == '__main__':
  if '--child' in sys.argv:
    layouts = ((1, 1), (4, 2))
    print(json.dumps([tokens_of_all_ways(*layout) for layout in layouts]))
  else:
    absltest.main()
