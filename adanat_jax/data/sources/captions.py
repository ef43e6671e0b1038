"""Which column or field of somebody's file holds the caption.

Usual names are known, in any case: those of CC3M, img2dataset (`caption`),
LAION (`TEXT`), DiffusionDB (`prompt`) and their like. CC12M's tables have none:
there the other column is one of addresses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
from typing import Any

from adanat_jax.data.sources import text_files
from adanat_jax.data.sources.raw_source import IMAGE_SUFFIXES

# By preference, where a file has several of them.
NAMES = (
  *('caption', 'captions', 'text', 'texts', 'prompt', 'prompts', 'title'),
  *('alttext', 'alt', 'description', 'sentence', 'sentences', 'imagecaption'),
  *('imagedescription', 'captiontext', 'textcaption'),
)
# What programs write where a table has no value.
_MISSING = frozenset(('nan', 'none', 'null', 'n/a', '#n/a', '<na>', 'nil'))
_ADDRESSES = ('http://', 'https://', 'ftp://', 's3://', 'gs://', 'www.', '//')


def find(names: Sequence[str]) -> int | None:
  """The place of the caption among names of columns or fields, if it is one."""
  plain = [*map(_plain, names)]
  return next((plain.index(name) for name in NAMES if name in plain), None)


def tidy(text: str) -> str:
  """A caption as it is trained on; '' for a text that says nothing.

  That is one without a visible character, a missing value as programs write it,
  or the address of an image in the caption's place.
  """
  text = text_files.tidy(text)
  if not any(c.isprintable() and c != ' ' for c in text):
    return ''
  return '' if text.lower() in _MISSING or is_address(text) else text


def is_address(text: str) -> bool:
  """Whether a text leads to an image and does not say what it shows."""
  text = text.strip().lower()
  if ' ' in text:
    return False
  suffix = os.path.splitext(text)[1]
  return text.startswith(_ADDRESSES) or suffix in IMAGE_SUFFIXES


def of_json(value: Any) -> tuple[str, ...]:
  """The captions in a JSON file that describes one image, without empty ones.

  The file holds a text, or an object with a text or a list of texts under a
  usual name.

  Raises:
    TextError: if a caption is not text.
  """
  values = [value]
  if isinstance(value, Mapping):
    plain = {_plain(name): inner for name, inner in value.items()}
    values = [plain[name] for name in NAMES if name in plain]
  for candidate in values:
    texts = candidate if isinstance(candidate, list) else [candidate]
    found = [tidy(text) for text in texts if isinstance(text, str)]
    if any(found):
      for text in found:
        text_files.check(text)
      return tuple(filter(None, found))
  return ()


def _plain(name: str) -> str:
  return ''.join(filter(str.isalnum, name)).lower()
