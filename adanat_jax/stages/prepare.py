"""Stage `prepare`: raw images to token ids, once for all trainings.

1. Threads read, decode and crop the images of the next batches.
2. The tokenizer encodes each image and, by `data.mirror`, its mirror image in
   batches of one size; captions become token ids and, if they are to be stored,
   the states of the text network.
3. The records of every `prepare.shard_size` images go to one file, which
   appears whole, followed by a small one that says so and what was left out.

Files are dealt to the processes, and each works for itself. What is in a file
depends on its images alone: whoever goes on after a kill makes the files that
are missing, and the set comes out byte for byte the same. How much memory it
takes depends on the batch, not on the number of images.

An image that cannot be read is named, counted and left out; past
`data.max_corrupt_share` of all images the run fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import io
import pathlib
import time
from typing import Any

import jax
import numpy as np

from adanat_jax.data import prepared, prepared_writer
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  datasets,
  encoder as encoder_lib,
  texts,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import files, processes
from adanat_jax.stages import prepare_shards

SETTINGS_FILE = 'settings.json'


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be prepared."""
  experiment.check(_problems, reads=('data', 'prepare', 'text', 'tokenizer'))


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why nothing can be prepared."""
  if experiment.is_digits:
    yield (
      "config.data.source is 'digits', which need no preparation; mode=prepare"
      ' is for images in files (configs/in256.py)'
    )
    return
  yield from datasets.problems(experiment)
  yield from texts.problems(experiment)
  manifest = experiment.prepared_directory / prepared.MANIFEST_FILE
  if not manifest.is_file():
    yield from texts.problems_of_captions(experiment)
  size = experiment.config.prepare.batch_size
  devices = jax.local_device_count()
  if size % devices:
    yield (
      f'config.prepare.batch_size={size} is not allowed: give a positive'
      f' multiple of the {devices} devices of a process'
    )


def run(experiment: Experiment) -> None:
  """Prepares all splits, or what is missing of them.

  They go to `prepare/`, unless `config.data.prepared` leads elsewhere.

  Raises:
    UserError: also for a directory that holds something else, or too many
      images that cannot be read.
  """
  config = experiment.config
  check_config(experiment)
  directory = experiment.prepared_directory
  settings = encoder_lib.settings_of(experiment)
  manifest = directory / prepared.MANIFEST_FILE
  if processes.from_first(manifest.is_file):
    there = prepared.read_manifest(directory)
    prepared.check_settings(directory, there['settings'], settings)
    processes.say(f'prepare: {directory} was finished before')
    return
  has_validation = datasets.has_validation(experiment)
  splits = datasets.SPLITS if has_validation else ('train',)
  sources = {split: experiment.raw_source(split) for split in splits}
  settings['prepare.shard_size'] = config.prepare.shard_size
  for split, source in sources.items():
    about = source.description
    settings |= {f'{split}.{k}': about[k] for k in ('examples', 'keys')}
  if any(other != settings for other in processes.all_values(settings)):
    raise UserError(
      f'config.data.path={config.data.path}: the processes find different'
      ' images there; each host needs the same ones'
    )
  processes.from_first(lambda: _claim(directory, settings))
  encoder = encoder_lib.Encoder(experiment, config.prepare.batch_size)
  work = prepare_shards.Preparation(experiment, directory, sources, encoder)
  work.make()
  processes.barrier()
  processes.from_first(lambda: _finish(work, settings))
  processes.wait_until_seen(manifest)


def _claim(directory: pathlib.Path, settings: Mapping[str, Any]) -> None:
  """Makes sure that a directory is for this set and no other."""
  files.make_directory(directory / 'shards')
  path = directory / SETTINGS_FILE
  if path.exists():
    there = files.read_json(path, remedy=f'delete {directory}')
    prepared.check_settings(directory, there, settings)
  else:
    files.write_json(path, dict(settings), sealed=True)


def _finish(
  work: prepare_shards.Preparation, settings: Mapping[str, Any]
) -> None:
  """Writes what describes the set, the manifest last; for process 0."""
  directory, layout = work.directory, work.encoder.layout
  deadline = time.monotonic() + processes.MAX_LAG_SECONDS
  while missing := [s for s in work.shards if not work.is_done(s)]:
    if time.monotonic() > deadline:
      raise UserError(
        f'{directory / missing[0].file_name} is not there; the directory must'
        ' be on a disk that all hosts share'
      )
    time.sleep(0.05)
  splits: dict[str, Any] = {}
  facts: dict[str, list[dict[str, Any]]] = {split: [] for split in work.sources}
  for shard in work.shards:
    facts[shard.split].append(work.marker(shard))
  for split, source in work.sources.items():
    skipped = [item for told in facts[split] for item in told['skipped']]
    # Each process has counted its own alone.
    tally = prepare_shards.Tally(work.experiment, split, len(source))
    tally.add(skipped, news=False)
    splits[split] = {
      'source': source.description,
      'ledger': source.ledger.to_json(),
      'has_images': source.has_images,
      'images': len(source) - len(skipped),
      'records': sum(told['records'] for told in facts[split]),
      'skipped': skipped,
      'shards': [told['records'] for told in facts[split]],
    }
  if layout.state_width:
    ids = texts.tokenize(work.experiment, [''])
    ((states, _),) = jax.device_get(work.encoder.texts(ids))
    buffer = io.BytesIO()
    np.save(buffer, states[0].astype(np.float32))
    path = directory / prepared.NULL_STATES_FILE
    files.write_bytes(path, buffer.getvalue())
  if work.experiment.learns_text:
    words = {word for told in facts['train'] for word in told['words']}
    text = '\n'.join(sorted(words))
    files.write_bytes(directory / texts.WORDS_FILE, text.encode())
  if work.experiment.text_network == 'given':
    # A generator needs them wherever the file has gone.
    texts.keep_vectors(work.experiment, settings['text.vectors'])
  names = work.sources['train'].class_names
  prepared_writer.write_metadata(directory, layout, names, facts)
  files.write_json(
    directory / prepared.MANIFEST_FILE,
    {
      'settings': dict(settings),
      'layout': dataclasses.asdict(layout),
      'splits': splits,
    },
    sealed=True,
  )
  for split, about in splits.items():
    processes.say(
      f'prepare: {split}: {about["records"]} records of {about["images"]}'
      f' images, {len(about["skipped"])} left out'
    )
    if num_cut := sum(told.get('cut', 0) for told in facts[split]):
      length = work.experiment.config.text.num_positions
      processes.say(
        f'prepare: {split}: {num_cut} captions have more than {length - 1}'
        ' words and are cut (config.text.num_positions)'
      )
