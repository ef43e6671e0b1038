"""ENAT: its two ways are one computation, and what may depend on what."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import enat as convert
from adanat_jax.errors import UserError
from adanat_jax.models import enat, layers, nat
from adanat_jax.types import TokenCounts
from parity_cases import suite
from support import converting, reference_arrays, torch_files
from support.random_weights import random_variables

_MASK, _NUM_TOKENS = 7, 9
_SMALL = enat.ENAT(_MASK, _NUM_TOKENS, 8, 2, 1, 2, num_classes=3)
_CLASSES = np.array([0, 3], np.int32)


def _published(size: str, num_tokens: int = 256) -> enat.ENAT:
  return enat.ENAT(1024, num_tokens, num_classes=1000, **enat.SIZES[size])


def _shape(*shape, dtype=jnp.int32):
  return jax.ShapeDtypeStruct(shape, dtype)


def _shapes(module: enat.ENAT, batch: int = 1):
  """Shapes of parameters, tokens, condition and cache."""
  tokens, condition = _shape(batch, module.num_tokens), _shape(batch)
  params = jax.eval_shape(module.init, jax.random.key(0), tokens, condition)
  cache = jax.eval_shape(lambda: module.nothing_encoded(batch))
  return params, tokens, condition, cache


_gathering = jax.jit(
  functools.partial(_SMALL.apply, method='gathered'), static_argnums=4
)


class PublishedSizeTest(parameterized.TestCase):
  @parameterized.parameters(
    ('S', 256, 50_384_219, 16),
    ('B', 256, 219_646_721, 16),
    ('L', 256, 574_298_113, 24),
    ('L', 1024, 575_084_545, 24),
  )
  def test_parameters_and_keys(self, size, num_tokens, count, num_blocks):
    module = _published(size, num_tokens)
    params = _shapes(module)[0]['params']
    # Broadcast zeros take no memory.
    arrays = convert.FAMILY.to_theirs(
      jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), params)
    )
    self.assertLen(arrays, 358 - 14 * (24 - num_blocks))
    self.assertEqual(sum(math.prod(x.shape) for x in arrays.values()), count)
    width = module.width
    for key, shape in (
      ('blocks.0.attn.kv.A.weight', (2 * width, width)),
      (f'blocks.{num_blocks - 1}.adaLN_modulation.1.bias', (8 * width,)),
      ('prev_embedder.fc1.weight', (4 * width, width)),
      ('mlm_layer.bias', (1, 1, 1025)),
    ):
      self.assertEqual(arrays[key].shape, shape, key)
    inferred = convert.infer(
      arrays,
      num_heads=module.num_heads,
      decoder_depth=module.decoder_depth,
    )
    self.assertEqual(inferred, module)


class NetworkTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    random = np.random.default_rng(0)
    ids = random.integers(0, _MASK, (2, _NUM_TOKENS))
    hide = lambda *rows: np.where(np.array(rows, bool), _MASK, ids).astype(
      np.int32
    )
    # The samples differ in how many tokens they show at each step.
    cls.first = hide((1, 1, 1, 1, 1, 1, 1, 0, 1), (0, 1, 0, 1, 1, 1, 0, 1, 1))
    cls.second = hide((1, 0, 1, 1, 0, 1, 1, 0, 1), (0, 1, 0, 1, 1, 0, 0, 0, 0))
    cls.counts = (TokenCounts(1, 2, 6), TokenCounts(3, 3, 3))
    cls.variables = random_variables(_SMALL, cls.first, _CLASSES)
    cls.masking = staticmethod(jax.jit(_SMALL.apply, static_argnames='train'))
    *_, cache = cls.masking(cls.variables, cls.first, _CLASSES)
    cls.cache = jax.tree.map(np.asarray, cache)
    cls.outputs = jax.tree.map(
      np.asarray,
      cls.masking(cls.variables, cls.second, _CLASSES, cls.cache),
    )

  def assert_close(self, ours, expected):
    compare = functools.partial(np.testing.assert_allclose, atol=2e-5)
    jax.tree.map(compare, ours, expected)

  def run_second(self, tokens=None, cache=None, **kwargs):
    tokens = self.second if tokens is None else tokens
    cache = self.cache if cache is None else cache
    return self.masking(self.variables, tokens, _CLASSES, cache, **kwargs)

  def test_shapes(self):
    features, logits, cache = self.outputs
    self.assertEqual(features.shape, (2, _NUM_TOKENS, 8))
    self.assertEqual(logits.shape, (2, _NUM_TOKENS, _MASK))
    np.testing.assert_array_equal(cache.visible, self.second != _MASK)
    np.testing.assert_array_equal(cache.features, features)

  def test_each_sample_as_if_gathered_alone(self):
    for i, counts in enumerate(self.counts):
      row = slice(i, i + 1)
      alone = _gathering(
        self.variables,
        self.second[row],
        _CLASSES[row],
        jax.tree.map(lambda x, row=row: x[row], self.cache),
        counts,
      )
      self.assert_close(
        alone, jax.tree.map(lambda x, row=row: x[row], self.outputs)
      )

  def test_samples_padded_to_common_counts(self):
    padded = _gathering(
      self.variables,
      self.second,
      _CLASSES,
      self.cache,
      TokenCounts(4, 5, 9),
    )
    self.assert_close(padded, self.outputs)

  def test_counts_that_leave_tokens_out_are_refused(self):
    with self.assertRaises(AssertionError):
      _gathering(
        self.variables,
        self.second,
        _CLASSES,
        self.cache,
        TokenCounts(1, 2, 5),
      )

  def test_an_empty_cache_is_no_cache(self):
    empty = _SMALL.nothing_encoded(2)
    without = self.masking(self.variables, self.second, _CLASSES)
    self.assert_close(self.run_second(cache=empty), without)

  def test_reused_tokens_act_through_the_cache_alone(self):
    reused = self.cache.visible
    ids = np.where(reused, (self.second + 1) % _MASK, self.second)
    np.testing.assert_array_equal(self.run_second(ids)[1], self.outputs[1])
    # What the cache holds of masked positions is not read.
    features = np.where(reused[..., None], self.cache.features, 1e3)
    features = features.astype(np.float32)
    other = self.cache.replace(features=features)
    np.testing.assert_array_equal(
      self.run_second(cache=other)[1], self.outputs[1]
    )
    features = self.cache.features + np.eye(8, dtype=np.float32)[0]
    other = self.cache.replace(features=features)
    _, logits, _ = self.run_second(cache=other)
    self.assertTrue(np.any(logits != self.outputs[1], axis=-1).all())

  def test_visible_tokens_do_not_see_the_masked(self):
    # In the second sample position 5 is revealed and nothing else changes.
    ids = self.second.copy()
    ids[1, 5] = _MASK
    features, _, _ = self.masking(self.variables, ids, _CLASSES)
    embedding = self.variables['params']['tokens']
    words = np.array(embedding['words'])
    words[_MASK] += 1.0
    params = {
      **self.variables['params'],
      'tokens': {**embedding, 'words': words},
    }
    other, _, _ = self.masking({'params': params}, ids, _CLASSES)
    features, other = np.asarray(features), np.asarray(other)
    visible = ids != _MASK
    np.testing.assert_array_equal(features[visible], other[visible])
    self.assertTrue(np.all(np.any(features != other, -1)[~visible]))

  def test_gradients(self):
    # The first sample shows nothing at all.
    tokens = self.second.copy()
    tokens[0] = _MASK

    def loss(params, features):
      cache = self.cache.replace(features=features)
      _, logits, _ = _SMALL.apply({'params': params}, tokens, _CLASSES, cache)
      return jax.nn.log_softmax(logits)[..., 0].sum()

    params, features = self.variables['params'], self.cache.features
    grads, through_cache = jax.jit(jax.grad(loss, (0, 1)))(params, features)
    for leaf in jax.tree.leaves(grads):
      self.assertTrue(np.isfinite(leaf).all())
    np.testing.assert_array_equal(through_cache, np.zeros_like(features))
    self.assertTrue(np.any(grads['carry_over']['mlp']['fc1']['kernel']))
    # A token that is not in the canvas is reached through the head alone.
    absent = sorted(set(range(_MASK)) - set(np.unique(tokens).tolist()))
    self.assertNotEmpty(absent)
    for token in absent:
      np.testing.assert_array_equal(
        np.asarray(grads['tokens']['words'])[token], 0
      )

  def test_dropout_in_training_only(self):
    rngs = lambda seed: {'dropout': jax.random.key(seed)}
    first = self.run_second(train=True, rngs=rngs(1))[1]
    again = self.run_second(train=True, rngs=rngs(1))[1]
    other = self.run_second(train=True, rngs=rngs(2))[1]
    np.testing.assert_array_equal(first, again)
    self.assertTrue(np.any(np.asarray(first) != other))

  def test_starts_as_the_embedding(self):
    variables = jax.jit(_SMALL.init)(jax.random.key(0), self.first, _CLASSES)
    features, _, _ = self.masking(variables, self.first, _CLASSES)
    embedding = nat.Embedding(_MASK + 1, _NUM_TOKENS, 8)
    expected = jax.jit(embedding.apply)(
      {'params': variables['params']['tokens']}, self.first
    )
    np.testing.assert_allclose(features, expected, atol=1e-6)
    kernel = variables['params']['blocks_0']['attention']['self']['kernel']
    # Xavier's uniform distribution of [8, 16].
    self.assertBetween(np.abs(kernel).max(), 0.4, 0.5)

  @parameterized.parameters(
    dict(encoder_depth=0),
    dict(num_heads=3),
    dict(num_classes=None),
    dict(text_width=5),
  )
  def test_sizes_that_do_not_fit(self, **fields):
    module = dataclasses.replace(_SMALL, **fields)
    with self.assertRaisesRegex(UserError, next(iter(fields))):
      jax.eval_shape(module.init, jax.random.key(0), self.first, _CLASSES)


class TextTest(absltest.TestCase):
  def test_texts_are_encoded_once_with_the_visible_tokens(self):
    module = dataclasses.replace(
      _SMALL, encoder_depth=1, num_classes=None, text_width=5
    )
    first = np.full((2, _NUM_TOKENS), _MASK)
    second = first.copy()
    second[0, 3], second[1, 8] = 1, 2
    text = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32)
    variables = random_variables(module, first, text)
    self.assertNotIn('modulation', variables['params']['blocks_0'])
    masking = jax.jit(module.apply)
    gathering = jax.jit(
      functools.partial(module.apply, method='gathered'), static_argnums=4
    )
    gathered = masked = module.nothing_encoded(2, text_length=4)
    for tokens, counts in (
      (first, TokenCounts(0, 4, 9)),
      (second, TokenCounts(4, 1, 8)),
    ):
      *ours, gathered = gathering(variables, tokens, text, gathered, counts)
      *expected, masked = masking(variables, tokens, text, masked)
      for one, other in zip(ours, expected, strict=True):
        self.assertEqual(one.shape[:2], (2, _NUM_TOKENS))
        np.testing.assert_allclose(one, other, atol=2e-5)
    self.assertEqual(masked.features.shape, (2, 4 + _NUM_TOKENS, 8))
    # Once encoded a text is not read again, and another one changes all.
    _, logits, again = masking(variables, second, text + 1, masked)
    np.testing.assert_allclose(
      logits, masking(variables, second, text, masked)[1]
    )
    np.testing.assert_array_equal(again.visible, masked.visible)
    fresh = module.nothing_encoded(2, text_length=4)
    other = masking(variables, first, text[::-1], fresh)[1]
    logits = masking(variables, first, text, fresh)[1]
    self.assertTrue(np.any(np.asarray(other) != logits, axis=-1).all())


class ConvertTest(converting.CommandLineTest):
  def test_there_and_back(self):
    arrays = converting.weights_of('enat_shared')
    path = self.folder / 'nnet_ema.pth'
    torch_files.save_zip(path, arrays)
    said = self.convert('enat', path)
    self.assertIn('width 48, 5 blocks, 64 tokens of 60 codes', said)
    self.assertIn('18,672 numbers of prev_embedder', said)
    unused = {key: 0 * x for key, x in arrays.items() if 'prev_embedder' in key}
    self.assertLen(unused, 4)
    self.assert_same(self.reverse('enat'), {**arrays, **unused})

  def test_files_without_the_unused_module(self):
    arrays = {
      key: value
      for key, value in converting.weights_of('enat_shared').items()
      if 'prev_embedder' not in key
    }
    path = self.folder / 'ours.pth'
    torch_files.save_zip(path, arrays)
    self.assertIn(
      'enat: 0 numbers of prev_embedder', self.convert('enat', path)
    )

  def test_another_network_is_refused(self):
    path = self.folder / 'nat.pth'
    torch_files.save_zip(path, converting.weights_of('uvit_class_shared'))
    self.assertIn('not the weights of an ENAT', self.refused('enat', path))


def _only(reference, *cases):
  """The file as if it had been made of these of its cases, for masks alone."""
  named = [f'{case} ({how})' for case, how in cases]
  names = [case for case, _ in cases]
  return dataclasses.replace(
    reference,
    meta={**reference.meta, 'note': '; '.join(named), 'way': 'masking'},
    outputs={
      key: value
      for key, value in reference.outputs.items()
      if key.split('/')[0] in names
    },
  )


def _swap_streams(weights):
  other = {'.kv.A.': '.kv.B.', '.kv.B.': '.kv.A.'}
  swap = lambda key: next(
    (key.replace(old, new) for old, new in other.items() if old in key), key
  )
  return {swap(key): value for key, value in weights.items()}


def _without_carry_over(weights):
  last = 'prev_proj.mlp.fc2'
  return {k: 0 * x if k.startswith(last) else x for k, x in weights.items()}


def _swap_shift_and_scale(weights):
  def change(key, x):
    if 'adaLN' not in key:
      return x
    return x.reshape(8, -1)[[1, 0, 2, 3, 4, 5, 6, 7]].reshape(x.shape)

  return {key: change(key, x) for key, x in weights.items()}


class MistakesTest(parameterized.TestCase):
  """The comparison with the original would notice these."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    data = pathlib.Path(__file__).parent / 'data'
    cls.reference = reference_arrays.read(data / 'enat_shared.npz')

  @parameterized.named_parameters(
    ('keys_and_values', _swap_streams, 'full'),
    ('shift_and_scale', _swap_shift_and_scale, 'full'),
    ('no_carry_over', _without_carry_over, 'full', 'reuse_from_full'),
  )
  def test_in_weights(self, change, first, *others):
    cases = [(first, 'no prev'), *((case, 'prev=full') for case in others)]
    right = _only(self.reference, *cases)
    wrong = dataclasses.replace(right, weights=change(right.weights))
    self.assertNotEmpty(suite.disagreements(wrong))

  @parameterized.named_parameters(
    ('block_epsilon', enat, '_BLOCK_EPSILON', 1e-5),
    ('epsilon', enat, '_EPSILON', 1e-6),
    ('embedding_epsilon', nat, '_EMBEDDING_EPSILON', 1e-5),
    ('gelu', enat, '_tanh_gelu', layers.gelu),
    ('head_gelu', layers, 'gelu', enat._tanh_gelu),
  )
  def test_in_code(self, module, name, value):
    with mock.patch.object(module, name, value):
      self.assertNotEmpty(
        suite.disagreements(_only(self.reference, ('full', 'no prev')))
      )


if __name__ == '__main__':
  absltest.main()
