"""Walks a folder of images: each real folder once, regular files alone.

Links to folders are followed, as data sets are often made of them, but never to
what the walk comes to anyway: a link to a folder below the root that is not
hidden, to the root itself or to one above it would multiply images, and put
copies of held-out ones among those that are trained on. Folders are known by
their device and inode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import os
import pathlib

from adanat_jax.data.sources.ledger import SourceLedger
from adanat_jax.data.sources.raw_source import is_hidden, is_image


class Walk:
  """One walk below a root, which may be made folder by folder."""

  def __init__(
    self,
    root: pathlib.Path,
    ledger: SourceLedger,
    is_wanted: Callable[[str], bool] = lambda name: False,
  ):
    """Begins at `root`.

    Args:
      root: an existing folder.
      ledger: counts what is not read.
      is_wanted: which further files, by their names, are kept in `others`.
    """
    self.root = root
    self.ledger = ledger
    # Regular files besides images, relative to the root.
    self.others: list[str] = []
    self._is_wanted = is_wanted
    self._real_root = os.path.realpath(root)
    self._seen = {_identity(os.stat(root))}

  def look_into(self, folder: str = '') -> tuple[list[str], list[str]]:
    """Lists the images and the folders in a folder of this relative name.

    Returns:
      The names of both, sorted, without hidden ones.
    """
    images, folders = [], []
    try:
      with os.scandir(self.root / folder) as found:
        entries = list(found)
    except OSError as error:
      self.ledger.fault(
        'unreadable', f'{folder or self.root}: {error.strerror or error}'
      )
      return [], []
    for entry in entries:
      if _is_directory(entry):
        if is_hidden(entry.name):
          self.ledger.pass_over('hidden')
        else:
          folders.append(entry.name)
      elif self._is_read(entry, _join(folder, entry.name)):
        images.append(entry.name)
    return sorted(images), sorted(folders)

  def images(self, folder: str = '') -> Iterator[str]:
    """Yields the images below a folder, each folder's before its folders'.

    Names are relative to the root, in an order that depends on names alone.
    """
    # The last one is next.
    waiting = [folder]
    while waiting:
      name = waiting.pop()
      if name and not self._enter(name):
        continue
      images, folders = self.look_into(name)
      yield from (_join(name, image) for image in images)
      waiting += [_join(name, inner) for inner in reversed(folders)]

  def _is_read(self, entry: os.DirEntry[str], name: str) -> bool:
    """Returns whether a file is an image to read; counts it otherwise."""
    if not is_image(entry.name):
      if self._is_wanted(entry.name) and is_regular(entry):
        self.others.append(name)
      else:
        self.ledger.pass_over_file(entry.name)
      return False
    if is_regular(entry):
      return True
    exists = os.path.exists(self.root / name)
    why = 'not a regular file' if exists else 'a link that leads nowhere'
    self.ledger.fault('unreadable', f'{name}: {why}')
    return False

  def _enter(self, name: str) -> bool:
    """Whether a folder is to be walked; it counts as walked from then on."""
    path = self.root / name
    try:
      identity = _identity(os.stat(path))
    except OSError:
      return False
    if identity in self._seen or self._is_reached_without(path):
      self.ledger.pass_over('links to folders that are read already')
      return False
    self._seen.add(identity)
    return True

  def _is_reached_without(self, path: pathlib.Path) -> bool:
    """Whether a link leads to a folder that is walked anyway, or above it."""
    if not path.is_symlink():
      return False
    target = os.path.realpath(path)
    if is_within(self._real_root, target):
      return True
    if not is_within(target, self._real_root):
      return False
    parts = os.path.relpath(target, self._real_root).split(os.sep)
    return not any(part.startswith('.') for part in parts)


def is_within(path: str, folder: str) -> bool:
  """Whether a real path is a folder's, or below it."""
  return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def is_regular(entry: os.DirEntry[str]) -> bool:
  """Whether an entry is a regular file, or a link to one."""
  try:
    return entry.is_file()
  except OSError:
    # A link to itself.
    return False


def _is_directory(entry: os.DirEntry[str]) -> bool:
  try:
    return entry.is_dir()
  except OSError:
    return False


def _identity(stat: os.stat_result) -> tuple[int, int]:
  return stat.st_dev, stat.st_ino


def _join(folder: str, name: str) -> str:
  return f'{folder}/{name}' if folder and name else folder or name
