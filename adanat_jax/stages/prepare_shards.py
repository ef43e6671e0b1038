"""The files of a prepared set: which images go where, and making them.

Threads decode the images of the next batches while the devices encode one and
the one before is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from adanat_jax.data import (
  byte_tokens,
  images,
  prefetch,
  prepared,
  prepared_writer,
  raw_images,
)
from adanat_jax.data.sources.raw_source import RawSource
from adanat_jax.errors import UserError
from adanat_jax.experiment import texts
from adanat_jax.experiment.encoder import Encoder
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import files, metric_writer, processes

# How many batches are decoded ahead of the one that is encoded.
_DEPTH = 2


@dataclasses.dataclass(frozen=True)
class Shard:
  """Consecutive images of a split, and the file for their records."""

  split: str
  number: int
  count: int  # Of the split's shards.
  first: int
  last: int  # Exclusive.

  @property
  def file_name(self) -> str:
    return prepared.file_name(self.split, self.number, self.count)

  @property
  def marker_name(self) -> str:
    return prepared.marker_name(self.split, self.number)


@dataclasses.dataclass
class Batch:
  """What the threads make: images of one shard, decoded."""

  shard: Shard
  is_last: bool  # Whether it ends the shard.
  pixels: np.ndarray | None  # uint8[n, H, W, 3]; None for captions alone.
  # Of each record its image's place in `pixels`, its key and its label or
  # caption.
  rows: list[tuple[int, dict[str, Any]]]
  # int32[len(rows), L], the captions' tokens; None for classes.
  ids: np.ndarray | None
  # Key and reason of images that cannot be read.
  skipped: list[tuple[str, str]]


class Tally:
  """Counts the images of a split that cannot be read, and names them."""

  def __init__(self, experiment: Experiment, split: str, num_images: int):
    """Starts at 0, of `num_images`."""
    self._share = experiment.config.data.max_corrupt_share
    self._split = split
    self._num_images = num_images
    self.count = 0

  def add(self, skipped: list[tuple[str, str]], news: bool = True) -> None:
    """Adds images, and raises UserError once they are too many.

    Args:
      skipped: key and reason of each.
      news: whether they have not been named yet.
    """
    for key, reason in skipped:
      self.count += 1
      if news:
        logging.warning('%s cannot be read and is left out: %s', key, reason)
      if self.count > self._share * self._num_images:
        raise UserError(
          f'{self.count} of the {self._num_images} images of split'
          f' {self._split!r} cannot be read, the last one {key} ({reason});'
          f' config.data.max_corrupt_share={self._share} allows fewer. The log'
          ' names them: mend the files, or allow more'
        )


class Preparation:
  """A set in the making: its sources, its shards, and what encodes them."""

  def __init__(
    self,
    experiment: Experiment,
    directory: pathlib.Path,
    sources: Mapping[str, RawSource],
    encoder: Encoder,
  ):
    """Cuts the images of all splits into shards, in their order."""
    self.experiment = experiment
    self.directory = directory
    self.sources = sources
    self.encoder = encoder
    self.shards: list[Shard] = []
    size = experiment.config.prepare.shard_size
    for split, source in sources.items():
      starts = range(0, len(source), size)
      for number, first in enumerate(starts):
        last = min(first + size, len(source))
        self.shards.append(Shard(split, number, len(starts), first, last))
    self.tallies = {
      split: Tally(experiment, split, len(source))
      for split, source in sources.items()
    }

  def is_done(self, shard: Shard) -> bool:
    """Whether both files are there; the marker is written after the records."""
    names = shard.marker_name, shard.file_name
    return all((self.directory / name).is_file() for name in names)

  def marker(self, shard: Shard) -> dict[str, Any]:
    """What was written of a shard that is done."""
    return prepared.read_marker(self.directory / shard.marker_name)

  def make(self) -> None:
    """Makes this process's part of the shards that are not done.

    Raises:
      UserError: if too many images cannot be read.
    """
    is_done = processes.from_first(lambda: [*map(self.is_done, self.shards)])
    todo = []
    for shard, done in zip(self.shards, is_done, strict=True):
      if done:
        skipped = self.marker(shard)['skipped']
        self.tallies[shard.split].add(skipped, news=False)
      else:
        todo.append(shard)
    if any(is_done):
      count = f'{sum(is_done)} of {len(is_done)}'
      processes.say(f'prepare: {count} files are there')
    first, step = processes.process_index(), processes.process_count()
    self.make_shards(todo[first::step])

  def make_shards(self, shards: list[Shard]) -> None:
    """Makes some shards; see `make`."""
    section, size = self.experiment.config.prepare, self.encoder.batch_size
    with contextlib.ExitStack() as stack:
      threads = section.num_threads or os.cpu_count() or 1
      pool = concurrent.futures.ThreadPoolExecutor(threads, 'decode')
      stack.callback(pool.shutdown, wait=True, cancel_futures=True)
      # A shard of fewer images ends with empty batches.
      per_shard = -(-section.shard_size // size)

      def batch_at(step: int) -> Batch:
        shard, place = shards[step // per_shard], step % per_shard
        first = min(shard.first + place * size, shard.last)
        places = range(first, min(first + size, shard.last))
        batch = self._decode(shard, places, pool)
        batch.is_last = place == per_shard - 1
        return batch

      num_steps = per_shard * len(shards)
      ahead = stack.enter_context(
        prefetch.Prefetch(batch_at, depth=_DEPTH, num_steps=num_steps)
      )
      progress = metric_writer.Progress(
        'prepare', sum(shard.last - shard.first for shard in shards)
      )
      stack.callback(progress.close)
      output = stack.enter_context(contextlib.closing(_Output(self, progress)))
      begun = (
        (batch, _encode(self.encoder, batch))
        for batch in map(ahead, range(num_steps))
      )
      for batch, encoded in prefetch.one_behind(begun):
        output.write(batch, encoded)

  def _decode(
    self, shard: Shard, places: range, pool: concurrent.futures.Executor
  ) -> Batch:
    """Reads and decodes some images of a shard, by several threads."""
    experiment, source = self.experiment, self.sources[shard.split]
    data, background = experiment.config.data, experiment.background

    def read(place: int) -> tuple[Any, np.ndarray | None, str]:
      try:
        example = source[place]
      except PermissionError as error:
        # Other failures of the disk may pass: the program ends, is started
        # again and goes on. They are not the file's fault, and leave nothing
        # out.
        raise UserError(
          f'image {place} of split {shard.split!r}: permission denied ({error})'
        ) from error
      about = dataclasses.replace(example, image=b'')
      if not source.has_images:
        return about, None, '' if example.captions else example.problem
      try:
        pixels = raw_images.decode(
          example,
          experiment.image_shape[:2],
          data.apply_orientation,
          background,
          with_captions=experiment.is_text,
        )
        return about, pixels, ''
      except images.CorruptImageError as error:
        return about, None, str(error)

    batch = Batch(shard, False, None, [], None, [])
    pixels: list[np.ndarray] = []
    captions: list[str] = []
    num_images = 0
    for about, decoded, reason in pool.map(read, places):
      if reason:
        batch.skipped.append((about.key, reason))
        continue
      if experiment.is_text:
        facts = [{'caption': caption} for caption in about.captions]
        captions += about.captions
      else:
        facts = [{'label': about.label}]
      batch.rows += [(num_images, {'key': about.key, **f}) for f in facts]
      num_images += 1
      if decoded is not None:
        pixels.append(decoded)
    if pixels:
      batch.pixels = np.stack(pixels)
    if captions:
      keys = [facts['key'] for _, facts in batch.rows]
      batch.ids = texts.tokenize(experiment, captions, keys)
    return batch


def _encode(encoder: Encoder, batch: Batch) -> tuple[Any, Any]:
  """Starts the devices' part of a batch: its tokens and its states."""
  tokens = None if batch.pixels is None else encoder.tokens(batch.pixels)
  if batch.ids is None or not encoder.layout.state_width:
    return tokens, None
  return tokens, encoder.texts(batch.ids)


