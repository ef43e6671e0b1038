"""Reads files of `torch.save` without torch, and without running them.

The zip format (torch 1.6 and later) and the pickle format before it. The file
is mapped into memory and tensors are read-only views of it, so reading costs
little memory and no copies. `pickle_machine` interprets the pickle inside:
it knows tensors, ordinary containers and an inert `argparse.Namespace`, and
refuses everything else by name.
"""

from __future__ import annotations

from collections.abc import Callable
import io
import math
import mmap
import os
import pathlib
import struct
from typing import Any, BinaryIO, NamedTuple, cast
import zipfile
import zlib

import ml_dtypes
import numpy as np

from adanat_jax.convert import pickle_machine
from adanat_jax.convert.pickle_machine import Known, Namespace
from adanat_jax.errors import UserError

_STORAGES: dict[str, Any] = {
  'Double': np.float64,
  'Float': np.float32,
  'Half': np.float16,
  'BFloat16': ml_dtypes.bfloat16,
  'Long': np.int64,
  'Int': np.int32,
  'Short': np.int16,
  'Char': np.int8,
  'Byte': np.uint8,
  'Bool': np.bool_,
  'ComplexFloat': np.complex64,
  'ComplexDouble': np.complex128,
}
_STORAGE_DTYPES = {
  f'torch.{name}Storage': np.dtype(kind) for name, kind in _STORAGES.items()
}
# Types that a file may mention beside its tensors.
_DTYPES = tuple(f'torch.{kind}' for kind in _STORAGE_DTYPES.values())

# The first two pickles of a file written before torch 1.6.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001

# The versions of the zip format that differ in nothing that is read here.
_ZIP_VERSIONS = range(1, 11)
_LOCAL_HEADER = struct.Struct('<4s5H3L2H')
_MAX_DIMENSIONS = 32

# A tensor may repeat its storage (stride 0) up to this many elements; beyond,
# a file of a few bytes could claim all the memory there is.
_MAX_REPEATED = 1 << 20


class _Storage(NamedTuple):
  """A run of bytes of the file; `data` is None until a legacy file fills it."""

  key: str
  dtype: np.dtype
  size: int  # in elements
  data: np.ndarray | None


def read(path: str | os.PathLike[str]) -> Any:
  """Reads a file that `torch.save` wrote.

  Args:
    path: a `.pth`, `.pt` or `.ckpt` file.

  Returns:
    The object in it, in which tensors are read-only NumPy views of the mapped
    file (bfloat16 as `ml_dtypes.bfloat16`), ordered dictionaries are dicts and
    a `Namespace` is inert.

  Raises:
    UserError: if the file is broken, of another kind, or holds anything but
      tensors, ordinary containers and a Namespace.
  """
  path = pathlib.Path(path)
  try:
    with path.open('rb') as file:
      mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
  except (OSError, ValueError) as error:
    raise UserError(f'cannot read {path}: {error}') from error
  try:
    if mapped[:2] == b'PK':
      return _read_zip(mapped)
    return _read_legacy(mapped)
  except UserError as error:
    raise UserError(f'cannot read {path}: {error}') from error


# The zip format.


