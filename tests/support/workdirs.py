"""A small finished workdir, made by an earlier version, for tests to damage."""

from __future__ import annotations

import json
import pathlib
import tarfile
from typing import Any

import ml_collections

from adanat_jax.experiment import config as config_lib, workdir as workdir_lib
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.runtime import files, journal
from support import configs

_ARCHIVE = configs.ROOT / 'tests/data/workdir-0.1.0.tar.xz'
POLICY = 'policy/adversarial-adaptive-T2-0'


def unpack(directory: pathlib.Path) -> pathlib.Path:
  """Unpacks `configs/digits.py:tiny`, with even smaller networks."""
  with tarfile.open(_ARCHIVE) as archive:
    archive.extractall(directory, filter='data')
  return directory


def command(
  workdir: pathlib.Path,
) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
  """The config, and what was set of it, by which the workdir was made."""
  record = json.loads((workdir / 'config.json').read_text())
  overrides = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in record['overrides'].items()
  }
  return configs.load('digits.py:tiny', overrides), overrides


def experiment(workdir: pathlib.Path) -> Experiment:
  """What `main` makes of that command."""
  config, overrides = command(workdir)
  # It is this config's directory still.
  workdir_lib.claim(workdir, config, overrides)
  return Experiment(config, workdir)


def seal(workdir: pathlib.Path) -> None:
  """Writes the JSON of a workdir as this version does."""
  path = workdir / config_lib.CONFIG_FILE
  files.write_json(path, files.read_json(path), sealed=True)
  for marker in workdir.rglob(journal.COMPLETE_FILE):
    there = journal.read_complete(marker.parent)
    journal.mark_complete(
      marker.parent, there['step'], there['figures'], there.get('best')
    )
  path = workdir / 'evaluate/ledger.jsonl'
  lines = path.read_text().splitlines()
  sealed = (json.dumps(files.seal(json.loads(line))) for line in lines)
  files.write_text(path, '\n'.join(sealed) + '\n')
