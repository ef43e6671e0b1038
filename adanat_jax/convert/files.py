"""Foreign files of arrays: read by what they are, without running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
import pathlib
from typing import Any

import numpy as np
import safetensors.numpy

from adanat_jax.convert import (
  flax_msgpack,
  formats,
  npz,
  reading,
  safetensors_file,
  torch_reader,
)
from adanat_jax.convert.reading import shown
from adanat_jax.convert.zip_archive import ZipArchive
from adanat_jax.errors import UserError


def read(path: str | os.PathLike[str]) -> Any:
  """Reads one file, by its first bytes; its ending says nothing.

  Returns:
    What it holds: dictionaries of arrays, and for torch files what else stood
    in them. Arrays are read-only views of the mapped file.

  Raises:
    UserError: if the file is absent, broken, hostile or of another format.
  """
  path = pathlib.Path(path)
  with reading.in_one_line(path):
    mapped = reading.map_file(path)
    view = memoryview(mapped)
    budget = reading.Budget(len(view))
    found = formats.recognize(view)
    if found == formats.LEGACY_TORCH:
      return torch_reader.read_legacy(mapped, budget)
    if found == formats.SAFETENSORS:
      return safetensors_file.read(view, budget)
    if found == formats.MSGPACK:
      return flax_msgpack.read(view, budget)
    return _read_zip(view, budget)


def _read_zip(view: memoryview, budget: reading.Budget) -> Any:
  archive = ZipArchive(view, budget)
  folder = torch_reader.pickle_folder(archive)
  if folder is not None:
    return torch_reader.read_zip(archive, folder, budget)
  arrays = npz.read(archive, budget)
  if not arrays:
    names = ', '.join(shown(name) for name in list(archive.entries)[:4])
    raise UserError(
      'a zip file that neither torch.save nor NumPy wrote; it holds'
      f' {names or "nothing"}'
    )
  return arrays


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
    if both := sorted(map(str, merged.keys() & part.keys())):
      raise UserError(
        f'{path} holds {shown(both[0])} again: not parts of one file'
      )
    merged.update(part)
  return merged


def write_safetensors(
  path: pathlib.Path,
  arrays: Mapping[str, np.ndarray],
  metadata: Mapping[str, str],
) -> None:
  """Writes arrays by key, whole or not at all."""
  temporary = path.with_name(f'.{path.name}.partial')
  contiguous = {key: np.ascontiguousarray(x) for key, x in arrays.items()}
  try:
    safetensors.numpy.save_file(contiguous, temporary, dict(metadata))
    temporary.replace(path)
  except (safetensors.SafetensorError, OSError) as error:
    raise UserError(f'cannot write {path}: {shown(error)}') from error
