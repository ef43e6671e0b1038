"""Pairs of a picture and a text: tables in all layouts, and their mistakes."""

import json
import pathlib

from absl.testing import absltest, parameterized
import numpy as np
from PIL import Image

from adanat_jax.data import word_vectors
from adanat_jax.data.sources import registry
from adanat_jax.data.sources.raw_source import SourceSettings
from adanat_jax.errors import UserError


class PairsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    for name in ('pie/pie_0.jpg', 'pie/pie_1.jpg', 'cake/cake_0.jpg', '7.jpg'):
      path = self.root / 'images' / name
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.new('RGB', (8, 8), 'red').save(path)

  def open(self, name, text, split='train', **settings):
    """A source of a table that holds a text."""
    path = self.root / name
    path.write_text(text)
    images = self.root / 'images'
    return registry.open_source(
      SourceSettings('pairs', str(images), annotations=str(path), **settings),
      split,
    )

  def test_food101s_columns(self):
    source = self.open(
      'train_titles.csv',
      'pie_0.jpg,"Pie, the best\nof all",pie\npie_1.jpg,Pie again,pie\n'
      'cake_0.jpg,A cake,cake\n',
    )
    self.assertEqual(source.class_names, ('cake', 'pie'))
    np.testing.assert_array_equal(source.labels, [1, 1, 0])
    self.assertEqual(source.captions(0), ('Pie, the best\nof all',))
    example = source[2]
    self.assertEqual(
      (example.key, example.label, example.captions),
      ('cake/cake_0.jpg', 0, ('A cake',)),
    )
    self.assertStartsWith(example.image, b'\xff\xd8')
    # Some are set apart, and keep what belongs to them.
    held = self.open(
      'train_titles.csv',
      'pie_0.jpg,one,pie\npie_1.jpg,two,pie\ncake_0.jpg,three,cake\n',
      held_out=1,
    )
    for i in range(2):
      self.assertEqual(held.captions(i), held[i].captions)

  def test_n24news_list(self):
    entries = [
      {'image_id': 7, 'headline': 'A', 'caption': 'B', 'section': 'Food'},
      {
        'image_id': 'pie/pie_0',
        'headline': 'C',
        'caption': 'D',
        'section': None,
      },
    ]
    source = self.open('news.json', json.dumps(entries), text_column='headline')
    self.assertEqual([source.captions(i) for i in (0, 1)], [('A',), ('C',)])
    # One has no class.
    np.testing.assert_array_equal(source.labels, [0, -1])

  def test_metadata_beside_pictures(self):
    path = self.root / 'images' / 'metadata.jsonl'
    rows = [
      {'file_name': 'pie/pie_0.jpg', 'text': ['a pie', 'sweet'], 'kind': 'x'},
      {'file_name': 'cake/cake_0.jpg', 'text': 'a cake', 'kind': 'y'},
    ]
    path.write_text('\n'.join(map(json.dumps, rows)))
    settings = SourceSettings('pairs', str(path.parent))
    source = registry.open_source(settings, 'train')
    self.assertEqual(source.class_names, ('cake', 'pie'))
    self.assertEqual(source.captions(0), ('a pie', 'sweet'))
    settings = SourceSettings('pairs', str(path.parent), label_column='kind')
    source = registry.open_source(settings, 'train')
    self.assertEqual(source.class_names, ('x', 'y'))

  @parameterized.parameters(
    ('a.csv', 'image,text,label\n7.jpg,,x\n', 'row 2: 7.jpg has no text'),
    ('a.csv', 'image,text,label\n7.jpg,a,x\n../b.jpg,b,x', 'missing image'),
    ('a.csv', 'one,two\n1,2\n', 'its columns are one, two; give a header'),
    ('a.json', '{"image": "7.jpg"}', 'it is no list of objects'),
    ('a.json', '[3]', 'entry 1 is no object'),
    ('a.jsonl', '{"image": ', 'not valid JSON'),
    ('a.json', '[{"image_id": 7, "text": "x"}]', "no column 'kind'"),
  )
  def test_mistakes_are_one_line(self, name, text, message):
    settings = {'label_column': 'kind'} if 'kind' in message else {}
    with self.assertRaises(UserError) as caught:
      self.open(name, text, max_corrupt_share=0.0, **settings)
    self.assertIn(message, str(caught.exception))
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_validation_pairs_are_others(self):
    images = str(self.root / 'images')
    tables = [str(self.root / name) for name in ('a.csv', 'b.csv')]
    settings = [
      SourceSettings(
        *('pairs', images),
        validation_path=path,
        annotations=tables[0],
        validation_annotations=table,
      )
      for path, table in ((f'{images}/', tables[0]), (images, tables[1]))
    ]
    with self.assertRaisesRegex(UserError, 'a.csv leads to the training pairs'):
      registry.check_apart(settings[0])
    # Two tables of one folder are as N24News has them.
    registry.check_apart(settings[1])

  def test_classes_of_validation_pairs_are_those_of_training_pairs(self):
    table = self.root / 'validation.csv'
    settings = dict(
      validation_path=str(self.root / 'images'),
      validation_annotations=str(table),
    )
    text = 'pie_0.jpg,a pie,pie\ncake_0.jpg,a cake,cake\n'
    opened = lambda: self.open('a.csv', text, split='test', **settings)
    table.write_text('pie_1.jpg,a pie,pie\n')
    source = opened()
    np.testing.assert_array_equal(source.labels, [1])
    self.assertEqual(source.class_names, ('cake', 'pie'))
    self.assertEqual(source.ledger.read['images'], 1)
    table.write_text('file_name,text,label\npie/pie_1.jpg,a pie,tart\n')
    with self.assertRaisesRegex(UserError, "class 'tart' is not one of the 2"):
      opened()
    # Where captions alone are learned, a class is of no use.
    text = 'image,text,label\n7.jpg,a pie,\n'
    source = opened()
    np.testing.assert_array_equal(source.labels, [-1])
    self.assertIsNone(source.class_names)

  def test_a_table_is_needed(self):
    settings = SourceSettings('pairs', str(self.root / 'images'))
    with self.assertRaisesRegex(UserError, 'annotations is empty, and config'):
      registry.open_source(settings, 'train')


class WordVectorsTest(absltest.TestCase):
  def test_texts_that_share_words_are_near(self):
    texts = ['red apple', 'green apple', 'fast car', 'fast red train'] * 3
    views = [word_vectors.drop_words(texts, 0.5, (0, view)) for view in (0, 1)]
    for view in views:
      for text, whole in zip(view, texts, strict=True):
        self.assertNotEmpty(text)
        self.assertContainsSubset(text.split(), whole.split())
    self.assertNotEqual(*views)
    found = word_vectors.fit(texts, [texts, views[0]], 3)
    self.assertEqual(found.shape, (12, 3, 3))
    np.testing.assert_allclose(found[:, 0], found[:, 1], atol=1e-5)
    similar = found[:, 0] @ found[:, 0].T
    self.assertGreater(similar[0, 1], similar[0, 2] + 0.3)
    with self.assertRaisesRegex(UserError, 'no words'):
      word_vectors.fit(['!', '?'], [], 3)


if __name__ == '__main__':
  absltest.main()
