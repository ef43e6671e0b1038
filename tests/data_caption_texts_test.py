"""Captions of other people's files: none is silently another one, or none.

Each case stands for a way in which a neighbouring project has gone wrong.
"""

import codecs
import io
import json
import pathlib
import tarfile

from absl.testing import absltest, parameterized

from adanat_jax.data.sources import registry
from adanat_jax.data.sources.raw_source import SourceSettings
from adanat_jax.errors import UserError
from support import raw_files, raw_pictures

_DOG, _CAT = 'a dog', 'a cat'
_ADDRESS = 'http://x/1'


class SourceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def open(self, kind, content, name='', split='train', **fields):
    """Opens a source of one file, which has this content."""
    path = self.folder / (name or {'webdataset': 'a.tar'}.get(kind, 'a.tsv'))
    path.write_bytes(
      content if isinstance(content, bytes) else content.encode()
    )
    fields = {'max_corrupt_share': 0.5, **fields}
    return registry.open_source(
      SourceSettings(kind, str(path), **fields), split
    )

  def captions(self, *arguments, **fields):
    source = self.open(*arguments, **fields)
    return [source[i].captions for i in range(len(source))]

  def refused(self, pattern, *arguments, **fields):
    """Checks that a file is refused in one line that says why."""
    with self.assertRaisesRegex(UserError, pattern) as caught:
      self.open(*arguments, **fields)
    self.assertTrue(str(caught.exception).isprintable())


