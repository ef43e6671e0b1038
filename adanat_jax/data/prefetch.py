"""Batches of the next steps, made by threads while the device works.

Reading records and decoding images take time, and a training step should not
wait for them. `Prefetch` wraps the function that makes a step's batch: it
returns the same batches and starts those of the next steps ahead of time.
Results do not depend on it, so it has no state to save.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import threading
from types import TracebackType
from typing import Any, Generic, TypeVar
import weakref

BatchT = TypeVar('BatchT')


class Prefetch(Generic[BatchT]):
  """Calls `batch_at` ahead of time; itself a function of the step.

  Steps are expected one after another. Another step may be asked for, and then
  its batch is waited for. At most `depth` batches are held that nobody has
  asked for yet, plus one in each thread that works on a step which is no longer
  wanted.
  """

  def __init__(
    self,
    batch_at: Callable[[int], BatchT],
    *,
    depth: int = 2,
    num_threads: int | None = None,
    num_steps: int | None = None,
  ):
    """Starts no thread yet.

    Args:
      batch_at: `step -> batch`; called from several threads at once.
      depth: how many steps are begun ahead, at least 1.
      num_threads: how many batches are made at once; None for `depth`.
      num_steps: batches of this step and later ones are not made ahead; None
        if there is no last one.
    """
    if depth < 1 or (num_threads is not None and num_threads < 1):
      raise ValueError(
        f'depth and num_threads are at least 1, got {depth} and {num_threads}'
      )
    self._batch_at = batch_at
    self._depth = depth
    self._num_steps = num_steps
    self._pool = concurrent.futures.ThreadPoolExecutor(
      num_threads or depth, thread_name_prefix='prefetch'
    )
    self._futures: dict[int, concurrent.futures.Future[BatchT]] = {}
    self._lock = threading.Lock()
    # The threads end even if this is dropped without being closed.
    self._shutdown = weakref.finalize(
      self, self._pool.shutdown, wait=False, cancel_futures=True
    )

  def __call__(self, step: int) -> BatchT:
    """Returns `batch_at(step)`, and begins the batches of the next steps.

    Raises:
      Exception: what `batch_at(step)` raised, at this step and not before; a
        step that failed is tried again when it is asked for again.
      RuntimeError: if this was closed.
    """
    step = int(step)
    with self._lock:
      last = step + self._depth
      if self._num_steps is not None:
        last = max(step, min(last, self._num_steps - 1))
      wanted = range(step, last + 1)
      for other in list(self._futures):
        if other not in wanted:
          self._futures.pop(other).cancel()
      for other in wanted:
        if other not in self._futures:
          self._futures[other] = self._pool.submit(_make, self._batch_at, other)
      # Removed, so that only the caller holds the batch.
      future = self._futures.pop(step)
    return future.result()

  def close(self) -> None:
    """Drops prefetched batches and waits for the threads to end."""
    with self._lock:
      self._futures.clear()
    self._shutdown.detach()
    self._pool.shutdown(wait=True, cancel_futures=True)

  def __enter__(self) -> Prefetch[BatchT]:
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.close()


def one_behind(items: Iterable[BatchT]) -> Iterator[BatchT]:
  """Yields each item once the next one was begun: devices work meanwhile."""
  waiting = []
  for item in items:
    waiting.append(item)
    if len(waiting) > 1:
      yield waiting.pop(0)
  yield from waiting


def _make(batch_at: Callable[[int], Any], step: int) -> Any:
  """A step's batch, unless the program is about to end.

  At its end Python waits for the threads of a pool and for all work queued for
  them; work that has not begun by then is cancelled.
  """
  if not threading.main_thread().is_alive():
    raise concurrent.futures.CancelledError
  return batch_at(step)
