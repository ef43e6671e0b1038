"""Raw images with labels or captions, wherever they come from.

  source = open_source(SourceSettings('image_folder', 'photos'), 'train')
  source[0].image  # the bytes of a file; `images.decode` makes pixels of them

A source that has no validation images of its own gives up some: those whose
keys have the smallest hashes. They are the same ones on every machine and in
every run, and still almost the same ones after images were added.
"""

from __future__ import annotations

from collections.abc import Callable
import hashlib
import importlib
from typing import Any

import numpy as np

from adanat_jax.data.sources.raw_source import (
  RawExample,
  RawSource,
  SourceSettings,
  SplitPath,
)
from adanat_jax.errors import UserError

# Each is read by `load` of a module of its own, which is imported when it is
# asked for: not everyone has all the libraries that they need.
_MODULES = {
  'image_folder': 'image_folder',
  'imagenet_tar': 'imagenet_tar',
  'tfds': 'tfds_images',
  'coco': 'coco',
  'cc3m_tsv': 'cc3m',
  'webdataset': 'webdataset',
}
SOURCES = tuple(_MODULES)
SPLITS = ('train', 'test')


class Subset:
  """Some of a source's images; see `RawSource`."""

  def __init__(self, source: RawSource, index: np.ndarray):
    """Takes those at `index`, int64[n]."""
    self._source = source
    self._index = index
    self.class_names = source.class_names
    self.has_captions = source.has_captions
    self.has_images = source.has_images
    self.description = dict(source.description)

  def __len__(self) -> int:
    return len(self._index)

  def __getitem__(self, index: int) -> RawExample:
    return self._source[int(self._index[index])]

  def key_hashes(self) -> np.ndarray:
    return self._source.key_hashes()[self._index]


def open_source(settings: SourceSettings, split: str) -> RawSource:
  """Opens the images of a split.

  Args:
    settings: the fields of `config.data`.
    split: 'train' or 'test'; the latter are the validation images.

  Returns:
    The source. Its `description` has the kind, the path, how many images there
    are, and a digest of their keys.

  Raises:
    UserError: naming the field that does not lead to images, or that asks for
      what these images do not have.
  """
  if settings.source not in SOURCES:
    raise UserError(
      f'config.data.source={settings.source!r}: give one of'
      f' {", ".join(SOURCES)}'
    )
  if split not in SPLITS:
    raise ValueError(f'split={split!r}: give one of {SPLITS}')
  if not settings.path:
    raise UserError(
      f'config.data.path is empty: give the images of source {settings.source}'
    )
  load = _loader(settings.source)
  if split == 'train' or not _has_validation(settings):
    source = load(SplitPath(settings))
    if not _has_validation(settings):
      source = _part(source, settings, split)
  else:
    source = load(SplitPath(settings, is_validation=True))
  own = split != 'train' and settings.validation_path
  _check_fits(source, settings, SplitPath(settings, bool(own)).path_field)
  source.description = {
    'source': settings.source,
    'path': _path_of(settings, split),
    'split': split,
    'examples': len(source),
    'keys': digest(source),
    **source.description,
  }
  return source


def digest(source: RawSource) -> str:
  """A hash of all keys of a source and of their order, 16 hex digits."""
  keys = source.key_hashes().astype('<u8').tobytes()
  return hashlib.blake2b(keys, digest_size=8).hexdigest()


def _loader(name: str) -> Callable[[SplitPath], Any]:
  return importlib.import_module(
    f'adanat_jax.data.sources.{_MODULES[name]}'
  ).load


def _has_validation(settings: SourceSettings) -> bool:
  """Whether the validation images are a set of their own."""
  if settings.validation_path:
    return True
  # tfds has them under the same path.
  return settings.source == 'tfds' and not settings.held_out


def _path_of(settings: SourceSettings, split: str) -> str:
  if split == 'test' and settings.validation_path:
    return settings.validation_path
  return settings.path


def _part(source: RawSource, settings: SourceSettings, split: str) -> RawSource:
  """The images that are, or are not, set apart."""
  held_out = settings.held_out
  if not held_out:
    if split == 'train':
      return source
    raise UserError(
      'config.data.validation_path is empty and config.data.held_out is 0:'
      ' give one of them, there are no images for validation'
    )
  if not 0 < held_out < len(source):
    raise UserError(
      f'config.data.held_out={held_out}: give a number below {len(source)},'
      f' the images of config.data.path={settings.path}'
    )
  # Ties are broken by the place, so that no image is in both splits.
  order = np.argsort(source.key_hashes(), kind='stable')
  chosen = order[:held_out] if split == 'test' else order[held_out:]
  return Subset(source, np.sort(chosen))


def _check_fits(
  source: RawSource, settings: SourceSettings, path_field: str
) -> None:
  if settings.condition == 'text' and not source.has_captions:
    raise UserError(
      f'config.data.condition=text: the images of {path_field} have no'
      ' captions; use class'
    )
  if settings.condition == 'class' and source.class_names is None:
    raise UserError(
      f'config.data.condition=class: the images of {path_field} have no'
      ' classes; use text'
    )
  expected, names = settings.num_classes, source.class_names
  if expected and names is not None and len(names) != expected:
    raise UserError(
      f'config.data.num_classes={expected}: {path_field} has'
      f' {len(names)} classes'
    )
