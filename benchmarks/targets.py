"""What the compilers of TPUs and GPUs make of the published programs.

  pip install -e '.[targets]'
  python benchmarks/targets.py --output=targets.jsonl --targets v5e-16 h100

compiles the programs of the published configs by shape alone, with the very
compilers that a TPU slice or a GPU would use, on a machine that has neither;
nothing is run. Every program adds a line of JSON to the file; those that are
there are not compiled again, so a long list can be cut and continued. What this
cannot tell is time: the last column of the table is a roofline, the larger of
operations over the device's peak and of bytes over its memory's bandwidth.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import gc
import gzip
import json
import math
import os
import pathlib
import time
from typing import Any

import clock
import hlo
import jax
import ml_collections
import output
import programs

from adanat_jax.experiment import (
  config as config_lib,
  experiment,
  networks,
  policies,
)
from adanat_jax.runtime import sharding

_CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'
_GIB = 2**30
_LARGE = 1e8  # Bytes of an array that is listed.
ENVIRONMENT = {
  # Nothing is asked of a machine's metadata: there is no TPU.
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  # Without a device nothing can be tuned, and Triton's products then fail.
  'XLA_FLAGS': (
    '--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0'
  ),
}
# A Hopper GPU as XLA describes it (xla/backends/gpu/target_config/specs).
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 l2_cache_size: 52428800
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024
  thread_dim_limit_z: 64 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 device_address_bits: 64
  memory_bandwidth: {bandwidth:.0f} device_memory_size: {memory:.0f}
  cuda_compute_capability {{
    major: 9 feature_extension: ACCELERATED_FEATURES
  }}
  device_vendor: "NVIDIA Corporation" name: "{name}"
  driver_version: "13.0.0" runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to compile for; of a device, from its maker's data sheet."""

  topology: str
  memory: float  # bytes
  peak: float  # operations a second, bfloat16
  bandwidth: float  # bytes a second
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def platform(self) -> str:
    """What JAX calls its compiler."""
    return 'cuda' if 'NVIDIA' in self.topology else 'tpu'

  def devices(self) -> list[Any]:
    """The devices, which can be compiled for and not run on."""
    from jax.experimental import topologies

    options = dict(self.options)
    if self.platform == 'cuda':
      options['target_config'] = _HOPPER.format(
        name=self.topology, memory=self.memory, bandwidth=self.bandwidth
      )
    found = topologies.get_topology_desc(
      platform=self.platform, topology_name=self.topology, **options
    )
    return list(found.devices)


def _tpu(
  topology: str, gib: float, peak: float, bandwidth: float, **options: str
) -> Target:
  return Target(topology, gib * _GIB, peak * 1e12, bandwidth * 1e9, options)


def _gpu(name: str, memory: float, bandwidth: float, count: int) -> Target:
  return Target(name, memory, 989e12, bandwidth, {'topology': f'1x1x{count}'})


_V4 = 32, 275, 1228
_V5E = 16, 197, 819
_V5P = 95, 459, 2765
_V6E = 32, 918, 1640
_H100 = 'NVIDIA H100 80GB HBM3', 84942979072, 3.35232e12
_H200 = 'NVIDIA H200 141GB HBM3e', 151397597184, 4.8e12
TARGETS = {
  # Both cores of a v4 chip are one device to JAX.
  'v4-8': _tpu('v4:2x2x1', *_V4, chip_config_name='megacore'),
  'v4-32': _tpu('v4:2x2x4', *_V4, chip_config_name='megacore'),
  'v4-128': _tpu('v4:4x4x4', *_V4, chip_config_name='megacore'),
  'v5e-8': _tpu('v5e:2x4', *_V5E),
  'v5e-16': _tpu('v5e:4x4', *_V5E),
  'v5e-256': _tpu('v5e:16x16', *_V5E),
  'v5p-32': _tpu('v5p:2x2x4', *_V5P),
  'v6e-8': _tpu('v6e:2x4', *_V6E),
  'v6e-16': _tpu('v6e:4x4', *_V6E),
  'v6e-256': _tpu('v6e:16x16', *_V6E),
  # A chip is two devices.
  'tpu7x-16': _tpu('tpu7x:2x2x2', 96, 1153, 3690),
  'h100': _gpu(*_H100, 1),
  'h100-8': _gpu(*_H100, 8),
  'h200': _gpu(*_H200, 1),
  'h200-8': _gpu(*_H200, 8),
}

