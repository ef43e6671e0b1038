"""WebDataset shards: tars in which the files of an image bear one name.

  000000000.jpg  000000000.txt  000000000.json  000000001.jpg  ...

as img2dataset writes them. The files of one image have the same name up to the
first dot, in whatever order they lie in their shard. If no image ends there
(`a.v1.jpg`, `a.v2.jpg`), names end at the last dot. The caption is in `txt`, or
in `json` under one of the usual names (see `captions`); a class, where there is
one, is a number in `cls`.
"""

from __future__ import annotations

import array
import dataclasses
import os
import pathlib
import re
from typing import Any

import numpy as np

from adanat_jax.data.sources import (
  captions as captions_lib,
  index_file,
  tar_index,
  text_files,
)
from adanat_jax.data.sources.image_folder import check_classes
from adanat_jax.data.sources.ledger import SourceLedger
from adanat_jax.data.sources.raw_source import (
  IMAGE_SUFFIXES,
  Names,
  RawExample,
  RawSource,
  SplitPath,
  is_hidden,
  printable,
)
from adanat_jax.data.sources.text_files import TextError
from adanat_jax.errors import UserError

_KIND = 'webdataset 3'
_NO_CAPTION, _PLAIN, _IN_JSON = 0, 1, 2
_CAPTIONS = {'txt': _PLAIN, 'text': _PLAIN, 'caption': _PLAIN, 'json': _IN_JSON}
_BRACES = re.compile(r'\{(\d+)\.\.(\d+)\}')
_MOST_TARS = 1_000_000
# As many as config.data.num_classes allows.
_MOST_CLASSES = 1_000_000
# Longer texts are no captions.
_LONGEST = 1 << 24


