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
from typing import Any, BinaryIO, NamedTuple, cast

import ml_dtypes
import numpy as np

from adanat_jax.convert import pickle_machine, pickled_numpy
from adanat_jax.convert.pickle_machine import Known, Namespace
from adanat_jax.convert.reading import Budget, is_size, shown
from adanat_jax.convert.zip_archive import ZipArchive
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


# The zip format.


_PICKLE = 'data.pkl'


def pickle_folder(archive: ZipArchive) -> str | None:
  """Returns the folder of a torch file's entries; None in another zip."""
  found = [name for name in archive.entries if name.endswith('/' + _PICKLE)]
  return found[0].removesuffix(_PICKLE) if len(found) == 1 else None


class _TorchArchive:
  """The entries of a torch zip file, checked."""

  def __init__(self, archive: ZipArchive, folder: str):
    self._archive = archive
    self._folder = folder
    for name in archive.entries:
      self._check_name(name)
    if 'constants.pkl' in self or any(
      name.startswith(folder + 'code/') for name in archive.entries
    ):
      raise UserError('a TorchScript program, not saved weights')

  def __contains__(self, name: str) -> bool:
    return self._folder + name in self._archive.entries

  def _check_name(self, name: str) -> None:
    parts = name.split('/')
    if (
      not name.startswith(self._folder)
      or self._folder.count('/') != 1
      or '\\' in name
      or '\0' in name
      or any(part in ('', '.', '..') for part in parts)
    ):
      raise UserError(
        f'an entry is named {shown(name)!r}: torch writes no such'
      )

  def bytes_of(self, name: str) -> memoryview:
    """Returns the bytes of one entry without copying them.

    Raises:
      UserError: if the entry is absent, compressed, encrypted or damaged.
    """
    name = self._folder + name
    data = self._archive.read(name, may_unpack=False)
    # torch writes 0 where it was told to compute no checksums.
    if self._archive.entries[name].checksum:
      self._archive.check(name, data)
    return data


def read_zip(zipped: ZipArchive, folder: str, budget: Budget) -> Any:
  """Reads the zip format, whose entries lie in a `pickle_folder`.

  Returns:
    The object in it, in which tensors are read-only NumPy views of the mapped
    file (bfloat16 as `ml_dtypes.bfloat16`), ordered dictionaries are dicts and
    a `Namespace` is inert.

  Raises:
    UserError: if the file is broken, or holds anything but tensors, ordinary
      containers, numbers of NumPy and a Namespace.
  """
  archive = _TorchArchive(zipped, folder)
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
        f'storage {shown(storage.key)} claims {storage.size} numbers of'
        f' {storage.dtype} and has {raw.size} bytes'
      )
    return storage._replace(data=raw.view(storage.dtype))

  known = _known(_build_tensor)
  machine = pickle_machine.Machine(known, load_storage, budget)
  return machine.run(io.BytesIO(archive.bytes_of(_PICKLE)))


# The format before torch 1.6: five pickles, then the storages.


def read_legacy(mapped: mmap.mmap, budget: Budget) -> Any:
  """Reads the format before torch 1.6; see `read_zip`."""
  storages: dict[str, _Storage] = {}

  def load_storage(persistent_id: Any) -> _Storage:
    storage = _parse_storage(persistent_id, 6)
    if persistent_id[-1] is not None:
      raise UserError(
        f'storage {shown(storage.key)} is a view of another: refused'
      )
    known = storages.setdefault(storage.key, storage)
    if known._replace(data=None) != storage:
      raise UserError(
        f'storage {shown(storage.key)} is given two types or sizes'
      )
    return known

  def unpickle(build: Callable[..., Any] | None = None) -> Any:
    known = _known(build) if build else {}
    machine = pickle_machine.Machine(known, load_storage, budget)
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
      raise UserError(f'truncated in storage {shown(key)}')
    if count != storage.size:
      raise UserError(f'storage {shown(key)} has another size than it claims')
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
    or not is_size(size)
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
    raise UserError(f'storage {shown(storage.key)} has no bytes')
  num_elements = math.prod(layout.shape)
  if num_elements == 0:
    return np.zeros(layout.shape, storage.dtype)
  last = layout.offset + sum(
    (n - 1) * stride
    for n, stride in zip(layout.shape, layout.strides, strict=True)
  )
  if last >= storage.size:
    raise UserError(f'a tensor reaches beyond its storage {shown(storage.key)}')
  if num_elements > max(storage.size, _MAX_REPEATED):
    raise UserError(
      f'a tensor claims {shown(num_elements)} elements by repetition'
    )
  return np.lib.stride_tricks.as_strided(
    storage.data[layout.offset :],
    layout.shape,
    [stride * storage.dtype.itemsize for stride in layout.strides],
    writeable=False,
  )


def _parse_layout(offset: Any, shape: Any, strides: Any) -> _Layout:
  if (
    not is_size(offset)
    or not isinstance(shape, tuple)
    or not isinstance(strides, tuple)
    or len(shape) != len(strides)
    or len(shape) > _MAX_DIMENSIONS
    or not all(map(is_size, shape + strides))
  ):
    raise UserError('a tensor whose offset, shape or strides are no numbers')
  return _Layout(offset, shape, strides)


def _known(build: Callable[[_Storage, _Layout], Any]) -> dict[str, Known]:
  """Returns the names a torch file may hold; `build` makes its tensors."""

  def rebuild_tensor(budget, storage, offset, shape, strides, *_) -> Any:
    budget.hold_array()
    if not isinstance(storage, _Storage):
      raise UserError('a tensor without a storage')
    return build(storage, _parse_layout(offset, shape, strides))

  def rebuild_parameter(budget, data, *_) -> Any:
    return data

  def rebuild_subclass(budget, function, kind, arguments, *_) -> Any:
    if (
      not isinstance(function, Known)
      or function.name != 'torch._utils._rebuild_tensor_v2'
      or not isinstance(kind, Known)
      or kind.name not in ('torch.Tensor', 'torch.nn.parameter.Parameter')
      or not isinstance(arguments, tuple)
    ):
      raise UserError('a subclass of a tensor: refused')
    return rebuild_tensor(budget, *arguments)

  def make_device(budget, kind, index=None) -> str:
    # Anything else could be a text that doubles with each of its levels.
    if not isinstance(kind, str) or not (index is None or is_size(index)):
      raise UserError('a device that is no text and number')
    budget.spend(len(kind))
    return kind if index is None else f'{kind}:{index}'

  def make_namespace(budget, kind=None, *_) -> Namespace:
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
    'torch.Size': pickle_machine.make_size,
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
  known = {name: Known(name, build) for name, build in builders.items()}
  return {**known, **pickled_numpy.known()}
