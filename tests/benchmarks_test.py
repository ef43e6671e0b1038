"""The benchmark's formulas agree with XLA, and its figures with each other."""

from __future__ import annotations

import functools
import pathlib
import re
import sys
import time

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp

from adanat_jax.models import operations
from adanat_jax.models.nat import NAT
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.sampling import program

sys.path.append(str(pathlib.Path(__file__).parents[1] / 'benchmarks'))

import hlo
import sampling

_SMALL = sampling.Subject(
  NAT(7, 16, 32, 2, 2, num_classes=3),
  PolicyNetwork(4, 4, 16, 8, (16, 16)),
  PolicyNetwork(1, 4, 16, 8, (16, 16)),
  VQGAN(7, 4, 8, (1, 2), 1, 4, 1),
)


def _shape(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def _xla_operations(module, *inputs, initial=None, method=None):
  """XLA's count of an unrolled forward; nothing is compiled."""
  variables = jax.eval_shape(
    module.init, jax.random.key(0), *(initial or inputs)
  )
  call = lambda variables, *x: module.apply(variables, *x, method=method)
  return jax.jit(call).lower(variables, *inputs).cost_analysis()['flops']


def _main_arguments(text):
  """Names of the arguments of a program's entry."""
  signature = re.search(r'@main\((.*?)\) ->', text).group(1)
  return re.findall(r'%arg\d+', signature)


class OperationsTest(parameterized.TestCase):
  # Four blocks have the whole network's ratio of products to the rest.
  @parameterized.named_parameters(
    ('nat_l', NAT(1024, 256, 768, 4, 8, num_classes=1000), None),
    ('shallow_and_long', NAT(64, 1024, 512, 2, 8, num_classes=9), None),
    ('narrow_mlp', NAT(64, 256, 512, 4, 8, mlp_ratio=1, num_classes=9), None),
    ('text', NAT(1024, 256, 1152, 4, 16, text_width=1280), 77),
  )
  def test_nat(self, module, text_length):
    condition = _shape(1, dtype=jnp.int32)
    if text_length:
      condition = _shape(1, text_length, module.text_width)
    xla = _xla_operations(
      module, _shape(1, module.num_tokens, dtype=jnp.int32), condition
    )
    formula = operations.nat_operations(module, text_length or 0)
    # The softmax of long rows over few products is what the formula leaves out.
    self.assertBetween(xla / formula, 1.0, 1.05)

  @parameterized.parameters((16, 768), (16, 1152))
  def test_policy(self, grid_size, width):
    module = PolicyNetwork(4, grid_size)
    xla = _xla_operations(
      module,
      _shape(1, grid_size**2, width),
      _shape(1, dtype=jnp.int32),
    )
    formula = operations.policy_operations(module, width)
    self.assertBetween(xla / formula, 1.0, 1.04)

  def test_attention_products_are_counted_exactly(self):
    # In a narrow network the rest is too much for a comparison with XLA.
    traced = hlo.traced_operations(
      functools.partial(_SMALL.apply, 'nat'),
      (_SMALL.shapes(), *_SMALL.inputs(1)['nat']),
    )
    self.assertEqual(traced, _SMALL.operations['nat'])

  @parameterized.parameters((16, 512, 23), (7, 512, 10), (4, 96, 5))
  def test_policy_of_other_sizes(self, grid_size, width, taps):
    module = PolicyNetwork(4, grid_size)
    inputs = (_shape(1, grid_size**2, width), _shape(1, dtype=jnp.int32))
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    traced = hlo.traced_operations(module.apply, (variables, *inputs))
    # The depthwise convolution is a sum of shifted arrays there.
    formula = operations.policy_operations(module, width)
    self.assertEqual(traced + 2 * 512 * taps**2, formula)

  @parameterized.named_parameters(
    ('published', VQGAN(1024, 256), 256),
    ('published_512', VQGAN(1024, 256), 1024),
    ('digits', VQGAN(128, 8, 16, (1, 2, 4), 1, 8, 1), 16),
  )
  def test_decoder(self, module, num_tokens):
    side = 4 * module.downsampling
    xla = _xla_operations(
      module,
      _shape(1, num_tokens, dtype=jnp.int32),
      initial=(_shape(1, side, side, module.image_channels),),
      method='decode_tokens',
    )
    formula = operations.decoder_operations(module, num_tokens)
    self.assertBetween(xla / formula, 1.0, 1.02)

  def test_published_figures(self):
    # AdaNAT's tables count NAT-L's linear layers and the decoder in
    # multiply-adds: 0.9 T at 8 steps, 0.5 T at 4.
    counts = sampling.subject_of('nat_l').operations
    for num_steps, published in ((8, 0.9e12), (4, 0.5e12)):
      total = operations.sampling_operations(
        counts['nat'], counts['actor'], counts['decoder'], num_steps, True
      )
      self.assertAlmostEqual(total / 2, published, delta=0.05e12)

  def test_policy_is_a_small_part_at_the_published_sizes(self):
    counts = sampling.subject_of('nat_l').operations
    self.assertLess(counts['actor'], 0.003 * counts['nat'])


class SamplingTest(parameterized.TestCase):
  @parameterized.product(num_steps=(1, 3), guided=(False, True))
  def test_forwards(self, num_steps, guided):
    count = sampling.forwards(_SMALL, num_steps, guided)
    self.assertEqual(count, num_steps * (1 + guided))

  def _lowered(self, num_steps, record=False):
    return program.decode_tokens.lower(
      _SMALL.nat,
      program.Plan(num_steps, record=record),
      *_SMALL.decoding(_SMALL.shapes(), 2, num_steps),
    )

  def test_a_scan_counts_its_body_once(self):
    # The reason for having formulas.
    counts = [self._lowered(t).cost_analysis()['flops'] for t in (2, 8)]
    self.assertAlmostEqual(counts[1] / counts[0], 1.0, delta=0.01)

  def test_the_critic_does_not_run_unless_recorded(self):
    # Its weights do not even reach the program.
    critic = len(jax.tree.leaves(_SMALL.shapes()['critic']))
    without, recorded = (
      len(_main_arguments(self._lowered(2, record).as_text()))
      for record in (False, True)
    )
    self.assertEqual(recorded - without, critic)


class ReportTest(absltest.TestCase):
  def test_figures_fit_together(self):
    seconds = sampling.measure(_SMALL, [(2, 2, True)], 1, time.monotonic() + 60)
    ((to_tokens, to_images),) = seconds['sample', 2, 2, True]
    sampled, steps, counted = sampling.tables(_SMALL, seconds, 1e9)
    counts = _SMALL.operations
    total = 2 * (2 * counts['nat'] + counts['actor']) + counts['decoder']
    *_, without, both = sampled.splitlines()
    self.assertIn(f' {sampling.output.number(2 / to_tokens)} |', without)
    self.assertIn(f' {sampling.output.operations(total)} |', both)
    speed = 2 / (to_tokens + to_images)
    self.assertIn(f' {speed * total / 1e9:.0%} |', both)
    self.assertIn('with critic', steps)
    self.assertLen(counted.splitlines(), 6)


if __name__ == '__main__':
  absltest.main()
