"""Decoding: what holds for every decode, whatever policy and noise."""

import functools

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import loop, step as step_lib, tables
from adanat_jax.types import DecodeState, PolicyValues
from support import trajectories

B, N, K, D, T, C = 4, 9, 5, 6, 4, 3
MASK = K
CONDITION = np.arange(B, dtype=np.int32) % C
OPTIONS = {
  'adanat': step_lib.ADANAT,
  'maskgit': step_lib.MASKGIT,
  'muse': step_lib.MUSE,
  'all': step_lib.StepOptions(count_from='all'),
}


def weights(seed=7):
  """A fixed random toy denoiser: embeddings of tokens and classes, a head."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return draw(K + 1, D), draw(C + 1, D), draw(N, D), draw(D, K)


def denoiser(tokens, condition, cache):
  """Mixes positions, so that what is revealed matters for what comes next."""
  words, classes, places, head = map(jnp.asarray, weights())
  x = words[tokens] + places[None] + classes[condition][:, None]
  features = jnp.sin(x + x.mean(1, keepdims=True))
  return features, 2.0 * features @ head, cache


def adaptive_policy(step, observation, keys, carry):
  """Reads the features, draws noise, and carries how often it was asked."""
  draw = jax.vmap(lambda key: jax.random.uniform(key, (4,)))(keys)
  signal = jax.nn.sigmoid(observation.features.mean((1, 2)))
  fade = 1 - (step + 1) / T
  values = PolicyValues(
    mask_ratio=fade * (0.5 + 0.5 * signal),
    sampling_temperature=0.5 + draw[:, 0],
    masking_temperature=draw[:, 1] * (carry + 1),
    guidance_scale=2.0 * draw[:, 2] * signal,
  )
  return values, (), carry + 1


def keys_of_step(keys, step):
  """Each sample's keys of a step: for the policy, tokens, confidences."""
  split = lambda key: jax.random.split(jax.random.fold_in(key, step), 3)
  return jax.vmap(split, out_axes=1)(keys)


def constant_table(**changes):
  """A table float32[T] that commits about a quarter a step."""
  columns = dict(
    mask_ratio=[0.75, 0.5, 0.25, 0.0],
    sampling_temperature=[1.0] * T,
    masking_temperature=[1.0] * T,
    guidance_scale=[1.0] * T,
  )
  return PolicyValues(
    **{k: np.float32(v) for k, v in {**columns, **changes}.items()}
  )


# Many small programs, each run once: compiling takes the time.
jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0}
)
revealed_at = jit(trajectories.revealed_at, static_argnums=2)
sample_keys = jit(loop.sample_keys, static_argnums=(1, 2))


@functools.partial(
  jit, static_argnames=('options', 'guided', 'policy', 'record')
)
def run(
  tokens,
  condition,
  keys,
  table=None,
  noise=None,
  policy=None,
  options=step_lib.ADANAT,
  guided=True,
  record=True,
):
  return loop.decode(
    denoiser,
    policy or tables.table_policy(table),
    tokens=tokens,
    condition=condition,
    null_condition=jnp.int32(C) if guided else None,
    keys=keys,
    num_steps=T,
    mask_token=MASK,
    options=options,
    policy_carry=jnp.float32(0) if policy else (),
    noise=noise,
    record=record,
  )


def canvases(seed, batch_size=B):
  """Full masks, partly given canvases, and one with a single unknown token."""
  rng = np.random.default_rng(seed)
  tokens = np.full((batch_size, N), MASK, np.int32)
  tokens[1] = np.where(rng.random(N) < 0.5, rng.integers(0, K, N), MASK)
  tokens[2] = rng.integers(0, K, N)
  tokens[2, rng.integers(N)] = MASK
  return tokens


class DecodingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_rank_promotion('raise'))


