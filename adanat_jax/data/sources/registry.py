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
import os

import numpy as np

from adanat_jax.data.sources import image_folder
from adanat_jax.data.sources.raw_source import (
  RawSource,
  SourceSettings,
  SplitPath,
)
from adanat_jax.errors import UserError
from adanat_jax.runtime import processes

# The module whose `load` reads each. It is imported when asked for: not
# everyone has all the libraries that they need.
_MODULES = {
  'image_folder': 'image_folder',
  'imagenet_tar': 'imagenet_tar',
  'tfds': 'tfds_images',
  'coco': 'coco',
  'cc3m_tsv': 'cc3m',
  'webdataset': 'webdataset',
  'pairs': 'pairs',
}
SOURCES = tuple(_MODULES)
SPLITS = ('train', 'test')

# What this process has said of sources; several stages open the same ones.
_said: set[str] = set()


def open_source(settings: SourceSettings, split: str) -> RawSource:
  """Opens the images of a split, and says what was read and what was not.

  Args:
    settings: the fields of `config.data`.
    split: 'train' or 'test'; the latter are the validation images.

  Returns:
    The source. Its `description` has the kind, the path, how many images there
    are, and a digest of their keys.

  Raises:
    UserError: naming the field that does not lead to images, or that asks for
      what these images do not have; or more of them are wrong than
      `max_corrupt_share` allows.
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
  name = _MODULES[settings.source]
  if settings.source == 'image_folder' and settings.condition == 'text':
    name = 'folder_captions'
  module = f'adanat_jax.data.sources.{name}'
  load = importlib.import_module(module).load
  source: RawSource = load(SplitPath(settings, is_test and has_validation))
  where = SplitPath(settings, is_test and bool(settings.validation_path))
  field = where.path_field
  if settings.source == 'coco':
    field += f', {where.annotations_field}'
  needs_both = settings.source == 'pairs'
  with_captions = source.has_captions and (
    needs_both or settings.condition != 'class'
  )
  _say(source.ledger.line(field, with_captions))
  source.ledger.check(field, settings.max_corrupt_share, with_captions)
  _check_classes(source, settings, where.path_field)
  if not has_validation:
    source = _part(source, settings, split)
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


def check_apart(settings: SourceSettings) -> None:
  """Refuses the same path for training and validation images.

  What paths do not tell, such as a tar in both, is found when images are read.

  Raises:
    UserError: naming both.
  """
  split = SplitPath(settings, is_validation=True)
  if not split.path:
    return
  if settings.source == 'image_folder':
    image_folder.check_apart(split)
  elif settings.source == 'pairs':
    name = f'adanat_jax.data.sources.{_MODULES["pairs"]}'
    importlib.import_module(name).check_apart(split)
  elif settings.source in ('cc3m_tsv', 'webdataset'):
    ours, theirs = map(
      os.path.realpath, (split.location, split.training.location)
    )
    if ours == theirs:
      raise UserError(
        f'{split.path_field} leads to the training images: give others, or'
        ' leave it empty and set config.data.held_out'
      )


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
  hashes, captions = source.key_hashes(), source.captions
  order = np.argsort(hashes, kind='stable')
  chosen = _choose(order, held_out, source, settings)
  index = np.flatnonzero(chosen if split == 'test' else ~chosen)
  key_at = source.key_at
  return dataclasses.replace(
    source,
    size=len(index),
    read=lambda i: source.read(int(index[i])),
    key_hashes=lambda: hashes[index],
    labels=None if source.labels is None else source.labels[index],
    captions=None if captions is None else lambda i: captions(int(index[i])),
    key_at=None if key_at is None else lambda i: key_at(int(index[i])),
  )


def _choose(
  order: np.ndarray, held_out: int, source: RawSource, settings: SourceSettings
) -> np.ndarray:
  """Which images are set apart, bool[n].

  The first ones in `order`, less the last image of each class: a class of which
  nothing is left would never be trained.
  """
  chosen = np.zeros(len(order), bool)
  chosen[order[:held_out]] = True
  labels = source.labels
  if labels is None or not len(labels) or labels.min() < 0:
    return chosen
  left = np.bincount(labels[~chosen], minlength=int(labels.max()) + 1)
  if left[labels].all():
    return chosen
  left = np.bincount(labels)
  chosen[:] = False
  missing = held_out
  for place in order.tolist():
    if missing and left[labels[place]] > 1:
      left[labels[place]] -= 1
      chosen[place] = True
      missing -= 1
  if missing:
    most = held_out - missing
    fewest = int(np.flatnonzero(left == 1)[0])
    names = source.class_names or ()
    raise UserError(
      f'config.data.held_out={held_out}: at most {most} images of'
      f' config.data.path={settings.path} can be set apart: one of each class'
      f' stays for training, such as {names[fewest]!r}'
    )
  return chosen


def _say(line: str) -> None:
  """Prints a line unless it was printed before."""
  if line not in _said:
    _said.add(line)
    processes.say(line)


def _check_classes(
  source: RawSource, settings: SourceSettings, path_field: str
) -> None:
  """Refuses images without a class where every one has to have one.

  The label -1 would be trained as the null condition.
  """
  if settings.condition != 'class' or source.labels is None:
    return
  without = np.flatnonzero(source.labels < 0)
  if len(without):
    raise UserError(
      f'config.data.condition=class: {len(without)} of {len(source)} images of'
      f' {path_field} have no class, such as {source[int(without[0])].key};'
      ' give each one, or leave them out of the table, or use text'
    )


def _check_fits(
  source: RawSource, settings: SourceSettings, path_field: str
) -> None:
  if settings.condition == 'text' and not source.has_captions:
    fault = source.ledger.faults.get('without_captions')
    seen = f' ({fault.examples[0]})' if fault else ''
    raise UserError(
      f'config.data.condition=text: the images of {path_field} have no'
      f' captions{seen}; use class'
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
