"""What training at the published sizes costs a device, on 8, 32 and 256.

  python benchmarks/scaling.py --output=scaling.json

compiles one iteration of policy training, and one step of NAT training, for as
many fake devices as asked for, by shape alone, and compares what the compiled
programs say of themselves with what sizes say by formula. Nothing is run. The
compiler is told to schedule for memory, as those of accelerators do, and to
leave alone a library of the CPU's that would hold copies of every bias.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import pathlib
import time
from typing import Any

import clock
import hlo
import jax
import jax.numpy as jnp
import ml_collections
import output
import programs

from adanat_jax.experiment import config as config_lib, networks
from adanat_jax.runtime import sharding
from adanat_jax.stages import policy_rules

_CONFIG = pathlib.Path(__file__).parents[1] / 'configs' / 'in256.py'
OPTIONS = {
  'xla_backend_optimization_level': 0,
  'xla_cpu_scheduler_type': 'CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED',
  'xla_cpu_experimental_ynn_fusion_type': '',
}
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Case:
  """One way to train.

  Attributes:
    label: for tables.
    program: 'policy' or 'nat'.
    num_devices: as many.
    changes: of the config.
  """

  label: str
  program: str
  num_devices: int
  changes: dict[str, Any]


def cases(num_devices: int) -> list[Case]:
  """What is compiled for so many devices."""
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


def config_of(
  case: Case, changes: dict[str, Any] | None = None
) -> ml_collections.ConfigDict:
  """The published config, one update of the discriminator an iteration.

  The five of the published recipe are five times the same program, which would
  have to be compiled five times.
  """
  config = config_lib.load(
    str(_CONFIG),
    {'policy.discriminator.updates': 1} | (changes or case.changes),
  )
  with config.unlocked():
    config.policy.discriminator.held_out = 8 * case.num_devices
  return config


def bytes_of(tree: Any) -> int:
  """Size of arrays, whole."""
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def program_of(
  case: Case, config: ml_collections.ConfigDict
) -> programs.Program:
  """One iteration of policy training, or one step of the NAT's."""
  if case.program == 'policy':
    return programs.policy_program(config)
  return programs.nat_program(config)


def derived(
  case: Case, config: ml_collections.ConfigDict, program: programs.Program
) -> dict[str, int]:
  """What sizes say, a device: bytes that are kept and that are reduced."""
  state = program.arguments[program.donated]
  if case.program == 'nat':
    return {
      'state': bytes_of(state),
      'kept': bytes_of(program.arguments[2]) // case.num_devices,
      # The gradient of every micro-batch.
      'reduced': bytes_of(state.params) * config.nat.micro_batches,
    }
  section, ppo = config.policy, policy_rules.ppo_config(config)
  # A rollout is features or canvases, with what they are conditioned on.
  tokens = networks.grid_size(config) ** 2
  a_step = tokens * config.nat.width * jnp.dtype(section.rollout_dtype).itemsize
  if section.rollout_features == 'recompute':
    a_step = 4 * (tokens + 1)
  reductions = ppo.num_epochs * ppo.num_minibatches * ppo.micro_batches
  return {
    'state': bytes_of(state),
    'frozen': bytes_of(program.arguments[0]),
    'kept': section.batch_size
    * section.num_steps[0]
    * a_step
    // case.num_devices,
    # Gradients on real and on generated images are reduced apart.
    'reduced': reductions * bytes_of(state.params)
    + 2 * section.discriminator.updates * bytes_of(state.adversary.params),
  }


def measured(case: Case, program: programs.Program) -> dict[str, Any]:
  """What the compiled program says, a device: bytes."""
  mesh = sharding.make_mesh(devices=jax.devices()[: case.num_devices])
  compiled = program.compile(mesh, OPTIONS)
  memory = compiled.memory_analysis()
  exchanged: dict[str, int] = {}
  for x in hlo.collectives(compiled.as_text()):
    # Two arguments and a result: a collective moves what it returns.
    exchanged[x.opcode] = exchanged.get(x.opcode, 0) + x.count * x.bytes
  arguments = memory.argument_size_in_bytes
  # What is donated is not there twice.
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {
    'arguments': arguments,
    'total': arguments + results + memory.temp_size_in_bytes,
    'exchanged': exchanged,
  }


def row_of(case: Case) -> dict[str, Any]:
  """A case, derived and measured.

  Raises:
    RuntimeError: if the two do not agree on what is exchanged.
  """
  config, start = config_of(case), time.monotonic()
  program = program_of(case, config)
  # Operations are those of the published recipe.
  whole = case.changes | {'policy.discriminator.updates': 5}
  published = program_of(case, config_of(case, whole))
  row = {
    **dataclasses.asdict(case),
    'derived': derived(case, config, program),
    'measured': measured(case, program),
    'operations': hlo.traced_operations(published.function, published.arguments)
    / case.num_devices,
  }
  seconds = time.monotonic() - start
  clock.say(f'{case.label}, {case.num_devices} devices: {seconds:.0f} s')
  moved = row['measured']['exchanged']
  # Besides gradients only means, of a few numbers each.
  extra = moved.get('all-reduce', 0) - row['derived']['reduced']
  if set(moved) != {'all-reduce'} or not 0 <= extra < 1e5:
    raise RuntimeError(f'{case}: {row}')
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
    if case.program in given.programs
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
      f'{row["measured"]["arguments"] / _GIB:.2f}',
      f'{row["measured"]["total"] / _GIB:.2f}',
      f'{row["measured"]["exchanged"]["all-reduce"] / 1e6:.0f}',
      f'{row["operations"] / 1e12:.1f}',
    )
    for row in found
  ]
  output.finish(found, output.table(head.split(','), rows), given.output)


if __name__ == '__main__':
  main()