class InvariantsTest(DecodingTest):
  @parameterized.product(
    seed=(0, 1, 2),
    temperature=(0.0, 1.0, 5.0),
    guidance=(0.0, 3.0),
    options=tuple(OPTIONS),
  )
  def test_what_holds_for_every_decode(
    self, seed, temperature, guidance, options
  ):
    rng = np.random.default_rng(seed)
    start = canvases(seed)
    # Ratios of each sample and step at random: they need not fall.
    table = PolicyValues(
      mask_ratio=np.float32(rng.random((T, B))),
      sampling_temperature=np.full((T, B), temperature, np.float32),
      masking_temperature=np.full((T, B), temperature, np.float32),
      guidance_scale=np.full((T, B), guidance, np.float32),
    )
    decoded = run(
      start,
      CONDITION,
      sample_keys(jax.random.key(seed), B),
      table,
      options=OPTIONS[options],
    )
    trajectory = jax.device_get(decoded.trajectory)
    final = np.asarray(decoded.tokens)
    self.assertTrue(((final >= 0) & (final < K)).all())
    # The canvas before the decode, after each step, and the result.
    history = np.stack([start, *trajectory.tokens, final])
    masked = history == MASK
    # Masked positions only become fewer: each is revealed exactly once.
    self.assertFalse((~masked[:-1] & masked[1:]).any())
    revealed = masked[:-1] & ~masked[1:]
    np.testing.assert_array_equal(revealed.sum(0), masked[0])
    # What is known never changes.
    np.testing.assert_array_equal(
      np.where(masked, final, history), np.broadcast_to(final, history.shape)
    )
    # revealed_at: 0 if given; t + 1 if first known after step t; at most T.
    at = np.where(masked[0], np.minimum(revealed.argmax(0) + 1, T), 0)
    np.testing.assert_array_equal(
      revealed_at(decoded.trajectory, start, MASK), at
    )
    np.testing.assert_array_equal(
      trajectory.num_committed, revealed[:-1].sum(-1)
    )
    known = np.where(masked[:-2], trajectory.sampled, history[:-2])
    np.testing.assert_array_equal(trajectory.sampled, known)
    np.testing.assert_array_equal(
      trajectory.values.mask_ratio, table.mask_ratio
    )

  @parameterized.parameters(
    ('adanat', True),
    ('adanat', False),
    ('maskgit', True),
    ('muse', True),
    ('all', False),
  )
  def test_scan_is_a_loop_of_decode_steps(self, options, guided):
    keys = sample_keys(jax.random.key(3), B)
    condition, start = CONDITION, canvases(3)
    decoded = run(
      start,
      condition,
      keys,
      policy=adaptive_policy,
      options=OPTIONS[options],
      guided=guided,
    )

    @jit
    def one_step(state, carry, t):
      policy_keys, token_keys, confidence_keys = keys_of_step(keys, t)
      features, logits, _ = denoiser(state.tokens, condition, ())
      seen = loop.observe(features, logits, state.tokens == MASK)
      values, _, carry = adaptive_policy(t, seen, policy_keys, carry)
      if guided:
        _, null, _ = denoiser(state.tokens, jnp.full(B, C), ())
        logits = step_lib.guide(logits, null, values.guidance_scale)
      state = step_lib.decode_step(
        state,
        logits,
        values,
        jax.vmap(lambda key: jax.random.gumbel(key, (N, K)))(token_keys),
        jax.vmap(lambda key: jax.random.gumbel(key, (N,)))(confidence_keys),
        mask_token=MASK,
        options=OPTIONS[options],
      )
      return state, carry, features, values

    state = DecodeState(start, start, np.int32((start == MASK).sum(-1)))
    carry = np.float32(0)
    trajectory = jax.device_get(decoded.trajectory)
    for t in range(T):
      state, carry, features, values = one_step(state, carry, t)
      seen = jax.tree.map(lambda x, t=t: x[t], trajectory)
      np.testing.assert_array_equal(seen.tokens, state.tokens)
      np.testing.assert_array_equal(seen.sampled, state.sampled)
      np.testing.assert_allclose(seen.features, features, atol=1e-5)
      np.testing.assert_allclose(
        seen.values.masking_temperature, values.masking_temperature, rtol=1e-4
      )
    np.testing.assert_array_equal(decoded.tokens, state.sampled)


