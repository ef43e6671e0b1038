"""ENAT's schedule, decoding with static counts, and what these cost."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import buckets, loop, step, tables, unrolled
from adanat_jax.models import enat, operations
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.types import PolicyValues, TokenCounts
from support.random_weights import random_variables

sys.path.append(str(pathlib.Path(__file__).parents[1] / 'benchmarks'))

import hlo

_MASK, _NUM_TOKENS = 7, 9
_SMALL = enat.ENAT(_MASK, _NUM_TOKENS, 8, 1, 1, 2, num_classes=3)
_CLASSES = np.int32([0, 3])


def _published(size: str) -> enat.ENAT:
  return enat.ENAT(1024, 256, num_classes=1000, **enat.SIZES[size])


def _shapes(module: enat.ENAT):
  """Shapes of parameters, tokens, condition and cache."""
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.int32)
  tokens, condition = shape(1, module.num_tokens), shape(1)
  params = jax.eval_shape(module.init, jax.random.key(0), tokens, condition)
  cache = jax.eval_shape(lambda: module.nothing_encoded(1))
  return params, tokens, condition, cache


def _canvas(batch_size: int) -> np.ndarray:
  """Nothing but masks."""
  return np.full((batch_size, _NUM_TOKENS), _MASK, np.int32)


def _gathering(module: enat.ENAT, variables):
  """The network as `unrolled.decode` calls it."""
  return lambda *inputs: module.apply(variables, *inputs, method='gathered')


class ScheduleTest(parameterized.TestCase):
  @parameterized.parameters(
    (8, 256, (256, 251, 236, 212, 181, 142, 97, 49)),
    (8, 1024, (1024, 1004, 946, 851, 724, 568, 391, 199)),
    (4, 256, (256, 236, 181, 97)),
    (4, 1024, (1024, 946, 724, 391)),
    # cos(pi / 3) is a half, and less than that in float32.
    (3, 256, (256, 221, 128)),
  )
  def test_published_counts(self, num_steps, total, masked):
    table = tables.enat(num_steps, total=total)
    counts = unrolled.counts_of(table, total)
    self.assertEqual(tuple(step.masked for step in counts), masked)
    reused = 0
    for i, one in enumerate(counts):
      self.assertEqual(sum(one), total)
      self.assertEqual(one.reused, reused)
      reused = total - masked[i]

  def test_published_numbers(self):
    table = tables.enat(8)
    np.testing.assert_allclose(
      table.sampling_temperature,
      [5.25, 4.5, 3.75, 3.0, 2.25, 1.5, 0.75, 1e-3],
      rtol=1e-6,
    )
    np.testing.assert_allclose(
      table.masking_temperature,
      [1.3125, 1.125, 0.9375, 0.75, 0.5625, 0.375, 0.1875, 0],
      rtol=1e-6,
    )
    np.testing.assert_allclose(
      table.guidance_scale, 2.5 * np.arange(8) / 8, rtol=1e-6
    )
    self.assertEqual(tables.enat(8, lagged=False).guidance_scale[7], 2.5)

  def test_counts_of_a_start_with_given_tokens(self):
    # N = 9, five unknown: floor(5 r) of them stay; MaskGIT keeps at least one.
    table = tables.hand_made(3, curve='uniform', total=5)
    self.assertEqual(
      unrolled.counts_of(table, 9, num_unknown=5, options=step.MASKGIT),
      (TokenCounts(0, 4, 5), TokenCounts(4, 2, 3), TokenCounts(6, 2, 1)),
    )

  def test_counts_of_a_ratio_below_zero(self):
    ratio = jnp.float32([0.5, -0.2, 0.0])
    table = tables.hand_made(3, total=9)
    table = dataclasses.replace(table, mask_ratio=ratio)
    counts = unrolled.counts_of(table, 9)
    self.assertEqual([one.masked for one in counts], [9, 4, 0])

  def test_counts_with_a_text(self):
    table = tables.enat(2, total=_NUM_TOKENS)
    self.assertEqual(
      unrolled.counts_of(table, _NUM_TOKENS, text_length=4),
      (TokenCounts(0, 4, 9), TokenCounts(4, 3, 6)),
    )


class DecodeTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('published', tables.enat(3, total=_NUM_TOKENS), 0, step.ADANAT, True),
    (
      'given_tokens',
      tables.hand_made(3, total=_NUM_TOKENS),
      4,
      step.MASKGIT,
      False,
    ),
  )
  def test_gathered_decode_is_the_masked_one(
    self, table, num_given, options, guided
  ):
    start = _canvas(2)
    start[0, :num_given] = 3
    start[1, _NUM_TOKENS - num_given :] = 1
    variables = random_variables(_SMALL, start, _CLASSES)
    arguments = dict(
      tokens=start,
      condition=_CLASSES[::-1],
      null_condition=jnp.int32(3) if guided else None,
      keys=loop.sample_keys(jax.random.key(0), 2),
      mask_token=_MASK,
      options=options,
      record=True,
    )

    def gather():
      return unrolled.decode(
        _gathering(_SMALL, variables),
        table,
        num_unknown=_NUM_TOKENS - num_given,
        **arguments,
      )

    def mask():
      return loop.decode(
        lambda *x: _SMALL.apply(variables, *x),
        tables.table_policy(table),
        num_steps=3,
        cache=_SMALL.nothing_encoded(4 if guided else 2),
        **arguments,
      )

    gathered, masked = jax.device_get((jax.jit(gather)(), jax.jit(mask)()))
    np.testing.assert_array_equal(gathered.tokens, masked.tokens)
    np.testing.assert_array_equal(gathered.tokens[0, :num_given], 3)
    self.assertFalse(np.any(gathered.tokens == _MASK))
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=2e-5),
      gathered.trajectory,
      masked.trajectory,
    )
    # The counts that the steps were made for are those that came about.
    counts = unrolled.counts_of(
      table, _NUM_TOKENS, num_unknown=_NUM_TOKENS - num_given, options=options
    )
    found = (masked.trajectory.tokens == _MASK).sum(-1)
    for one, after in zip(counts[1:], found[:-1], strict=True):
      np.testing.assert_array_equal(after, one.masked)

  def test_a_traced_table_is_decoded_with_counts_given(self):
    table = tables.enat(2, total=_NUM_TOKENS)
    start = _canvas(2)
    variables = random_variables(_SMALL, start, _CLASSES)

    def decode(table, counts=None):
      return unrolled.decode(
        _gathering(_SMALL, variables),
        table,
        tokens=start,
        condition=_CLASSES,
        null_condition=None,
        keys=loop.sample_keys(jax.random.key(0), 2),
        mask_token=_MASK,
        counts=counts,
      ).tokens

    counts = unrolled.counts_of(table, _NUM_TOKENS)
    traced = jax.jit(decode, static_argnums=1)(table, counts)
    known = jax.jit(lambda: decode(table))()
    np.testing.assert_array_equal(traced, known)


class BucketsTest(parameterized.TestCase):
  def test_found_counts(self):
    # N = 3: the first canvas is empty, then one token of the first sample and
    # two of the second are known, then two of either.
    m = _MASK
    start = np.full((2, 3), m)
    tokens = np.array(
      [[[m, 1, m], [1, 1, m]], [[m, 1, 1], [1, 1, m]], [[1, 1, 1], [1, 1, 1]]]
    )
    found = buckets.counts_of_decode(tokens, start, m)
    np.testing.assert_array_equal(
      found,
      [
        [[0, 0, 3], [0, 0, 3]],
        [[0, 1, 2], [0, 2, 1]],
        [[1, 1, 1], [2, 0, 1]],
      ],
    )
    # A text of five tokens is new once.
    with_text = buckets.counts_of_decode(tokens, start, m, text_length=5)
    np.testing.assert_array_equal(
      with_text - found, [[[0, 5, 0]] * 2] + [[[5, 0, 0]] * 2] * 2
    )

  def test_choice(self):
    found = np.array([[0, 0, 9], [0, 2, 8], *[[2, 4, 5]] * 3, [6, 1, 2]])
    choose = lambda count, **kwargs: buckets.choose(
      found, _NUM_TOKENS, count, sum, **kwargs
    )
    # One bucket holds all, at 19. The one at 11 saves 8 in three batches; what
    # holds the first two batches would save as much in these.
    whole = TokenCounts(6, 4, 9)
    self.assertEqual(choose(1), (whole,))
    self.assertEqual(choose(2), (TokenCounts(2, 4, 5), whole))
    # With enough of them each batch finds its own.
    every = choose(9)
    self.assertContainsSubset({TokenCounts(*x) for x in found}, every)
    self.assertEqual(sorted(map(sum, every)), list(map(sum, every)))
    # Multiples of four, and never more than N.
    self.assertEqual(choose(1, multiple=4), (TokenCounts(8, 4, 9),))

  def test_adaptive_decode_is_the_masked_one(self):
    start = _canvas(2)
    variables = random_variables(_SMALL, start, _CLASSES)
    # Ratios that differ between the samples, as a learned policy's do.
    ones = np.ones((4, 2), np.float32)
    ratio = np.float32([[0.9, 0.6], [0.7, 0.5], [0.2, 0.3], [0.0, 0.0]])
    table = PolicyValues(ratio, ones, ones, ones)
    masking = lambda *x: _SMALL.apply(variables, *x)
    entered = []

    def gathering(tokens, condition, cache, counts):
      jax.debug.callback(lambda: entered.append(counts))
      return _SMALL.apply(
        variables, tokens, condition, cache, counts, method='gathered'
      )

    @functools.partial(jax.jit, static_argnums=0)
    def decode(denoiser):
      return loop.decode(
        denoiser,
        tables.table_policy(jax.tree.map(jnp.asarray, table)),
        tokens=start,
        condition=_CLASSES[::-1],
        null_condition=jnp.int32(3),
        keys=loop.sample_keys(jax.random.key(0), 2),
        num_steps=4,
        mask_token=_MASK,
        cache=_SMALL.nothing_encoded(4),
        record=True,
      )

    masked = jax.device_get(decode(masking))
    found = np.asarray(
      buckets.counts_of_decode(masked.trajectory.tokens, start, _MASK)
    )
    # The samples do differ, so that no static schedule would do.
    self.assertTrue(np.any(found[:, 0] != found[:, 1]))
    needs = [TokenCounts(*x) for x in found.max(axis=1).tolist()]
    # The last step has no bucket and falls back on the masks.
    chosen = sorted(needs[:-1], key=sum)
    bucketed = jax.device_get(
      decode(buckets.bucketed(gathering, masking, chosen, _MASK))
    )
    jax.effects_barrier()
    self.assertEqual(entered, needs[:-1])
    np.testing.assert_array_equal(bucketed.tokens, masked.tokens)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, atol=2e-5),
      bucketed.trajectory,
      masked.trajectory,
    )


class OperationsTest(parameterized.TestCase):
  @parameterized.parameters(
    # Table 2 of the paper: giga multiply-adds, guided, T = 8, nothing reused.
    (8, 8, 288, 40.2),
    (12, 4, 318, 38.2),
    (15, 1, 366, 39.8),
  )
  def test_published_without_reuse(self, encoder, decoder, width, expected):
    module = enat.ENAT(1024, 256, width, encoder, decoder, 6, num_classes=1000)
    counts = [
      TokenCounts(0, reused + new, masked)
      for reused, new, masked in unrolled.counts_of(tables.enat(8), 256)
    ]
    total = operations.enat_sampling_operations(module, counts, 0, guided=True)
    self.assertAlmostEqual(total / 2e9, expected, delta=0.05)

  @parameterized.parameters(
    ('S', 8, False, 0.0226, 5e-5),  # table 6
    ('B', 4, True, 0.1, 0.05),  # table 3, with the tokenizer's decoder
    ('B', 8, True, 0.2, 0.05),
    ('L', 4, True, 0.2, 0.05),
    ('L', 8, True, 0.3, 0.05),
  )
  def test_published_with_reuse(self, size, num_steps, image, expected, delta):
    decoder = operations.decoder_operations(VQGAN(1024, 256), 256)
    total = operations.enat_sampling_operations(
      _published(size),
      unrolled.counts_of(tables.enat(num_steps), 256),
      decoder if image else 0,
      guided=True,
    )
    self.assertAlmostEqual(total / 2e12, expected, delta=delta)

  @parameterized.named_parameters(
    ('first_step', TokenCounts(0, 0, 256)),
    ('middle', TokenCounts(44, 31, 181)),
    ('padded', TokenCounts(64, 32, 192)),
    ('everywhere', None),
  )
  def test_against_xla(self, counts):
    # Two blocks of either kind have the whole network's ratio of products to
    # the rest.
    module = dataclasses.replace(
      _published('L'), encoder_depth=2, decoder_depth=2
    )
    further = {} if counts is None else dict(counts=counts, method='gathered')
    call = functools.partial(module.apply, **further)
    xla = jax.jit(call).lower(*_shapes(module)).cost_analysis()['flops']
    formula = operations.enat_operations(module, counts)
    self.assertBetween(xla / formula, 1.0, 1.05)

  @parameterized.parameters(0, 4)
  def test_a_whole_decode_counted_exactly(self, text_length):
    module = _SMALL
    if text_length:
      module = dataclasses.replace(_SMALL, num_classes=None, text_width=5)
    table = tables.enat(3, total=_NUM_TOKENS)
    null = jnp.zeros((text_length, 5)) if text_length else jnp.int32(3)
    condition = null[None]

    def sample(variables, condition):
      return unrolled.decode(
        _gathering(module, variables),
        table,
        tokens=loop.full_mask(1, _NUM_TOKENS, _MASK),
        condition=condition,
        null_condition=null,
        keys=loop.sample_keys(jax.random.key(0), 1),
        mask_token=_MASK,
        text_length=text_length,
      ).tokens

    tokens = jnp.zeros((1, _NUM_TOKENS), jnp.int32)
    variables = jax.eval_shape(
      module.init, jax.random.key(0), tokens, condition
    )
    counts = unrolled.counts_of(table, _NUM_TOKENS, text_length=text_length)
    self.assertEqual(
      hlo.traced_operations(sample, (variables, condition)),
      operations.enat_sampling_operations(
        module, counts, 0, guided=True, text_length=text_length
      ),
    )


if __name__ == '__main__':
  absltest.main()
