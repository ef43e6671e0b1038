"""Prepared sets: tokens with their labels or captions, in files read at random.

A directory holds the splits of one data set as ArrayRecord files in the layout
of TensorFlow Datasets, so that

  tfds.builder_from_directory(directory).as_data_source('train')

reads it, without TensorFlow. One record is an image with one caption or class:

  key        the image's name in its source
  tokens     int16[V, N], of the image and, where V is 2, of its mirror image;
             -1 where there is only a caption
  label      the class, or for texts:
  caption    the text
  ids        int32[77], its tokens
  states     float16[77, C], what the NAT reads of it; if they were stored
  embedding  float32[E], what the discriminator reads of it; likewise

An image with several captions has several records: reading one would otherwise
cost reading all of them. Beside these files are `manifest.json`, which is
written last, and for texts whose states were stored `null_states.npy`.

`data.prepared_writer` writes them. A reader holds one open file per shard in
memory, whatever the number of records.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import pathlib
import threading
from typing import Any

from array_record.python import array_record_module
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from adanat_jax.data.examples import Rows
from adanat_jax.errors import UserError
from adanat_jax.runtime import files

MANIFEST_FILE = 'manifest.json'
NULL_STATES_FILE = 'null_states.npy'
_REMEDY = 'delete it and run --config.mode=prepare again'
# Name of the set in tfds, and prefix of its files' names.
NAME = 'tokens'

_READER_OPTIONS = 'readahead_buffer_size:0'
_READER_BUFFER = 1 << 15


@dataclasses.dataclass(frozen=True)
class RecordLayout:
  """The fields of a record and their shapes."""

  num_tokens: int  # N, tokens of an image.
  num_views: int = 2  # V; 1 where images are not mirrored.
  num_classes: int = 0  # How many classes there are; 0 for texts.
  text_length: int = 0  # Positions of a text, 77; 0 for classes.
  state_width: int = 0  # C; 0 where states are not stored.
  embedding_width: int = 0  # E; 0 where embeddings are not stored.

  def arrays(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Type and shape of the fields that are arrays."""
    fields: dict[str, tuple[Any, tuple[int, ...]]] = {
      'tokens': (np.int16, (self.num_views, self.num_tokens))
    }
    if self.text_length:
      fields['ids'] = (np.int32, (self.text_length,))
    if self.state_width:
      fields['states'] = (np.float16, (self.text_length, self.state_width))
      fields['embedding'] = (np.float32, (self.embedding_width,))
    # Little-endian on any machine.
    return {
      name: (np.dtype(dtype).newbyteorder('<'), shape)
      for name, (dtype, shape) in fields.items()
    }


def file_name(split: str, shard: int, num_shards: int) -> str:
  """The name that tfds expects of a shard."""
  return f'{NAME}-{split}.array_record-{shard:05d}-of-{num_shards:05d}'


def marker_name(split: str, shard: int) -> str:
  """The file that marks a shard as finished and lists what was left out."""
  return f'shards/{split}-{shard:05d}.json'


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
  """Reads the manifest of a prepared set.

  Returns:
    `settings`, the config's fields that determine its contents; `layout`, see
    `RecordLayout`; and for each of `splits` its `source`, `ledger` (see
    `sources.ledger`), counts, what was left out, and `shards`, the records in
    each file.

  Raises:
    UserError: if there is no finished set.
  """
  path = directory / MANIFEST_FILE
  if not path.is_file():
    raise UserError(
      f'{directory}: no prepared tokens here ({MANIFEST_FILE} is missing); run'
      ' --config.mode=prepare first'
    )
  layout: dict[str, Any] = {
    'num_tokens': int,
    **{f'{field.name}?': int for field in dataclasses.fields(RecordLayout)},
  }
  split = {'has_images': bool, 'shards': [int]}
  shape = {'settings': dict, 'layout': layout, 'splits': {str: split}}
  return files.read_json(path, shape, _REMEDY)


def read_marker(path: pathlib.Path) -> dict[str, Any]:
  """Reads the file that `marker_name` names: `records`, `bytes`, `skipped`."""
  shape = {'records': int, 'bytes': int, 'skipped': [[str]]}
  return files.read_json(path, shape, _REMEDY)


def check_settings(
  where: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any]
) -> None:
  """Raises UserError if the set in `where` was made with other settings.

  `there` are its settings, `here` those of the config, or some of them.
  """
  different = [
    f'{name} is {there.get(name)!r} there and {value!r} here'
    for name, value in here.items()
    if there.get(name) != value
  ]
  if different:
    raise UserError(
      f'{where} was prepared with another config: {"; ".join(different[:4])}.'
      ' Use the config that it was made with, or another config.data.prepared'
    )


