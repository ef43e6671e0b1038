"""What a user hears who gives images that are not what the config says."""

import io
import json
import pathlib
import shutil
import tarfile

from absl.testing import absltest, parameterized

from adanat_jax.data.sources import registry
from adanat_jax.data.sources.raw_source import SourceSettings
from adanat_jax.errors import UserError
from support import raw_files, raw_pictures
from support.raw_files import make_settings


def setUpModule():
  global _root, _folder, _imagenet, _coco, _tsv, _tfds, _web, _pairs
  _root = pathlib.Path(absltest.get_default_test_tmpdir()) / 'mistakes'
  shutil.rmtree(_root, ignore_errors=True)
  _folder = raw_files.image_folder(_root / 'folder')
  _imagenet = raw_files.imagenet_tars(_root / 'imagenet')
  _coco = raw_files.coco(_root / 'coco')
  _tsv = raw_files.cc3m_tsv(_root / 'cc3m')
  _web = raw_files.webdataset(_root / 'web')
  _tfds = raw_files.tfds_images(_root / 'tfds')
  _pairs = raw_files.pairs(_root / 'pairs')


class MistakesTest(parameterized.TestCase):
  def _check(self, expected, source, path, split='train', **fields):
    """Checks for one line that has all the given parts in this order."""
    with self.assertRaises(UserError) as caught:
      registry.open_source(make_settings(source, path, **fields), split)
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    self.assertRegex(message, r'config\.data\.')
    parts = [expected] if isinstance(expected, str) else expected
    self.assertRegex(message, '.*'.join(parts))

  def test_the_source(self):
    self._check(
      ['source=.imagenet', 'image_folder, imagenet_tar'], 'imagenet', 'x'
    )
    self._check('data.path is empty', 'image_folder', '')

  @parameterized.parameters(*registry.SOURCES)
  def test_a_path_that_is_not_there(self, source):
    fields = {'annotations': 'x.json', 'tfds_name': 'imagenet2012'}
    self._check(
      'config.data.path=', source, _root / 'nowhere' / 'at_all', **fields
    )
    self._check(
      'config.data.validation_path=/no',
      source,
      {
        'image_folder': _folder.path,
        'imagenet_tar': _imagenet.train,
        'tfds': _tfds.path,
        'coco': _coco.path,
        'cc3m_tsv': _tsv.path,
        'webdataset': _web.path,
        'pairs': _pairs.path,
      }[source],
      'test',
      validation_path='/nowhere/at_all',
      **fields,
    )

  def test_no_images_for_validation(self):
    self._check(
      ['validation_path is empty', 'held_out is 0'],
      'image_folder',
      _folder.path,
      'test',
    )

  def test_what_images_cannot_tell(self):
    folder = 'image_folder', _folder.path
    self._check('condition=text.*no captions', *folder, condition='text')
    self._check('num_classes=10:.*has 3 classes', *folder, num_classes=10)
    self._check(
      'condition=class.*no classes', 'cc3m_tsv', _tsv.path, condition='class'
    )
    settings = SourceSettings(
      'image_folder', str(_folder.path), condition='class', num_classes=3
    )
    self.assertLen(registry.open_source(settings, 'train'), 12)

  def test_folders(self):
    check = lambda expected, path, *split, **fields: self._check(
      expected, 'image_folder', path, *split, **fields
    )
    check('is a file', _imagenet.train)
    check('no image in this folder', _web.path)
    root = _root / 'splits'
    shutil.copytree(_folder.path, root / 'train')
    (root / 'val').mkdir()
    check(['train, val look like splits', 'give .*/splits/train'], root)
    root = _root / 'mixed'
    shutil.copytree(_folder.path, root)
    (root / 'stray.jpg').write_bytes(raw_pictures.jpeg(1))
    check('1 images such as stray.jpg', root)
    (root / 'stray.jpg').unlink()
    (root / 'class_9').mkdir()
    check("'class_9' holds no images", root)
    (root / 'class_9' / '1.jpg').write_bytes(raw_pictures.jpeg(1))
    paths = {'validation_path': root}
    check(
      "validation_path=.*'class_9' is not one of", _folder.path, 'test', **paths
    )
    paths = {'validation_path': _folder.path / 'class_1'}
    check('no class folders', _folder.path, 'test', **paths)

  def test_tars(self):
    check = lambda expected, path: self._check(expected, 'imagenet_tar', path)
    whole = _imagenet.train.read_bytes()
    path = _root / 'broken.tar'
    for end in (len(whole) // 2 - 700, len(whole) // 3, 1500):
      path.write_bytes(whole[:end])
      check('broken.tar.*(not whole|not a whole tar|damaged)', path)
    # The header of the third file of the first class.
    with tarfile.open(_imagenet.train) as outer:
      begin = outer.next().offset_data
    with tarfile.open(fileobj=io.BytesIO(whole[begin:])) as inner:
      place = begin + inner.getmembers()[2].offset
    path.write_bytes(whole[:place] + b'\x7f' * 200 + whole[place + 200 :])
    check(['n01440764.tar', f'damaged at byte {place}'], path)
    with tarfile.open(_root / 'small.tar.gz', 'w:gz') as tar:
      raw_files.add_to_tar(tar, 'a/1.jpg', raw_pictures.jpeg(1))
    check('compressed .gzip.', _root / 'small.tar.gz')
    check('is not a tar file', _coco.annotations)
    check('neither ILSVRC2012_img_train.tar nor class tars', _web.path)
    path.write_bytes(raw_files.tar_of({'1.jpg': raw_pictures.jpeg(1)}))
    check('1.jpg is in no class folder', path)
    path.write_bytes(raw_files.tar_of({'a/readme.txt': b'-'}))
    check('no images in broken.tar', path)

  def test_the_devkit(self):
    check = lambda expected, **fields: self._check(
      expected, 'imagenet_tar', _imagenet.train, 'test', **fields
    )
    (_root / 'alone').mkdir()
    path = _root / 'alone' / 'val.tar'
    shutil.copy(_imagenet.validation, path)
    check('validation_annotations is empty.*devkit', validation_path=path)
    fields = {'validation_path': path, 'validation_annotations': _coco.path}
    check('no ILSVRC2012_validation_ground_truth.txt', **fields)
    fields['validation_annotations'] = _coco.annotations
    check('not the devkit', **fields)
    other = raw_files.imagenet_tars(_root / 'more', num_classes=4, held=8)
    fields['validation_annotations'] = other.devkit
    check("'n03000684' is not one of the 3", **fields)
    with tarfile.open(_root / 'odd.tar', 'w') as tar:
      raw_files.add_to_tar(tar, 'meta.mat', b'no matrix')
      truth = 'ILSVRC2012_validation_ground_truth.txt'
      raw_files.add_to_tar(tar, truth, b'1 2')
    fields['validation_annotations'] = _root / 'odd.tar'
    check('meta.mat is damaged', **fields)
    fewer = raw_files.imagenet_tars(_root / 'fewer', held=3)
    fields['validation_annotations'] = fewer.devkit
    check('00000004.JPEG is not one of the 3 images', **fields)

  def test_captions_of_coco(self):
    check = lambda expected, path, annotations: self._check(
      expected, 'coco', path, annotations=annotations
    )
    check('annotations is empty', _coco.path, '')
    check('no such file', _coco.path, _root / 'none.json')
    broken = _root / 'broken.json'
    broken.write_text(_coco.annotations.read_text()[:100])
    check('not valid JSON', _coco.path, broken)
    content = json.loads(_coco.annotations.read_text())
    for row in content['annotations']:
      del row['caption']
    broken.write_text(json.dumps(content))
    check('no captions of COCO', _coco.path, broken)
    broken.write_text(json.dumps(dict(content, annotations=[])))
    check('no image has a caption', _coco.path, broken)
    check('is not in it', _coco.path.parent, _coco.annotations)

  def test_tables(self):
    check = lambda expected, path: self._check(expected, 'cc3m_tsv', path)
    path = _root / 'table.tsv'
    path.write_text('one\ttwo\tthree\n')
    check('first line has 3 columns', path)
    path.write_text('')
    check('first line has 1 columns', path)
    path.write_text('caption\turl\n')
    check('no lines', path)
    check('a folder', _root)

  def test_shards(self):
    check = lambda expected, path: self._check(expected, 'webdataset', path)
    check('no tar files', _web.path / '*.tgz')
    check('00002.tar is no such file', str(_web.path / '{00000..00002}.tar'))
    path = _root / 'shard.tar'
    path.write_bytes(raw_files.tar_of({'1.jpg': b'', '1.cls': b'cat'}))
    check("the class in 1.cls is b'cat'", path)
    path.write_bytes(
      raw_files.tar_of({'1.jpg': b'', '1.cls': b'2', '2.jpg': b''})
    )
    check('2 has no class', path)
    tar = lambda name, *labels: (_root / name).write_bytes(
      raw_files.tar_of(
        {
          f'{i}.{kind}': data
          for i, label in enumerate(labels)
          for kind, data in (('jpg', b''), ('cls', label))
        }
      )
    )
    tar('train.tar', b'0', b'4')
    tar('fewer.tar', b'1', b'0')
    tar('more.tar', b'1', b'5')
    settings = lambda name: SourceSettings(
      *('webdataset', str(_root / 'train.tar')),
      validation_path=str(_root / name),
      num_classes=5,
    )
    # The classes of validation images are those of the training images.
    self.assertLen(registry.open_source(settings('fewer.tar'), 'test'), 2)
    with self.assertRaisesRegex(UserError, "more.tar: the class '5' is not"):
      registry.open_source(settings('more.tar'), 'test')
    path.write_bytes(raw_files.tar_of({'1.txt': b'alone'}))
    check('no images in 1 tars', path)

  def test_prepared_data_sets(self):
    check = lambda expected, path, name, **fields: self._check(
      expected, 'tfds', path, tfds_name=name, **fields
    )
    check('tfds_name is empty', _tfds.path, '')
    check('tfds_name=mnist: not prepared below', _tfds.path, 'mnist')
    root = _root / 'tfrecord'
    shutil.copytree(_tfds.path, root)
    info = root / 'imagenet2012' / '5.1.0' / 'dataset_info.json'
    text = info.read_text()
    info.write_text(text.replace('array_record', 'tfrecord'))
    check("file_format='array_record'", root, 'imagenet2012')
    info.write_text(text.replace('"validation"', '"rest"'))
    self._check(
      ['splits rest, train', 'held_out'],
      'tfds',
      root,
      'test',
      tfds_name='imagenet2012',
    )


if __name__ == '__main__':
  absltest.main()
