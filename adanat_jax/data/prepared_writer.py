"""Writes prepared sets, as `adanat_jax.data.prepared` describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import contextlib
import pathlib
import shutil
from typing import Any

from array_record.python import array_record_module
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from adanat_jax.data.prepared import NAME, RecordLayout
from adanat_jax.errors import WriteError
from adanat_jax.runtime import files

# One record can be read without its neighbours; tokens and half floats hardly
# shrink, and are read several times faster as they are.
_WRITER_OPTIONS = 'group_size:1,uncompressed'


class ShardWriter:
  """Writes one file of records, which appears whole or not at all.

  Equal records make equal bytes, so a shard that is begun again comes out the
  same.
  """

  def __init__(self, path: pathlib.Path, layout: RecordLayout):
    """Opens a temporary file beside `path`; replaces one of a killed run."""
    self.num_records = 0
    self.num_bytes = 0
    self._path = path
    self._temporary = path.with_name(f'.{path.name}.tmp')
    self._arrays = layout.arrays()
    self._writer = self._call(
      array_record_module.ArrayRecordWriter,
      str(self._temporary),
      _WRITER_OPTIONS,
    )

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends a record: 'key', the layout's arrays, 'label' or 'caption'."""
    example = tf_example_pb2.Example()
    feature = example.features.feature
    for name, value in record.items():
      if name == 'label':
        feature[name].int64_list.value.append(int(value))
      elif name in self._arrays:
        dtype, shape = self._arrays[name]
        value = np.asarray(value)
        if value.shape != shape or not np.can_cast(value.dtype, dtype):
          raise ValueError(
            f'{name} is {value.dtype}{value.shape}, expected {dtype}{shape}'
          )
        data = value.astype(dtype).tobytes()
        feature[name].bytes_list.value.append(data)
      else:
        feature[name].bytes_list.value.append(value.encode())
    # Maps of protocol buffers are not ordered.
    data = example.SerializeToString(deterministic=True)
    self._call(self._writer.write, data)
    self.num_records += 1
    self.num_bytes += len(data)

  def publish(self) -> None:
    """Closes the file and puts it in its place."""
    self._call(self._writer.close)
    files.publish(self._temporary, self._path)

  def discard(self) -> None:
    """Closes the file and removes it, after an error."""
    # The first error has reported a full disk already.
    with contextlib.suppress(RuntimeError):
      self._writer.close()
    self._temporary.unlink(missing_ok=True)

  def _call(self, function: Any, *arguments: Any) -> Any:
    """Calls array_record, which reports system errors as RuntimeErrors."""
    try:
      return function(*arguments)
    except RuntimeError as error:
      reason = str(error).partition(';')[0]
      raise WriteError(f'{self._path}: cannot be written: {reason}') from error


def write_metadata(
  directory: pathlib.Path,
  layout: RecordLayout,
  class_names: Sequence[str] | None,
  shards: Mapping[str, Sequence[Mapping[str, int]]],
) -> None:
  """Writes the metadata by which tfds loads the set; for one process.

  `class_names` are in the order of the labels, or None; `shards` has for each
  split `records` and `bytes` of each file.
  """
  info = tfds.core.DatasetInfo(
    builder=tfds.core.DatasetIdentity(
      name=NAME, version='1.0.0', data_dir=str(directory), module_name=''
    ),
    description='Token ids of images.',
    features=_features(layout, class_names),
  )
  info.set_file_format('array_record')
  infos = [
    tfds.core.SplitInfo(
      name=split,
      shard_lengths=[shard['records'] for shard in found],
      num_bytes=sum(shard['bytes'] for shard in found),
      filename_template=tfds.core.ShardedFileTemplate(
        data_dir=directory,
        dataset_name=NAME,
        split=split,
        filetype_suffix='array_record',
      ),
    )
    for split, found in shards.items()
  ]
  info.set_splits(tfds.core.splits.SplitDict(infos))
  # tfds writes file after file in place, where readers may look already.
  temporary = directory / '.metadata.tmp'
  shutil.rmtree(temporary, ignore_errors=True)
  with files.writing(temporary):
    temporary.mkdir()
    info.write_to_directory(temporary)
    for path in sorted(temporary.iterdir()):
      files.publish(path, directory / path.name)
    temporary.rmdir()


def _features(
  layout: RecordLayout, class_names: Sequence[str] | None
) -> tfds.features.FeaturesDict:
  """The fields in tfds' terms, arrays as bytes."""
  fields: dict[str, Any] = {
    name: tfds.features.Tensor(
      shape=shape, dtype=dtype.newbyteorder('='), encoding='bytes'
    )
    for name, (dtype, shape) in layout.arrays().items()
  }
  fields['key'] = tfds.features.Text()
  if layout.num_classes:
    fields['label'] = _class_label(layout.num_classes, class_names)
  else:
    fields['caption'] = tfds.features.Text()
  return tfds.features.FeaturesDict(fields)


def _class_label(
  num_classes: int, names: Sequence[str] | None
) -> tfds.features.ClassLabel:
  # tfds wants distinct names without line breaks.
  given = {name for name in names or () if name.strip() and '\n' not in name}
  if names and len(given) == len(names) == num_classes:
    return tfds.features.ClassLabel(names=list(names))
  return tfds.features.ClassLabel(num_classes=num_classes)
