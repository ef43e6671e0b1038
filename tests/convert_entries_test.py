"""Which weights of a file are taken, under which keys, and what is said."""

from absl.testing import absltest, parameterized
import numpy as np

from adanat_jax.convert import entries
from adanat_jax.errors import UserError
from support import torch_files
from support.converting import CommandLineTest, weights_of
from support.torch_files import Call, Global

RAW = {'a.weight': np.zeros(3, np.float32), 'b': np.zeros(2, np.float32)}
EMA = {'a.weight': np.ones(3, np.float32), 'b': np.ones(2, np.float32)}


def prefixed(prefix, arrays):
  return {prefix + key: x for key, x in arrays.items()}


class EntriesTest(parameterized.TestCase):
  def assert_taken(self, found, arrays, *words):
    self.assertEqual(set(found.arrays), set(arrays))
    for key, x in arrays.items():
      np.testing.assert_array_equal(found.arrays[key], x, key)
    note = '; '.join(found.notes)
    for word in words:
      self.assertIn(word, note)

  @parameterized.parameters(
    ({'model': RAW, 'model_ema': EMA}, 'model_ema', 'model'),
    ({'model_ema': EMA, 'model': RAW}, 'model_ema', 'model'),
    ({'state_dict': RAW, 'state_dict_ema': EMA}, 'state_dict_ema', 'state_d'),
    ({'params': RAW, 'params_ema': EMA}, 'params_ema', 'params'),
    ({'params': RAW, 'ema_params': EMA, 'opt_state': {'ema': RAW}},
     'ema_params', 'params'),
    ({'nnet': RAW, 'nnet_ema': EMA}, 'nnet_ema', 'nnet'),
    ({'nnet': RAW, 'ema': EMA}, 'ema', 'nnet'),
    ({'student': RAW, 'teacher': EMA}, 'teacher', 'student'),
    ({'g': RAW, 'g_ema': EMA}, 'g_ema', 'g'),
    ({'netG': RAW, 'netG_EMA': EMA}, 'netG_EMA', 'netG'),
    ({'model': RAW, 'modelEMA': EMA}, 'modelEMA', 'model'),
    ({'model': RAW, 'ema_0.9999': EMA}, 'ema_0.9999', 'model'),
    ({'model': RAW, 'ema': {'decay': 0.9, 'module': prefixed('module.', EMA)}},
     'ema/module', 'model'),
    ({'model': RAW, 'model_swa': {'n_averaged': np.array(3),
                                  **prefixed('module.', EMA)}},
     'model_swa', 'model'),
  )  # fmt: skip
  def test_the_average_is_taken_and_said(self, value, taken, other):
    found = entries.find(value)
    self.assert_taken(found, EMA, f'{taken}', f'--entry={other}')
    raw = entries.find(value, entry=found.notes[0].split('--entry=')[1])
    self.assert_taken(raw, RAW)

  @parameterized.parameters(
    ({'state_dict': {**prefixed('model.', RAW), **prefixed('ema.', EMA)}},),
    ({**prefixed('online_model.', RAW), **prefixed('ema_model.', EMA)},),
  )
  def test_averages_by_a_prefix(self, value):
    found = entries.find(value)
    self.assert_taken(found, EMA, 'ema', 'are taken', '--entry=')
    raw = entries.find(value, entry=found.notes[-1].split('--entry=')[1])
    self.assert_taken(raw, RAW, 'are taken')

  def test_without_an_average(self):
    for value, taken in (
      ({'state_dict': RAW, 'step': 3}, 'state_dict'),
      ({'model': {'params': RAW}}, 'model/params'),
      ({'model': RAW, 'model_ema': None, 'ema': {}}, 'model'),
      ({'model': RAW, 'optimizer': {'state': {0: {'ema': EMA['b']}}}}, 'model'),
    ):
      found = entries.find(value)
      self.assert_taken(found, RAW)
      self.assertEqual(found.notes, (f'the entry {taken} is taken',))
    self.assertEqual(entries.find(RAW).notes, ())
    both = entries.find({'state_dict': RAW, 'model': EMA})
    self.assert_taken(both, RAW, 'state_dict', '--entry=model')

  def test_names_of_parts_of_a_network_are_no_averages(self):
    nested = {'params': {'ema_head': EMA, 'body': RAW}}
    self.assertLen(entries.find(nested).arrays, 4)
    embedded = {**RAW, 'quantize.ema_weight': np.ones(1)}
    self.assertLen(entries.find({'model': embedded}).arrays, 3)

  def test_the_discriminators_file(self):
    value = {'model': RAW, 'model_ema': RAW, 'discriminator': EMA}
    found = entries.find(value, ('discriminator',))
    self.assert_taken(found, EMA, 'the entry discriminator is taken')
    value['discriminator_ema'], value['discriminator'] = EMA, RAW
    self.assert_taken(entries.find(value, ('discriminator',)), EMA, '_ema')

  @parameterized.parameters(
    ({'model': RAW, 'ema_1': EMA, 'ema_2': EMA}, 'ema_1, ema_2.*--entry='),
    ({'model': RAW, 'ema': {'shadow_params': [np.ones(3)]}},
     'without names.*--entry=model'),
    ({'state_dict': RAW, 'callbacks': {'EMA': {'ema_weights': EMA}}},
     'callbacks/EMA/ema_weights.*--entry=state_dict'),
    ({**RAW, **prefixed('ema.', EMA)}, '--entry=ema'),
  )  # fmt: skip
  def test_averages_that_are_not_clear(self, value, words):
    with self.assertRaisesRegex(UserError, words):
      entries.find(value)

  def test_entries_by_name(self):
    value = {
      'model': RAW,
      'old': {'x': {'model_ema': EMA}},
      'y': {'z': {**RAW}},
    }
    self.assert_taken(entries.find(value, entry='old/x'), EMA)
    self.assert_taken(entries.find(value, entry='model_ema'), EMA)
    with self.assertRaisesRegex(
      UserError, 'no entry w.*model, old, y, old/x, y/z'
    ):
      entries.find(value, entry='w')
    with self.assertRaisesRegex(UserError, 'no entry w.*but arrays alone'):
      entries.find(RAW, entry='w')
    value['y']['x'] = {**RAW}
    with self.assertRaisesRegex(UserError, 'several entries.*such as'):
      entries.find(value, entry='x')

  @parameterized.parameters(
    'module.', '_orig_mod.', 'module._orig_mod.', '_orig_mod.module.',
    'module.module.', '_fsdp_wrapped_module.',
  )  # fmt: skip
  def test_prefixes_of_wrappers(self, prefix):
    self.assert_taken(entries.find(prefixed(prefix, EMA)), EMA)

  def test_wrapped_parts(self):
    wrapped = {'a._orig_mod.weight': EMA['a.weight'], 'b': EMA['b']}
    self.assert_taken(entries.find(wrapped), EMA)
    with self.assertRaisesRegex(UserError, 'two arrays have one name'):
      entries.find({**wrapped, 'a.weight': RAW['b']})

  def test_nothing_is_removed_that_is_a_name(self):
    arrays = {'module.a': RAW['b'], 'b': RAW['b']}
    self.assert_taken(entries.find(arrays), arrays)

  def test_views_that_are_a_multiple_of_the_file(self):
    x = np.zeros(1 << 22, np.float32)
    self.assertLen(entries.find({str(i): x for i in range(8)}).arrays, 8)
    with self.assertRaisesRegex(UserError, 'claim 256 MiB, and share 16 MiB'):
      entries.find({str(i): x[:] for i in range(16)})

  def test_many_entries_that_hold_each_other(self):
    nodes = [{} for _ in range(3000)]
    for node in nodes:
      node.update((str(i), other) for i, other in enumerate(nodes[:50]))
      node.update(model=nodes[7], ema=nodes[8], model_ema=[node])
    with self.assertRaisesRegex(UserError, 'no arrays by name'):
      entries.find(nodes)
    with self.assertRaisesRegex(UserError, 'no arrays by name'):
      entries.find(nodes[0])

  def test_names_too_long_to_join(self):
    value = RAW
    for _ in range(3):
      value = {'x' * 900: value}
    with self.assertRaisesRegex(UserError, 'name .* has .* characters'):
      entries.find(value)


