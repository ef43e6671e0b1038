"""Images that tensorflow_datasets has prepared, read without TensorFlow.

Any data set with an image and a label, or an image and captions, will do if it
was prepared as ArrayRecord:

  tfds.builder('imagenet2012', data_dir=...).download_and_prepare(
      file_format='array_record')

(preparing needs TensorFlow for most data sets, reading does not).
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from adanat_jax.data.sources import captions as captions_lib, text_files
from adanat_jax.data.sources.ledger import SourceLedger
from adanat_jax.data.sources.raw_source import (
  RawExample,
  RawSource,
  SplitPath,
  key_hash,
  printable,
)
from adanat_jax.data.sources.text_files import TextError
from adanat_jax.errors import UserError

# In the order of preference. Karpathy's and Li's three parts of COCO's val2014
# are that again when put together.
_VALIDATION_SPLITS = ('restval+test+val', 'validation', 'val', 'test')
_FILE_NAMES = ('file_name', 'image/filename', 'filename')


@dataclasses.dataclass(frozen=True)
class _Features:
  """The names of the features that are read; '' where there is none."""

  image: str
  label: str
  captions: str
  file_name: str


def load(split: SplitPath) -> RawSource:
  """Opens a split of a prepared data set.

  The path is its data_dir, or the directory of the data set itself; the name is
  `tfds_name`. Without a `validation_path`, validation images come from the
  validation split of the same data set.

  Raises:
    UserError: if it is not prepared there, cannot be read without TensorFlow,
      or has no images with labels or captions.
  """
  split = _with_path(split)
  builder = _builder(split)
  splits = builder.info.splits
  names = _VALIDATION_SPLITS if split.is_validation else ('train',)
  usable = (s for s in names if all(part in splits for part in s.split('+')))
  split_name = next(usable, None)
  if split_name is None:
    wanted = 'validation' if split.is_validation else 'train'
    raise UserError(
      f'{split.path_field}: {builder.info.name} has the splits'
      f' {", ".join(sorted(splits))}, none for {wanted}; set'
      ' config.data.held_out to set training images apart'
    )
  features = _find_features(split, builder)
  try:
    return _source(builder, split_name, features)
  except (NotImplementedError, ValueError) as error:
    kind = builder.info.file_format
    raise UserError(
      f'{split.path_field}: {builder.info.name} is prepared as'
      f' {getattr(kind, "value", kind)}, which cannot be read without'
      " TensorFlow; prepare it with file_format='array_record'"
    ) from error


def _source(builder: Any, split_name: str, names: _Features) -> RawSource:
  """Opens a split, named in tfds' language."""
  info = builder.info.features
  # Encoded files, also of images beside the one that is read.
  decoders = {
    name: tfds.decode.SkipDecoding()
    for name in info
    if isinstance(info[name], tfds.features.Image)
  }
  data = builder.as_data_source(split_name, decoders=decoders)
  prefix = f'{builder.info.name}/{split_name}'

  def read(i: int) -> RawExample:
    row: Mapping[str, Any] = data[i]
    key = f'{prefix}/{i}'
    if names.file_name:
      key = _name(row[names.file_name])
    captions = row[names.captions] if names.captions else ()
    if isinstance(captions, Mapping):
      captions = captions['text']
    problem = ''
    texts: tuple[str, ...] = ()
    try:
      texts = tuple(filter(None, map(_text, np.atleast_1d(captions))))
      problem = '' if texts or not names.captions else 'it has no caption'
    except TextError as error:
      problem = f'its caption is not text: {error}'
    return RawExample(
      key,
      bytes(row[names.image]),
      int(row[names.label]) if names.label else None,
      texts,
      problem,
    )

  def hashes() -> np.ndarray:
    # Names are in the records; reading them all would take an hour.
    keys = (key_hash(f'{prefix}/{i}'.encode()) for i in range(len(data)))
    return np.fromiter(keys, np.uint64, len(data))

  return RawSource(
    len(data),
    read,
    hashes,
    tuple(info[names.label].names) if names.label else None,
    has_captions=bool(names.captions),
    ledger=SourceLedger(read={'images': len(data)}),
    description={'tfds': builder.info.full_name, 'tfds_split': split_name},
  )


def _with_path(split: SplitPath) -> SplitPath:
  """The split with a path, if it is the one of the training images."""
  if split.path:
    return split
  settings = split.settings
  same = dataclasses.replace(settings, validation_path=settings.path)
  return dataclasses.replace(split, settings=same)


def _builder(split: SplitPath) -> Any:
  """The read-only builder of what is at a path."""
  path = split.location
  name = split.settings.tfds_name
  if not path.is_dir():
    raise UserError(f'{split.path_field}: no such folder; give the data_dir')
  if (path / 'dataset_info.json').is_file():
    return tfds.builder_from_directory(path)
  if not name:
    raise UserError(
      'config.data.tfds_name is empty: give a name such as imagenet2012'
    )
  try:
    return tfds.core.read_only_builder.builder_from_files(
      name, data_dir=str(path)
    )
  except (tfds.core.DatasetNotFoundError, ValueError) as error:
    raise UserError(
      f'config.data.tfds_name={name}: not prepared below'
      f' {split.path_field}; prepare it with tensorflow_datasets first, with'
      " file_format='array_record'"
    ) from error


def _find_features(split: SplitPath, builder: Any) -> _Features:
  """Finds the features that hold the image and what it shows."""
  info = builder.info.features
  images = [n for n in info if isinstance(info[n], tfds.features.Image)]
  image = 'image' if 'image' in images else next(iter(images), '')
  label = 'label' if 'label' in info else ''
  if label and not isinstance(info[label], tfds.features.ClassLabel):
    label = ''
  captions = next((n for n in ('captions', 'caption') if n in info), '')
  if not image or not (label or captions):
    raise UserError(
      f'config.data.tfds_name={builder.info.name}: an image with label or'
      f' captions is needed, it has {", ".join(sorted(info))}'
    )
  file_name = next((name for name in _FILE_NAMES if name in info), '')
  return _Features(image, label, captions, file_name)


def _text(value: bytes | str) -> str:
  """A caption.

  Raises:
    TextError: if it is not text.
  """
  text = text_files.decode(value) if isinstance(value, bytes) else str(value)
  return captions_lib.tidy(text)


def _name(value: bytes | str) -> str:
  name = value.decode('utf-8', 'replace') if isinstance(value, bytes) else value
  return printable(str(name).strip())
