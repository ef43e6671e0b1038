"""The directory of a run, and that it belongs to one config.

A workdir belongs to the first config that was run in it: results of two configs
in one directory could not be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import fnmatch
import pathlib
from typing import Any

import ml_collections

from adanat_jax import config as config_lib, files
from adanat_jax.errors import UserError

CONFIG_FILE = 'config.json'

# Fields that say what to do or how to show it, and never what comes out: runs
# that differ in these alone may share a workdir. Shell patterns on the dotted
# name of a field.
RUN_ONLY_FIELDS = (
  'mode',
  'sample.*',
  'report.*',
  'profile',
  'profile.*',
  'log_every',
  '*.log_every',
  'save_every',
  '*.save_every',
  'tensorboard',
)

_MAX_DIFFERENCES_SHOWN = 8


def claim(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  overrides: Mapping[str, Any],
  source: str = '',
) -> None:
  """Writes `config.json`, or makes sure that it is this config's.

  Fields in `RUN_ONLY_FIELDS` may differ.

  Args:
    workdir: the run's directory; made if it is not there.
    config: the resolved config.
    overrides: the fields set on the command line, recorded beside it.
    source: `FILE[:preset]`, recorded beside it.

  Raises:
    UserError: the directory cannot be used, or was made with another config;
      the fields that differ are named with both values.
  """
  path = workdir / CONFIG_FILE
  ours = config_lib.to_dict(config)
  try:
    files.make_directory(workdir)
    if not path.exists():
      record = {
        'source': source,
        'overrides': dict(overrides),
        'config': ours,
      }
      files.write_json(path, record)
      return
  except OSError as error:
    raise UserError(
      f'--workdir={workdir} cannot be used: {error.strerror}'
    ) from error
  record = files.read_json(path)
  theirs = record.get('config') if isinstance(record, dict) else None
  if not isinstance(theirs, dict):
    raise UserError(
      f'{path} is not a config that this program wrote; use another --workdir'
    )
  differences = list(_differences(theirs, ours))
  if differences:
    shown = differences[:_MAX_DIFFERENCES_SHOWN]
    if len(differences) > len(shown):
      shown.append(f'and {len(differences) - len(shown)} more')
    raise UserError(
      f'--workdir={workdir} was made with another config: {"; ".join(shown)}.'
      ' Use another --workdir, or the config it was made with'
    )


def _differences(
  theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> Iterator[str]:
  """Yields 'config.a is 1 there and 2 here' for each field that matters."""
  there = dict(config_lib.fields(theirs))
  here = dict(config_lib.fields(ours))
  for name in sorted(there.keys() | here.keys()):
    if any(fnmatch.fnmatchcase(name, field) for field in RUN_ONLY_FIELDS):
      continue
    values = [
      repr(side[name]) if name in side else 'absent' for side in (there, here)
    ]
    if values[0] != values[1]:
      yield f'config.{name} is {values[0]} there and {values[1]} here'
