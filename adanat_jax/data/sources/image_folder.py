"""Images in a folder, or in a folder for each class."""

from __future__ import annotations

import array
from collections.abc import Iterator
import os
import pathlib
from typing import Any

import numpy as np

from adanat_jax.data.sources.raw_source import (
  Names,
  RawExample,
  SplitPath,
  is_image,
  printable,
)
from adanat_jax.errors import UserError

# Folders of these names hold classes, they are none.
_SPLITS = frozenset({'train', 'training', 'val', 'valid', 'validation', 'test'})


class ImageFolder:
  """The images below a folder, ordered by class and name; see `RawSource`.

  As torchvision's ImageFolder, which the published code uses: each folder
  below the root is a class, numbered by its place in their sorted order, and
  holds images at any depth. A folder of images alone is one class.
  """

  has_captions = False
  has_images = True

  def __init__(
    self, root: pathlib.Path, names: Names, labels: np.ndarray, classes: Any
  ):
    """Takes the names relative to the root and their labels int32[n]."""
    self._root = root
    self._names = names
    self._labels = labels
    self.class_names: tuple[str, ...] | None = tuple(classes)
    self.description: dict[str, Any] = {'classes': len(self.class_names)}

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> RawExample:
    name = self._names[index]
    return RawExample(
      printable(name), read_file(self._root / name), int(self._labels[index])
    )

  def key_hashes(self) -> np.ndarray:
    return self._names.hashes()


def load(split: SplitPath) -> ImageFolder:
  """Lists a folder.

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
    training = SplitPath(split.settings)
    classes = _class_folders(_existing(training))
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

  table = Names.of(names())
  return ImageFolder(root, table, np.array(labels, np.int32), classes)


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
  """A file's bytes; none if it is gone, which shows when it is decoded."""
  try:
    return path.read_bytes()
  except FileNotFoundError:
    return b''


def _load_flat(split: SplitPath, root: pathlib.Path) -> ImageFolder:
  if split.is_validation and _class_folders(
    _existing(SplitPath(split.settings))
  ):
    raise UserError(
      f'{split.path_field}: no class folders here, as config.data.path='
      f'{split.settings.path} has'
    )
  names = Names.of(_images_below(root))
  if not names:
    raise UserError(
      f'{split.path_field}: no image in this folder; give one of images, or of'
      ' a folder for each class'
    )
  labels = np.zeros(len(names), np.int32)
  return ImageFolder(root, names, labels, ('images',))


def _existing(split: SplitPath) -> pathlib.Path:
  root = pathlib.Path(split.path).expanduser()
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
