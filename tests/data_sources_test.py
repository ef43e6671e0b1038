"""Raw images: what is read from every source, by threads, in which splits."""

import concurrent.futures
import os
import pathlib
import shutil
import sys
import tarfile

from absl.testing import absltest, parameterized
import numpy as np

from adanat_jax.data import images
from adanat_jax.data.sources import registry, tar_index
from adanat_jax.errors import UserError, WriteError
from support import raw_files, raw_pictures
from support.raw_files import make_settings, read_all


def setUpModule():
  global _folder, _imagenet, _coco, _tsv, _prompts, _web, _tfds, _root, _pairs
  _root = pathlib.Path(absltest.get_default_test_tmpdir()) / 'sources'
  shutil.rmtree(_root, ignore_errors=True)
  _folder = raw_files.image_folder(_root / 'folder', odd=True, corrupt=True)
  _imagenet = raw_files.imagenet_tars(_root / 'imagenet')
  _coco = {
    split: raw_files.coco(_root / 'coco', split) for split in ('train', 'val')
  }
  _tsv = raw_files.cc3m_tsv(_root / 'cc3m')
  _prompts = raw_files.cc3m_prompts(_root / 'cc3m')
  _web = raw_files.webdataset(_root / 'web')
  _tfds = raw_files.tfds_images(_root / 'tfds')
  _pairs = raw_files.pairs(_root / 'pairs')


def _imagenet_settings(**changes):
  paths = {'path': _imagenet.train, 'validation_path': _imagenet.validation}
  return make_settings('imagenet_tar', **{**paths, **changes})


def _coco_settings():
  return raw_files.make_coco_settings(_coco['train'], _coco['val'])


def _all_settings():
  return {
    'image_folder': make_settings('image_folder', _folder.path, held_out=5),
    'imagenet_tar': _imagenet_settings(),
    'coco': _coco_settings(),
    'cc3m_tsv': make_settings(
      'cc3m_tsv', _tsv.path, validation_path=_prompts.path
    ),
    'webdataset': make_settings('webdataset', _web.path, held_out=2),
    'tfds': make_settings('tfds', _tfds.path, tfds_name='imagenet2012'),
    'pairs': make_settings('pairs', _pairs.path, held_out=5),
  }


def _labels(settings, split='train'):
  return {example.key: example.label for example in read_all(settings, split)}


class EverySourceTest(parameterized.TestCase):
  @parameterized.parameters(*registry.SOURCES)
  def test_is_what_a_source_is(self, name):
    settings = _all_settings()[name]
    train, test = (registry.open_source(settings, s) for s in registry.SPLITS)
    examples = [train[index] for index in range(len(train))]
    keys = [example.key for example in examples]
    self.assertLen(set(keys), len(train))
    self.assertTrue(
      set(keys).isdisjoint(e.key for e in read_all(settings, 'test'))
    )
    for example in examples:
      self.assertEqual(bool(example.captions), train.has_captions)
      if train.class_names is None:
        self.assertIsNone(example.label)
      else:
        self.assertBetween(example.label, 0, len(train.class_names) - 1)
    hashes = train.key_hashes()
    self.assertEqual(hashes.dtype, np.uint64)
    self.assertLen(np.unique(hashes), len(train))
    self.assertEqual(train.description['examples'], len(train))
    self.assertEqual(train.class_names, test.class_names)
    self.assertNotEqual(train.description['keys'], test.description['keys'])
    with self.assertRaises(IndexError):
      train[len(train)]

  @parameterized.parameters(*registry.SOURCES)
  def test_threads_read_alike(self, name):
    source = registry.open_source(_all_settings()[name], 'train')
    expected = [source[index] for index in range(len(source))]
    order = np.random.default_rng(0).integers(0, len(source), 200).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      for index, found in zip(order, pool.map(source.__getitem__, order)):  # noqa: B905
        self.assertEqual(found, expected[index])

  @parameterized.parameters(*registry.SOURCES)
  def test_opened_again_it_is_the_same(self, name):
    settings = _all_settings()[name]
    self.assertEqual(read_all(settings), read_all(settings))

  def test_tensorflow_is_not_needed(self):
    for settings in _all_settings().values():
      registry.open_source(settings, 'train')
    self.assertNotIn('tensorflow', sys.modules)


