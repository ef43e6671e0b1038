"""What the app does, without Gradio; and the app itself where Gradio is."""

import dataclasses
import html
import importlib.util
import io
import json
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import unittest
from unittest import mock

from absl.testing import absltest
import numpy as np
from PIL import Image
import setuptools

import adanat_jax
from adanat_jax.demo import __main__ as demo, app
from adanat_jax.errors import UserError
from adanat_jax.runtime import environment

_ROOT = pathlib.Path(__file__).parents[1]
_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')


def data_of(page):
  """What a page that plays decodes holds."""
  return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


class ActionsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.generator = adanat_jax.load('digits', compile_cache=False)

  def test_offers_what_there_is(self):
    self.assertEqual(app.classes_of(self.generator), ['even', 'odd'])
    policies = app.policies_of(self.generator)
    self.assertEqual(policies[:2], ['learned', 'maskgit'])
    bare = dataclasses.replace(
      self.generator, agents={}, class_names=(), schedules={'mine': None}
    )
    self.assertEqual(app.classes_of(bare), ['0', '1'])
    self.assertEqual(app.policies_of(bare)[:2], ['mine', 'maskgit'])
    self.assertEqual(app._labels(bare, '1', 2), [1, 1])
    texts = dataclasses.replace(self.generator, class_names=(), num_classes=0)
    self.assertEqual(app.classes_of(texts), [])
    self.assertEqual(app._labels(texts, '7', 2), ['7', '7'])

  def test_generates_side_by_side(self):
    page = app.generate(self.generator, 'odd', 4, 5, ['maskgit', 'learned'])
    data = data_of(page)
    self.assertEqual(data['samples'], ['odd'] * 8)
    labels = [schedule['label'] for schedule in data['schedules']]
    self.assertEqual(labels, ['MaskGIT, unguided', 'AdaNAT'])
    self.assertEqual(data['step'], 4)
    other = data_of(app.generate(self.generator, 'even', 4, 5, ['maskgit']))
    sprites = [d['schedules'][0]['sprites'][-1] for d in (data, other)]
    self.assertNotEqual(*sprites)
    for change, message in (
      (('odd', 2, 5, []), 'no schedule is chosen'),
      (('odd', 3, 5, ['learned']), 'no policy was learned for num_steps=3'),
      (('both', 2, 5, ['learned']), "labels hold 'both'; classes are 0 to 1"),
      (('odd', 2, -1, ['learned']), 'seed is -1'),
    ):
      with self.assertRaisesRegex(UserError, message):
        app.generate(self.generator, *change)

  def test_redraws_what_is_painted(self):
    picture = app.example(self.generator, 'even', 3)
    self.assertEqual(picture.size, (512, 512))
    shown = np.asarray(picture.convert('RGBA'))
    painted = np.zeros((512, 512), bool)
    painted[:, 256:] = True
    asked = 'odd', 4, 0, 'learned'
    results = app.redraw(self.generator, shown, painted, *asked)
    self.assertLen(results, 1 + 8)
    kept, *drawn = [np.asarray(image)[::32, ::32] for image, _ in results]
    given = np.asarray(picture)[::32, ::32]
    for image in (kept, *drawn):
      # What is not within half a token of the mask, as it was.
      np.testing.assert_allclose(image[:, :6].astype(int), given[:, :6], atol=1)
    self.assertLen(np.unique(kept[:, 8:]), 1)
    self.assertGreater(len(np.unique(drawn, axis=0)), 1)
    # A colour picture of another shape is cut to the middle.
    wide = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    mask = np.ones((60, 90), bool)
    self.assertLen(app.redraw(self.generator, wide, mask, *asked), 1 + 8)
    with self.assertRaisesRegex(UserError, 'mask is False everywhere'):
      app.redraw(self.generator, shown, ~painted & painted, *asked)
    with self.assertRaisesRegex(UserError, 'there is no picture'):
      app.redraw(self.generator, None, painted, *asked)

  def test_reads_what_an_editor_returns(self):
    self.assertIsNone(app._editor_parts(None)[0])
    self.assertIsNone(app._editor_parts({'background': None})[0])
    layer = np.zeros((2, 3, 4), np.uint8)
    layer[1, 2] = (9, 9, 9, 255)
    value = {'background': layer + 1, 'layers': [layer]}
    picture, painted = app._editor_parts(value)
    self.assertIs(picture, value['background'])
    np.testing.assert_array_equal(np.argwhere(painted), [[1, 2]])

  def test_curves_are_those_of_the_schedule(self):
    found = app.curves(self.generator, 'odd', 4, 0, 'maskgit')
    table = self.generator.schedule('maskgit', 4).policy
    for name, numbers in found['curves'].items():
      expected = getattr(table, name)
      np.testing.assert_allclose(numbers, expected, atol=1e-4)
      self.assertLessEqual(max(numbers), found['most'][name])
    self.assertEqual(found['start'], found['curves'])
    learned = app.curves(self.generator, 'odd', 4, 0, 'learned')['curves']
    samples = self.generator.sample([1] * 8, 4, record=True)
    means = np.asarray(samples.trajectory.values.mask_ratio).mean(1)
    np.testing.assert_allclose(learned['mask_ratio'], means, atol=1e-4)
    with self.assertRaisesRegex(UserError, 'threshold has a bound instead of'):
      app.curves(self.generator, 'odd', 4, 0, 'threshold')

  def test_follows_the_curves(self):
    asked = 'odd', 4, 0, 'maskgit'
    numbers = app.curves(self.generator, *asked)['curves']
    same = data_of(app.follow(self.generator, numbers, *asked))['schedules']
    self.assertEqual(same[0]['label'], 'your curves')
    self.assertEqual(same[0]['sprites'], same[1]['sprites'])
    moved = {**numbers, 'guidance_scale': [2.0] * 4}
    other = data_of(app.follow(self.generator, moved, *asked))['schedules']
    self.assertEqual(other[0]['passes'][-1], [8] * 8)
    self.assertEqual(other[1], same[1])
    for wrong, message in (
      ({}, 'the curves must have the lists mask_ratio'),
      ({**numbers, 'mask_ratio': [2.0] * 4}, 'mask_ratio holds 2.0'),
      ({k: v[:3] for k, v in numbers.items()}, 'has 3 steps, num_steps is 4'),
    ):
      with self.assertRaisesRegex(UserError, message):
        app.follow(self.generator, wrong, *asked)

  def test_without_gradio_names_the_extra(self):
    self.enter_context(mock.patch.object(environment, 'set_cache'))
    self.enter_context(mock.patch.dict(sys.modules, {'gradio': None}))
    said = self.enter_context(mock.patch('sys.stderr', io.StringIO()))
    with self.assertRaises(SystemExit) as caught:
      demo.main(['--serve'])
    self.assertEqual(caught.exception.code, 2)
    (line,) = said.getvalue().splitlines()
    self.assertIn("pip install 'adanat_jax[demo]'", line)

  def test_is_part_of_a_wheel(self):
    with mock.patch.object(setuptools, 'setup') as setup:
      runpy.run_path(str(_ROOT / 'setup.py'))
    patterns = setup.call_args.kwargs['package_data']['adanat_jax']
    path = app._CURVES.relative_to(_ROOT / 'adanat_jax')
    self.assertIn(str(path), patterns)


