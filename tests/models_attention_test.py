"""Attention on a CPU, against `jax.nn.dot_product_attention`."""

import functools
import json
import sys
from unittest import mock

from absl.testing import absltest, parameterized
import jax
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from adanat_jax.models import attention
from adanat_jax.runtime import sharding
from support import children

_SMALL, _LARGE = (3, 17, 2, 8), (3, 91, 2, 24)


def arrays(shape, keys=None, dtype=jnp.float32):
  """Queries, keys and values; the keys perhaps of another number."""
  batch, queries, *rest = shape
  lengths = queries, keys or queries, keys or queries
  random = np.random.default_rng(0)
  return [
    random.normal(size=(batch, length, *rest)).astype(dtype)
    for length in lengths
  ]


def reference(*qkv, **options):
  return jax.nn.dot_product_attention(*qkv, implementation='xla', **options)


def with_gradients(function, *qkv):
  """The result of a function and the gradients of what it is summed to."""

  def loss(*qkv):
    result = function(*qkv)
    return jnp.sin(result).sum(), result

  gradients, result = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
  return result, *gradients


class AttentionTest(parameterized.TestCase):
  """Values, gradients, masks, devices."""

  def test_a_sample_has_the_bits_of_any_batch(self):
    qkv = arrays(_LARGE)
    both = jax.jit(attention.attend)(*qkv)
    one = jax.jit(attention.attend)(*(x[1:2] for x in qkv))
    np.testing.assert_array_equal(both[1:2], one)

  @parameterized.parameters((_SMALL, 23), (_LARGE, None), (_LARGE, 99))
  def test_some_keys(self, shape, count):
    qkv = arrays(shape, count)
    keys = np.random.default_rng(9).random(qkv[1].shape[:2]) < 0.5
    keys[:, 3] = True
    for given in (None, keys):
      mask = None if given is None else given[:, None, None]
      np.testing.assert_allclose(
        jax.jit(attention.attend)(*qkv, keys=given),
        jax.jit(reference)(*qkv, mask=mask),
        atol=1e-6,
      )

  def test_gradients_of_large_samples(self):
    qkv = arrays(_LARGE)
    for ours, theirs in zip(
      with_gradients(attention.attend, *qkv),
      with_gradients(reference, *qkv),
      strict=True,
    ):
      np.testing.assert_allclose(ours, theirs, atol=2e-6)

  @parameterized.parameters(_SMALL, _LARGE)
  def test_causal(self, *shape):
    qkv = arrays(shape)
    causal = lambda attend: jax.jit(functools.partial(attend, is_causal=True))
    np.testing.assert_allclose(
      causal(attention.attend)(*qkv), causal(reference)(*qkv), atol=1e-6
    )

  def test_softmax_of_bfloat16_is_float32(self):
    qkv = arrays(_LARGE, dtype=jnp.bfloat16)
    result = jax.jit(attention.attend)(*qkv)
    self.assertEqual(result.dtype, jnp.bfloat16)
    exact = jax.jit(reference)(*(x.astype(np.float32) for x in qkv))
    # Weights and results are rounded, to 8 bits each; logits are not.
    error = np.abs(np.asarray(result, np.float32) - exact).max()
    self.assertLess(float(error), 2**-8)

  @parameterized.parameters((_SMALL, 23), (_LARGE, None))
  def test_maps_in_bfloat16(self, shape, count):
    qkv = arrays(shape, count, dtype=jnp.bfloat16)
    keys = np.ones(qkv[1].shape[:2], bool)
    keys[:, 5:9] = False
    exact = [x.astype(np.float32) for x in qkv]
    for given in (None, keys):
      mask = None if given is None else given[:, None, None]
      with mock.patch.object(sharding, 'platform', lambda: 'tpu'):
        auto = functools.partial(
          attention.attend, keys=given, implementation='auto'
        )
        found = with_gradients(auto, *qkv)
      dense = functools.partial(reference, mask=mask)
      expected = with_gradients(dense, *exact)
      for ours, theirs in zip(found, expected, strict=True):
        self.assertEqual(ours.dtype, jnp.bfloat16)
        error = np.abs(np.asarray(ours, np.float32) - theirs).max()
        self.assertLess(float(error), 2**-5)

  def test_the_kernel_for_tpus(self):
    qkv = arrays((1, 520, 1, 24), 540, dtype=jnp.bfloat16)
    with (
      mock.patch.object(sharding, 'platform', lambda: 'tpu'),
      mock.patch.object(attention, '_rounded', None),
      pltpu.force_tpu_interpret_mode(),
    ):
      auto = functools.partial(attention.attend, implementation='auto')
      found = with_gradients(auto, *qkv)
    exact = [x.astype(np.float32) for x in qkv]
    expected = with_gradients(reference, *exact)
    for ours, theirs in zip(found, expected, strict=True):
      error = np.abs(np.asarray(ours, np.float32) - theirs).max()
      self.assertLess(float(error), 2**-6)

  def test_several_devices_give_the_bits_of_one_and_move_nothing(self):
    (one, _), (two, moved) = (children.run(__file__, n) for n in (1, 2))
    self.assertEqual(one, two)
    self.assertEmpty(moved)


def child():
  """Prints the results' bits, as sums, and the collectives of the program."""
  mesh = sharding.make_mesh()
  sums, moved = [], []
  for shape in (_SMALL, _LARGE):
    qkv = [np.tile(x, (2, 1, 1, 1)) for x in arrays(shape)]
    with jax.set_mesh(mesh):
      compiled = (
        jax.jit(attention.attend)
        .lower(*sharding.put_batch(qkv, mesh))
        .compile()
      )
      result = compiled(*sharding.put_batch(qkv, mesh))
    text = compiled.as_text()
    moved += [x for x in ('all-gather', 'all-to-all') if x in text]
    sums.append(np.asarray(result).view(np.uint32).sum().item())
  print(json.dumps([sums, moved]))


if __name__ == '__main__':
  if '--child' in sys.argv:
    child()
  else:
    absltest.main()
