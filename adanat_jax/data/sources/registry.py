"""The formats of raw images with labels or captions, and opening one.

  source = open_source(SourceSettings('image_folder', 'photos'), 'train')
  source[0].image  # the bytes of a file; `images.decode` makes pixels of them

Where a source has no validation images of its own, those whose keys have the
smallest hashes are set apart. They are the same on every machine and in every
run, and almost the same after images were added.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib

import numpy as np

from adanat_jax.data.sources.raw_source import (
  RawSource,
  SourceSettings,
  SplitPath,
)
from adanat_jax.errors import UserError

# The module whose `load` reads each. It is imported when asked for: not
# everyone has all the libraries that they need.
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
  # tfds has its validation images under the same path.
  same_path = settings.source == 'tfds' and not settings.held_out
  has_validation = bool(settings.validation_path) or same_path
  is_test = split == 'test'
  module = f'adanat_jax.data.sources.{_MODULES[settings.source]}'
  load = importlib.import_module(module).load
  source: RawSource = load(SplitPath(settings, is_test and has_validation))
  if not has_validation:
    source = _part(source, settings, split)
  where = SplitPath(settings, is_test and bool(settings.validation_path))
  _check_fits(source, settings, where.path_field)
  description = {
    'source': settings.source,
    'path': where.path,
    'split': split,
    'examples': len(source),
    'keys': digest(source),
    **source.description,
  }
  return dataclasses.replace(source, description=description)


def digest(source: RawSource) -> str:
  """A hash of all keys of a source and of their order, 16 hex digits."""
  keys = source.key_hashes().astype('<u8').tobytes()
  return hashlib.blake2b(keys, digest_size=8).hexdigest()


def _part(source: RawSource, settings: SourceSettings, split: str) -> RawSource:
  """The images that are set apart for validation, or the others."""
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
  # Equal hashes keep their order, so that no image is in both splits.
  hashes = source.key_hashes()
  order = np.argsort(hashes, kind='stable')
  index = np.sort(order[:held_out] if split == 'test' else order[held_out:])
  return dataclasses.replace(
    source,
    size=len(index),
    read=lambda i: source.read(int(index[i])),
    key_hashes=lambda: hashes[index],
  )


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