@unittest.skipUnless(
  importlib.util.find_spec('gradio'), 'Gradio is not installed'
)
class ServerTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.generator = adanat_jax.load('digits', compile_cache=False)
    cls.app = app.build(cls.generator)
    cls.addClassCleanup(cls.app.close)
    _, cls.url, _ = app.launch(cls.app)

  def test_answers(self):
    import gradio_client

    self.assertStartsWith(self.url, 'http://127.0.0.1:')
    self.assertIsNone(self.app.share_url)
    self.assertFalse(self.app.analytics_enabled)
    client = gradio_client.Client(self.url, verbose=False)
    frame = client.predict('odd', 2, 5, ['learned'], api_name='/generate')
    expected = app.generate(self.generator, 'odd', 2, 5, ['learned'])
    self.assertIn(html.escape(expected), frame)
    asked = 'odd', 2, 0, 'maskgit'
    curves = client.predict(*asked, api_name='/curves')
    self.assertEqual(curves, app.curves(self.generator, *asked))
    frame = client.predict(curves, *asked, api_name='/follow')
    expected = app.follow(self.generator, curves['curves'], *asked)
    self.assertIn(html.escape(expected), frame)
    drawn = client.predict('odd', 0, api_name='/example')
    with Image.open(drawn['background']) as picture:
      np.testing.assert_array_equal(
        picture.convert('L'), app.example(self.generator, 'odd', 0)
      )
      layer = np.zeros((*picture.size, 4), np.uint8)
    path = self.create_tempdir().full_path + '/layer.png'
    given = {'background': gradio_client.handle_file(drawn['background'])}
    for painted in (False, True):
      layer[:256, :256] = 255 * painted
      Image.fromarray(layer).save(path)
      value = {**given, 'layers': [gradio_client.handle_file(path)]}
      value['composite'] = None
      if not painted:
        with self.assertRaisesRegex(Exception, 'mask is False everywhere'):
          client.predict(value, *asked, api_name='/edit')
    results = client.predict(value, *asked, api_name='/edit')
    captions = [result['caption'] for result in results]
    self.assertEqual(captions[:2], ['what is kept', 'sample 1'])
    with Image.open(results[0]['image']) as kept:
      kept = np.asarray(kept.convert('L'))
    self.assertLen(np.unique(kept[:256, :256]), 1)
    self.assertGreater(len(np.unique(kept[256:])), 1)

  def test_captions_are_typed(self):
    changes = {'class_names': (), 'num_classes': 0}
    made = app.build(dataclasses.replace(self.generator, **changes))
    parts = made.config['components']
    labels = [part['props'].get('label') for part in parts]
    self.assertEqual(labels.count('Caption'), 3)
    self.assertNotIn('Class', labels)

  def test_a_port_that_is_taken(self):
    port = int(self.url.rstrip('/').rpartition(':')[2])
    with self.assertRaisesRegex(UserError, r'127.0.0.1: .*another --port'):
      app.serve(self.generator, '127.0.0.1', port)

  def test_in_a_browser(self):
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
      self.skipTest(f'none of {", ".join(_BROWSERS)} is installed')
    made = subprocess.run(
      [
        *(browser, '--headless', '--no-sandbox', '--disable-gpu'),
        *('--timeout=20000', '--dump-dom', self.url),
      ],
      capture_output=True,
      text=True,
      check=True,
      timeout=120,
    )
    for text in ('Generate', 'Edit', 'Schedule', '16 tokens', 'Seed'):
      self.assertIn(text, made.stdout)


if __name__ == '__main__':
  absltest.main()
