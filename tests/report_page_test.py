"""The page that plays decodes: one whole file, true to what happened."""

import base64
import html.parser
import io
import json
import pathlib
import runpy
import shutil
import subprocess
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image
import setuptools

import adanat_jax
from adanat_jax.decoding.step import effective_temperature
from adanat_jax.report import page, pictures
from adanat_jax.sampling import replay

_ROOT = pathlib.Path(__file__).parents[1]
_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
_NAMES = ('even', '</script><b>"&', 'odd')


class _Reader(html.parser.HTMLParser):
  """Elements with their attributes, the text within each kind of them."""

  def __init__(self, text):
    super().__init__()
    self.elements, self.texts, self._open = [], {}, []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.elements.append((tag, dict(attrs)))
    if tag not in ('meta', 'link', 'input'):  # They are never closed.
      self._open.append((tag, dict(attrs).get('id')))

  def handle_endtag(self, tag):
    assert self._open.pop()[0] == tag, tag

  def handle_data(self, data):
    where = self._open[-1] if self._open else None
    self.texts[where] = self.texts.get(where, '') + data


def _replay(num_steps=2, size=4, channels=1, width=None):
  """Three samples of four tokens; the first step reveals sample + 1 of them."""
  rng = np.random.default_rng(num_steps)
  shape = (num_steps, 3, size, width or size, channels)
  masked = np.zeros((num_steps, 3, 4), bool)
  masked[0] = np.arange(4) > np.arange(3)[:, None]
  values = rng.random((num_steps, 3))
  values[1, 2] = np.nan
  return page.Replay(
    label=f'<i>{num_steps}</i>',
    images=rng.random(shape).astype(np.float32),
    masked=masked,
    values={'mask ratio': values},
    passes=2 * np.arange(1, 1 + num_steps)[:, None] + np.arange(3),
  )


class PageTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'page.html'

  def _save(self, *replays, title='A & B'):
    page.save(self.path, replays, _NAMES, title)
    reader = _Reader(self.path.read_text('utf-8'))
    return reader, json.loads(reader.texts['script', 'data'])

  def test_holds_what_happened(self):
    made = _replay()
    reader, data = self._save(made, _replay(num_steps=3))
    self.assertEqual(reader.texts['title', None], 'A & B')
    self.assertEqual(data['samples'], [*_NAMES])
    self.assertEqual((data['grid'], data['size']), ([2, 2], [4, 4]))
    self.assertLen(data['schedules'], 2)
    found = data['schedules'][0]
    self.assertEqual(found['label'], '<i>2</i>')
    self.assertEqual(found['known'], [['1000', '1100', '1110'], ['1111'] * 3])
    self.assertEqual(found['passes'], [[2, 3, 4], [4, 5, 6]])
    numbers = found['values']['mask ratio']
    self.assertIsNone(numbers[1][2])
    np.testing.assert_allclose(
      np.array(numbers, float), made.values['mask ratio'], rtol=1e-3
    )
    for uri, images in zip(found['sprites'], made.images, strict=True):
      kind, code = uri.split(',')
      self.assertEqual(kind, 'data:image/png;base64')
      with Image.open(io.BytesIO(base64.b64decode(code))) as sprite:
        pixels = np.asarray(sprite).reshape(4, 3, 4).swapaxes(0, 1)
      np.testing.assert_array_equal(pixels, pictures.to_uint8(images[..., 0]))

  def test_needs_no_network_and_escapes_text(self):
    reader, _ = self._save(_replay(), title='</title><script src="//x.org">')
    tags = [tag for tag, _ in reader.elements]
    self.assertEqual(tags.count('script'), 2)
    self.assertNotIn('b', tags)
    self.assertNotIn('i', tags)
    for _, attributes in reader.elements:
      self.assertNotIn('src', attributes)
      self.assertIn(attributes.get('href', 'data:,'), ('data:,',))
    text = self.path.read_text('utf-8')
    self.assertNotRegex(text, r'https?:|@import|url\(|fetch\(|\{\{')
    self.assertIn("default-src 'none'", text)

  def test_controls_have_names(self):
    reader, _ = self._save(_replay())
    for tag, attributes in reader.elements:
      if tag == 'button':
        text = reader.texts[tag, attributes['id']]
        self.assertRegex(text + attributes.get('aria-label', ''), '[a-z]')
      if tag in ('input', 'select'):
        self.assertIn(attributes['id'].title(), reader.texts['label', None])
    status = dict(reader.elements[::-1])['output']
    self.assertEqual(status['aria-live'], 'polite')

  def test_large_pictures_are_shrunk(self):
    _, data = self._save(*[_replay(8, size=256, channels=3)] * 2)
    self.assertLess(self.path.stat().st_size, 2e6)
    self.assertBetween(data['size'][0], 64, 128)

  def test_wide_pictures_keep_their_proportions(self):
    _, data = self._save(_replay(size=200, width=800, channels=3))
    self.assertEqual(data['grid'], [1, 4])
    height, width = data['size']
    self.assertAlmostEqual(width / height, 4, delta=0.05)
    self.assertBetween(height * width * 18, 1_000_000, 1_200_000)

  def test_is_part_of_a_wheel(self):
    with mock.patch.object(setuptools, 'setup') as setup:
      runpy.run_path(str(_ROOT / 'setup.py'))
    patterns = setup.call_args.kwargs['package_data']['adanat_jax']
    self.assertIn(
      str(page.TEMPLATE.relative_to(_ROOT / 'adanat_jax')), patterns
    )

  def test_in_a_browser(self):
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
      self.skipTest(f'none of {", ".join(_BROWSERS)} is installed')
    self._save(_replay(), _replay(num_steps=3))
    made = subprocess.run(
      [
        *(browser, '--headless', '--no-sandbox', '--disable-gpu'),
        *('--virtual-time-budget=5000', '--dump-dom'),
        f'{self.path.as_uri()}#step=1&sample=1',
      ],
      capture_output=True,
      text=True,
      check=True,
      timeout=120,
    )
    reader = _Reader(made.stdout)
    self.assertEqual(reader.texts['output', 'status'], 'Step 1 of 3')
    labels = [a.get('aria-label', '') for t, a in reader.elements]
    self.assertIn(
      f'<i>3</i>, 3 steps: sample 2, {_NAMES[1]}, after 1 of 3 steps, 2 of 4'
      ' tokens known, 2 more than before',
      labels,
    )
    self.assertNotIn('b', [tag for tag, _ in reader.elements])


class ReplayTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.generator = adanat_jax.load('digits', compile_cache=False)

  def test_a_generator_writes_pages(self):
    path = pathlib.Path(self.create_tempdir().full_path) / 'page.html'
    self.generator.save_page(path, [0, 1, 1])
    reader = _Reader(path.read_text('utf-8'))
    data = json.loads(reader.texts['script', 'data'])
    self.assertEqual(data['samples'], ['even', 'odd', 'odd'])
    labels = [schedule['label'] for schedule in data['schedules']]
    self.assertEqual(labels, ['MaskGIT, unguided', 'AdaNAT'])
    samples = self.generator.sample([0, 1, 1], 4, record=True)
    masked = samples.trajectory.tokens == self.generator.nat.codebook_size
    known = [[''.join('10'[c] for c in row) for row in m] for m in masked * 1]
    self.assertEqual(data['schedules'][1]['known'][:-1], known[:-1])

  def test_says_what_the_trajectory_says(self):
    generator = self.generator
    mask = generator.nat.codebook_size
    for policy in ('learned', 'maskgit', 'entropy_bound(bound=2.0)'):
      with self.subTest(policy):
        schedule = generator.schedule(policy, 4)
        samples = generator.sample([0, 1, 0], 4, policy=schedule, record=True)
        trajectory = samples.trajectory
        made = replay.make(generator, schedule, samples)
        np.testing.assert_array_equal(made.passes[-1], samples.passes)
        np.testing.assert_array_equal(
          made.masked[:-1], trajectory.tokens[:-1] == mask
        )
        self.assertFalse(made.masked[-1].any())
        # The last step's pictures are the samples.
        np.testing.assert_allclose(made.images[-1], samples.images, atol=1e-5)
        self.assertLen(made.values, 5)
        needed = ~np.isnan(made.values['effective temperature'])
        steps = samples.passes // (1 + schedule.guided)
        np.testing.assert_array_equal(needed.sum(0), steps)
        expected = effective_temperature(trajectory.values, schedule.options)
        np.testing.assert_allclose(
          made.values['effective temperature'][needed],
          np.asarray(expected)[needed],
        )
        scales = made.values['guidance scale'][needed]
        self.assertEqual(scales.any(), schedule.guided)


if __name__ == '__main__':
  absltest.main()
