"""CC3M as tables: the authors' with images, and Google's with captions alone.

  <key>.jpg <tab> number <tab> caption <tab> JPEG in base64     no header
  caption <tab> url                                             or with one

The first is what construct_cc3m_tsv.py of LeapLabTHU/AdaNAT makes of the images
that img2dataset has fetched; the second are Train_GCC-training.tsv and the
validation captions that images are generated from (its assets/cc3m_val.tsv).
Tables with a header have their columns in any order; `table` says which.
"""

from __future__ import annotations

import binascii
import csv

import numpy as np

from adanat_jax.data.sources import captions, table, tar_index
from adanat_jax.data.sources.raw_source import (
  RawExample,
  RawSource,
  SplitPath,
  key_hash,
  printable,
)
from adanat_jax.data.sources.table import Table
from adanat_jax.errors import UserError

# The authors' reader takes the alphabet for addresses, their writer the other.
_TO_STANDARD = bytes.maketrans(b'-_', b'+/')


def load(split: SplitPath) -> RawSource:
  """Finds the lines of a table.

  Raises:
    UserError: if it is not there, is empty, is not text or has other columns.
  """
  path = split.location
  if not path.is_file():
    what = 'a folder' if path.is_dir() else 'no such file'
    raise UserError(f'{split.path_field}: {what}; give a TSV file')
  theirs = split.training.location
  if split.is_validation and theirs.is_file() and path.samefile(theirs):
    raise UserError(
      f'{split.path_field} is the table of config.data.path: give another one,'
      ' or leave it empty and set config.data.held_out'
    )
  found = table.read(path, split.path_field)
  layout = found.layout
  has_images = layout.image >= 0

  def read(i: int) -> RawExample:
    begin, size = int(found.begins[i]), int(found.sizes[i])
    try:
      fields = layout.split(tar_index.read_range(path, begin, size))
    except (UnicodeDecodeError, csv.Error):
      # The file is another one by now.
      fields = []
    key = str(i)
    if has_images:
      key = printable(fields[0].strip()) if fields else ''
      key = key or f'line {i + 1}'
    if len(fields) != layout.columns:
      problem = f'{len(fields)} columns instead of {layout.columns}'
      return RawExample(key, b'', problem=problem)
    caption = captions.tidy(fields[layout.caption])
    image, problem = b'', '' if caption else 'its caption is empty'
    if has_images:
      image = _unpack(fields[layout.image])
      problem = problem if image else 'its image is not base64'
    return RawExample(
      key, image, captions=(caption,) if caption else (), problem=problem
    )

  return RawSource(
    len(found.begins),
    read,
    lambda: _hashes(found, has_images),
    has_captions=True,
    has_images=has_images,
    ledger=found.ledger,
  )


def _hashes(found: Table, has_images: bool) -> np.ndarray:
  """Hashes the images' names; captions alone are named by their numbers."""
  if has_images:
    return found.hashes
  count = len(found.begins)
  keys = (key_hash(str(i).encode()) for i in range(count))
  return np.fromiter(keys, np.uint64, count)


def _unpack(field: str) -> bytes:
  """A file from base64, with its padding or without; empty if damaged."""
  data = field.strip().encode().translate(_TO_STANDARD).rstrip(b'=')
  try:
    return binascii.a2b_base64(data + b'=' * (-len(data) % 4), strict_mode=True)
  except binascii.Error:
    return b''
