"""The converter: each kind there and back, its messages, its formats."""

import functools

from absl.testing import absltest, parameterized
from flax import serialization, traverse_util
import jax
import ml_dtypes
import numpy as np
import optax
from safetensors.numpy import save_file

from adanat_jax.convert import (
  __main__ as cli,
  entries,
  files,
  inception,
  kinds,
  layout,
  nat,
  policy,
)
from adanat_jax.errors import UserError
from adanat_jax.models.inception import InceptionV3
from adanat_jax.models.maskgit import MaskGITTransformer
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.runtime import checkpoint
from support import torch_files
from support.converting import CommandLineTest, files_subset, weights_of
from support.random_weights import random_variables


@functools.cache
def policy_arrays() -> dict[str, np.ndarray]:
  """Random weights of a small actor and critic, by the original's keys."""
  arrays = {}
  for name, width in (('actor', 4), ('critic', 1)):
    module = PolicyNetwork(width, 4, 8, 4, (12, 10))
    features = np.zeros((1, 16, 6), np.float32)
    params = random_variables(module, features, np.zeros(1, np.int32))['params']
    theirs = policy.FAMILY.to_theirs(params)
    arrays.update({f'{name}.{key}': x for key, x in theirs.items()})
  return arrays


def adanat_checkpoint() -> dict[str, object]:
  """What AdaNAT's train.py saves, with small networks."""
  networks = policy_arrays()
  return {
    'model': {
      f'{copy}.{key}': value
      for copy in ('policy', 'policy_old')
      for key, value in networks.items()
    },
    'optimizer': {'state': {0: {'step': np.float32(7).reshape(1)}}},
    'args': torch_files.namespace(gen_steps=8, lr=1e-5, heu=0),
    'global_step': 1000,
  }


def discriminator_checkpoint() -> dict[str, object]:
  arrays = weights_of('projdisc_class_shared')
  return {
    'model': {},
    'discriminator': {f'module.{key}': x for key, x in arrays.items()},
    'global_step': 3,
  }


# kind, what the file holds, the arrays a way there and back gives.
TORCH_CASES = {
  'nat_class': ('nat', lambda: weights_of('uvit_class_shared')),
  'nat_text': ('nat', lambda: weights_of('uvit_text_shared')),
  'policy': ('policy', adanat_checkpoint),
  'actor': (
    'policy',
    lambda: files_subset(weights_of('policy_shared'), 'actor.'),
  ),
  'discriminator': ('discriminator', discriminator_checkpoint),
  'vqgan': ('vqgan', lambda: {'state_dict': weights_of('vqgan_shared')}),
  'dino': (
    'dino',
    lambda: files_subset(
      weights_of('projdisc_text_shared'), 'dino.model.model.'
    ),
  ),
  'clip_text': ('clip_text', lambda: weights_of('clip_text_gelu')),
}
FLAX_CASES = {
  'maskgit_transformer': 'maskgit_transformer_shared',
  'maskgit_tokenizer': 'maskgit_vqgan_shared',
  'maskgit_tokenizer_strided': 'maskgit_vqgan_convdown',
}


