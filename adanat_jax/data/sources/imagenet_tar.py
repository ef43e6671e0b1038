"""ImageNet (ILSVRC 2012) from its official tar files, as they were downloaded.

  ILSVRC2012_img_train.tar        a tar for each class, n01440764.tar, ...
  ILSVRC2012_img_val.tar          ILSVRC2012_val_00000001.JPEG, ...
  ILSVRC2012_devkit_t12.tar.gz    the classes of the latter

Nothing is unpacked. The folder of the 1,000 class tars will do as well as the
tar that holds them, and so will tars of class folders, however they were made.
Classes are numbered by the order of their names, n01440764 being 0, as all
published networks have it; the devkit numbers them differently.
"""

from __future__ import annotations

import io
import pathlib
import re
import tarfile

import numpy as np
import scipy.io

from adanat_jax.data.sources import tar_index, text_files
from adanat_jax.data.sources.image_folder import check_classes
from adanat_jax.data.sources.ledger import SourceLedger
from adanat_jax.data.sources.raw_source import (
  Names,
  RawSource,
  SplitPath,
  of_classes,
)
from adanat_jax.errors import UserError

_DEVKIT = 'ILSVRC2012_devkit_t12'
_TRUTH = 'ILSVRC2012_validation_ground_truth.txt'
_META = 'meta.mat'


def load(split: SplitPath) -> RawSource:
  """Finds the images in the tars of a split, in the order of the tars.

  Validation images that lie in no class folders have their classes from the
  devkit, at `annotations` or beside them.

  Raises:
    UserError: if the tars, the images in them or their classes are missing.
  """
  prefixes = _tars(split)
  paths = list(prefixes)
  tars = [
    tar_index.index_images(path, split.path_field, prefix)
    for path, prefix in prefixes.items()
  ]
  names = Names.join([tar.names for tar in tars])
  ledger = SourceLedger()
  for tar in tars:
    ledger.add(tar.ledger)
  if not names:
    seen = ledger.seen()
    raise UserError(
      f'{split.path_field}: no images in {paths[0].name}'
      + (f', but {seen}' if seen else '')
    )
  if split.is_validation:
    tar_index.check_apart(split, paths, _tars(split.training))
  folders = tuple(sorted({name for tar in tars for name in tar.folders}))
  if '' not in folders:
    classes = folders
    if split.is_validation:
      classes = _training_classes(split)
      check_classes(split, folders, classes)
    labels = np.concatenate([_numbers(tar, classes) for tar in tars])
  elif split.is_validation and len(folders) == 1:
    classes = _training_classes(split)
    labels = _devkit_labels(split, paths[0], names, classes)
  else:
    loose = next(name for name in names if '/' not in name)
    raise UserError(
      f'{split.path_field}: {loose} is in no class folder; give'
      f' ILSVRC2012_img_{"val" if split.is_validation else "train"}.tar or a'
      ' tar of class folders'
    )
  # int64[n, 3]: the tar's number, offset and size of an image.
  ranges = np.concatenate([
    np.stack([np.full_like(tar.offsets, number), tar.offsets, tar.sizes], 1)
    for number, tar in enumerate(tars)
  ])  # fmt: skip

  def read(i: int) -> bytes:
    tar, offset, size = ranges[i].tolist()
    return tar_index.read_range(paths[tar], offset, size)

  return of_classes(names, read, labels, classes, ledger)


def _tars(split: SplitPath) -> dict[pathlib.Path, str]:
  """The tars of a split, each with what comes before the names in it."""
  path = split.location
  if not path.is_dir():
    return {path: ''}
  official = 'img_val' if split.is_validation else 'img_train'
  if (whole := path / f'ILSVRC2012_{official}.tar').is_file():
    return {whole: ''}
  # A tar of one class is named after it.
  tars = {tar: f'{tar.stem}/' for tar in sorted(path.glob('n*.tar'))}
  if not tars:
    raise UserError(
      f'{split.path_field}: neither {whole.name} nor class tars such as'
      ' n01440764.tar in this folder'
    )
  return tars


def _numbers(tar: tar_index.TarIndex, classes: tuple[str, ...]) -> np.ndarray:
  """The labels of a tar's images, int32[n]."""
  numbers = {name: label for label, name in enumerate(classes)}
  return np.array([numbers[name] for name in tar.folders], np.int32)[tar.folder]


def _training_classes(split: SplitPath) -> tuple[str, ...]:
  return load(split.training).class_names or ()


def _devkit_labels(
  split: SplitPath, tar: pathlib.Path, names: Names, classes: tuple[str, ...]
) -> np.ndarray:
  """The labels of validation images, which are numbered from 1, int32[n]."""
  devkit = _find_devkit(split, tar)
  truth, synsets = _read_devkit(split, devkit)
  used = tuple(sorted({synsets[number] for number in truth}))
  check_classes(split, used, classes)
  numbers = {name: label for label, name in enumerate(classes)}
  labels = []
  for name in names:
    digits = re.search(r'(\d+)\.\w+$', name)
    number = int(digits[1]) if digits else 0
    if not 1 <= number <= len(truth):
      raise UserError(
        f'{split.path_field}: {name} is not one of the {len(truth)} images of'
        f' {devkit}'
      )
    labels.append(numbers[synsets[truth[number - 1]]])
  return np.array(labels, np.int32)


def _find_devkit(split: SplitPath, tar: pathlib.Path) -> pathlib.Path:
  """The devkit: its tar, or the folder it was unpacked to."""
  if split.annotations:
    path = pathlib.Path(split.annotations)
    if not path.exists():
      raise UserError(f'{split.annotations_field}: no such file')
    return path
  for name in (f'{_DEVKIT}.tar.gz', _DEVKIT):
    if (path := tar.parent / name).exists():
      return path
  raise UserError(
    f'config.data.validation_annotations is empty and {_DEVKIT}.tar.gz does not'
    f' lie beside {tar}; give one of them, it has the classes of these images'
  )


def _read_devkit(
  split: SplitPath, devkit: pathlib.Path
) -> tuple[list[int], dict[int, str]]:
  """The devkit's class of each validation image, and its classes' synsets."""
  where = split.annotations_field
  if not split.annotations:
    where = f'{split.path_field}: {devkit}'
  found = dict.fromkeys((_TRUTH, _META), b'')
  if devkit.is_dir():
    for path in devkit.rglob('*'):
      if path.name in found:
        found[path.name] = path.read_bytes()
  else:
    try:
      with tarfile.open(devkit) as tar:
        for member in tar:
          name = member.name.rpartition('/')[2]
          if name in found and (file := tar.extractfile(member)):
            found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError) as error:
      # The error is several lines about each kind of compression.
      raise UserError(f'{where}: not the devkit, which is a tar') from error
  for name, data in found.items():
    if not data:
      raise UserError(f'{where}: no {name} in it; give {_DEVKIT}.tar.gz')
  try:
    truth = [int(line) for line in text_files.decode(found[_TRUTH]).split()]
    meta = scipy.io.loadmat(io.BytesIO(found[_META]), squeeze_me=True)
    rows = np.atleast_1d(meta['synsets'])
    synsets = {int(row['ILSVRC2012_ID']): str(row['WNID']) for row in rows}
  except Exception as error:
    # SciPy raises errors of many kinds for what is no such file.
    raise UserError(f'{where}: {_TRUTH} or {_META} is damaged') from error
  unknown = sorted(set(truth) - set(synsets))
  if unknown:
    raise UserError(
      f'{where}: class {unknown[0]} of {_TRUTH} is not in {_META}'
    )
  return truth, synsets
