"""Vectors of captions that somebody's sentence encoder made, from a file.

The file is a .npz or safetensors one, in one of two layouts:

* `captions`, texts [n], beside `vectors`, float[n, D] or float[n, L, D] (.npz);
* an array for each caption or picture, by its text or by the file's name,
  float[D] or float[L, D].

L may differ from caption to caption; rows of zeros at an end are padding and
left out. Vectors are scaled to a mean square of 1, as text towers end in a
norm, too: encoders differ in the lengths of their vectors, and a network that
starts from small weights learns from such numbers. A vector of zeros says
nothing, so zeros are the null condition and what fills up short sequences.

Shape letters: `B` captions, `L` vectors of a caption, `D` width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import unicodedata

import numpy as np

from adanat_jax.errors import UserError, shown

# The arrays of the first layout.
_TABLE = {'captions', 'vectors'}
# What configs allow.
_MOST_WIDTH, MOST_LENGTH = 2**14, 4096
# Captions that a message names, and characters of each.
_EXAMPLES, _CHARACTERS = 3, 60


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionVectors:
  """Vectors by caption, or by the name of a picture.

  Attributes:
    table: float32[1 + n, D], scaled; row 0 is zeros.
    places: first row and number of vectors of each caption.
  """

  table: np.ndarray
  places: Mapping[str, tuple[int, int]]

  @property
  def width(self) -> int:
    """D."""
    return int(self.table.shape[1])

  @property
  def length(self) -> int:
    """The vectors of the caption that has most of them."""
    return max(count for _, count in self.places.values())

  def find(self, caption: str, name: str = '') -> tuple[int, int] | None:
    """The rows of a caption, or else of its picture's file; None: none."""
    found = self.places.get(plain(caption))
    return found or (self.places.get(plain(name)) if name else None)

  def rows(self, caption: str) -> np.ndarray:
    """The vectors of a key of `places`, float32[L, D]."""
    first, count = self.places[caption]
    return self.table[first : first + count]

  def missing(self, asked: Iterable[tuple[str, str]]) -> list[str]:
    """Those of some captions, with the names of pictures, without a vector."""
    return [
      caption for caption, name in asked if self.find(caption, name) is None
    ]

  def ids(
    self, captions: Sequence[str], length: int, names: Sequence[str] = ()
  ) -> np.ndarray:
    """Rows of `table` for each caption, int32[B, L]; 0 fills up.

    The empty caption is the null condition: zeros alone.

    Args:
      captions: texts.
      length: L; those of `places` are not longer.
      names: of the captions' pictures; may be left out.

    Raises:
      UserError: naming captions that have no vector.
    """
    if len(names) != len(captions):
      names = [''] * len(captions)
    asked = [pair for pair in zip(captions, names, strict=True) if pair[0]]
    if missing := self.missing(asked):
      raise UserError(f'no vector for {examples(missing)}')
    ids = np.zeros((len(captions), length), np.int32)
    for row, caption, name in zip(ids, captions, names, strict=True):
      first, count = self.find(caption, name) or (0, 0)
      row[:count] = first + np.arange(count)
    return ids

  def digest(self) -> str:
    """A checksum of the captions, their order and their vectors, hexadecimal.

    It stays the same where the same vectors are written to another kind of
    file.
    """
    found = hashlib.sha256(repr(list(self.places.items())).encode())
    found.update(np.ascontiguousarray(self.table, '<f4').tobytes())
    return found.hexdigest()


