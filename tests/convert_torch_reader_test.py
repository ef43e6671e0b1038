"""The reader of torch files: exact on honest files, deaf to hostile ones."""

import os
import pathlib
import struct
import sys
import tracemalloc
from unittest import mock
import zipfile

from absl.testing import absltest, parameterized
import ml_dtypes
import numpy as np

from adanat_jax.convert import files, reading
from adanat_jax.errors import UserError
from support import torch_files
from support.torch_files import Call, Global, Raw, Tensor

DATA = pathlib.Path(__file__).parent / 'data'
SAVERS = {'zip': torch_files.save_zip, 'legacy': torch_files.save_legacy}


def small_model() -> dict[str, object]:
  return {'weight': np.arange(6, dtype=np.float32).reshape(2, 3)}


class ValidTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path) / 'model.pth'

  @parameterized.product(
    saver=sorted(SAVERS), dtype=sorted(torch_files.STORAGE_NAMES, key=str)
  )
  def test_every_type_is_exact(self, saver, dtype):
    values = np.array([0, 1, 3, 1, 0, 77]).astype(dtype).reshape(3, 2)
    SAVERS[saver](self.path, {'x': values})
    read = files.read(self.path)['x']
    self.assertEqual(read.dtype, dtype)
    np.testing.assert_array_equal(read, values)

  @parameterized.parameters(sorted(SAVERS))
  def test_views_of_one_storage(self, saver):
    flat = np.arange(24, dtype=np.float32)
    SAVERS[saver](
      self.path,
      {
        'whole': Tensor(flat, shape=(4, 6)),
        'transposed': Tensor(flat, 0, (6, 4), (1, 6)),
        'strided': Tensor(flat, 5, (5,), (3,)),
        'scalar': Tensor(flat, 7, (), ()),
        'repeated': Tensor(flat, 2, (4, 3), (0, 1)),
        'empty': Tensor(flat, 0, (0, 7), (7, 1)),
      },
    )
    read = files.read(self.path)
    whole = flat.reshape(4, 6)
    np.testing.assert_array_equal(read['whole'], whole)
    np.testing.assert_array_equal(read['transposed'], whole.T)
    np.testing.assert_array_equal(read['strided'], flat[5:20:3])
    np.testing.assert_array_equal(read['scalar'], 7)
    np.testing.assert_array_equal(read['repeated'], [[2, 3, 4]] * 4)
    self.assertEqual(read['empty'].shape, (0, 7))
    self.assertTrue(np.shares_memory(read['whole'], read['transposed']))
    self.assertFalse(read['whole'].flags.writeable)

  @parameterized.parameters(sorted(SAVERS))
  def test_containers_and_namespace(self, saver):
    pairs = [('a', 1), ('b', 2.5)]
    SAVERS[saver](
      self.path,
      {
        'ordered': Call(
          Global('collections', 'OrderedDict'),
          (pairs_as_lists(pairs),),
          {'_metadata': {'version': 1}},
        ),
        'args': torch_files.namespace(lr=1e-5, upd_set=['x'], none=None),
        'parameter': Call(
          Global('torch._utils', '_rebuild_parameter'),
          (np.ones(2, np.float32), True, {}),
        ),
        'set': Call(Global('__builtin__', 'set'), ([3, 4],)),
        'bytes': Call(Global('_codecs', 'encode'), ('a\xff', 'latin1')),
        'numbers': (1, -(2**70), True, 0.5, None, [()]),
      },
    )
    read = files.read(self.path)
    self.assertEqual(read['ordered'], dict(pairs))
    self.assertEqual(
      vars(read['args']), {'lr': 1e-5, 'upd_set': ['x'], 'none': None}
    )
    np.testing.assert_array_equal(read['parameter'], [1, 1])
    self.assertEqual(read['set'], {3, 4})
    self.assertEqual(read['bytes'], b'a\xff')
    self.assertEqual(read['numbers'], (1, -(2**70), True, 0.5, None, [()]))

  @parameterized.parameters('torch_zip.pth', 'torch_legacy.pth')
  def test_files_that_torch_itself_wrote(self, name):
    read = files.read(DATA / name)
    with np.load(DATA / 'torch_files.npz') as expected:
      for key in expected:
        value = read['tensors'][key]
        if value.dtype == ml_dtypes.bfloat16:
          value = value.astype(np.float32)
        self.assertEqual(value.dtype, expected[key].dtype, key)
        np.testing.assert_array_equal(value, expected[key])
    self.assertEqual(vars(read['args']), {'lr': 0.1, 'upd_set': ['a', 'b']})
    self.assertLen(read['optimizer']['state'], 4)

  def test_reading_copies_nothing(self):
    torch_files.save_zip(self.path, {'x': np.zeros(1 << 22, np.float32)})
    tracemalloc.start()
    read = files.read(self.path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    self.assertEqual(read['x'].size, 1 << 22)
    self.assertLess(peak, 1 << 20)


def pairs_as_lists(pairs):
  return [list(pair) for pair in pairs]


def calls(module: str, name: str, *arguments) -> Call:
  return Call(Global(module, name), arguments)


BOOM = 'touch adanat_was_here'

# What a pickle may try; each is refused, and by this word.
HOSTILE_PICKLES = {
  'os_system': (calls('os', 'system', BOOM), 'os.system'),
  'posix_system': (calls('posix', 'system', BOOM), 'posix.system'),
  'eval': (calls('builtins', 'eval', '1'), 'builtins.eval'),
  'exec_python2': (calls('__builtin__', 'execfile', 'x'), 'execfile'),
  'import': (calls('builtins', '__import__', 'os'), '__import__'),
  'subprocess': (calls('subprocess', 'Popen', [BOOM]), 'subprocess.Popen'),
  'nested_getattr': (
    Call(
      calls('builtins', 'getattr', Global('os', 'path'), 'system'),
      (BOOM,),
    ),
    'builtins.getattr',
  ),
  'dotted_name': (calls('torch', '_utils.os.system', BOOM), 'os.system'),
  'torch_load': (
    calls('torch.storage', '_load_from_bytes', 'x'),
    '_load_from_bytes',
  ),
  'class_of_mentioned_name': (calls('torch', 'FloatStorage', 3), 'calls'),
  'mentioned_builtin': (calls('builtins', 'list', [1]), 'calls'),
  'partial': (calls('functools', 'partial', 1), 'functools.partial'),
  'numpy_object_array': (
    calls('numpy.core.multiarray', '_reconstruct', 1),
    '_reconstruct',
  ),
  'stack_global': (
    Raw(b'\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R'),
    'os.system',
  ),
  'stack_global_from_memo': (
    Raw(b'\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93)R'),
    'os.system',
  ),
  'newobj': (Raw(b'csubprocess\nPopen\n)\x81'), 'subprocess.Popen'),
  'newobj_ex': (Raw(b'c__builtin__\nobject\n)}\x92'), 'NEWOBJ_EX'),
  'inst': (Raw(b'(S"ls"\nios\nsystem\n'), 'INST'),
  'obj': (Raw(b'(c__builtin__\nobject\no'), 'OBJ'),
  'extension': (Raw(b'\x82\x01'), 'EXT1'),
  'text_persistent_id': (Raw(b'Pabc\n'), 'PERSID'),
  'build_on_class': (
    Call(Global('torch', 'FloatStorage'), (), {'__call__': 1}),
    'calls',
  ),
  'setstate_on_tensor': (
    Raw(torch_files.Writer().dump({})[2:-1] + b')}b'),
    'state',
  ),
  'reconstruct_other_class': (
    calls('copyreg', '_reconstructor', Global('builtins', 'object')),
    'Namespace',
  ),
  'codec': (calls('_codecs', 'encode', 'x', 'bz2'), 'latin1'),
  'list_as_key': (Raw(b'}](K\x01eK\x02s'), 'key'),
  'deep_tuple_as_key': (Raw(b'})' + b'\x85' * 10000 + b'K\x02s'), 'key'),
  'persistent_id_of_other_kind': (
    torch_files.Persistent(('module', 'os')),
    'storage',
  ),
  'storage_outside': (
    torch_files.Persistent(
      (
        'storage',
        Global('torch', 'FloatStorage'),
        '../../../../etc/passwd',
        'cpu',
        1,
      )
    ),
    'passwd',
  ),
  'bytes_claim': (Raw(b'\x8e' + struct.pack('<Q', 1 << 60)), 'broken'),
  'text_claim': (Raw(b'\x8d' + struct.pack('<Q', 1 << 60)), 'broken'),
  'memo_missing': (Raw(b'h\x07'), 'broken'),
  'unknown_opcode': (Raw(b'\xff'), 'broken'),
  'stack_underflow': (Raw(b'0000'), 'broken'),
  'no_mark': (Raw(b'e'), 'broken'),
  'huge_number': (Raw(b'I' + b'9' * 5000 + b'\n'), 'broken'),
}


def doubling(levels: int) -> Raw:
  """A small pickle whose text would have 2 ** levels parts."""
  code = b']'
  for level in range(levels):
    code += b'q' + bytes([level]) + b'0](' + 2 * (b'h' + bytes([level])) + b'e'
  return Raw(code)


HOSTILE_PICKLES['device_that_doubles'] = (
  calls('torch', 'device', doubling(60)),
  'device',
)
HOSTILE_PICKLES['number_as_text_of_bytes'] = (
  calls('_codecs', 'encode', doubling(60), 'latin1'),
  'latin1',
)

FLOATS = np.arange(6, dtype=np.float32)

# Tensors that claim what their storage does not hold.
HOSTILE_TENSORS = {
  'reaches_beyond': Tensor(FLOATS, 4, (3,), (1,)),
  'stride_beyond': Tensor(FLOATS, 0, (2, 2), (6, 1)),
  'negative_offset': Tensor(FLOATS, -1, (2,), (1,)),
  'negative_stride': Tensor(FLOATS, 5, (2,), (-1,)),
  'negative_size': Tensor(FLOATS, 0, (-2, -3), (1, 1)),
  'more_strides': Tensor(FLOATS, 0, (2,), (1, 1)),
  'repeats_without_end': Tensor(FLOATS, 0, (1 << 40,), (0,)),
  'overflows': Tensor(FLOATS, 0, (1 << 61, 1 << 61), (0, 0)),
  'overflows_empty': Tensor(FLOATS, 0, (0, 1 << 61, 1 << 61), (0, 0, 0)),
  'many_dimensions': Tensor(FLOATS, 0, (1,) * 100, (1,) * 100),
  'storage_too_small': Tensor(FLOATS, claimed=7),
  'storage_too_large': Tensor(FLOATS, shape=(2,), claimed=2),
  'storage_huge': Tensor(FLOATS, claimed=1 << 61),
  'size_is_text': Tensor(FLOATS, 0, ('2',), (1,)),
}


class HostileTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.folder / 'model.pth'

  def assert_refused(self, word: str) -> None:
    """Reading ends in one line that holds `word`, and nothing else happens."""
    before = sorted(self.folder.iterdir())
    modules = set(sys.modules)
    with (
      mock.patch.object(os, 'system') as system,
      self.assertRaises(UserError) as caught,
    ):
      files.read(self.path)
    system.assert_not_called()
    self.assertEqual(sorted(self.folder.iterdir()), before)
    new = {name for name in sys.modules if not name.startswith('encodings.')}
    self.assertEqual(new - modules, set())
    message = str(caught.exception)
    self.assertIn(word, message)
    self.assertIn(str(self.path), message)
    self.assertNotIn('\n', message)
    self.assertLess(len(message), 600)

  @parameterized.product(saver=sorted(SAVERS), name=sorted(HOSTILE_PICKLES))
  def test_pickle(self, saver, name):
    value, word = HOSTILE_PICKLES[name]
    SAVERS[saver](self.path, {'model': small_model(), 'other': value})
    if saver == 'legacy' and name == 'storage_outside':
      word = 'storage'
    self.assert_refused(word)

  @parameterized.product(saver=sorted(SAVERS), name=sorted(HOSTILE_TENSORS))
  def test_tensor(self, saver, name):
    SAVERS[saver](self.path, {'x': HOSTILE_TENSORS[name]})
    self.assert_refused('')

  @parameterized.parameters(sorted(SAVERS))
  def test_pickle_of_too_many_operations(self, saver):
    SAVERS[saver](self.path, {'x': Raw(b']' * 3000)})
    with mock.patch.object(reading, 'MAX_OPERATIONS', 2000):
      self.assert_refused('2000 operations')

  @parameterized.product(
    saver=sorted(SAVERS), kept=(0, 1, 2, 20, 60, 0.3, 0.5, 0.9, -1)
  )
  def test_truncated(self, saver, kept):
    SAVERS[saver](self.path, small_model())
    content = self.path.read_bytes()
    size = int(kept * len(content)) if isinstance(kept, float) else kept
    self.path.write_bytes(content[:size])
    self.assert_refused('cannot read')

  @parameterized.parameters(
    ('archive/../../evil', 'evil'),
    ('../evil', 'evil'),
    ('/etc/evil', 'evil'),
    ('other/evil', 'evil'),
    ('archive\\evil', 'evil'),
    ('archive//evil', 'evil'),
    ('other/data.pkl', 'torch.save'),
  )
  def test_path_tricks(self, name, word):
    torch_files.save_zip(self.path, small_model(), extra={name: b'x'})
    self.assert_refused(word)

  def test_decompression_bomb(self):
    torch_files.save_zip(
      self.path,
      {'x': np.zeros(1 << 22, np.float32)},
      compression=zipfile.ZIP_DEFLATED,
    )
    self.assertLess(self.path.stat().st_size, 1 << 16)
    self.assert_refused('compressed')

  def test_encrypted(self):
    torch_files.save_zip(self.path, small_model())
    content = bytearray(self.path.read_bytes())
    position = content.index(b'PK\x01\x02')
    content[position + 8] |= 1
    self.path.write_bytes(bytes(content))
    self.assert_refused('encrypted')

  def test_size_claimed_by_the_directory(self):
    torch_files.save_zip(self.path, small_model())
    content = bytearray(self.path.read_bytes())
    position = content.index(b'PK\x01\x02')
    content[position + 20 : position + 28] = struct.pack('<2L', *[2**31] * 2)
    self.path.write_bytes(bytes(content))
    self.assert_refused('claims')

  def test_damaged(self):
    torch_files.save_zip(self.path, small_model())
    content = bytearray(self.path.read_bytes())
    content[content.index(FLOATS.tobytes()) + 3] ^= 64
    self.path.write_bytes(bytes(content))
    self.assert_refused('damaged')

  def test_storage_missing(self):
    torch_files.save_zip(self.path, small_model(), replaced={'data/0': None})
    self.assert_refused('data/0')

  def test_storage_of_another_size(self):
    torch_files.save_zip(self.path, small_model(), replaced={'data/0': b'1'})
    self.assert_refused('claims')

  def test_big_endian(self):
    torch_files.save_zip(self.path, small_model(), byteorder=b'big')
    self.assert_refused('endian')

  def test_unknown_version(self):
    torch_files.save_zip(self.path, small_model(), version=b'99\n')
    self.assert_refused('version')

  def test_torchscript(self):
    torch_files.save_zip(
      self.path, small_model(), extra={'archive/code/a.py': b'import os'}
    )
    self.assert_refused('TorchScript')

  def test_two_entries_of_one_name(self):
    with self.assertWarns(UserWarning):
      torch_files.save_zip(
        self.path, small_model(), extra={'archive/data/0': b'x'}
      )
    self.assert_refused('two entries')

  @parameterized.parameters(
    b'not a checkpoint at all',
    b'PK\x03\x04 nor a zip',
    b'\x80\x02K\x01.',
    b'storages\x00' + b'0' * 600,
  )
  def test_other_files(self, content):
    self.path.write_bytes(content)
    self.assert_refused('cannot read')

  def test_absent(self):
    self.assert_refused('no such file')

  def test_folder(self):
    self.path.mkdir()
    self.assert_refused('directory')


if __name__ == '__main__':
  absltest.main()
