"""Runs several processes as one program: connect, communicate, exit.

`start` connects the processes by `jax.distributed` before JAX is used. From
then on every process must call the same functions of this module, and the same
jitted functions, in the same order. With one process this module does nothing.

Rules for files, everywhere in this package:

* Only process 0 writes. `files.write_*`, `metric_writer` and `journal` ensure
  this, so stages need not. (Only Orbax and stage `prepare` write from all
  processes, each its own files.)
* A decision that depends on files is made by process 0, which sends it to the
  others (`from_first`): each might see another state at its own moment.
* After writing a marker that others act on later (`complete.json`,
  `config.json`), all wait until every process sees it.

If a process dies, the others notice: at once if a collective fails (CPU, GPU),
at the latest after a third of the time-out, when JAX ends them.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import socket
import sys
import time
from typing import Any, NoReturn, TypeVar

import jax

from adanat_jax.errors import UserError, WriteError, printable

MODES = ('auto', 'on', 'off', 'local')
DEFAULT_TIMEOUT = 300
_MAX_TIMEOUT = 7 * 24 * 3600

# Other processes may be busy for hours. Dead ones are noticed by other means.
_WHILE_THEY_LIVE_MS = 7 * 24 * 3600 * 1000
# How long a failing process waits for others that fail at the same time.
_LEAVE_TOGETHER_MS = 3000
# No shared file system hides a new file for longer.
MAX_LAG_SECONDS = 60.0
# JAX's coordination service accepts messages of up to 4 MiB.
_PIECE = 1 << 20

T = TypeVar('T')
_exchanges = itertools.count()
_timeout: float = DEFAULT_TIMEOUT


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The cluster that this process belongs to."""

  address: str  # HOST:PORT of process 0.
  num_processes: int
  process: int  # This one's number.
  # The devices of the machine that it uses; None for all.
  local_device_ids: tuple[int, ...] | None = None


def start(
  mode: str = 'auto',
  *,
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: float = DEFAULT_TIMEOUT,
  facts: Mapping[str, Any] | None = None,
) -> None:
  """Connects the processes; call it before anything that uses a device.

  Args:
    mode: 'auto' connects if an address is given or a cluster of several
      processes is found (Cloud TPU, SLURM, Open MPI); 'on' requires it; 'off'
      runs one process alone; 'local' runs one process with its own coordinator,
      so that the same code runs as on a pod.
    coordinator_address: HOST:PORT of process 0.
    num_processes: number of processes.
    process_id: this one's number, from 0.
    timeout: seconds to wait for the others.
    facts: what must be the same in all processes, by name; the versions of the
      libraries and of our own code are added.

  Raises:
    UserError: if processes are missing, differ, or cannot be reached.
  """
  global _timeout
  if not 1 <= timeout <= _MAX_TIMEOUT:
    raise UserError(
      f'--distributed_timeout={timeout}: from 1 s to {_MAX_TIMEOUT} s are '
      'allowed'
    )
  found = find_cluster(
    mode, coordinator_address, num_processes, process_id, timeout
  )
  if found is None:
    return
  # One process alone meets nobody.
  from adanat_jax.runtime import handshake

  place = handshake.meet(
    found.address,
    found.num_processes,
    found.process,
    {
      '--num_processes': str(found.num_processes),
      **versions(),
      **{name: repr(value) for name, value in (facts or {}).items()},
    },
    timeout,
  )
  _timeout = timeout
  # JAX would handle SIGTERM itself, and lose it outside the training loops;
  # `stopping` makes the processes agree on a step instead.
  jax.config.update('jax_enable_preemption_service', False)
  if found.num_processes > 1:
    # Other devices run programs in the order of dispatch. A CPU may run two at
    # once; then two processes could wait for each other in different ones.
    jax.config.update('jax_cpu_enable_async_dispatch', False)
  jax.distributed.initialize(
    found.address,
    found.num_processes,
    found.process,
    local_device_ids=found.local_device_ids,
    cluster_detection_method='deactivate',
    # By default it would be all addresses of the machine.
    coordinator_bind_address=place,
    initialization_timeout=int(timeout),
    heartbeat_timeout_seconds=max(10, int(timeout / 3)),
    shutdown_timeout_seconds=int(timeout),
  )
  say(process_table())