def from_arrays(arrays: Mapping[str, np.ndarray]) -> CaptionVectors:
  """What a file of vectors holds.

  Raises:
    UserError: saying which caption's array is none that can be used.
  """
  given = _named(arrays)
  first = next(iter(given), None)
  if first is None:
    raise UserError('it holds no vectors')
  known: dict[str, np.ndarray] = {}
  width = 0
  for caption, array in given:
    found = _checked(caption, array)
    width = width or found.shape[1]
    if found.shape[1] != width:
      raise UserError(
        f'the vector of {_short(first[0])} has {width} numbers and that of'
        f' {_short(caption)} {found.shape[1]}; one encoder gives all of them'
        ' as many'
      )
    if not np.array_equal(known.setdefault(plain(caption), found), found):
      raise UserError(
        f'{_short(caption)} is there twice, with different vectors; leave one'
        ' of them'
      )
  counts = [*map(len, known.values())]
  begins = np.cumsum([1, *counts]).tolist()
  zeros = np.zeros((1, width), np.float32)
  return CaptionVectors(
    np.concatenate([zeros, *known.values()]),
    dict(zip(known, zip(begins, counts, strict=False), strict=True)),
  )


def scaled(vectors: np.ndarray) -> np.ndarray:
  """Vectors of any encoder, scaled to a mean square of 1, float32[..., D].

  Vectors of zeros stay.
  """
  # The squares of large halves, or of tiny numbers, would not be finite.
  wide = np.asarray(vectors, np.float64)
  root = np.sqrt(np.square(wide).mean(-1, keepdims=True))
  return (wide / np.where(root > 0, root, 1)).astype(np.float32)


def plain(text: str) -> str:
  """A caption or a name as it is compared: composed, single spaces."""
  return ' '.join(unicodedata.normalize('NFC', text).split())


def examples(captions: Sequence[str]) -> str:
  """A few captions for a message."""
  several = list(dict.fromkeys(captions))
  named = ', '.join(map(_short, several[:_EXAMPLES]))
  return named + (', ...' if len(several) > _EXAMPLES else '')


def _short(caption: str) -> str:
  cut = caption[:_CHARACTERS] + '...' * (len(caption) > _CHARACTERS)
  return repr(cut)


def _named(arrays: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray]]:
  """The array of each caption, of either layout."""
  if set(arrays) != _TABLE:
    return [*arrays.items()]
  texts, vectors = arrays['captions'], arrays['vectors']
  if texts.ndim != 1 or texts.dtype.kind not in 'US':
    raise UserError(
      f'`captions` are {texts.dtype}{list(texts.shape)}; give texts [n], such'
      ' as np.array([...]) of a list of them'
    )
  if vectors.ndim not in (2, 3) or len(vectors) != len(texts):
    raise UserError(
      f'`vectors` are {vectors.dtype}{list(vectors.shape)} of {len(texts)}'
      f' captions; give floats [{len(texts)}, width] or [{len(texts)}, length,'
      ' width]'
    )
  if texts.dtype.kind == 'S':
    texts = np.char.decode(texts, 'utf-8', 'replace')
  return [*zip(texts.tolist(), vectors, strict=True)]


def _checked(caption: str, array: np.ndarray) -> np.ndarray:
  """The vectors of a caption, scaled, float32[L, D] without padding."""
  if not plain(caption):
    raise UserError(
      'an empty caption has a vector; it is the null condition, which is zeros'
    )
  what = f'the vector of {_short(caption)}'
  array = np.asarray(array)
  # numpy knows bfloat16 as a type without a kind.
  if array.dtype.kind != 'f' and array.dtype.name != 'bfloat16':
    raise UserError(f'{what} is {array.dtype}; give floats')
  if array.ndim not in (1, 2) or not array.size:
    raise UserError(
      f'{what} has shape {shown(list(array.shape))}; give [width], or [length,'
      ' width] for a sequence'
    )
  vectors = np.atleast_2d(array).astype(np.float32)
  if vectors.shape[1] > _MOST_WIDTH or len(vectors) > MOST_LENGTH:
    raise UserError(
      f'{what} has shape {list(array.shape)}; a vector has at most'
      f' {_MOST_WIDTH} numbers, a sequence {MOST_LENGTH} vectors'
    )
  if not np.isfinite(vectors).all():
    raise UserError(f'{what} is not finite')
  is_text = np.any(vectors != 0, axis=1)
  if not is_text.any():
    raise UserError(f'{what} is all zeros, which stands for no caption')
  vectors = vectors[: int(is_text.nonzero()[0][-1]) + 1]
  return scaled(vectors)
