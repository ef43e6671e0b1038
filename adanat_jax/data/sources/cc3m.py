"""CC3M as tables: the authors' with images, and Google's with captions alone.

  <key>.jpg <tab> number <tab> caption <tab> JPEG in base64     no header
  caption <tab> url                                             or with one

The first is what construct_cc3m_tsv.py of LeapLabTHU/AdaNAT makes of the images
that img2dataset has fetched; the second are Train_GCC-training.tsv and the
validation captions that images are generated from (its assets/cc3m_val.tsv).
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
import csv
import pathlib
from typing import BinaryIO

import numpy as np

from adanat_jax.data.sources import index_file, tar_index
from adanat_jax.data.sources.raw_source import (
  RawExample,
  RawSource,
  SplitPath,
  key_hash,
  printable,
)
from adanat_jax.errors import UserError

_KIND = 'tsv 1'
# The authors' reader takes the alphabet for addresses, their writer the other.
_TO_STANDARD = bytes.maketrans(b'-_', b'+/')
_COLUMNS = ('caption', 'url')
# A file of another kind may be one line of any length.
_LONGEST_FIRST_LINE = 1 << 27


def load(split: SplitPath) -> RawSource:
  """Finds the lines of a table.

  Args:
    split: its path.

  Raises:
    UserError: if it is not there, is empty, or has other columns.
  """
  path = split.location
  if not path.is_file():
    what = 'a folder' if path.is_dir() else 'no such file'
    raise UserError(f'{split.path_field}: {what}; give a TSV file')
  with path.open('rb') as file:
    first = file.readline(_LONGEST_FIRST_LINE).rstrip(b'\r\n')
  tabs = first.count(b'\t')
  if tabs == 3:
    return _with_images(path, _index(split, path, skip=False))
  separator = '\t' if tabs else ','
  fields = _split(first.decode('utf-8', 'replace'), separator)
  header = tuple(name.strip().lower() for name in fields)
  has_header = set(_COLUMNS) <= set(header)
  if not has_header and tabs != 1:
    raise UserError(
      f'{split.path_field}: its first line has {tabs + 1} columns; give'
      ' <key>.jpg, number, caption and base64 image, or caption and url,'
      ' separated by tabs'
    )
  column = header.index('caption') if has_header else 0
  index = _index(split, path, skip=has_header)
  return _captions_alone(path, index['offsets'], column, separator)


def _with_images(
  path: pathlib.Path, index: index_file.IndexArrays
) -> RawSource:
  """Lines with a name, a caption and an image."""

  def read(i: int) -> RawExample:
    fields = _line(path, index['offsets'], i).split(b'\t')
    key = _text(fields[0]) or f'line {i + 1}'
    if len(fields) != 4:
      # A broken line: decoding its image will fail.
      return RawExample(key, b'', captions=('',))
    return RawExample(key, _unpack(fields[3]), captions=(_text(fields[2]),))

  hashes = index['hashes']
  return RawSource(len(hashes), read, lambda: hashes, has_captions=True)


def _captions_alone(
  path: pathlib.Path, offsets: np.ndarray, column: int, separator: str
) -> RawSource:
  """Lines with a caption and an address; keys are their numbers, from 0."""
  count = len(offsets) - 1

  def read(i: int) -> RawExample:
    line = _line(path, offsets, i).decode('utf-8', 'replace')
    fields = _split(line, separator)
    caption = fields[column] if column < len(fields) else ''
    return RawExample(str(i), b'', captions=(caption.strip(),))

  def hashes() -> np.ndarray:
    keys = (key_hash(str(i).encode()) for i in range(count))
    return np.fromiter(keys, np.uint64, count)

  return RawSource(count, read, hashes, has_captions=True, has_images=False)


def _index(
  split: SplitPath, path: pathlib.Path, skip: bool
) -> index_file.IndexArrays:
  """Where lines begin, int64[n + 1], and the hash of their keys, uint64[n]."""

  def build() -> index_file.IndexArrays:
    with path.open('rb', buffering=1 << 22) as file:
      begin = len(file.readline()) if skip else 0
      rows = np.fromiter(
        _lines(file), np.dtype([('size', '<i8'), ('hash', '<u8')])
      )
    ends = begin + np.cumsum(rows['size'])
    offsets = np.concatenate([[begin], ends]).astype(np.int64)
    return {'offsets': offsets, 'hashes': rows['hash'].copy()}

  index = index_file.cached(path, f'{_KIND} {skip}', build)
  if not len(index['hashes']):
    raise UserError(f'{split.path_field}: no lines in it')
  return index


def _lines(file: BinaryIO) -> Iterator[tuple[int, int]]:
  for line in file:
    yield len(line), key_hash(line.partition(b'\t')[0])


def _line(path: pathlib.Path, offsets: np.ndarray, index: int) -> bytes:
  begin, end = int(offsets[index]), int(offsets[index + 1])
  return tar_index.read_range(path, begin, end - begin).rstrip(b'\r\n')


def _split(line: str, separator: str) -> list[str]:
  """Splits a line; quotes mean something where commas separate only."""
  if separator == '\t':
    return line.split('\t')
  return next(csv.reader([line]), [])


def _text(field: bytes) -> str:
  return printable(field.decode('utf-8', 'replace').strip())


def _unpack(field: bytes) -> bytes:
  """A file from base64; empty if it is damaged."""
  try:
    return binascii.a2b_base64(
      field.strip().translate(_TO_STANDARD), strict_mode=True
    )
  except binascii.Error:
    return b''