def find_cluster(
  mode: str,
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: float,
) -> Cluster | None:
  """Combines the given values, as for `start`, with the environment's.

  JAX recognises Cloud TPU, SLURM, Open MPI and, in mode 'on', Kubernetes by the
  environment; elsewhere all three values must be given. The name of process 0's
  host may take until the time-out to resolve.

  Returns:
    The cluster, or None if this process runs alone.

  Raises:
    UserError: names what is missing or wrong.
  """
  from adanat_jax.runtime import addresses

  if mode == 'off':
    return None
  if mode == 'local':
    for flag, value in (
      ('coordinator_address', coordinator_address),
      ('num_processes', num_processes),
      ('process_id', process_id),
    ):
      if value is not None:
        raise UserError(
          f'--{flag}={value}: --distributed=local is one process that needs no '
          'other; give one of these flags'
        )
    return Cluster(f'localhost:{addresses.free_port()}', 1, 0)
  address = coordinator_address or os.environ.get('JAX_COORDINATOR_ADDRESS')
  local_device_ids = None
  if None in (address, num_processes, process_id):
    try:
      environment = _environment(mode)
      if environment is not None:
        alone = environment.get_process_count() == 1
        if alone and mode == 'auto' and address is None:
          return None
        address, num_processes, process_id, local_device_ids = (
          environment.auto_detect_unset_distributed_params(
            address, num_processes, process_id, None, None, int(timeout)
          )
        )
    except Exception as error:  # Of any type: it asks other machines.
      raise UserError(
        f'looking for a cluster failed ({type(error).__name__}: {error}); '
        '--distributed=off runs one process alone'
      ) from error
  if address is None and num_processes is None and mode == 'auto':
    return None
  for flag, value in (
    ('coordinator_address=HOST:PORT', address),
    ('num_processes=N', num_processes),
    ('process_id=I', process_id),
  ):
    if value is None:
      raise UserError(
        f'--{flag} is missing, and no cluster (Cloud TPU, SLURM, Open MPI) was '
        'found that provides it; --distributed=off runs one process alone'
      )
  assert address is not None and num_processes is not None
  assert process_id is not None
  addresses.split_address(address)
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise UserError(
      f'--process_id={process_id} of --num_processes={num_processes}: '
      'processes are counted from 0, and there is at least one'
    )
  ids = None if local_device_ids is None else tuple(local_device_ids)
  return Cluster(address, num_processes, process_id, ids)


def process_index() -> int:
  """Returns this process's number; starts no device if it runs alone."""
  return jax.process_index() if jax.distributed.is_initialized() else 0


def process_count() -> int:
  """Returns the number of processes; starts no device if this is the only."""
  return jax.process_count() if jax.distributed.is_initialized() else 1


def is_shared() -> bool:
  """Returns whether other processes run the same program."""
  return process_count() > 1


def barrier() -> None:
  """Waits until every process has called this."""
  if is_shared():
    _leave_off(_begin('barrier'))


def all_values(value: Any) -> list[Any]:
  """Gathers a JSON value of some hundred bytes from all, in their order."""
  if not is_shared():
    return [value]
  return exchange(_begin('all_values'), value)


def exchange(
  place: str, value: Any, timeout_ms: int = _WHILE_THEY_LIVE_MS
) -> list[Any]:
  """Gathers a JSON value of every process, in their order, from any thread.

  `place` is the prefix of the keys, ending in a slash: the same in all
  processes, and used only once.
  """
  client = _client()
  client.key_value_set(f'{place}{process_index()}', json.dumps(value))
  client.wait_at_barrier(place, timeout_ms)
  values = dict(client.key_value_dir_get(place))
  _leave_off(place)
  return [
    json.loads(values[f'{place}{index}']) for index in range(process_count())
  ]


def from_first(make: Callable[[], T]) -> T:
  """Calls a function in process 0 only and returns its JSON value in all.

  For decisions that depend on files. The processes wait for each other; tuples
  arrive as lists.

  Raises:
    UserError: in every process, if `make` raised it.
  """
  if not is_shared():
    return make()
  place = _begin(getattr(make, '__qualname__', 'from_first'))
  client = _client()
  if process_index() == 0:
    try:
      answer: dict[str, Any] = {'value': make()}
    except UserError as error:
      answer = {
        'mistake': str(error),
        'in writing': isinstance(error, WriteError),
      }
    text = json.dumps(answer)
    count = len(range(0, len(text), _PIECE))
    for index in range(count):
      piece = text[index * _PIECE : (index + 1) * _PIECE]
      client.key_value_set(f'{place}{index}', piece)
    client.key_value_set(f'{place}count', str(count))
  else:
    count = int(_wait_for(f'{place}count'))
    text = ''.join(_wait_for(f'{place}{index}') for index in range(count))
    answer = json.loads(text)
  _leave_off(place)
  if 'mistake' in answer:
    kind = WriteError if answer['in writing'] else UserError
    raise kind(answer['mistake'])
  return answer['value']


