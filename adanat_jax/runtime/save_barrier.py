"""How processes wait for each other while they save, and that it ends.

Orbax's threads wait for each other in the middle of a save, when all have
written, and at its end. A process that could not write goes straight to the
end and waits there for the others, who wait for it in the middle: until a
time-out of 20 minutes. Here the waits are counted, and everybody tells for
what he waits. Where that is not the same thing, somebody has failed, and all go
on at once, to an error.
"""

from collections.abc import Iterator
import contextlib
import itertools
import logging
import threading

from adanat_jax.runtime import processes

# A save may take so long; that a process failed or died is noticed otherwise.
TIMEOUT_SECONDS = 1200

_instances = itertools.count()


class WithoutTraces(logging.Filter):
  """Keeps Orbax's traces of an error off the terminal, which is raised too."""

  def filter(self, record: logging.LogRecord) -> bool:
    """Returns whether a line is to be shown."""
    return not (record.exc_info and 'orbax' in record.pathname)


class SavedInPartError(OSError):
  """Another process could not write its part of a checkpoint."""


class SaveBarrier:
  """What `orbax.checkpoint.AsyncOptions` wants as `barrier_sync_fn`.

  All processes must make theirs in the same order. Orbax waits for one thing
  after the other, from whatever thread.
  """

  def __init__(self) -> None:
    self._place = f'adanat_jax/save/{next(_instances)}'
    self._lock = threading.Lock()
    self._count = 0
    self._failed = False

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Waits until all have come here.

    Args:
      key: for what.
      timeout_ms: how long.

    Raises:
      SavedInPartError: if another process has come to another key, and ever
        after.
    """
    with self._lock:
      if not self._failed:
        keys = processes.exchange(
          f'{self._place}/{self._count}/', key, timeout_ms
        )
        self._count += 1
        self._failed = len(set(keys)) > 1
      if self._failed:
        raise SavedInPartError(
          'another process could not write its part of a checkpoint'
        )


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
  """Raises what this process has failed with, if it is the one that failed."""
  try:
    yield
  except SavedInPartError as error:
    own: BaseException = error
    while isinstance(own, SavedInPartError) and own.__context__ is not None:
      own = own.__context__
    raise own from None
