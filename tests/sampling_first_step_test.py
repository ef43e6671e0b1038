"""The first step of a decode from a table: the same samples, fewer forwards."""

import dataclasses
from unittest import mock

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import tables
from adanat_jax.models import denoisers
from adanat_jax.models.enat import ENAT
from adanat_jax.models.nat import NAT
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import sharding
from adanat_jax.sampling import first_step, program
from adanat_jax.sampling.generator import Generator
from support import random_weights

_SIZES = dict(codebook_size=7, num_tokens=4, width=8, num_heads=2)
_NAT = NAT(depth=2, num_classes=5, **_SIZES)
_ENAT = ENAT(encoder_depth=1, decoder_depth=1, num_classes=5, **_SIZES)


class NoTable(first_step.FirstSteps):
  """Runs the network in every step."""

  def of(self, *arguments):
    return {}


def params_of(module, *inputs):
  params = random_weights.random_variables(module, *inputs)['params']
  # Large enough that classes matter.
  return jax.tree.map(lambda x: 4 * x, params)


def make(nat, batch_size=8):
  tokens, labels = jnp.zeros((1, 4), jnp.int32), jnp.zeros(1, jnp.int32)
  tokenizer = VQGAN(
    codebook_size=7,
    code_width=4,
    base_width=8,
    width_multipliers=(1,),
    num_res_blocks=1,
    num_groups=2,
    image_channels=1,
  )
  return Generator(
    nat,
    params_of(nat, tokens, labels),
    tokenizer,
    params_of(tokenizer, jnp.zeros((1, 2, 2, 1))),
    5,
    {},
    batch_size,
  )


class FirstStepTest(parameterized.TestCase):
  """Against the same generator without a table."""

  @parameterized.parameters(
    (_NAT, True, None), (_NAT, True, 0), (_ENAT, True, None), (_ENAT, False, 0)
  )
  def test_samples_are_those_of_the_network(self, nat, static_counts, guidance):
    generator = dataclasses.replace(make(nat), static_counts=static_counts)
    plain = dataclasses.replace(generator, first_steps=NoTable())
    # A guided decode whose guidance counts in the first step.
    table = dataclasses.replace(
      tables.hand_made(2), guidance_scale=jnp.float32([3.0, 3.0])
    )
    labels = [4, 0, 0, 3, 1, 2, 2, 4, 1]
    options = dict(
      num_steps=2, policy=table, guidance_scale=guidance, record=True
    )
    ours, theirs = (x.sample(labels, **options) for x in (generator, plain))
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_array_equal(
      ours.trajectory.tokens, theirs.trajectory.tokens
    )
    np.testing.assert_array_equal(ours.passes, theirs.passes)
    if guidance is None:
      # The classes matter, or a table of any other would do. Unguided, they
      # weigh little against the noise in networks as small as these.
      other = generator.sample([0] * len(labels), **options)
      self.assertTrue((other.tokens != ours.tokens).any())

  def test_each_class_is_computed_once(self):
    generator = make(_NAT)
    with mock.patch.object(first_step, '_rows', wraps=first_step._rows) as rows:
      sample = lambda *labels: generator.sample(labels, 2, policy='maskgit')
      sample(1, 2)
      sample(2, 1, 1)
      self.assertEqual(rows.call_count, 1)
      sample(2, 4)
      self.assertEqual(rows.call_count, 2)
      self.assertEqual(set(np.asarray(rows.call_args.args[2])), {4})

  @parameterized.parameters(_NAT, _ENAT)
  def test_table_of_all_classes(self, nat):
    """The rows that are computed on demand, to the bit."""
    params, mesh = make(nat).nat_params, sharding.make_mesh()
    # Two calls of the network.
    with mock.patch.object(first_step, '_MOST_ROWS', 4):
      table = first_step.table(nat, params, mesh)
    rows = first_step._rows(nat, params, np.arange(8, dtype=np.int32) % 6)
    for c, (features, logits) in enumerate(rows[:5]):
      np.testing.assert_array_equal(table.features[c], features)
      np.testing.assert_array_equal(table.logits[c], logits)
    np.testing.assert_array_equal(table.unconditional, rows[5][1])
    self.assertEqual(table.logits.shape, (5, 4, 7))
    # Five rows of 4 tokens, of 8 features and 7 logits each.
    for most, is_made in ((5 * 4 * (8 + 7) * 4, True), (5 * 4 * 15 * 4 - 1, 0)):
      with mock.patch.object(first_step, '_MOST_BYTES', most):
        made = first_step.table(nat, params, mesh)
      self.assertEqual(made is not None, is_made)

  def test_memory_is_bounded_and_others_are_not_lost(self):
    generator = make(_NAT)
    steps = first_step.FirstSteps(most_bytes=2 * 4 * (4 * 8 + 4 * 7))
    generator = dataclasses.replace(generator, first_steps=steps)
    for labels in ([0, 1, 2], [3, 0]):
      given = generator.sample(labels, 2, policy='maskgit').tokens
      expected = make(_NAT).sample(labels, 2, policy='maskgit').tokens
      np.testing.assert_array_equal(given, expected)
      self.assertLen(steps._kept, 2)

  def test_other_parameters_have_other_rows(self):
    generator = make(_NAT)
    changed = jax.tree.map(lambda x: -x, generator.nat_params)
    options = dict(num_steps=2, policy='maskgit')
    generator.sample([0, 1], **options)
    changed = dataclasses.replace(generator, nat_params=changed)
    plain = dataclasses.replace(changed, first_steps=NoTable())
    np.testing.assert_array_equal(
      changed.sample([0, 1], **options).tokens,
      plain.sample([0, 1], **options).tokens,
    )

  def test_a_canvas_that_is_given_has_no_table(self):
    generator = make(_NAT)
    canvas = np.full((1, 4), 7, np.int32)
    canvas[0, 2] = 5
    with mock.patch.object(denoisers, 'make', wraps=denoisers.make) as made:
      program.decode_batch.clear_cache()
      first_step._rows.clear_cache()
      generator.sample([3], 2, policy='maskgit', tokens=canvas)
      self.assertEqual(made.call_count, 1)


if __name__ == '__main__':
  absltest.main()
