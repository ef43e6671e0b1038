"""Pictures with a text and perhaps a class each, listed in one table.

`data.path` is the folder of pictures, `data.annotations` the table; without it,
`metadata.jsonl` or `metadata.csv` in that folder. A table is a JSON list of
objects (N24News), a JSON object in each line, or a .csv file with a header, or
without one in the columns of UPMC Food-101: picture, text, class.

picture  `file_name`, `image`, `image_id` or another usual name; its suffix may
         be left out if it is .jpg. It lies below the folder, or below the
         folder of its class in there.
text     `data.text_column`, or a usual name of a caption (see `captions`)
class    `data.label_column`, or a usual name; a row may have none

Without a column of classes, the first folder of a picture's name is its class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import csv
import io
import os
import pathlib
from typing import Any

import numpy as np

from adanat_jax.data.sources import captions as captions_lib, text_files
from adanat_jax.data.sources.image_folder import (
  check_classes,
  existing_folder,
  read_file,
)
from adanat_jax.data.sources.ledger import SourceLedger
from adanat_jax.data.sources.raw_source import (
  Names,
  RawExample,
  RawSource,
  SplitPath,
  is_file_name,
  is_image,
  printable,
)
from adanat_jax.data.sources.text_files import TextError
from adanat_jax.errors import UserError

_TABLES = ('metadata.jsonl', 'metadata.csv')
_PICTURES = ('file_name', 'image', 'image_id', 'filename', 'image_name', 'img')
_LABELS = ('label', 'class', 'class_name', 'section', 'category')
# The columns of a table without a header, as UPMC Food-101 has them.
_FOOD101 = ('image', 'text', 'label')


def load(split: SplitPath) -> RawSource:
  """Lists the pairs of a table whose pictures are there.

  Classes are numbered in the order of their names; -1 stands for none. Those
  of validation pairs are those of the training pairs, none if these have none.

  Raises:
    UserError: if there is no table, it has other columns, none of its
      pictures is there with a text, or a validation pair has a class that no
      training pair has.
  """
  root = existing_folder(split)
  path, field = _table(split, root)
  ledger = SourceLedger()
  names: list[str] = []
  texts: list[tuple[str, ...]] = []
  classes: list[str] = []
  rows = [*_rows(path, field)]
  for where, row in rows:
    found = _pair(root, split, f'{path.name} {where}', row, field, ledger)
    if found is not None:
      for values, value in zip((names, texts, classes), found, strict=True):
        values.append(value)  # type: ignore[attr-defined]
  ledger.tried.update(dict.fromkeys(('images', 'captions', 'rows'), len(rows)))
  if not names:
    fault = next(iter(ledger.faults.values()), None)
    why = f' ({fault.examples[0]})' if fault else ''
    raise UserError(f'{field}: no row has a picture and a text{why}')
  ledger.read.update(images=len(names), captions=sum(map(len, texts)))
  known = tuple(sorted(set(classes) - {''}))
  if split.is_validation:
    ours, known = known, load(split.training).class_names or ()
    if known:
      check_classes(split, ours, known)
  numbers = {name: number for number, name in enumerate(known)}
  labels = np.array([numbers.get(name, -1) for name in classes], np.int32)
  ledger.count_classes(labels[labels >= 0])
  packed = Names.pack(names)

  def read(i: int) -> RawExample:
    name = packed[i]
    image = read_file(root / name)
    return RawExample(printable(name), image, int(labels[i]), texts[i])

  return RawSource(
    len(packed),
    read,
    packed.hashes,
    known or None,
    has_captions=True,
    description={'classes': len(known), 'captions': sum(map(len, texts))},
    labels=labels,
    captions=lambda i: texts[i],
    ledger=ledger,
  )


def check_apart(split: SplitPath) -> None:
  """Refuses the same folder and table for training and validation pairs.

  Several tables may list one folder.
  """
  ours, theirs = (
    os.path.realpath(part.location) for part in (split, split.training)
  )
  if ours != theirs or not os.path.isdir(ours):
    return
  (path, field), (other, _) = (
    _table(part, part.location) for part in (split, split.training)
  )
  if os.path.realpath(path) == os.path.realpath(other):
    raise UserError(
      f'{field} leads to the training pairs: give another table in'
      ' config.data.validation_annotations, or leave'
      ' config.data.validation_path empty and set config.data.held_out'
    )


def _table(split: SplitPath, root: pathlib.Path) -> tuple[pathlib.Path, str]:
  """The table, and the field that leads to it."""
  if split.annotations:
    return pathlib.Path(split.annotations), split.annotations_field
  for name in _TABLES:
    if (root / name).is_file():
      return root / name, f'{split.path_field}, {name}'
  raise UserError(
    f'{split.annotations_field.rstrip("=")} is empty, and {split.path_field}'
    f' holds no {" or ".join(_TABLES)}: give the table of pictures, texts and'
    ' classes, a .csv, .json or .jsonl file'
  )


def _rows(
  path: pathlib.Path, field: str
) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Yields (where it is, values by column) of each row of a table."""
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f'{field}: {error.strerror or error}') from error
  try:
    if path.suffix == '.csv':
      yield from _csv_rows(text_files.decode(data), field)
      return
    if path.suffix == '.json':
      table = text_files.parse_json(data)
      if not isinstance(table, list):
        raise TextError('it is no list of objects')
      rows = [(f'entry {i}', row) for i, row in enumerate(table, 1)]
    else:
      lines = text_files.decode(data).split('\n')
      rows = [
        (f'line {i}', text_files.parse_json(line.encode()))
        for i, line in enumerate(lines, 1)
        if line.strip()
      ]
    for where, row in rows:
      if not isinstance(row, Mapping):
        raise TextError(f'{where} is no object')
      yield where, row
  except TextError as error:
    raise UserError(f'{field}: {error}') from error


