"""NAT, policy and dense layers: what the parity files do not show."""

from __future__ import annotations

import dataclasses
import functools
from unittest import mock

from absl.testing import absltest, parameterized
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.models import (
  layers,
  nat,
  policy,
)
from support.random_weights import random_variables

_KEY = jax.random.key(0)


def normal(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def with_gradients(function, *inputs):
  """The result of a function and gradients of the sum of its sines."""

  def loss(*inputs):
    result = function(*inputs)
    return jnp.sum(jnp.sin(result)), result

  return jax.jit(jax.grad(loss, range(len(inputs)), has_aux=True))(*inputs)


class DenseTest(parameterized.TestCase):
  @parameterized.parameters(('cpu', 2), ('tpu', 3))
  def test_it_is_flaxs_with_its_own_axes_where_the_cpu_is_the_device(
    self, backend, rank
  ):
    self.enter_context(
      absltest.mock.patch.object(jax, 'default_backend', lambda: backend)
    )
    x = normal(3, 5, 4)
    params = random_variables(nn.Dense(6), x)
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
      with_gradients(layers.Dense(6).apply, params, x),
      with_gradients(nn.Dense(6).apply, params, x),
    )
    products = str(jax.make_jaxpr(layers.Dense(6).apply)(params, x))
    self.assertIn(f'dimension_numbers=(([{rank - 1}], [0])', products)


class ConvTest(parameterized.TestCase):
  """What the policy's network writes out, against XLA's convolutions."""

  def assert_alike(self, ours, theirs, *inputs):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      with_gradients(ours, *inputs),
      with_gradients(theirs, *inputs),
    )

  @parameterized.parameters((4, 4), (5, 2))
  def test_depthwise(self, height, width):
    x, kernel = normal(2, height, width, 3), normal(3, 3, 3)

    def theirs(x, kernel):
      return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        (2, 2),
        ((1, 1), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=3,
      )

    self.assert_alike(policy._depthwise, theirs, x, kernel)

  def test_pointwise(self):
    x = normal(2, 3, 2, 4)
    theirs = nn.Conv(5, (1, 1))
    ours = layers.PointwiseConv(5, theirs.kernel_init, nn.initializers.normal())
    params = jax.jit(ours.init)(_KEY, x)
    np.testing.assert_array_equal(
      params['params']['kernel'],
      jax.jit(theirs.init)(_KEY, x)['params']['kernel'],
    )
    self.assert_alike(ours.apply, theirs.apply, params, x)


class SideBySideTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(layers, '_PARTS', 3))

  @parameterized.parameters(
    # 16,384 pixels, of the batch or where it is enlarged.
    ((16, 32, 32), 1, [6, 5, 5]),
    ((2, 128, 64), 1, [1, 1]),
    ((1, 128, 128), 1, [1]),
    ((15, 32, 32), 1, [15]),
    ((4, 32, 32), 2, [2, 1, 1]),
    ((4, 32, 31), 2, [4]),
  )
  def test_parts(self, shape, enlarged, expected):
    found = []

    def network(x):
      found.append(len(x))
      return {'a': 2 * x, 'b': x.sum((1, 2, 3))}

    x = np.random.default_rng(0).random((*shape, 1), np.float32)
    result = layers.side_by_side(network, x, enlarged=enlarged, least=2**14)
    self.assertEqual(found, expected)
    np.testing.assert_array_equal(result['a'], 2 * x)
    self.assertEqual(result['b'].shape, shape[:1])

  def test_a_network_and_its_gradient(self):
    random = np.random.default_rng(0)
    x = random.random((7, 64, 64, 2), np.float32)
    kernel = random.normal(size=(3, 3, 2, 8)).astype(np.float32)

    def network(kernel, x):
      return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )

    def loss(kernel, parts):
      if parts:
        y = layers.side_by_side(functools.partial(network, kernel), x, least=0)
      else:
        y = network(kernel, x)
      return jnp.mean(y**2), y

    gradient = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    ((_, expected), whole), ((_, found), parts) = (
      gradient(kernel, parts) for parts in (False, True)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-5)


class NATTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.module = nat.NAT(7, 9, 8, 2, 2, num_classes=3)
    cls.tokens = np.random.default_rng(0).integers(0, 8, (2, 9), np.int32)
    cls.classes = np.array([0, 3], np.int32)
    cls.variables = random_variables(cls.module, cls.tokens, cls.classes)
    cls.run_network = staticmethod(
      jax.jit(cls.module.apply, static_argnames='train')
    )

  def apply(self, tokens=None, condition=None, **kwargs):
    tokens = self.tokens if tokens is None else tokens
    condition = self.classes if condition is None else condition
    return self.run_network(self.variables, tokens, condition, **kwargs)

  def test_dropout_in_training_only(self):
    rngs = lambda seed: {'dropout': jax.random.key(seed)}
    _, first = self.apply(train=True, rngs=rngs(1))
    _, again = self.apply(train=True, rngs=rngs(1))
    _, second = self.apply(train=True, rngs=rngs(2))
    np.testing.assert_array_equal(first, again)
    self.assertGreater(np.max(np.abs(first - second)), 0)
    np.testing.assert_array_equal(
      self.apply(rngs=rngs(1))[1], self.apply(rngs=rngs(2))[1]
    )

  def test_head_does_not_train_the_embedding(self):
    # A token that is not in the canvas is reached through the head alone.
    tokens, classes = np.zeros((1, 9), np.int32), np.zeros(1, np.int32)

    def loss(params):
      _, logits = self.module.apply({'params': params}, tokens, classes)
      return jax.nn.log_softmax(logits)[..., 5].sum()

    grads = jax.jit(jax.grad(loss))(self.variables['params'])
    np.testing.assert_array_equal(grads['tokens']['words'][1:], 0)
    self.assertGreater(np.abs(grads['tokens']['words'][0]).max(), 0)
    self.assertGreater(np.abs(grads['head_bias'][5]), 0)

  def test_bfloat16_keeps_logits_and_parameters_float32(self):
    module = self.module.clone(dtype=jnp.bfloat16)
    inputs = (self.tokens, self.classes)
    variables = jax.eval_shape(module.init, _KEY, *inputs)
    types = {x.dtype for x in jax.tree.leaves(variables)}
    self.assertEqual(types, {jnp.dtype(jnp.float32)})
    features, logits = jax.jit(module.apply)(self.variables, *inputs)
    self.assertEqual(features.dtype, jnp.bfloat16)
    self.assertEqual(logits.dtype, jnp.float32)
    np.testing.assert_allclose(logits, self.apply()[1], atol=2e-2)

  @parameterized.named_parameters(
    ('odd_depth', {'depth': 3}, 'depth=3'),
    ('two_conditions', {'text_width': 4}, 'exactly one'),
    ('heads', {'num_heads': 3}, 'num_heads=3'),
  )
  def test_mistakes(self, fields, message):
    module = self.module.clone(**fields)
    with self.assertRaisesRegex(UserError, message):
      jax.eval_shape(module.init, _KEY, self.tokens, self.classes)


class PolicyTest(parameterized.TestCase):
  @parameterized.parameters(3, 4)
  def test_starts_at_zero_on_any_square_grid(self, grid_size):
    module = policy.PolicyNetwork(4, grid_size, 8, 4, (8, 8))
    features = normal(2, grid_size**2, 6)
    output, _ = jax.jit(module.init_with_output)(_KEY, features, 1)
    np.testing.assert_array_equal(output, np.zeros((2, 4)))

  @parameterized.parameters((2, 5), (1, 12), (1, 1))
  def test_reads_every_token_of_any_grid(self, rows, columns):
    module = policy.PolicyNetwork(4, rows, 8, 4, (8, 8), columns)
    features = normal(1, rows * columns, 6)
    variables = random_variables(module, features, 1)
    total = lambda x: module.apply(variables, x, 1).sum()
    gradients = np.asarray(jax.jit(jax.grad(total))(features))
    self.assertTrue(gradients.any((0, 2)).all())

  def test_reads_how_many_steps_are_left(self):
    alone = policy.PolicyNetwork(4, 3, 8, 4, (8, 8))
    told = dataclasses.replace(alone, reads_budget=True)
    features = normal(2, 9, 6)
    variables = random_variables(told, features, 0, 1)
    apply = jax.jit(told.apply)
    at = lambda variables, *budget: np.asarray(
      apply(variables, features, *budget)
    )
    self.assertGreater(
      np.abs(at(variables, 1, 2) - at(variables, 1, 8)).max(), 1e-3
    )
    # A new one begins as the network that was trained for one T.
    weights = variables['params'] | {
      'budget_fc': jax.jit(told.init)(_KEY, features, 0, 1)['params'][
        'budget_fc'
      ]
    }
    expected = {k: x for k, x in weights.items() if k != 'budget_fc'}
    expected = jax.jit(alone.apply)({'params': expected}, features, 1)
    for num_steps in (2, 8):
      np.testing.assert_array_equal(
        at({'params': weights}, 1, num_steps), expected
      )


if __name__ == '__main__':
  absltest.main()