class _Output:
  """Writes batches to the shards that they belong to, one after another."""

  def __init__(self, work: Preparation, progress: metric_writer.Progress):
    self._directory = work.directory
    self._layout = work.encoder.layout
    self._tallies = work.tallies
    self._progress = progress
    experiment = work.experiment
    self._text_length = 0
    if experiment.learns_text:
      self._text_length = experiment.config.text.num_positions
    self._num_images = 0
    self._writer: prepared_writer.ShardWriter | None = None
    self._skipped: list[tuple[str, str]] = []
    self._words: set[str] = set()
    self._num_cut = 0

  def write(self, batch: Batch, encoded: tuple[Any, Any]) -> None:
    """Waits for the devices, writes the records, ends the shard if due."""
    if self._writer is None:
      self._skipped, self._words, self._num_cut = [], set(), 0
      self._writer = prepared_writer.ShardWriter(
        self._directory / batch.shard.file_name, self._layout
      )
    tally = self._tallies[batch.shard.split]
    tally.add(batch.skipped)
    self._skipped += batch.skipped
    if self._text_length:
      captions = [facts['caption'] for _, facts in batch.rows]
      self._words |= byte_tokens.words(captions)
      cut = [byte_tokens.is_cut(text, self._text_length) for text in captions]
      self._num_cut += sum(cut)
    for record in _records(self._layout, batch, *jax.device_get(encoded)):
      self._writer.write(record)
    self._num_images += len({place for place, _ in batch.rows})
    self._num_images += len(batch.skipped)
    self._progress.update(self._num_images, {'left out': tally.count})
    if batch.is_last:
      self._end(batch.shard, self._writer)
      self._writer = None

  def close(self) -> None:
    """Removes a shard that was not finished."""
    if self._writer is not None:
      self._writer.discard()

  def _end(self, shard: Shard, writer: prepared_writer.ShardWriter) -> None:
    writer.publish()
    marker = self._directory / shard.marker_name
    temporary = marker.with_name(f'.{marker.name}.tmp')
    told: dict[str, Any] = {
      'images': shard.last - shard.first,
      'records': writer.num_records,
      'bytes': writer.num_bytes,
      'skipped': self._skipped,
    }
    if self._text_length:
      told |= {'words': sorted(self._words), 'cut': self._num_cut}
    text = json.dumps(files.seal(told), indent=1) + '\n'
    with files.writing(marker):
      temporary.write_text(text, encoding='utf-8')
    files.publish(temporary, marker)


def _records(
  layout: prepared.RecordLayout, batch: Batch, tokens: Any, states: Any
) -> Iterator[dict[str, Any]]:
  """The records of a batch, from what the devices made of it."""
  nothing = np.full((layout.num_views, layout.num_tokens), -1, np.int16)
  if states is not None:
    states, embedding = map(np.concatenate, zip(*states, strict=True))
  for row, (place, facts) in enumerate(batch.rows):
    record = {**facts, 'tokens': nothing if tokens is None else tokens[place]}
    if batch.ids is not None:
      record['ids'] = batch.ids[row]
    if states is not None:
      if not np.isfinite(states[row]).all():
        raise UserError(
          f'{facts["key"]}: the states of its caption do not fit into 16 bits;'
          ' use config.data.text_embeddings=compute'
        )
      record |= {'states': states[row], 'embedding': embedding[row]}
    yield record