def _csv_rows(text: str, field: str) -> Iterator[tuple[str, dict[str, str]]]:
  reader = csv.reader(io.StringIO(text, newline=''), strict=True)
  names: Sequence[str] = ()
  try:
    for number, values in enumerate(reader, 1):
      if not names:
        plain = [value.strip().lower() for value in values]
        if set(plain) & set(_PICTURES):
          names = [value.strip() for value in values]
          continue
        if len(values) != len(_FOOD101) or not is_image(values[0]):
          raise UserError(
            f'{field}: its columns are {text_files.shown(", ".join(values))};'
            ' give a header with image, text and label, or those three without'
            ' one'
          )
        names = _FOOD101
      yield f'row {number}', dict(zip(names, values, strict=False))
  except csv.Error as error:
    raise UserError(f'{field}: line {reader.line_num}: {error}') from error


def _pair(
  root: pathlib.Path,
  split: SplitPath,
  where: str,
  row: Mapping[str, Any],
  field: str,
  ledger: SourceLedger,
) -> tuple[str, tuple[str, ...], str] | None:
  """A row's picture, texts and class ('' for none); None if it is left out.

  Raises:
    UserError: if the table lacks a column that the config names.
  """
  settings = split.settings
  for column in filter(None, (settings.text_column, settings.label_column)):
    if column not in row:
      raise UserError(
        f'{field}, {where}: there is no column {column!r}; it has'
        f' {text_files.shown(", ".join(map(str, row)))}'
      )
  plain = {str(key).lower(): value for key, value in row.items()}
  columns = [key for key in _PICTURES if key in plain]
  name = plain[columns[0]] if columns else None
  columns = [key for key in _LABELS if key in plain]
  label: Any = ''
  if settings.label_column:
    label = row[settings.label_column]
  elif columns:
    label = plain[columns[0]]
  label = '' if label is None else str(label).strip()
  picture = _find(root, name, label)
  if picture is None:
    ledger.fault('missing', f'{where}: {name}')
    return None
  if not settings.label_column and not columns and '/' in picture:
    label = picture.partition('/')[0]
  try:
    texts = captions_lib.of_json(
      row[settings.text_column] if settings.text_column else row
    )
  except TextError as error:
    ledger.fault('bad_texts', f'{where}: {error}')
    return None
  if not texts:
    ledger.fault('without_captions', f'{where}: {name} has no text')
    return None
  return picture, texts, label


def _find(root: pathlib.Path, name: Any, label: str) -> str | None:
  """A picture's name below the folder; None if it is not there."""
  name = str(name) if isinstance(name, int) else name
  if not is_file_name(name):
    return None
  if not is_image(name):
    name = f'{name}.jpg'
  for below in (name, f'{label}/{name}' if label else name):
    place = os.path.normpath(below)
    if place.startswith(('/', '..')):
      return None  # Out of the folder.
    if (root / place).is_file():
      return place
  return None