Config = ml_collections.ConfigDict
Make = Callable[[Config, Target, int], programs.Program]


def _batch(config: Config, target: Target, count: int) -> int:
  """Images that evaluation decodes at a time."""
  num_tokens = math.prod(networks.grid(config))
  return count * experiment.images_of_device(target.memory, num_tokens)


def _sampling(policy: str) -> Make:
  return lambda config, target, count: programs.sampling_program(
    config,
    _batch(config, target, count),
    # The config's own schedule.
    policy or config.sample.policy,
  )


def _with_memory(config: Config, memory: float, count: int) -> Config:
  """The config with what `auto` means on devices of such a memory."""
  config = config.copy_and_resolve_references()
  config.policy.rollout_features = policies.rollout_features(
    experiment.Experiment(config, 'unused'), memory, count
  )
  return config


# How each program is made of a config, for a target of so many devices.
KINDS: dict[str, Make] = {
  'sample': _sampling('learned'),
  'sample, schedule': _sampling(''),
  'sample, buckets': _sampling('buckets'),
  'nat': lambda config, *_: programs.nat_program(config),
  'policy': lambda config, target, count: programs.policy_program(
    _with_memory(config, target.memory, count)
  ),
  'tokenizer': lambda config, *_: programs.tokenizer_program(config),
  # Each image with its mirror image.
  'prepare': lambda config, _, count: programs.encoding_program(
    config, 2 * config.prepare.batch_size * count
  ),
  'captions': lambda config, _, count: programs.captions_program(
    config, config.prepare.batch_size * count
  ),
  'features': lambda config, target, count: programs.features_program(
    config, _batch(config, target, count)
  ),
}
_NAT = 'sample', 'nat', 'policy'
_OTHERS = 'tokenizer', 'prepare', 'features'
_ENAT = 'sample, schedule', 'sample, buckets', 'nat', 'policy'
_WITH_NAT = {*_NAT, *_ENAT}
PROGRAMS = [
  f'{name}/{kind}'
  for name, kinds in {
    'in256': _NAT + _OTHERS,
    'in256_s': _NAT,
    'in512': _NAT + _OTHERS,
    'cc3m256': (*_NAT, 'captions'),
    'coco256': (*_NAT, 'captions'),
    'in256_enat': _ENAT,
    'in512_enat': _ENAT,
    # Networks of published weights alone.
    'in256_maskgit': ('sample, schedule',),
    'in512_maskgit': ('sample, schedule',),
    'in384_halton': ('sample, schedule',),
  }.items()
  for kind in kinds
]


# How often a training runs its program.
_STEPS: Mapping[str, Callable[[Config], int]] = {
  'nat': lambda config: config.nat.num_steps,
  'policy': lambda config: config.policy.iterations,
  'tokenizer': lambda config: config.tokenizer.num_steps,
}


def config_of(program: str, changes: Mapping[str, Any]) -> Config:
  """The config of a program, as it is where there is an accelerator."""
  config = config_lib.load(str(_CONFIGS / f'{program.split("/")[0]}.py'))
  sections = ['nat', 'tokenizer', 'judges.reward']
  sections += ['text'] * ('text' in config)
  types = {f'{section}.dtype': 'bfloat16' for section in sections}
  config.update_from_flattened_dict({**types, **changes})
  return config


