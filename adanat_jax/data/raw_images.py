"""Raw images as examples: decoded, cropped and labelled on demand.

Few images are kept in memory once they are decoded; of many only the index is
held. A file that cannot be read is reported once, by name, and replaced by the
next readable one, the same each time, so that a resumed run reads the same
batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import concurrent.futures
import dataclasses
import math
import os
import threading

from absl import logging
import numpy as np

from adanat_jax.data import images
from adanat_jax.data.examples import Rows
from adanat_jax.data.sources.raw_source import RawExample, RawSource
from adanat_jax.errors import UserError

# If this many neighbours cannot be read, the fault is not in the files.
_MOST_NEIGHBOURS = 64
# Decoding a photograph takes longer than a small network's step on it.
_BYTES_IN_MEMORY = 2**29


def decode(
  example: RawExample,
  size: tuple[int, int],
  apply_orientation: bool = False,
  background: Sequence[int] | None = None,
  *,
  with_captions: bool = False,
) -> np.ndarray:
  """The pixels of an example, as `images.decode` makes them.

  Raises:
    CorruptImageError: if its image cannot be read, or it has no caption and is
      of no use without.
  """
  if with_captions and not example.captions:
    raise images.CorruptImageError(example.problem or 'it has no caption')
  if not example.image and example.problem:
    raise images.CorruptImageError(example.problem)
  return images.decode(example.image, size, apply_orientation, background)


class RawImages:
  """A source's images, float32 in [0, 1], with classes or caption ids.

  The index counts the images as they are and then, if mirrored, their mirror
  images; a caption of an image with several is chosen by its index.
  """

  def __init__(
    self,
    source: RawSource,
    size: tuple[int, int],
    *,
    apply_orientation: bool = False,
    background: Sequence[int] | None = None,
    mirrored: bool = False,
    tokenize: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    | None = None,
  ):
    """Opens nothing yet.

    Args:
      source: see `adanat_jax.data.sources.registry`.
      size: height and width, in pixels.
      apply_orientation: turn photographs upright by their EXIF tag.
      background: what transparent pixels are composited on; see
        `images.decode`.
      mirrored: whether each image also counts left-right mirrored.
      tokenize: captions, with the keys of their images, to int32[B, L]; None
        for sources with classes.

    Raises:
      UserError: if the source holds captions alone.
    """
    if not source.has_images:
      raise UserError(
        f'{source.description["path"]} holds captions and no images'
      )
    self._source = source
    self._size = size
    self._apply_orientation = apply_orientation
    self._background = background
    self._views = 2 if mirrored else 1
    self._tokenize = tokenize
    self._pool = concurrent.futures.ThreadPoolExecutor(
      os.cpu_count() or 1, thread_name_prefix='decode'
    )
    self._lock = threading.Lock()
    self._reported: set[int] = set()
    is_kept = 3 * math.prod(size) * len(source) <= _BYTES_IN_MEMORY
    self._kept: dict[int, tuple[np.ndarray, RawExample]] | None = (
      {} if is_kept else None
    )

  def __len__(self) -> int:
    return self._views * len(self._source)

  def take(self, index: np.ndarray) -> Rows:
    """Decodes images.

    Args:
      index: see `Examples.take`.

    Returns:
      `images` uint8[*index.shape, H, W, 3], with `condition`
      int32[*index.shape], or for captions `ids` int32[*index.shape, L].

    Raises:
      UserError: if none of many neighbouring files can be read.
    """
    flat = np.asarray(index).reshape(-1)
    decoded = list(self._pool.map(self._read, flat.tolist()))
    pixels = np.stack([pixels for pixels, _ in decoded])
    rows: Rows = {'images': pixels}
    if self._tokenize is None:
      labels = [example.label for _, example in decoded]
      rows['condition'] = np.asarray(labels, np.int32)
    else:
      captions = [
        example.captions[int(i) % len(example.captions)]
        for i, (_, example) in zip(flat, decoded, strict=True)
      ]
      keys = [example.key for _, example in decoded]
      rows['ids'] = self._tokenize(captions, keys)
    shape = np.shape(index)
    return {k: v.reshape(*shape, *v.shape[1:]) for k, v in rows.items()}

  def _read(self, index: int) -> tuple[np.ndarray, RawExample]:
    """The pixels uint8[H, W, 3] and the example used for an index."""
    mirror, place = divmod(index, len(self._source))
    found = None if self._kept is None else self._kept.get(place)
    if found is None:
      found = self._decode(place)
      if self._kept is not None:
        pixels, example = found
        # The file itself is larger.
        found = pixels, dataclasses.replace(example, image=b'')
        self._kept[place] = found
    pixels, example = found
    return (pixels[:, ::-1] if mirror else pixels), example

  def _decode(self, place: int) -> tuple[np.ndarray, RawExample]:
    """The first image from a place on that can be read."""
    count = len(self._source)
    for step in range(min(_MOST_NEIGHBOURS, count)):
      try:
        example = self._source[(place + step) % count]
      except OSError as error:
        # Not a fault of the file: the disk, or a permission.
        raise UserError(f'an image cannot be read: {error}') from error
      try:
        pixels = decode(
          example,
          self._size,
          self._apply_orientation,
          self._background,
          with_captions=self._tokenize is not None,
        )
      except images.CorruptImageError as error:
        self._report((place + step) % count, example.key, error)
        continue
      return pixels, example
    raise UserError(
      f'none of {min(_MOST_NEIGHBOURS, count)} images from'
      f' {self._source[place].key} on can be read'
    )

  def _report(self, place: int, key: str, error: Exception) -> None:
    with self._lock:
      new = place not in self._reported
      self._reported.add(place)
    if new:
      logging.warning('%s cannot be read and is left out: %s', key, error)
