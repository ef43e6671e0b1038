"""Tells what a file is by its first bytes: endings are often wrong.

What is downloaded under the name of weights is, now and then, a page that asks
for a password, or a line that stands for a large file. Those are named, with
what helps.
"""

from __future__ import annotations

import codecs
import json
import re

from adanat_jax.convert import flax_msgpack, npz, safetensors_file
from adanat_jax.convert.reading import shown
from adanat_jax.errors import UserError

READ = 'torch (.pth, .pt, .ckpt, .bin), safetensors, .npz, Flax msgpack'

ZIP = 'zip'
LEGACY_TORCH = 'torch'
SAFETENSORS = 'safetensors'
MSGPACK = 'msgpack'

_LOOKED_AT = 1024
# The first object of a torch file before 1.6, as protocols 0 and 1 write it.
_LEGACY_TEXT = b'L119547037146038801333356L\n'

_OTHERS = (
  (b'\x1f\x8b', 'compressed by gzip: unpack it first'),
  (b'BZh', 'compressed by bzip2: unpack it first'),
  (b'\xfd7zXZ', 'compressed by xz: unpack it first'),
  (b'\x28\xb5\x2f\xfd', 'compressed by zstd: unpack it first'),
  (b'7z\xbc\xaf', 'a 7z archive: unpack it first'),
  (b'Rar!', 'a rar archive: unpack it first'),
  (b'\x89HDF', 'an HDF5 file'),
  (b'GGUF', 'a GGUF file'),
  (npz.MAGIC, 'one array without a name (.npy); weights are arrays by name'),
  (b'\x89PNG', 'a PNG picture'),
  (b'\xff\xd8\xff', 'a JPEG picture'),
  (b'%PDF', 'a PDF'),
)


def recognize(view: memoryview) -> str:
  """Returns the format: one of the constants of this module.

  Raises:
    UserError: if it is none of them; says what it is instead, if that is known.
  """
  head = bytes(view[:_LOOKED_AT])
  if head.startswith((b'PK\x03\x04', b'PK\x05\x06')):
    return ZIP
  if what := _other(head):
    raise UserError(f'it is {what}; what is read: {READ}')
  if safetensors_file.header_size(view) is not None:
    return SAFETENSORS
  if re.match(rb'\x80([\x00-\x05]|$)', head) or head.startswith(_LEGACY_TEXT):
    return LEGACY_TORCH
  if what := _text(view, head):
    raise UserError(f'it is {what}')
  if flax_msgpack.begins_container(head[0]):
    return MSGPACK
  if not head.strip(b'\0'):
    raise UserError(
      'it begins with zeros: the download or the copy was not finished'
    )
  raise UserError(
    f'its first bytes, {head[:8].hex(" ")}, begin nothing that is read: {READ}'
  )


def _other(head: bytes) -> str | None:
  if head[257:262] == b'ustar':
    return 'a tar archive: unpack it first'
  for magic, what in _OTHERS:
    if head.startswith(magic):
      return what
  return None


def _text(view: memoryview, head: bytes) -> str | None:
  """Says what a text is; None if these bytes are none."""
  is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
  is_page = re.match(rb'\s*<[!?a-z]', head, re.IGNORECASE)
  decoder = codecs.getincrementaldecoder('utf-16' if is_utf16 else 'utf-8')(
    'replace' if is_page else 'strict'
  )
  try:
    text = decoder.decode(head)  # The last character may be cut.
  except UnicodeDecodeError:
    return None
  text = text.removeprefix('\ufeff').strip()
  is_readable = all(c.isprintable() or c.isspace() for c in text)
  if not text or not (is_readable or is_page):
    return None
  if text.startswith('version https://') and '\noid sha256:' in text:
    size = re.search(r'\nsize (\d{1,20})', text)
    of = f' of {int(size[1]):,} bytes' if size else ''
    return (
      f"a pointer of git-lfs to a file{of}, not that file: run 'git lfs pull'"
      ' in its repository, or download the file by its own address'
    )
  if re.match(r'(\.\./)*(\.git|/annex)/.*annex', text) or text.startswith(
    '/annex/objects/'
  ):
    return "a pointer of git-annex: run 'git annex get' in its repository"
  if text.startswith('<'):
    title = re.search(r'<title[^>]*>\s*([^<]*)', text, re.IGNORECASE)
    named = f' ({shown(title[1].strip())})' if title else ''
    is_html = re.search(r'<(!doctype )?html', text, re.IGNORECASE)
    return (
      f'{"an HTML" if is_html else "an XML"} page{named}, not weights: the'
      ' server has answered with it instead of the file; open the address in a'
      ' browser, confirm or log in where it asks, and download again'
    )
  if text.startswith('{') and '"weight_map"' in _whole_text(view):
    return _index_of_parts(view)
  return f'a text, not weights: it begins with {shown(text[:60])!r}'


def _whole_text(view: memoryview) -> str:
  return bytes(view[: 1 << 22]).decode(errors='replace')


def _index_of_parts(view: memoryview) -> str:
  what = 'the index of a file in parts: give each part with an --input'
  try:
    index = json.loads(_whole_text(view))
    parts = sorted({str(part) for part in index['weight_map'].values()})
  except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
    return what
  names = ', '.join(shown(part) for part in parts[:4])
  return f'{what} ({names}{" ..." if len(parts) > 4 else ""})'
