"""Raw images by their index: the type that every format's `load` returns.

A source knows where its images are and reads one when asked for it. It holds an
index in memory (names, offsets), never contents.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import hashlib
import os
import pathlib
from typing import Any, overload

import numpy as np

from adanat_jax.data.sources.ledger import SourceLedger

# All that Pillow's users give to the formats that `images` decodes.
IMAGE_SUFFIXES = frozenset(
  '.apng .bmp .dib .gif .jfif .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm'
  ' .tif .tiff .webp'.split()
)

# File names are bytes; those that are not UTF-8 must survive too.
_ERRORS = 'surrogateescape'


@dataclasses.dataclass(frozen=True)
class RawExample:
  """One image as it is in its file, with what is known about it.

  Attributes:
    key: its name, unique in its source and the same on every machine.
    image: the file's bytes; empty if they are missing or cannot be unpacked,
      and in lists of captions alone.
    label: the class, from 0; None in sources without classes.
    captions: what it shows, none of them empty: that would be the null
      condition. None where there are none, or they cannot be read.
    problem: why there is no image, or no caption where others have some.
  """

  key: str
  image: bytes
  label: int | None = None
  captions: tuple[str, ...] = ()
  problem: str = ''


@dataclasses.dataclass(frozen=True)
class RawSource:
  """Images by their index, in any order, from several threads at once.

  Attributes:
    size: number of images.
    read: reads the image at an index in [0, size). It does not raise for a file
      that is gone or broken; decoding finds that.
    key_hashes: makes a hash of each key, uint64[size], without reading any
      image.
    class_names: the classes in the order of their labels; None if there are
      none.
    has_captions: whether the images have captions.
    has_images: False for lists of captions alone.
    description: identifies the source in a manifest; JSON types.
    labels: int32[size], where they are known without reading any image.
    ledger: what was read and what was not, of the whole path.
  """

  size: int
  read: Callable[[int], RawExample]
  key_hashes: Callable[[], np.ndarray]
  class_names: tuple[str, ...] | None = None
  has_captions: bool = False
  has_images: bool = True
  description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  labels: np.ndarray | None = None
  ledger: SourceLedger = dataclasses.field(default_factory=SourceLedger)

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> RawExample:
    # An index past the end is the caller's mistake, and raises IndexError.
    return self.read(range(self.size)[index])


@dataclasses.dataclass(frozen=True)
class SourceSettings:
  """The fields of `config.data` that say where images are.

  Attributes:
    source: one of `registry.SOURCES`.
    path: the training images: folder, file, glob or tfds' data_dir.
    validation_path: the same for the validation images; '' to set some apart.
    tfds_name: the data set's name, for source 'tfds'.
    annotations: COCO's captions, for source 'coco'.
    validation_annotations: COCO's captions of the validation images, or the
      devkit with ImageNet's validation labels ('' looks beside the images).
    held_out: how many images to set apart if there is no validation_path.
    condition: 'class' or 'text' if the source must have that, '' otherwise.
    num_classes: how many classes there must be; 0 for any number.
    max_corrupt_share: the largest share of images or captions that may be
      wrong in one way; 1 counts and names them alone.
  """

  source: str
  path: str
  validation_path: str = ''
  tfds_name: str = ''
  annotations: str = ''
  validation_annotations: str = ''
  held_out: int = 0
  condition: str = ''
  num_classes: int = 0
  max_corrupt_share: float = 1.0


@dataclasses.dataclass(frozen=True)
class SplitPath:
  """Where the images of one split are, and which fields say so.

  Attributes:
    settings: all fields.
    is_validation: whether `validation_path` is meant, not `path`.
  """

  settings: SourceSettings
  is_validation: bool = False

  @property
  def path(self) -> str:
    return getattr(self.settings, f'{self._prefix}path')

  @property
  def location(self) -> pathlib.Path:
    return pathlib.Path(self.path)

  @property
  def annotations(self) -> str:
    return getattr(self.settings, f'{self._prefix}annotations')

  @property
  def path_field(self) -> str:
    return f'config.data.{self._prefix}path={self.path}'

  @property
  def annotations_field(self) -> str:
    return f'config.data.{self._prefix}annotations={self.annotations}'

  @property
  def training(self) -> SplitPath:
    return SplitPath(self.settings)

  @property
  def _prefix(self) -> str:
    return 'validation_' if self.is_validation else ''


class Names(Sequence[str]):
  """Strings in one block of bytes: a tenth of the memory of a list of them.

  Attributes:
    blob: all of them, UTF-8, without anything between them.
    ends: int64[n], where each ends in `blob`.
  """

  def __init__(self, blob: bytes, ends: np.ndarray):
    """Takes the attributes of a table that `pack` made."""
    self.blob = blob
    self.ends = np.asarray(ends, np.int64)

  @classmethod
  def pack(cls, names: Iterable[str]) -> Names:
    """Makes a table of any strings."""
    blob, ends = bytearray(), array.array('q')
    for name in names:
      blob += name.encode('utf-8', _ERRORS)
      ends.append(len(blob))
    return cls(bytes(blob), np.array(ends, np.int64))

  @classmethod
  def join(cls, tables: Sequence[Names]) -> Names:
    """Makes one table of several, in their order."""
    starts = np.cumsum([0, *(len(table.blob) for table in tables)])
    ends = [
      table.ends + start
      for table, start in zip(tables, starts[:-1], strict=True)
    ]
    return cls(b''.join(table.blob for table in tables), np.concatenate(ends))

  def __len__(self) -> int:
    return len(self.ends)

  @overload
  def __getitem__(self, index: int) -> str: ...

  @overload
  def __getitem__(self, index: slice) -> list[str]: ...

  def __getitem__(self, index: int | slice) -> str | list[str]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    return self._bytes(range(len(self))[index]).decode('utf-8', _ERRORS)

  def hashes(self) -> np.ndarray:
    """The strings' hashes, uint64[n]."""
    count = len(self)
    numbers = (key_hash(self._bytes(index)) for index in range(count))
    return np.fromiter(numbers, np.uint64, count)

  def _bytes(self, index: int) -> bytes:
    begin = int(self.ends[index - 1]) if index else 0
    return self.blob[begin : int(self.ends[index])]


def key_hash(key: bytes) -> int:
  """A 64-bit hash of a key, the same on every machine."""
  return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), 'little')


def printable(name: str) -> str:
  """A file name as a key: escaped where it is not valid text."""
  return name.encode('utf-8', 'backslashreplace').decode()


def is_image(name: str) -> bool:
  """Whether the name has an image suffix and is not hidden."""
  base = name.rpartition('/')[2]
  suffix = os.path.splitext(base)[1].lower()
  return suffix in IMAGE_SUFFIXES and not is_hidden(name)


def is_hidden(name: str) -> bool:
  """Whether a name is hidden, or one that macOS puts beside others."""
  return name.rpartition('/')[2].startswith('.') or '__MACOSX' in name.split(
    '/'
  )
