"""The examples, and the code of the page on generators of one's own."""

import contextlib
import copy
import dataclasses
import io
import json
import pathlib
import re
import runpy
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
from PIL import Image

from adanat_jax.learning import ppo
from adanat_jax.runtime import environment
from support import notebooks

_ROOT = pathlib.Path(__file__).parents[1]


class QuickStartTest(absltest.TestCase):
  def test_three_lines_to_a_picture_and_four_to_an_inpainted_one(self):
    page = (_ROOT / 'README.md').read_text()
    first, second, *_ = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    lines = lambda code: len([*filter(None, code.splitlines())])
    self.assertEqual((lines(first), lines(second)), (3, 4))
    self.enter_context(mock.patch.object(environment, 'set_cache'))
    self.enter_context(contextlib.chdir(self.create_tempdir().full_path))
    white = np.zeros((16, 16), np.uint8)
    Image.fromarray(white).save('photo.png')
    white[:, 8:] = 255
    Image.fromarray(white).save('mask.png')
    for code in (first, second):
      exec(code, {})
    with Image.open('even.png') as even, Image.open('odd.png') as odd:
      self.assertEqual(even.size, (8 * 64 + 7 * 2, 64))
      self.assertEqual(odd.size, (64, 64))
      # Only the right half, but for its soft edge, may be other than black.
      self.assertFalse(np.asarray(odd)[:, : 6 * 4].any())
      self.assertTrue(np.asarray(odd)[:, 6 * 4 :].any())

  def test_every_cell_runs_and_shows_what_it_showed(self):
    path = _ROOT / 'examples' / 'quickstart.ipynb'
    self.assertLess(path.stat().st_size, 150_000)
    kept = json.loads(path.read_text())
    again = copy.deepcopy(kept)
    with mock.patch.object(environment, 'set_cache'):
      names = notebooks.execute(again)
    outputs = lambda cells: [cell.get('outputs') for cell in cells['cells']]
    for old, new in zip(outputs(kept), outputs(again), strict=True):
      kinds = [[[*out.get('data', out)] for out in x or ()] for x in (old, new)]
      self.assertEqual(*kinds)
    self.assertEqual(
      names['maskgit'].passes.tolist(), names['learned'].passes.tolist()
    )
    self.assertLess(names['own'].tokens.max(), 128)
    # What the mask keeps, beyond the soft edge of two pixels.
    picture, edited = names['picture'], names['edited']
    self.assertTrue((edited[:, 10:] == picture[10:]).all())
    self.assertEqual(repr(edited), '<Samples: [16, 16, 16, 1]>')


class OwnGeneratorTest(absltest.TestCase):
  def test_the_learned_schedule_is_the_best(self):
    path = _ROOT / 'examples' / 'own_generator.py'
    self.assertLessEqual(len(path.read_text().splitlines()), 60)
    with contextlib.redirect_stdout(io.StringIO()) as said:
      best, learned = runpy.run_path(str(path))['main'](
        train_steps=1000,
        iterations=30,
        batch_size=256,
        width=16,
        constants=dataclasses.replace(ppo.OURS, learning_rate=3e-3),
      )
    self.assertGreater(best, 0.05)
    self.assertGreater(learned, best)
    self.assertIn('learn 30/30', said.getvalue())

  def test_the_page(self):
    page = (_ROOT / 'docs' / 'own_generator.md').read_text()
    code = re.findall(r'^```python\n(.*?)^```', page, re.DOTALL | re.MULTILINE)
    code = '\n'.join(code).replace('iterations=200', 'iterations=1')
    names = {}
    exec(compile(code, 'own_generator.md', 'exec'), names)
    samples, n = names['samples'], names['N']
    self.assertEqual(samples.tokens.shape, (16, n))
    np.testing.assert_array_equal(samples.passes, [4] * 16)
    # The network that has its mask token in the middle sees it there.
    rows = np.arange(2 * n).reshape(2, n) % (names['K'] + 1)
    names['network'] = lambda tokens: jax.nn.one_hot(tokens, names['K'] + 1)
    law = names['wrapped'](rows)
    self.assertEqual(law.shape, (2, n, names['K']))
    known = rows < names['K']
    np.testing.assert_array_equal(law[known].argmax(-1), rows[known])
    self.assertFalse(law[~known].any())


if __name__ == '__main__':
  absltest.main()
