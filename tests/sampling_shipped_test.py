"""The generator that comes with the package: it is whole, and still good."""

import dataclasses
import json
import pathlib
import runpy
import shutil
from unittest import mock

from absl.testing import absltest, parameterized
import chex
import numpy as np
from PIL import Image
import setuptools

import adanat_jax
from adanat_jax.data import digits
from adanat_jax.demo import __main__ as demo
from adanat_jax.runtime import environment
from adanat_jax.sampling import folder

_ROOT = pathlib.Path(__file__).parents[1]
_FOLDER = _ROOT / 'adanat_jax/shipped/digits'
# What the generator drew of ['even', 'odd'] * 4 with seed 7 when it was added.
_GOLDEN = _ROOT / 'tests/data/shipped-digits.json'
_COUNT = 64


def small(images):
  """Means of 2x2 pixels, which is what the digits were: float[B, 64]."""
  return images.reshape(-1, 8, 2, 8, 2).mean((2, 4)).reshape(-1, 64)


class ShippedTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.generator = adanat_jax.load('digits', compile_cache=False)
    cls.real = small(digits.load().train_images)

  def test_is_small_and_part_of_a_wheel(self):
    size = sum(path.stat().st_size for path in _FOLDER.iterdir())
    self.assertLess(size, 4e6)
    self.assertEqual([*self.generator.agents], [2, 4, 8])
    self.assertEqual(self.generator.class_names, ('even', 'odd'))
    with mock.patch.object(setuptools, 'setup') as setup:
      runpy.run_path(str(_ROOT / 'setup.py'))
    package = _ROOT / 'adanat_jax'
    patterns = setup.call_args.kwargs['package_data']['adanat_jax']
    packed = {path for pattern in patterns for path in package.glob(pattern)}
    self.assertContainsSubset(
      {package / 'py.typed', *_FOLDER.iterdir()}, packed
    )

  def test_its_networks_fit_as_those_of_a_stranger(self):
    place = pathlib.Path(self.create_tempdir().full_path) / 'copy'
    shutil.copytree(_FOLDER, place)
    copy = adanat_jax.load(place, compile_cache=False)
    for found, ours in (
      (copy.nat_params, self.generator.nat_params),
      (copy.tokenizer_params, self.generator.tokenizer_params),
      (copy.agents[4].params, self.generator.agents[4].params),
    ):
      chex.assert_trees_all_equal(found, ours)

  def test_a_path_goes_before_the_name(self):
    here = pathlib.Path(self.create_tempdir().full_path)
    self.assertEqual(folder.find('digits'), _FOLDER)
    self.assertEqual(folder.find(here), here)
    self.assertEqual(folder.find('runs/nowhere'), pathlib.Path('runs/nowhere'))

  @parameterized.parameters(2, 4, 8)
  def test_draws_what_it_drew(self, num_steps):
    expected = json.loads(_GOLDEN.read_text())[str(num_steps)]
    samples = self.generator.sample(['even', 'odd'] * 4, num_steps, seed=7)
    # Another processor may round one draw in a hundred the other way.
    self.assertGreater(np.mean(samples.tokens == np.array(expected)), 0.9)

  def test_how_many_are_asked_for_does_not_show(self):
    many = self.generator.sample(['even', 'odd'] * 8, 4, seed=7)
    few = self.generator.sample(['even', 'odd', 'even'], 4, seed=7)
    np.testing.assert_array_equal(few.tokens, many.tokens[:3])
    np.testing.assert_array_equal(few.images, many.images[:3])

  # The margins of the card.
  @parameterized.parameters((2, 0.95), (4, 0.95), (8, 1.0))
  def test_learned_is_nearer_to_real_images(self, num_steps, margin):
    distance, spread = {}, {}
    for policy in ('maskgit', 'learned'):
      labels = np.arange(_COUNT) % 2
      # Batches of the size that `test_draws_what_it_drew` has.
      samples = self.generator.sample(
        labels, num_steps, 0, policy, batch_size=8
      )
      images = small(samples.images)
      squares = ((images[:, None] - self.real[None]) ** 2).sum(-1)
      distance[policy] = np.sqrt(squares.min(axis=1)).mean()
      spread[policy] = images.var(axis=0).sum()
    self.assertLess(distance['learned'], margin * distance['maskgit'])
    # Images that are all alike would be near, too.
    self.assertGreater(spread['learned'], 0.95 * spread['maskgit'])

  def test_demonstration(self):
    self.enter_context(mock.patch.object(environment, 'set_cache'))
    path = pathlib.Path(self.create_tempdir().full_path) / 'demo.png'
    agents = {4: self.generator.agents[4]}
    fewer = dataclasses.replace(self.generator, agents=agents)
    with mock.patch.object(demo.loading, 'load', return_value=fewer) as load:
      demo.main([f'--output={path}'])
    load.assert_called_once_with('digits')
    with Image.open(path) as image:
      self.assertGreater(min(image.size), 200)
    self.assertLess(path.with_suffix('.html').stat().st_size, 2e6)
    with self.assertRaises(SystemExit) as caught:
      demo.main(['--generator=nowhere'])
    self.assertEqual(caught.exception.code, 2)


if __name__ == '__main__':
  absltest.main()
