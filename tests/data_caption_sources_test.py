"""Images with captions: COCO, CC3M's tables, WebDataset, and through tfds."""

import pathlib
import shutil

from absl.testing import absltest, parameterized

from adanat_jax.data import images
from adanat_jax.data.sources import registry
from support import raw_files, raw_pictures
from support.raw_files import make_settings, read_all


def setUpModule():
  global _coco, _tsv, _prompts, _web, _tfds, _root
  _root = pathlib.Path(absltest.get_default_test_tmpdir()) / 'captions'
  shutil.rmtree(_root, ignore_errors=True)
  _coco = {
    split: raw_files.coco(_root / 'coco', split) for split in ('train', 'val')
  }
  _tsv = raw_files.cc3m_tsv(_root / 'cc3m')
  _prompts = raw_files.cc3m_prompts(_root / 'cc3m')
  _web = raw_files.webdataset(_root / 'web')
  _tfds = raw_files.tfds_images(_root / 'tfds')


def _coco_settings():
  return raw_files.make_coco_settings(_coco['train'], _coco['val'])


def _captions(settings, split='train'):
  return {
    example.key: example.captions for example in read_all(settings, split)
  }


class CaptionsTest(parameterized.TestCase):
  def test_coco_has_all_captions_of_each_image(self):
    for split, name in (('train', 'train'), ('test', 'val')):
      self.assertEqual(_captions(_coco_settings(), split), _coco[name].captions)
    example = read_all(_coco_settings())[1]
    stored = _coco['train'].path / example.key
    self.assertEqual(example.image, stored.read_bytes())

  def test_cc3m_table(self):
    settings = make_settings('cc3m_tsv', _tsv.path)
    self.assertEqual(_captions(settings), _tsv.captions)
    for number, example in enumerate(read_all(settings)):
      self.assertEqual(example.image, raw_pictures.jpeg(300 + number))

  def test_cc3m_table_in_the_alphabet_of_its_reader(self):
    path = _root / 'cc3m' / 'urlsafe.tsv'
    text = _tsv.path.read_text()
    self.assertRegex(text, r'[+/]')
    # The last line may lack its end.
    path.write_text(text.replace('+', '-').replace('/', '_').rstrip('\n'))
    settings = make_settings('cc3m_tsv', path)
    self.assertEqual(
      [e.image for e in read_all(settings)],
      [e.image for e in read_all(make_settings('cc3m_tsv', _tsv.path))],
    )

  def test_broken_lines_of_a_table_are_found_when_they_are_decoded(self):
    path = _root / 'cc3m' / 'broken.tsv'
    lines = _tsv.path.read_text().splitlines()
    lines[1] = lines[1][:-7]
    lines[2] = lines[2].replace('\t', '\ttoo many\t', 1)
    lines[3] = 'alone'
    path.write_text('\n'.join(lines) + '\n')
    examples = read_all(make_settings('cc3m_tsv', path))
    self.assertLen(examples, 6)
    for number, example in enumerate(examples):
      if number in (1, 2, 3):
        with self.assertRaises(images.CorruptImageError):
          images.decode(example.image, 16)
      else:
        images.decode(example.image, 16)

  @parameterized.parameters(
    'caption\turl\n{}', '{}', 'caption\turl\r\n{}', 'url\tcaption\n{}', 'CSV'
  )
  def test_cc3m_captions_alone(self, layout):
    texts = [t for (t,) in _prompts.captions.values()]
    rows = [f'{text}\thttp://x.org/{i}' for i, text in enumerate(texts)]
    if layout.startswith('url'):
      rows = ['\t'.join(reversed(row.split('\t'))) for row in rows]
    elif layout == 'CSV':
      texts = [text.replace(' near', ', near') for text in texts]
      layout = 'caption,url\n{}'
      rows = ['"' + text.replace('"', '""') + '",http://x' for text in texts]
    path = _root / 'cc3m' / 'prompts.tsv'
    path.write_bytes(layout.format('\n'.join(rows)).encode())
    source = registry.open_source(make_settings('cc3m_tsv', path), 'train')
    self.assertFalse(source.has_images)
    self.assertEqual([source[i].captions[0] for i in range(5)], texts)

  @parameterized.parameters('', '*.tar', '{{00000..00001}}.tar', '0000?.tar')
  def test_webdataset(self, pattern):
    path = _web.path / pattern.replace('{{', '{').replace('}}', '}')
    examples = read_all(make_settings('webdataset', path))
    self.assertEqual({e.key: e.captions for e in examples}, _web.captions)
    self.assertEqual(examples[5].image, raw_pictures.jpeg(411))

  def test_webdataset_with_captions_in_json_alone(self):
    web = raw_files.webdataset(_root / 'json', text=False)
    self.assertEqual(
      _captions(make_settings('webdataset', web.path)), web.captions
    )

  def test_webdataset_with_classes_and_folders(self):
    path = _root / 'classes.tar'
    contents = {}
    for number in range(3):
      contents[f'x.y/{number}.seg.txt'] = b'something else'
      contents[f'x.y/{number}.PNG'] = raw_pictures.jpeg(number)
      contents[f'x.y/{number}.cls'] = f'{2 - number}\n'.encode()
    path.write_bytes(raw_files.tar_of({'readme.md': b'-', **contents}))
    source = registry.open_source(make_settings('webdataset', path), 'train')
    found = {source[i].key: source[i].label for i in range(len(source))}
    self.assertEqual(found, {'x.y/0': 2, 'x.y/1': 1, 'x.y/2': 0})
    self.assertEqual(source.class_names, ('0', '1', '2'))
    self.assertFalse(source.has_captions)


class TfdsTest(absltest.TestCase):
  def test_imagenet(self):
    settings = make_settings('tfds', _tfds.path, tfds_name='imagenet2012')
    source = registry.open_source(settings, 'train')
    self.assertEqual(source.class_names, raw_files.SYNSETS)
    for example in read_all(settings):
      number = int(example.key.split('_')[1].split('.')[0])
      self.assertEqual(example.label, number % 4)
      self.assertEqual(example.image, raw_pictures.jpeg(number))
    self.assertLen(read_all(settings, 'test'), 4)

  def test_coco_validation_is_val2014_again(self):
    coco = raw_files.tfds_images(_root / 'tfds', 'coco_captions')
    settings = make_settings('tfds', coco.path, tfds_name='coco_captions')
    found = _captions(settings) | _captions(settings, 'test')
    self.assertEqual(found, coco.captions)
    self.assertLen(_captions(settings, 'test'), 7)

  def test_the_directory_of_the_data_set_itself(self):
    path = _tfds.path / 'imagenet2012' / '5.1.0'
    self.assertLen(read_all(make_settings('tfds', path)), 6)


if __name__ == '__main__':
  absltest.main()
