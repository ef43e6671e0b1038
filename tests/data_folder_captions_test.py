"""Captions of the pictures in a folder: text files and tables of metadata."""

import json
import pathlib
import unicodedata

from absl.testing import absltest, parameterized

from adanat_jax.data.sources import registry
from adanat_jax.data.sources.raw_source import SourceSettings
from adanat_jax.errors import UserError
from support import raw_pictures

_DOG, _CAT = 'a dog', 'a cat'
_HEADER = 'file_name,text\n'


def _lines(*rows):
  return ''.join(json.dumps(row) + '\n' for row in rows)


class FolderCaptionsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def write(self, **contents):
    """Writes files, by their names with `__` for dots; None is an image."""
    for name, content in contents.items():
      path = self.root / name.replace('__', '.')
      path.parent.mkdir(parents=True, exist_ok=True)
      if content is None:
        content = raw_pictures.jpeg(1)
      elif isinstance(content, str):
        content = content.encode()
      path.write_bytes(content)

  def open(self, split='train', share=0.5, **fields):
    settings = SourceSettings(
      *('image_folder', str(self.root)),
      **{'condition': 'text', 'max_corrupt_share': share, **fields},
    )
    return registry.open_source(settings, split)

  def captions(self, **fields):
    source = self.open(**fields)
    found = [source[i] for i in range(len(source))]
    self.assertTrue(all(example.image for example in found))
    return {example.key: example.captions for example in found}

  def refused(self, pattern, **fields):
    with self.assertRaisesRegex(UserError, pattern) as caught:
      self.open(**fields)
    self.assertTrue(str(caught.exception).isprintable())

  def test_text_files(self):
    self.write(a__png=None, a__txt='a dog\non a mat\n', b__1__jpg=None)
    self.write(**{'sub/c__webp': None, 'sub/c__TXT': '\n a cat \n'})
    self.write(b__1__txt=_CAT.encode('utf-16'), README__txt='of pictures')
    self.write(__a__txt='hidden')
    source = self.open(share=0.0)
    expected = {'a.png': 'a dog\non a mat', 'b.1.jpg': _CAT, 'sub/c.webp': _CAT}
    self.assertEqual(self.captions(), {k: (v,) for k, v in expected.items()})
    self.assertEqual(source.ledger.read, {'images': 3, 'captions': 3})
    self.assertEqual(
      source.ledger.passed_over, {'text files without an image': 1, 'hidden': 1}
    )
    self.assertIsNone(source.class_names)

  @parameterized.named_parameters(
    ('csv', 'metadata__csv', _HEADER + '"b.png","a ""dog""\non a mat"\n\n'),
    ('tabs', 'metadata__csv', 'text\tfile_name\n"a ""dog""\non a mat"\tb.png'),
    (
      'jsonl',
      'metadata__jsonl',
      '\n' + _lines({'file_name': './b.png', 'text': 'a "dog"\non a mat'}),
    ),
  )
  def test_tables(self, name, content):
    self.write(**{'sub/b__png': None})
    for encoding in ('utf-8', 'utf-8-sig', 'utf-16', 'utf-32'):
      self.write(**{f'sub/{name}': content.encode(encoding)})
      self.assertEqual(self.captions(), {'sub/b.png': ('a "dog"\non a mat',)})
    # Nothing is left among somebody's pictures.
    self.assertLen([*(self.root / 'sub').iterdir()], 2)

  def test_a_table_above_the_images_and_lists_of_captions(self):
    name = 'caf\N{LATIN SMALL LETTER E WITH ACUTE}.png'
    decomposed = unicodedata.normalize('NFD', name)
    self.write(**{'x/a__png': None, f'x/{decomposed}': None})
    rows = (
      {'file_name': 'x/a.png', 'caption': [_DOG, _CAT], 'id': 3},
      {
        'file_name': f'x/../x/{name}',
        'text': _CAT,
      },
    )
    self.write(metadata__jsonl=_lines(*rows))
    found = self.captions(share=0.0)
    self.assertEqual(
      found, {'x/a.png': (_DOG, _CAT), f'x/{decomposed}': (_CAT,)}
    )

  def test_what_is_wrong_is_counted_and_told(self):
    self.write(**{f'{i}__png': None for i in range(8)})
    rows = [{'file_name': f'{i}.png', 'text': _DOG} for i in range(4)]
    rows += [{'file_name': 'gone.png', 'text': _DOG}, {'text': _DOG}, [3]]
    rows += [{'file_name': '4.png', 'text': None}]
    rows += [{'file_name': '5.png', 'text': 'a \ud83d dog'}]
    rows += [{'file_name': 'metadata.jsonl', 'text': _DOG}]
    self.write(metadata__jsonl=_lines(*rows) + 'no JSON\n')
    self.write(**{'6__txt': b'caf\xe9'})
    source = self.open()
    ledger = source.ledger
    self.assertLen(source, 4)
    line = ledger.line('x', with_captions=True)
    for kind, count, example in (
      ('missing', 2, 'metadata.jsonl line 5: gone.png'),
      ('broken_rows', 3, 'metadata.jsonl line 6: no file_name'),
      ('empty_captions', 1, 'metadata.jsonl line 8 has file_name, text'),
      ('bad_texts', 2, 'metadata.jsonl line 9: half of a surrogate pair'),
      ('without_captions', 1, '7.png'),
    ):
      self.assertEqual(ledger.count(kind), count, kind)
      self.assertIn(example, line)
    self.assertIn('6.txt: line 1: byte 0xe9', line)
    self.assertIn('metadata.jsonl is no image that is read', line)
    self.assertEqual(ledger.tried, {'images': 10, 'captions': 7, 'rows': 11})
    self.refused('2 missing images .* of 10 images', share=0.1)

  @parameterized.named_parameters(
    ('text_and_row', {'a__txt': _CAT}, ('a.png', _DOG), 'metadata.csv row 1'),
    ('rows', {}, ('a.png', _DOG, 'a.png', _CAT), 'metadata.csv row 2'),
    ('out', {}, ('../a.png', _DOG), 'leads out of the folder'),
    ('absolute', {}, ('/a.png', _DOG), 'leads out of the folder'),
  )
  def test_rows_that_cannot_be_meant(self, files, fields, pattern):
    rows = [','.join(fields[i : i + 2]) for i in range(0, len(fields), 2)]
    self.write(a__png=None, metadata__csv=_HEADER + '\n'.join(rows), **files)
    self.refused(pattern)

  def test_the_same_twice_is_no_mistake(self):
    table = _HEADER + 'a.png,a dog\na.png,a dog\n'
    self.write(a__png=None, a__txt=_DOG, metadata__csv=table)
    self.assertEqual(self.captions(share=0.0), {'a.png': (_DOG,)})

  def test_a_folder_without_captions_says_what_was_looked_for(self):
    self.write(a__png=None, a__caption=_DOG)
    self.refused('a.txt for a.png.*metadata.csv.*found 1 images?, 1 .caption')
    self.write(a__txt='\n')
    self.refused('no captions below .*a.txt.: looked for')
    self.write(metadata__csv='file_name,label\na.png,3\n')
    self.refused("metadata.csv: .*'file_name', 'label'.* .here: file_name and")
    self.write(metadata__csv='image,text\na.png,a dog\n')
    self.refused('its columns are image, text; give file_name and text')
    # Without captions the same folder is one of a class.
    self.assertLen(self.open(condition='class'), 1)

  def test_validation_images(self):
    self.write(**{f'{i}__png': None for i in range(6)})
    self.write(**{f'{i}__txt': f'number {i}' for i in range(6)})
    parts = [self.open(split, held_out=2) for split in ('train', 'test')]
    self.assertEqual([*map(len, parts)], [4, 2])
    found = {part[i].captions for part in parts for i in range(len(part))}
    self.assertEqual(found, {(f'number {i}',) for i in range(6)})
    self.refused('same folder', split='test', validation_path=str(self.root))


if __name__ == '__main__':
  absltest.main()