class ImageFolderTest(absltest.TestCase):
  def test_files_classes_and_bytes(self):
    settings = make_settings('image_folder', _folder.path)
    corrupt = dict.fromkeys(_folder.corrupt, 2)
    self.assertEqual(_labels(settings), {**_folder.labels, **corrupt})
    for example in read_all(settings):
      stored = (_folder.path / example.key).read_bytes()
      self.assertEqual(example.image, stored)

  def test_folders_in_class_folders_belong_to_the_class(self):
    root = _root / 'deep'
    for name in ('b/x/y/2.jpg', 'b/1.JPG', 'a/z/3.png', '.cache/thumb.jpg'):
      (root / name).parent.mkdir(parents=True, exist_ok=True)
      (root / name).write_bytes(raw_pictures.jpeg(1))
    labels = _labels(make_settings('image_folder', root))
    self.assertEqual(labels, {'a/z/3.png': 0, 'b/1.JPG': 1, 'b/x/y/2.jpg': 1})

  def test_without_class_folders_there_is_one_class(self):
    folder = raw_files.image_folder(_root / 'flat', num_classes=0)
    source = registry.open_source(
      make_settings('image_folder', folder.path), 'train'
    )
    self.assertLen(source, 4)
    self.assertEqual(source[3].label, 0)
    self.assertLen(source.class_names, 1)

  def test_validation_images_have_the_classes_of_the_training_images(self):
    root = _root / 'fewer'
    shutil.copytree(_folder.path / 'class_2', root / 'class_2')
    settings = make_settings('image_folder', _folder.path, validation_path=root)
    self.assertEqual(set(_labels(settings, 'test').values()), {2})

  def test_a_file_that_went_away_is_found_when_it_is_decoded(self):
    root = _root / 'going'
    shutil.copytree(_folder.path / 'class_1', root)
    source = registry.open_source(make_settings('image_folder', root), 'train')
    (root / source[0].key).unlink()
    with self.assertRaises(images.CorruptImageError):
      images.decode(source[0].image, 16)

  def test_names_that_are_no_utf8(self):
    root = _root / 'names'
    root.mkdir()
    (root / os.fsdecode(b'caf\xe9.jpg')).write_bytes(raw_pictures.jpeg(1))
    (example,) = read_all(make_settings('image_folder', root))
    self.assertEqual(example.image, raw_pictures.jpeg(1))
    example.key.encode()


class ImageNetTarTest(absltest.TestCase):
  def test_classes_and_bytes_of_a_tar_in_a_tar(self):
    self.assertEqual(_labels(_imagenet_settings()), _imagenet.train_labels)
    with tarfile.open(_imagenet.train) as outer:
      for example in read_all(_imagenet_settings()):
        folder, name = example.key.split('/')
        with tarfile.open(fileobj=outer.extractfile(f'{folder}.tar')) as inner:
          self.assertEqual(example.image, inner.extractfile(name).read())

  def test_the_devkit_gives_the_classes_of_validation_images(self):
    labels = _labels(_imagenet_settings(), 'test')
    self.assertEqual(labels, _imagenet.validation_labels)

  def test_an_unpacked_devkit_in_another_place(self):
    root = _root / 'elsewhere'
    root.mkdir()
    shutil.copy(_imagenet.validation, root / 'val.tar')
    with tarfile.open(_imagenet.devkit) as tar:
      tar.extractall(root / 'kit', filter='data')
    settings = _imagenet_settings(
      validation_path=root / 'val.tar', validation_annotations=root / 'kit'
    )
    labels = _labels(settings, 'test')
    self.assertEqual(labels, _imagenet.validation_labels)

  def test_class_tars_in_a_folder_are_the_same_images(self):
    root = _root / 'class_tars'
    root.mkdir()
    with tarfile.open(_imagenet.train) as tar:
      tar.extractall(root, filter='data')
    settings = _imagenet_settings(path=root)
    self.assertEqual(read_all(settings), read_all(_imagenet_settings()))

  def test_the_folder_that_holds_the_official_files(self):
    root = _imagenet.train.parent
    settings = _imagenet_settings(path=root, validation_path=root)
    for split in registry.SPLITS:
      self.assertEqual(
        read_all(settings, split),
        read_all(_imagenet_settings(), split),
      )

  def test_validation_images_in_folders_of_synsets(self):
    path = _root / 'val_folders.tar'
    contents = {
      f'./val/{raw_files.SYNSETS[label]}/{name}': raw_pictures.jpeg(label)
      for name, label in _imagenet.validation_labels.items()
    }
    path.write_bytes(raw_files.tar_of(contents))
    labels = _labels(_imagenet_settings(validation_path=path), 'test')
    self.assertLen(labels, 6)
    for name, label in labels.items():
      self.assertEqual(raw_files.SYNSETS[label], name.split('/')[1])


