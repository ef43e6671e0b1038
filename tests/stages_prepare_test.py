"""Raw images to prepared sets: their contents, kills, corrupt files, memory."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import signal
import socket
import sys
import time
import tracemalloc
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds

from adanat_jax.data import images, prepared
from adanat_jax.data.sources.raw_source import RawExample
from adanat_jax.errors import UserError
from adanat_jax.experiment import datasets, encoder as encoder_lib
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import files, processes
from adanat_jax.stages import prepare, prepare_shards
from support import children, raw_files, raw_pictures
from support.preparing import contents, make_config, write_tokenizer


def keys_of(directory: pathlib.Path, split: str) -> list[str]:
  source = tfds.builder_from_directory(directory).as_data_source(split)
  return [source[i]['key'].decode() for i in range(len(source))]


class ClassesTest(absltest.TestCase):
  """One set of a folder of classes, and what happens to others like it."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = pathlib.Path(cls().create_tempdir('classes').full_path)
    cls.folder = raw_files.image_folder(
      cls.root / 'raw', per_class=6, odd=True, corrupt=True
    )
    cls.config = make_config(cls.root)
    write_tokenizer(cls.root / 'tokenizer', cls.config)
    with cls().assertLogs('absl', 'WARNING') as logs:
      prepare.run(Experiment(cls.config, cls.root / 'whole'))
    cls.log = '\n'.join(logs.output)
    cls.set = cls.root / 'whole' / 'prepare'

  def test_tfds_reads_it_without_tensorflow(self):
    builder = tfds.builder_from_directory(self.set)
    found = {}
    for split in datasets.SPLITS:
      for record in builder.as_data_source(split):
        found[record['key'].decode()] = int(record['label'])
        self.assertEqual(record['tokens'].dtype, np.int16)
        self.assertEqual(record['tokens'].shape, (2, 16))
    self.assertEqual(found, self.folder.labels)
    self.assertEqual(
      builder.info.features['label'].names, ['class_0', 'class_1', 'class_2']
    )
    self.assertNotIn('tensorflow', sys.modules)

  def test_tokens_are_those_of_each_image_and_its_mirror_image(self):
    module, params = Experiment(self.config, self.root).network('tokenizer')
    tokenize = jax.jit(
      lambda params, x: module.apply({'params': params}, x, method='tokenize')
    )
    examples = prepared.PreparedExamples(self.set, 'train')
    keys = keys_of(self.set, 'train')
    self.assertLen(examples, 2 * len(keys))
    for place in (0, 7, len(keys) - 1):
      data = (self.folder.path / keys[place]).read_bytes()
      image = images.to_unit(images.decode(data, self.config.data.image_size))
      pair = tokenize(params, jnp.stack([image, image[:, ::-1]]))
      rows = examples.take(np.array([place, place + len(keys)]))
      np.testing.assert_array_equal(rows['tokens'], pair)
      self.assertFalse((pair[0] == pair[1]).all())
      label = self.folder.labels[keys[place]]
      np.testing.assert_array_equal(rows['condition'], [label, label])

  def test_bytes_become_the_numbers_that_decoding_gives(self):
    # On the device as on the host, where the compiler would rather multiply.
    levels = np.arange(256, dtype=np.uint8)
    on_device = jax.jit(images.to_unit)(levels)
    divided = levels.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(on_device, divided)
    np.testing.assert_array_equal(images.to_unit(levels), divided)

  def test_corrupt_files_are_named_and_counted_and_left_out(self):
    manifest = prepared.read_manifest(self.set)
    splits = manifest['splits'].values()
    skipped = [key for split in splits for key, _ in split['skipped']]
    self.assertCountEqual(skipped, self.folder.corrupt)
    for key in self.folder.corrupt:
      self.assertEqual(self.log.count(f'{key} cannot be read'), 1, key)
    for split in splits:
      total = split['source']['examples']
      self.assertEqual(split['images'] + len(split['skipped']), total)
      self.assertEqual(sum(split['shards']), split['records'])

  def test_the_manifest_holds_what_was_read(self):
    for split in prepared.read_manifest(self.set)['splits'].values():
      ledger = split['ledger']
      self.assertEqual(ledger['read']['images'], 34)
      self.assertEqual(ledger['read']['classes'], 3)
      self.assertEqual(ledger['passed_over'], {'.db': 1, 'hidden': 1})
      self.assertEqual(ledger['faults'], {})

  def test_transparent_pictures_have_a_background_and_mirrors_an_end(self):
    root = self.root / 'transparent'
    for label in range(3):
      path = root / 'raw' / f'class_{label}' / 'a.png'
      path.parent.mkdir(parents=True)
      clear = np.full((32, 32, 4), 0, np.uint8)
      path.write_bytes(raw_pictures.encode(clear, 'PNG'))
      white = np.full((32, 32, 3), 255, np.uint8)
      path.with_name('b.png').write_bytes(raw_pictures.encode(white, 'PNG'))
    fields = {
      'data.path': str(root / 'raw'),
      'data.held_out': 0,
      'data.background': (255, 255, 255),
    }
    for number, white in enumerate(((255, 255, 255), ())):
      fields |= {'data.background': white, 'data.mirror': bool(white)}
      experiment = Experiment(
        make_config(self.root, **fields), root / str(number)
      )
      prepare.run(experiment)
      prepared_tokens = experiment.examples('train')
      num_views = 2 if white else 1
      self.assertLen(prepared_tokens, num_views * 6)
      self.assertLen(
        experiment.examples('train', 'images', mirrored=True), num_views * 6
      )
      self.assertEqual(prepared_tokens.layout.num_views, num_views)
      tokens = prepared_tokens.take(np.arange(2))
      same = bool((tokens['tokens'][0] == tokens['tokens'][1]).all())
      self.assertEqual(same, bool(white))
      images_there = experiment.examples('train', 'images').take(np.arange(2))
      self.assertEqual(images_there['images'][0].min(), 255 if white else 0)

  def test_too_many_corrupt_files_end_the_run_and_can_be_allowed(self):
    config = make_config(self.root, data__max_corrupt_share=0.05)
    workdir = self.root / 'strict'
    with self.assertRaisesRegex(
      UserError, r'2 of the 28 images .* class_2/.*max_corrupt_share=0.05'
    ):
      prepare.run(Experiment(config, workdir))
    self.assertFalse((workdir / 'prepare' / 'manifest.json').exists())
    self.assertEmpty(list((workdir / 'prepare').glob('.*')))
    with self.assertRaisesRegex(UserError, 'no prepared tokens here'):
      Experiment(config, workdir).examples('train')
    # What was made before stays, and counts when the run goes on.
    before = contents(workdir / 'prepare')
    remaining, make = [], prepare_shards.Preparation.make_shards

    def spy(work, shards):
      remaining.extend(shard.file_name for shard in shards)
      make(work, shards)

    with mock.patch.object(prepare_shards.Preparation, 'make_shards', spy):
      prepare.run(Experiment(self.config, workdir))
    self.assertNotEmpty(set(before) - {'settings.json'})
    self.assertEmpty(set(before) & set(remaining))
    self.assertEqual(contents(workdir / 'prepare'), contents(self.set))

  def test_a_killed_pair_is_finished_by_one_with_the_same_bytes(self):
    workdir = self.root / 'killed'
    with socket.socket() as listener:
      listener.bind(('localhost', 0))
      port = listener.getsockname()[1]
    logs = [self.root / f'said-{i}.txt' for i in range(2)]
    pair = [
      children.start([__file__, '--child', self.root, i, port], log)
      for i, log in enumerate(logs)
    ]
    for process in pair:
      process.join(300)
    said = [log.read_text() for log in logs]
    # The first to die may take the other one with it.
    codes = [process.exitcode for process in pair]
    self.assertIn(-signal.SIGKILL, codes, said[0][-2000:] + said[1][-2000:])
    self.assertNotIn(0, codes)
    left = contents(workdir / 'prepare')
    # Each was killed when it had one file whole, and one without its marker.
    markers = [name for name in left if name.startswith('shards/t')]
    records = [name for name in left if name.startswith('tokens-')]
    self.assertLen(markers, 2)
    self.assertLen(records, 4)
    self.assertNotIn('manifest.json', left)
    prepare.run(Experiment(self.config, workdir))
    self.assertEqual(contents(workdir / 'prepare'), contents(self.set))

  def test_a_finished_set_is_left_alone_and_belongs_to_its_networks(self):
    with mock.patch.object(prepare_shards.Preparation, 'make') as make:
      prepare.run(Experiment(self.config, self.root / 'whole'))
    make.assert_not_called()
    other = self.root / 'other_tokenizer'
    if not other.exists():
      write_tokenizer(other, self.config, scale=1.5)
    for field, value, names in (
      ('tokenizer.init_from', str(other), 'tokenizer is'),
      ('data.image_size', 64, 'data.image_size is 32 there and 64 here'),
      ('data.apply_orientation', True, 'data.apply_orientation is False'),
      (
        'data.background',
        (0, 0, 9),
        r'data.background is None there and .0, 0',
      ),
      ('data.mirror', False, 'data.mirror is None there and False here'),
    ):
      config = make_config(self.root, **{field: value})
      for use in (
        lambda config=config: prepare.run(
          Experiment(config, self.root / 'whole')
        ),
        lambda config=config: Experiment(config, self.root / 'whole').examples(
          'train'
        ),
      ):
        with self.assertRaisesRegex(UserError, names):
          use()

  def test_an_unfinished_set_goes_on_with_the_same_images_only(self):
    directory = self.root / 'changed' / 'prepare'
    shutil.copytree(self.set, directory)
    (directory / 'manifest.json').unlink()
    config = make_config(self.root, data__held_out=5)
    with self.assertRaisesRegex(UserError, 'train.examples is 28 there and 29'):
      prepare.run(Experiment(config, self.root / 'changed'))

  def test_a_damaged_file_is_made_anew_as_its_message_says(self):
    directory = self.root / 'damaged' / 'prepare'
    shutil.copytree(self.set, directory)
    path = directory / prepared.file_name('train', 1, 5)
    data = bytearray(path.read_bytes())
    data[400] ^= 255  # Amid the first records.
    path.write_bytes(data)
    examples = prepared.PreparedExamples(directory, 'train')
    examples.take(np.arange(6))
    with self.assertRaisesRegex(UserError, 'delete manifest.json and shards/'):
      examples.take(np.arange(12))
    (directory / 'manifest.json').unlink()
    (directory / prepared.marker_name('train', 1)).unlink()
    prepare.run(Experiment(self.config, self.root / 'damaged'))
    self.assertEqual(contents(directory), contents(self.set))

  def test_mistakes_are_told_before_the_first_stage(self):
    for field, value, message in (
      ('prepare.batch_size', 0, 'prepare.batch_size=0'),
      ('prepare.shard_size', 0, 'prepare.shard_size=0'),
      ('tokenizer.codebook_size', 40_000, '2 to 32768'),
      ('data.max_corrupt_share', 1.5, 'max_corrupt_share=1.5'),
      ('data.source', 'digits', 'need no preparation'),
    ):
      with self.assertRaisesRegex(UserError, message):
        prepare.check_config(
          Experiment(make_config(self.root, **{field: value}), 'unused')
        )

  def test_memory_does_not_grow_with_the_number_of_images(self):
    encoder = encoder_lib.Encoder(Experiment(self.config, self.root), 4)
    self._peak(encoder, _Endless(12))  # Whatever is made once.
    peaks = [self._peak(encoder, _Endless(count)) for count in (60, 240)]
    # Peaks vary with the threads by batches, not with the set: all images
    # would be 180 * 32 * 32 * 3 bytes more, all files' contents 4 MB.
    self.assertLess(abs(peaks[1] - peaks[0]), 180_000)

    # A disk that fails is no corrupt file, and leaves nothing half done.
    for number, expected in ((errno.EIO, OSError), (errno.EACCES, UserError)):
      with self.assertRaisesRegex(expected, 'cannot read'):
        self._make(encoder, _Endless(12, fails=number))
      self.assertEmpty(list(self.directory.glob('*tokens*')))

  def _peak(self, encoder, source) -> int:
    """Peak of traced bytes while a set is made of one shard."""
    tracemalloc.start()
    try:
      self._make(encoder, source)
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  def _make(self, encoder, source) -> None:
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    (self.directory / 'shards').mkdir()
    config = make_config(self.root, prepare__shard_size=len(source))
    prepare_shards.Preparation(
      Experiment(config, 'unused'), self.directory, {'train': source}, encoder
    ).make()