def row_of(
  name: str,
  program: str,
  changes: Mapping[str, Any],
  texts: pathlib.Path | None = None,
  blocks: Sequence[int] = (),
) -> dict[str, Any]:
  """A program of a target, or what it is expected to be from two smaller ones.

  Of a network of like blocks, memory, operations and traffic are linear in
  their number. Two networks of a few blocks compile in a fraction of the time.

  Args:
    name: of the target.
    program: `CONFIG/KIND`.
    changes: fields of the config that differ.
    texts: see `compiled_row`.
    blocks: two numbers of blocks to go by; none to compile all blocks.
  """
  nat = config_of(program, changes).nat
  field = 'encoder_depth' if nat.network == 'enat' else 'depth'
  if not blocks or program.split('/')[1] not in _WITH_NAT:
    return compiled_row(name, program, changes, texts)
  few, more = (
    compiled_row(name, program, {**changes, f'nat.{field}': count}, texts)
    for count in blocks
  )
  found = few if 'error' in few else more
  if 'error' not in found:
    weight = (nat[field] - blocks[0]) / (blocks[1] - blocks[0])
    found = extended(few, more, weight)
    found['compile_seconds'] = few['compile_seconds'] + more['compile_seconds']
    target = TARGETS[name]
    found['roofline_seconds'] = max(
      found['operations'] / target.peak, found['moved'] / target.bandwidth
    )
  return found | {'changes': dict(changes), 'blocks': list(blocks)}


def extended(few: Any, more: Any, weight: float) -> Any:
  """The line through numbers at 0 and 1; what is no number is that at 1."""
  if isinstance(more, Mapping):
    return {k: extended(few.get(k, 0), x, weight) for k, x in more.items()}
  if isinstance(more, int | float) and not isinstance(more, bool):
    return few + weight * (more - few)
  return more


