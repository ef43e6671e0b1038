"""MS-COCO: a folder of images and the JSON file of their captions."""

from __future__ import annotations

from collections.abc import Mapping
import os
import pathlib
from typing import Any

from adanat_jax.data.sources import captions as captions_lib, text_files
from adanat_jax.data.sources.folder_walk import is_regular
from adanat_jax.data.sources.image_folder import read_file
from adanat_jax.data.sources.ledger import SourceLedger
from adanat_jax.data.sources.raw_source import (
  RawSource,
  SplitPath,
  is_file_name,
  of_captions,
)
from adanat_jax.data.sources.text_files import TextError
from adanat_jax.errors import UserError


def load(split: SplitPath) -> RawSource:
  """Reads the captions of a split.

  Images come in the order of the JSON file, each with all its captions; those
  without a caption are left out. The path leads to the images, e.g. train2014,
  the annotations are e.g. captions_train2014.json.

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
  ledger = SourceLedger()
  images, captions = _read(split, ledger)
  with_captions = {
    number: name for number, name in images.items() if number in captions
  }
  if not with_captions:
    raise UserError(f'{split.annotations_field}: no image has a caption')
  _look_for(with_captions, split, folder, ledger)
  if split.is_validation:
    _check_apart(split)
  source = of_captions(
    with_captions.values(),
    [captions[number] for number in with_captions],
    lambda name: read_file(folder / name),
    len(images) - len(with_captions),
    ledger,
  )
  ledger.read['images'] -= ledger.count('missing')
  return source


def _look_for(
  names: Mapping[Any, str],
  split: SplitPath,
  folder: pathlib.Path,
  ledger: SourceLedger,
) -> None:
  """Counts the images that are not in a folder.

  Raises:
    UserError: if none of them is.
  """
  there: dict[str, frozenset[str]] = {}
  is_any = False
  for number, name in names.items():
    below, _, base = name.rpartition('/')
    if below not in there:
      there[below] = _files_in(folder / (below or '/' * name.startswith('/')))
    if base in there[below]:
      is_any = True
    else:
      ledger.fault('missing', f'{name}, id {number}')
  if not is_any:
    first = text_files.shown(next(iter(names.values())))
    raise UserError(
      f'{split.path_field}: {first} and all other images of {split.annotations}'
      ' is not in it; give the folder of these images'
    )


def _check_apart(split: SplitPath) -> None:
  """Refuses validation images that the training images' file lists, too."""
  ours, theirs = (
    os.path.realpath(part.annotations) for part in (split, split.training)
  )
  if ours == theirs:
    raise UserError(
      f'{split.annotations_field} is the file of config.data.annotations: give'
      ' that of other images'
    )


def _files_in(folder: pathlib.Path) -> frozenset[str]:
  """The names of the regular files in a folder; none if it is not there."""
  try:
    with os.scandir(folder) as entries:
      return frozenset(e.name for e in entries if is_regular(e))
  except (OSError, ValueError):
    return frozenset()


def _read(
  split: SplitPath, ledger: SourceLedger
) -> tuple[dict[Any, str], dict[Any, list[str]]]:
  """The file names of images, and their captions, by the images' numbers."""
  field = split.annotations_field
  path = pathlib.Path(split.annotations)
  content = text_files.read_json(path, field)
  images, captions = (
    content.get(name) if isinstance(content, Mapping) else None
    for name in ('images', 'annotations')
  )
  if not isinstance(images, list) or not isinstance(captions, list):
    raise _no_captions(field, 'it has no lists called images and annotations')
  ledger.tried = {
    'images': len(images),
    'captions': len(captions),
    'rows': len(images) + len(captions),
  }
  names = _names(images, ledger)
  found: dict[Any, list[str]] = {}
  unlisted = 0
  for place, row in enumerate(captions):
    where = f'annotations[{place}]'
    if not isinstance(row, Mapping) or not _is_number(row.get('image_id')):
      ledger.fault('broken_rows', f'{where} has no image_id')
      continue
    number = row['image_id']
    unlisted += number not in names
    texts = found.setdefault(number, [])
    if not isinstance(caption := row.get('caption'), str):
      kind = 'null' if 'caption' in row and caption is None else 'missing'
      ledger.fault('bad_texts', f'{where}.caption is {kind}')
      continue
    try:
      text_files.check(caption)
    except TextError as error:
      ledger.fault('bad_texts', f'{where}.caption: {error}')
      continue
    if text := captions_lib.tidy(caption):
      texts.append(text)
    else:
      said = f' is {caption!r}' if caption.strip() else ''
      ledger.fault('empty_captions', f'{where}.caption{said}')
  if unlisted:
    ledger.pass_over('captions of images that are not listed', unlisted)
  if captions and not any(found.values()):
    fault = next(iter(ledger.faults.values()))
    raise _no_captions(field, fault.examples[0])
  return names, found


def _names(rows: list[Any], ledger: SourceLedger) -> dict[Any, str]:
  """The file names of images by their numbers."""
  names: dict[Any, str] = {}
  for place, row in enumerate(rows):
    where = f'images[{place}]'
    if not isinstance(row, Mapping) or not _is_number(row.get('id')):
      ledger.fault('broken_rows', f'{where} has no id')
      continue
    name = row.get('file_name')
    if not is_file_name(name):
      ledger.fault('broken_rows', f'{where} has no file_name')
      continue
    if names.setdefault(row['id'], str(name)) != name:
      ledger.fault('duplicates', f'{where}, {name}, has the id of another')
  return names


def _is_number(value: Any) -> bool:
  """Whether a value can be the number of an image."""
  return isinstance(value, (int, float, str))


def _no_captions(field: str, why: str) -> UserError:
  return UserError(
    f'{field}: no captions of COCO ({why}); give captions_train2014.json or a'
    ' file like it'
  )
