"""Finds the files in a tar, and reads one of them without the others."""

from __future__ import annotations

import array
from collections.abc import Iterator
import dataclasses
import os
import pathlib
import posixpath
import tarfile
from typing import BinaryIO

import numpy as np

from adanat_jax.data.sources import index_file
from adanat_jax.data.sources.raw_source import Names, is_image
from adanat_jax.errors import UserError

_KIND = 'images of a tar 1'
_COMPRESSED = {
  b'\x1f\x8b': 'gzip',
  b'BZ': 'bzip2',
  b'\xfd7': 'xz',
  b'(\xb5': 'zstd',
  b'PK': 'zip',
}


@dataclasses.dataclass(frozen=True)
class Member:
  """A file in a tar.

  Attributes:
    name: its path, without './'; one in a tar in the tar has the inner tar's
      name, less '.tar', as a folder before it.
    offset: where its bytes begin in the outermost file.
    size: how many there are.
  """

  name: str
  offset: int
  size: int


@dataclasses.dataclass(frozen=True)
class TarIndex:
  """The images in a tar, in its order.

  Attributes:
    names: see `Member`.
    offsets: int64[n].
    sizes: int64[n].
    folder: int32[n], the place in `folders` of the folder an image lies in.
    folders: the folders' own names; '' for that of images in no folder.
  """

  names: Names
  offsets: np.ndarray
  sizes: np.ndarray
  folder: np.ndarray
  folders: tuple[str, ...]


def index_images(path: pathlib.Path, field: str, prefix: str = '') -> TarIndex:
  """Finds the images in a tar and in the tars in it, or reads their index.

  Args:
    path: the tar, uncompressed.
    field: the config field that leads to it, for messages.
    prefix: comes before all names.

  Raises:
    UserError: if it is not there, no whole tar, or compressed.
  """

  def build() -> index_file.IndexArrays:
    offsets, sizes, folder = (array.array('q') for _ in range(3))
    numbers: dict[str, int] = {}

    def names() -> Iterator[str]:
      for member in scan(path, field):
        if not is_image(member.name):
          continue
        name = prefix + member.name
        own = posixpath.basename(posixpath.dirname(name))
        folder.append(numbers.setdefault(own, len(numbers)))
        offsets.append(member.offset)
        sizes.append(member.size)
        yield name

    table = Names.pack(names())
    folders = Names.pack(numbers)
    return {
      'names': np.frombuffer(table.blob, np.uint8),
      'ends': table.ends,
      'offsets': np.array(offsets, np.int64),
      'sizes': np.array(sizes, np.int64),
      'folder': np.array(folder, np.int32),
      'folders': np.frombuffer(folders.blob, np.uint8),
      'folder_ends': folders.ends,
    }

  check_is_tar(path, field)
  arrays = index_file.cached(path, f'{_KIND} {prefix}', build)
  return TarIndex(
    Names(arrays['names'].tobytes(), arrays['ends']),
    arrays['offsets'],
    arrays['sizes'],
    arrays['folder'],
    tuple(Names(arrays['folders'].tobytes(), arrays['folder_ends'])),
  )


def check_is_tar(path: pathlib.Path, field: str) -> None:
  """Raises UserError unless a path leads to an uncompressed tar."""
  if not path.is_file():
    what = 'a folder' if path.is_dir() else 'no such file'
    raise UserError(f'{field}: {path} is {what}; give a tar file')
  with path.open('rb') as file:
    start = file.read(2)
  if start in _COMPRESSED:
    raise UserError(
      f'{field}: {path} is compressed ({_COMPRESSED[start]}); unpack it to a'
      ' plain tar, images are read from its middle'
    )
  if not tarfile.is_tarfile(path):
    raise UserError(f'{field}: {path} is not a tar file')


def scan(path: pathlib.Path, field: str) -> Iterator[Member]:
  """Yields the files in a tar in its order, reading headers alone.

  Args:
    path: a tar that `check_is_tar` found to be one.
    field: the config field that leads to it, for messages.

  Raises:
    UserError: if the tar ends too early, or its headers are damaged.
  """
  end = path.stat().st_size
  where = f'{field}: {path}'
  with path.open('rb') as file:
    for member in _members(file, 0, end, where):
      if not member.name.endswith('.tar'):
        yield member
        continue
      inner_end = member.offset + member.size
      folder = member.name.removesuffix('.tar')
      inside = f'{where}, {member.name}'
      for inner in _members(file, member.offset, inner_end, inside):
        name = f'{folder}/{inner.name}'
        yield dataclasses.replace(inner, name=name)


def read_range(path: pathlib.Path, offset: int, size: int) -> bytes:
  """Reads part of a file; less if it ends before, nothing if it is gone.

  The file is opened for each call: threads share no position, and the system
  would not let thousands of shards stay open.
  """
  try:
    with path.open('rb', buffering=0) as file:
      return os.pread(file.fileno(), size, offset)
  except FileNotFoundError:
    return b''


def _members(
  file: BinaryIO, begin: int, end: int, where: str
) -> Iterator[Member]:
  """Yields the files of the tar that is at [begin, end) of a file."""
  file.seek(begin)
  try:
    # Offsets are counted from the beginning of the file.
    with tarfile.open(fileobj=file, mode='r:') as tar:
      while (info := tar.next()) is not None:
        # tarfile would keep a kilobyte for each file that it has read.
        tar.members.clear()  # type: ignore[attr-defined]
        if info.offset_data + info.size > end:
          raise UserError(
            f'{where} ends in the middle of {info.name}; it is not whole'
          )
        if info.isreg() and not info.issparse():
          name = posixpath.normpath(info.name)
          yield Member(name, info.offset_data, info.size)
      stopped = tar.offset
  except tarfile.TarError as error:
    raise UserError(f'{where} is not a whole tar ({error})') from error
  # tarfile takes any block that is not a header for the end; valid ends are
  # zeros or the end of the file.
  file.seek(stopped)
  rest = file.read(min(tarfile.BLOCKSIZE, end - stopped))
  if rest.strip(b'\0'):
    raise UserError(f'{where} is damaged at byte {stopped}')
