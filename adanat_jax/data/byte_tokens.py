"""Captions to the bytes of their words, for a text network trained here.

Bytes need no vocabulary, so that there is nothing to download and every
language can be written. Case, composition of accents and white space carry
nothing, and a small network need not learn to ignore them. Each word, or sign,
has a row of its own, so that it is the same wherever it stands; where words are
written without spaces, such as in Chinese, each character has one.
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

# Thai to Lao, Burmese, Khmer, kana, and Chinese characters.
_WITHOUT_SPACES = re.compile(
  '[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf'
  '\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]'
)


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
  found = {word for text in texts for word in _split(text)}
  return {word for word in found if _is_letter(word[0])}


def _is_letter(character: str) -> bool:
  """Whether it is a letter, a digit or an underscore, and no sign."""
  return character == '_' or unicodedata.category(character)[0] in 'LN'


def _split(text: str) -> list[str]:
  """The words and signs of a caption, in lower case, accents composed."""
  found: list[str] = []
  grows = False  # whether the next letter belongs to the last word
  for character in unicodedata.normalize('NFC', text).lower():
    kind = unicodedata.category(character)[0]
    alone = _WITHOUT_SPACES.match(character)
    if kind in 'ZC':
      grows = False
    elif kind == 'M' and found:
      found[-1] += character  # A vowel sign or an accent of the letter before.
    elif grows and _is_letter(character) and not alone:
      found[-1] += character
    else:
      found.append(character)
      grows = _is_letter(character) and not alone
  return found


def _pieces(text: str) -> list[bytes]:
  """Each word or sign, in pieces that fit into a row."""
  encoded = [word.encode('utf-8', 'replace') for word in _split(text)]
  return [
    data[i : i + ROW] for data in encoded for i in range(0, len(data), ROW)
  ]
