"""Which arrays are split over devices, and what cannot be."""

from absl.testing import absltest
import jax
from jax.sharding import PartitionSpec
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.runtime import sharding

RULES = (('kernel$', PartitionSpec(None, 'fsdp')),)


class ShardingTest(absltest.TestCase):
  def test_the_first_rule_decides(self):
    rules = (('head/kernel', PartitionSpec('fsdp')), *RULES)
    for name, spec in (
      ('params/head/kernel', PartitionSpec('fsdp')),
      ('opt/0/mu/block_0/kernel', PartitionSpec(None, 'fsdp')),
      ('params/kernel_scale', PartitionSpec()),
    ):
      self.assertEqual(sharding.spec_of(name, rules), spec)

  def test_what_is_large_is_split(self):
    for name, is_split in (
      ('params/blocks_3/attention/qkv/kernel', True),
      ('params/blocks_3/modulation/kernel', True),
      ('params/actor/norm_1/modulation/kernel', False),
      ('params/blocks_3/modulation/bias', False),
    ):
      spec = sharding.spec_of(name, sharding.RULES)
      self.assertEqual('fsdp' in spec, is_split, name)

  def test_what_cannot_be_split_is_named(self):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with self.assertRaisesRegex(UserError, 'fsdp: 3 given, .* devices, 1'):
      sharding.make_mesh(fsdp=3, devices=jax.devices()[:1])
    with self.assertRaisesRegex(
      UserError, r'a/kernel: float32\[4\] cannot be split'
    ):
      sharding.shard_state({'a': {'kernel': np.zeros(4, 'f')}}, mesh, RULES)

  def test_small_devices_share_copies(self):
    memories = None, 8 * 2**30, 15.75 * 2**30, 30.75 * 2**30
    counts = 1, 4, 12, 16
    self.assertEqual(
      [
        [sharding.devices_of_a_copy(memory, count) for count in counts]
        for memory in memories
      ],
      [[1, 1, 1, 1], [1, 4, 4, 8], [1, 4, 4, 8], [1, 1, 1, 1]],
    )

  def test_a_batch_keeps_its_numbers_and_scalars(self):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    batch = sharding.put_batch({'x': np.arange(6), 'scale': 0.5}, mesh)
    np.testing.assert_array_equal(batch['x'], np.arange(6))
    self.assertEqual(float(batch['scale']), 0.5)
    self.assertEqual(batch['x'].sharding, sharding.batch_sharding(mesh))


if __name__ == '__main__':
  absltest.main()
