"""Reads foreign files of arrays, and runs nothing that they hold.

Torch files go through `torch_reader`, NumPy's without pickles; safetensors and
Flax's msgpack hold arrays alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import struct
from types import ModuleType
from typing import Any
import zipfile
import zlib

from flax import serialization
import ml_dtypes
import numpy as np

from adanat_jax.convert import torch_reader
from adanat_jax.errors import UserError

TORCH_SUFFIXES = ('.pth', '.pt', '.ckpt', '.bin')
_SAFETENSORS_TYPES: dict[str, Any] = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}

# What NumPy and msgpack raise for files that are broken or hostile.
_BROKEN = (
  ArithmeticError,
  AttributeError,
  EOFError,
  LookupError,
  MemoryError,
  OSError,
  RecursionError,
  TypeError,
  ValueError,
  zipfile.BadZipFile,
)

# How deep the arrays may lie in nested dictionaries.
_DEEPEST = 8

FORMATS = '.pth, .pt, .ckpt, .bin (torch), .safetensors, .npz, .msgpack (Flax)'


def read(path: str | os.PathLike[str]) -> Any:
  """Reads one file by its ending; one without an ending is Flax's msgpack.

  Returns:
    What it holds: dictionaries of arrays, and for torch files what else stood
    in them.

  Raises:
    UserError: if the file is absent, broken, hostile or of another format.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    reason = 'it is a directory' if path.is_dir() else 'there is no such file'
    raise UserError(f'cannot read {path}: {reason}')
  if path.suffix in TORCH_SUFFIXES:
    return torch_reader.read(path)
  if path.suffix == '.safetensors':
    return _read_safetensors(path)
  if path.suffix == '.npz':
    return _read_npz(path)
  if path.suffix in ('', '.msgpack'):
    return _read_msgpack(path)
  raise UserError(f'cannot read {path}: the ending is none of {FORMATS}')


def read_parts(paths: Sequence[str | os.PathLike[str]]) -> Any:
  """Reads a file, or the parts of one that was split by keys.

  Raises:
    UserError: see `read`; also if two parts hold one key.
  """
  if len(paths) == 1:
    return read(paths[0])
  merged: dict[str, Any] = {}
  for path in paths:
    part = read(path)
    if not isinstance(part, Mapping):
      raise UserError(f'{path} is no dictionary: it cannot be a part of one')
    if both := sorted(merged.keys() & part.keys()):
      raise UserError(f'{path} holds {both[0]} again: not parts of one file')
    merged.update(part)
  return merged


def _safetensors() -> ModuleType:
  try:
    import safetensors.numpy
  except ImportError as error:
    raise UserError(
      "safetensors files need a package: pip install 'adanat_jax[convert]'"
    ) from error
  return safetensors


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Maps the arrays instead of copying them: whole CLIPs have ten gigabytes."""
  library = _safetensors()
  try:
    # The library checks names, types and that the offsets fit the file.
    with library.safe_open(path, 'np') as checked:
      names = list(checked.keys())
    mapped = np.memmap(path, np.uint8, 'r')
    start = 8 + int.from_bytes(mapped[:8].tobytes(), 'little')
    header = json.loads(mapped[8:start].tobytes())
    arrays = {}
    for name in names:
      first, last = header[name]['data_offsets']
      data = mapped[start + first : start + last]
      dtype = _SAFETENSORS_TYPES[header[name]['dtype']]
      arrays[name] = data.view(dtype).reshape(header[name]['shape'])
    return arrays
  except KeyError as error:
    raise UserError(f'cannot read {path}: numbers of type {error}') from error
  except (library.SafetensorError, OSError, TypeError, ValueError) as error:
    raise UserError(f'cannot read {path}: {_in_short(error)}') from error


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with path.open('rb') as raw, np.load(raw, allow_pickle=False) as file:
      return {name: file[name] for name in file.files}
  # A RuntimeError is an encrypted entry, or one of another compression.
  except (*_BROKEN, RuntimeError, struct.error, zlib.error) as error:
    raise UserError(f'cannot read {path}: {_in_short(error)}') from error


def _read_msgpack(path: pathlib.Path) -> Any:
  try:
    return serialization.msgpack_restore(path.read_bytes())
  except _BROKEN as error:
    raise UserError(
      f'cannot read {path} as Flax msgpack: {_in_short(error)}'
    ) from error


def _in_short(error: BaseException) -> str:
  first = (str(error) or type(error).__name__).splitlines()[0]
  return first[:200]


def write_safetensors(
  path: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes arrays by key, whole or not at all."""
  library = _safetensors()
  temporary = path.with_name(f'.{path.name}.partial')
  contiguous = {key: np.ascontiguousarray(x) for key, x in arrays.items()}
  try:
    library.numpy.save_file(contiguous, temporary, dict(metadata))
    temporary.replace(path)
  except (library.SafetensorError, OSError) as error:
    raise UserError(f'cannot write {path}: {_in_short(error)}') from error


def find_arrays(
  value: Any, wrappers: Sequence[str] = ()
) -> dict[str, np.ndarray]:
  """Finds the arrays by key in what a file holds.

  Args:
    value: a dictionary of arrays, nested ones (joined by '/'), or a dictionary
      around one of them.
    wrappers: names under which the dictionary may stand, first one first;
      torch's usual ones follow.

  Returns:
    The arrays by key, without the `module.` that training on several devices
    puts before every key.

  Raises:
    UserError: if there are none.
  """
  for _ in range(_DEEPEST):
    names = (*wrappers, 'state_dict', 'model_state_dict', 'model', 'params')
    inner = value if isinstance(value, Mapping) else {}
    inside = [inner[n] for n in names if isinstance(inner.get(n), Mapping)]
    if not inside:
      break
    value = inside[0]
  arrays = _flatten(value)
  if not arrays:
    kind = type(value).__name__
    raise UserError(f'no arrays by name in it, but a {kind}')
  if all(key.startswith('module.') for key in arrays):
    arrays = {key.removeprefix('module.'): x for key, x in arrays.items()}
  return arrays


def _flatten(value: Any) -> dict[str, np.ndarray]:
  """Joins the keys of nested dictionaries; keeps arrays alone."""
  result: dict[str, np.ndarray] = {}
  # A hostile file may hold dictionaries that hold themselves: each is entered
  # once.
  entered: set[int] = set()

  def enter(inner: Any, prefix: str, depth: int) -> None:
    if id(inner) in entered or depth > _DEEPEST:
      return
    entered.add(id(inner))
    for key, item in inner.items():
      if isinstance(item, Mapping):
        enter(item, f'{prefix}{key}/', depth + 1)
      elif isinstance(item, np.ndarray):
        result[f'{prefix}{key}'] = item

  if isinstance(value, Mapping):
    enter(value, '', 0)
  return result
