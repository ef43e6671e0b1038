"""Finds the files in a tar, and reads one of them without the others."""

from __future__ import annotations

import array
from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import os
import pathlib
import posixpath
import tarfile
from typing import Any, BinaryIO, cast

import numpy as np

from adanat_jax.data.sources import index_file, text_files
from adanat_jax.data.sources.ledger import SourceLedger
from adanat_jax.data.sources.raw_source import (
  Names,
  SplitPath,
  is_hidden,
  is_image,
)
from adanat_jax.errors import UserError

_KIND = 'images of a tar 2'
# Headers of long names and of extended fields take some kilobytes at most.
_LONGEST_HEADER = 1 << 20
_COMPRESSED = {
  b'\x1f\x8b': 'gzip',
  b'BZ': 'bzip2',
  b'\xfd7': 'xz',
  b'(\xb5': 'zstd',
  b'PK': 'zip',
}


@dataclasses.dataclass(frozen=True)
class Member:
  """A file in a tar."""

  # Its path, without './'; one in a tar in the tar has the inner tar's name,
  # less '.tar', as a folder before it.
  name: str
  offset: int  # Where its bytes begin in the outermost file.
  size: int


@dataclasses.dataclass(frozen=True)
class TarIndex:
  """The images in a tar, in its order."""

  names: Names  # See `Member`.
  offsets: np.ndarray  # int64[n]
  sizes: np.ndarray  # int64[n]
  folder: np.ndarray  # int32[n], the place in `folders` of an image's folder.
  folders: tuple[str, ...]  # Own names; '' for that of images in no folder.
  ledger: SourceLedger


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
    ledger = SourceLedger()

    def names() -> Iterator[str]:
      for member in scan(path, field, ledger):
        if not is_image(member.name):
          ledger.pass_over_file(member.name)
          continue
        name = prefix + member.name
        own = posixpath.basename(posixpath.dirname(name))
        folder.append(numbers.setdefault(own, len(numbers)))
        offsets.append(member.offset)
        sizes.append(member.size)
        yield name

    table = Names.pack(names())
    folders = Names.pack(numbers)
    ledger.read['images'] = len(table)
    return {
      'names': np.frombuffer(table.blob, np.uint8),
      'ends': table.ends,
      'offsets': np.array(offsets, np.int64),
      'sizes': np.array(sizes, np.int64),
      'folder': np.array(folder, np.int32),
      'folders': np.frombuffer(folders.blob, np.uint8),
      'folder_ends': folders.ends,
      'ledger': ledger.to_array(),
    }

  check_is_tar(path, field)
  arrays = index_file.cached(path, f'{_KIND} {prefix}', build)
  return TarIndex(
    Names(arrays['names'].tobytes(), arrays['ends']),
    arrays['offsets'],
    arrays['sizes'],
    arrays['folder'],
    tuple(Names(arrays['folders'].tobytes(), arrays['folder_ends'])),
    SourceLedger.from_array(arrays['ledger']),
  )


def check_is_tar(path: pathlib.Path, field: str) -> None:
  """Raises UserError unless a path leads to an uncompressed tar."""
  if not path.is_file():
    what = 'a folder' if path.is_dir() else 'no such file'
    raise UserError(f'{field}: {path} is {what}; give a tar file')
  with path.open('rb') as file:
    start = file.read(tarfile.BLOCKSIZE)
  kind = _COMPRESSED.get(start[:2])
  if kind:
    raise UserError(
      f'{field}: {path} is compressed ({kind}); unpack it to a plain tar,'
      ' images are read from its middle'
    )
  try:
    # An empty tar is zeros. `tarfile.is_tarfile` would read what the header
    # says, gigabytes if it says so.
    if len(start) < tarfile.BLOCKSIZE or start.strip(b'\0'):
      tarfile.TarInfo.frombuf(start, 'utf-8', 'surrogateescape')
  except (tarfile.TarError, ValueError) as error:
    raise UserError(f'{field}: {path} is not a tar file') from error


def check_apart(
  split: SplitPath, ours: Iterable[pathlib.Path], theirs: Iterable[pathlib.Path]
) -> None:
  """Refuses tars of validation images that are among the training images'."""
  training = set(map(os.path.realpath, theirs))
  for path in ours:
    if os.path.realpath(path) in training:
      raise UserError(
        f'{split.path_field}: {path.name} is one of the tars of'
        f' config.data.path={split.training.path}; give others, or leave it'
        ' empty and set config.data.held_out'
      )


