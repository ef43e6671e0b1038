"""The examples, and the code of the page on generators of one's own."""

import contextlib
import dataclasses
import io
import pathlib
import re
import runpy

from absl.testing import absltest
import jax
import numpy as np

from adanat_jax.learning import ppo

_ROOT = pathlib.Path(__file__).parents[1]


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