class ConvertTest(CommandLineTest):
  @parameterized.parameters(sorted(TORCH_CASES))
  def test_torch_there_and_back(self, case):
    kind, held_by_file = TORCH_CASES[case]
    held, path = held_by_file(), self.folder / 'weights.pth'
    torch_files.save_zip(path, held)
    said = self.convert(kind, path)
    self.assertIn('parameters', said)
    wrapper = ('discriminator',) if kind == 'discriminator' else ()
    self.assert_same(self.reverse(kind), entries.find_arrays(held, wrapper))

  @parameterized.parameters(sorted(FLAX_CASES))
  def test_flax_there_and_back(self, case):
    kind = case.removesuffix('_strided')
    arrays = weights_of(FLAX_CASES[case])
    path = self.folder / 'checkpoint'
    nested = traverse_util.unflatten_dict(arrays, sep='/')
    path.write_bytes(serialization.msgpack_serialize(nested))
    self.convert(kind, path)
    self.assert_same(self.reverse(kind), arrays)

  def test_inception_there_and_back(self):
    arrays = weights_of('inception_shared')
    params = inception.FAMILY.to_ours(arrays, InceptionV3())
    counters = 'num_batches_tracked'
    expected = {k: x for k, x in arrays.items() if counters not in k}
    self.assert_same(inception.FAMILY.to_theirs(params), expected)

  def test_fid_stats_there_and_back(self):
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(5, 5))
    stats = {'mu': rng.normal(size=5), 'sigma': factor @ factor.T}
    path, ours = self.folder / 'adm.npz', self.folder / 'ours.npz'
    back = self.folder / 'back.npz'
    np.savez(path, **stats)
    for status, _, _ in (
      self.run_cli('--kind=fid_stats', f'--input={path}', f'--output={ours}'),
      self.run_cli(
        '--kind=fid_stats', f'--input={ours}', f'--output={back}', '--reverse'
      ),
    ):
      self.assertEqual(status, 0)
    with np.load(ours) as file:
      np.testing.assert_array_equal(file['mean'], stats['mu'])
    with np.load(back) as file:
      self.assert_same(dict(file), stats)

  def test_every_format_gives_the_same(self):
    arrays = weights_of('uvit_class_shared')
    torch_files.save_zip(self.folder / 'a.pth', arrays)
    torch_files.save_legacy(self.folder / 'a.ckpt', arrays)
    save_file(arrays, self.folder / 'a.safetensors')
    np.savez(self.folder / 'a.npz', **arrays)
    for path in sorted(self.folder.glob('a.*')):
      self.assert_same(entries.find_arrays(files.read(path)), arrays)

  def test_types_of_safetensors(self):
    path = self.folder / 'types.safetensors'
    arrays = {
      str(np.dtype(dtype)): np.arange(6).astype(dtype).reshape(shape)
      for dtype, shape in (
        (np.float16, (2, 3)), (ml_dtypes.bfloat16, (6,)), (np.int64, (3, 2)),
        (np.bool_, (1, 6)), (np.float64, (6, 1)), (np.uint8, (6,)),
      )
    }  # fmt: skip
    arrays['scalar'] = np.float32(3)
    arrays['empty'] = np.zeros((0, 4), np.float32)
    save_file({k: np.asarray(x) for k, x in arrays.items()}, path)
    self.assert_same(files.read(path), arrays)
    path.write_bytes(path.read_bytes()[:-1])
    with self.assertRaisesRegex(UserError, 'types.safetensors'):
      files.read(path)

  def test_parts_of_a_split_file(self):
    arrays = weights_of('uvit_class_shared')
    names = sorted(arrays)
    paths = [self.folder / f'{i}.safetensors' for i in range(2)]
    for i, path in enumerate(paths):
      save_file({name: arrays[name] for name in names[i::2]}, path)
    cli.convert('nat', [str(path) for path in paths], str(self.output))
    self.assert_same(self.reverse('nat'), arrays)
    with self.assertRaisesRegex(UserError, 'again'):
      files.read_parts([paths[0], paths[0]])

  def test_result_is_what_a_stage_leaves(self):
    arrays = weights_of('uvit_class_shared')
    torch_files.save_zip(self.folder / 'nat.pth', arrays)
    self.convert('nat', self.folder / 'nat.pth')
    params = checkpoint.load_params(self.output, 'ema')
    module = nat.infer(arrays, num_heads=4)
    expected = nat.FAMILY.to_ours(arrays, module)
    np.testing.assert_array_equal(
      params['in_blocks_0']['attention']['qkv']['kernel'],
      expected['in_blocks_0']['attention']['qkv']['kernel'],
    )

  def test_says_what_it_found(self):
    torch_files.save_zip(self.folder / 'p.pth', adanat_checkpoint())
    said = self.convert('policy', self.folder / 'p.pth')
    self.assertIn('a training checkpoint of AdaNAT', said)
    self.assertIn('global_step = 1000, gen_steps = 8', said)
    self.assertIn('no published network of this size', said)
    self.assertIn('AdaNAT-L', kinds.release_of(193_655_297))
    self.assertIn('discriminator', kinds.release_of(10_285_440))

  def moments(self, arrays):
    """Torch's Adam of weights, in their order, of numbers made of these."""
    rows = {
      2 * number: {
        'step': np.float32(35).reshape(1),
        'exp_avg': 2 * x,
        'exp_avg_sq': x**2,
      }
      for number, x in enumerate(arrays.values())
    }
    return {'state': rows, 'param_groups': [{'lr': 1e-5}]}

  @parameterized.parameters('policy', 'discriminator')
  def test_optimizers_come_with_the_weights(self, kind):
    if kind == 'policy':
      held, name = adanat_checkpoint(), 'optimizer'
      trained = policy_arrays()
    else:
      held, name = discriminator_checkpoint(), 'd_optimizer'
      trained = {
        key: x
        for key, x in weights_of('projdisc_class_shared').items()
        if not key.endswith(('weight_u', 'weight_v'))
        and not key.startswith('dino.')
      }
    held[name] = self.moments(trained)
    torch_files.save_zip(self.folder / 'p.pth', held)
    said = self.convert(kind, self.folder / 'p.pth')
    self.assertIn(f'{name}: Adam after 35 updates', said)
    params = checkpoint.load_params(self.output, 'params')
    params = jax.tree.map(np.asarray, params)
    state = jax.jit(optax.adam(0.1).init)(params)
    found = checkpoint.load_params(self.output, 'opt_state', state)
    self.assertEqual(int(found[0].count), 35)
    for moments, of in (
      (found[0].mu, lambda x: 2 * x),
      (found[0].nu, lambda x: x * x),
    ):
      jax.tree.map(
        np.testing.assert_array_equal, moments, jax.tree.map(of, params)
      )

  @parameterized.parameters('fewer', 'order', 'numbers')
  def test_another_optimizer_is_left_out(self, what):
    held, trained = adanat_checkpoint(), policy_arrays()
    if what == 'order':
      trained = dict(reversed(trained.items()))
    held['optimizer'] = optimizer = self.moments(trained)
    if what == 'fewer':
      del optimizer['state'][4]
    if what == 'numbers':
      optimizer['state'][4]['exp_avg'] = 'none'
    torch_files.save_zip(self.folder / 'p.pth', held)
    said = self.convert('policy', self.folder / 'p.pth')
    self.assertIn('optimizer is left out: it is not Adam of these', said)
    self.assertNotIn('opt_state', str(checkpoint.read_layouts(self.output)))

  def test_absurd_steps_are_not_said(self):
    held = {**adanat_checkpoint(), 'global_step': 1 << 20_000}
    torch_files.save_zip(self.folder / 'p.pth', held)
    self.assertNotIn(
      'global_step', self.convert('policy', self.folder / 'p.pth')
    )

  @parameterized.parameters((256, 172_457_193), (1024, 173_047_017))
  def test_published_size_of_maskgit(self, num_tokens, count):
    module = MaskGITTransformer(1024, 1000, num_tokens)
    inputs = layout.ints(1, num_tokens), layout.ints(1)
    shapes = jax.tree.leaves(layout.shapes(module, *inputs))
    self.assertEqual(sum(int(np.prod(x.shape)) for x in shapes), count)
    self.assertIn('MaskGIT', kinds.release_of(count))

  def test_help_lists_every_kind_with_its_source(self):
    status, out, _ = self.run_cli('--help')
    self.assertEqual(status, 0)
    words = ' '.join(out.split())
    for name, kind in kinds.KINDS.items():
      self.assertIn(f'{name}: {kind.what}. Published: {kind.source}.', words)


if __name__ == '__main__':
  absltest.main()