class IndexTest(absltest.TestCase):
  """The index beside a file, by the example of a tar."""

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'train.tar'
    shutil.copy(_imagenet.train, self.path)
    self.settings = _imagenet_settings(path=self.path)
    self.index = self.path.with_name('train.tar.index.npz')
    self.scans = self.enterContext(
      absltest.mock.patch.object(tar_index, 'scan', wraps=tar_index.scan)
    )

  def test_is_made_once(self):
    first = read_all(self.settings)
    self.assertEqual(self.scans.call_count, 1)
    self.assertTrue(self.index.exists())
    self.assertEqual(read_all(self.settings), first)
    self.assertEqual(self.scans.call_count, 1)

  def test_is_made_anew_for_another_file(self):
    self.assertLen(read_all(self.settings), 12)
    other = raw_files.imagenet_tars(self.path.parent / 'other', per_class=2)
    shutil.copy(other.train, self.path)
    self.assertLen(read_all(self.settings), 6)

  def test_is_made_anew_if_it_is_damaged(self):
    first = read_all(self.settings)
    content = self.index.read_bytes()
    for damaged in (b'', content[:50], content[: len(content) // 2]):
      self.index.write_bytes(damaged)
      self.assertEqual(read_all(self.settings), first)
    self.assertEqual(self.scans.call_count, 4)
    self.assertEqual(self.index.read_bytes(), content)

  def test_can_be_done_without(self):
    with absltest.mock.patch(
      'adanat_jax.runtime.files.write_bytes',
      side_effect=WriteError('no space left'),
    ):
      self.assertLen(read_all(self.settings), 12)
    self.assertFalse(self.index.exists())


class HeldOutTest(absltest.TestCase):
  def test_splits_share_nothing_and_lack_nothing(self):
    whole = _labels(make_settings('image_folder', _folder.path))
    settings = make_settings('image_folder', _folder.path, held_out=5)
    train, test = (_labels(settings, split) for split in registry.SPLITS)
    self.assertLen(test, 5)
    self.assertEqual({**train, **test}, whole)
    self.assertLen(train, len(whole) - 5)

  def test_they_hardly_change_when_images_are_added(self):
    root = _root / 'growing'
    shutil.copytree(_folder.path, root)
    settings = make_settings('image_folder', root, held_out=8)
    before = set(_labels(settings, 'test'))
    for number in range(3):
      name = root / 'class_1' / f'added_{number}.jpg'
      name.write_bytes(raw_pictures.jpeg(number))
    self.assertGreaterEqual(len(before & set(_labels(settings, 'test'))), 5)

  def test_they_do_not_depend_on_the_source_s_order(self):
    # The same keys, once in one tar and once in a folder in another order.
    root = _root / 'unpacked'
    for example in read_all(_imagenet_settings()):
      (root / example.key).parent.mkdir(parents=True, exist_ok=True)
      (root / example.key).write_bytes(example.image)
    folder = make_settings('image_folder', root, held_out=4)
    tar = _imagenet_settings(validation_path='', held_out=4)
    self.assertEqual(_labels(folder, 'test'), _labels(tar, 'test'))

  def test_more_than_there_are(self):
    count = len(_folder.labels) + len(_folder.corrupt)
    settings = make_settings('image_folder', _folder.path, held_out=count)
    expected = f'config.data.held_out={count}: give a number below {count}'
    with self.assertRaisesRegex(UserError, expected):
      registry.open_source(settings, 'test')


if __name__ == '__main__':
  absltest.main()