class PreparedExamples:
  """The records of a split; see `adanat_jax.data.examples.Examples`.

  The index counts the records with their images as they are, then the same
  records with the mirror images, if there are any: one pass shows every image
  both ways with each of its captions.
  """

  def __init__(
    self, directory: str | pathlib.Path, split: str, *, with_tokens: bool = True
  ):
    """Reads the manifest; files are opened when they are needed.

    Args:
      directory: of the prepared set.
      split: 'train' or 'test'.
      with_tokens: False to read captions or labels alone, each record once.

    Raises:
      UserError: if there is no such set, or it has no such split.
    """
    self.directory = pathlib.Path(directory)
    self.manifest = read_manifest(self.directory)
    layout = self.manifest['layout']
    names = [field.name for field in dataclasses.fields(RecordLayout)]
    self.layout = RecordLayout(**{n: layout[n] for n in names if n in layout})
    splits = self.manifest['splits']
    if split not in splits:
      raise UserError(
        f'{self.directory} has no split {split!r}, only {", ".join(splits)};'
        ' config.data.validation_path or config.data.held_out give the'
        ' validation images'
      )
    about = splits[split]
    if with_tokens and not about['has_images']:
      raise UserError(
        f'{self.directory}: split {split!r} holds captions alone, no images'
      )
    self._split = split
    self._with_tokens = with_tokens
    self._fields = _fields(self.layout, with_tokens)
    self._stored = self.layout.arrays()
    self._starts = np.cumsum([0, *about['shards']])
    self._shards: list[Any] = [None] * len(about['shards'])
    self._lock = threading.Lock()

  def __len__(self) -> int:
    views = self.layout.num_views if self._with_tokens else 1
    return int(self._starts[-1]) * views

  def take(self, index: np.ndarray) -> Rows:
    """Reads records.

    Args:
      index: see `Examples.take`.

    Returns:
      `tokens` int32[*index.shape, N] if asked for, and `condition`
      int32[*index.shape]; for texts instead of it `states`
      float16[*index.shape, 77, C] and `embedding` float32[*index.shape, E], or
      where they were not stored `ids` int32[*index.shape, 77].

    Raises:
      UserError: naming the file, if one is gone or damaged.
    """
    shape = np.shape(index)
    flat = np.asarray(index, np.int64).reshape(-1)
    if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
      raise IndexError(f'indices from {flat.min()} to {flat.max()}: there are'
                       f' {len(self)} examples')  # fmt: skip
    views, records = np.divmod(flat, max(1, int(self._starts[-1])))
    rows = {
      name: np.empty((len(flat), *field_shape), dtype)
      for name, (dtype, field_shape) in self._fields.items()
    }
    shards = np.searchsorted(self._starts, records, 'right') - 1
    for shard in np.unique(shards).tolist():
      places = np.flatnonzero(shards == shard)
      found = self._read(shard, records[places] - self._starts[shard])
      for place, data in zip(places.tolist(), found, strict=True):
        self._parse(data, rows, place, int(views[place]))
    return {k: v.reshape((*shape, *v.shape[1:])) for k, v in rows.items()}

  def captions(self, index: np.ndarray) -> list[str]:
    """Reads the texts of records, for tables and pictures."""
    texts = []
    for place in np.asarray(index, np.int64).reshape(-1).tolist():
      record = place % int(self._starts[-1])
      shard = int(np.searchsorted(self._starts, record, 'right')) - 1
      (data,) = self._read(shard, np.array([record - self._starts[shard]]))
      feature = tf_example_pb2.Example.FromString(data).features.feature
      texts.append(feature['caption'].bytes_list.value[0].decode())
    return texts

  def null_states(self) -> np.ndarray:
    """The states of the empty caption, float32[77, C], if states are stored."""
    path = self.directory / NULL_STATES_FILE
    try:
      return np.load(path)
    except (OSError, ValueError, EOFError) as error:
      raise UserError(f'{path}: cannot be read ({error})') from error

  def _read(self, shard: int, places: np.ndarray) -> list[bytes]:
    path = self.directory / file_name(self._split, shard, len(self._shards))
    try:
      return self._reader(shard, path).read(places.tolist())
    except RuntimeError as error:
      reason = str(error).partition(';')[0]
      if 'Too many open files' in reason:
        raise UserError(
          f'{path}: {reason}; the set has {len(self._shards)} files, allow more'
          ' by ulimit -n'
        ) from error
      raise UserError(
        f'{path}: cannot be read ({reason:.120}); delete {MANIFEST_FILE} and'
        f' {marker_name(self._split, shard)} there and run'
        ' --config.mode=prepare again: only this file is made anew'
      ) from error

  def _reader(self, shard: int, path: pathlib.Path) -> Any:
    """The open file of a shard; readers serve several threads at once."""
    with self._lock:
      if self._shards[shard] is None:
        self._shards[shard] = array_record_module.ArrayRecordReader(
          str(path), _READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER
        )
      return self._shards[shard]

  def _parse(self, data: bytes, rows: Rows, place: int, view: int) -> None:
    """Writes the fields of one record to row `place` of a batch."""
    feature = tf_example_pb2.Example.FromString(data).features.feature
    for name, out in rows.items():
      if name == 'condition':
        out[place] = feature['label'].int64_list.value[0]
        continue
      dtype, shape = self._stored[name]
      (raw,) = feature[name].bytes_list.value
      value = np.frombuffer(raw, dtype).reshape(shape)
      out[place] = value[view] if name == 'tokens' else value


def _fields(
  layout: RecordLayout, with_tokens: bool
) -> dict[str, tuple[Any, tuple[int, ...]]]:
  """Type and shape of the rows that `PreparedExamples.take` returns."""
  fields: dict[str, tuple[Any, tuple[int, ...]]] = {}
  if with_tokens:
    fields['tokens'] = (np.int32, (layout.num_tokens,))
  if layout.num_classes:
    fields['condition'] = (np.int32, ())
  elif layout.state_width:
    shape = (layout.text_length, layout.state_width)
    fields['states'] = (np.float16, shape)
    fields['embedding'] = (np.float32, (layout.embedding_width,))
  else:
    fields['ids'] = (np.int32, (layout.text_length,))
  return fields
