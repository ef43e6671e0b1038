"""Batches made ahead of time are those that would be made without it."""

import gc
import threading
import time
import weakref

from absl.testing import absltest
import numpy as np

from adanat_jax.data.prefetch import Prefetch


class _Source:
  """Makes `{'step': [step]}` and keeps count, also of who is at work."""

  def __init__(self, fails: int | None = None):
    self.made: list[int] = []
    self.fails = fails
    self.gate = threading.Event()
    self.gate.set()
    self._lock = threading.Lock()

  def __call__(self, step: int) -> dict[str, np.ndarray]:
    self.gate.wait(timeout=30)
    with self._lock:
      self.made.append(step)
    if step == self.fails:
      raise ValueError(f'step {step} cannot be made')
    return {'step': np.array([step])}


def _wait_for(condition) -> bool:
  deadline = time.monotonic() + 20
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.005)
  return condition()


def _threads() -> int:
  return sum(t.name.startswith('prefetch') for t in threading.enumerate())


class PrefetchTest(absltest.TestCase):
  def test_steps_in_order_are_each_made_once(self):
    source = _Source()
    with Prefetch(source, depth=3, num_steps=10) as batch_at:
      steps = [int(batch_at(step)['step'][0]) for step in range(10)]
    self.assertEqual(steps, list(range(10)))
    # None twice, and none past the last one.
    self.assertCountEqual(source.made, range(10))

  def test_it_works_ahead_but_not_further_than_its_depth(self):
    source = _Source()
    with Prefetch(source, depth=2) as batch_at:
      batch_at(0)
      self.assertTrue(_wait_for(lambda: len(source.made) == 3))
      time.sleep(0.05)
      self.assertCountEqual(source.made, [0, 1, 2])

  def test_any_step_may_be_asked_for_at_any_time(self):
    rng = np.random.default_rng(0)
    with Prefetch(_Source(), depth=2, num_threads=3) as batch_at:
      for step in rng.integers(0, 20, 60):
        self.assertEqual(batch_at(step)['step'][0], step)

  def test_an_error_comes_out_at_its_step_each_time(self):
    source = _Source(fails=2)
    with Prefetch(source, depth=3) as batch_at:
      batch_at(0)
      self.assertTrue(_wait_for(lambda: 2 in source.made))
      batch_at(1)
      for _ in range(2):
        with self.assertRaisesRegex(ValueError, 'step 2 cannot'):
          batch_at(2)
      source.fails = None
      self.assertEqual(batch_at(2)['step'][0], 2)

  def test_batches_are_made_at_the_same_time(self):
    meeting = threading.Barrier(2, timeout=20)

    def batch_at(step: int) -> int:
      if step < 2:
        meeting.wait()  # Breaks unless two steps are at work together.
      return step

    with Prefetch(batch_at, depth=2) as ahead:
      self.assertEqual([ahead(0), ahead(1)], [0, 1])

  def test_closing_ends_the_threads_and_drops_what_waits(self):
    source = _Source()
    batch_at = Prefetch(source, depth=4, num_threads=1)
    batch_at(0)
    source.gate.clear()
    self.assertTrue(_wait_for(lambda: len(source.made) >= 1))
    closing = threading.Thread(target=batch_at.close)
    closing.start()
    source.gate.set()
    closing.join(timeout=20)
    self.assertFalse(closing.is_alive())
    self.assertEqual(_threads(), 0)
    with self.assertRaises(RuntimeError):
      batch_at(1)

  def test_what_is_dropped_leaves_no_threads_behind(self):
    batch_at = Prefetch(_Source())
    batch_at(0)
    del batch_at
    gc.collect()
    self.assertTrue(_wait_for(lambda: _threads() == 0))

  def test_what_was_handed_out_is_held_no_longer(self):
    class Batch:
      pass

    with Prefetch(lambda step: Batch(), depth=1) as batch_at:
      first = weakref.ref(batch_at(0))
      gc.collect()
      self.assertIsNone(first())


if __name__ == '__main__':
  absltest.main()
