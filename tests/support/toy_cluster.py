"""The command line with a toy training as its stages, in several processes.

`run_together` starts processes forked from a server that has only imported the
modules; each runs `adanat_jax.main` with its own command line, and they find
each other as on a cluster. What they print goes to files.
"""

import atexit
from collections.abc import Sequence
import multiprocessing
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from adanat_jax import main
from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import (
  addresses,
  checkpoint,
  checkpoint_format,
  journal,
  leaves,
  loop,
  processes,
  sharding,
)
from support import children, toy_training

CONFIG = """
import ml_collections

def get_config():
  return ml_collections.ConfigDict({
    'mode': 'nat',
    'data': {'source': 'digits'},
    'evaluate': {'protocol': 'study'},
    'seed': 0,
    'width': 8,
    'num_steps': 23,
    'pause': 0.0,
  })
"""
# The parameters are split, over the processes too.
RULES = (('kernel$', PartitionSpec(None, 'fsdp')),)
_death = ''


def check_config(experiment: Experiment) -> None:
  """Finds nothing wrong."""


def run(experiment: Experiment) -> None:
  """The toy stage: `toy_training` on a mesh over all processes.

  With seed 1, process 1 alone finds a mistake.
  """
  config, workdir = experiment.config, experiment.workdir
  if config.seed == 1 and jax.process_index() == 1:
    raise UserError('only process 1 sees this')
  mesh = sharding.make_mesh(fsdp=min(4, jax.device_count()))
  who, _, what = _death.partition(':')
  name, _, step_of_death = what.partition(':')
  if name in ('BLIND', 'ODD'):
    if who == str(jax.process_index()):
      {'BLIND': make_blind, 'ODD': make_odd}[name]()
    who = ''

  def batch_at(step: int) -> Any:
    if who == str(jax.process_index()) and step == int(step_of_death):
      toy_training.die(signal.Signals[name])
    time.sleep(config.pause)
    rows = np.split(np.arange(toy_training.BATCH), jax.process_count())
    part = rows[jax.process_index()]
    batch = jax.tree.map(lambda x: x[part], toy_training.batch_at(step))
    return sharding.put_batch(batch, mesh)

  traces = []

  def train_step(state: Any, batch: Any, step: jax.Array) -> Any:
    traces.append(step)
    return toy_training.plain_step(state, batch, step)

  with jax.set_mesh(mesh):
    state = sharding.shard_state(toy_training.initial_state(), mesh, RULES)
    places = sharding.state_shardings(state, mesh, RULES)
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = loop.run_loop(
      state,
      jax.jit(train_step, donate_argnums=0, out_shardings=(places, everywhere)),
      batch_at,
      num_steps=config.num_steps,
      directory=workdir / 'toy',
      name='toy',
      log_every=3,
      save_every=5,
      # Each would say something else; what process 0 says counts for all.
      evaluate=lambda state, step: {'index': jax.process_index() + step},
      evaluate_every=9,
      best_of=('eval/index', 'min'),
      final_figures=lambda state: {'bias': state.params['bias']},
      tensorboard=False,
    )
  assert len(traces) <= 1, 'the step was compiled again'
  kernel = state.params['kernel']
  pieces = toy_training.OUTPUTS // kernel.sharding.shard_shape(kernel.shape)[1]
  print(
    f'done on {kernel.sharding.num_devices} devices in '
    f'{processes.process_count()} processes, in {pieces} pieces'
  )
  with jax.set_mesh(mesh):
    check_loaded(workdir / 'toy', state, mesh)
  # Each would say something else; what process 0 has written counts for all.
  kept = journal.Ledger(workdir / 'toy/ledger.jsonl')
  print(f'process {kept.get("who", jax.process_index)} keeps the ledger')


def make_blind() -> None:
  """Makes the first checkpoint that is looked at unreadable to this process."""
  read = checkpoint_format.read
  first = []

  def fail(path: pathlib.Path) -> Any:
    first.append(path)
    if path == first[0]:
      raise OSError('stale file handle')
    return read(path)

  checkpoint_format.read = fail


def make_odd() -> None:
  """Has this process read another number in the first checkpoint."""
  check = leaves.check_bits

  def fail(tree: Any, saved: dict[str, int]) -> None:
    leaves.check_bits = check
    check(tree, saved | {'params/bias': saved['params/bias'] ^ 1})

  leaves.check_bits = fail


