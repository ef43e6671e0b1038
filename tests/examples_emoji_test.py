"""The example that makes a folder of emoji from packages of npm."""

import io
import json
import pathlib
import runpy
import tarfile

from absl.testing import absltest
import numpy as np
from PIL import Image

from adanat_jax.data.sources import registry
from adanat_jax.data.sources.raw_source import SourceSettings
from support import configs

_SCRIPT = configs.ROOT / 'examples' / 'emoji_pictures.py'
_RUNNING = '1F3C3'
# Name, code points, short name, category: a runner, a woman who runs to the
# right, a flag, and a skin tone, which is no emoji by itself.
_EMOJI = (
  ('RUNNER', _RUNNING, 'runner', 'People & Body'),
  (
    *('WOMAN RUNNING', f'{_RUNNING}-200D-2640-FE0F-200D-27A1-FE0F'),
    *('woman-running', 'People & Body'),
  ),
  ('Chile Flag', '1F1E8-1F1F1', 'flag-cl', 'Flags'),
  ('SKIN TONE', '1F3FB', 'skin-tone-2', 'Component'),
)


def _package(path: pathlib.Path, vendor: str) -> pathlib.Path:
  """A package as npm has it, with a transparent picture of each emoji."""
  entries, members = [], {}
  for name, unified, short_name, category in _EMOJI:
    image = f'{unified.lower()}.png'
    entries.append(
      dict(name=name, unified=unified, short_name=short_name)
      | dict(category=category, image=image, subcategory='person-activity')
    )
    png = io.BytesIO()
    Image.new('RGBA', (64, 64), (255, 0, 0, 0)).save(png, 'PNG')
    members[f'img/{vendor}/64/{image}'] = png.getvalue()
  # What a vendor has not drawn.
  entries.append(dict(entries[0], image='none.png', unified='1F600'))
  members['emoji.json'] = json.dumps(entries).encode()
  package = {'name': f'emoji-datasource-{vendor}'}
  members['package.json'] = json.dumps(package).encode()
  with tarfile.open(path, 'w:gz') as tar:
    for name, content in members.items():
      info = tarfile.TarInfo(f'package/{name}')
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return path


class EmojiPicturesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.script = runpy.run_path(str(_SCRIPT))

  def test_a_package_becomes_classes_captions_and_an_attribution(self):
    packages = [
      _package(self.root / f'{vendor}.tgz', vendor)
      for vendor in ('google', 'twitter')
    ]
    output = self.root / 'emoji'
    counts = self.script['main'](packages, output)
    # Three emoji of two vendors.
    self.assertEqual(sum(counts.values()), 6)
    pictures = [*output.glob('*/*/*.png')]
    self.assertLen(pictures, 6)
    splits: dict[str, set[str]] = {}
    for picture in pictures:
      emoji = self.script['family'](picture.name.rpartition('-')[0].upper())
      splits.setdefault(emoji, set()).add(picture.parts[-3])
    # Both vendors, and both runners, are on one side.
    self.assertEqual([*splits], ['1F3C3', '1F1E8-1F1F1'])
    self.assertEqual([len(where) for where in splits.values()], [1, 1])
    text = (output / 'ATTRIBUTION.md').read_text()
    self.assertIn('`*-google.png`: Noto Emoji, (c) Google', text)
    self.assertIn('CC BY 4.0', text)
    for condition, kwargs in (('class', {}), ('text', {'num_classes': 0})):
      settings = SourceSettings(
        *('image_folder', str(output / 'train')),
        condition=condition,
        **kwargs,
      )
      source = registry.open_source(settings, 'train')
      self.assertLen(source, 6)
    captions = [json.loads(x) for x in open(output / 'train/metadata.jsonl')]
    self.assertEqual(
      [row['text'] for row in captions[:3]],
      [['runner'], ['woman running'], ['chile flag']],
    )
    # Pairs of a picture and its names, by a finer class.
    settings = SourceSettings(
      'pairs', str(output / 'train'), label_column='subcategory'
    )
    source = registry.open_source(settings, 'train')
    self.assertEqual(source.class_names, ('person-activity',))
    self.assertEqual(source.captions(1), ('woman running',))
    with self.assertRaisesRegex(SystemExit, 'emoji is there already'):
      self.script['main'](packages, output)

  def test_one_in_ten_families_is_held_out(self):
    held = self.script['is_held_out']
    share = np.mean([held(f'{code:X}') for code in range(0x1F300, 0x1F700)])
    self.assertAlmostEqual(share, 0.1, delta=0.03)
    # A man, a woman and anybody cook.
    cooks = [f'1F{code}-200D-1F373' for code in ('468', '469', '9D1')]
    self.assertLen({self.script['family'](cook) for cook in cooks}, 1)
    self.assertEqual(self.script['family']('2640-FE0F'), '2640-FE0F')

  def test_unknown_and_repeated_vendors_are_refused_before_all(self):
    google, again, apple = (
      _package(self.root / name, vendor)
      for name, vendor in (
        *(('a.tgz', 'google'), ('b.tgz', 'google'), ('c.tgz', 'apple')),
      )
    )
    for other, message in (
      (apple, "c.tgz: pictures of 'apple' have no open licence"),
      (again, "b.tgz: .*a.tgz has pictures of 'google', too"),
    ):
      with self.assertRaisesRegex(SystemExit, message):
        self.script['main']([google, other], self.root / 'emoji')
      self.assertFalse((self.root / 'emoji').exists())


if __name__ == '__main__':
  absltest.main()
