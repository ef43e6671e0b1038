"""The parity suite would notice: typical mistakes, made on purpose.

Each mistake is made in the code or, where that comes to the same, in the
weights; the file it stands beside must then disagree. Epsilons and activations
are also tested layer by layer, because files exist whose outputs hardly depend
on them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.learning import ppo
from adanat_jax.models import discriminator, layers, nat, policy, vit, vqgan
from parity_cases import suite
from support import reference_arrays
from support.random_weights import random_variables

_DATA = pathlib.Path(__file__).parent / 'data'
_tanh_gelu = functools.partial(jax.nn.gelu, approximate=True)


def _swap_halves(x, axis=0):
  return np.concatenate(np.split(x, 2, axis=axis)[::-1], axis=axis)


def _changed(suffix, change):
  """Changes the weights whose key ends so."""

  def apply(reference):
    weights = {
      key: change(value, reference.config) if key.endswith(suffix) else value
      for key, value in reference.weights.items()
    }
    if all(weights[key] is reference.weights[key] for key in weights):
      raise ValueError(f'no weight {suffix}')
    return dataclasses.replace(reference, weights=weights)

  return apply


def _unscaled_attention(qkv, config):
  head_width = config['embed_dim'] // config['num_heads']
  scale = np.ones((3, 1, 1), np.float32)
  scale[0] = math.sqrt(head_width)
  return (qkv.reshape(3, -1, qkv.shape[1]) * scale).reshape(qkv.shape)


def _zero_pad(x, width, mode='constant'):
  del mode
  zeros = [jnp.zeros_like(x[:, : width[1][0]])]
  return jnp.concatenate(zeros + [x] + zeros, axis=1)


WEIGHT_MISTAKES = (
  ('attention_scale', 'uvit_class', 'qkv.weight', _unscaled_attention),
  (
    'skip_order',
    'uvit_class',
    'skip_linear.weight',
    lambda x, _: _swap_halves(x, 1),
  ),
  ('no_head_bias', 'uvit_class', 'mlm_layer.bias', lambda x, _: 0 * x),
  (
    'shift_and_scale',
    'policy',
    'adaLN_modulation.1.weight',
    lambda x, _: _swap_halves(x),
  ),
  (
    'sines_first',
    'policy',
    't_embedder.mlp.0.weight',
    lambda x, _: _swap_halves(x, 1),
  ),
)

CODE_MISTAKES = (
  ('epsilon', 'uvit_class', nat, '_EPSILON', 1e-6),
  ('embedding_epsilon', 'uvit_class', nat, '_EMBEDDING_EPSILON', 1e-5),
  ('gelu', 'uvit_text', layers, 'gelu', _tanh_gelu),
  ('policy_epsilon', 'policy', policy, '_EPSILON', 1e-5),
  ('policy_gelu', 'policy', layers, 'gelu', _tanh_gelu),
  ('trunk_epsilon', 'projdisc_class', vit, '_EPSILON', 1e-5),
  ('trunk_gelu', 'projdisc_class', layers, 'gelu', _tanh_gelu),
  ('zero_padding', 'dischead', discriminator.jnp, 'pad', _zero_pad),
  ('whole_batch_norm', 'dischead', discriminator, 'GROUP_SIZE', 16),
  (
    'frozen_spectral_vectors',
    'dischead',
    discriminator,
    '_power_iteration',
    lambda kernel, u: (u, jnp.zeros(kernel.shape[0] * kernel.shape[1])),
  ),
  (
    'biased_spread',
    'ppo',
    ppo,
    'standardise',
    lambda x: (x - x.mean()) / (x.std() + 1e-7),
  ),
)


class MistakesTest(parameterized.TestCase):
  @parameterized.named_parameters(*WEIGHT_MISTAKES)
  def test_in_weights(self, file, suffix, change):
    reference = reference_arrays.read(_DATA / f'{file}_shared.npz')
    wrong = _changed(suffix, change)(reference)
    self.assertNotEmpty(suite.disagreements(wrong))

  @parameterized.named_parameters(*CODE_MISTAKES)
  def test_in_code(self, file, module, name, value):
    reference = reference_arrays.read(_DATA / f'{file}_shared.npz')
    with mock.patch.object(module, name, value):
      self.assertNotEmpty(suite.disagreements(reference))


class LayerAloneTest(parameterized.TestCase):
  """Inputs whose variance is about the epsilon make it visible."""

  @parameterized.named_parameters(
    (
      'nat',
      nat.NAT(5, 4, 8, 2, 2, num_classes=3),
      (np.zeros((1, 4), np.int32), np.zeros(1, np.int32)),
      {'tokens/norm': 1e-6, 'classes/norm': 1e-6},
      1e-5,
      2 + 3 * 2 + 2,
    ),
    (
      'policy',
      policy.PolicyNetwork(2, 4, 8, conv_width=4, mlp_widths=(8, 8)),
      (np.ones((1, 16, 6), np.float32), np.ones(1, np.int32)),
      {},
      1e-6,
      3,
    ),
    (
      'vit',
      vit.VisionTransformer(8, 4, 8, 2, 2),
      (np.ones((1, 8, 8, 3), np.float32),),
      {},
      1e-6,
      2 * 2 + 1,
    ),
  )
  def test_epsilons(self, module, inputs, exceptions, default, count):
    seen = {}

    def spread(shape, epsilon):
      x = np.random.default_rng(0).normal(size=shape)
      return (x * math.sqrt(epsilon)).astype(np.float32)

    def record(next_function, args, kwargs, context):
      layer = context.module
      if not isinstance(layer, layers.LayerNorm):
        return next_function(*args, **kwargs)
      path = '/'.join(layer.path)
      # The network goes on with this output: only its layers matter here.
      output = next_function(
        spread(args[0].shape, exceptions.get(path, default))
      )
      seen[path] = output, context.module.variables.get('params', {})
      return output

    @jax.jit
    def run(variables):
      with nn.intercept_methods(record):
        module.apply(variables, *inputs)
      return seen

    layers_seen = run(random_variables(module, *inputs))
    self.assertLen(layers_seen, count)
    for path, (output, params) in layers_seen.items():
      epsilon = exceptions.get(path, default)
      x = spread(output.shape, epsilon)
      centred = x - x.mean(-1, keepdims=True, dtype=np.float64)
      variance = (centred**2).mean(-1, keepdims=True)
      expected = centred / np.sqrt(variance + epsilon)
      expected = expected * params.get('scale', 1) + params.get('bias', 0)
      np.testing.assert_allclose(output, expected, atol=1e-4, err_msg=path)

  def test_group_norm_epsilon(self):
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 2)) * 1e-3
    layer = vqgan.GroupNorm(num_groups=2, dtype=jnp.float32)
    y, _ = jax.jit(layer.init_with_output)(jax.random.key(0), x)
    centred = x - x.mean((1, 2), keepdims=True)
    variance = (centred**2).mean((1, 2), keepdims=True)
    expected = centred / np.sqrt(variance + 1e-6)
    expected /= 1 + np.exp(-expected)
    np.testing.assert_allclose(y, expected, atol=1e-5)

  def test_gelu(self):
    x = np.linspace(-4, 4, 81)
    erf = np.array([math.erf(v / math.sqrt(2)) for v in x])
    expected = 0.5 * x * (1 + erf)
    gelu, tanh_gelu = jax.jit(lambda x: (layers.gelu(x), _tanh_gelu(x)))(x)
    np.testing.assert_allclose(gelu, expected, atol=2e-6)
    self.assertGreater(np.max(np.abs(tanh_gelu - expected)), 1e-4)


if __name__ == '__main__':
  absltest.main()
