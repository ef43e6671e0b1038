"""MS-COCO: a folder of images and the JSON file of their captions."""

from __future__ import annotations

import pathlib

import numpy as np

from adanat_jax.data.sources.image_folder import read_file
from adanat_jax.data.sources.raw_source import (
  Names,
  RawExample,
  RawSource,
  SplitPath,
  printable,
)
from adanat_jax.errors import UserError
from adanat_jax.runtime import files


def load(split: SplitPath) -> RawSource:
  """Reads the captions of a split.

  Images come in the order of the JSON file, each with all its captions; those
  without a caption are left out.

  Args:
    split: its images, e.g. train2014, and annotations, e.g.
      captions_train2014.json.

  Raises:
    UserError: if one of them is not there or not what it should be.
  """
  folder = split.location
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
  of_images = [captions[number] for number in with_captions]
  names = Names.pack(with_captions.values())
  texts = Names.pack(text for some in of_images for text in some)
  ends = np.cumsum([0, *map(len, of_images)])

  def read(i: int) -> RawExample:
    return RawExample(
      printable(names[i]),
      read_file(folder / names[i]),
      captions=tuple(texts[int(ends[i]) : int(ends[i + 1])]),
    )

  return RawSource(
    len(names),
    read,
    names.hashes,
    has_captions=True,
    description={
      'captions': len(texts),
      'images_without_captions': len(images) - len(names),
    },
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
