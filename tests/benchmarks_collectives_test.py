"""What devices exchange, read off compiled programs.

Batches here are multiples of seven a device, and no parameter has a multiple
of seven elements: so does an array exactly if it grows with the batch, whole
or a device's share of it, features, tokens and activations alike.
"""

import json
import math
import pathlib
import sys
from typing import Any

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp

from support import children

sys.path.append(str(pathlib.Path(__file__).parents[1] / 'benchmarks'))

import hlo
import programs

from adanat_jax.runtime import sharding
from support import configs

# A device has 56 trajectories: 7 a micro-batch of a quarter in two.
_BATCH_SIZE = 7 * 64
# Nothing is run; compiling takes the time.
_OPTIONS = {
  'xla_backend_optimization_level': 0,
  'xla_cpu_use_fusion_emitters': False,
}

# Every way to cut the work, and a new shuffle in each epoch.
_CUT = {
  'policy.ppo.num_minibatches': 4,
  'policy.ppo.shuffle_groups': 8,
  'policy.ppo.micro_batches': 2,
  'policy.rollout_size': _BATCH_SIZE // 2,
  'policy.rollout_dtype': 'bfloat16',
  'policy.discriminator.fresh_rollouts': False,
  'policy.discriminator.groupings': 3,
  'policy.discriminator.updates': 2,
  'nat.micro_batches': 2,
}

# A training whose average fills caches.
_ENAT = {
  'nat.network': 'enat',
  'nat.encoder_depth': 1,
  'nat.decoder_depth': 1,
  'nat.reuse_probability': 0.5,
  'nat.micro_batches': 2,
}


def config_of(**changes: Any) -> Any:
  """The published recipe, small, on the digits."""
  sizes = {
    # One block exchanges what many do.
    'data.image_size': 8,
    'tokenizer.width_multipliers': (1, 1),
    'judges.reward.depth': 1,
    'judges.reward.hooks': (0,),
    'judges.reward.cutout': 2,
    'policy.batch_size': _BATCH_SIZE,
    'policy.discriminator.batch_size': _BATCH_SIZE,
    'policy.discriminator.held_out': _BATCH_SIZE,
    'policy.discriminator.updates': 1,
    'nat.batch_size': _BATCH_SIZE,
  }
  return configs.load('in256.py:tiny', sizes | changes)


def moving(name: str) -> programs.Program:
  """What nobody should do to a batch."""

  def join(x: jax.Array) -> jax.Array:
    return sharding.split_batch(jnp.concatenate([x, -x])).sum(-1)

  def shuffle(x: jax.Array) -> jax.Array:
    order = jax.random.permutation(jax.random.key(0), len(x))
    return sharding.split_batch(x[order]).sum(-1)

  shape = jax.ShapeDtypeStruct((_BATCH_SIZE, 16), jnp.float32)
  function = {'joined': join, 'shuffled': shuffle}[name]
  return programs.Program(function, (shape,), (0,), donated=())


def exchanges(program: programs.Program, fsdp: int = 1) -> list[Any]:
  """On all devices: what, how often, elements of each array it moves."""
  compiled = program.compile(sharding.make_mesh(fsdp=fsdp), _OPTIONS)
  return [
    (x.opcode, x.count, [math.prod(shape) for _, shape in x.shapes])
    for x in hlo.collectives(compiled.as_text())
  ]


def several_devices() -> dict[str, Any]:
  """What is exchanged by each program."""
  published = programs.policy_program(config_of())
  _, state, *_ = published.arguments
  return {
    'state': [math.prod(leaf.shape) for leaf in jax.tree.leaves(state)],
    'published': exchanges(published),
    'cut': exchanges(programs.policy_program(config_of(**_CUT))),
    'nat': exchanges(programs.nat_program(config_of())),
    'nat, cut': exchanges(programs.nat_program(config_of(**_CUT))),
    'enat, split': exchanges(programs.nat_program(config_of(**_ENAT)), fsdp=2),
    'sampling': exchanges(programs.sampling_program(config_of(), _BATCH_SIZE)),
    **{name: exchanges(moving(name)) for name in ('joined', 'shuffled')},
  }


def one_device() -> dict[str, Any]:
  """How many instructions of each kind, without a mesh and with one."""
  config = config_of(**_CUT)
  return {
    name: [
      hlo.opcodes(program.compile(mesh, _OPTIONS).as_text())
      for mesh in (None, sharding.make_mesh())
    ]
    for name, program in {
      'nat': programs.nat_program(config),
      'sampling': programs.sampling_program(config, _BATCH_SIZE),
    }.items()
  }


def child() -> None:
  """Prints what is found on the devices there are."""
  several = len(jax.devices()) > 1
  print(json.dumps(several_devices() if several else one_device()))


def growing(exchanged: list[Any]) -> list[Any]:
  """Those that grow with the batch."""
  return [x for x in exchanged if any(size % 7 == 0 for size in x[2])]


class CollectivesTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.found = children.run(__file__, 8)

  def test_no_parameter_passes_for_a_batch(self):
    sizes = self.found['state']
    self.assertEmpty([size for size in sizes if size % 7 == 0])

  @parameterized.parameters('published', 'cut', 'nat', 'nat, cut')
  def test_only_gradients_and_means_are_exchanged(self, name):
    exchanged = self.found[name]
    self.assertEqual({opcode for opcode, _, _ in exchanged}, {'all-reduce'})
    self.assertEmpty(growing(exchanged))

  def test_split_parameters_are_gathered_once_for_all_parts(self):
    gathers = [x for x in self.found['enat, split'] if x[0] == 'all-gather']
    self.assertNotEmpty(gathers)
    self.assertEqual({count for _, count, _ in gathers}, {1})
    self.assertEmpty(growing(gathers))

  def test_every_gradient_is_exchanged_once(self):
    # The published iteration: five epochs, one update of the discriminator.
    large = [x for x in self.found['published'] if max(x[2]) > 1000]
    self.assertEqual(sum(count for _, count, _ in large), 6)

  def test_sampling_exchanges_nothing(self):
    self.assertEmpty(self.found['sampling'])

  @parameterized.parameters('joined', 'shuffled')
  def test_what_moves_samples_is_seen(self, name):
    self.assertNotEmpty(growing(self.found[name]))


class OneDeviceTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.found = children.run(__file__, 1)

  @parameterized.parameters('nat', 'sampling')
  def test_a_mesh_of_one_costs_nothing(self, name):
    plain, meshed = self.found[name]
    self.assertGreater(plain['fusion'], 10)
    self.assertEqual(plain, meshed)


if __name__ == '__main__':
  if '--child' in sys.argv:
    child()
  else:
    absltest.main()
