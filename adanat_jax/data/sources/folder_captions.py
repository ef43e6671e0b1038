"""Images in a folder with their captions, for `data.condition=text`.

Captions are where people put them:

* a text file of the image's name beside it: `a.png` and `a.txt`, whose whole
  content is one caption;
* `metadata.csv` or `metadata.jsonl` in any of the folders, as Hugging Face's
  imagefolder has it (huggingface.co/docs/datasets/image_dataset): `file_name`,
  relative to the folder of the file, beside `text` or another usual name of a
  caption (see `captions`). In a .jsonl file an image may have a list of texts.

Where an image is described twice, both have to say the same. Folders are not
classes here, and images may lie at any depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os
import pathlib
import posixpath
import unicodedata

from adanat_jax.data.sources import captions as captions_lib, table, text_files
from adanat_jax.data.sources.folder_walk import Walk
from adanat_jax.data.sources.image_folder import (
  check_apart,
  existing_folder,
  read_file,
)
from adanat_jax.data.sources.ledger import SourceLedger
from adanat_jax.data.sources.raw_source import (
  RawSource,
  SplitPath,
  is_file_name,
  is_hidden,
  of_captions,
)
from adanat_jax.data.sources.text_files import TextError, shown
from adanat_jax.errors import UserError

_TABLES = ('metadata.csv', 'metadata.jsonl')
_FILE_NAME = 'file_name'
# A text file of another kind may be of any length.
_LONGEST = 1 << 24


@dataclasses.dataclass(frozen=True)
class _Row:
  """A row of a table that names an image."""

  where: str
  file_name: str
  captions: tuple[str, ...]
  # What is wrong where there are none: a kind of `ledger.FAULTS`, and how.
  fault: str = 'empty_captions'
  why: str = ''


def load(split: SplitPath) -> RawSource:
  """Lists the images below a folder that have captions.

  Raises:
    UserError: if it is not there, no image in it has a caption, one has two
      that differ, or a table leads out of the folder.
  """
  root = existing_folder(split)
  if split.is_validation:
    check_apart(split)
  walk = Walk(root, SourceLedger(), _is_of_captions)
  names = [*walk.images()]
  ledger = walk.ledger
  found = _Captions(split, walk, names)
  tables = [name for name in walk.others if _base(name) in _TABLES]
  try:
    for name in tables:
      found.add_table(name)
    for name in walk.others:
      if _base(name) not in _TABLES:
        found.add_file(name)
  except OSError as error:
    raise UserError(
      f'{split.path_field}: {shown(name)} cannot be read: {error.strerror}'
    ) from error
  if not found.by_image:
    raise _no_captions(split, len(names), tables, ledger)
  described = [name for name in names if name in found.by_image]
  for name in names:
    if name not in found.seen:
      ledger.fault('without_captions', name)
  ledger.tried['images'] = (
    len(names) + ledger.count('missing') + ledger.count('unreadable')
  )
  return of_captions(
    described,
    [found.by_image[name][1] for name in described],
    lambda name: read_file(root / name),
    len(names) - len(described),
    ledger,
  )


class _Captions:
  """Collects the captions of the images in a folder.

  Attributes:
    by_image: where each image is described and its captions, by its name.
    seen: the images for which there is a file or a row, with text or without.
  """

  def __init__(self, split: SplitPath, walk: Walk, names: Sequence[str]):
    self._split = split
    self._walk = walk
    self._ledger = walk.ledger
    self.by_image: dict[str, tuple[str, tuple[str, ...]]] = {}
    self.seen: set[str] = set()
    self._names = frozenset(names)
    # macOS writes accents otherwise than the programs that write tables.
    self._composed = {
      unicodedata.normalize('NFC', name): name for name in names
    }
    self._by_stem: dict[str, list[str]] = {}
    for name in names:
      self._by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
    self._ledger.tried |= {'captions': 0, 'rows': 0}

  def add_file(self, name: str) -> None:
    """Reads the caption in a text file, of the images of the same name."""
    images = self._by_stem.get(os.path.splitext(name)[0], [])
    if not images:
      self._ledger.pass_over('text files without an image')
      return
    self._ledger.tried['captions'] += 1
    self.seen.update(images)
    data = read_file(self._walk.root / name)
    try:
      if len(data) > _LONGEST:
        raise TextError(f'more than {_LONGEST >> 20} MiB')
      text = captions_lib.tidy(decoded := text_files.decode(data))
    except TextError as error:
      self._ledger.fault('bad_texts', f'{name}: {error}')
      return
    if not text:
      said = f': {decoded.strip()}' if decoded.strip() else ''
      self._ledger.fault('empty_captions', f'{name}{said}')
      return
    for image in images:
      self._add(image, (text,), name)

  def add_table(self, name: str) -> None:
    """Reads a table of captions.

    Raises:
      UserError: if it has other columns, or a row leads out of the folder.
    """
    rows = _rows_of_lines if name.endswith('.jsonl') else _rows_of_table
    field = f'{self._split.path_field}, {name}'
    for row in rows(self._walk.root / name, field, self._ledger):
      image = self._find(name, row)
      if image is None:
        continue
      self.seen.add(image)
      self._ledger.tried['captions'] += max(1, len(row.captions))
      if row.captions:
        self._add(image, row.captions, f'{name} {row.where}')
      else:
        self._ledger.fault(row.fault, f'{name} {row.where}{row.why}')

  def _find(self, table_name: str, row: _Row) -> str | None:
    """The image that a row names; None, and counted, if it is not there."""
    folder = posixpath.dirname(table_name)
    image = posixpath.normpath(posixpath.join(folder, row.file_name))
    where = f'{table_name} {row.where}'
    if image.startswith(('/', '../')) or image == '..':
      raise UserError(
        f'{self._split.path_field}, {where}: file_name {shown(row.file_name)}'
        ' leads out of the folder; give a name below it'
      )
    if image in self._names:
      return image
    found = self._composed.get(unicodedata.normalize('NFC', image))
    if found is None:
      is_there = os.path.exists(self._walk.root / image)
      why = ' is no image that is read' if is_there else ''
      self._ledger.fault('missing', f'{where}: {row.file_name}{why}')
    return found

  def _add(self, image: str, captions: tuple[str, ...], where: str) -> None:
    before, known = self.by_image.setdefault(image, (where, captions))
    if known != captions:
      one, other = (shown(' / '.join(texts)) for texts in (known, captions))
      raise UserError(
        f'{self._split.path_field}: {shown(image)} is {one!r} by'
        f' {shown(before)} and {other!r} by {shown(where)}; leave one of them,'
        ' or give both as a list in one row of metadata.jsonl'
      )


def _is_of_captions(name: str) -> bool:
  """Whether a file may hold captions, by its name without the folders."""
  is_text = os.path.splitext(name)[1].lower() == '.txt'
  return (is_text or name in _TABLES) and not is_hidden(name)


def _base(name: str) -> str:
  return posixpath.basename(name)


def _rows_of_table(
  path: pathlib.Path, field: str, ledger: SourceLedger
) -> Iterator[_Row]:
  """The rows of a .csv file; see `table`."""
  try:
    found = table.read(path, field, keep_index=False)
  except UserError as error:
    raise UserError(f'{error} (here: file_name and text)') from error
  layout = found.layout
  names = [*map(str.lower, layout.header)]
  if _FILE_NAME not in names:
    columns = ', '.join(map(shown, layout.header))
    raise UserError(
      f'{field}: its columns are {columns or "without names"}; give file_name'
      ' and text'
    )
  place = names.index(_FILE_NAME)
  broken = {k: v for k, v in found.ledger.faults.items() if k == 'broken_rows'}
  # Empty captions are counted once their images are known.
  ledger.add(
    dataclasses.replace(found.ledger, tried={}, read={}, faults=broken)
  )
  ledger.tried['rows'] += len(found.begins)
  data = path.read_bytes()
  spans = zip(found.begins.tolist(), found.sizes.tolist(), strict=True)
  for number, (begin, size) in enumerate(spans, 1):
    fields = layout.split(data[begin : begin + size])
    if len(fields) != layout.columns:
      continue  # Counted as a broken row.
    where, said = f'row {number}', fields[layout.caption].strip()
    if not (name := text_files.tidy(fields[place])):
      ledger.fault('broken_rows', f'{path.name} {where} has no file_name')
      continue
    text = captions_lib.tidy(said)
    why = f': {said}' if said else ''
    yield _Row(where, name, (text,) if text else (), why=why)


def _rows_of_lines(
  path: pathlib.Path, field: str, ledger: SourceLedger
) -> Iterator[_Row]:
  """The rows of a .jsonl file, an object in each line."""
  with path.open('rb') as file:
    encoding = text_files.detect(file.read(4))
    file.seek(len(encoding.mark))
    try:
      lines = [*text_files.read_lines(file, encoding)]
    except TextError as error:
      raise UserError(f'{field}: {error}') from error
  for number, line in enumerate(lines, 1):
    where = f'line {number}'
    try:
      text = text_files.to_text(line, encoding)
      if not text.strip():
        continue
      ledger.tried['rows'] += 1
      row = text_files.parse_json(text.encode())
      if not isinstance(row, Mapping) or not is_file_name(row.get(_FILE_NAME)):
        raise TextError('no file_name')
    except TextError as error:
      ledger.fault('broken_rows', f'{path.name} {where}: {error}')
      continue
    name = row[_FILE_NAME]
    try:
      captions = captions_lib.of_json(row)
    except TextError as error:
      yield _Row(where, name, (), 'bad_texts', f': {error}')
    else:
      yield _Row(where, name, captions, why=f' has {", ".join(row)}')


def _no_captions(
  split: SplitPath, count: int, tables: Sequence[str], ledger: SourceLedger
) -> UserError:
  """Says what was looked for, and what was found instead."""
  found = [f'{count:,} images', *map(shown, tables)]
  if ledger.passed_over:
    found.append(ledger.seen())
  wrong = next(iter(ledger.faults.values()), None)
  why = f' ({wrong.examples[0]})' if wrong else ''
  return UserError(
    f'config.data.condition=text: no captions below {split.path_field}{why}:'
    f' looked for a text file beside each image (a.txt for a.png), and for'
    f' metadata.jsonl or metadata.csv with file_name and text; found'
    f' {", ".join(found)}'
  )
