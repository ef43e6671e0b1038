"""The converter on what it cannot convert: one line, and nothing is left."""

from unittest import mock

from absl.testing import absltest, parameterized
import numpy as np

from adanat_jax.convert import __main__ as cli, entries
from adanat_jax.errors import UserError
from support import torch_files
from support.converting import DATA, CommandLineTest, files_subset, weights_of


class ConvertMistakesTest(CommandLineTest):
  def test_all_wrong_keys_are_in_one_message(self):
    arrays = weights_of('uvit_class_shared')
    del arrays['norm.weight'], arrays['mlm_layer.fc.bias']
    arrays['surprise'] = np.zeros(3, np.float32)
    arrays['norm.bias'] = np.zeros((2, 3), np.float32)
    path = self.folder / 'nat.pth'
    torch_files.save_zip(path, arrays)
    message = self.refused('nat', path)
    for part in (
      str(path),
      '2 missing: mlm_layer.fc.bias, norm.weight',
      '1 unexpected: surprise',
      'norm.bias is (2, 3), not (64,)',
    ):
      self.assertIn(part, message)

  @parameterized.parameters(
    ('weights.pth', b'no file of torch', 'a text, not weights'),
    ('weights.pth', b'\x80\x02no file of torch', 'torch.save'),
    ('weights.safetensors', b'\xff' * 40, 'begin nothing that is read'),
    ('weights.npz', b'PK\x03\x04 and no more', 'broken zip file'),
    ('weights.msgpack', b'\x81\xa1a\xc1', 'msgpack'),
    ('weights.h5', b'\x89HDF\r\n', 'an HDF5 file'),
    ('weights', b'', 'it is empty'),
    ('weights', bytes(9), 'was not finished'),
  )
  def test_broken_files(self, name, content, word):
    path = self.folder / name
    path.write_bytes(content)
    self.assertIn(word, self.refused('nat', path))

  def test_npz_with_objects_is_refused(self):
    path = self.folder / 'weights.npz'
    np.savez(path, x=np.array([{}], object))
    self.assertIn('cannot read', self.refused('nat', path))

  def test_dictionaries_that_hold_themselves(self):
    loop = {}
    loop.update(model=loop, other=loop)
    with self.assertRaisesRegex(UserError, 'no arrays'):
      entries.find_arrays(loop)

  @parameterized.parameters(
    ('nat', [3, 4], 'no arrays by name'),
    ('fid_stats', {'mu': np.zeros(3, np.float32)}, 'no sigma'),
    ('inception', {'x': np.zeros(3, np.float32)}, 'missing'),
    ('policy', {'x': np.zeros(3, np.float32)}, 'not the weights of'),
  )
  def test_other_contents(self, kind, value, word):
    path = self.folder / 'weights.pth'
    torch_files.save_zip(path, value)
    if kind == 'fid_stats':
      self.output = self.output.with_suffix('.npz')
    self.assertIn(word, self.refused(kind, path))

  def test_output_that_exists_is_kept(self):
    torch_files.save_zip(self.folder / 'a.pth', {'x': np.zeros(1)})
    (self.folder / 'full').mkdir()
    (self.folder / 'full' / 'file').write_text('mine')
    self.output = self.folder / 'full'
    status, _, err = self.run_cli(
      '--kind=nat',
      f'--input={self.folder / "a.pth"}',
      f'--output={self.output}',
    )
    self.assertEqual(status, 2)
    self.assertIn('exists already', err)

  def test_reverse_of_another_kind(self):
    arrays = weights_of('vqgan_shared')
    torch_files.save_zip(self.folder / 'v.pth', arrays)
    self.convert('vqgan', self.folder / 'v.pth')
    for kind in ('nat', 'dino', 'maskgit_tokenizer'):
      status, _, err = self.run_cli(
        f'--kind={kind}',
        f'--input={self.output}',
        f'--output={self.folder / "x.safetensors"}',
        '--reverse',
      )
      # The two tokenizers are one network: only the keys differ.
      self.assertEqual(status, 0 if kind == 'maskgit_tokenizer' else 2, err)

  @parameterized.parameters('vqgan', 'policy', 'fid_stats')
  def test_reverse_of_what_holds_no_such_thing(self, kind):
    torch_files.save_zip(self.folder / 'v.pth', weights_of('vqgan_shared'))
    self.convert('vqgan', self.folder / 'v.pth')
    source, ending = self.output, '.safetensors'
    if kind == 'fid_stats':
      source, ending = self.folder / 'other.npz', '.npz'
      np.savez(source, x=np.zeros(3))
    back = self.folder / 'new' / f'x{ending}'
    status, _, err = self.run_cli(
      f'--kind={kind}', f'--input={source}', f'--output={back}', '--reverse'
    )
    if kind == 'vqgan':
      # A folder that is not there yet is made.
      self.assertEqual((status, back.is_file()), (0, True))
    else:
      self.assertEqual((status, err.count('\n')), (2, 1))
      self.assertIn(f'holds no {kind}', err)
      self.assertFalse(back.exists())

  @parameterized.parameters(
    ('nat', 'uvit_class_shared', 'token_emb.word_embeddings.weight', (3,)),
    ('nat', 'uvit_class_shared', 'token_emb.word_embeddings.weight', (3, 0)),
    ('vqgan', 'vqgan_shared', 'encoder.conv_in.weight', ()),
    ('clip_text', 'clip_text_open_clip', 'text_projection', (1, 2, 3)),
    ('clip_text', 'clip_text_open_clip',
     'transformer.resblocks.0.attn.in_proj_bias', (7,)),
  )  # fmt: skip
  def test_arrays_of_another_rank(self, kind, file, key, shape):
    arrays = {**weights_of(file), key: np.zeros(shape, np.float32)}
    path = self.folder / 'weights.pth'
    torch_files.save_zip(path, arrays)
    self.refused(kind, path)

  def test_sizes_that_no_memory_holds(self):
    arrays = files_subset(
      weights_of('projdisc_text_shared'), 'dino.model.model.'
    )
    # Strides of 0 claim many patches of many pixels in a small file.
    tensor = lambda *shape: torch_files.Tensor(
      np.zeros(1, np.float32), 0, shape, (0,) * len(shape)
    )
    held = {
      **arrays,
      'pos_embed': tensor(1, 1 + 700**2, 1),
      'patch_embed.proj.weight': tensor(1, 1, 1000, 1000),
    }
    torch_files.save_zip(self.folder / 'dino.pth', held)
    self.assertIn('do not fit', self.refused('dino', self.folder / 'dino.pth'))

  def test_a_conversion_that_fails_leaves_nothing(self):
    arrays = weights_of('uvit_class_shared')
    path = self.folder / 'nat.pth'
    broken = {**arrays, 'norm.weight': arrays['norm.weight'] * np.nan}
    torch_files.save_zip(path, broken)
    self.assertIn('NaN', self.refused('nat', path))
    # What a killed conversion left is in nobody's way.
    torch_files.save_zip(path, arrays)
    with (
      mock.patch.object(
        cli.journal, 'mark_complete', side_effect=KeyboardInterrupt
      ),
      mock.patch.object(cli.shutil, 'rmtree'),
      self.assertRaises(KeyboardInterrupt),
    ):
      cli.convert('nat', [str(path)], str(self.output))
    self.assertFalse(self.output.exists())
    self.convert('nat', path)
    names = {entry.name for entry in self.folder.iterdir()}
    self.assertEqual(names, {'nat.pth', 'out'})

  @parameterized.parameters(
    (np.nan, 'holds NaN or infinity (1 of 64)'),
    (-np.inf, 'holds NaN or infinity (1 of 64)'),
    (1e300, 'holds NaN or infinity (1 of 64)'),
    (1j, 'holds complex128, which is not a real number'),
    ('a', 'holds <U32, which is not a real number'),
  )
  def test_numbers_that_are_no_weights(self, value, words):
    arrays = weights_of('uvit_class_shared')
    x = arrays['norm.weight'].astype(np.result_type(type(value), np.float64))
    x[3] = value
    arrays['norm.weight'] = x
    path = self.folder / 'nat.npz'
    np.savez(path, **arrays)
    message = self.refused('nat', path)
    self.assertIn(f'1 without usable numbers: norm.weight {words}', message)
    self.assertIn(str(path), message)

  def test_large_numbers_are_numbers(self):
    arrays = weights_of('uvit_class_shared')
    arrays['norm.weight'] = np.full_like(arrays['norm.weight'], 3e38)
    np.savez(self.folder / 'nat.npz', **arrays)
    self.convert('nat', self.folder / 'nat.npz')

  @parameterized.parameters(
    ('nat', 'uvit_class_shared', 'in_blocks.{}.x'),
    ('enat', 'enat_shared', 'blocks.{}.x'),
    ('vqgan', 'vqgan_shared', 'encoder.down.{}.x'),
    ('vqgan', 'vqgan_shared', 'encoder.down.0.block.{}.x'),
    ('discriminator', 'projdisc_class_shared', 'heads.{}.x'),
    ('discriminator', 'projdisc_class_shared', 'mapping.fc{}.x'),
    ('clip_text', 'clip_text_gelu', 'text_model.encoder.layers.{}.x'),
    ('maskgit_transformer', 'maskgit_transformer_shared',
     'TransformerLayer_{}/x'),
    ('maskgit_tokenizer', 'maskgit_vqgan_shared', 'encoder/ResBlock_{}/x'),
  )  # fmt: skip
  def test_layers_without_end(self, kind, file, name):
    original = weights_of(file).items()
    arrays = {key.removeprefix('params/'): x for key, x in original}
    x = np.zeros(1, np.float32)
    arrays.update({name.format(i): x for i in range(200)})
    torch_files.save_zip(self.folder / 'x.pth', arrays)
    message = self.refused(kind, self.folder / 'x.pth')
    self.assertIn('its keys number', message)

  def test_names_that_a_terminal_would_obey(self):
    arrays = weights_of('uvit_class_shared')
    arrays['\x1b[2J\x07\u202e' + 'x' * 900] = np.zeros(1, np.float32)
    torch_files.save_zip(self.folder / 'x.pth', arrays)
    message = self.refused('nat', self.folder / 'x.pth')
    self.assertIn(r'1 unexpected: \x1b[2J\x07\u202exxx', message)
    self.assertTrue(message[:-1].isprintable())
    self.assertLess(len(message), 400)

  def test_too_little_memory(self):
    path = self.folder / 'nat.pth'
    torch_files.save_zip(path, weights_of('uvit_class_shared'))
    for place in ('adanat_jax.convert.torch_reader.read_zip',
                  'adanat_jax.convert.layout.shapes'):  # fmt: skip
      for error in (MemoryError, RecursionError):
        with mock.patch(place, side_effect=error):
          self.refused('nat', path)

  def test_outputs_that_cannot_be_written(self):
    path = self.folder / 'nat.pth'
    torch_files.save_zip(path, weights_of('uvit_class_shared'))
    self.output = path / 'out'
    self.assertIn('a file is in the way', self.refused('nat', path))

  @parameterized.parameters(
    (b'\x81\xa1a' * 1000 + b'\xc0',),
    (b'\x81\xa1a\xc7\x02\x01ab',),
    (b'\x81\xb9__msgpack_chunked_array__\xc3',),
    (b'\x82\xb9__msgpack_chunked_array__\xc3\xa5shape\x03',),
  )
  def test_msgpack_tricks(self, content):
    path = self.folder / 'weights.msgpack'
    path.write_bytes(content)
    self.refused('nat', path)

  def test_a_folder_is_no_file(self):
    self.assertIn('it is a directory', self.refused('nat', self.folder))

  @parameterized.parameters(
    ('moments_nan', 'sigma holds NaN or infinity (9 of 9)'),
    ('moments_negative', '3 variances are negative'),
    ('moments_triangle', 'it differs from its transpose by 1'),
    ('moments_bit_flipped', 'sigma.npy is damaged'),
    ('moments_truncated', 'truncated or broken zip file'),
  )
  def test_moments_of_nothing(self, name, words):
    self.output = self.output.with_suffix('.npz')
    path = DATA / 'cases' / 'statistics' / f'{name}.npz'
    message = self.refused('fid_stats', path)
    self.assertIn(words, message)
    self.assertIn(str(path), message)

  def test_moments_of_nothing_on_the_way_back(self):
    path = DATA / 'cases' / 'statistics' / 'moments_negative.npz'
    ours, back = self.folder / 'ours.npz', self.folder / 'back.npz'
    with np.load(path) as file:
      np.savez(ours, mean=file['mu'], covariance=file['sigma'])
    status, _, err = self.run_cli(
      '--kind=fid_stats', f'--input={ours}', f'--output={back}', '--reverse'
    )
    self.assertEqual((status, err.count('\n')), (2, 1))
    self.assertFalse(back.exists())

  def test_npz_tricks(self):
    path = self.folder / 'weights.npz'
    np.savez_compressed(path, x=np.arange(1000.0))
    whole = path.read_bytes()
    central = whole.index(b'PK\x01\x02')
    for place, value in ((central + 8, 1), (central + 10, 99), (90, 255)):
      content = bytearray(whole)
      content[place] = value
      path.write_bytes(bytes(content))
      self.assertIn('cannot read', self.refused('nat', path))


if __name__ == '__main__':
  absltest.main()