def compiled_row(
  name: str,
  program: str,
  changes: Mapping[str, Any],
  texts: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Compiles a program for a target, and reads what came out.

  Args:
    name: of the target.
    program: `CONFIG/KIND`.
    changes: fields of the config that differ.
    texts: folder in which the compiled program is kept, packed.
  """
  target, config = TARGETS[name], config_of(program, changes)
  devices = target.devices()
  share = sharding.devices_of_a_copy(target.memory, len(devices))
  mesh = sharding.make_mesh(fsdp=config.mesh.fsdp or share, devices=devices)
  row: dict[str, Any] = {
    'target': name,
    'program': program,
    'changes': dict(changes),
    'devices': mesh.size,
  }
  kind = program.split('/')[1]
  make = KINDS[kind]
  steps = _STEPS[kind](config) if kind in _STEPS else 0
  start = time.monotonic()
  try:
    made = make(config, target, mesh.size)
    compiled = made.compile(mesh)
  except Exception as error:  # What a compiler says is a result.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return row | {'error': lines[0][:500]}
  seconds = time.monotonic() - start
  memory = compiled.memory_analysis()
  operations = hlo.traced_operations(made.function, made.arguments)
  operations /= mesh.size
  text = compiled.as_text()
  if texts:
    texts.mkdir(parents=True, exist_ok=True)
    words = [name, program, *(f'{k}={v}' for k, v in changes.items())]
    path = texts / ('-'.join(words).replace('/', '-') + '.txt.gz')
    path.write_bytes(gzip.compress(text.encode(), 3))
  return row | {
    'compile_seconds': round(seconds, 1),
    'arguments': memory.argument_size_in_bytes,
    # What is donated is not there twice.
    'results': memory.output_size_in_bytes - memory.alias_size_in_bytes,
    'temporaries': memory.temp_size_in_bytes,
    'memory': target.memory,
    'operations': operations,
    'steps': steps,
    **read(text, target, operations),
  }


def read(text: str, target: Target, operations: float) -> dict[str, Any]:
  """What a compiled program says, for one device."""
  exchanged: collections.Counter[str] = collections.Counter()
  large: collections.Counter[str] = collections.Counter()
  copied: collections.Counter[str] = collections.Counter()
  calls: collections.Counter[str] = collections.Counter()
  moved = 0
  for x in hlo.instructions(text):
    opcode = x.opcode.removesuffix('-start')
    moved += x.moved * x.count
    calls[x.target] += bool(x.target)
    if opcode in ('copy', 'transpose'):
      copied[opcode] += x.moved * x.count
    for kind, shape in x.shapes if x.moved else ():
      if kind == 'f32' and hlo.size_of(kind, shape) > _LARGE:
        large[f'{opcode} {list(shape)}'] += 1
  for x in hlo.collectives(text):
    exchanged[x.opcode.removesuffix('-start')] += x.count * x.bytes
  return {
    'exchanged': exchanged,
    'large_float32': dict(large.most_common(30)),
    'copied': copied,
    'custom_calls': +calls,
    'moved': moved,
    'roofline_seconds': max(operations / target.peak, moved / target.bandwidth),
  }


def hours_of(row: dict[str, Any]) -> float:
  """Hours of a whole training if every step took its roofline; else 0."""
  return row['steps'] * row['roofline_seconds'] / 3600


def table(rows: list[dict[str, Any]]) -> str:
  """The rows in Markdown."""
  head = (
    'program,target,compiled in s,arguments GiB,temporaries GiB,of GiB,'
    'exchanged MB,large float32,GB copied,10^12 operations,GB moved,'
    'roofline s,hours'
  )
  lines = []
  for row in sorted(rows, key=lambda row: (row['program'], row['target'])):
    changes = ', '.join(f'{k}={v}' for k, v in row['changes'].items())
    name = row['program'] + (f' ({changes})' if changes else '')
    if 'error' in row:
      lines.append((name, row['target'], row['error'][:60], *[''] * 10))
      continue
    exchanged = '; '.join(
      f'{opcode} {size / 1e6:.1f}' for opcode, size in row['exchanged'].items()
    )
    beside = row['temporaries'] + max(0, row['results'])
    lines.append(
      (
        name,
        row['target'],
        round(row['compile_seconds']),
        f'{row["arguments"] / _GIB:.2f}',
        f'{beside / _GIB:.2f}',
        f'{row["memory"] / _GIB:.0f}',
        exchanged or '0',
        round(sum(row['large_float32'].values())),
        f'{sum(row["copied"].values()) / 1e9:.3g}',
        f'{row["operations"] / 1e12:.3g}',
        f'{row["moved"] / 1e9:.3g}',
        f'{row["roofline_seconds"]:.3g}',
        f'{hours:.3g}' if (hours := hours_of(row)) else '',
      )
    )
  return output.table(head.split(','), lines)


def _change(text: str) -> tuple[str, Any]:
  name, _, value = text.partition('=')
  return name, int(value) if value.isdigit() else value


def main() -> None:
  """Compiles what is not in the file yet, and prints the table."""
  parser = output.parser(__doc__)
  add = parser.add_argument
  add('--targets', nargs='*', choices=TARGETS, default=['v5e-16', 'h100'])
  add('--programs', nargs='*', choices=PROGRAMS, default=PROGRAMS)
  add(
    '--change',
    type=_change,
    action='append',
    default=[],
    help='A field of the config that differs, such as nat.dtype=float32.',
  )
  add(
    '--blocks',
    type=int,
    nargs=2,
    default=(),
    help='Two numbers of blocks that are compiled instead of all of them.',
  )
  add(
    '--texts',
    type=pathlib.Path,
    help='Folder for the compiled programs, each as XLA prints it, packed.',
  )
  given = parser.parse_args()
  jax.config.update('jax_platforms', 'cpu')
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  path, changes, rows = given.output, dict(given.change), []
  if path and path.exists():
    rows = [json.loads(line) for line in path.read_text().splitlines()]
  done = [(row['target'], row['program'], row['changes']) for row in rows]
  for name in given.targets:
    for program in given.programs:
      if (name, program, changes) in done:
        continue
      row = row_of(name, program, changes, given.texts, given.blocks)
      rows.append(row)
      clock.say(f'{name} {program} {row.get("error", "compiled")}')
      if path:
        with path.open('a') as file:
          file.write(json.dumps(row) + '\n')
      gc.collect()
  print(table(rows))


if __name__ == '__main__':
  main()