class ConvertEntriesTest(CommandLineTest):
  """The same, through the command line, with weights of a NAT."""

  def setUp(self):
    super().setUp()
    self.arrays = weights_of('uvit_class_shared')
    self.path = self.folder / 'weights.pth'

  def assert_converted(self, value, *words, flags=()):
    torch_files.save_zip(self.path, value)
    status, out, err = self.run_cli(
      '--kind=nat', f'--input={self.path}', f'--output={self.output}', *flags
    )
    self.assertEqual((status, err), (0, ''))
    for word in words:
      self.assertIn(word, out)
    self.assert_same(self.reverse('nat'), self.arrays)

  def zeros(self):
    return {key: np.zeros_like(x) for key, x in self.arrays.items()}

  def test_average_beside_the_model(self):
    self.assert_converted(
      {'model': self.zeros(), 'model_ema': self.arrays},
      'nat: the entry model_ema is taken; model is there too: --entry=model\n',
    )

  def test_the_model_beside_its_average(self):
    self.assert_converted(
      {'model': self.arrays, 'model_ema': self.zeros()},
      'the entry model is taken',
      flags=['--entry=model'],
    )

  def test_an_average_that_does_not_fit_says_so(self):
    torch_files.save_zip(
      self.path, {'model': self.arrays, 'model_ema': {'x': np.zeros(3)}}
    )
    message = self.refused('nat', self.path)
    self.assertIn('model_ema is taken; model is there too: --entry', message)

  @parameterized.parameters('_orig_mod.', 'module._orig_mod.')
  def test_compiled(self, prefix):
    self.assert_converted(prefixed(prefix, self.arrays))

  def test_numbers_of_numpy_beside_the_weights(self):
    kind = Call(
      Global('numpy', 'dtype'),
      ('f8', False, True),
      (3, '<', None, None, None, -1, -1, 0),
    )
    text = lambda value: Call(Global('_codecs', 'encode'), (value, 'latin1'))
    core = 'numpy.core.multiarray'
    losses = Call(
      Global(core, '_reconstruct'),
      (Global('numpy', 'ndarray'), (0,), text('b')),
      (1, (2,), kind, False, text('\0' * 16)),
    )
    best = Call(Global(core, 'scalar'), (kind, text('\0' * 8)))
    self.assert_converted(
      {'state_dict': self.arrays, 'best': best, 'losses': losses}
    )

  def test_entry_is_not_for_the_way_back(self):
    status, _, err = self.run_cli(
      '--kind=nat', '--input=a', '--output=b', '--reverse', '--entry=model'
    )
    self.assertEqual((status, err.count('\n')), (2, 1))


if __name__ == '__main__':
  absltest.main()