class _Archive:
  """The entries of a torch zip file, checked, as views of the mapped file."""

  def __init__(self, mapped: mmap.mmap):
    self._view = memoryview(mapped)
    try:
      with zipfile.ZipFile(cast(BinaryIO, mapped)) as archive:
        infos = archive.infolist()
    except (
      zipfile.BadZipFile,
      NotImplementedError,
      OverflowError,
      UnicodeDecodeError,
      ValueError,
      struct.error,
    ) as error:
      raise UserError(f'a truncated or broken zip file ({error})') from error
    pickles = [i.filename for i in infos if i.filename.endswith('/data.pkl')]
    if len(pickles) != 1:
      raise UserError('a zip file, but not one that torch.save wrote')
    self._prefix = pickles[0][: -len('data.pkl')]
    self._infos: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
      self._check_name(info)
      if info.filename in self._infos:
        raise UserError(f'two entries are named {info.filename!r:.200}')
      self._infos[info.filename] = info
    if 'constants.pkl' in self or any(
      name.startswith(self._prefix + 'code/') for name in self._infos
    ):
      raise UserError('a TorchScript program, not saved weights')

  def __contains__(self, name: str) -> bool:
    return self._prefix + name in self._infos

  def _check_name(self, info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    parts = name.split('/')
    if (
      info.filename != name
      or not name.startswith(self._prefix)
      or self._prefix.count('/') != 1
      or '\\' in name
      or any(part in ('', '.', '..') for part in parts)
    ):
      raise UserError(f'an entry is named {name!r:.200}: torch writes no such')

  def bytes_of(self, name: str) -> memoryview:
    """Returns the bytes of one entry without copying them.

    Raises:
      UserError: if the entry is absent, compressed, encrypted or damaged.
    """
    info = self._infos.get(self._prefix + name)
    if info is None:
      raise UserError(f'truncated: the entry {name!r:.200} is not there')
    if info.flag_bits & 1:
      raise UserError(f'its entry {name} is encrypted')
    if info.compress_type != zipfile.ZIP_STORED:
      raise UserError(f'its entry {name} is compressed: torch writes no such')
    start = info.header_offset
    if start < 0 or start + _LOCAL_HEADER.size > len(self._view):
      raise UserError(f'truncated before its entry {name}')
    header = _LOCAL_HEADER.unpack_from(self._view, start)
    name_length, extra_length = header[-2:]
    start += _LOCAL_HEADER.size
    local_name = bytes(self._view[start : start + name_length])
    if header[0] != b'PK\x03\x04' or local_name != info.filename.encode():
      raise UserError(f'the header of its entry {name} is broken')
    start += name_length + extra_length
    data = self._view[start : start + info.file_size]
    if info.compress_size != info.file_size or len(data) != info.file_size:
      raise UserError(f'its entry {name} claims {info.file_size} bytes')
    # torch writes 0 where it was told to compute no checksums.
    if info.CRC and zlib.crc32(data) != info.CRC:
      raise UserError(f'its entry {name} is damaged (its checksum is wrong)')
    return data


def _read_zip(mapped: mmap.mmap) -> Any:
  archive = _Archive(mapped)
  if 'version' in archive:
    version = bytes(archive.bytes_of('version')[:16]).strip()
    if not version.isdigit() or int(version) not in _ZIP_VERSIONS:
      raise UserError(f'version {version!r} of the format is not known')
  if 'byteorder' in archive:
    order = bytes(archive.bytes_of('byteorder')[:16])
    if order != b'little':
      raise UserError(f'its numbers are {order!r}-endian; only little is read')
  storages: dict[str, np.ndarray] = {}

  def load_storage(persistent_id: Any) -> _Storage:
    storage = _parse_storage(persistent_id, 5)
    if storage.key not in storages:
      data = archive.bytes_of(f'data/{storage.key}')
      storages[storage.key] = np.frombuffer(data, np.uint8)
    raw = storages[storage.key]
    if raw.size != storage.size * storage.dtype.itemsize:
      raise UserError(
        f'storage {storage.key} claims {storage.size} numbers of'
        f' {storage.dtype} and has {raw.size} bytes'
      )
    return storage._replace(data=raw.view(storage.dtype))

  machine = pickle_machine.Machine(_known(_build_tensor), load_storage)
  return machine.run(io.BytesIO(archive.bytes_of('data.pkl')))


# The format before torch 1.6: five pickles, then the storages.


def _read_legacy(mapped: mmap.mmap) -> Any:
  storages: dict[str, _Storage] = {}

  def load_storage(persistent_id: Any) -> _Storage:
    storage = _parse_storage(persistent_id, 6)
    if persistent_id[-1] is not None:
      raise UserError(f'storage {storage.key} is a view of another: refused')
    known = storages.setdefault(storage.key, storage)
    if known._replace(data=None) != storage:
      raise UserError(f'storage {storage.key} is given two types or sizes')
    return known

  def unpickle(build: Callable[..., Any] | None = None) -> Any:
    known = _known(build) if build else {}
    machine = pickle_machine.Machine(known, load_storage)
    return machine.run(cast(BinaryIO, mapped))

  try:
    magic = unpickle()
  except UserError as error:
    raise UserError(
      'not a file that torch.save wrote (neither its zip nor its pickle'
      ' format; the tar format before torch 0.1.10 is not read)'
    ) from error
  if not isinstance(magic, int) or magic != _LEGACY_MAGIC:
    raise UserError('a pickle, but not one that torch.save wrote')
  version, system = unpickle(), unpickle()
  if version != _LEGACY_VERSION or not isinstance(system, dict):
    raise UserError('its version of the old torch format is not known')
  if system.get('little_endian') is not True:
    raise UserError('its numbers are big-endian; only little is read')
  # The storages follow the tensors that view them: the first pass learns their
  # types and sizes, the second one builds the tensors.
  start = mapped.tell()
  unpickle(lambda storage, layout: None)
  keys = unpickle()
  if (
    not isinstance(keys, list)
    or not all(isinstance(key, str) for key in keys)
    or sorted(keys) != sorted(storages)
  ):
    raise UserError('its list of storages does not match its tensors')
  position = mapped.tell()
  for key in keys:
    storage = storages[key]
    count = int.from_bytes(mapped[position : position + 8], 'little')
    position += 8
    num_bytes = storage.size * storage.dtype.itemsize
    if position + num_bytes > len(mapped):
      raise UserError(f'truncated in storage {key}')
    if count != storage.size:
      raise UserError(f'storage {key} has another size than it claims')
    data = np.frombuffer(mapped, storage.dtype, count, offset=position)
    storages[key] = storage._replace(data=data)
    position += num_bytes
  mapped.seek(start)
  return unpickle(_build_tensor)


# Tensors.


def _parse_storage(persistent_id: Any, length: int) -> _Storage:
  """Checks ('storage', type, key, device, size, ...) of a pickle."""
  if not isinstance(persistent_id, tuple) or len(persistent_id) != length:
    raise UserError('a persistent id that names no storage')
  kind, storage_type, key, _, size = persistent_id[:5]
  if (
    kind != 'storage'
    or not isinstance(storage_type, Known)
    or storage_type.name not in _STORAGE_DTYPES
    or not isinstance(key, str)
    or not _is_size(size)
  ):
    raise UserError('a persistent id that names no storage')
  return _Storage(key, _STORAGE_DTYPES[storage_type.name], size, None)


class _Layout(NamedTuple):
  """Where the elements of a tensor lie in its storage, in elements."""

  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def _build_tensor(storage: _Storage, layout: _Layout) -> np.ndarray:
  """Returns the view of a storage that is the tensor."""
  if storage.data is None:
    raise UserError(f'storage {storage.key} has no bytes')
  num_elements = math.prod(layout.shape)
  if num_elements == 0:
    return np.zeros(layout.shape, storage.dtype)
  last = layout.offset + sum(
    (n - 1) * stride
    for n, stride in zip(layout.shape, layout.strides, strict=True)
  )
  if last >= storage.size:
    raise UserError(f'a tensor reaches beyond its storage {storage.key}')
  if num_elements > max(storage.size, _MAX_REPEATED):
    raise UserError(f'a tensor claims {num_elements} elements by repetition')
  return np.lib.stride_tricks.as_strided(
    storage.data[layout.offset :],
    layout.shape,
    [stride * storage.dtype.itemsize for stride in layout.strides],
    writeable=False,
  )


def _is_size(value: Any) -> bool:
  return type(value) is int and 0 <= value < 1 << 62


def _parse_layout(offset: Any, shape: Any, strides: Any) -> _Layout:
  if (
    not _is_size(offset)
    or not isinstance(shape, tuple)
    or not isinstance(strides, tuple)
    or len(shape) != len(strides)
    or len(shape) > _MAX_DIMENSIONS
    or not all(map(_is_size, shape + strides))
  ):
    raise UserError('a tensor whose offset, shape or strides are no numbers')
  return _Layout(offset, shape, strides)


def _known(build: Callable[[_Storage, _Layout], Any]) -> dict[str, Known]:
  """Returns the names a torch file may hold; `build` makes its tensors."""

  def rebuild_tensor(storage, offset, shape, strides, *_) -> Any:
    if not isinstance(storage, _Storage):
      raise UserError('a tensor without a storage')
    return build(storage, _parse_layout(offset, shape, strides))

  def rebuild_parameter(data, *_) -> Any:
    return data

  def rebuild_subclass(function, kind, arguments, *_) -> Any:
    if (
      not isinstance(function, Known)
      or function.name != 'torch._utils._rebuild_tensor_v2'
      or not isinstance(kind, Known)
      or kind.name not in ('torch.Tensor', 'torch.nn.parameter.Parameter')
      or not isinstance(arguments, tuple)
    ):
      raise UserError('a subclass of a tensor: refused')
    return rebuild_tensor(*arguments)

  def make_device(kind, index=None) -> str:
    # Anything else could be a text that doubles with each of its levels.
    if not isinstance(kind, str) or not (index is None or _is_size(index)):
      raise UserError('a device that is no text and number')
    return kind if index is None else f'{kind}:{index}'

  def make_namespace(kind=None, *_) -> Namespace:
    if kind is not None and getattr(kind, 'name', '') != 'argparse.Namespace':
      raise UserError('it reconstructs something other than a Namespace')
    return Namespace()

  builders: dict[str, Callable[..., Any] | None] = {
    'torch._utils._rebuild_tensor': rebuild_tensor,
    'torch._utils._rebuild_tensor_v2': rebuild_tensor,
    'torch._utils._rebuild_parameter': rebuild_parameter,
    'torch._tensor._rebuild_from_type_v2': rebuild_subclass,
    'torch.Tensor': None,
    'torch.nn.parameter.Parameter': None,
    'torch.Size': tuple,
    'torch.device': make_device,
    'argparse.Namespace': make_namespace,
    'copy_reg._reconstructor': make_namespace,
    'copyreg._reconstructor': make_namespace,
    'collections.OrderedDict': pickle_machine.ordered_dict,
    'collections.defaultdict': pickle_machine.default_dict,
    '_codecs.encode': pickle_machine.make_bytes,
  }
  for module in ('builtins', '__builtin__'):
    builders[f'{module}.set'] = pickle_machine.make_set
    builders[f'{module}.frozenset'] = pickle_machine.make_set
    for name in ('object', 'dict', 'list', 'int', 'float', 'bool', 'str'):
      builders[f'{module}.{name}'] = None
  for name in (*_STORAGE_DTYPES, *_DTYPES):
    builders[name] = None
  return {name: Known(name, build) for name, build in builders.items()}
