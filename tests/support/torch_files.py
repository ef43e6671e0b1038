"""Writes files as `torch.save` does, without torch: for tests.

A small pickler of protocol 2 that can also write what no honest file holds.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import struct
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

STORAGE_NAMES = {
  np.dtype(np.float64): 'DoubleStorage',
  np.dtype(np.float32): 'FloatStorage',
  np.dtype(np.float16): 'HalfStorage',
  np.dtype(ml_dtypes.bfloat16): 'BFloat16Storage',
  np.dtype(np.int64): 'LongStorage',
  np.dtype(np.int32): 'IntStorage',
  np.dtype(np.int16): 'ShortStorage',
  np.dtype(np.int8): 'CharStorage',
  np.dtype(np.uint8): 'ByteStorage',
  np.dtype(np.bool_): 'BoolStorage',
  np.dtype(np.complex64): 'ComplexFloatStorage',
}


@dataclasses.dataclass
class Global:
  """The name of something importable."""

  module: str
  name: str


@dataclasses.dataclass
class Call:
  """`function(*arguments)` on reading, then `state` set on the result."""

  function: Any
  arguments: tuple[Any, ...] = ()
  state: Any = None


@dataclasses.dataclass
class Persistent:
  """An object outside of the pickle."""

  identity: Any


@dataclasses.dataclass
class Raw:
  """Opcodes written as they are."""

  code: bytes


@dataclasses.dataclass
class Tensor:
  """A view of a flat array, given in elements; by default all of it."""

  storage: np.ndarray
  offset: int = 0
  shape: tuple[int, ...] | None = None
  strides: tuple[int, ...] | None = None
  claimed: int | None = None


class Writer:
  """Pickles one object; collects the storages of its tensors."""

  def __init__(self, legacy: bool = False):
    self.storages: list[np.ndarray] = []
    self._legacy = legacy

  def dump(self, value: Any) -> bytes:
    out = io.BytesIO()
    out.write(b'\x80\x02')
    self._write(out, value)
    out.write(b'.')
    return out.getvalue()

  def _write(self, out: io.BytesIO, value: Any) -> None:
    if value is None:
      out.write(b'N')
    elif isinstance(value, bool):
      out.write(b'\x88' if value else b'\x89')
    elif isinstance(value, int):
      size = value.bit_length() // 8 + 1
      if size < 256:
        out.write(b'\x8a' + bytes([size]))
      else:
        out.write(b'\x8b' + struct.pack('<i', size))
      out.write(value.to_bytes(size, 'little', signed=True))
    elif isinstance(value, float):
      out.write(b'G' + struct.pack('>d', value))
    elif isinstance(value, str):
      text = value.encode()
      out.write(b'X' + struct.pack('<I', len(text)) + text)
    elif isinstance(value, tuple):
      out.write(b'(')
      for item in value:
        self._write(out, item)
      out.write(b't')
    elif isinstance(value, list):
      out.write(b'](')
      for item in value:
        self._write(out, item)
      out.write(b'e')
    elif isinstance(value, dict):
      out.write(b'}(')
      for key, item in value.items():
        self._write(out, key)
        self._write(out, item)
      out.write(b'u')
    elif isinstance(value, np.ndarray):
      self._write(out, Tensor(value.reshape(-1), shape=value.shape))
    else:
      self._write_object(out, value)

  def _write_object(self, out: io.BytesIO, value: Any) -> None:
    if isinstance(value, Raw):
      out.write(value.code)
    elif isinstance(value, Global):
      out.write(f'c{value.module}\n{value.name}\n'.encode())
    elif isinstance(value, Persistent):
      self._write(out, value.identity)
      out.write(b'Q')
    elif isinstance(value, Call):
      self._write(out, value.function)
      self._write(out, value.arguments)
      out.write(b'R')
      if value.state is not None:
        self._write(out, value.state)
        out.write(b'b')
    elif isinstance(value, Tensor):
      self._write(out, self._call_of(value))
    else:
      raise TypeError(type(value))

  def _call_of(self, tensor: Tensor) -> Call:
    storage = tensor.storage
    if not any(known is storage for known in self.storages):
      self.storages.append(storage)
    index = [known is storage for known in self.storages].index(True)
    shape = storage.shape if tensor.shape is None else tensor.shape
    strides = tensor.strides
    if strides is None:
      strides = tuple(
        int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))
      )
    size = storage.size if tensor.claimed is None else tensor.claimed
    identity: tuple[Any, ...] = (
      'storage',
      Global('torch', STORAGE_NAMES[storage.dtype]),
      str(index),
      'cpu',
      size,
    )
    if self._legacy:
      identity += (None,)
    return Call(
      Global('torch._utils', '_rebuild_tensor_v2'),
      (
        Persistent(identity),
        tensor.offset,
        shape,
        strides,
        False,
        Call(Global('collections', 'OrderedDict')),
      ),
    )


def namespace(**fields: Any) -> Call:
  """The pickle of an `argparse.Namespace`."""
  return Call(Global('argparse', 'Namespace'), (), fields)


def save_zip(
  path: pathlib.Path,
  value: Any,
  *,
  prefix: str = 'archive',
  version: bytes = b'3\n',
  byteorder: bytes = b'little',
  extra: dict[str, bytes] | None = None,
  replaced: dict[str, bytes | None] | None = None,
  compression: int = zipfile.ZIP_STORED,
) -> None:
  """Writes `value` in the zip format.

  Args:
    path: the file.
    value: what the pickle holds, or the bytes of a pickle.
    prefix: the folder in the archive.
    version: content of its `version`.
    byteorder: content of its `byteorder`.
    extra: further entries, by full name.
    replaced: other contents of entries by name, None to leave one out.
    compression: of all entries; torch always stores.
  """
  writer = Writer()
  pickled = value if isinstance(value, bytes) else writer.dump(value)
  entries: dict[str, bytes | None] = {
    'data.pkl': pickled,
    'byteorder': byteorder,
    'version': version,
  }
  for index, storage in enumerate(writer.storages):
    entries[f'data/{index}'] = storage.tobytes()
  entries.update(replaced or {})
  with zipfile.ZipFile(path, 'w', compression) as archive:
    for name, content in entries.items():
      if content is not None:
        archive.writestr(f'{prefix}/{name}', content)
    for name, content in (extra or {}).items():
      archive.writestr(name, content)


def save_legacy(path: pathlib.Path, value: Any) -> None:
  """Writes `value` in the format before torch 1.6."""
  writer = Writer(legacy=True)
  system = {
    'protocol_version': 1001,
    'little_endian': True,
    'type_sizes': {'short': 2, 'int': 4, 'long': 4},
  }
  pickled = writer.dump(value)
  keys = [str(index) for index in range(len(writer.storages))]
  with path.open('wb') as file:
    for header in (0x1950A86A20F9469CFC6C, 1001, system):
      file.write(writer.dump(header))
    file.write(pickled)
    file.write(writer.dump(keys))
    for storage in writer.storages:
      file.write(struct.pack('<q', storage.size) + storage.tobytes())
