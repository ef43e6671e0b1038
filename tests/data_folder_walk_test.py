"""Folders with links, pipes and broken files; what is held out of them."""

import os
import pathlib
import stat

from absl.testing import absltest, parameterized
import numpy as np

from adanat_jax.data.sources import image_folder, registry
from adanat_jax.data.sources.raw_source import SourceSettings
from adanat_jax.errors import UserError
from support import raw_pictures


class FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path) / 'root'

  def write(self, *names):
    """Writes a picture under each name."""
    for name in names:
      path = self.root / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(raw_pictures.jpeg(1))

  def open(self, split='train', **fields):
    settings = SourceSettings('image_folder', str(self.root), **fields)
    return registry.open_source(settings, split)

  def keys(self, *arguments, **fields):
    source = self.open(*arguments, **fields)
    return [source[i].key for i in range(len(source))]

  def link(self, name, target):
    (self.root / name).symlink_to(target)


class WalkTest(FolderTest):
  def test_links_to_folders_that_are_walked_anyway(self):
    self.write('a/x.jpg', 'a/in/y.jpg', 'b/z.jpg')
    expected = ['a/x.jpg', 'a/in/y.jpg', 'b/z.jpg']
    self.assertEqual(self.keys(), expected)
    for name, target in (
      ('a/up', '..'),
      ('a/here', '.'),
      ('a/here_too', '.'),
      # The name that sorts first is not the one that counts.
      ('a/b', '../b'),
      ('a/above', '../..'),
      ('b/in', '../a/in'),
    ):
      self.link(name, target)
    source = self.open()
    self.assertEqual([source[i].key for i in range(len(source))], expected)
    self.assertEqual(
      source.ledger.passed_over, {'links to folders that are read already': 6}
    )

  def test_links_to_other_places_are_followed_once(self):
    elsewhere = self.root.parent / 'elsewhere'
    self.write('a/x.jpg', '../elsewhere/in/y.jpg', '.store/z.jpg')
    (elsewhere / 'in' / 'back').symlink_to('..')
    self.link('a/one', elsewhere)
    self.link('a/two', elsewhere)
    self.link('c', '.store')
    found = ['a/x.jpg', 'a/one/in/y.jpg', 'c/z.jpg']
    self.assertEqual(self.keys(), found)

  def test_a_class_that_is_another_one(self):
    self.write('a/x.jpg')
    self.link('b', 'a')
    with self.assertRaisesRegex(
      UserError, "'b' holds no images, but 1 links to folders that are read"
    ):
      self.open()

  def test_one_class_of_two_spellings_is_refused(self):
    self.write('caf\u00e9/1.jpg', 'cafe\u0301/2.jpg', 'Caf\u00e9/3.jpg')
    with self.assertRaisesRegex(UserError, r"'cafe\\u0301' and 'caf\\xe9'"):
      self.open()

  def test_folders_of_systems_are_no_classes(self):
    self.write('a/1.jpg', '@eaDir/a/1.jpg', 'a/__MACOSX/1.jpg')
    (self.root / 'lost+found').mkdir()
    source = self.open()
    self.assertEqual((len(source), source.class_names), (1, ('a',)))
    self.assertEqual(source.ledger.passed_over, {'hidden': 3})

  def test_only_regular_files_are_images(self):
    self.write('a/x.jpg', 'a/y.jpg', 'elsewhere.jpg')
    (self.root / 'elsewhere.jpg').rename(self.root.parent / 'elsewhere.jpg')
    self.link('a/good.jpg', self.root.parent / 'elsewhere.jpg')
    self.link('a/self.jpg', 'self.jpg')
    self.link('a/nowhere.jpg', 'nothing')
    os.mkfifo(self.root / 'a' / 'pipe.jpg')
    os.mkfifo(self.root / 'a' / 'pipe.txt')
    os.mknod(self.root / 'a' / 'socket.jpg', stat.S_IFSOCK | 0o600)
    (self.root / 'a' / 'folder.jpg').mkdir()
    source = self.open()
    keys = [source[i].key for i in range(len(source))]
    self.assertEqual(keys, ['a/good.jpg', 'a/x.jpg', 'a/y.jpg'])
    fault = source.ledger.faults['unreadable']
    self.assertEqual(fault.count, 4)
    self.assertContainsSubset(
      fault.examples,
      [
        'a/self.jpg: a link that leads nowhere',
        'a/nowhere.jpg: a link that leads nowhere',
        'a/pipe.jpg: not a regular file',
        'a/socket.jpg: not a regular file',
      ],
    )
    with self.assertRaisesRegex(UserError, '4 unreadable files .* of 7 images'):
      self.open(max_corrupt_share=0.5)

  def test_what_is_a_pipe_by_now_is_not_waited_for(self):
    self.write('a/x.jpg')
    source = self.open()
    path = self.root / 'a' / 'x.jpg'
    path.unlink()
    os.mkfifo(path)
    self.assertEqual(source[0].image, b'')
    path.unlink()
    path.symlink_to('x.jpg')
    self.assertEqual(source[0].image, b'')
    path.unlink()
    path.mkdir()
    self.assertEqual(source[0].image, b'')

  def test_a_disk_that_fails_is_not_the_file_s_fault(self):
    self.write('a/x.jpg')
    path = self.root / 'a' / 'x.jpg'
    with absltest.mock.patch('os.fstat', side_effect=PermissionError(13, 'no')):
      with self.assertRaises(PermissionError):
        image_folder.read_file(path)

  def test_a_folder_that_cannot_be_listed_is_named(self):
    self.write('a/x.jpg', 'a/closed/y.jpg')
    closed = self.root / 'a' / 'closed'
    scandir = os.scandir

    def refuse(path):
      if os.fspath(path) == str(closed):
        raise PermissionError(13, 'Permission denied')
      return scandir(path)

    with absltest.mock.patch('os.scandir', side_effect=refuse):
      source = self.open()
    self.assertLen(source, 1)
    self.assertEqual(
      source.ledger.faults['unreadable'].examples,
      ['a/closed: Permission denied'],
    )

  def test_what_is_passed_over_is_counted_by_suffix(self):
    suffixes = 'jfif jpe mpo JFIF dib apng pbm pnm'.split()
    self.write(*(f'a/{i}.{suffix}' for i, suffix in enumerate(suffixes)))
    self.assertLen(self.open(), len(suffixes))
    others = ['a.heic', 'b.HEIC', 'c.avif', 'd.txt', 'e', '.DS_Store', 'f.b\nc']
    self.write(*(f'a/{name}' for name in others), 'about.md', '.git/x.jpg')
    with absltest.mock.patch('builtins.print') as printed:
      source = self.open()
    self.assertLen(source, len(suffixes))
    self.assertEqual(
      source.ledger.passed_over,
      {
        '.heic': 2,
        '.avif': 1,
        '.txt': 1,
        '.md': 1,
        '.b\\nc': 1,
        'hidden': 2,
        'without a suffix': 1,
      },
    )
    (line,) = printed.call_args.args
    self.assertRegex(
      line,
      r'^config.data.path=\S+root: read 8 images, 1 class, 8 in a class;'
      r' passed over .*2 \.heic.*convert \.avif, \.heic to JPEG or PNG',
    )

  def test_a_folder_without_an_image_says_what_it_holds(self):
    self.write('x.heic')
    with self.assertRaisesRegex(UserError, 'no image in .*1 .heic .*convert'):
      self.open()
    self.write('a/x.jpg', 'b/x.tga')
    with self.assertRaisesRegex(UserError, "'b' holds no images, but 1 .tga"):
      self.open()


