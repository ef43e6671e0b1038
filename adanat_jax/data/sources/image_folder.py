"""Images in a folder, or in a folder for each class."""

from __future__ import annotations

import array
from collections.abc import Iterator, Mapping, Sequence
import errno
import os
import pathlib
import stat
import unicodedata

import numpy as np

from adanat_jax.data.sources.folder_walk import Walk, is_within
from adanat_jax.data.sources.ledger import SourceLedger
from adanat_jax.data.sources.raw_source import (
  Names,
  RawSource,
  SplitPath,
  of_classes,
)
from adanat_jax.errors import UserError

# Folders of these names hold class folders and are not classes.
_SPLITS = frozenset({'train', 'training', 'val', 'valid', 'validation', 'test'})
# What opening says if there is no such file, or it is something else.
_NO_FILE = frozenset(
  (
    *(errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR),
    *(errno.ENXIO, errno.ENAMETOOLONG),
  )
)
# No image that fits into memory.
_LARGEST_FILE = 1 << 31


def load(split: SplitPath) -> RawSource:
  """Lists the images below a folder, ordered by class and name.

  As torchvision's ImageFolder, which the published code uses: each folder
  below the root is a class, numbered by its place in their sorted order, and
  holds images at any depth. A folder of images alone is one class. The classes
  of validation images are those of the training images.

  Raises:
    UserError: if it is not there, holds no images or is laid out otherwise.
  """
  walk = Walk(existing_folder(split), SourceLedger())
  loose, folders = walk.look_into()
  if not folders:
    return _load_flat(split, walk)
  _check_layout(split, walk.root, loose, folders)
  classes = tuple(folders)
  if split.is_validation:
    classes = _classes(existing_folder(split.training))
    check_classes(split, tuple(folders), classes)
    check_apart(split)
  numbers = {name: label for label, name in enumerate(classes)}
  labels = array.array('i')

  def names() -> Iterator[str]:
    for folder in folders:
      before, seen = len(labels), dict(walk.ledger.passed_over)
      for name in walk.images(folder):
        labels.append(numbers[folder])
        yield name
      if len(labels) == before:
        raise UserError(
          f'{split.path_field}: the class folder {folder!r} holds no images'
          + _instead(walk.ledger, seen)
        )

  table = Names.pack(names())
  return _source(walk, table, np.array(labels, np.int32), classes)


def existing_folder(split: SplitPath) -> pathlib.Path:
  """Where a split's images are.

  Raises:
    UserError: if it is no folder.
  """
  root = split.location
  if not root.is_dir():
    what = 'is a file' if root.exists() else 'no such folder'
    raise UserError(f'{split.path_field}: {what}; give a folder of images')
  return root


def check_apart(split: SplitPath) -> None:
  """Refuses folders of validation images that hold training images, too."""
  training = split.training.location
  if not training.is_dir():
    return
  ours, theirs = map(os.path.realpath, (split.location, training))
  if is_within(ours, theirs) or is_within(theirs, ours):
    what = 'the same folder as' if ours == theirs else 'in one folder with'
    raise UserError(
      f'{split.path_field} is {what} config.data.path={split.training.path}:'
      ' give a folder of other images, or leave it empty and set'
      ' config.data.held_out'
    )


def check_classes(
  split: SplitPath, found: tuple[str, ...], classes: tuple[str, ...]
) -> None:
  """Refuses validation images of classes that the training images lack."""
  unknown = sorted(set(found) - set(classes))
  if unknown:
    raise UserError(
      f'{split.path_field}: the class {unknown[0]!r} is not one of the'
      f' {len(classes)} of config.data.path={split.settings.path}'
    )


def read_file(path: pathlib.Path) -> bytes:
  """A regular file's bytes; empty without one, which decoding reports.

  Raises:
    OSError: if the disk cannot be read, or the file must not be.
  """
  try:
    # Nothing waits for somebody to write into what is a pipe by now.
    with open(path, 'rb', buffering=0, opener=_open_at_once) as file:
      found = os.fstat(file.fileno())
      if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_FILE:
        return b''
      return file.read()
  except OSError as error:
    if error.errno in _NO_FILE:
      return b''
    raise


def _open_at_once(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_NONBLOCK)


def _load_flat(split: SplitPath, walk: Walk) -> RawSource:
  if split.is_validation:
    if _classes(existing_folder(split.training)):
      raise UserError(
        f'{split.path_field}: no class folders here, as config.data.path='
        f'{split.settings.path} has'
      )
    check_apart(split)
  walk.ledger = SourceLedger()  # The root is looked into once more.
  names = Names.pack(walk.images())
  if not names:
    raise UserError(
      f'{split.path_field}: no image in this folder; give one of images, or of'
      f' a folder for each class{_instead(walk.ledger, {})}'
    )
  labels = np.zeros(len(names), np.int32)
  return _source(walk, names, labels, ('images',))


def _source(
  walk: Walk, names: Names, labels: np.ndarray, classes: tuple[str, ...]
) -> RawSource:
  """Images by their names relative to the root, with labels int32[n]."""
  root, ledger = walk.root, walk.ledger
  ledger.tried['images'] = len(names) + ledger.count('unreadable')
  ledger.read['images'] = len(names)
  read = lambda i: read_file(root / names[i])
  return of_classes(names, read, labels, classes, ledger)


def _classes(root: pathlib.Path) -> tuple[str, ...]:
  return tuple(Walk(root, SourceLedger()).look_into()[1])


def _instead(ledger: SourceLedger, before: Mapping[str, int]) -> str:
  """What was found where there is no image, for a message."""
  found = SourceLedger()
  for kind, count in ledger.passed_over.items():
    if count > before.get(kind, 0):
      found.pass_over(kind, count - before.get(kind, 0))
  return f', but {found.seen()}' if found.passed_over else ''


def _check_layout(
  split: SplitPath,
  root: pathlib.Path,
  loose: Sequence[str],
  folders: Sequence[str],
) -> None:
  splits = [name for name in folders if name.lower() in _SPLITS]
  if len(splits) == len(folders):
    raise UserError(
      f'{split.path_field}: {", ".join(splits)} look like splits, not classes;'
      f' give {root / splits[0]}'
    )
  # As macOS and others write an accent, or with a blank at the end.
  alike: dict[str, str] = {}
  for name in folders:
    plain = unicodedata.normalize('NFC', name).strip()
    if (other := alike.setdefault(plain, name)) != name:
      raise UserError(
        f'{split.path_field}: the class folders {other!a} and {name!a} have the'
        ' same name, written in two ways; move them into one'
      )
  if loose:
    raise UserError(
      f'{split.path_field}: {len(loose)} images such as {loose[0]} lie beside'
      f' {len(folders)} class folders; move them into one or away'
    )
