"""Prepared records, and batches that are the same read ahead or not."""

import concurrent.futures
import gc
import pathlib
import sys
import threading
import time
import weakref

from absl.testing import absltest
import numpy as np

from adanat_jax.data import prepared, prepared_writer
from adanat_jax.data.order import epoch_batch
from adanat_jax.data.prefetch import Prefetch, one_behind
from adanat_jax.data.prepared import PreparedExamples
from adanat_jax.errors import UserError, WriteError
from adanat_jax.experiment import fit
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import files, timing
from support import configs

# The benchmark is not part of the package.
sys.path.append(str(pathlib.Path(__file__).parents[1] / 'benchmarks'))
import pipelines


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
  def test_one_behind(self):
    begun = []
    items = (begun.append(i) or i for i in range(3))
    seen = [(item, len(begun)) for item in one_behind(items)]
    self.assertEqual(seen, [(0, 2), (1, 3), (2, 3)])

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


LAYOUT = prepared.RecordLayout(num_tokens=4, num_classes=100)


def write_set(directory: pathlib.Path, sizes: tuple[int, ...]) -> None:
  """Writes a split whose tokens say which record and which view they are of."""
  files.make_directory(directory)
  record = 0
  for shard, size in enumerate(sizes):
    name = prepared.file_name('train', shard, len(sizes))
    writer = prepared_writer.ShardWriter(directory / name, LAYOUT)
    for _ in range(size):
      views = [[2 * record + view] * 4 for view in range(2)]
      writer.write(
        {
          'key': f'{record}.jpg',
          'label': record % 100,
          'tokens': np.array(views, np.int16),
        }
      )
      record += 1
    writer.publish()
  files.write_json(
    directory / prepared.MANIFEST_FILE,
    {
      'settings': {},
      'layout': {'num_tokens': 4, 'num_classes': 100},
      'splits': {'train': {'has_images': True, 'shards': list(sizes)}},
    },
  )


class PreparedExamplesTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.directory = pathlib.Path(cls().create_tempdir('set').full_path)
    # A shard whose images were all corrupt holds nothing.
    write_set(cls.directory, (5, 0, 7, 1))
    cls.examples = PreparedExamples(cls.directory, 'train')

  def test_an_epoch_shows_each_view_of_each_record_once(self):
    self.assertLen(self.examples, 26)
    index = epoch_batch(0, 26, 26, seed=3)
    rows = self.examples.take(index)
    self.assertEqual(rows['tokens'].dtype, np.int32)
    self.assertEqual(rows['condition'].dtype, np.int32)
    views = rows['tokens'][:, 0]
    self.assertCountEqual(views, range(26))
    np.testing.assert_array_equal(views // 2, rows['condition'])
    # First all images as they are, then all mirror images.
    np.testing.assert_array_equal(views % 2, index // 13)

  def test_an_index_may_have_any_shape(self):
    flat = self.examples.take(np.arange(24))
    for shape in ((2, 12), (2, 3, 4), (24,)):
      rows = self.examples.take(np.arange(24).reshape(shape))
      for name, value in rows.items():
        np.testing.assert_array_equal(
          value, flat[name].reshape(*shape, *flat[name].shape[1:])
        )
    self.assertEqual(self.examples.take(np.array(3))['condition'], 3)
    self.assertEqual(self.examples.take(np.zeros(0, int))['tokens'].size, 0)

  def test_labels_alone_have_each_record_once(self):
    examples = PreparedExamples(self.directory, 'train', with_tokens=False)
    rows = examples.take(np.arange(len(examples)))
    self.assertCountEqual(rows, ['condition'])
    np.testing.assert_array_equal(rows['condition'], np.arange(13))

  def test_threads_share_a_reader(self):
    rng = np.random.default_rng(0)
    wanted = [rng.integers(0, 26, 50) for _ in range(16)]
    examples = PreparedExamples(self.directory, 'train')
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      for index, rows in zip(
        wanted, pool.map(examples.take, wanted), strict=True
      ):
        np.testing.assert_array_equal(
          rows['tokens'][:, 0], 2 * (index % 13) + index // 13
        )

  def test_mistakes_are_told(self):
    for index in (-1, 26):
      with self.assertRaises(IndexError):
        self.examples.take(np.array([0, index]))
    with self.assertRaisesRegex(UserError, "no split 'test', only train"):
      PreparedExamples(self.directory, 'test')
    directory = self.directory / 'gone'
    write_set(directory, (2, 2))
    (directory / prepared.file_name('train', 1, 2)).unlink()
    examples = PreparedExamples(directory, 'train')
    examples.take(np.array([1]))
    with self.assertRaisesRegex(UserError, '00001-of-00002: cannot be read'):
      examples.take(np.array([2]))

  def test_what_does_not_fit_the_layout_is_not_written(self):
    writer = prepared_writer.ShardWriter(self.directory / 'new', LAYOUT)
    for tokens in (np.zeros((2, 4), np.int32), np.zeros((2, 5), np.int16)):
      with self.assertRaisesRegex(ValueError, 'tokens is int'):
        writer.write({'key': 'a', 'label': 0, 'tokens': tokens})
    writer.discard()
    self.assertEmpty(list(self.directory.glob('*new*')))

  def test_a_disk_that_refuses_is_told_with_the_file(self):
    path = self.directory / 'absent' / 'new'
    writer = prepared_writer.ShardWriter(path, LAYOUT)
    record = {'key': 'a', 'label': 0, 'tokens': np.zeros((2, 4), np.int16)}
    with self.assertRaisesRegex(WriteError, 'absent/new: cannot be written'):
      writer.write(record)
      writer.publish()
    writer.discard()

  def test_a_resumed_run_reads_what_it_would_have_read(self):
    config = configs.load('in256.py:mini')

    def read(steps):
      examples = PreparedExamples(self.directory, 'train')
      batches = fit.Batches(Experiment(config, 'unused'), 'nat', examples, (8,))
      try:
        return [np.asarray(batches(step)['tokens']) for step in steps]
      finally:
        batches.close()

    whole = read(range(7))
    np.testing.assert_array_equal(whole[4:], read(range(4, 7)))
    # Two epochs and a bit: nothing is left out, nothing comes twice.
    shown = np.concatenate(whole)[:52, 0]
    self.assertCountEqual(shown, [*range(26)] * 2)
    self.assertFalse((shown[:26] == shown[26:]).all())


class BenchmarkTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.needs = pipelines.needs()

  def test_needs_follow_from_published_counts(self):
    needs = self.needs
    # NAT-L is told to cost 0.1 TFLOPs a forward, the tower 0.1 TFLOPs a text.
    self.assertAlmostEqual(needs['tokens']['H200'], 989 / 0.312, delta=30)
    slower = needs['tokens and ids']['H200']
    difference = 989e12 / slower - 989e12 / needs['tokens and states']['H200']
    # Two operations for each of the tower's 694 M parameters but the embedding
    # of 49,408 words, and each of 77 positions.
    self.assertAlmostEqual(
      difference / (2 * 77 * (694.7e6 - 49_408 * 1280)), 1.0, delta=0.03
    )

  def test_cases_are_measured_and_shown(self):
    for case in ('tokens', 'tokens and states', 'tokens and ids'):
      found = pipelines.measure(case, 16, 0.02)
      self.assertGreater(found['samples'], 0)
    self.assertGreater(found['processor_seconds'], 0)
    self.assertGreater(found['memory'], 0)
    result = {
      'machine': timing.machine(),
      'needs': self.needs,
      'cases': {'tokens': [{'size': 16, **found}]},
    }
    text = pipelines.render(result)
    self.assertRegex(text, r'\| +tokens \| +16 \|')


if __name__ == '__main__':
  absltest.main()