class RandomnessTest(DecodingTest):
  def setUp(self):
    super().setUp()
    self.keys = sample_keys(jax.random.key(5), B)
    self.condition = CONDITION
    self.start = canvases(5)

  def test_temperature_zero_is_greedy(self):
    zero = [0.0] * T
    table = constant_table(sampling_temperature=zero, masking_temperature=zero)
    decoded = run(self.start, self.condition, self.keys, table)
    before, trajectory = self.start, jax.device_get(decoded.trajectory)
    logits_of = jit(lambda *inputs: denoiser(*inputs, ())[1])
    for t in range(T):
      logits = np.asarray(logits_of(before, self.condition))
      null = np.asarray(logits_of(before, np.full(B, C, np.int32)))
      greedy = (2 * logits - null).argmax(-1)  # The guidance is 1.
      np.testing.assert_array_equal(
        trajectory.sampled[t], np.where(before == MASK, greedy, before)
      )
      before = trajectory.tokens[t]
    other = run(self.start, self.condition, self.keys[::-1], table)
    np.testing.assert_array_equal(decoded.tokens, other.tokens)
    warm = run(self.start, self.condition, self.keys[::-1], constant_table())
    self.assertTrue((decoded.tokens != warm.tokens).any())

  def test_unguided_is_guidance_zero(self):
    results = [
      run(self.start, self.condition, self.keys, table, guided=guided).tokens
      for table, guided in (
        (constant_table(), False),
        (constant_table(guidance_scale=[0.0] * T), True),
        (constant_table(guidance_scale=[5.0] * T), True),
      )
    ]
    np.testing.assert_array_equal(results[0], results[1])
    self.assertTrue((results[0] != results[2]).any())

  def test_a_sample_does_not_know_its_batch(self):
    whole = run(
      self.start, self.condition, self.keys, policy=adaptive_policy
    ).tokens
    with self.subTest('batch size, and place in it'):
      part = run(
        self.start[1:3],
        self.condition[1:3],
        sample_keys(jax.random.key(5), 2, 1),
        policy=adaptive_policy,
      )
      np.testing.assert_array_equal(part.tokens, whole[1:3])
    with self.subTest('neighbours'):
      start, condition = self.start.copy(), self.condition.copy()
      start[0], condition[3] = 0, C - 1
      changed = run(
        start,
        condition,
        self.keys,
        policy=adaptive_policy,
      ).tokens
      np.testing.assert_array_equal(changed[1:3], whole[1:3])
      self.assertTrue((changed[0] != whole[0]).any())
    with self.subTest('but it knows its key'):
      other = run(
        self.start, self.condition, self.keys[::-1], policy=adaptive_policy
      ).tokens
      self.assertTrue((other[0] != whole[0]).any())

  def test_noise_can_be_given(self):
    @jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    def drawn(keys, step):
      _, token_keys, confidence_keys = keys_of_step(keys, step)
      return loop.Noise(
        jax.vmap(lambda key: jax.random.gumbel(key, (N, K)))(token_keys),
        jax.vmap(lambda key: jax.random.gumbel(key, (N,)))(confidence_keys),
      )

    noise = drawn(self.keys, np.arange(T))
    arguments = self.start, self.condition, self.keys, constant_table()
    drawn_itself = run(*arguments)
    np.testing.assert_array_equal(
      run(*arguments, noise=noise).tokens, drawn_itself.tokens
    )
    other = noise.replace(tokens=-noise.tokens)
    self.assertTrue(
      (run(*arguments, noise=other).tokens != drawn_itself.tokens).any()
    )

  def test_recording_changes_nothing(self):
    arguments = self.start, self.condition, self.keys, constant_table()
    plain = run(*arguments, record=False)
    self.assertIsNone(plain.trajectory)
    np.testing.assert_array_equal(plain.tokens, run(*arguments).tokens)

  def test_table_of_a_step_and_of_a_sample(self):
    table = constant_table()
    wide, ours = (
      jax.tree.map(lambda x: np.repeat(x[:, None], B, 1), table)
      for _ in range(2)
    )
    ours.mask_ratio[:, 0] = 0.0
    ours.guidance_scale[:, 3] = 4.0
    arguments = self.start, self.condition, self.keys
    one, same, changed = (run(*arguments, t) for t in (table, wide, ours))
    np.testing.assert_array_equal(one.tokens, same.tokens)
    np.testing.assert_array_equal(one.tokens[1:3], changed.tokens[1:3])
    self.assertEqual(
      changed.trajectory.num_committed[:, 0].tolist(), [N, 0, 0, 0]
    )
    self.assertEqual(one.trajectory.num_committed[:, 0].tolist(), [3, 2, 2, 2])
    for t in range(T):
      values, aux, carry = tables.table_policy(ours)(
        t, np.zeros((B, N, D)), self.keys, 'carried'
      )
      jax.tree.map(
        lambda got, table, t=t: np.testing.assert_array_equal(got, table[t]),
        values,
        ours,
      )
      self.assertEqual((aux, carry), ((), 'carried'))


