"""A test's own file again, in a process that has so many devices."""

import json
import os
import subprocess
import sys
from typing import Any

# Compiling is most of the tests' time, and what is compiled runs for moments.
XLA_FLAGS = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  ' --xla_cpu_use_fusion_emitters=false'
  ' --xla_cpu_parallel_codegen_split_count=1'
)


def environment(num_devices: int) -> dict[str, str]:
  """The environment of a process with so many CPU devices."""
  return {
    'XLA_FLAGS': XLA_FLAGS,
    **os.environ,
    # Where there is a cache, of all programs.
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': str(num_devices),
    'PYTHONPATH': os.pathsep.join(filter(None, sys.path)),
  }


def run(file: str, num_devices: int, *arguments: Any) -> Any:
  """Runs `file --child arguments` and returns the JSON of its last line.

  Raises:
    AssertionError: with the end of what it said, if it failed.
  """
  process = subprocess.run(
    [sys.executable, file, '--child', *map(str, arguments)],
    env=environment(num_devices),
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  if process.returncode:
    raise AssertionError(process.stderr[-3000:])
  return json.loads(process.stdout.splitlines()[-1])
