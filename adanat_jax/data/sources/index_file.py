"""Indexes of large files, kept beside them so that they are made only once.

Finding 1.3 million images in a tar of 138 GB takes minutes, and every stage
opens the images anew. The index is written as `<file>.index.npz`; it counts for
as long as the file's size and time of change are those it was made for. Where
nothing can be written the index lives in memory alone.
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
  """Returns the index of a file, made now or before.

  Args:
    path: the file.
    kind: what the index is of, with a number that changes with its layout.
    build: makes the arrays from the file.

  Returns:
    The arrays.
  """
  stat = path.stat()
  signature = f'{kind} {stat.st_size} {stat.st_mtime_ns}'
  place = path.with_name(f'{path.name}.index.npz')
  found = _read(place, signature)
  if found is not None:
    return found
  logging.info('%s: making its index', path)
  arrays = dict(build())
  stream = io.BytesIO()
  content: dict[str, Any] = {_SIGNATURE: np.array(signature), **arrays}
  np.savez(stream, **content)
  try:
    files.write_bytes(place, stream.getvalue())
  except WriteError as error:
    logging.warning('%s; the next start makes the index again', error)
  return arrays


def _read(place: pathlib.Path, signature: str) -> IndexArrays | None:
  """Returns the arrays of an index, or None if it is not this file's."""
  try:
    with place.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
      found = {name: arrays[name] for name in arrays.files}
  except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
    return None
  if str(found.pop(_SIGNATURE, '')) != signature:
    return None
  return found