class TableTest(SourceTest):
  @parameterized.named_parameters(
    ('url_first', 'url\tcaption\nhttp://x/1\ta dog\n'),
    ('laion', 'URL\tTEXT\nhttp://x/1\ta dog\n'),
    ('others_beside', 'url\tcaption\twidth\theight\nhttp://x/1\ta dog\t3\t4\n'),
    ('alone', 'Prompt\na dog\n'),
    ('in_quotes', '"Title"\t"Link"\n"a dog"\t"http://x/1"\n'),
    ('cc3m', 'a dog\thttp://x/1\n'),
    ('cc12m', 'http://x/1\ta dog\n'),
    ('blank_lines', '\na dog\thttp://x/1\n\n\r\n \n\t\n'),
    ('separator_too_many', 'caption\turl\na dog\thttp://x/1\t\t\n'),
    ('of_two_files', 'caption\turl\na dog\thttp://x/1\ncaption\turl\n'),
    ('second_mark', 'caption\turl\n\ufeffa dog\thttp://x/1\n'),
  )
  def test_columns(self, content):
    for encoding in ('utf-8', 'utf-8-sig', 'utf-16', 'utf-32'):
      encoded = content.encode(encoding)
      self.assertEqual(self.captions('cc3m_tsv', encoded), [(_DOG,)])
    for mark, encoding in (
      (codecs.BOM_UTF16_BE, 'utf-16-be'),
      (codecs.BOM_UTF32_BE, 'utf-32-be'),
    ):
      encoded = mark + content.encode(encoding)
      self.assertEqual(self.captions('cc3m_tsv', encoded), [(_DOG,)])

  @parameterized.named_parameters(
    (
      'csv',
      'a.csv',
      'caption,url\n"a dog\non a ""mat""",http://x/1\na cat,u\n',
    ),
    ('tsv', 'a.tsv', 'url\ttext\nu\t"a dog\non a ""mat"""\nu\ta cat\n'),
  )
  def test_quotes_are_undone(self, name, content):
    expected = [('a dog\non a "mat"',), (_CAT,)]
    for encoding in ('utf-8', 'utf-16'):
      encoded = content.encode(encoding)
      self.assertEqual(self.captions('cc3m_tsv', encoded, name), expected)

  def test_quotes_between_tabs_that_mean_nothing_stay(self):
    rows = ['"a" dog', '"a cat"', '"', 'a "cat"', '""']
    content = ''.join(f'{row}\t{_ADDRESS}\n' for row in rows)
    found = self.captions('cc3m_tsv', content)
    self.assertEqual(found, [(row,) for row in rows])

  def test_quotes_that_do_not_fit_between_commas(self):
    content = 'caption,url\n"a" dog,http://x/1\n'
    self.assertEqual(self.captions('cc3m_tsv', content, 'a.csv'), [(_DOG,)])
    # The rest of the file would be one caption.
    content = 'caption,url\na cat,u\n"a dog,u\na cat,u\n'
    self.refused('line 3', 'cc3m_tsv', content, 'a.csv')

  @parameterized.named_parameters(
    ('latin_1', b'caption\turl\na cat\tu\na caf\xe9\tu\n', 'line 3.*0xe9'),
    ('nul', b'caption\turl\na\0dog\tu\n', 'line 2: a NUL'),
    ('utf_16_without_a_mark', 'caption\turl\n'.encode('utf-16-le'), 'line 1'),
    ('old_macintosh', b'caption\turl\ra dog\tu\ra cat\tu\r', 'line feeds'),
    ('cut_off', 'caption\turl\na dog\tu\n'.encode('utf-16')[:-1], 'line 2'),
  )
  def test_what_is_no_text_is_refused_with_its_line(self, content, pattern):
    self.refused(pattern, 'cc3m_tsv', content)

  @parameterized.named_parameters(
    ('unknown_names', 'id\tinhalt\n1\ta dog\n', "'id', 'inhalt'"),
    ('unknown', 'adresse\tinhalt\n' + 'http://x/1\ta dog\n' * 3, "'inhalt'"),
    ('three', 'a\tb\tc\n', "3 columns .'a', 'b', 'c'"),
    ('addresses', 'caption\turl\nhttp://x/1\thttp://x/1\n', 'mostly addresses'),
    ('two_of_addresses', 'http://x/1\thttp://x/1\n', 'not clear'),
    ('broken', 'url,caption\nhttp://x/1,a dog, big\n', 'line 2 has 3 columns'),
  )
  def test_columns_that_are_not_known_are_named(self, content, pattern):
    name = 'a.csv' if ',c' in content else 'a.tsv'
    self.refused(pattern, 'cc3m_tsv', content, name)

  def test_empty_captions_are_counted_and_many_are_refused(self):
    content = 'caption\turl\n' + 'a dog\tu\n' * 9 + ' \tu\n'
    source = self.open('cc3m_tsv', content, max_corrupt_share=0.1)
    self.assertEqual(source.ledger.count('empty_captions'), 1)
    self.assertEqual(source.ledger.read, {'captions': 9})
    self.assertIn('line 11', source.ledger.line('a', with_captions=True))
    # The empty text is the null condition, and not what the image shows.
    self.assertEqual(source[9].captions, ())
    self.assertIn('empty', source[9].problem)
    self.refused(
      '1 empty caption .line 11. of 10 captions.*max_corrupt_share=0.09',
      'cc3m_tsv',
      content,
      max_corrupt_share=0.09,
    )

  @parameterized.parameters(
    'NaN', 'None', '<NA>', '\u200b', '\u00a0', 'http://x/2.jpg', '2.jpg'
  )
  def test_texts_that_say_nothing_are_no_captions(self, text):
    content = 'url\tcaption\n' + f'{_ADDRESS}\ta dog\n' * 9
    source = self.open('cc3m_tsv', content + f'{_ADDRESS}\t{text}\n')
    self.assertEqual(source[9].captions, ())
    self.assertIn('1 empty caption (line 11', source.ledger.line('a', True))
    # A word of a caption is none of these.
    content += f'{_ADDRESS}\tnone of {text}\n'
    self.assertLen(self.captions('cc3m_tsv', content)[9], 1)

  def test_images_in_base64_without_padding_or_with_a_header(self):
    picture = raw_pictures.encode(raw_pictures.picture(1, 5, 5), 'PNG')
    for extra in range(3):
      data = picture + bytes(extra)
      text = codecs.encode(data, 'base64').decode().replace('\n', '')
      for written in (text, text.rstrip('=')):
        for row in (
          f'1.jpg\t0\ta dog\t{written}\n',
          f'image\tcaption\n{written}\ta dog\n',
          f'1.jpg\t0\t"a ""dog"""\t{written}\n',
        ):
          for encoding in ('utf-8', 'utf-16'):
            source = self.open('cc3m_tsv', row.encode(encoding))
            self.assertEqual(source[0].image, data)
            self.assertIn('dog', source[0].captions[0])
            self.assertNotIn('""', source[0].captions[0])


