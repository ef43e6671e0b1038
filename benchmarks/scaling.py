"""What training at the published sizes costs a device, on 8, 32 and 256.

  python benchmarks/scaling.py --output=scaling.json

compiles one iteration of policy training, and one step of NAT training, for as
many fake devices as asked for, by shape alone, and compares what the compiled
programs say of themselves with what sizes say by formula. Nothing is run. The
compiler is told to schedule for memory, as those of accelerators do, and to
leave alone a library of the CPU's that would hold copies of every bias.
"""

from __future__ import annotations

import gc
import math
import pathlib
import time
from typing import Any, NamedTuple

import clock
import hlo
import jax
import jax.numpy as jnp
import ml_collections
import output
import programs

from adanat_jax.experiment import config as config_lib, networks
from adanat_jax.runtime import sharding
from adanat_jax.stages import policy as policy_stage

_CONFIG = pathlib.Path(__file__).parents[1] / 'configs' / 'in256.py'
OPTIONS = {
  'xla_backend_optimization_level': 0,
  'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
  'xla_cpu_experimental_ynn_fusion_type': '',
}
_GIB = 2**30


class Case(NamedTuple):
  """One way to train; `changes` are of the config."""

  label: str
  kind: str  # 'policy' or 'nat'
  num_devices: int
  changes: dict[str, Any]


def cases(num_devices: int) -> list[Case]:
  """What is compiled for this number of devices."""
  # A device decodes 16 trajectories at a time and learns from 32, or fewer.
  cut = {
    'policy.rollout_size': 16 * num_devices,
    'policy.ppo.micro_batches': max(4096 // (32 * num_devices), 1),
  }
  # Statistics are shared by 8 samples of a device.
  least = 8 * num_devices
  if least > 1024:
    cut['policy.discriminator.batch_size'] = least
  kept = {
    'store, float32': {},
    'store, bfloat16': {'policy.rollout_dtype': 'bfloat16'},
    'recompute': {'policy.rollout_features': 'recompute'},
  }
  policy = [
    Case(name, 'policy', num_devices, cut | changes)
    for name, changes in kept.items()
    if num_devices == 8 or name == 'store, bfloat16'
  ]
  # The CPU's compiler computes in float32 what is asked for in bfloat16.
  whole = {'nat.training_dtype': 'float32', 'nat.micro_batches': 1}
  nat = [Case('NAT, batch 2048', 'nat', num_devices, whole)]
  if num_devices == 8:
    parts = whole | {'nat.micro_batches': 8}
    nat.append(Case('NAT, in 8 parts', 'nat', num_devices, parts))
  return policy + nat


def program_of(
  case: Case, updates: int
) -> tuple[ml_collections.ConfigDict, programs.Program]:
  """The published config and one iteration of it, or one step of the NAT's.

  `updates`: of the discriminator in an iteration.
  """
  config = config_lib.load(
    str(_CONFIG), {'policy.discriminator.updates': updates} | case.changes
  )
  with config.unlocked():
    config.policy.discriminator.held_out = 8 * case.num_devices
  make = {'policy': programs.policy_program, 'nat': programs.nat_program}
  return config, make[case.kind](config)


def bytes_of(tree: Any) -> int:
  """Size of arrays, whole."""
  sizes = (math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
  return sum(sizes)


def derived(
  case: Case, config: ml_collections.ConfigDict, program: programs.Program
) -> dict[str, int]:
  """What sizes say of bytes that a device keeps, and that are reduced."""
  frozen, state, batch, _ = program.arguments
  result = {'state': bytes_of(state), 'frozen': bytes_of(frozen)}
  if case.kind == 'nat':
    # The gradient of every micro-batch.
    reduced = bytes_of(state.params) * config.nat.micro_batches
    kept = bytes_of(batch) // case.num_devices
    return result | {'kept': kept, 'reduced': reduced}
  section, ppo = config.policy, policy_stage.ppo_config(config)
  # A rollout is features or canvases, with what they are conditioned on.
  tokens = math.prod(networks.grid(config))
  a_step = tokens * config.nat.width * jnp.dtype(section.rollout_dtype).itemsize
  if section.rollout_features == 'recompute':
    a_step = 4 * (tokens + 1)
  steps = section.batch_size // case.num_devices * section.num_steps[0]
  reductions = ppo.num_epochs * ppo.num_minibatches * ppo.micro_batches
  # Gradients on real and on generated images are reduced apart.
  pushes = 2 * section.discriminator.updates
  return result | {
    'kept': steps * a_step,
    'reduced': reductions * bytes_of(state.params)
    + pushes * bytes_of(state.adversary.params),
  }


def row_of(case: Case) -> dict[str, Any]:
  """What sizes and the compiled program say, a device: bytes, operations.

  One update of the discriminator is compiled: the five of the published recipe
  are five times the same program. Operations are of the published recipe.

  Raises:
    RuntimeError: if the two do not agree on what is exchanged.
  """
  start = time.monotonic()
  config, program = program_of(case, updates=1)
  mesh = sharding.make_mesh(devices=jax.devices()[: case.num_devices])
  compiled = program.compile(mesh, OPTIONS)
  memory = compiled.memory_analysis()
  arguments = memory.argument_size_in_bytes
  # What is donated is not there twice.
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  exchanged: dict[str, int] = {}
  for x in hlo.collectives(compiled.as_text()):
    # Two arguments and a result: a collective moves what it returns.
    exchanged[x.opcode] = exchanged.get(x.opcode, 0) + x.count * x.bytes
  _, published = program_of(case, updates=5)
  count = hlo.traced_operations(published.function, published.arguments)
  row = {
    **case._asdict(),
    'derived': derived(case, config, program),
    'arguments': arguments,
    'total': arguments + results + memory.temp_size_in_bytes,
    'exchanged': exchanged,
    'operations': count / case.num_devices,
  }
  seconds = time.monotonic() - start
  clock.say(f'{case.label}, {case.num_devices} devices: {seconds:.0f} s')
  # Besides gradients only means, of a few numbers each.
  extra = exchanged.get('all-reduce', 0) - row['derived']['reduced']
  if set(exchanged) != {'all-reduce'} or not 0 <= extra < 1e5:
    raise RuntimeError(str(row))
  gc.collect()
  return row


def main() -> None:
  """Compiles, prints, writes."""
  parser = output.parser(__doc__)
  add = parser.add_argument
  add('--devices', type=int, nargs='+', default=[8, 32, 256])
  kinds = ['policy', 'nat']
  add('--programs', nargs='+', choices=kinds, default=kinds)
  given = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', max(given.devices))
  found = [
    row_of(case)
    for count in given.devices
    for case in cases(count)
    if case.kind in given.programs
  ]
  head = (
    'training,devices,kept GiB,arguments GiB,at most GiB,reduced MB,'
    'operations (1e12)'
  )
  rows = [
    (
      row['label'],
      row['num_devices'],
      f'{row["derived"]["kept"] / _GIB:.3f}',
      f'{row["arguments"] / _GIB:.2f}',
      f'{row["total"] / _GIB:.2f}',
      f'{row["exchanged"]["all-reduce"] / 1e6:.0f}',
      f'{row["operations"] / 1e12:.1f}',
    )
    for row in found
  ]
  output.finish(found, output.table(head.split(','), rows), given.output)


if __name__ == '__main__':
  main()
