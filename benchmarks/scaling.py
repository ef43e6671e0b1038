"""What training at the published sizes costs a device, on 8, 32 and 256.

  python benchmarks/scaling.py --markdown --output=scaling.json

compiles one iteration of policy training, and one step of NAT training, for as
many fake devices as asked for, by shape alone, and compares what the compiled
programs say of themselves with what sizes say by formula. Nothing is run. The
compiler is told to schedule for memory, as those of accelerators do, and to
leave alone a library of the CPU's that would hold copies of every bias.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import gc
import json
import math
import pathlib
import time
from typing import Any

from absl import app, flags
import clock
import hlo
import jax
import ml_collections
import programs

from adanat_jax.experiment import config as config_lib, networks
from adanat_jax.models import operations
from adanat_jax.runtime import sharding

_NUM_DEVICES = flags.DEFINE_multi_integer(
  'devices', [8, 32, 256], 'Numbers of devices to compile for.'
)
_SUBJECTS = flags.DEFINE_multi_enum(
  'programs', ['policy', 'nat'], ['policy', 'nat'], 'What to compile.'
)
_OUTPUT = flags.DEFINE_string('output', '', 'Where to write JSON.')
_MARKDOWN = flags.DEFINE_boolean('markdown', False, 'Print tables for docs/.')

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


def config_of(case: Case) -> ml_collections.ConfigDict:
  """The published config, one update of the discriminator an iteration.

  The five of the published recipe are five times the same program, which would
  have to be compiled five times.
  """
  config = config_lib.load(
    str(_CONFIG), {'policy.discriminator.updates': 1} | case.changes
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


def derived_policy(config: ml_collections.ConfigDict, devices: int) -> Any:
  """What sizes say of one iteration of policy training, a device."""
  training = programs.PolicyTraining(config)
  section, constants = config.policy, training.ppo
  batch, length = section.batch_size, training.num_steps
  tokens, width = networks.grid_size(config) ** 2, config.nat.width
  share = batch // devices
  itemsize = {'float32': 4, 'bfloat16': 2}[section.rollout_dtype]
  kept = share * length * tokens * width * itemsize
  if section.rollout_features == 'recompute':
    kept = share * length * (tokens + 1) * 4
  policy = bytes_of(training.state.params)
  discriminator = bytes_of(training.state.adversary.params)
  updates = section.discriminator.updates
  reductions = constants.num_epochs * constants.num_minibatches
  fakes = section.discriminator.batch_size * updates // devices
  # Trajectories decoded, guided: 2 T forwards of the NAT, T of both networks.
  decoded = share + fakes
  actor, critic = networks.policy_modules(config)
  networks_once = operations.policy_operations(
    actor, width
  ) + operations.policy_operations(critic, width)
  nat = operations.nat_operations(networks.nat_module(config))
  decoder = operations.decoder_operations(
    networks.tokenizer_module(config), tokens
  )
  again = section.rollout_features == 'recompute'
  return {
    'state_bytes': bytes_of(training.state),
    'frozen_bytes': bytes_of(training.frozen),
    'rollout_bytes': kept,
    'image_bytes': share * bytes_of(training.image),
    # Gradients on real and on generated images are reduced apart.
    'reduced_bytes': reductions * constants.micro_batches * policy
    + 2 * updates * discriminator,
    'operations': {
      'NAT, decoding': decoded * 2 * length * nat,
      'NAT, again for PPO': again * reductions * share * length * nat,
      # A gradient costs twice the forward.
      'policy networks': (decoded + 3 * reductions * share)
      * length
      * networks_once,
      'tokenizer': decoded * decoder,
    },
  }


def derived_nat(config: ml_collections.ConfigDict, devices: int) -> Any:
  """What sizes say of one step of NAT training, a device."""
  state, batch, _ = programs.nat_program(config).arguments
  forward = operations.nat_operations(networks.nat_module(config))
  share = config.nat.batch_size // devices
  return {
    'state_bytes': bytes_of(state),
    'batch_bytes': bytes_of(batch) // devices,
    # The gradient of every micro-batch.
    'reduced_bytes': bytes_of(state.params) * config.nat.micro_batches,
    'operations': {'NAT, forward and gradient': 3 * share * forward},
  }


def program_of(
  case: Case, config: ml_collections.ConfigDict
) -> programs.Program:
  """One iteration of policy training, or one step of the NAT's."""
  if case.program == 'policy':
    return programs.PolicyTraining(config).whole()
  return programs.nat_program(config)


