"""The sampler as a file: plain JAX draws what the generator draws."""

import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

import adanat_jax
from adanat_jax.errors import UserError
from adanat_jax.models.captions import VectorTable
from adanat_jax.models.clip import CLIPText
from adanat_jax.models.enat import ENAT
from adanat_jax.models.nat import NAT
from adanat_jax.sampling import program, stablehlo
from adanat_jax.sampling.captions import CaptionEncoder, VectorEncoder
from support import children, evaluating
from support.random_weights import random_variables

_PAGE = pathlib.Path(__file__).parents[1] / 'docs/library.md'
# Runs what docs/library.md says, then all other files in the directory.
_READER = """
import sys
own = ('adanat_jax', 'flax', 'optax', 'orbax')
for name in own:
  sys.modules[name] = None  # An import of it fails.
{documented}
assert not any(sys.modules[name] for name in own)
import pathlib
np.savez('documented.npz', **samples)
for path in pathlib.Path().glob('*.in.npz'):
  name = path.name.removesuffix('.in.npz')
  data = bytearray(pathlib.Path(f'{{name}}.stablehlo').read_bytes())
  arguments = np.load(path)
  np.savez(f'{{name}}.npz', **export.deserialize(data).call(
      arguments['labels'], arguments['seed'], arguments['first']))
"""


def enat_generator(generator):
  """The same with an ENAT, of which a table takes tokens out of the grid."""
  nat = generator.nat
  module = ENAT(nat.codebook_size, nat.num_tokens, 8, 1, 1, 2, num_classes=2)
  tokens = jnp.zeros((1, nat.num_tokens), jnp.int32)
  params = random_variables(module, tokens, jnp.zeros(1, jnp.int32))['params']
  return dataclasses.replace(generator, nat=module, nat_params=params)


def text_generator(generator):
  """The same with captions, and a tower that reads them."""
  nat = generator.nat
  module = NAT(nat.codebook_size, nat.num_tokens, 8, 0, 2, text_width=8)
  states = jnp.zeros((1, 77, 8))
  tokens = jnp.zeros((1, nat.num_tokens), jnp.int32)
  tower = CLIPText(8, 1, 2, 16, 4, 'gelu')
  ids = jnp.zeros((1, 77), jnp.int32)
  params = random_variables(tower, ids)['params']
  return dataclasses.replace(
    generator,
    nat=module,
    nat_params=random_variables(module, tokens, states)['params'],
    num_classes=0,
    null_condition=np.linspace(-1, 1, 77 * 8, dtype=np.float32).reshape(77, 8),
    encode_captions=CaptionEncoder(tower, params),
  )


def careful(step, observation, keys, carry):
  """A policy of a user's, of what it sees."""
  values = adanat_jax.PolicyValues(
    mask_ratio=0.5 * observation.masked.mean(-1),
    sampling_temperature=1.0,
    masking_temperature=observation.entropy.mean(-1),
    guidance_scale=0.5 * step,
  )
  return values, (), carry


class ExportedTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    home = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.home = pathlib.Path(home)
    cls.shipped = adanat_jax.load('digits', compile_cache=False)
    small = evaluating.random_generator(evaluating.tiny_config())
    cls.expected = {}
    cls._export('sampler', cls.shipped, 4, 16, seed=2**32 - 1)
    cls._export('given', small, 3, 8, policy='halton', guidance_scale=1.5)
    bound = 'entropy_bound(bound=100, guidance_scale=1)'
    ahead = 'maskgit(candidates=2, guidance_scale=1.0)'
    cls._export('ahead', small, 3, 8, policy=ahead)
    cls._export('adaptive', small, 8, 8, policy=bound)
    cls._export('enat', enat_generator(small), 3, 8, policy='maskgit')
    cls._export('captions', text_generator(small), 2, 8, policy=careful)
    documented = re.search(
      r'```python\n([^`]*export.deserialize[^`]*)```', _PAGE.read_text()
    )[1]
    process = subprocess.run(
      [sys.executable, '-c', _READER.format(documented=documented)],
      cwd=cls.home,
      env=children.environment(1),
      capture_output=True,
      text=True,
      timeout=600,
      check=False,
    )
    assert not process.returncode, process.stderr[-3000:]

  @classmethod
  def _export(cls, name, generator, num_steps, count, seed=3, **options):
    """Writes a file and what is asked of it, and notes the answer."""
    generator.export(cls.home / f'{name}.stablehlo', num_steps, **options)
    labels = asked = np.arange(2 * count, dtype=np.int32) % 2
    if tower := generator.encode_captions:
      rng = np.random.default_rng(0)
      labels = rng.integers(0, 8, (2 * count, 77)).astype(np.int32)
      asked = tower.module.apply({'params': tower.params}, labels).states
    samples = generator.sample(asked, num_steps, seed, **options)
    cls.expected[name] = samples, count
    np.savez(
      cls.home / f'{name}.in.npz',
      labels=labels[count:],
      seed=np.uint32(seed),
      first=np.uint32(count),
    )

  def _check(self, name, expected, count, **options):
    found = np.load(self.home / f'{name}.npz')
    self.assertCountEqual(found, ('images', 'tokens', 'passes'))
    for field in ('tokens', 'passes'):
      np.testing.assert_array_equal(
        found[field], getattr(expected, field)[count:]
      )
    np.testing.assert_allclose(
      found['images'], expected.images[count:], atol=1e-6
    )
    # Samples that are all alike would hide which is which.
    self.assertGreater(len(np.unique(found['tokens'], axis=0)), 4)

  def test_what_the_documentation_says(self):
    expected = self.shipped.sample([0, 1] * 4, 4)
    self._check('documented', expected, 0)

  def test_any_part_of_a_set(self):
    for name, (expected, count) in self.expected.items():
      with self.subTest(name):
        self._check(name, expected, count)
    passes = self.expected['adaptive'][0].passes
    self.assertLess(passes.min(), 2 * 8)

  def test_holds_the_parameters_and_nothing_of_this_machine(self):
    data = (self.home / 'sampler.stablehlo').read_bytes()
    generator = self.shipped
    tokenizer = {**generator.tokenizer_params}
    del tokenizer['encoder']
    needed = generator.nat_params, tokenizer, generator.agents[4].params
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(needed))
    self.assertBetween(len(data), size, 1.1 * size)
    self.assertNotIn(str(_PAGE.parents[1]).encode(), data)
    self.assertNotIn(b'site-packages', data)


class VectorsTest(absltest.TestCase):
  def test_they_are_scaled_inside(self):
    small = evaluating.random_generator(evaluating.tiny_config())
    module, params = VectorTable(8, 77), {'vectors': np.zeros((1, 8))}
    generator = dataclasses.replace(
      text_generator(small), encode_captions=VectorEncoder(module, params, {})
    )
    given = np.random.default_rng(0).normal(size=(3, 77, 8)).astype(np.float32)
    given *= np.float32([1, 1e-30, 1e30])[:, None, None]
    given[:, 5:] = 0  # Padding.
    sampler = stablehlo._sampler(generator, generator.schedule('maskgit', 2))
    with mock.patch.object(program, 'decode_batch') as decode:
      sampler(jnp.asarray(given), jnp.uint32(0), jnp.uint32(0))
    batch = next(
      a for a in decode.call_args.args if isinstance(a, dict) and 'labels' in a
    )
    np.testing.assert_allclose(
      batch['labels'], generator.encode_captions.states(given), rtol=1e-5
    )


class MistakesTest(absltest.TestCase):
  def test_one_line(self):
    generator = adanat_jax.load('digits', compile_cache=False)
    path = self.create_tempdir().full_path
    for change, message in (
      ({'platforms': ['gpu']}, r"platforms are \['gpu'\]; give some of cpu, "),
      ({'platforms': ()}, r'platforms are \(\); give some of cpu, cuda'),
      ({'platforms': 'cpu'}, "platforms are 'cpu'; give some of cpu, cuda"),
      ({'policy': 'mine'}, "policy is 'mine'; give learned, hand-made"),
      ({'num_steps': 3}, 'no policy was learned for num_steps=3; learned: 2'),
      ({'guidance_scale': -1}, 'guidance_scale is -1; give a finite number'),
    ):
      with self.subTest(message), self.assertRaisesRegex(UserError, message):
        generator.export(f'{path}/sampler.stablehlo', **change)
    with self.assertRaisesRegex(UserError, 'nowhere/s: cannot be written'):
      generator.export(f'{path}/nowhere/s', 2, platforms=['cpu'])


if __name__ == '__main__':
  absltest.main()
