"""The directory of a run, which belongs to the first config that was run in it.

Results of two configs in one directory could not be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import fnmatch
import os
import pathlib
from typing import Any
import uuid

import ml_collections

from adanat_jax.decoding.actions import NAMES
from adanat_jax.errors import ConfigError, UserError, printable
from adanat_jax.experiment import config as config_lib, field_rules, fields
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import files, processes
from adanat_jax.runtime.journal import is_complete

# Fields that say what to do or how to show it, and never what comes out: runs
# that differ in these alone may share a workdir. Shell patterns on the dotted
# name of a field.
RUN_ONLY_FIELDS = (
  *('mode', 'generator', 'sample.*', 'edit.*', 'export.*', 'mesh.*'),
  *('data.max_corrupt_share', 'nat.micro_batches'),
  # Prepared tokens know the checksum of the vectors that they were made with.
  'text.vectors',
  *('prepare.batch_size', 'prepare.num_threads'),
  *('evaluate.batch_size', 'evaluate.num_buckets'),
  *('policy.rollout_size', 'policy.ppo.micro_batches'),
  # Each search, a comparison and a discovery keep and compare their own
  # settings.
  *('search.*', 'compare.*', 'statistics.*', 'report.*', 'suite.*'),
  'discover.*',
  *('profile', 'profile.*', 'log_every', '*.log_every'),
  *('save_every', '*.save_every', 'keep_every', 'keep_best'),
  *('tensorboard', 'wandb'),
)

# Fields that earlier versions did not have, and values with which this one does
# what they did. A workdir of theirs goes on with these unless told otherwise.
ADDED_FIELDS = {
  'data.background': (),
  'data.image_width': 0,
  'data.mirror': True,
  **dict.fromkeys(
    (f'{section}.fine_tune' for section in ('tokenizer', 'nat', 'policy')),
    False,
  ),
  **dict.fromkeys(
    (
      *('tokenizer.init_from', 'nat.init_from', 'policy.init_from'),
      'policy.discriminator.init_from',
    ),
    '',
  ),
  **dict.fromkeys(
    ('tokenizer.dtype', 'text.dtype', 'judges.reward.dtype'), 'float32'
  ),
  # Configs of captions had a tower of CLIP's, those of folders no captions.
  **{
    f'text.{name}': value
    for name, value in {
      'network': 'clip',
      'num_positions': 77,
      'activation': 'gelu',
      **dict.fromkeys(('width', 'projection_width', 'mlp_width'), 256),
      'depth': 4,
      'num_heads': 4,
      **dict.fromkeys(('init_from', 'tokenizer', 'vectors'), ''),
    }.items()
  },
  'tokenizer.network': 'vqgan',
  'tokenizer.conv_downsample': False,
  'judges.training': 'auto',
  'judges.embedding_width': 64,
  **dict.fromkeys(
    ('judges.measure.least_crop', 'judges.reward.least_crop'), 1.0
  ),
  **dict.fromkeys(('judges.measure.jitter', 'judges.reward.jitter'), 0.0),
  'nat.least_mask_ratio': 0.0,
  'nat.loss_tokens': 'masked',
  'nat.max_gradient_norm': 0.0,
  'policy.smoothing': 0.0,
  'policy.guided': True,
  **dict.fromkeys(('policy.drawn_num_steps', 'policy.guided_steps'), ()),
  'policy.learned': NAMES,
  'policy.dial': '',
  'policy.discriminator.loss': 'logistic',
  'policy.discriminator.groupings': 1,
  'suite.num_draws': (1,),
  'search.guided': True,
  'sample.num_draws': 1,
  **dict.fromkeys(('evaluate.density_coverage', 'evaluate.kernel_distance'), 0),
  **dict.fromkeys(
    (
      *('policy.ppo.std_schedule', 'policy.ppo.std_decay'),
      *('policy.ppo.std_decay_steps', 'policy.ppo.std_per_action'),
      'policy.ppo.discount',
    )
  ),
}

_MAX_DIFFERENCES_SHOWN = 4


def problems(experiment: Experiment) -> Iterator[str]:
  """Says which `init_from`s, of any section, lead to no checkpoint."""
  for name, value in config_lib.fields(experiment.config):
    section, _, last = name.rpartition('.')
    if last == 'fine_tune' and value and not experiment.begins_with(section):
      yield (
        f'config.{name} is true and config.{section}.init_from is empty; give'
        ' the directory to go on from'
      )
    if last != 'init_from' or not value:
      continue
    # What a training began with is not read again.
    begun = experiment.begins_with(section) and any(
      (experiment.workdir / section.split('.')[0]).glob('**/checkpoints/[0-9]*')
    )
    if not begun and not is_complete(pathlib.Path(value)):
      yield (
        f'config.{name}={value}: no checkpoint is there; give the directory'
        ' that python -m adanat_jax.convert wrote, or that of a finished stage'
      )


def counted(experiment: Experiment) -> dict[str, int]:
  """What a run's files decide of its config, by the fields' names.

  Raises:
    UserError: if a file is there and cannot be read.
  """
  if count := count_classes(experiment):
    return {'data.num_classes': count}
  return processes.from_first(lambda: _sizes_of_vectors(experiment))


def _sizes_of_vectors(experiment: Experiment) -> dict[str, int]:
  """Width and number of the vectors of a caption, where they are given."""
  config = experiment.config
  needed = ('data.condition', 'text.network', 'text.vectors')
  rules = {name: field_rules.RULES[name] for name in needed}
  try:
    fields.check(config, rules, required=needed)
  except ConfigError:
    return {}
  if experiment.text_network != 'given':
    return {}
  names = ('width', 'num_positions')
  # What a run was made with decides, as with classes.
  if os.path.lexists(experiment.workdir / config_lib.CONFIG_FILE):
    there = config_lib.read_record(experiment.workdir)['config'].get('text', {})
    if there.get('network') == 'given':
      return {f'text.{name}': int(there[name]) for name in names}
  from adanat_jax.experiment import texts

  copy = experiment.prepared_directory / texts.VECTORS_FILE
  if not config.text.vectors and not copy.is_file():
    return {}
  found = texts.read_vectors(config.text.vectors or copy)
  return {'text.width': found.width, 'text.num_positions': found.length}


def count_classes(experiment: Experiment) -> int:
  """How many classes a run has whose `data.num_classes` is 0; 0 for others.

  What a run was made with decides, so that it needs no images to go on: the
  config of the workdir, then the prepared tokens. A new run counts those of
  `data.path`. Of captions, and where none of these is there, it is 0.

  Raises:
    UserError: if images are there and cannot be listed. Fields that are wrong
      in themselves are left to other checks.
  """
  config = experiment.config
  rules = {n: r for n, r in field_rules.RULES.items() if n.startswith('data.')}
  needed = ('data.source', 'data.condition', 'data.num_classes')
  try:
    fields.check(config, rules, required=needed)
  except ConfigError:
    return 0
  if config.data.condition != 'class' or config.data.num_classes:
    return 0
  return processes.from_first(lambda: _num_classes(experiment))


def _num_classes(experiment: Experiment) -> int:
  # Most runs have no files to read.
  from adanat_jax.data import prepared

  if os.path.lexists(experiment.workdir / config_lib.CONFIG_FILE):
    record = config_lib.read_record(experiment.workdir)
    if there := record['config'].get('data', {}).get('num_classes'):
      return int(there)
  directory = experiment.prepared_directory
  if (directory / prepared.MANIFEST_FILE).is_file():
    layout = prepared.read_manifest(directory)['layout']
    return int(layout.get('num_classes', 0))
  if not experiment.config.data.path:
    return 0
  return len(experiment.raw_source('train').class_names or ())


def write_config(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  overrides: Mapping[str, Any] | None = None,
  source: str = '',
) -> None:
  """Writes `config.json`; see `claim`."""
  record = {
    'source': source,
    'overrides': dict(overrides or {}),
    'config': config_lib.to_dict(config),
  }
  files.write_json(workdir / config_lib.CONFIG_FILE, record, sealed=True)


def claim(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  overrides: Mapping[str, Any],
  source: str = '',
) -> None:
  """Writes `config.json`, or makes sure that it is this config's.

  Fields in `RUN_ONLY_FIELDS` may differ. A missing workdir is made; it must be
  the same one for all processes. `overrides`, the fields set on the command
  line, and `source`, `FILE[:preset]`, are recorded beside the config. Fields in
  `ADDED_FIELDS` are changed in `config` to what an earlier version did, if that
  made the workdir and `overrides` do not set them.

  Raises:
    UserError: if the directory cannot be used, not all processes see it, or it
      was made with another config: naming both values of every such field.
  """
  lacking = processes.from_first(
    lambda: _claim(workdir, config, overrides, source)
  )
  _check_shared(workdir)
  config.update_from_flattened_dict(
    {name: ADDED_FIELDS[name] for name in lacking}
  )


@contextlib.contextmanager
def claimed(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  overrides: Mapping[str, Any],
  source: str = '',
) -> Iterator[None]:
  """Claims a workdir, and gives it back where a stage refuses at once.

  If a UserError, such as a network that is missing, ends the first run before
  it wrote anything, the directory must not belong to that run's config. The
  arguments are those of `claim`.
  """
  path = workdir / config_lib.CONFIG_FILE
  is_new = not os.path.lexists(path)
  missing = [p for p in (workdir, *workdir.parents) if not os.path.lexists(p)]
  claim(workdir, config, overrides, source)
  try:
    yield
  except UserError:
    if is_new and processes.process_index() == 0:
      with contextlib.suppress(OSError):
        if os.listdir(workdir) == [path.name]:
          path.unlink()
          for directory in missing:
            directory.rmdir()
    raise


def _check_shared(workdir: pathlib.Path) -> None:
  """Raises UserError unless all processes see what process 0 writes."""
  if not processes.is_shared():
    return
  # A directory of another host may hold a run of the same config: only a name
  # that was never there before tells.
  token = workdir / processes.from_first(lambda: f'.{uuid.uuid4().hex}')
  processes.from_first(lambda: files.write_bytes(token, b''))
  try:
    processes.wait_until_seen(token)
  finally:
    if processes.process_index() == 0:
      with contextlib.suppress(OSError):
        token.unlink()


def _claim(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  overrides: Mapping[str, Any],
  source: str,
) -> list[str]:
  """Process 0's part of `claim`; returns the fields that the workdir lacks."""
  files.make_directory(workdir)
  if not os.path.lexists(workdir / config_lib.CONFIG_FILE):
    write_config(workdir, config, overrides, source)
    return []
  ours = config_lib.to_dict(config)
  theirs = config_lib.read_record(workdir)['config']
  there = dict(config_lib.fields(theirs))
  lacking = [
    name
    for name, _ in config_lib.fields(ours)
    if name in ADDED_FIELDS and name not in {**there, **overrides}
  ]
  differences = list(_differences(theirs, ours, lacking))
  if differences:
    shown = differences[:_MAX_DIFFERENCES_SHOWN]
    if len(differences) > len(shown):
      shown.append(f'and {len(differences) - len(shown)} more')
    raise UserError(
      f'--workdir={workdir} was made with another config: {"; ".join(shown)}.'
      ' Use another --workdir, or the config it was made with'
    )
  return lacking


def _differences(
  theirs: Mapping[str, Any], ours: Mapping[str, Any], lacking: Sequence[str]
) -> Iterator[str]:
  """Yields 'config.a is 1 there and 2 here' for each field that matters."""
  there = dict(config_lib.fields(theirs))
  here = dict(config_lib.fields(ours))
  for name in ADDED_FIELDS.keys() & here.keys() - there.keys():
    there[name] = files.to_json(ADDED_FIELDS[name])
  for name in sorted(there.keys() | here.keys()):
    if any(fnmatch.fnmatchcase(name, field) for field in RUN_ONLY_FIELDS):
      continue
    if name in lacking:
      continue
    values = [
      repr(side[name]) if name in side else 'absent' for side in (there, here)
    ]
    # A field that this or that version does not know, and nobody has set.
    if set(values) == {'absent', 'None'}:
      continue
    if values[0] != values[1]:
      old, new, name = (printable(text, 60) for text in (*values, name))
      yield f'config.{name} is {old} there and {new} here'