class CostTest(DecodingTest):
  @parameterized.parameters(True, False)
  def test_number_of_denoiser_passes(self, guided):
    rows = []

    def counted(tokens, condition, cache):
      jax.debug.callback(lambda x: rows.append(x.shape[0]), tokens)
      # The cache has a row for every row of the call.
      return *denoiser(tokens, condition, cache)[:2], cache + 1

    decode = lambda: loop.decode(
      counted,
      tables.table_policy(jax.tree.map(jnp.asarray, constant_table())),
      tokens=canvases(0),
      condition=np.zeros(B, np.int32),
      null_condition=jnp.int32(C) if guided else None,
      keys=loop.sample_keys(jax.random.key(0), B),
      num_steps=T,
      mask_token=MASK,
      cache=jnp.zeros(2 * B if guided else B),
    )
    jit(decode)()
    jax.effects_barrier()
    self.assertEqual(rows, T * [2 * B if guided else B])

  def test_both_passes_are_interleaved(self):
    # [B, 2, N]: each sample with its condition, then with the null condition.
    seen = {}

    def spy(tokens, condition, cache):
      seen.update(tokens=tokens, condition=condition)
      return tokens[..., None] * 1.0, condition['ids'][:, None, None] * 1.0, 7

    tokens = jnp.arange(6).reshape(3, 2)
    text = jnp.arange(12.0).reshape(3, 2, 2)
    features, logits, null_logits, cache = loop.denoise(
      spy,
      tokens,
      {'ids': jnp.array([1, 2, 3]), 'text': text},
      {'ids': jnp.int32(9), 'text': jnp.full((2, 2), -1.0)},
    )
    np.testing.assert_array_equal(seen['tokens'], np.repeat(tokens, 2, 0))
    self.assertEqual(seen['condition']['ids'].tolist(), [1, 9, 2, 9, 3, 9])
    self.assertEqual(seen['condition']['text'].shape, (6, 2, 2))
    np.testing.assert_array_equal(seen['condition']['text'][::2], text)
    self.assertTrue((seen['condition']['text'][1::2] == -1).all())
    np.testing.assert_array_equal(features[..., 0], tokens)
    self.assertEqual(logits.ravel().tolist(), [1, 2, 3])
    self.assertEqual(null_logits.ravel().tolist(), [9, 9, 9])
    self.assertEqual(cache, 7)


if __name__ == '__main__':
  absltest.main()
