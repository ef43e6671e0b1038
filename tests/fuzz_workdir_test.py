"""Whatever stands in the files of a workdir: what was written, or one line.

A file that this version wrote is refused or read as it was; one of an earlier
version, which has no checksum, may hold anything that has the right shape.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import json
import pathlib

from absl.testing import absltest
import numpy as np

from adanat_jax.data import prepared
from adanat_jax.experiment import (
  named_schedules,
  networks,
  policies,
  workdir as workdir_lib,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.report import document, results as reading
from adanat_jax.runtime import files, journal, metric_writer
from support import fuzzing, workdirs

_NAMES = ('', 'a', 'step', 'config', 'name', 'value', '\x1b[2J', 'ä', 'items')
_SEAL = ('format', 'checksum')
_TABLE = dict.fromkeys(
  ('mask_ratio', 'sampling_temperature', 'masking_temperature'), [0.5, 0.0]
) | {'guidance_scale': [0, 1.5]}
_MANIFEST = {
  'settings': {'data.source': 'coco'},
  'layout': {'num_tokens': 16, 'num_classes': 10},
  'splits': {'train': {'has_images': True, 'shards': [3, 4], 'records': 7}},
}


def altered(random: np.random.Generator, content: bytes) -> bytes:
  """A JSON file, or one of JSON lines, with bytes or values changed."""
  if random.random() < 0.5:
    return fuzzing.mutated(random, content)
  try:
    parts = [json.loads(content)]
  except ValueError:
    parts = [json.loads(line) for line in content.splitlines()]
  share = 10.0 ** random.uniform(-3, -0.5)
  seals = [{k: p.pop(k) for k in _SEAL if k in p} for p in parts]
  changed = [fuzzing.changed(random, part, _NAMES, share) for part in parts]
  # Whoever deletes both means what he changes.
  changed = [
    {**part, **seal} if isinstance(part, dict) else part
    for part, seal in zip(changed, seals, strict=True)
  ]
  return ''.join(json.dumps(part) + '\n' for part in changed).encode()


class FuzzWorkdirTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.workdir = workdirs.unpack(
      pathlib.Path(self.create_tempdir().full_path)
    )

  def fuzz(
    self, name: str, read: Callable[[], object], *, sealed: bool = True
  ) -> None:
    """Alters a file and reads it, again and again.

    Args:
      name: of the file in the workdir.
      read: reads it.
      sealed: whether what is read must then be what was written.
    """
    path = self.workdir / name
    content = path.read_bytes()
    expected = read()

    def act(data: bytes) -> None:
      path.write_bytes(data)
      found = read()
      if sealed:
        self.assertEqual(found, expected)

    tally = fuzzing.fuzz(lambda random: altered(random, content), act)
    path.write_bytes(content)
    print(f'{self.id()}: {tally.accepted} read, {tally.refused} refused')
    if tally.failures:
      self.fail('\n'.join(tally.failures[:3]))

  def load(self) -> dict[str, object]:
    """Makes the networks of the workdir's generator, without parameters."""
    experiment = Experiment.of_workdir(self.workdir)
    made = [
      networks.module_and_inputs(experiment.config, name)
      for name in ('tokenizer', 'nat')
    ]
    policies.trainings(experiment)
    policies.residual_of(experiment, 2)
    return {'config': experiment.config.to_dict(), 'networks': made}

  def test_config(self):
    workdirs.seal(self.workdir)
    self.fuzz('config.json', self.load)

  def test_config_of_an_earlier_version(self):
    self.fuzz('config.json', self.load, sealed=False)

  def test_claimed_config_of_an_earlier_version(self):
    config, overrides = workdirs.command(self.workdir)
    claim = lambda: workdir_lib.claim(self.workdir, config, overrides)
    self.fuzz('config.json', claim, sealed=False)

  def test_marker(self):
    workdirs.seal(self.workdir)
    read = lambda: journal.read_complete(self.workdir / 'nat')
    self.fuzz('nat/complete.json', read)

  def test_results(self):
    workdirs.seal(self.workdir)
    directory = self.workdir / 'evaluate'
    path = directory / 'results.json'
    whole = path.read_bytes()

    def read() -> object:
      found = journal.read_results(directory, reading.SHAPE)
      self.assertEqual(path.read_bytes(), whole)
      return found

    self.fuzz('evaluate/results.json', read)

  def test_results_of_an_earlier_version(self):
    def read() -> str:
      found = reading.read(self.workdir / 'evaluate')
      return document.compose(found, [], 'title', 'command')

    self.fuzz('evaluate/results.json', read, sealed=False)

  def test_ledger(self):
    workdirs.seal(self.workdir)
    path = self.workdir / 'evaluate/ledger.jsonl'
    names = [json.loads(line)['name'] for line in path.read_text().splitlines()]
    pieces = {name: journal.Ledger(path).get(name, self.fail) for name in names}

    def read() -> None:
      ledger = journal.Ledger(path)
      for name, value in pieces.items():
        # A piece is the one that was written, or it is made again.
        self.assertEqual(ledger.get(name, lambda v=value: v), value)

    self.fuzz('evaluate/ledger.jsonl', read)

  def read_metrics(self) -> list[dict[str, object]]:
    with contextlib.redirect_stdout(None):
      return metric_writer.read_metrics(self.workdir / 'nat')

  def test_metrics(self):
    metric_writer.cut_back(self.workdir / 'nat/metrics.jsonl', 4)
    whole = self.read_metrics()

    def read() -> None:
      for row in self.read_metrics():
        self.assertIn(row, whole)

    self.fuzz('nat/metrics.jsonl', read)

  def test_metrics_of_an_earlier_version(self):
    def read() -> None:
      with contextlib.redirect_stdout(None):
        metric_writer.cut_back(self.workdir / 'nat/metrics.jsonl', 3)
      for row in self.read_metrics():
        self.assertLessEqual(row['step'], 3)

    self.fuzz('nat/metrics.jsonl', read, sealed=False)

  def test_manifest(self):
    path = self.workdir / prepared.MANIFEST_FILE
    files.write_json(path, _MANIFEST, sealed=True)
    self.fuzz(path.name, lambda: prepared.read_manifest(self.workdir))

  def test_manifest_of_an_earlier_version(self):
    path = self.workdir / prepared.MANIFEST_FILE
    files.write_json(path, _MANIFEST)
    open_it = lambda: len(prepared.PreparedExamples(self.workdir, 'train'))
    self.fuzz(path.name, open_it, sealed=False)

  def test_table(self):
    path = self.workdir / 'table.json'
    files.write_json(path, _TABLE)
    read = lambda: named_schedules.read_file(str(path)).num_steps
    self.fuzz(path.name, read, sealed=False)


if __name__ == '__main__':
  absltest.main()
