"""Zip files whose entries are views of the mapped file.

What the standard library's module does for honest files, without its costs for
hostile ones: entries may not overlap, nor claim more bytes than there are, and
what compressed ones unfold to is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
import struct
from typing import NamedTuple
import zlib

from adanat_jax.convert.reading import Budget, shown
from adanat_jax.errors import UserError

_END = struct.Struct('<4s4H2LH')
_END64_LOCATOR = struct.Struct('<4sLQL')
_END64 = struct.Struct('<4sQ2H2L4Q')
_CENTRAL = struct.Struct('<4s6H3L5H2L')
_LOCAL = struct.Struct('<4s5H3L2H')
_FIELD = struct.Struct('<2H')
_LONGEST_COMMENT = 0xFFFF

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _IS_UTF8 = 1, 1 << 11
# "The number stands in the field of 64 bits."
_IN_FIELD = 0xFFFFFFFF
_ZIP64_FIELD = 1

# What one entry's tuple and name take.
_ENTRY_BYTES = 500


class ZipEntry(NamedTuple):
  """A line of the directory."""

  name: str
  name_bytes: bytes
  flags: int
  method: int
  checksum: int
  packed: int  # bytes
  size: int  # bytes
  start: int  # of its header
  limit: int  # start of the next header, or of the directory


class ZipArchive:
  """The entries of a mapped zip file."""

  def __init__(self, view: memoryview, budget: Budget):
    """Reads the directory.

    Raises:
      UserError: if it is broken, or entries overlap or bear the same name.
    """
    self._view = view
    self._budget = budget
    self.entries: dict[str, ZipEntry] = {}
    for entry in _read_directory(view, budget):
      if entry.name in self.entries:
        raise UserError(f'two entries are named {shown(entry.name)}')
      self.entries[entry.name] = entry

  def read(self, name: str, *, may_unpack: bool) -> memoryview:
    """Returns the bytes of one entry; without copying them if it is stored.

    Raises:
      UserError: if the entry is absent, encrypted, damaged, or compressed and
        may not be unpacked.
    """
    entry = self.entries.get(name)
    if entry is None:
      raise UserError(f'truncated: the entry {shown(name)} is not there')
    data = self._packed_bytes(entry)
    if entry.method == _DEFLATED and may_unpack:
      data = self._unpacked(entry, data)
    elif entry.method != _STORED:
      raise UserError(
        f'its entry {shown(name)} is compressed in a way that is not read here'
      )
    elif entry.packed != entry.size:
      raise UserError(f'its entry {shown(name)} claims {entry.size} bytes')
    return data

  def check(self, name: str, data: memoryview) -> None:
    """Raises UserError if the checksum of an entry is another one."""
    if zlib.crc32(data) != self.entries[name].checksum:
      raise UserError(
        f'its entry {shown(name)} is damaged (its checksum is wrong)'
      )

  def _packed_bytes(self, entry: ZipEntry) -> memoryview:
    name = shown(entry.name)
    if entry.flags & _ENCRYPTED:
      raise UserError(f'its entry {name} is encrypted')
    if entry.start + _LOCAL.size > entry.limit:
      raise UserError(f'the header of its entry {name} is broken')
    header = _LOCAL.unpack_from(self._view, entry.start)
    name_length, extra_length = header[-2:]
    start = entry.start + _LOCAL.size
    local_name = bytes(self._view[start : start + name_length])
    if header[0] != b'PK\x03\x04' or local_name != entry.name_bytes:
      raise UserError(f'the header of its entry {name} is broken')
    start += name_length + extra_length
    if start + entry.packed > entry.limit:
      raise UserError(
        f'its entry {name} claims {entry.packed} bytes, more than there are'
      )
    return self._view[start : start + entry.packed]

  def _unpacked(self, entry: ZipEntry, packed: memoryview) -> memoryview:
    self._budget.unpack(entry.size)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
      # One byte more, to notice a size that is too small; 0 is no limit.
      data = unpacker.decompress(packed, entry.size + 1)
    except zlib.error as error:
      raise UserError(
        f'its entry {shown(entry.name)} is damaged ({error})'
      ) from error
    if len(data) != entry.size or not unpacker.eof:
      raise UserError(
        f'its entry {shown(entry.name)} claims {entry.size} bytes'
      )
    return memoryview(data)


def _read_directory(view: memoryview, budget: Budget) -> Sequence[ZipEntry]:
  """Reads the central directory and refuses entries that overlap."""
  count, start, end = _find_directory(view)
  entries = []
  position = start
  for _ in range(count):
    budget.step()
    budget.spend(_ENTRY_BYTES)
    if position + _CENTRAL.size > end:
      raise _broken()
    fields = _CENTRAL.unpack_from(view, position)
    signature, _, _, flags, method, _, _, checksum = fields[:8]
    lengths = fields[10:13]
    position += _CENTRAL.size
    extra = position + lengths[0]
    if signature != b'PK\x01\x02' or position + sum(lengths) > end:
      raise _broken()
    name_bytes = bytes(view[position:extra])
    packed, size, header = _sizes(
      view[extra : extra + lengths[1]], fields[8], fields[9], fields[16]
    )
    position += sum(lengths)
    entries.append(
      ZipEntry(
        _decoded(name_bytes, flags), name_bytes, flags, method, checksum,
        packed, size, header, start,
      )
    )  # fmt: skip
  entries.sort(key=lambda entry: entry.start)
  limits = [*(entry.start for entry in entries), start][1:]
  if any(e.start >= n for e, n in zip(entries, limits, strict=True)):
    raise UserError('a broken zip file: entries overlap')
  return [e._replace(limit=n) for e, n in zip(entries, limits, strict=True)]


def _broken() -> UserError:
  return UserError('a truncated or broken zip file: its directory is broken')


def _find_directory(view: memoryview) -> tuple[int, int, int]:
  """Returns number of entries, start and end of the central directory."""
  first = max(0, len(view) - _LONGEST_COMMENT - _END.size)
  found = bytes(view[first:]).rfind(b'PK\x05\x06')
  if found < 0 or first + found + _END.size > len(view):
    raise UserError(
      'a truncated or broken zip file: its end is not there; copy or download'
      ' it again'
    )
  position = first + found
  _, _, _, _, count, size, start, _ = _END.unpack_from(view, position)
  locator = position - _END64_LOCATOR.size
  if locator >= 0 and view[locator : locator + 4] == b'PK\x06\x07':
    _, _, position, _ = _END64_LOCATOR.unpack_from(view, locator)
    if position + _END64.size > locator:
      raise _broken()
    signature, *_, count, size, start = _END64.unpack_from(view, position)
    if signature != b'PK\x06\x06':
      raise _broken()
  if start + size > position:
    raise _broken()
  return count, start, start + size


def _sizes(
  extra: memoryview, packed: int, size: int, start: int
) -> tuple[int, int, int]:
  """Takes numbers that need 64 bits from the field that holds them."""
  if _IN_FIELD not in (packed, size, start):
    return packed, size, start
  position = 0
  while position + _FIELD.size <= len(extra):
    kind, length = _FIELD.unpack_from(extra, position)
    position += _FIELD.size
    if kind == _ZIP64_FIELD:
      content = bytes(extra[position : position + length])
      numbers = [n for (n,) in struct.iter_unpack('<Q', content[: length & ~7])]
      values = []
      for value in (size, packed, start):
        if value == _IN_FIELD:
          if not numbers:
            raise _broken()
          value = numbers.pop(0)
        values.append(value)
      return values[1], values[0], values[2]
    position += length
  raise _broken()


def _decoded(name: bytes, flags: int) -> str:
  if flags & _IS_UTF8:
    try:
      return name.decode()
    except UnicodeDecodeError as error:
      raise _broken() from error
  return name.decode('cp437')
