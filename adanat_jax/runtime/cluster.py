"""Which cluster a process belongs to: what was given, what is found.

JAX recognises Cloud TPU, SLURM and Open MPI, and Kubernetes if it is insisted
on, by the environment; elsewhere the address of process 0 and two numbers have
to be given.
"""

import dataclasses
import os
from typing import Any

from adanat_jax.errors import UserError
from adanat_jax.runtime import handshake


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Where this process belongs.

  Attributes:
    address: HOST:PORT of process 0.
    num_processes: how many there are.
    process: this one's number.
    local_device_ids: which of the machine's devices are its own; None: all.
  """

  address: str
  num_processes: int
  process: int
  local_device_ids: tuple[int, ...] | None = None


def alone() -> Cluster:
  """Returns a cluster of this process alone, at a free port."""
  return Cluster(f'localhost:{handshake.free_port()}', 1, 0)


def find(
  mode: str,
  coordinator_address: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: float,
) -> Cluster | None:
  """Puts together what is given with what the environment says.

  Args:
    mode: 'auto', 'on' or 'off'.
    coordinator_address: HOST:PORT of process 0, if it is given.
    num_processes: how many there are, if it is given.
    process_id: this one's number, if it is given.
    timeout: seconds to wait for the name of process 0's host to be known.

  Returns:
    The cluster, or None where this process is to stay alone.

  Raises:
    UserError: naming what is missing or does not fit.
  """
  address = coordinator_address or os.environ.get('JAX_COORDINATOR_ADDRESS')
  if mode == 'off':
    return None
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
    except Exception as error:  # Of any kind: it asks other machines.
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
        f'--{flag} is missing, and no cluster (Cloud TPU, SLURM, Open MPI) is '
        'found that tells it; --distributed=off runs one process alone'
      )
  assert address is not None and num_processes is not None
  assert process_id is not None
  handshake.split_address(address)
  if num_processes < 1 or not 0 <= process_id < num_processes:
    raise UserError(
      f'--process_id={process_id} of --num_processes={num_processes}: '
      'processes are counted from 0, and there is at least one'
    )
  ids = None if local_device_ids is None else tuple(local_device_ids)
  return Cluster(address, num_processes, process_id, ids)


def _environment(mode: str) -> Any:
  """The cluster that JAX finds itself in (a class of its own), or None.

  A pod of Kubernetes need not belong to a job of several, and the way to tell
  is to ask the cluster, which may not be allowed: that is left to mode 'on'.
  """
  # JAX has no public way to ask before it connects.
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
  """Whether the environment itself lists one worker, and no other slices.

  JAX would go on to ask a metadata server, which hosted notebooks do not have.
  """
  names = ('TPU_PROCESS_ADDRESSES', 'TPU_WORKER_HOSTNAMES')
  workers = next((os.environ[n] for n in names if n in os.environ), ',')
  return ',' not in workers and 'MEGASCALE_NUM_SLICES' not in os.environ