class ApartTest(FolderTest):
  def test_validation_images_are_others(self):
    self.write('a/x.jpg', 'a/y.jpg', 'b/x.jpg', '../root2/a/x.jpg')
    self.link('../link', 'root')
    for path in (
      self.root,
      self.root.parent / 'link',
      self.root / '..' / 'root',
    ):
      with self.assertRaisesRegex(UserError, 'the same folder as'):
        self.open('test', validation_path=str(path))
    with self.assertRaisesRegex(UserError, 'no class folders here'):
      self.open('test', validation_path=str(self.root / 'a'))
    other = str(self.root.parent / 'root2')
    self.assertLen(self.open('test', validation_path=other), 1)

  def test_flat_folders_in_one_another(self):
    self.write('x.jpg')
    with self.assertRaisesRegex(UserError, 'the same folder as'):
      self.open('test', validation_path=str(self.root))

  def test_paths_are_compared_before_anything_is_read(self):
    self.write('a/x.jpg')
    settings = SourceSettings(
      'image_folder', str(self.root), validation_path=str(self.root / 'a')
    )
    with self.assertRaisesRegex(UserError, 'in one folder with'):
      registry.check_apart(settings)
    for kind in ('cc3m_tsv', 'webdataset'):
      settings = SourceSettings(kind, '/x/y', validation_path='/x/z/../y')
      with self.assertRaisesRegex(UserError, 'leads to the training images'):
        registry.check_apart(settings)


class HeldOutTest(FolderTest):
  def setUp(self):
    super().setUp()
    self.write(*(f'many/{i:02d}.jpg' for i in range(20)))

  def test_one_of_each_class_stays(self):
    self.write(*(f'lone_{i}/x.jpg' for i in range(5)))
    whole = self.keys()
    for held_out in (1, 5, 12, 19):
      train = self.open(held_out=held_out)
      test = self.open('test', held_out=held_out)
      self.assertLen(test, held_out)
      names = [
        source[i].key for source in (train, test) for i in range(len(source))
      ]
      self.assertCountEqual(names, whole)
      self.assertLen(np.unique(train.labels), 6)
      self.assertEqual(
        [train[i].label for i in range(3)], train.labels[:3].tolist()
      )
    with self.assertRaisesRegex(
      UserError, "held_out=20: at most 19 .*one of each class.*'lone_0'"
    ):
      self.open(held_out=20)

  def test_the_choice_is_otherwise_as_it_was(self):
    self.write(*(f'few/{i}.jpg' for i in range(8)))
    source = self.open()
    hashes = source.key_hashes()
    for held_out in (1, 3, 7):
      order = np.argsort(hashes, kind='stable')[:held_out]
      expected = {source[int(i)].key for i in order}
      self.assertEqual(set(self.keys('test', held_out=held_out)), expected)


if __name__ == '__main__':
  absltest.main()