def scan(
  path: pathlib.Path, field: str, ledger: SourceLedger | None = None
) -> Iterator[Member]:
  """Yields the files in a tar in its order, reading headers alone.

  A link to a file in the same tar is another name of it; links come last.

  Args:
    path: a tar that `check_is_tar` found to be one.
    field: the config field that leads to it, for messages.
    ledger: counts what is in the tar and is no file.

  Raises:
    UserError: if the tar ends too early, or its headers are damaged.
  """
  end = path.stat().st_size
  where = f'{field}: {path}'
  if ledger is None:
    ledger = SourceLedger()
  with path.open('rb', buffering=0) as file:
    for member in _members(file, 0, end, where, ledger):
      if not member.name.endswith('.tar') or is_hidden(member.name):
        yield member
        continue
      inner_end = member.offset + member.size
      folder = member.name.removesuffix('.tar')
      inside = f'{where}, {text_files.shown(member.name)}'
      for inner in _members(file, member.offset, inner_end, inside, ledger):
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


class _Window:
  """A part of a file for tarfile; it refuses to read long headers."""

  def __init__(self, file: BinaryIO, begin: int, end: int):
    self._handle = file.fileno()
    self._position = begin
    self._end = end

  def read(self, size: int) -> bytes:
    if not 0 <= size <= _LONGEST_HEADER:
      raise tarfile.ReadError(f'a header of {size} bytes')
    size = max(0, min(size, self._end - self._position))
    data = os.pread(self._handle, size, self._position)
    self._position += len(data)
    return data

  def seek(self, position: int) -> None:
    if position < 0:
      raise tarfile.ReadError(f'a header at byte {position}')
    self._position = position

  def tell(self) -> int:
    return self._position


def _members(
  file: BinaryIO, begin: int, end: int, where: str, ledger: SourceLedger
) -> Iterator[Member]:
  """Yields the files of the tar that is at [begin, end) of a file."""
  links: dict[str, str] = {}
  for info in _headers(file, begin, end, where):
    name = posixpath.normpath(info.name)
    if info.isreg() and not info.issparse():
      yield Member(name, info.offset_data, info.size)
    elif info.islnk():
      links[name] = posixpath.normpath(info.linkname)
    elif info.issym():
      target = posixpath.join(posixpath.dirname(name), info.linkname)
      links[name] = posixpath.normpath(target)
    elif info.issparse():
      ledger.pass_over('sparse files')
    elif not info.isdir():
      ledger.pass_over('devices')
  if not links:
    return
  targets = {name: _follow(name, links) for name in links}
  # Read again: all names would take gigabytes where there are millions.
  wanted = set(targets.values())
  places: dict[str, tuple[int, int]] = {}
  for info in _headers(file, begin, end, where):
    name = posixpath.normpath(info.name)
    if name in wanted and info.isreg() and not info.issparse():
      places.setdefault(name, (info.offset_data, info.size))
  for name, target in targets.items():
    if target in places:
      yield Member(name, *places[target])
    else:
      ledger.pass_over('links that lead to no file in the tar')


def _follow(name: str, links: Mapping[str, str]) -> str:
  """The name at the end of a chain of links; '' if it has no end."""
  for _ in range(len(links) + 1):
    if name not in links:
      return name
    name = links[name]
  return ''


def _headers(
  file: BinaryIO, begin: int, end: int, where: str
) -> Iterator[tarfile.TarInfo]:
  """Yields the headers of the tar that is at [begin, end) of a file."""
  stopped = begin
  try:
    # Offsets are counted from the beginning of the file.
    window = cast(Any, _Window(file, begin, end))
    with tarfile.open(fileobj=window, mode='r:') as tar:
      while (info := tar.next()) is not None:
        # tarfile would keep a kilobyte for each file that it has read.
        tar.members.clear()  # type: ignore[attr-defined]
        if info.size < 0 or tar.offset <= stopped:
          # It would read the same headers again and again.
          raise tarfile.ReadError(f'a file of {info.size} bytes')
        stopped = tar.offset
        if info.isreg() and info.offset_data + info.size > end:
          name = text_files.shown(info.name)
          raise UserError(
            f'{where} ends in the middle of {name}; it is not whole'
          )
        yield info
      stopped = tar.offset
  except (UserError, OSError):
    raise
  except Exception as error:
    # Broken headers raise whatever the first thing that they break raises.
    reason = text_files.shown(' '.join(str(error).split()))
    raise UserError(
      f'{where} is not a whole tar ({reason or type(error).__name__})'
    ) from error
  # tarfile takes any block that is not a header for the end; valid ends are
  # zeros or the end of the file.
  size = max(0, min(tarfile.BLOCKSIZE, end - stopped))
  if os.pread(file.fileno(), size, stopped).strip(b'\0'):
    raise UserError(f'{where} is damaged at byte {stopped}')
