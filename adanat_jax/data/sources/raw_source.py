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
  """One image as it is in its file, with what is known about it."""

  key: str  # Unique in its source and the same on every machine.
  # The file; empty if it is missing or cannot be unpacked, and in lists of
  # captions alone.
  image: bytes
  label: int | None = None  # The class, from 0; None in sources without.
  # What it shows, none of them empty: that would be the null condition.
  captions: tuple[str, ...] = ()
  # Why there is no image, or no caption where others have some.
  problem: str = ''


@dataclasses.dataclass(frozen=True)
class RawSource:
  """Images by their index, in any order, from several threads at once."""

  size: int
  # Reads the image at an index in [0, size). It does not raise for a file that
  # is gone or broken; decoding finds that.
  read: Callable[[int], RawExample]
  # Hashes all keys, uint64[size], without reading any image.
  key_hashes: Callable[[], np.ndarray]
  # The classes in the order of their labels; None if there are none.
  class_names: tuple[str, ...] | None = None
  has_captions: bool = False
  has_images: bool = True  # False for lists of captions alone.
  # Identifies the source in a manifest; JSON types.
  description: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  # int32[size], where they are known without reading any image; of pairs -1 for
  # no class.
  labels: np.ndarray | None = None
  # The captions of an image, and its key, where they are known without reading
  # it.
  captions: Callable[[int], tuple[str, ...]] | None = None
  key_at: Callable[[int], str] | None = None
  # What was read and what was not, of the whole path.
  ledger: SourceLedger = dataclasses.field(default_factory=SourceLedger)

  def __len__(self) -> int:
    return self.size

  def __getitem__(self, index: int) -> RawExample:
    # An index past the end is the caller's mistake, and raises IndexError.
    return self.read(range(self.size)[index])


def of_classes(
  names: Names,
  read: Callable[[int], bytes],
  labels: np.ndarray,
  classes: tuple[str, ...],
  ledger: SourceLedger,
) -> RawSource:
  """Images with labels int32[n], by their names and a reader of their files."""
  ledger.count_classes(labels)
  return RawSource(
    len(names),
    lambda i: RawExample(printable(names[i]), read(i), int(labels[i])),
    names.hashes,
    classes,
    description={'classes': len(classes)},
    labels=labels,
    ledger=ledger,
  )


def of_captions(
  image_names: Iterable[str],
  captions: Sequence[Sequence[str]],
  read: Callable[[str], bytes],
  num_without: int,
  ledger: SourceLedger,
) -> RawSource:
  """Images with all their captions, by their names and a reader of their files.

  `num_without` is how many others there are, which have no captions.
  """
  names = Names.pack(image_names)
  texts = Names.pack(text for some in captions for text in some)
  ends = np.cumsum([0, *map(len, captions)])
  ledger.read['images'] = len(names)
  ledger.read['captions'] = len(texts)

  def captions_of(i: int) -> tuple[str, ...]:
    return tuple(texts[int(ends[i]) : int(ends[i + 1])])

  def example(i: int) -> RawExample:
    found = captions_of(i)
    return RawExample(
      printable(names[i]),
      read(names[i]),
      captions=found,
      problem='' if found else 'none of its captions can be read',
    )

  return RawSource(
    len(names),
    example,
    names.hashes,
    has_captions=True,
    description={
      'captions': len(texts),
      'images_without_captions': num_without,
    },
    captions=captions_of,
    key_at=lambda i: printable(names[i]),
    ledger=ledger,
  )


@dataclasses.dataclass(frozen=True)
class SourceSettings:
  """The fields of `config.data` that say where images are."""

  source: str  # One of `registry.SOURCES`.
  path: str  # The training images: folder, file, glob or tfds' data_dir.
  validation_path: str = ''  # '' to set some apart.
  tfds_name: str = ''  # The data set's name, for source 'tfds'.
  annotations: str = ''  # COCO's captions, or the table of source 'pairs'.
  # COCO's captions of the validation images, or the devkit with ImageNet's
  # validation labels ('' looks beside the images).
  validation_annotations: str = ''
  held_out: int = 0  # How many to set apart if there is no validation_path.
  condition: str = ''  # 'class' or 'text' if the source must have that.
  num_classes: int = 0  # How many there must be; 0 for any number.
  # The largest share of images or captions that may be wrong in one way; 1
  # counts and names them alone.
  max_corrupt_share: float = 1.0
  # Of the table of source 'pairs'; '' for a usual name.
  text_column: str = ''
  label_column: str = ''


@dataclasses.dataclass(frozen=True)
class SplitPath:
  """Where the images of one split are, and which fields say so."""

  settings: SourceSettings
  is_validation: bool = False  # Whether `validation_path` is meant.

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


# Folders of macOS, Synology, Windows and Linux, in which no data set lies.
_OF_SYSTEMS = frozenset(
  ('__MACOSX', '@eaDir', '#recycle', '$RECYCLE.BIN', 'lost+found')
  + ('System Volume Information',)
)


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
  """Whether a name is hidden, or one that a system puts beside others."""
  parts = name.split('/')
  return parts[-1].startswith('.') or not _OF_SYSTEMS.isdisjoint(parts)


def is_file_name(value: Any) -> bool:
  """Whether a value can be the name of a file; it need not be UTF-8."""
  if not isinstance(value, str) or not value or '\0' in value:
    return False
  try:
    os.fsencode(value)
  except UnicodeEncodeError:
    return False
  return True