def counted(case: Case) -> float:
  """Operations a device in the trace of the published recipe, whole."""
  changes = case.changes | {'policy.discriminator.updates': 5}
  program = program_of(
    case, config_of(dataclasses.replace(case, changes=changes))
  )
  whole = hlo.traced_operations(program.function, program.arguments)
  return whole / case.num_devices


def measured(case: Case, config: ml_collections.ConfigDict) -> dict[str, Any]:
  """What the compiled program says, a device."""
  program = program_of(case, config)
  mesh = sharding.make_mesh(devices=jax.devices()[: case.num_devices])
  compiled = program.compile(mesh, OPTIONS)
  memory = compiled.memory_analysis()
  reduced: dict[str, int] = {}
  for x in hlo.collectives(compiled.as_text()):
    # Two arguments and a result: a collective moves what it returns.
    reduced[x.opcode] = reduced.get(x.opcode, 0) + x.count * x.bytes
  arguments = memory.argument_size_in_bytes
  # What is donated is not there twice.
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {
    'argument_bytes': arguments,
    'temporary_bytes': memory.temp_size_in_bytes,
    'total_bytes': arguments + results + memory.temp_size_in_bytes,
    'collective_bytes': reduced,
  }


def rows(num_devices: Sequence[int], kinds: Sequence[str]) -> list[Any]:
  """All cases, derived and measured.

  Raises:
    RuntimeError: if the two do not agree on what is exchanged.
  """
  result = []
  for count in num_devices:
    for case in cases(count):
      if case.program not in kinds:
        continue
      config, start = config_of(case), time.monotonic()
      derive = {'policy': derived_policy, 'nat': derived_nat}[case.program]
      row = {
        **dataclasses.asdict(case),
        'derived': derive(config, count),
        'measured': measured(case, config),
        'counted_operations': counted(case),
      }
      seconds = time.monotonic() - start
      clock.say(f'{case.label}, {count} devices: {seconds:.0f} s')
      moved = row['measured']['collective_bytes']
      # Besides gradients only means, of a few numbers each.
      extra = moved.get('all-reduce', 0) - row['derived']['reduced_bytes']
      if set(moved) != {'all-reduce'} or not 0 <= extra < 1e5:
        raise RuntimeError(f'{case}: {row}')
      result.append(row)
      gc.collect()
  return result


def render(table: Sequence[Any], markdown: bool) -> str:
  """The figures as a table."""
  head = (
    'training',
    'devices',
    'kept GiB',
    'arguments GiB',
    'at most GiB',
    'reduced MB',
    'operations, 1e12',
  )
  lines = [head]
  for row in table:
    derived, seen = row['derived'], row['measured']
    kept = derived.get('rollout_bytes', derived.get('batch_bytes'))
    lines.append(
      (
        row['label'],
        str(row['num_devices']),
        f'{kept / _GIB:.3f}',
        f'{seen["argument_bytes"] / _GIB:.2f}',
        f'{seen["total_bytes"] / _GIB:.2f}',
        f'{sum(seen["collective_bytes"].values()) / 1e6:.0f}',
        f'{row["counted_operations"] / 1e12:.1f}',
      )
    )
  if not markdown:
    return '\n'.join('\t'.join(line) for line in lines)
  bars = ['|'.join(('', *line, '')) for line in lines]
  return '\n'.join([bars[0], '|---' * len(head) + '|', *bars[1:]])


def main(argv: Sequence[str]) -> None:
  """Compiles, prints, writes."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', max(_NUM_DEVICES.value))
  table = rows(_NUM_DEVICES.value, _SUBJECTS.value)
  print(render(table, _MARKDOWN.value))
  if _OUTPUT.value:
    pathlib.Path(_OUTPUT.value).write_text(json.dumps(table, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
