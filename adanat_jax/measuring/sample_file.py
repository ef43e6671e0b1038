"""Samples as ADM's evaluator reads them, written while they are made."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np

from adanat_jax.runtime import files

_ROWS_FILE = 'samples.uint8'


class SampleFile:
  """Samples as ADM's evaluator reads them: `arr_0` uint8[n, H, W, C] in .npz.

  Of class-conditional models `arr_1` holds the labels. Rows go to a file beside
  it as they come, so memory does not grow with their number.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    shape: tuple[int, int, int, int],
    labels: np.ndarray | None,
  ):
    """Writes nothing yet.

    Args:
      directory: gets `samples.npz`.
      shape: of all samples, [n, H, W, C].
      labels: int32[n] or None.
    """
    self.path = directory / 'samples.npz'
    self._rows = directory / _ROWS_FILE
    self._shape = shape
    self._labels = labels

  @staticmethod
  def forget(directory: pathlib.Path) -> None:
    """Deletes the rows, but not the .npz."""
    (directory / _ROWS_FILE).unlink(missing_ok=True)

  def is_begun(self) -> bool:
    """Whether there are rows of a killed run."""
    return self._rows.is_file()

  def write(self, first: int, images: np.ndarray) -> None:
    """Keeps samples `first` and following, uint8[b, H, W, C]."""
    rows = images.reshape(len(images), -1)
    with (
      # Written, not mapped: where the disk is full, a mapping kills.
      files.writing(self._rows),
      self._rows.open('r+b' if self.is_begun() else 'w+b') as file,
    ):
      file.seek(first * rows.shape[1])
      file.write(rows.tobytes())
      # No tally that is saved may be ahead of its rows.
      file.flush()
      os.fsync(file.fileno())

  def finish(self) -> None:
    """Puts all samples into the .npz; in process 0."""
    rows = np.memmap(self._rows, np.uint8, 'r', shape=self._shape)
    arrays: dict[str, Any] = {'arr_0': rows}
    if self._labels is not None:
      arrays['arr_1'] = self._labels
    temporary = self.path.with_name('.samples.npz')
    with files.writing(self.path):
      np.savez(temporary, **arrays)
    files.publish(temporary, self.path)
