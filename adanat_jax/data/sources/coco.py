"""MS-COCO: a folder of images and the JSON file of their captions."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from adanat_jax.data.sources.image_folder import read_file
from adanat_jax.data.sources.raw_source import (
  Names,
  RawExample,
  SplitPath,
  printable,
)
from adanat_jax.errors import UserError
from adanat_jax.runtime import files


class CocoCaptions:
  """Images in the order of the JSON file, with all captions of each.

  See `RawSource`. Images that have no caption are left out.
  """

  class_names: tuple[str, ...] | None = None
  has_captions = True
  has_images = True

  def __init__(
    self,
    folder: pathlib.Path,
    names: Names,
    captions: Names,
    ends: np.ndarray,
    without: int,
  ):
    """Takes where the images are and what they show.

    Args:
      folder: the images.
      names: their file names.
      captions: image after image.
      ends: int64[n], where each image's captions end among `captions`.
      without: how many images were left out.
    """
    self._folder = folder
    self._names = names
    self._captions = captions
    self._ends = ends
    self.description: dict[str, Any] = {
      'captions': len(captions),
      'images_without_captions': without,
    }

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, index: int) -> RawExample:
    name = self._names[index]
    begin = int(self._ends[index - 1]) if index else 0
    return RawExample(
      printable(name),
      read_file(self._folder / name),
      captions=tuple(self._captions[begin : int(self._ends[index])]),
    )

  def key_hashes(self) -> np.ndarray:
    return self._names.hashes()


def load(split: SplitPath) -> CocoCaptions:
  """Reads the captions of a split.

  Args:
    split: its images, e.g. train2014, and annotations, e.g.
      captions_train2014.json.

  Raises:
    UserError: if one of them is not there or not what it should be.
  """
  folder = pathlib.Path(split.path).expanduser()
  if not folder.is_dir():
    raise UserError(
      f'{split.path_field}: no such folder; give the images, such as train2014'
    )
  if not split.annotations:
    raise UserError(
      f'{split.annotations_field.rstrip("=")} is empty: give the captions, such'
      ' as annotations/captions_train2014.json'
    )
  images, captions = _read(split)
  with_captions = {
    number: name for number, name in images.items() if captions.get(number)
  }
  if not with_captions:
    raise UserError(f'{split.annotations_field}: no image has a caption')
  first = next(iter(with_captions.values()))
  if not (folder / first).is_file():
    raise UserError(
      f'{split.path_field}: {first} of {split.annotations} is not in it; give'
      ' the folder of these images'
    )
  texts = [captions[number] for number in with_captions]
  return CocoCaptions(
    folder,
    Names.of(with_captions.values()),
    Names.of(text for some in texts for text in some),
    np.cumsum([len(some) for some in texts]),
    len(images) - len(with_captions),
  )


def _read(split: SplitPath) -> tuple[dict[int, str], dict[int, list[str]]]:
  """The file names of images, and their captions, by the images' numbers."""
  try:
    content = files.read_json(pathlib.Path(split.annotations).expanduser())
  except UserError as error:
    raise UserError(f'{split.annotations_field}: {error}') from error
  captions: dict[int, list[str]] = {}
  try:
    images = {row['id']: row['file_name'] for row in content['images']}
    for row in content['annotations']:
      captions.setdefault(row['image_id'], []).append(row['caption'].strip())
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{split.annotations_field}: no captions of COCO; give'
      ' captions_train2014.json or a file like it'
    ) from error
  return images, captions
