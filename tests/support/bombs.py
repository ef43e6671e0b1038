"""Small files that ask for all memory, or for hours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import io
import json
import struct
import zipfile

import numpy as np

from support import torch_files
from support.torch_files import Raw

_P2 = b'\x80\x02'
# What is memorized as 2, called on what is memorized as 1, again and again.
_MANY = b'(' + b'h\x02h\x01\x85R' * 100_000 + b't.'


def _text(text: str) -> bytes:
  encoded = text.encode()
  return b'X' + struct.pack('<I', len(encoded)) + encoded


def _name(module: str, name: str) -> bytes:
  return f'c{module}\n{name}\n'.encode()


def _number_keys(numbers: range, step: int) -> bytes:
  keys = (b'\x8a\x0b' + (step * i).to_bytes(11, 'little') + b'N'
          for i in numbers)  # fmt: skip
  return _P2 + b'}(' + b''.join(keys) + b'u.'


def _pickles() -> dict[str, bytes]:
  long = _text('a' * (1 << 20)) + b'q\x01'
  pairs = b''.join(b'M' + struct.pack('<H', i) + b'N' for i in range(60_000))
  texts = b''.join(_text(f'{i:06}') + b'N' for i in range(60_000))
  members = b''.join(_text(f'{i:06}') for i in range(60_000))
  dictionary = _P2 + b'}(' + texts + b'uq\x01'
  return {
    'text_to_bytes': _P2 + long + _name('_codecs', 'encode') + b'q\x02' + _MANY,
    'device': _P2 + long + _name('torch', 'device') + b'q\x02('
    + b'h\x02h\x01K\x01\x86R' * 100_000 + b't.',
    'dictionary_of_numbers': _P2 + b'}(' + pairs + b'uq\x01'
    + _name('collections', 'OrderedDict') + b'q\x02' + _MANY,
    'dictionary': dictionary + _name('collections', 'OrderedDict') + b'q\x02'
    + _MANY,
    'set': _P2 + b'](' + members + b'eq\x01' + _name('builtins', 'set')
    + b'q\x02' + _MANY,
    'size': _P2 + b'](' + members + b'eq\x01' + _name('torch', 'Size')
    + b'q\x02' + _MANY,
    'namespaces': dictionary + b'(' + (
      _name('argparse', 'Namespace') + b')Rh\x01b'
    ) * 30_000 + b't.',
    'texts': _P2 + b'(' + (b'U\xff' + b'x' * 255) * 4000 + b't'
    + b'0' + b'(' * 2_000_000 + b'.',
    'colliding_keys': _number_keys(range(1, 8000), (1 << 61) - 1),
    'many_colliding_keys': _number_keys(range(1, 200_000), (1 << 61) - 1),
    'members_that_collide': _P2 + b'\x8f(' + b''.join(
      b'\x8a\x0b' + (((1 << 61) - 1) * i).to_bytes(11, 'little')
      for i in range(1, 50_000)
    ) + b'\x90.',
    'nested': _P2 + b']' * 500_000 + b'a' * 499_999 + b'.',
    'nested_dictionaries': _P2 + b'N' + (b'}U\x01a' * 50_000)
    + b'N' + b's' * 50_000 + b'.',
    'long_number': _P2 + b'\x8b' + struct.pack('<i', 9_000_000)
    + b'\x7f' * 9_000_000 + b'.',
    'long_key': _P2 + b'}' + _text('k' * 5_000_000) + b'Ns.',
    'lines': _P2 + b"S'" + b'\\x41' * 2_000_000 + b"'\n.",
    'empty_sets': _P2 + b'(' + b'\x8f' * 9_000_000 + b't.',
  }  # fmt: skip


def _torch(pickled: bytes) -> bytes:
  buffer = io.BytesIO()
  torch_files.save_zip(buffer, pickled)
  return buffer.getvalue()


def _npz(contents: Mapping[str, bytes], method: int) -> bytes:
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', method, compresslevel=1) as archive:
    for name, content in contents.items():
      archive.writestr(name, content)
  return buffer.getvalue()


def _npy(descr: str, shape: str, data: bytes) -> bytes:
  header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
  raw = header.encode() + b'\n'
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(raw)) + raw + data


def _views() -> bytes:
  """Fifty thousand names of one array of four megabytes."""
  buffer = io.BytesIO()
  array = np.zeros(1 << 20, np.float32)
  code = torch_files.Writer().dump(array)[2:-1]
  names = b''.join(_text(f'layer.{i}') + b'h\x07' for i in range(50_000))
  torch_files.save_zip(
    buffer, {'x': array, 'y': Raw(code + b'q\x07' + b'0}(' + names + b'u')}
  )
  return buffer.getvalue()


def _directory(entry_extra: bytes) -> bytes:
  """A zip file whose directory has long fields without content."""
  central = struct.pack(
    '<4s6H3L5H2L', b'PK\x01\x02', 20, 20, 0, 0, 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF,
    1, len(entry_extra), 0, 0, 0, 0, 0,
  ) + b'x' + entry_extra  # fmt: skip
  body = b'PK\x03\x04' + bytes(40)
  number = 9_000_000 // len(central)
  end = struct.pack(
    '<4s4H2LH', b'PK\x05\x06', 0, 0, number, number, number * len(central),
    len(body), 0,
  )  # fmt: skip
  return body + central * number + end


def _overlapping() -> bytes:
  """Entries that are all the same megabytes."""
  one = bytearray(_npz({'x.npy': bytes(1 << 20)}, zipfile.ZIP_STORED))
  start = one.index(b'PK\x01\x02')
  end = one.index(b'PK\x05\x06')
  central = bytes(one[start:end])
  number = 20_000
  return bytes(one[:start]) + central * number + struct.pack(
    '<4s4H2LH', b'PK\x05\x06', 0, 0, number, number, number * len(central),
    start, 0,
  )  # fmt: skip


def _safetensors(header: bytes) -> bytes:
  return struct.pack('<Q', len(header)) + header


def _entry(shape: list[int], offsets: list[int]) -> dict[str, object]:
  return {'dtype': 'F32', 'shape': shape, 'data_offsets': offsets}


def all_bombs() -> dict[str, Callable[[], bytes]]:
  """Returns what makes each file, by name."""
  array = b'\xc7\x19\x01\x93\x91\x03\xa7float32\xc4\x0c' + bytes(12)
  made: dict[str, Callable[[], bytes]] = {
    f'pickle_{name}': lambda code=code: _torch(code)
    for name, code in _pickles().items()
  }
  legacy = torch_files.Writer(legacy=True)
  system = {'protocol_version': 1001, 'little_endian': True}
  start = b''.join(
    legacy.dump(value) for value in (0x1950A86A20F9469CFC6C, 1001, system)
  )
  made.update({
    'legacy': lambda: start + _pickles()['text_to_bytes'],
    'views': _views,
    'npz_zeros': lambda: _npz(
      {f'{i}.npy': _npy('<f4', f'({1 << 24},)', bytes(1 << 26))
       for i in range(5)},
      zipfile.ZIP_DEFLATED,
    ),
    'npz_claim': lambda: _npz(
      {'x.npy': _npy('<f4', f'({1 << 40},)', b'')}, zipfile.ZIP_STORED
    ),
    'npz_nothing': lambda: _npz(
      {'x.npy': _npy('<U0', f'({1 << 40},)', b'')}, zipfile.ZIP_STORED
    ),
    'npz_many': lambda: _npz(
      {f'{i}.npy': _npy('<f4', '()', bytes(4)) for i in range(10_000)},
      zipfile.ZIP_STORED,
    ),
    'zip_fields': lambda: _directory(bytes(65_000)),
    'zip_overlap': _overlapping,
    'safetensors_nested': lambda: _safetensors(b'{"x":' * 1_500_000),
    'safetensors_lists': lambda: _safetensors(
      b'{"x":[' + b'[],' * 1_000_000 + b'0]}'
    ),
    'safetensors_many': lambda: _safetensors(
      json.dumps({f'{i}': _entry([0], [0, 0]) for i in range(50_000)}).encode()
    ),
    'safetensors_claim': lambda: _safetensors(
      json.dumps({'x': _entry([1 << 40], [0, 1 << 42])}).encode()
    ),
    'safetensors_sides': lambda: _safetensors(
      json.dumps({'x': _entry([1] * 1_000_000, [0, 4])}).encode()
    ) + bytes(4),
    'msgpack_claim': lambda: b'\xdd\x7f\xff\xff\xff' * 1000,
    'msgpack_nested': lambda: b'\x81\xa1a' * 3_000_000 + b'\xc0',
    'msgpack_many': lambda: b'\xdd' + struct.pack('>I', 9_000_000)
    + b'\x80' * 9_000_000,
    'msgpack_chains': lambda: b'\xdd' + struct.pack('>I', 100_000)
    + (b'\x81\xa1a' * 30 + b'\x80') * 100_000,
    'msgpack_arrays': lambda: b'\xdd' + struct.pack('>I', 300_000)
    + array * 300_000,
  })  # fmt: skip
  return made
