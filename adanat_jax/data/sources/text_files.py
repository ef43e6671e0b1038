"""Texts of other people's files: the only place that turns bytes into text.

The encoding is that of the file's byte-order mark (UTF-8, UTF-16 or UTF-32),
and UTF-8 where there is none. Nothing is replaced: bytes that are not text in
that encoding, NUL characters and halves of surrogate pairs raise a `TextError`.
Guessing other encodings would turn captions into other captions.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import io
import json
import pathlib
from typing import Any, BinaryIO

from adanat_jax.errors import UserError, printable

# A file of another kind may be one line of any length.
LONGEST_LINE = 1 << 27
# A message shows about as many characters of a text.
_SHOWN = 80
# A sign that no text needs, and that would be part of a caption otherwise.
_MARK = '\ufeff'
_NUL = 'a NUL character'


class TextError(ValueError):
  """Bytes that are not text; the message says why, in one line."""


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How a file stores text."""

  name: str  # Python's, of one that expects no byte-order mark.
  mark: bytes = b''  # The byte-order mark at the beginning; b'' for none.
  newline: bytes = b'\n'  # The bytes of a line feed.


UTF8 = Encoding('utf-8')
# The marks of UTF-32 first: that of UTF-16 is the beginning of one of them.
_MARKED = (
  Encoding('utf-8', b'\xef\xbb\xbf'),
  Encoding('utf-32-le', b'\xff\xfe\0\0', b'\n\0\0\0'),
  Encoding('utf-32-be', b'\0\0\xfe\xff', b'\0\0\0\n'),
  Encoding('utf-16-le', b'\xff\xfe', b'\n\0'),
  Encoding('utf-16-be', b'\xfe\xff', b'\0\n'),
)


def detect(start: bytes) -> Encoding:
  """The encoding that a file's first four bytes name."""
  for encoding in _MARKED:
    if start.startswith(encoding.mark):
      return encoding
  return UTF8


def to_text(data: bytes, encoding: Encoding = UTF8) -> str:
  """Decodes part of a file, without its byte-order mark.

  Raises:
    TextError: if it is not text.
  """
  try:
    text = data.decode(encoding.name)
  except UnicodeDecodeError as error:
    name = encoding.name[:6].upper().rstrip('-')
    raise TextError(f'byte {data[error.start]:#04x} is not {name}') from error
  if '\0' in text:
    raise TextError(_NUL)
  return text


def check(text: str) -> None:
  """Raises TextError for characters that JSON may hold and no text does."""
  if '\0' in text:
    raise TextError(_NUL)
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    half = ord(text[error.start])
    raise TextError(f'half of a surrogate pair, \\u{half:04x}') from error


def decode(data: bytes) -> str:
  """Decodes a whole file.

  Raises:
    TextError: if it is not text; the message names the line.
  """
  encoding = detect(data[:4])
  body = data.removeprefix(encoding.mark)
  try:
    return to_text(body, encoding)
  except TextError:
    lines = read_lines(io.BytesIO(body), encoding)
    for number, line in enumerate(lines, 1):
      try:
        to_text(line, encoding)
      except TextError as error:
        raise TextError(f'line {number}: {error}') from error
    raise


def read_lines(file: BinaryIO, encoding: Encoding) -> Iterator[bytes]:
  """Yields the lines of a file from its position on, with their ends.

  Raises:
    TextError: if a line does not end.
  """
  if len(encoding.newline) > 1:
    yield from _wide_lines(file, encoding.newline)
    return
  while line := file.readline(LONGEST_LINE):
    _check_length(line)
    yield line


def _wide_lines(file: BinaryIO, newline: bytes) -> Iterator[bytes]:
  """The lines of a file whose characters take several bytes."""
  width, rest, start = len(newline), bytearray(), 0
  while chunk := file.read(1 << 20):
    rest += chunk
    while (place := rest.find(newline, start)) >= 0:
      if place % width:
        # The end of one character and the beginning of the next.
        start = place + 1
        continue
      yield bytes(rest[: place + width])
      del rest[: place + width]
      start = 0
    start = max(0, len(rest) - width + 1)
    _check_length(rest)
  if rest:
    yield bytes(rest)


def _check_length(line: bytes | bytearray) -> None:
  if len(line) >= LONGEST_LINE:
    raise TextError(f'a line of more than {LONGEST_LINE >> 20} MiB')


def tidy(text: str) -> str:
  """A caption without white space and byte-order marks at its ends.

  Files that were written one after another into one have a mark in the middle.
  """
  return text.strip().strip(_MARK).strip()


def shown(text: str) -> str:
  """Shortens and escapes a text for a message."""
  return printable(text, _SHOWN)


def parse_json(data: bytes) -> Any:
  """The value that a JSON file holds.

  Strings in it may still be no text; see `check`.

  Raises:
    TextError: if it is not valid JSON.
  """
  try:
    return json.loads(decode(data))
  except TextError:
    raise
  except json.JSONDecodeError as error:
    raise TextError(
      f'not valid JSON: {error.msg} at line {error.lineno} column {error.colno}'
    ) from error
  except RecursionError as error:
    raise TextError('not valid JSON here: nested too deeply') from error
  except ValueError as error:
    # Python does not read integers of thousands of digits.
    raise TextError('not valid JSON here: an integer is too long') from error


def read_json(path: pathlib.Path, field: str) -> Any:
  """Reads a JSON file, to which a config field leads.

  Raises:
    UserError: naming the field, if it is missing or not valid JSON.
  """
  if not path.is_file():
    what = 'a folder' if path.is_dir() else 'no such file'
    raise UserError(f'{field}: {what}; give a JSON file')
  try:
    return parse_json(path.read_bytes())
  except TextError as error:
    raise UserError(f'{field}: {error}') from error
  except OSError as error:
    raise UserError(f'{field}: cannot be read: {error.strerror}') from error
