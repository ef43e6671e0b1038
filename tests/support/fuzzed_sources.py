"""Reads a whole source, and checks what must be true of any of them."""

from __future__ import annotations

import contextlib
import pathlib
from unittest import mock

from absl import logging

from adanat_jax.data.sources import registry
from adanat_jax.data.sources.raw_source import RawExample, SourceSettings

# No source that a test writes holds more.
_MOST_EXAMPLES = 1000


@contextlib.contextmanager
def quiet():
  """Keeps indexes in memory, and lines about sources off the screen."""
  logging.set_verbosity(logging.WARNING)
  with (
    mock.patch('adanat_jax.runtime.files.write_bytes'),
    mock.patch('adanat_jax.runtime.processes.say'),
  ):
    yield


def write_and_read(
  kind: str, file: pathlib.Path, data: bytes, **fields
) -> list[RawExample]:
  """Writes a file and reads it as a source of one kind.

  Raises:
    UserError: if the source is refused.
    AssertionError: if a caption is not what a caption must be.
  """
  file.write_bytes(data)
  settings = SourceSettings(kind, str(fields.pop('path', file)), **fields)
  return read(settings)


def read(settings: SourceSettings) -> list[RawExample]:
  """Reads all examples; raises as `write_and_read`."""
  source = registry.open_source(settings, 'train')
  assert 0 < len(source) <= _MOST_EXAMPLES, len(source)
  examples = [source[index] for index in range(len(source))]
  line = source.ledger.line(settings.path, with_captions=True)
  assert line.isprintable(), line
  count = 0
  for example in examples:
    example.key.encode()
    count += len(example.captions)
    for caption in example.captions:
      caption.encode()
      assert caption.strip() and '\0' not in caption, caption
      assert caption[0] != '\ufeff' and caption[-1] != '\ufeff', caption
    if source.has_captions and not example.captions:
      assert example.problem, example
    if source.class_names is not None:
      assert 0 <= example.label < len(source.class_names)
  if source.has_captions:
    assert count == source.ledger.read['captions'], line
  return examples