def load(split: SplitPath) -> RawSource:
  """Finds the images of a split, in the order of the shards.

  Its path is a folder of tars, a glob such as cc3m/*.tar, a range such as
  cc3m/{00000..00331}.tar, or one tar.

  Raises:
    UserError: if there are none, or one of them is damaged.
  """
  ledger = SourceLedger()
  paths = _paths(split, ledger)
  if split.is_validation:
    tar_index.check_apart(split, paths, _paths(split.training, SourceLedger()))
  parts = [_shard(split, path) for path in paths]
  for part in parts:
    ledger.add(SourceLedger.from_array(part['ledger']))
  tables = [Names(part['names'].tobytes(), part['ends']) for part in parts]
  names = Names.join(tables)
  if not names:
    seen = ledger.seen()
    raise UserError(
      f'{split.path_field}: no images in {len(paths)} tars'
      + (f'; they hold {seen}' if seen else '')
    )
  # int32[n], the number of an image's tar.
  shards = np.repeat(np.arange(len(parts), dtype=np.int32), [*map(len, tables)])
  images, captions, kinds, labels = (
    np.concatenate([part[name] for part in parts])
    for name in ('image', 'caption', 'kind', 'label')
  )
  unlabelled = np.flatnonzero(labels < 0)
  if 0 < len(unlabelled) < len(names):
    name = text_files.shown(names[int(unlabelled[0])])
    raise UserError(
      f'{split.path_field}: {name} has no class (cls), others have'
    )
  has_labels = not len(unlabelled)
  if has_labels:
    ledger.count_classes(labels)
  # Texts that cannot be read are not the same as none.
  has_captions = bool(
    ledger.read['captions']
    or ledger.count('bad_texts')
    or ledger.count('empty_captions')
  )

  def read(i: int) -> RawExample:
    path = paths[shards[i]]
    found: tuple[str, ...] = ()
    problem = ''
    if has_captions:
      try:
        offset, size = captions[i].tolist()
        text = tar_index.read_range(path, offset, min(size, _LONGEST + 1))
        found = _captions_in(text, int(kinds[i]))
        problem = '' if found else 'it has no caption'
      except TextError as error:
        problem = f'its caption is not text: {error}'
    return RawExample(
      printable(names[i]),
      tar_index.read_range(path, *images[i].tolist()),
      int(labels[i]) if has_labels else None,
      found,
      problem,
    )

  return RawSource(
    len(names),
    read,
    names.hashes,
    _classes(split, int(labels.max()) + 1),
    has_captions,
    description={'shards': len(paths)},
    labels=labels if has_labels else None,
    ledger=ledger,
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


def _paths(split: SplitPath, ledger: SourceLedger) -> list[pathlib.Path]:
  """The tars that a path stands for, sorted, each file once."""
  path = split.location
  field = split.path_field
  if path.is_dir():
    paths = sorted(path.glob('*.tar'))
  elif found := _BRACES.search(str(path)):
    width, first, last = len(found[1]), int(found[1]), int(found[2])
    if last - first >= _MOST_TARS:
      raise UserError(f'{field}: more than {_MOST_TARS:,} tars')
    names = (f'{number:0{width}d}' for number in range(first, last + 1))
    text = str(path)
    before, after = text[: found.start()], text[found.end() :]
    paths = [pathlib.Path(f'{before}{name}{after}') for name in names]
  elif path.is_file():
    paths = [path]
  else:
    # The pattern is relative to the deepest folder that exists.
    anchor, pattern = path, pathlib.Path()
    while anchor != anchor.parent and not anchor.is_dir():
      anchor, pattern = anchor.parent, anchor.name / pattern
    try:
      paths = sorted(anchor.glob(str(pattern)))
    except (ValueError, NotImplementedError) as error:
      raise UserError(f'{field}: no pattern of files ({error})') from error
  visible = [tar for tar in paths if not is_hidden(tar.name)]
  if len(visible) < len(paths):
    ledger.pass_over('hidden', len(paths) - len(visible))
  if not visible:
    raise UserError(
      f'{field}: no tar files there; give a folder of them, or a pattern such'
      ' as cc3m/*.tar or cc3m/{00000..00331}.tar'
    )
  return _distinct(visible, ledger)


def _distinct(
  paths: list[pathlib.Path], ledger: SourceLedger
) -> list[pathlib.Path]:
  """Each file once, by its device and inode; those that are not there too."""
  kept, seen = [], set()
  for path in paths:
    try:
      stat = path.stat()
    except OSError:
      kept.append(path)
      continue
    if (stat.st_dev, stat.st_ino) in seen:
      ledger.pass_over('other names of the same tar')
      continue
    seen.add((stat.st_dev, stat.st_ino))
    kept.append(path)
  return kept


def _shard(split: SplitPath, path: pathlib.Path) -> index_file.IndexArrays:
  """The index of one shard.

  Returns:
    `names` and `ends` of the keys (see `Names`); `image` and `caption`,
    int64[n, 2], offset and size of these files; `kind` int8[n] of the caption;
    `label` int32[n], -1 where there is none; `ledger`.
  """
  field = split.path_field

  def build() -> index_file.IndexArrays:
    samples = _Samples()
    for member in tar_index.scan(path, field, samples.ledger):
      samples.add(member)
    samples.split_at_last_dots()
    with path.open('rb', buffering=0) as file:
      return _rows(samples, file.fileno(), f'{field}: {path}')

  tar_index.check_is_tar(path, field)
  return index_file.cached(path, _KIND, build)


class _Samples:
  """The files of a shard, by the key of the image that they belong to.

  Arrays, as one shard may hold millions of images.
  """

  # What is known of a sample, each an offset and a size.
  PARTS = ('image', 'plain', 'json', 'cls')

  def __init__(self):
    self.ledger = SourceLedger()
    self.numbers: dict[str, int] = {}
    self.places = {part: array.array('q') for part in self.PARTS}
    # Files with several dots, until it is known whether they are images.
    self._dotted: dict[str, list[tar_index.Member]] = {}
    # Of each image the number of its suffix.
    self._suffixes = array.array('b')

  def add(self, member: tar_index.Member) -> None:
    """Adds a file under its name up to the first dot."""
    if is_hidden(member.name):
      self.ledger.pass_over('hidden')
      return
    folder, slash, base = member.name.rpartition('/')
    stem, _, suffix = base.partition('.')
    if '.' in suffix:
      self._dotted.setdefault(f'{folder}{slash}{stem}', []).append(member)
    else:
      self._add(f'{folder}{slash}{stem}', suffix.lower(), member)

  def split_at_last_dots(self) -> None:
    """Adds files with several dots, where the first one ends no image's name.

    By WebDataset's convention they are further parts of the sample otherwise,
    such as `0.seg.png` beside `0.jpg`.
    """
    for key, members in self._dotted.items():
      if self.place('image', self.numbers.get(key, -1)):
        self.ledger.pass_over('further files of an image', len(members))
        continue
      for member in members:
        stem, _, suffix = member.name.rpartition('.')
        self._add(stem, suffix.lower(), member)
    self._dotted.clear()

  def place(self, part: str, number: int) -> tuple[int, int] | None:
    """Offset and size of a part of a sample; None if it has none."""
    if number < 0 or self.places[part][2 * number] < 0:
      return None
    return (self.places[part][2 * number], self.places[part][2 * number + 1])

  def _add(self, key: str, suffix: str, member: tar_index.Member) -> None:
    part = 'cls' if suffix == 'cls' else ''
    if f'.{suffix}' in IMAGE_SUFFIXES:
      part = 'image'
    elif suffix in _CAPTIONS:
      part = 'plain' if _CAPTIONS[suffix] == _PLAIN else 'json'
    if not part:
      self.ledger.pass_over_file(member.name)
      return
    number = self.numbers.setdefault(key, len(self.numbers))
    if number == len(self._suffixes):
      for places in self.places.values():
        places.extend((-1, -1))
      self._suffixes.append(-1)
    is_new = self.places[part][2 * number] < 0
    kind = sorted(IMAGE_SUFFIXES).index(f'.{suffix}') if part == 'image' else 0
    if is_new:
      self.places[part][2 * number] = member.offset
      self.places[part][2 * number + 1] = member.size
      if part == 'image':
        self._suffixes[number] = kind
    elif part == 'image' and self._suffixes[number] == kind:
      self.ledger.fault('duplicates', member.name)
    else:
      self.ledger.pass_over('further files of an image')


def _rows(samples: _Samples, handle: int, where: str) -> dict[str, np.ndarray]:
  """The arrays of an index; captions are looked at and not kept."""
  ledger = samples.ledger
  images = np.array(samples.places['image'], np.int64).reshape(-1, 2)
  order = np.argsort(images[:, 0], kind='stable')
  order = order[images[order, 0] >= 0]
  if len(order) < len(images):
    ledger.pass_over('samples without an image', len(images) - len(order))
  keys = [*samples.numbers]
  reader = _CaptionReader(samples, handle)
  captions, kinds, labels = [], [], []
  for number in order.tolist():
    place, kind = reader.find(number, keys[number])
    captions.append(place)
    kinds.append(kind)
    labels.append(_label(samples, number, keys[number], handle, where))
  ledger.tried = {
    'images': len(order) + ledger.count('duplicates'),
    'captions': len(order),
  }
  ledger.read['images'] = len(order)
  ledger.read['captions'] = reader.count
  names = Names.pack(keys[number] for number in order.tolist())
  return {
    'names': np.frombuffer(names.blob, np.uint8),
    'ends': names.ends,
    'image': images[order],
    'caption': np.array(captions, np.int64).reshape(-1, 2),
    'kind': np.array(kinds, np.int8),
    'label': np.array(labels, np.int32),
    'ledger': ledger.to_array(),
  }


@dataclasses.dataclass
class _CaptionReader:
  """Finds out which file of a sample holds its caption."""

  samples: _Samples  # Their ledger counts what is wrong.
  handle: int  # The open shard.
  count: int = 0  # How many captions there are.

  def find(self, number: int, key: str) -> tuple[tuple[int, int], int]:
    """Where the caption of a sample is, and of which kind it is."""
    ledger = self.samples.ledger
    empty = ''
    for part, kind in (('plain', _PLAIN), ('json', _IN_JSON)):
      place = self.samples.place(part, number)
      if place is None:
        continue
      try:
        data = os.pread(self.handle, min(place[1], _LONGEST + 1), place[0])
        found = _captions_in(data, kind)
      except TextError as error:
        ledger.fault('bad_texts', f'{key}: {error}')
        return place, kind
      if found:
        self.count += len(found)
        return place, kind
      empty = empty or (
        f'{key}.txt' if kind == _PLAIN else f'{key}.json has {_fields(data)}'
      )
    is_empty = empty.endswith('.txt')
    fault = 'empty_captions' if is_empty else 'without_captions'
    ledger.fault(fault, empty or key)
    return (0, 0), _NO_CAPTION


def _captions_in(data: bytes, kind: int) -> tuple[str, ...]:
  """The captions in the file that holds them; none if it holds none.

  Raises:
    TextError: if it is not text, or not JSON.
  """
  if kind == _NO_CAPTION:
    return ()
  if len(data) > _LONGEST:
    raise TextError(f'more than {_LONGEST >> 20} MiB')
  if kind == _IN_JSON:
    return captions_lib.of_json(text_files.parse_json(data))
  text = captions_lib.tidy(text_files.decode(data))
  return (text,) if text else ()


def _fields(data: bytes) -> str:
  """The names of the fields of a JSON file, for a message."""
  value: Any = text_files.parse_json(data)
  names = list(value) if isinstance(value, dict) else []
  return ', '.join(names[:8]) or 'no fields'


def _label(
  samples: _Samples, number: int, key: str, handle: int, where: str
) -> int:
  """The class of a sample, -1 if it has none."""
  place = samples.place('cls', number)
  if place is None:
    return -1
  data = os.pread(handle, min(place[1], _LONGEST), place[0])
  try:
    text = text_files.tidy(text_files.decode(data))
  except TextError:
    text = ''
  if not re.fullmatch('[0-9]{1,9}', text) or int(text) >= _MOST_CLASSES:
    raise UserError(
      f'{where}: the class in {text_files.shown(key)}.cls is {data[:20]!r};'
      f' give a number from 0, below {_MOST_CLASSES}'
    )
  return int(text)
