"""Stopping a run on SIGTERM or Ctrl-C, after the same step in all processes.

The signal may reach one process only, or several at different moments. If they
stopped after different steps they would wait for each other forever, so
`StopVote` makes them agree.
"""

import functools
import signal
import threading
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from adanat_jax.runtime import processes


class Interrupted(SystemExit):
  """The run was asked to stop, has saved its state, and exits.

  The exit code is 143 after SIGTERM and 130 after Ctrl-C. As a SystemExit it
  passes through `except Exception`, so that no stage continues by mistake.
  """

  def __init__(self, signal_number: int, step: int):
    """Takes the signal's number and the number of finished steps."""
    super().__init__(128 + signal_number)
    self.signal_number = signal_number
    self.step = step


class StopSignals:
  """Turns SIGTERM and Ctrl-C into a flag that a loop reads between steps.

  The first signal, and the end of the context, restore the earlier handlers:
  a second signal ends the process as usual. Outside the main thread Python
  allows no handlers, and this class does nothing.

  Attributes:
    requested: number of the signal that arrived, 0 before.
  """

  def __init__(self) -> None:
    self.requested = 0
    self._earlier: dict[int, Any] = {}

  def __enter__(self) -> 'StopSignals':
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._earlier[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_: object) -> None:
    self._restore_handlers()

  def _handle(self, number: int, frame: FrameType | None) -> None:
    del frame
    self.requested = number
    self._restore_handlers()

  def _restore_handlers(self) -> None:
    while self._earlier:
      number, handler = self._earlier.popitem()
      # None: a handler that was not installed from Python.
      signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopVote:
  """Lets the processes agree, after every step, on whether to stop.

  Each votes with the number of the signal that it received, 0 for none, and
  the largest wins. The result is computed on the devices like any metric and
  read one step later, so nothing waits for it. A single process needs no vote
  and reacts at once.
  """

  def __init__(self) -> None:
    self._cast: jax.Array | None = None

  def after_step(self, requested: int) -> int:
    """Casts a vote, a signal's number or 0; returns the result before it."""
    if not processes.is_shared():
      return requested
    earlier, self._cast = self._cast, _largest(requested)
    return 0 if earlier is None else int(earlier)

  def at_end(self, requested: int) -> int:
    """Returns the result of all votes, including a last one."""
    if not processes.is_shared():
      return requested
    return max(self.after_step(requested), self.after_step(0))


def _largest(number: int) -> jax.Array:
  """Starts computing the largest of all processes' numbers, int32[]."""
  devices = _all_devices()
  with jax.set_mesh(devices):
    return _max_over(devices)(_spread(devices, number))


@functools.cache
def _all_devices() -> Mesh:
  return Mesh(np.array(jax.devices()), ('devices',))


@functools.cache
def _spread(devices: Mesh, number: int) -> jax.Array:
  """A number of this process on each of its devices, int32[devices]."""
  return jax.make_array_from_process_local_data(
    NamedSharding(devices, PartitionSpec('devices')),
    np.full(jax.local_device_count(), number, np.int32),
  )


@functools.cache
def _max_over(devices: Mesh) -> Any:
  return jax.jit(jnp.max, out_shardings=NamedSharding(devices, PartitionSpec()))