def check_loaded(
  directory: pathlib.Path,
  state: toy_training.ToyState,
  mesh: jax.sharding.Mesh,
) -> None:
  """Loads the parameters again, one of them cut into a piece a device."""
  rows = sharding.batch_sharding(mesh)
  shape = (toy_training.WIDTH, toy_training.OUTPUTS)
  loaded = checkpoint.load_params(
    directory,
    'params',
    {
      'kernel': jax.ShapeDtypeStruct(shape, np.float32, sharding=rows),
      'bias': jax.ShapeDtypeStruct(shape[1:], np.float32),
    },
  )
  assert loaded['kernel'].sharding == rows, loaded['kernel'].sharding
  assert loaded['bias'].is_fully_replicated
  assert loaded['bias'].sharding.num_devices == mesh.size
  jax.tree.map(
    np.testing.assert_array_equal,
    sharding.gather(loaded),
    sharding.gather(state.params),
  )


def _child(
  arguments: Sequence[str],
  death: str,
  num_devices: int,
  file_limit: int,
  output: pathlib.Path,
) -> None:
  """Runs the command line as a process of its own would."""
  global _death
  with output.open('w') as file:
    # What is printed is not meant by a limit of files.
    pipe = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=file)
  with pipe.stdin as stdin:
    os.dup2(stdin.fileno(), 1)
    os.dup2(stdin.fileno(), 2)
  sys.stdout.reconfigure(line_buffering=True)
  sys.argv = ['adanat_jax', *arguments]
  _death = death
  jax.config.update('jax_num_cpu_devices', num_devices)
  if file_limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
  main.STAGES = dict.fromkeys(main.STAGES, 'support.toy_cluster')
  try:
    main.run()
  finally:
    # multiprocessing leaves these out, and JAX says goodbye in them.
    atexit._run_exitfuncs()


def start(
  arguments: Sequence[str],
  output: pathlib.Path,
  *,
  death: str = '',
  num_devices: int = 1,
  file_limit: int = 0,
) -> multiprocessing.process.BaseProcess:
  """Starts one process.

  Args:
    arguments: its command line.
    output: the file that takes what it prints.
    death: `PROCESS:SIGNAL:STEP`: which process sends itself what, and when;
      `PROCESS:BLIND`: which process cannot read the newest checkpoint;
      `PROCESS:ODD`: which process reads something else in it.
    num_devices: how many fake devices it has.
    file_limit: no file may grow over so many bytes; 0 for no limit.
  """
  process = children.context().Process(
    target=_child,
    args=(arguments, death, num_devices, file_limit, output),
    daemon=True,
  )
  process.start()
  return process


def arguments(
  directory: pathlib.Path, count: int, timeout: float = 30
) -> list[list[str]]:
  """Returns the arguments by which `count` processes find each other.

  Args:
    directory: holds `config.py`.
    count: how many there are.
    timeout: `--distributed_timeout`.
  """
  port = addresses.free_port()
  return [
    [
      f'--coordinator_address=localhost:{port}',
      f'--num_processes={count}',
      f'--process_id={index}',
      f'--distributed_timeout={timeout}',
      f'--config={directory / "config.py"}',
      '--jax_cache=off',
    ]
    for index in range(count)
  ]


def run_together(
  directory: pathlib.Path,
  *each: Sequence[str],
  common: Sequence[str] = (),
  timeout: float = 30,
  **options: Any,
) -> list[tuple[int | None, str]]:
  """Runs one process for each list of arguments, as one program.

  Args:
    directory: holds `config.py` and gets what the processes print.
    *each: the arguments of each process.
    common: arguments of all of them.
    timeout: `--distributed_timeout`.
    **options: of `start`.

  Returns:
    (exit status, what was printed) of each.
  """
  started = []
  for index, own in enumerate(arguments(directory, len(each), timeout)):
    output = directory / f'output-{index}.txt'
    started.append(
      (start([*own, *common, *each[index]], output, **options), output)
    )
  deadline = time.monotonic() + 90
  for process, _ in started:
    process.join(timeout=max(deadline - time.monotonic(), 0))
  results = [(p.exitcode, output.read_text()) for p, output in started]
  for process, _ in started:
    process.kill()
  return results
