"""Raw images as examples: views, order, captions, files that cannot be read."""

import pathlib

from absl.testing import absltest
import numpy as np

from adanat_jax.data import images
from adanat_jax.data.raw_images import RawImages
from adanat_jax.data.sources import registry
from adanat_jax.data.sources.raw_source import SourceSettings
from adanat_jax.errors import UserError
from support import raw_files


class RawImagesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def open(self, corrupt=False):
    found = raw_files.image_folder(self.folder, per_class=3, corrupt=corrupt)
    settings = SourceSettings('image_folder', str(found.path))
    return found, registry.open_source(settings, 'train')

  def test_rows_are_what_the_files_hold(self):
    found, source = self.open()
    rows = RawImages(source, (16, 16)).take(np.array([[4, 0, 1], [8, 4, 7]]))
    self.assertEqual(rows['images'].shape, (2, 3, 16, 16, 3))
    self.assertEqual(rows['images'].dtype, np.uint8)
    example = source[7]
    pixels = images.decode(example.image, 16)
    np.testing.assert_array_equal(rows['images'][1, 2], pixels)
    self.assertEqual(rows['condition'][1, 2], found.labels[example.key])
    self.assertEqual(rows['condition'].dtype, np.int32)

  def test_the_second_half_of_the_index_is_mirrored(self):
    _, source = self.open()
    plain, mirrored = (
      RawImages(source, (16, 16)),
      RawImages(source, (16, 16), mirrored=True),
    )
    self.assertLen(plain, 9)
    self.assertLen(mirrored, 18)
    there = plain.take(np.arange(9))
    both = mirrored.take(np.arange(18))
    np.testing.assert_array_equal(both['images'][:9], there['images'])
    np.testing.assert_array_equal(
      both['images'][9:], there['images'][:, :, ::-1]
    )
    np.testing.assert_array_equal(both['condition'][9:], there['condition'])

  def test_a_neighbour_stands_for_a_file_that_cannot_be_read(self):
    found, source = self.open(corrupt=True)
    keys = [source[i].key for i in range(len(source))]
    broken = [i for i, key in enumerate(keys) if key in found.corrupt]
    self.assertNotEmpty(broken)
    examples = RawImages(source, (16, 16))
    with self.assertLogs('absl', 'WARNING') as log:
      first = examples.take(np.arange(len(source)))
      again = examples.take(np.arange(len(source)))
    self.assertLen(log.output, len(broken))
    np.testing.assert_array_equal(first['images'], again['images'])
    for i in broken:
      stands_in = next(
        j % len(keys)
        for j in range(i, i + len(keys))
        if j % len(keys) not in broken
      )
      np.testing.assert_array_equal(
        first['images'][i], first['images'][stands_in]
      )

  def test_captions_go_round_with_the_index(self):
    coco = raw_files.coco(self.folder)
    settings = SourceSettings(
      'coco', str(coco.path), annotations=str(coco.annotations)
    )
    source = registry.open_source(settings, 'train')
    asked = []

    def tokenize(captions, keys):
      asked.extend(zip(captions, keys, strict=True))
      return np.zeros((len(captions), 77), np.int32)

    rows = RawImages(source, (16, 16), tokenize=tokenize).take(np.array([0, 3]))
    self.assertEqual(rows['ids'].shape, (2, 77))
    self.assertNotIn('condition', rows)
    expected = [(source[i].captions[i], source[i].key) for i in (0, 3)]
    self.assertEqual(asked, expected)
    # The same is known without reading an image.
    found = source.key_at(3), source.captions(3)
    self.assertEqual(found, (source[3].key, source[3].captions))

  def test_captions_alone_are_no_images(self):
    table = raw_files.cc3m_prompts(self.folder)
    settings = SourceSettings(
      'cc3m_tsv',
      str(raw_files.cc3m_tsv(self.folder / 'train').path),
      validation_path=str(table.path),
    )
    source = registry.open_source(settings, 'test')
    with self.assertRaisesRegex(
      UserError, 'cc3m_val.tsv holds captions and no'
    ):
      RawImages(source, (16, 16), tokenize=list)


if __name__ == '__main__':
  absltest.main()
