"""Tables of captions, with or without images: what their columns mean.

A table's text is told apart from its layout by these rules:

* **Header.** The first row is one if a column bears a usual name of captions
  (see `captions`) and none is an address. Without one, a table of four columns
  is the authors' (key, number, caption, image in base64), and of two columns
  one has to be the address of the image; the other is the caption.
* **Separator.** Commas in `.csv` files and tabs in others come first; the first
  one with which there is such a header, or that number of columns, is taken.
* **Quotes.** Between commas they are undone as the csv module does, also over
  several lines. Between tabs most writers give them no meaning, some (pandas)
  do: there they are undone if every field that begins with a quote, throughout
  the table, ends with one and doubles those inside; and if the rows have their
  columns only when quotes may enclose tabs and line feeds.
* Blank lines, and the header again in the middle, are no rows.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
import csv
import dataclasses
import io
import itertools
import json
import pathlib
import re
from typing import Any, BinaryIO

import numpy as np

from adanat_jax.data.sources import captions, index_file, text_files
from adanat_jax.data.sources.ledger import SourceLedger
from adanat_jax.data.sources.raw_source import key_hash
from adanat_jax.data.sources.text_files import TextError
from adanat_jax.errors import UserError

_KIND = 'table 2'
# Lines that are looked at to find out what the columns are.
_SAMPLE = 100
# What columns of images in base64 are called.
_IMAGES = ('image', 'img', 'base64', 'b64', 'jpg', 'jpeg', 'png', 'bytes')
_AUTHORS = 4
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class TableLayout:
  """How a table is written."""

  encoding: str  # See `text_files.Encoding`; its name.
  separator: str  # Of columns, a tab or a comma.
  # What they mean: 'none' for nothing; 'fields', around fields of one line,
  # without separators in them; 'csv', as the csv module has it; or 'line', the
  # same for each line by itself.
  quotes: str
  columns: int  # How many there are.
  caption: int  # The place of the caption.
  image: int = -1  # That of the image in base64; -1 for none.
  header: tuple[str, ...] = ()  # The names of the columns; () for none.

  def split(self, data: bytes) -> list[str]:
    """Splits the bytes of a row, which is text.

    Fields beyond the columns are left out if they are empty: separators too
    many.

    Raises:
      csv.Error: for a field of more than 128 KiB in quotes.
    """
    text = data.decode(self.encoding).rstrip('\r\n')
    if self.quotes in ('csv', 'line'):
      lines = io.StringIO(text, newline='\n')
      fields = next(csv.reader(lines, delimiter=self.separator), [])
    else:
      fields = text.split(self.separator)
      if self.quotes == 'fields':
        fields = [*map(_undo, fields)]
    return self.without_ends(fields)

  def without_ends(self, fields: list[str]) -> list[str]:
    """Removes empty fields beyond the columns."""
    while len(fields) > self.columns and not fields[-1]:
      fields.pop()
    return fields


@dataclasses.dataclass(frozen=True)
class Table:
  """The rows of a table."""

  layout: TableLayout
  begins: np.ndarray  # int64[n], where they begin in the file.
  sizes: np.ndarray  # int64[n], in bytes.
  hashes: np.ndarray  # uint64[n], of their first columns.
  ledger: SourceLedger


def _field_of(code: str) -> Any:
  return dataclasses.field(default_factory=lambda: array.array(code))


@dataclasses.dataclass
class _Rows:
  """What one reading of a table finds."""

  ledger: SourceLedger
  begins: array.array = _field_of('q')
  sizes: array.array = _field_of('q')
  hashes: array.array = _field_of('Q')
  addresses: int = 0
  has_quotes: bool = False
  has_odd_quotes: bool = False

  @property
  def num_broken(self) -> int:
    return self.ledger.count('broken_rows')


def read(path: pathlib.Path, field: str, *, keep_index: bool = True) -> Table:
  """Finds the rows of a table, to which a config field leads.

  `keep_index` writes what was found beside the table; see `index_file`.

  Raises:
    UserError: if it is not text, has other columns or no rows.
  """

  def build() -> index_file.IndexArrays:
    try:
      layout, rows = _build(path)
    except (TextError, csv.Error) as error:
      raise UserError(f'{field}: {error}') from error
    about = {'layout': dataclasses.asdict(layout), **rows.ledger.to_json()}
    return {
      'begins': np.array(rows.begins, np.int64),
      'sizes': np.array(rows.sizes, np.int64),
      'hashes': np.array(rows.hashes, np.uint64),
      'about': np.array(json.dumps(about)),
    }

  arrays = index_file.cached(path, _KIND, build) if keep_index else build()
  about = json.loads(str(arrays['about']))
  layout = about.pop('layout')
  if not len(arrays['begins']):
    raise UserError(f'{field}: no lines in it')
  return Table(
    TableLayout(**{**layout, 'header': tuple(layout['header'])}),
    arrays['begins'],
    arrays['sizes'],
    arrays['hashes'],
    SourceLedger.from_json(about),
  )


def _build(path: pathlib.Path) -> tuple[TableLayout, _Rows]:
  """Finds the layout and the rows."""
  with path.open('rb', buffering=1 << 22) as file:
    encoding = text_files.detect(file.read(4))
    file.seek(len(encoding.mark))
    layout = _find_layout(
      _sample(file, encoding), encoding, path.suffix.lower() == '.csv'
    )

    def scan(quotes: str) -> _Rows:
      file.seek(len(encoding.mark))
      return _scan(file, encoding, dataclasses.replace(layout, quotes=quotes))

    quotes, rows = _choose_quotes(scan, layout)
  if rows.addresses > len(rows.begins) / 2:
    raise TextError(
      f'its captions are mostly addresses such as http://...; its columns are'
      f' {_named(layout.header) or layout.columns}: give one the name caption'
    )
  return dataclasses.replace(layout, quotes=quotes), rows


def _choose_quotes(
  scan: Callable[[str], _Rows], layout: TableLayout
) -> tuple[str, _Rows]:
  """Decides what quotes mean; see the module."""
  if layout.separator == '\t':
    plain = scan('none')
    if not plain.has_quotes:
      return 'none', plain
    if not plain.num_broken:
      return (
        ('none', plain) if plain.has_odd_quotes else ('fields', scan('fields'))
      )
    # The csv module takes no field as long as an image.
    if layout.image < 0:
      with contextlib.suppress(csv.Error):
        quoted = scan('csv')
        if not quoted.num_broken:
          return 'csv', quoted
    return 'none', plain
  try:
    quoted = scan('csv')
  except csv.Error:
    alone = scan('line')
    if alone.num_broken:
      raise
    return 'line', alone
  return 'csv', quoted


def _sample(
  file: BinaryIO, encoding: text_files.Encoding
) -> list[tuple[int, str]]:
  """The first lines that are not blank, with their numbers."""
  found = []
  lines = enumerate(text_files.read_lines(file, encoding), 1)
  for number, line in itertools.islice(lines, _SAMPLE):
    text = _text(line, encoding, number).rstrip('\r\n')
    if text.strip():
      found.append((number, text))
  if found and '\r' in found[0][1]:
    raise TextError(
      f'line {found[0][0]}: a carriage return inside; end lines with line feeds'
    )
  return found


def _find_layout(
  sample: Sequence[tuple[int, str]], encoding: text_files.Encoding, is_csv: bool
) -> TableLayout:
  """Finds out what the columns are; quotes are decided on later."""
  lines = [text for _, text in sample]
  first = lines[0] if lines else ''
  order = ',\t' if is_csv else '\t,'
  rows = {
    separator: [_fields(line, separator) for line in lines]
    for separator in order
  }

  def layout(separator: str, caption: int, **more: Any) -> TableLayout:
    columns = len(rows[separator][0])
    return TableLayout(
      encoding.name, separator, 'none', columns, caption, **more
    )

  for separator, found in rows.items():
    names = found[0] if found else []
    place = captions.find(names)
    if place is not None and not any(map(captions.is_address, names)):
      return layout(
        separator, place, image=_image_column(found), header=tuple(names)
      )
  if first.count('\t') == _AUTHORS - 1:
    return layout('\t', 2, image=3)
  for separator, found in rows.items():
    if found and len(found[0]) == 2:
      return layout(separator, _caption_of_two(found))
  separator = order[0] if order[0] in first else order[1]
  names = rows[separator][0] if lines else ['']
  raise TextError(
    f'its first line has {len(names)} columns ({_named(names)}); give'
    ' <key>.jpg, number, caption and base64 image, or caption and url,'
    ' separated by tabs, or a header with a column called caption'
  )


def _caption_of_two(rows: Sequence[Sequence[str]]) -> int:
  """The column of captions, of two without a header: the one without addresses.

  Raises:
    TextError: if it is not clear which it is.
  """
  pairs = [row for row in rows if len(row) == 2]
  shares = [
    sum(captions.is_address(row[column]) for row in pairs) / len(pairs)
    for column in range(2)
  ]
  image = 0 if shares[0] > shares[1] else 1
  names = _named(rows[0])
  if shares[image] <= 0.5 or shares[1 - image] > 0.5:
    raise TextError(
      f'its 2 columns, which begin with {names}, have no header, and it is not'
      ' clear which is the caption: one has to hold addresses and the other'
      ' one texts; or give them a header, such as caption and url'
    )
  if not captions.is_address(rows[0][image]):
    raise TextError(
      f'its columns are called {names}, none of which is known: call the one'
      ' of the captions caption (or text, title, prompt)'
    )
  return 1 - image


def _image_column(rows: Sequence[Sequence[str]]) -> int:
  """The column of images in base64 below a header; -1 if there is none."""
  for column, name in enumerate(rows[0]):
    if name.strip().lower() not in _IMAGES or len(rows) < 2:
      continue
    value = rows[1][column] if column < len(rows[1]) else ''
    if len(value) > 64 and not captions.is_address(value) and ' ' not in value:
      return column
  return -1


def _scan(
  file: BinaryIO, encoding: text_files.Encoding, layout: TableLayout
) -> _Rows:
  """Reads a table from the first line on.

  Raises:
    TextError: naming the line that is not text.
    csv.Error: naming the line with quotes that do not fit.
  """
  rows = _Rows(SourceLedger())
  ledger = rows.ledger
  is_header = bool(layout.header)
  for begin, size, number, fields in _records(file, encoding, layout):
    fields = layout.without_ends(fields)
    if not any(map(str.strip, fields)):
      continue
    if is_header:
      is_header = False
      continue
    if layout.header and tuple(map(_unquoted, fields)) == layout.header:
      ledger.pass_over('repeated headers')
      continue
    rows.begins.append(begin)
    rows.sizes.append(size)
    rows.hashes.append(key_hash(fields[0].encode()))
    for field in fields:
      if field.startswith('"'):
        rows.has_quotes = True
        rows.has_odd_quotes |= not _QUOTED.fullmatch(field)
    if len(fields) != layout.columns:
      ledger.fault(
        'broken_rows',
        f'line {number} has {len(fields)} columns instead of {layout.columns}',
      )
      continue
    caption = fields[layout.caption]
    if not captions.tidy(caption):
      said = f': {shown}' if (shown := caption.strip()) else ''
      ledger.fault('empty_captions', f'line {number}{said}')
      rows.addresses += captions.is_address(caption)
  count = len(rows.begins)
  ledger.tried = {'rows': count, 'captions': count}
  if layout.image >= 0:
    ledger.read['images'] = count - rows.num_broken
  ledger.read['captions'] = (
    count - rows.num_broken - ledger.count('empty_captions')
  )
  return rows


def _records(
  file: BinaryIO, encoding: text_files.Encoding, layout: TableLayout
) -> Iterator[tuple[int, int, int, list[str]]]:
  """Yields where each row begins, its size, its first line, its fields."""
  begin = file.tell()
  if layout.quotes == 'csv':
    yield from _quoted_records(file, encoding, layout, begin)
    return
  lines = enumerate(text_files.read_lines(file, encoding), 1)
  for number, line in lines:
    _text(line, encoding, number)
    try:
      yield begin, len(line), number, layout.split(line)
    except csv.Error as error:
      raise csv.Error(f'line {number}: {error}') from error
    begin += len(line)


def _quoted_records(
  file: BinaryIO, encoding: text_files.Encoding, layout: TableLayout, begin: int
) -> Iterator[tuple[int, int, int, list[str]]]:
  """Yields the same where a row may have several lines."""
  end, number = begin, 0

  def lines() -> Iterator[str]:
    nonlocal end, number
    for line in text_files.read_lines(file, encoding):
      end += len(line)
      number += 1
      yield _text(line, encoding, number)

  reader = csv.reader(lines(), delimiter=layout.separator, strict=True)
  first = 1
  while True:
    try:
      fields = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      raise csv.Error(
        f'line {first}: {error}; a quote in a quoted field is written twice'
      ) from error
    yield begin, end - begin, first, fields
    begin, first = end, number + 1


def _text(line: bytes, encoding: text_files.Encoding, number: int) -> str:
  try:
    return text_files.to_text(line, encoding)
  except TextError as error:
    raise TextError(
      f'line {number}: {error}; give a file in UTF-8, or in UTF-16 with a'
      ' byte-order mark'
    ) from error


def _fields(line: str, separator: str) -> list[str]:
  """Splits a line to see what its columns are."""
  if separator == '\t':
    return [_unquoted(field) for field in line.split('\t')]
  try:
    return [*map(_unquoted, next(csv.reader([line]), []))]
  except csv.Error:
    return line.split(',')


def _undo(field: str) -> str:
  """Removes the quotes around a field as the csv module does."""
  if field.startswith('"') and _QUOTED.fullmatch(field):
    return field[1:-1].replace('""', '"')
  return field


def _unquoted(field: str) -> str:
  return text_files.tidy(_undo(text_files.tidy(field)))


def _named(names: Iterable[str]) -> str:
  """The names of columns, for a message."""
  shown = [repr(text_files.shown(name[:30])) for name in names]
  more = ', ...' if len(shown) > _SHOWN else ''
  return ', '.join(shown[:_SHOWN]) + more
