"""Tables and JSON files of captions with bytes, rows and values changed.

They are refused in one line, or every caption that is read is text.
"""

import codecs
import csv
import io
import json
import pathlib

from absl.testing import absltest
import numpy as np

from support import fuzzed_sources, fuzzing, raw_pictures

_ENCODINGS = ('utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-32')
_FIELDS = (
  *('a dog', 'a cat\non a mat', 'a "big" dog', '"a dog"', '"', '""', ''),
  *('a café', '\U0001f436', 'a\tdog', 'a, dog', '\ufeff', ' ', 'a\rdog'),
  *('http://x/1', 'http://x/2.jpg', 'caption', 'url', '3', 'a\0dog', '\x85'),
)
_IMAGES = ('0.jpg', '1.jpg', '2.jpg')
_NAMES = ('caption', 'url', 'TEXT', 'URL', 'title', 'inhalt', 'image', '')


def table(random: np.random.Generator) -> tuple[str, bytes]:
  """A table of some kind, often with something wrong in it."""
  columns = int(random.integers(1, 5))
  rows = [
    [fuzzing.pick(random, _FIELDS) for _ in range(columns)]
    for _ in range(random.integers(0, 8))
  ]
  if random.random() < 0.4:
    rows = [['a dog', 'http://x/1', *row[2:]] for row in rows]
  if random.random() < 0.6:
    rows.insert(0, [fuzzing.pick(random, _NAMES) for _ in range(columns)])
  if random.random() < 0.2:
    picture = raw_pictures.encode(raw_pictures.picture(1, 3, 3), 'PNG')
    text = codecs.encode(picture, 'base64').decode().replace('\n', '')
    rows = [['1.jpg', '0', fuzzing.pick(random, _FIELDS), text.rstrip('=')]] * 3
  separator = fuzzing.pick(random, '\t,')
  stream = io.StringIO()
  if random.random() < 0.5:
    how = fuzzing.pick(random, (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    writer = csv.writer(stream, delimiter=separator, quoting=how)
    writer.writerows(rows)
  else:
    for row in rows:
      stream.write(
        separator.join(row) + fuzzing.pick(random, ('\n', '\n', '\r\n'))
      )
  data = stream.getvalue().encode(fuzzing.pick(random, _ENCODINGS))
  if random.random() < 0.5:
    data = fuzzing.mutated(random, data)
  return fuzzing.pick(random, ('a.tsv', 'a.csv')), data


def coco(random: np.random.Generator) -> bytes:
  """COCO's annotations, often with something wrong in them."""
  content = {
    'images': [{'id': i, 'file_name': f'{i}.jpg'} for i in range(4)],
    'annotations': [
      {'image_id': i % 4, 'caption': fuzzing.pick(random, _FIELDS[:4])}
      for i in range(8)
    ],
  }
  data = json.dumps(fuzzing.changed(random, content, _NAMES)).encode(
    fuzzing.pick(random, _ENCODINGS)
  )
  if random.random() < 0.3:
    data = fuzzing.mutated(random, data)
  if random.random() < 0.02:
    data = data.replace(b'"images"', b'[' * 20_000 + b'"images"')
  return data


def metadata(random: np.random.Generator) -> tuple[str, bytes]:
  """Captions of the pictures 0.jpg to 2.jpg in a folder, of some kind."""
  texts = [fuzzing.pick(random, _FIELDS) for _ in range(4)]
  names = [fuzzing.pick(random, ('0.jpg', '1.jpg', 'x.jpg', '')), *_IMAGES]
  rows = [*zip(names, texts, strict=True)][int(random.integers(2)) :]
  kind = fuzzing.pick(random, ('0.txt', 'metadata.csv', 'metadata.jsonl'))
  header = 'file_name', fuzzing.pick(random, ('text', 'caption', 'inhalt'))
  if kind == '0.txt':
    content = texts[0]
  elif kind == 'metadata.csv':
    stream = io.StringIO()
    csv.writer(stream).writerows([header, *rows])
    content = stream.getvalue()
  else:
    objects = [dict(zip(header, row, strict=True)) for row in rows]
    objects = fuzzing.changed(random, objects, _NAMES)
    lines = objects if isinstance(objects, list) else [objects]
    content = '\n'.join(map(json.dumps, lines))
  data = content.encode(fuzzing.pick(random, _ENCODINGS))
  if random.random() < 0.3:
    data = fuzzing.mutated(random, data)
  return kind, data


class FuzzTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.enterContext(fuzzed_sources.quiet())

  def check(self, tally, accepted, refused):
    """Checks that nothing failed, and how many ended in either way at least."""
    print(f'{tally.accepted} accepted, {tally.refused} refused')
    self.assertEmpty(tally.failures[:3])
    self.assertGreater(tally.accepted, accepted * tally.tried)
    self.assertGreater(tally.refused, refused * tally.tried)

  def test_tables(self):
    def act(given):
      name, data = given
      fuzzed_sources.write_and_read('cc3m_tsv', self.folder / name, data)

    self.check(fuzzing.fuzz(table, act), accepted=0.1, refused=0.3)

  def test_tables_with_few_faults_allowed(self):
    def act(given):
      name, data = given
      fuzzed_sources.write_and_read(
        *('cc3m_tsv', self.folder / name, data), max_corrupt_share=0.0
      )

    tally = fuzzing.fuzz(table, act, seed=1)
    self.check(tally, accepted=0.05, refused=0.3)

  def test_folders(self):
    for name in _IMAGES:
      (self.folder / name).write_bytes(raw_pictures.jpeg(1))

    def act(given):
      name, data = given
      path = self.folder / name
      try:
        fuzzed_sources.write_and_read(
          *('image_folder', path, data), path=self.folder, condition='text'
        )
      finally:
        path.unlink()

    self.check(fuzzing.fuzz(metadata, act), accepted=0.2, refused=0.2)

  def test_coco(self):
    images = self.folder / 'images'
    images.mkdir()
    for i in range(3):
      (images / f'{i}.jpg').write_bytes(raw_pictures.jpeg(1))
    path = self.folder / 'captions.json'

    def act(data):
      fuzzed_sources.write_and_read(
        'coco', path, data, path=images, annotations=str(path)
      )

    self.check(fuzzing.fuzz(coco, act), accepted=0.2, refused=0.1)


if __name__ == '__main__':
  absltest.main()