def wait_until_seen(path: pathlib.Path) -> None:
  """Waits until all processes see a file that process 0 has written.

  A network file system may show a new file seconds later on other hosts.

  Raises:
    UserError: in every process, if one does not see it in time.
  """
  if not is_shared():
    return
  timeout = min(_timeout, MAX_LAG_SECONDS)
  deadline = time.monotonic() + timeout
  while not (seen := path.exists()) and time.monotonic() < deadline:
    time.sleep(0.05)
  blind = [
    f'process {index} ({host})'
    for index, (host, sees) in enumerate(
      all_values([socket.gethostname(), seen])
    )
    if not sees
  ]
  if blind:
    raise UserError(
      f'{path.parent} is not the same directory in all processes: '
      f'{", ".join(blind[:4])} does not see what process 0 wrote there within '
      f'{timeout:g} s; --workdir must be on a disk that all hosts share'
    )


def say(line: str) -> None:
  """Prints a line in process 0 only."""
  if process_index() == 0:
    print(line, flush=True)


def leave(status: int) -> NoReturn:
  """Exits after an error, without waiting for processes that work.

  Exiting also ends processes that are blocked in a collective. Processes that
  found the same error exit with the same status.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if not is_shared():
    sys.exit(status)
  try:
    _client().wait_at_barrier('adanat_jax/leave', _LEAVE_TOGETHER_MS)
    jax.distributed.shutdown()
  finally:
    # A normal exit would wait for threads that wait for other processes.
    os._exit(status)


def process_table() -> str:
  """Returns a table of all processes: host, devices, kind."""
  devices = jax.local_devices()
  kinds = sorted({device.device_kind for device in devices})
  rows = all_values([socket.gethostname(), len(devices), ', '.join(kinds)])
  cells = [('process', 'host', 'devices', 'kind')] + [
    (str(index), *(printable(str(cell), 60) for cell in row))
    for index, row in enumerate(rows)
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in cells
  )


@functools.cache
def versions() -> dict[str, str]:
  """Returns versions that must agree in all processes, by name.

  A hash of our own source files reveals a host that was not updated.
  """
  digest = hashlib.sha256()
  root = pathlib.Path(__file__).parents[1]
  for path in sorted(root.rglob('*.py')):
    digest.update(path.relative_to(root).as_posix().encode())
    digest.update(path.read_bytes())
  found = {
    'python': platform.python_version(),
    'adanat_jax': f'source {digest.hexdigest()[:12]}',
  }
  for name in ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint'):
    # A library that is not installed under this name is not compared.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def _client() -> Any:
  """JAX's connection to the coordinator, which has no public name."""
  from jax._src import distributed  # pylint: disable=import-outside-toplevel

  return distributed.global_state.client


def _wait_for(key: str) -> str:
  return _client().blocking_key_value_get(key, _WHILE_THEY_LIVE_MS)


def _begin(what: str) -> str:
  """Begins the next exchange and returns the prefix of its keys.

  Exchanges are told apart by their number only. If processes called functions
  in different orders, one would take the answer to another question; so each
  checks that process 0 asks the same, by `what` the exchange is about.
  """
  number = next(_exchanges)
  place = f'adanat_jax/{number}/'
  if process_index() == 0:
    _client().key_value_set(f'{place}what', what)
  elif (theirs := _wait_for(f'{place}what')) != what:
    raise RuntimeError(
      f'the processes are out of step: exchange {number} is {theirs} in '
      f'process 0 and {what} in process {process_index()}'
    )
  return place


def _leave_off(place: str) -> None:
  """Deletes the exchanged values once all have read them."""
  _client().wait_at_barrier(f'{place}read', _WHILE_THEY_LIVE_MS)
  if process_index() == 0:
    _client().key_value_delete(place)


def _environment(mode: str) -> Any:
  """Returns JAX's class for the cluster of this environment, or None.

  Whether a Kubernetes pod belongs to a job of several can only be asked of the
  cluster, which may not be permitted: only mode 'on' does so.
  """
  # JAX has no public function for this before it connects.
  from jax._src import clusters  # pylint: disable=import-outside-toplevel

  for environment in clusters.ClusterEnv._cluster_types:
    if environment.opt_in_only_method:
      continue
    if mode == 'auto' and (
      environment.__name__ == 'K8sCluster'
      or (environment.__name__ == 'GkeTpuCluster' and _has_one_tpu_worker())
    ):
      continue
    if environment.is_env_present():
      return environment
  return None


def _has_one_tpu_worker() -> bool:
  """Whether the environment lists a single worker and no other slices.

  JAX would then ask a metadata server, which hosted notebooks lack.
  """
  names = ('TPU_PROCESS_ADDRESSES', 'TPU_WORKER_HOSTNAMES')
  workers = next((os.environ[n] for n in names if n in os.environ), ',')
  return ',' not in workers and 'MEGASCALE_NUM_SLICES' not in os.environ
