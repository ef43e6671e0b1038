"""Images in a folder, or in a folder for each class."""

from __future__ import annotations

import array
from collections.abc import Iterator
import os
import pathlib

import numpy as np

from adanat_jax.data.sources.raw_source import (
  Names,
  RawExample,
  RawSource,
  SplitPath,
  is_image,
  printable,
)
from adanat_jax.errors import UserError

# Folders of these names hold class folders and are not classes.
_SPLITS = frozenset({'train', 'training', 'val', 'valid', 'validation', 'test'})


def load(split: SplitPath) -> RawSource:
  """Lists the images below a folder, ordered by class and name.

  As torchvision's ImageFolder, which the published code uses: each folder
  below the root is a class, numbered by its place in their sorted order, and
  holds images at any depth. A folder of images alone is one class.

  Args:
    split: its path. The classes of validation images are those of `path`.

  Raises:
    UserError: if it is not there, holds no images or is laid out otherwise.
  """
  root = _existing(split)
  folders = _class_folders(root)
  if not folders:
    return _load_flat(split, root)
  _check_layout(split, root, folders)
  classes = folders
  if split.is_validation:
    classes = _class_folders(_existing(split.training))
    check_classes(split, folders, classes)
  numbers = {name: label for label, name in enumerate(classes)}
  labels = array.array('i')

  def names() -> Iterator[str]:
    for folder in folders:
      before = len(labels)
      for name in _images_below(root / folder):
        labels.append(numbers[folder])
        yield f'{folder}/{name}'
      if len(labels) == before:
        raise UserError(
          f'{split.path_field}: the class folder {folder!r} holds no images'
        )

  table = Names.pack(names())
  return _source(root, table, np.array(labels, np.int32), classes)


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
  """A file's bytes; none if it is gone, which decoding reports."""
  try:
    return path.read_bytes()
  except FileNotFoundError:
    return b''


def _load_flat(split: SplitPath, root: pathlib.Path) -> RawSource:
  if split.is_validation and _class_folders(_existing(split.training)):
    raise UserError(
      f'{split.path_field}: no class folders here, as config.data.path='
      f'{split.settings.path} has'
    )
  names = Names.pack(_images_below(root))
  if not names:
    raise UserError(
      f'{split.path_field}: no image in this folder; give one of images, or of'
      ' a folder for each class'
    )
  labels = np.zeros(len(names), np.int32)
  return _source(root, names, labels, ('images',))


def _source(
  root: pathlib.Path,
  names: Names,
  labels: np.ndarray,
  classes: tuple[str, ...],
) -> RawSource:
  """Images by their names relative to the root, with labels int32[n]."""

  def read(i: int) -> RawExample:
    name = names[i]
    return RawExample(printable(name), read_file(root / name), int(labels[i]))

  return RawSource(
    len(names),
    read,
    names.hashes,
    classes,
    description={'classes': len(classes)},
  )


def _existing(split: SplitPath) -> pathlib.Path:
  root = split.location
  if not root.is_dir():
    what = 'is a file' if root.exists() else 'no such folder'
    raise UserError(f'{split.path_field}: {what}; give a folder of images')
  return root


def _class_folders(root: pathlib.Path) -> tuple[str, ...]:
  with os.scandir(root) as entries:
    return tuple(
      sorted(
        entry.name
        for entry in entries
        if entry.is_dir() and not entry.name.startswith('.')
      )
    )


def _check_layout(
  split: SplitPath, root: pathlib.Path, folders: tuple[str, ...]
) -> None:
  splits = [name for name in folders if name.lower() in _SPLITS]
  if len(splits) == len(folders):
    raise UserError(
      f'{split.path_field}: {", ".join(splits)} look like splits, not classes;'
      f' give {root / splits[0]}'
    )
  with os.scandir(root) as entries:
    loose = sorted(
      entry.name
      for entry in entries
      if entry.is_file() and is_image(entry.name)
    )
  if loose:
    raise UserError(
      f'{split.path_field}: {len(loose)} images such as {loose[0]} lie beside'
      f' {len(folders)} class folders; move them into one or away'
    )


def _images_below(folder: pathlib.Path) -> Iterator[str]:
  """Yields the names of images, relative to a folder, in a fixed order."""
  for directory, subfolders, names in os.walk(folder, followlinks=True):
    subfolders[:] = sorted(n for n in subfolders if not n.startswith('.'))
    below = pathlib.Path(directory).relative_to(folder)
    for name in sorted(filter(is_image, names)):
      yield (below / name).as_posix()
