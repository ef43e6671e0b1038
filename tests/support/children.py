"""Processes of their own: fresh ones, and ones forked after the imports.

Importing what a stage needs takes seconds. `start` and `call` fork a process
from a server that has only imported the modules and never asked JAX for a
device; so a test starts many. It runs what `python` would run, with the same
command line, directory, environment and exit status. Where a fresh interpreter
is what is tested, `subprocess` starts it in `environment`.
"""

import atexit
from collections.abc import Mapping, Sequence
import json
import multiprocessing
from multiprocessing import forkserver
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import time
from typing import Any
from unittest import mock

# Compiling is most of the tests' time, and what is compiled runs for moments.
XLA_FLAGS = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
  ' --xla_cpu_use_fusion_emitters=false'
  ' --xla_cpu_parallel_codegen_split_count=1'
)
_SECONDS = 900


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


def context() -> multiprocessing.context.ForkServerContext:
  """The context of processes that are forked after the imports."""
  made = multiprocessing.get_context('forkserver')
  made.set_forkserver_preload(['support.imports'])
  # Python 3.11 leaves modules out that are not on the server's own path, and
  # says nothing.
  with mock.patch.dict(os.environ, environment(1)):
    forkserver.ensure_running()
  return made


def start(
  command: Sequence[Any],
  output: pathlib.Path,
  errors: pathlib.Path | None = None,
  *,
  num_devices: int = 1,
  directory: str | os.PathLike[str] = '.',
  variables: Mapping[str, str] | None = None,
) -> multiprocessing.process.BaseProcess:
  """Starts `python *command`, forked after the imports.

  Args:
    command: `-m adanat_jax.main`, `-c` with code, or a file; and arguments.
    output: the file that takes what it prints.
    errors: the file that takes what it says on stderr; `output` by default.
    num_devices: how many CPU devices it has.
    directory: where it runs.
    variables: environment variables that are changed.
  """
  process = context().Process(
    target=_run,
    args=(
      [*map(str, command)],
      (output, errors or output),
      num_devices,
      directory,
      {**os.environ, **(variables or {})},
    ),
    daemon=True,
  )
  process.start()
  return process


def call(
  command: Sequence[Any], **options: Any
) -> subprocess.CompletedProcess[str]:
  """Runs `python *command` to its end, as `start` does.

  Raises:
    TimeoutError: if it has not ended after a quarter of an hour.
  """
  with tempfile.TemporaryDirectory() as directory:
    output, errors = (pathlib.Path(directory, name) for name in 'oe')
    process = start(command, output, errors, **options)
    process.join(_SECONDS)
    status = process.exitcode
    if status is None:
      process.kill()
      raise TimeoutError(errors.read_text()[-3000:])
    return subprocess.CompletedProcess(
      [*command], status, output.read_text(), errors.read_text()
    )


def run_together(commands: Sequence[Any], num_devices: int) -> list[Any]:
  """Runs these at once and returns the JSON of each one's last line.

  Raises:
    AssertionError: with the end of what one said, if it failed or has not ended
      after a quarter of an hour.
  """
  with tempfile.TemporaryDirectory() as directory:
    logs = [
      (pathlib.Path(directory, f'o{i}'), pathlib.Path(directory, f'e{i}'))
      for i in range(len(commands))
    ]
    started = [
      start(command, *log, num_devices=num_devices)
      for command, log in zip(commands, logs, strict=True)
    ]
    deadline = time.monotonic() + _SECONDS
    for process in started:
      process.join(max(0, deadline - time.monotonic()))
    codes = [process.exitcode for process in started]
    for process in started:
      process.kill()
    for code, (_, errors) in zip(codes, logs, strict=True):
      if code != 0:
        raise AssertionError(f'{code}: {errors.read_text()[-3000:]}')
    return [json.loads(log.read_text().splitlines()[-1]) for log, _ in logs]


def run(file: str, num_devices: int, *arguments: Any) -> Any:
  """Runs `file --child arguments` and returns the JSON of its last line.

  Raises:
    AssertionError: with the end of what it said, if it failed.
  """
  (result,) = run_together([[file, '--child', *arguments]], num_devices)
  return result


def _run(
  command: list[str],
  streams: tuple[pathlib.Path, pathlib.Path],
  num_devices: int,
  directory: str,
  variables: Mapping[str, str],
) -> None:
  """Does what `python *command` does, in a process that has been forked."""
  for number, path in enumerate(streams, start=1):
    with path.open('a') as file:
      os.dup2(file.fileno(), number)
  os.environ.update(variables)
  os.environ.update(environment(num_devices))
  import jax  # Not before conftest.py has set what it reads.

  # It has read its variables already.
  jax.config.update('jax_num_cpu_devices', num_devices)
  os.chdir(directory)
  what, *arguments = command
  try:
    if what == '-m':
      name, *arguments = arguments
      module = sys.modules[name]  # Its flags are defined.
      sys.argv = [module.__file__, *arguments]
      module.run()
    elif what == '-c':
      code, *arguments = arguments
      sys.argv = ['-c', *arguments]
      exec(code, {'__name__': '__main__'})
    else:
      sys.argv = [what, *arguments]
      runpy.run_path(what, run_name='__main__')
  finally:
    # multiprocessing leaves these out, and JAX says goodbye in them.
    atexit._run_exitfuncs()