class WebDatasetTest(SourceTest):
  def tar(self, *members):
    """A tar of (name, content), or (name, content, kind, target of a link)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w') as tar:
      for name, data, *link in members:
        info = tarfile.TarInfo(name)
        if link:
          info.type, info.linkname = link
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()

  def sample(self, key, text=_DOG, suffix='jpg'):
    return (f'{key}.{suffix}', raw_pictures.jpeg(1)), (
      f'{key}.txt',
      text.encode(),
    )

  def test_hidden_files_part_no_sample(self):
    for hidden in ('._', '__MACOSX/._', '__MACOSX/', 'x/.'):
      image, text = self.sample('0')
      other = [(f'{hidden}{name}', b'\0') for name, _ in (image, text)]
      content = self.tar(other[0], image, other[1], text)
      source = self.open('webdataset', content)
      self.assertLen(source, 1)
      self.assertEqual(source[0].captions, (_DOG,))
      self.assertEqual(source.ledger.passed_over, {'hidden': 2})

  def test_parts_of_a_sample_need_not_lie_together(self):
    samples = [self.sample(f'{i}', f'text {i}') for i in range(3)]
    content = self.tar(*(i for i, _ in samples), *(t for _, t in samples[::-1]))
    found = self.captions('webdataset', content)
    self.assertEqual(found, [(f'text {i}',) for i in range(3)])

  @parameterized.parameters('jfif', 'jpe', 'MPO', 'dib', 'apng', 'pnm')
  def test_suffixes(self, suffix):
    content = self.tar(*self.sample('0', suffix=suffix), *self.sample('1'))
    self.assertEqual(self.captions('webdataset', content), [(_DOG,)] * 2)

  def test_dots_in_names(self):
    content = self.tar(*self.sample('img.v1'), *self.sample('img.v2', _CAT))
    found = self.captions('webdataset', content)
    self.assertEqual(found, [(_DOG,), (_CAT,)])
    # Further parts of a sample, as WebDataset has them, are none.
    extra = ('0.seg.png', raw_pictures.jpeg(2))
    source = self.open('webdataset', self.tar(extra, *self.sample('0')))
    self.assertLen(source, 1)
    self.assertEqual(source[0].image, raw_pictures.jpeg(1))
    self.assertEqual(
      source.ledger.passed_over, {'further files of an image': 1}
    )

  @parameterized.parameters(tarfile.LNKTYPE, tarfile.SYMTYPE)
  def test_links_are_followed(self, kind):
    image, text = self.sample('x/0')
    target = 'x/0.jpg' if kind == tarfile.LNKTYPE else '0.jpg'
    content = self.tar(
      *(image, text),
      ('x/1.jpg', b'', kind, target),
      ('x/1.txt', _CAT.encode()),
      ('x/2.jpg', b'', kind, 'nowhere'),
      ('x/3.jpg', b'', kind, 'x/3.jpg'),
    )
    source = self.open('webdataset', content)
    self.assertEqual([source[i].captions for i in range(2)], [(_DOG,), (_CAT,)])
    self.assertEqual(source[1].image, raw_pictures.jpeg(1))
    self.assertLen(source, 2)
    self.assertIn('2 links that lead to no file', source.ledger.seen())

  def test_names_that_come_twice(self):
    content = self.tar(*self.sample('0'), *self.sample('0', _CAT))
    pattern = '1 image of a name that came before .0.jpg. of 2 images'
    self.refused(pattern, 'webdataset', content, max_corrupt_share=0.4)
    self.assertEqual(self.captions('webdataset', content), [(_DOG,)])

  def test_what_is_there_instead_of_images_is_named(self):
    content = self.tar(('0.heic', b'-'), ('0.txt', b'-'), ('1.npy', b'-'))
    self.refused(
      'no images in 1 tars; they hold.*1 .heic.*convert .heic to',
      'webdataset',
      content,
    )

  @parameterized.parameters('caption', 'prompt', 'TEXT', 'Title', 'alt_text')
  def test_captions_in_json(self, name):
    image, _ = self.sample('0')
    for value in (_DOG, [_DOG], ['', _DOG]):
      text = json.dumps({'width': 3, 'caption': None, name: value})
      for encoding in ('utf-8-sig', 'utf-16'):
        content = self.tar(image, ('0.json', text.encode(encoding)))
        self.assertEqual(self.captions('webdataset', content), [(_DOG,)])

  def test_json_without_a_caption_is_told(self):
    image, _ = self.sample('0')
    content = self.tar(image, ('0.json', b'{"inhalt": "a dog"}'))
    self.refused(
      'no captions .0.json has inhalt', 'webdataset', content, condition='text'
    )
    content = self.tar(
      image, ('0.json', b'{"inhalt": "a dog"}'), *self.sample('1')
    )
    pattern = '1 image without a caption .0.json has inhalt. of 2'
    self.refused(pattern, 'webdataset', content, max_corrupt_share=0.4)
    self.assertEqual(self.captions('webdataset', content), [(), (_DOG,)])

  @parameterized.parameters(
    ('0.txt', b'a caf\xe9', 'byte 0xe9 is not UTF-8'),
    ('0.txt', b'a\0dog', 'NUL'),
    ('0.json', b'{"caption": "a \\ud83d dog"}', 'surrogate'),
    ('0.json', b'{"caption": "a', 'not valid JSON'),
    ('0.json', b'[' * 100_000, 'nested'),
    ('0.json', b'{"caption": ' + b'1' * 5000 + b'}', 'integer'),
  )
  def test_captions_that_are_no_text(self, name, data, why):
    image, _ = self.sample('0')
    content = self.tar(image, (name, data), *self.sample('1'))
    self.refused(
      f'1 unreadable caption .0: .*{why}',
      'webdataset',
      content,
      max_corrupt_share=0.4,
    )
    source = self.open('webdataset', content)
    self.assertEqual(source[0].captions, ())
    self.assertRegex(source[0].problem, why)

  def test_classes_do_not_ask_for_captions(self):
    image, _ = self.sample('0')
    content = self.tar(
      image, ('0.cls', '0'.encode('utf-16')), ('0.json', b'{}')
    )
    fields = {'condition': 'class', 'max_corrupt_share': 0.0}
    source = self.open('webdataset', content, **fields)
    self.assertEqual(source[0].label, 0)
    for label in (b'1.5', b'-1', '١'.encode(), b'4000000000', b'\xff'):
      content = self.tar(image, ('0.cls', label))
      self.refused('give a number', 'webdataset', content, **fields)

  def test_hidden_and_linked_tars(self):
    (self.folder / 'a.tar').write_bytes(self.tar(*self.sample('0')))
    (self.folder / '._a.tar').write_bytes(b'\0')
    (self.folder / 'b.tar').symlink_to('a.tar')
    settings = SourceSettings('webdataset', str(self.folder))
    self.assertLen(registry.open_source(settings, 'train'), 1)
    # Validation images must be others.
    for path in (self.folder / 'b.tar', self.folder / '*.tar'):
      settings = SourceSettings(
        'webdataset', str(self.folder), validation_path=str(path)
      )
      with self.assertRaisesRegex(UserError, 'is one of the tars'):
        registry.open_source(settings, 'test')
    settings = SourceSettings('webdataset', '/x/{0..99999999999}.tar')
    with self.assertRaisesRegex(UserError, 'more than 1,000,000 tars'):
      registry.open_source(settings, 'train')


class CocoTest(SourceTest):
  def setUp(self):
    super().setUp()
    self.coco = raw_files.coco(self.folder)
    self.content = json.loads(self.coco.annotations.read_text())

  def load(self, share=0.5, encoding='utf-8', **changes):
    text = json.dumps({**self.content, **changes})
    path = self.folder / 'changed.json'
    path.write_bytes(text.encode(encoding))
    settings = SourceSettings(
      'coco',
      str(self.coco.path),
      annotations=str(path),
      max_corrupt_share=share,
    )
    return registry.open_source(settings, 'train')

  def check_refused(self, pattern, **changes):
    with self.assertRaisesRegex(UserError, pattern):
      self.load(share=0.0, **changes)

  def test_a_byte_order_mark_is_no_data(self):
    for encoding in ('utf-8-sig', 'utf-16'):
      source = self.load(encoding=encoding)
      self.assertEqual(
        {source[i].key: source[i].captions for i in range(len(source))},
        self.coco.captions,
      )

  @parameterized.parameters(
    (None, 'unreadable caption.*annotations.0..caption is null'),
    ('a \ud83d dog', 'unreadable caption.*annotations.0..caption: half of a'),
    ('a\0dog', 'unreadable caption.*annotations.0..caption: a NUL'),
    (3, 'unreadable caption.*annotations.0..caption is missing'),
    (' ', 'empty caption .annotations.0..caption'),
  )
  def test_a_caption_that_is_none_is_left_out(self, caption, pattern):
    rows = [{**row} for row in self.content['annotations']]
    rows[0]['caption'] = caption
    self.check_refused(pattern, annotations=rows)
    source = self.load(annotations=rows)
    texts = [text for i in range(len(source)) for text in source[i].captions]
    self.assertLen(texts, len(rows) - 1)
    self.assertNotIn('', texts)

  def test_missing_images_are_alike(self):
    rows = self.content['images']
    for place in (0, 3):
      name = rows[place]['file_name']
      data = (self.coco.path / name).read_bytes()
      (self.coco.path / name).unlink()
      self.check_refused(f'1 missing image .{name}, id {rows[place]["id"]}')
      source = self.load()
      self.assertLen(source, 6)
      self.assertEqual(source[place].image, b'')
      (self.coco.path / name).write_bytes(data)

  def test_rows_of_another_kind_are_named(self):
    for row in (None, 3, [], {}, {'id': 1}, {'id': 1, 'file_name': '\0'}):
      self.check_refused(
        'broken row .images.6. has no', images=[*self.content['images'], row]
      )
    for row in (None, 3, {}, {'image_id': [1], 'caption': _DOG}):
      self.check_refused(
        r'broken row .annotations.\d+. has no image_id',
        annotations=[*self.content['annotations'], row],
      )
    again = {**self.content['images'][0], 'file_name': 'other.jpg'}
    self.check_refused(
      'images.6., other.jpg', images=[*self.content['images'], again]
    )

  def test_the_same_captions_for_validation(self):
    settings = SourceSettings(
      'coco',
      str(self.coco.path),
      annotations=str(self.coco.annotations),
      validation_path=str(self.coco.path),
      validation_annotations=str(self.coco.annotations),
    )
    with self.assertRaisesRegex(UserError, 'is the file of config.data.annot'):
      registry.open_source(settings, 'test')


if __name__ == '__main__':
  absltest.main()
