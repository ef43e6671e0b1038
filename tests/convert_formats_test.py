"""Formats by their first bytes, and what is no file of weights at all."""

import gzip
import io
import json
import pathlib
import tarfile
import zipfile

from absl.testing import absltest, parameterized
from flax import serialization
import ml_dtypes
import numpy as np
from safetensors.numpy import save

from adanat_jax.convert import entries, files, formats
from adanat_jax.errors import UserError
from support import torch_files

_CASES = pathlib.Path(__file__).with_name('data') / 'cases' / 'weights'
SMALL = {
  'a': np.arange(6, dtype=np.float32).reshape(2, 3),
  'b': np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
  'c': np.array(3, np.int64),
  'd': np.zeros((0, 2), np.float16),
}


def npz(arrays, save_arrays=np.savez) -> bytes:
  buffer = io.BytesIO()
  save_arrays(buffer, **arrays)
  return buffer.getvalue()


class FormatsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)

  def write(self, content: bytes, name: str = 'weights.pth') -> pathlib.Path:
    path = self.folder / name
    path.write_bytes(content)
    return path

  def assert_refused(self, content: bytes | pathlib.Path, *words: str) -> None:
    if isinstance(content, bytes):
      content = self.write(content)
    with self.assertRaises(UserError) as caught:
      files.read(content)
    message = str(caught.exception)
    for word in (str(content), *words):
      self.assertIn(word, message)
    self.assertTrue(message.isprintable())

  @parameterized.parameters(
    'weights', 'WEIGHTS.PTH', 'weights.pth.tar', 'weights.npz', 'a.safetensors',
    'a.msgpack', 'a.bin', 'a.h5', 'pytorch_model.bin.1',
  )  # fmt: skip
  def test_endings_say_nothing(self, name):
    zipped, legacy = self.folder / 'zip', self.folder / 'legacy'
    torch_files.save_zip(zipped, SMALL)
    torch_files.save_legacy(legacy, SMALL)
    for content in (
      zipped.read_bytes(),
      legacy.read_bytes(),
      save({k: np.ascontiguousarray(x) for k, x in SMALL.items()}),
      npz(SMALL),
      npz(SMALL, np.savez_compressed),
      serialization.msgpack_serialize(dict(SMALL)),
    ):
      found = entries.find_arrays(files.read(self.write(content, name)))
      self.assertEqual(set(found), set(SMALL))
      for key, x in SMALL.items():
        np.testing.assert_array_equal(found[key], x, key)
        self.assertEqual(found[key].dtype, x.dtype, key)

  @parameterized.parameters(
    ('download_page.pth', 'an HTML page (Download warning), not weights',
     'download again'),
    ('download_page.safetensors', 'an HTML page, not weights', 'log in'),
    ('lfs_pointer.pth', 'git-lfs to a file of 218,000,000 bytes',
     "'git lfs pull'"),
  )  # fmt: skip
  def test_cases(self, name, *words):
    self.assert_refused(_CASES / name, *words)

  @parameterized.parameters(
    (b'\n\n  <html><head><title>\n Sign in\x1b[2J </title>', 'page (Sign in'),
    (b'\xef\xbb\xbf<!doctype HTML><title>x</title>', 'an HTML page (x)'),
    ('\ufeff<html></html>'.encode('utf-16-le'), 'an HTML page'),
    (b'<html><title>caf\xe9</title>', 'an HTML page (caf'),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied', 'an XML page'),
    (b'{"error": "Invalid username or password."}', 'a text, not weights',
     'Invalid username'),
    (b'Entry not found', "a text, not weights: it begins with 'Entry not"),
    (json.dumps({'weight_map': {'a': 'x-1.bin', 'b': 'x-2.bin'}}).encode(),
     'the index of a file in parts', '(x-1.bin, x-2.bin)'),
    (b'/annex/objects/SHA256E-s3--0', "'git annex get'"),
    (b'', 'it is empty'),
    (bytes(5000), 'was not finished'),
    (gzip.compress(b'x'), 'compressed by gzip: unpack it first'),
    (b'\x89HDF\r\n\x1a\n', 'an HDF5 file', 'torch'),
    (b'\x93NUMPY\x01\x00v\x00', 'one array without a name'),
    (b'\x00\x01\x02' * 9, 'its first bytes, 00 01 02', 'safetensors'),
    (b'\x80\x04K\x01.', 'a pickle, but not one that torch.save wrote'),
    (b'\x80', 'not a file that torch.save wrote'),
  )  # fmt: skip
  def test_other_files(self, content, *words):
    self.assert_refused(content, *words)

  def test_archives_of_something_else(self):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
      archive.writestr('photos/\x1b[2J.jpg', b'x')
    self.assert_refused(buffer.getvalue(), 'neither', r'photos/\x1b[2J.jpg')
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
      archive.addfile(tarfile.TarInfo('model.pth'))
    self.assert_refused(buffer.getvalue(), 'a tar archive: unpack it first')

  def test_what_is_no_file(self):
    self.assert_refused(self.folder / 'none', 'there is no such file')
    self.assert_refused(self.folder, 'it is a directory')
    self.assert_refused(pathlib.Path('/dev/null'), 'no regular file')

  @parameterized.parameters(*sorted(_CASES.glob('convert_npz_header_*')))
  def test_headers_of_npz(self, path):
    self.assert_refused(path, 'mu.npy: its header is not as NumPy writes it')

  @parameterized.parameters(*sorted(_CASES.glob('*.msgpack')))
  def test_types_of_msgpack(self, path):
    self.assert_refused(path, 'an array of type (2,,, which is not read')

  @parameterized.parameters(
    ("{'shape': (3,), 'fortran_order': False, 'descr': '<f4'}", 1),
    ('{"descr": "<f4", "fortran_order": False, "shape": (3L,), }', 1),
    ("{'descr':'<f4','fortran_order':True,'shape':(3,)}", 2),
    ("  {'descr': '<f4', 'fortran_order': False, 'shape': (3,), }   ", 3),
  )
  def test_other_writers_of_npz(self, header, version):
    raw = header.encode() + b'\n'
    size = len(raw).to_bytes(2 if version == 1 else 4, 'little')
    numbers = np.arange(3, dtype=np.float32)
    array = b'\x93NUMPY' + bytes([version, 0]) + size + raw + numbers.tobytes()
    path = self.folder / 'x.npz'
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('x.npy', array)
      archive.writestr('readme.txt', b'not an array')
    np.testing.assert_array_equal(files.read(path)['x'], numbers)

  def test_types_of_npz(self):
    arrays = {
      kind: np.array([1, 0, 3]).astype(kind)
      for kind in ('>f4', '<f8', 'f2', '>i8', 'u1', 'b1', 'c8', 'U3', 'S2')
    }
    read = files.read(self.write(npz(arrays)))
    for kind, x in arrays.items():
      np.testing.assert_array_equal(read[kind], x)
      self.assertEqual(read[kind].dtype, np.dtype(kind))

  def test_complex_numbers_keep_their_imaginary_part(self):
    x = np.array([1 + 2j], np.complex64)
    zipped = self.folder / 'zip'
    torch_files.save_zip(zipped, {'x': x})
    packed = serialization.msgpack_serialize({'x': x, 'y': 1 + 2j})
    for content in (zipped.read_bytes(), npz({'x': x}), packed, save({'x': x})):
      read = files.read(self.write(content))
      np.testing.assert_array_equal(read['x'], x)
    self.assertEqual(files.read(self.write(packed))['y'], 1 + 2j)

  def test_everything_that_flax_writes(self):
    value = {
      'text': 'a\xff', 'none': None, 'yes': True, 'no': False, 'bytes': b'abc',
      'numbers': {str(i): n for i, n in enumerate(
        (0, 127, 128, 255, 65535, 1 << 31, (1 << 64) - 1, -1, -32, -33, -129,
         -40_000, -(1 << 40), 0.5)
      )},
      'scalars': {'a': np.float32(2.5), 'b': np.int64(-3)},
      'half': np.arange(3).astype(ml_dtypes.bfloat16),
      'long': {str(i): 'x' * i for i in (31, 32, 255, 256, 70_000)},
      'many': {str(i): i for i in range(70_000)},
    }  # fmt: skip
    read = files.read(self.write(serialization.msgpack_serialize(value)))
    np.testing.assert_array_equal(read.pop('half'), value.pop('half'))
    self.assertEqual(read, value)

  def test_large_arrays_of_flax(self):
    chunked = lambda parts, shape: {
      '__msgpack_chunked_array__': True,
      'shape': {str(i): n for i, n in enumerate(shape)},
      'chunks': {str(i): x for i, x in enumerate(parts)},
    }
    pack = lambda value: serialization.msgpack_serialize({'x': value})
    parts = np.split(np.arange(6, dtype=np.float32), 3)
    read = files.read(self.write(pack(chunked(parts, (3, 2)))))
    np.testing.assert_array_equal(
      read['x'], np.concatenate(parts).reshape(3, 2)
    )
    for broken in (
      chunked(parts, (4, 2)), chunked([], ()), chunked(['a'], (1,)),
      chunked([parts[0], parts[1].astype(np.float64)], (4,)),
      {'__msgpack_chunked_array__': True, 'shape': 3, 'chunks': [1]},
    ):  # fmt: skip
      self.assert_refused(pack(broken), 'do not fit together')

  def test_every_format_is_named(self):
    for name in ('torch', 'safetensors', 'npz', 'msgpack'):
      self.assertIn(name, formats.READ)


if __name__ == '__main__':
  absltest.main()
