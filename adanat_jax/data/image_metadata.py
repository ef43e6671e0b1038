"""Image files without what is told about the picture in them.

Cameras and editors put all kinds of things beside the pixels: EXIF with wrong
types, megabytes of text, colour profiles. Pillow reads them when it opens a
file, and refuses good pictures for them. None of it changes a pixel, except the
orientation, so JPEG and PNG files are cut down to what decoding needs, and the
orientation is read here.
"""

from __future__ import annotations

from collections.abc import Iterator
import re
import struct
import zlib

ORIENTATION = 0x0112

_JPEG = b'\xff\xd8\xff'
_PNG = b'\x89PNG\r\n\x1a\n'
# JPEG's markers: the start of the pixels, and those that stand alone.
_START_OF_SCAN = 0xDA
_ALONE = frozenset((0x01, *range(0xD0, 0xDA)))
# Of the application's own segments, JFIF's and Adobe's say how colours are
# stored.
_APPLICATION = range(0xE0, 0xF0)
_OF_COLOURS = frozenset((0xE0, 0xEE))
_COMMENT = 0xFE
_FILL = re.compile(b'\xff+')

_EXIF = b'Exif\0\0'
_XMP = b'http://ns.adobe.com/xap/1.0/\0'
_PNG_XMP = b'XML:com.adobe.xmp'
_PNG_EXIF = b'Raw profile type exif'
# Types of numbers in tags, as struct has them.
_INTEGERS = {1: 'B', 3: 'H', 4: 'I'}
_IN_XMP = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
# Compressed texts are read up to this size.
_LONGEST_TEXT = 1 << 20


def pixels_alone(data: bytes) -> tuple[bytes, int]:
  """Cuts what does not change a pixel out of an image file.

  Returns:
    The file, as it is if it cannot be parsed, and its EXIF orientation: 1,
    upright, to 8. For formats other than JPEG and PNG see `orientation_of`.
  """
  if data.startswith(_JPEG):
    return _of_jpeg(data)
  if data.startswith(_PNG):
    return _of_png(data)
  return data, 1


def orientation_of(exif: bytes, xmp: bytes = b'') -> int:
  """The orientation that EXIF, or else XMP, gives: 1, upright, to 8.

  EXIF is a TIFF file of tags, perhaps after JPEG's mark of it; XMP is XML.
  """
  tags = exif.removeprefix(_EXIF)
  order = {b'II': '<', b'MM': '>'}.get(tags[:2])
  if order:
    try:
      (place,) = struct.unpack_from(f'{order}I', tags, 4)
      (count,) = struct.unpack_from(f'{order}H', tags, place)
      for index in range(count):
        entry = place + 2 + 12 * index
        tag, kind = struct.unpack_from(f'{order}HH', tags, entry)
        if tag == ORIENTATION:
          letter = _INTEGERS.get(kind, 'H')
          (value,) = struct.unpack_from(f'{order}{letter}', tags, entry + 8)
          return value if 1 <= value <= 8 else 1
    except struct.error:
      # Cut off.
      pass
  found = _IN_XMP.search(xmp)
  return int(found[1]) if found else 1


def _of_jpeg(data: bytes) -> tuple[bytes, int]:
  kept, exif, xmp = [data[:2]], b'', b''
  place = 2
  while True:
    # Any number of fill bytes may come before a marker.
    start = place
    if data[place : place + 2] == b'\xff\xff':
      place = _FILL.match(data, place).end() - 1  # type: ignore[union-attr]
    if len(data) < place + 4 or data[place] != 0xFF:
      break
    marker = data[place + 1]
    if marker == _START_OF_SCAN:
      break
    size = (
      0 if marker in _ALONE else int.from_bytes(data[place + 2 : place + 4])
    )
    end = place + 2 + size
    if end > len(data) or (marker not in _ALONE and size < 2):
      break
    body = data[place + 4 : end]
    if marker == 0xE1:
      if body.startswith(_EXIF):
        exif = exif or body
      elif body.startswith(_XMP):
        xmp = xmp or body
    is_application = marker in _APPLICATION and marker not in _OF_COLOURS
    if not is_application and marker != _COMMENT:
      kept.append(data[start:end])
    place = end
  kept.append(data[place:])
  return b''.join(kept), orientation_of(exif, xmp)


def _of_png(data: bytes) -> tuple[bytes, int]:
  kept, exif, xmp = [data[: len(_PNG)]], b'', b''
  for kind, start, end in _png_chunks(data):
    # Of what a decoder may skip only transparency counts.
    if not kind[0] & 32 or kind == b'tRNS':
      kept.append(data[start:end])
      continue
    body = data[start + 8 : end - 4]
    if kind == b'eXIf':
      exif = exif or body
    elif kind in (b'tEXt', b'zTXt', b'iTXt'):
      if body.startswith(_PNG_XMP + b'\0'):
        xmp = xmp or _png_text(kind, body)
      elif body.startswith(_PNG_EXIF + b'\0'):
        exif = exif or _from_hex(_png_text(kind, body))
  return b''.join(kept), orientation_of(exif, xmp)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
  """Yields kind, begin and end of each chunk, the rest of a file as one."""
  place = len(_PNG)
  while place < len(data):
    kind = data[place + 4 : place + 8]
    end = place + 12 + int.from_bytes(data[place : place + 4])
    if len(kind) < 4 or end > len(data):
      # Cut off: decoding finds out.
      yield b'IDAT', place, len(data)
      return
    yield kind, place, end
    if kind == b'IEND':
      return
    place = end


def _png_text(kind: bytes, body: bytes) -> bytes:
  """The text in a chunk, b'' if it cannot be read."""
  rest = body.partition(b'\0')[2]
  is_packed = kind == b'zTXt'
  if kind == b'iTXt':
    is_packed = rest[:1] == b'\1'
    # Whether and how it is packed, its language, a translated keyword.
    rest = rest[2:].partition(b'\0')[2].partition(b'\0')[2]
  elif is_packed:
    rest = rest[1:]
  if not is_packed:
    return rest
  try:
    return zlib.decompressobj().decompress(rest, _LONGEST_TEXT)
  except zlib.error:
    return b''


def _from_hex(text: bytes) -> bytes:
  """ImageMagick's way to store EXIF: a name, a length, lines of digits."""
  try:
    return bytes.fromhex(b''.join(text.split(b'\n')[3:]).decode('ascii'))
  except ValueError:
    return b''