class _Endless:
  """So many images, made when they are asked for."""

  has_images = True

  def __init__(self, count: int, fails: int = 0):
    self._count = count
    self._fails = fails
    self._image = raw_pictures.jpeg(1)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> RawExample:
    if self._fails and index == self._count - 1:
      raise OSError(self._fails, 'cannot read')
    image = self._image + bytes(20_000)
    return RawExample(f'{index:06d}.jpg', image, index % 3)


def _meet(root: pathlib.Path, process: str) -> None:
  """Waits until both processes are about to be killed."""
  (root / f'at_end_{process}').touch()
  deadline = time.monotonic() + 120
  while len(list(root.glob('at_end_*'))) < 2:
    assert time.monotonic() < deadline
    time.sleep(0.01)


def _child(root: str, process: str, port: str) -> None:
  """One of a pair that is killed amid its second file."""
  processes.start(
    'on',
    coordinator_address=f'localhost:{port}',
    num_processes=2,
    process_id=int(process),
  )
  published = 0
  publish = files.publish

  def kill_when_due(temporary, path):
    nonlocal published
    if 'prepare/shards/' in str(path) or 'tokens-' in str(path):
      published += 1
      if published == 4:  # Records, marker, records, and here the marker.
        _meet(pathlib.Path(root), process)
        os.kill(os.getpid(), signal.SIGKILL)
    publish(temporary, path)

  files.publish = kill_when_due
  directory = pathlib.Path(root)
  prepare.run(Experiment(make_config(directory), directory / 'killed'))


if __name__ == '__main__':
  if '--child' in sys.argv:
    _child(*sys.argv[sys.argv.index('--child') + 1 :])
  else:
    absltest.main()
