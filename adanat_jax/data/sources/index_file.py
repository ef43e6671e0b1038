"""Indexes of large files, kept beside them so that they are made only once.

Finding 1.3 million images in a tar of 138 GB takes minutes, and every stage
opens the images anew. The index is written as `<file>.index.npz` and is valid
until the file's size or modification time changes. Where nothing can be written
it is kept in memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import io
import pathlib
from typing import Any
import zipfile

from absl import logging
import numpy as np

from adanat_jax.errors import WriteError
from adanat_jax.runtime import files

IndexArrays = dict[str, np.ndarray]

_SIGNATURE = 'signature'


def cached(
  path: pathlib.Path, kind: str, build: Callable[[], Mapping[str, np.ndarray]]
) -> IndexArrays:
  """Reads the index of a file, or builds its arrays and writes it.

  `kind` is name and version of the index; another one is made again.
  """
  stat = path.stat()
  signature = f'{kind} {stat.st_size} {stat.st_mtime_ns}'
  target = path.with_name(f'{path.name}.index.npz')
  found = _read(target, signature)
  if found is not None:
    return found
  logging.info('%s: making its index', path)
  arrays = dict(build())
  stream = io.BytesIO()
  content: dict[str, Any] = {_SIGNATURE: np.array(signature), **arrays}
  np.savez(stream, **content)
  try:
    files.write_bytes(target, stream.getvalue())
  except WriteError as error:
    logging.warning('%s; the next start makes the index again', error)
  return arrays


def _read(target: pathlib.Path, signature: str) -> IndexArrays | None:
  """Returns the arrays of an index, or None if it is not this file's."""
  try:
    with target.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
      found = {name: arrays[name] for name in arrays.files}
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
    return None
  if str(found.pop(_SIGNATURE, '')) != signature:
    return None
  return found
