"""One device and four: the same numbers, and really more than one shard."""

import json
import pathlib
import sys
from typing import Any

from absl import logging
from absl.testing import absltest
import jax
from jax.sharding import PartitionSpec
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.runtime import loop, sharding
from adanat_jax.runtime.checkpoint import Checkpointer
from support import children, toy_training

RULES = (('kernel$', PartitionSpec(None, 'fsdp')),)
NUM_STEPS = 12


def shards_of(array: jax.Array) -> int:
  """Returns into how many different pieces an array is cut."""
  return len({str(shard.index) for shard in array.addressable_shards})


def train(directory: pathlib.Path, fsdp: int, num_steps: int) -> dict[str, Any]:
  """Trains on all devices, from the checkpoint there if there is one.

  Args:
    directory: the stage's directory.
    fsdp: size of the mesh's second axis.
    num_steps: total number of steps.

  Returns:
    The final parameters, and into how many pieces arrays are cut.
  """
  mesh = sharding.make_mesh(fsdp=fsdp)
  state = sharding.shard_state(toy_training.initial_state(), mesh, RULES)
  shardings = sharding.state_shardings(state, mesh, RULES)
  pieces = {}

  def batch_at(step: int) -> Any:
    batch = sharding.put_batch(toy_training.batch_at(step), mesh)
    pieces['batch'] = shards_of(batch['inputs'])
    return batch

  state = loop.run_loop(
    state,
    jax.jit(
      toy_training.plain_step,
      donate_argnums=0,
      out_shardings=(shardings, None),
    ),
    batch_at,
    num_steps=num_steps,
    directory=directory,
    name='toy',
    log_every=1,
    save_every=5,
    tensorboard=False,
  )
  momentum = jax.tree.leaves(state.opt_state)
  return {
    'params': {key: np.asarray(x).tolist() for key, x in state.params.items()},
    'pieces': pieces
    | {
      'kernel': shards_of(state.params['kernel']),
      'bias': shards_of(state.params['bias']),
      'momentum': max(shards_of(leaf) for leaf in momentum),
    },
  }


class ShardingTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.
    self.directory = pathlib.Path(self.create_tempdir().full_path)

  def test_four_devices_give_the_numbers_of_one(self):
    one = children.run(__file__, 1, self.directory / 'one', 1, NUM_STEPS)
    four = children.run(__file__, 4, self.directory / 'four', 2, NUM_STEPS)
    self.assertEqual(set(one['pieces'].values()), {1})
    self.assertEqual(
      four['pieces'], {'batch': 4, 'kernel': 2, 'bias': 1, 'momentum': 2}
    )
    for name, value in one['params'].items():
      np.testing.assert_allclose(
        value, four['params'][name], rtol=1e-5, atol=1e-6, err_msg=name
      )
    with self.subTest('a checkpoint of four devices is restored on one'):
      with Checkpointer(self.directory / 'four') as checkpoints:
        restored = checkpoints.restore(toy_training.initial_state())
      self.assertEqual(restored.step, NUM_STEPS)
      for name, value in four['params'].items():
        np.testing.assert_array_equal(restored.state.params[name], value)
    with self.subTest('and training goes on, on four, after one'):
      more = children.run(__file__, 4, self.directory / 'one', 4, NUM_STEPS + 3)
      whole = children.run(
        __file__, 4, self.directory / 'whole', 4, NUM_STEPS + 3
      )
      self.assertEqual(more['pieces']['kernel'], 4)
      for name, value in whole['params'].items():
        np.testing.assert_allclose(
          value, more['params'][name], rtol=1e-5, atol=1e-6, err_msg=name
        )

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

  def test_a_batch_keeps_its_numbers_and_scalars(self):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    batch = sharding.put_batch({'x': np.arange(6), 'scale': 0.5}, mesh)
    np.testing.assert_array_equal(batch['x'], np.arange(6))
    self.assertEqual(float(batch['scale']), 0.5)
    self.assertEqual(batch['x'].sharding, sharding.batch_sharding(mesh))


if __name__ == '__main__':
  if '--child' in sys.argv:
    path, axis, steps = sys.argv[2:]
    print(json.dumps(train(pathlib.Path(path), int(axis), int(steps))))
  else:
    absltest.main()
