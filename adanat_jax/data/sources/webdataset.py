"""WebDataset shards: tars in which the files of an image follow each other.

  000000000.jpg  000000000.txt  000000000.json  000000001.jpg  ...

as img2dataset writes them. The files of one image have the same name up to the
first dot. The caption is in `txt`, or the field `caption` in `json`; a class,
where there is one, is a number in `cls`.
"""

from __future__ import annotations

from collections.abc import Sequence
import itertools
import json
import pathlib
import re
from typing import Any

import numpy as np

from adanat_jax.data.sources import index_file, tar_index
from adanat_jax.data.sources.image_folder import check_classes
from adanat_jax.data.sources.raw_source import (
  IMAGE_SUFFIXES,
  Names,
  RawExample,
  RawSource,
  SplitPath,
  printable,
)
from adanat_jax.errors import UserError

_KIND = 'webdataset 1'
_NO_CAPTION, _PLAIN, _IN_JSON = 0, 1, 2
_BRACES = re.compile(r'\{(\d+)\.\.(\d+)\}')


def load(split: SplitPath) -> RawSource:
  """Finds the images of a split, in the order of the shards.

  Args:
    split: a folder of tars, a glob such as cc3m/*.tar, a range such as
      cc3m/{00000..00331}.tar, or one tar.

  Raises:
    UserError: if there are none, or one of them is damaged.
  """
  paths = _paths(split)
  parts = [_shard(split, path) for path in paths]
  tables = [Names(part['names'].tobytes(), part['ends']) for part in parts]
  names = Names.join(tables)
  if not names:
    raise UserError(f'{split.path_field}: no images in {len(paths)} tars')
  # int32[n], the number of an image's tar.
  shards = np.repeat(np.arange(len(parts), dtype=np.int32), [*map(len, tables)])
  images, captions, kinds, labels = (
    np.concatenate([part[name] for part in parts])
    for name in ('image', 'caption', 'kind', 'label')
  )
  unlabelled = np.flatnonzero(labels < 0)
  if 0 < len(unlabelled) < len(names):
    raise UserError(
      f'{split.path_field}: {names[int(unlabelled[0])]} has no class (cls),'
      ' others have'
    )
  has_captions = bool(kinds.any())

  def read(i: int) -> RawExample:
    path, label = paths[shards[i]], int(labels[i])
    text = b''
    if has_captions:
      text = tar_index.read_range(path, *captions[i].tolist())
    return RawExample(
      printable(names[i]),
      tar_index.read_range(path, *images[i].tolist()),
      label if label >= 0 else None,
      (_caption(text, int(kinds[i])),) if has_captions else (),
    )

  return RawSource(
    len(names),
    read,
    names.hashes,
    _classes(split, int(labels.max()) + 1),
    has_captions,
    description={'shards': len(paths)},
  )


def _classes(split: SplitPath, count: int) -> tuple[str, ...] | None:
  """Names of the classes: those of the training images, `count` for labels."""
  if not count:
    return None
  found = tuple(map(str, range(count)))
  if not split.is_validation:
    return found
  classes = load(split.training).class_names
  if classes is not None:
    check_classes(split, found, classes)
  return classes


def _paths(split: SplitPath) -> list[pathlib.Path]:
  """The tars that a path stands for, sorted."""
  path = split.location
  if path.is_dir():
    paths = sorted(path.glob('*.tar'))
  elif found := _BRACES.search(str(path)):
    width, last = len(found[1]), int(found[2])
    numbers = range(int(found[1]), last + 1)
    names = (f'{number:0{width}d}' for number in numbers)
    text = str(path)
    before, after = text[: found.start()], text[found.end() :]
    paths = [pathlib.Path(f'{before}{name}{after}') for name in names]
  elif path.is_file():
    paths = [path]
  else:
    # The pattern is relative to the deepest folder that is none.
    anchor, pattern = path, pathlib.Path()
    while anchor != anchor.parent and not anchor.is_dir():
      anchor, pattern = anchor.parent, anchor.name / pattern
    paths = sorted(anchor.glob(str(pattern)))
  if not paths:
    raise UserError(
      f'{split.path_field}: no tar files there; give a folder of them, or a'
      ' pattern such as cc3m/*.tar or cc3m/{00000..00331}.tar'
    )
  return paths


def _shard(split: SplitPath, path: pathlib.Path) -> index_file.IndexArrays:
  """The index of one shard.

  Returns:
    `names` and `ends` of the keys (see `Names`); `image` and `caption`,
    int64[n, 2], offset and size of these files; `kind` int8[n] of the caption;
    `label` int32[n], -1 where there is none.
  """
  field = split.path_field

  def build() -> index_file.IndexArrays:
    members = tar_index.scan(path, field)
    rows = [
      row
      for key, files in itertools.groupby(members, lambda m: _key(m.name)[0])
      if (row := _row(field, path, key, list(files))) is not None
    ]
    names = Names.pack(row[0] for row in rows)
    return {
      'names': np.frombuffer(names.blob, np.uint8),
      'ends': names.ends,
      'image': np.array([r[1] for r in rows], np.int64).reshape(-1, 2),
      'caption': np.array([r[2] for r in rows], np.int64).reshape(-1, 2),
      'kind': np.array([r[3] for r in rows], np.int8),
      'label': np.array([r[4] for r in rows], np.int32),
    }

  tar_index.check_is_tar(path, field)
  return index_file.cached(path, _KIND, build)


_Range = tuple[int, int]


def _row(
  field: str,
  path: pathlib.Path,
  key: str,
  members: Sequence[tar_index.Member],
) -> tuple[str, _Range, _Range, int, int] | None:
  """What is known of one image; None if these files are none."""
  found: dict[str, _Range] = {}
  image: _Range | None = None
  for member in members:
    suffix = _key(member.name)[1]
    found.setdefault(suffix, (member.offset, member.size))
    if f'.{suffix}' in IMAGE_SUFFIXES and image is None:
      image = (member.offset, member.size)
  if image is None:
    return None
  caption, kind = (0, 0), _NO_CAPTION
  for suffix, its_kind in (('json', _IN_JSON), ('txt', _PLAIN)):
    if suffix in found:
      caption, kind = found[suffix], its_kind
  label = -1
  if 'cls' in found:
    text = tar_index.read_range(path, *found['cls'])
    try:
      label = int(text)
    except ValueError:
      label = -1
    if label < 0:
      raise UserError(
        f'{field}: {path}: the class in {key}.cls is {text[:20]!r}; give a'
        ' number from 0'
      )
  return key, image, caption, kind, label


def _key(name: str) -> tuple[str, str]:
  """Splits a name at the first dot of its last part, the suffix lowered."""
  folder, slash, base = name.rpartition('/')
  stem, _, suffix = base.partition('.')
  return f'{folder}{slash}{stem}', suffix.lower()


def _caption(data: bytes, kind: int) -> str:
  """A caption from the file that holds it; '' if it holds none."""
  text = data.decode('utf-8', 'replace')
  if kind == _IN_JSON:
    try:
      found: Any = json.loads(text).get('caption')
    except (ValueError, AttributeError):
      found = None
    text = found if isinstance(found, str) else ''
  return printable(text.strip())
