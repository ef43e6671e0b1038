"""Captions to the bytes of their words, for a text network trained here.

Bytes need no vocabulary, so that there is nothing to download and every
language can be written. Case, composition of accents and white space carry
nothing, and a small network need not learn to ignore them. Each word, or sign,
has a row of its own, so that it is the same wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import re
import unicodedata

import numpy as np

# Bytes of a row; longer words take several.
ROW = 16
# Ids: 0 fills up, 1 is the start of a text, then come the 256 bytes.
START = 1
_FIRST = 2
VOCABULARY = _FIRST + 256

_WORD = re.compile(r'\w+')
_WORD_OR_SIGN = re.compile(r'\w+|[^\w\s]')


def tokenize(texts: Sequence[str], num_rows: int) -> np.ndarray:
  """Encodes captions; the empty one is the null condition.

  Args:
    texts: captions.
    num_rows: L, the start counted; longer texts are cut, see `is_cut`.

  Returns:
    int32[len(texts), L * 16]: a row for the start, then for each word.
  """
  ids = np.zeros((len(texts), num_rows, ROW), np.int32)
  ids[:, 0, 0] = START
  for rows, text in zip(ids, texts, strict=True):
    for row, data in zip(rows[1:], _pieces(text), strict=False):
      row[: len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + _FIRST
  return ids.reshape(len(texts), -1)


def is_cut(text: str, num_rows: int) -> bool:
  """Whether `tokenize` leaves out the end of a caption."""
  return len(_pieces(text)) > num_rows - 1


def words(texts: Iterable[str]) -> set[str]:
  """The words of captions, in lower case, their accents composed."""
  return {word for text in texts for word in _WORD.findall(_clean(text))}


def _clean(text: str) -> str:
  return unicodedata.normalize('NFC', text).lower()


def _pieces(text: str) -> list[bytes]:
  """Each word or sign, in pieces that fit into a row."""
  found = _WORD_OR_SIGN.findall(_clean(text))
  encoded = [word.encode('utf-8', 'replace') for word in found]
  return [
    data[i : i + ROW] for data in encoded for i in range(0, len(data), ROW)
  ]
