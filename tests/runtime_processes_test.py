"""Two processes on this machine: meeting, stopping, dying, going on."""

from collections.abc import Sequence
import pathlib
import random
import signal
import socket
import sys
from typing import Any
from unittest import mock

from absl import logging
from absl.testing import absltest, parameterized
import jax
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.runtime import (
  addresses,
  checkpoint,
  leaves,
  metric_writer,
  processes,
)
from support import toy_cluster, toy_training

# The benchmark is not part of the package.
sys.path.append(str(pathlib.Path(__file__).parents[1] / 'benchmarks'))
import faults
import laboratory


def setUpModule():
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.


def saved_bits(directory: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns every leaf of the newest checkpoint, read by this one process."""
  with checkpoint.Checkpointer(directory) as checkpoints:
    restored = checkpoints.restore(toy_training.initial_state())
  state = restored.state.replace(key=jax.random.key_data(restored.state.key))
  return jax.tree.map(np.asarray, leaves.by_name(state))


def rows(directory: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the rows without wall-clock figures."""
  return [
    {key: value for key, value in row.items() if not key.startswith('time/')}
    for row in metric_writer.read_metrics(directory)
  ]


class ProcessTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    (self.directory / 'config.py').write_text(toy_cluster.CONFIG)

  def run_pair(
    self, *, workdir: str = 'w', count: int = 2, **options: Any
  ) -> list[tuple[int | None, str]]:
    return toy_cluster.run_together(
      self.directory,
      *[[]] * count,
      common=[f'--workdir={self.directory / workdir}'],
      **options,
    )


class TrainingTest(ProcessTest):
  def assert_same_run(self, one: str, other: str) -> None:
    one, other = self.directory / one / 'toy', self.directory / other / 'toy'
    ours, theirs = saved_bits(one), saved_bits(other)
    self.assertEqual(ours.keys(), theirs.keys())
    for name in ours:
      np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    self.assertEqual(rows(one), rows(other))
    self.assertEqual(
      (one / 'complete.json').read_text(), (other / 'complete.json').read_text()
    )

  def test_stopped_and_killed_ends_with_the_same_bits(self):
    for status, output in self.run_pair(workdir='whole'):
      self.assertEqual(status, 0, output)
      self.assertIn('done on 2 devices in 2 processes, in 2 pieces', output)
      self.assertIn('process 0 keeps the ledger', output)
    marker = self.directory / 'w/toy/complete.json'
    # Each start goes on from what the stop before it has left.
    for death, statuses, words in (
      ('1:SIGTERM:7', (143, 143), 'SIGTERM after step 9 of 23: saved'),
      ('0:SIGINT:11', (130, 130), 'SIGINT after step 13 of 23: saved'),
      # The one that is left ends by itself, and not as if all were well.
      ('1:SIGKILL:17', (None, -9), 'continues after step 13'),
      ('0:SIGKILL:18', (-9, None), 'continues after step'),
    ):
      with self.subTest(death):
        results = self.run_pair(death=death)
        for expected, (status, output) in zip(statuses, results, strict=True):
          if expected is None:
            self.assertNotIn(status, (None, 0, 143), output)
          else:
            self.assertEqual(status, expected, output)
        self.assertIn(words, results[0][1])
        self.assertFalse(marker.exists())
    # One process cannot read the newest one; both have to pass it over.
    first, second = self.run_pair(death='1:BLIND')
    self.assertEqual((first[0], second[0]), (0, 0), first[1] + second[1])
    self.assertRegex(
      first[1], r'is damaged \(OSError: stale file handle, in process 1\)'
    )
    self.assertNotIn('damaged', second[1])
    self.assert_same_run('whole', 'w')
    figures = {r['step']: r.get('eval/index') for r in rows(marker.parent)}
    self.assertEqual(figures, dict.fromkeys(figures) | {9: 9, 18: 18, 23: 23})
    # It can, but reads other numbers than the other one.
    first, second = self.run_pair(death='1:ODD')
    self.assertEqual((first[0], second[0]), (0, 0), first[1] + second[1])
    self.assertRegex(
      first[1],
      r'23 is damaged \(ValueError: .* of params/bias differs, in process 1\)',
    )
    self.assertIn('continues after step 20 of 23', first[1])
    self.assert_same_run('whole', 'w')
    # Complete: nothing is done again, and one process reads what two wrote.
    (alone,) = self.run_pair(count=1)
    self.assertIn('done on 1 devices in 1 processes, in 1 pieces', alone[1])
    self.assert_same_run('whole', 'w')
    files = {p.name for p in (self.directory / 'w').rglob('.*')}
    self.assertEmpty(files, 'tokens and temporary files are left')

  def test_two_processes_go_on_where_eight_devices_and_one_stopped(self):
    common = [f'--workdir={self.directory / "w"}']
    run = lambda n, devices, steps: toy_cluster.run_together(
      self.directory,
      *[[]] * n,
      common=[*common, f'--config.num_steps={steps}'],
      num_devices=devices,
    )
    config = self.directory / 'w/config.json'
    for count, devices, steps in (
      (1, 8, 6),
      (1, 1, 12),
      (1, 8, 18),
      (2, 4, 23),
    ):
      config.unlink(missing_ok=True)  # It holds another number of steps.
      for status, output in run(count, devices, steps):
        self.assertEqual(status, 0, output)
        self.assertIn(f'done on {count * devices} devices', output)
        self.assertIn(f'in {min(count * devices, 4)} pieces', output)
    self.assertEqual(run(1, 1, 23)[0][0], 0)
    (whole,) = self.run_pair(workdir='whole', count=1)
    self.assertEqual(whole[0], 0, whole[1])
    ours = saved_bits(self.directory / 'w/toy')
    theirs = saved_bits(self.directory / 'whole/toy')
    for name in theirs:
      np.testing.assert_allclose(
        ours[name], theirs[name], rtol=1e-5, err_msg=name
      )

  def test_a_mistake_of_one_process_ends_both(self):
    first, second = toy_cluster.run_together(
      self.directory,
      [],
      [],
      common=[f'--workdir={self.directory / "w"}', '--config.seed=1'],
    )
    self.assertEqual(second[0], 2, second[1])
    self.assertIn('adanat_jax: only process 1 sees this', second[1])
    self.assertNotIn(first[0], (None, 0, 143))

  def test_alone_with_a_coordinator(self):
    output = self.directory / 'output.txt'
    process = toy_cluster.start(
      [
        '--distributed=local',
        f'--config={self.directory / "config.py"}',
        f'--workdir={self.directory / "w"}',
        '--jax_cache=off',
      ],
      output,
      death='0:SIGTERM:7',
    )
    process.join(60)
    self.assertEqual(process.exitcode, 143, output.read_text())
    self.assertRegex(output.read_text(), r'process +host +devices +kind\n0 ')
    self.assertIn('SIGTERM after step 8 of 23: saved', output.read_text())


class FaultsTest(ProcessTest):
  def launch(
    self,
    workdir: pathlib.Path,
    outputs: Sequence[pathlib.Path],
    how: laboratory.Start,
  ) -> list[laboratory.Child]:
    """Starts the toy training, long enough to be hit."""
    fields = ('--config.num_steps=40', '--config.pause=0.03')
    common = [*fields, f'--workdir={workdir}']
    return [
      laboratory.Child(
        toy_cluster.start(
          [*own, *common],
          output,
          file_limit=how.file_limit if index in how.limited else 0,
        )
      )
      for index, (own, output) in enumerate(
        zip(toy_cluster.arguments(self.directory, 2), outputs, strict=True)
      )
    ]

  def test_a_few_of_those_that_the_benchmark_tries(self):
    base = self.directory / 'base'
    base.mkdir()
    lab = laboratory.Laboratory(self.directory, base, 'toy', self.launch)
    rng = random.Random()
    outcomes = [
      lab.kill(
        'killed',
        rng.randrange(2),
        rng.choice([signal.SIGKILL, signal.SIGTERM]),
        rng.randrange(1, lab.num_steps),
        rng.uniform(0, 0.1),
      ),
      *faults.simple_faults(lab),
    ]
    for outcome in outcomes:
      with self.subTest(outcome.row()):
        self.assertTrue(outcome.good)
    for outcome, words in zip(
      outcomes[1:],
      (
        'cannot be written: File too',
        'cannot be written: ',
        'is damaged (',
        'a file is in the way',
      ),
      strict=True,
    ):
      self.assertIn(words, outcome.said)
      self.assertEqual('damaged' in words, outcome.statuses == (0, 0))


class StartTest(ProcessTest):
  def assert_one_line(self, result: tuple[int | None, str], *words: str):
    status, output = result
    self.assertEqual(status, 2, output)
    lines = [x for x in output.splitlines() if x.startswith('adanat_jax: ')]
    self.assertLen(lines, 1, output)
    self.assertNotIn('Traceback', output)
    for word in words:
      self.assertIn(word, lines[0])

  def test_processes_with_different_configs(self):
    results = toy_cluster.run_together(
      self.directory,
      ['--config.width=16'],
      [],
      common=[f'--workdir={self.directory / "w"}'],
    )
    for result in results:
      self.assert_one_line(
        result, 'config.width is 16 in process 0', 'and 8 in process 1'
      )
    self.assertFalse((self.directory / 'w').exists())

  def test_a_workdir_that_is_not_shared(self):
    results = toy_cluster.run_together(
      self.directory,
      [f'--workdir={self.directory / "here"}'],
      [f'--workdir={self.directory / "there"}'],
      timeout=6,
    )
    self.assert_one_line(results[0], 'here is not the same directory')
    for result in results:
      self.assert_one_line(result, 'process 1', '--workdir must be on a disk')

  def test_a_process_that_is_never_started(self):
    port = addresses.free_port()
    arguments = [
      f'--coordinator_address=localhost:{port}',
      '--num_processes=3',
      '--distributed_timeout=2',
      f'--config={self.directory / "config.py"}',
      f'--workdir={self.directory / "w"}',
    ]
    outputs = [self.directory / f'{i}.txt' for i in range(2)]
    started = [
      toy_cluster.start([*arguments, f'--process_id={i}'], output)
      for i, output in zip((0, 2), outputs, strict=True)
    ]
    for process, output in zip(started, outputs, strict=True):
      process.join(60)
      self.assert_one_line(
        (process.exitcode, output.read_text()),
        'of 3 processes came to localhost:',
        'within 2 s, missing: ',
        '--worker=all',
      )

  def test_what_one_process_cannot_start_with(self):
    with socket.create_server(('127.0.0.1', 0)) as server:
      taken = f'127.0.0.1:{server.getsockname()[1]}'
      for flags, words in (
        (['nohost.invalid:81'], ['nohost.invalid:81: process 0 cannot listen']),
        ([taken], [f'{taken}: process 0 cannot listen there', 'started twice']),
        (['localhost:1', '--distributed_timeout=nan'], ['timeout=nan: from']),
      ):
        address, *more = flags
        output = self.directory / 'output.txt'
        process = toy_cluster.start(
          [
            f'--coordinator_address={address}',
            '--num_processes=1',
            '--process_id=0',
            f'--config={self.directory / "config.py"}',
            f'--workdir={self.directory / "w"}',
            *more,
          ],
          output,
        )
        process.join(60)
        self.assert_one_line((process.exitcode, output.read_text()), *words)


class AloneTest(parameterized.TestCase):
  @parameterized.parameters('nan', 'inf', '-inf', '-1', '0', '0.5', '1e9')
  def test_a_timeout_is_a_time(self, text: str):
    with self.assertRaisesRegex(UserError, 'timeout=.*: from 1 s to 604800 s'):
      processes.start('off', timeout=float(text))

  def test_the_coordinator_listens_where_the_processes_met(self):
    """By default JAX's would at all addresses of the machine."""
    address = f'127.0.0.1:{addresses.free_port()}'
    with (
      mock.patch.object(jax.distributed, 'initialize') as initialize,
      mock.patch.object(jax.config, 'update'),
      mock.patch.object(processes, 'say'),
    ):
      processes.start(
        coordinator_address=address, num_processes=1, process_id=0
      )
    found = initialize.call_args.kwargs['coordinator_bind_address']
    self.assertEqual(found, address)

  def test_one_process_is_not_told_about_others(self):
    with self.assertRaisesRegex(UserError, 'num_processes=2: --distributed=lo'):
      processes.start('local', num_processes=2)

  def test_everything_is_what_it_is_without_other_processes(self):
    self.assertEqual(processes.process_index(), 0)
    self.assertFalse(processes.is_shared())
    value = ('kept', object())
    self.assertIs(processes.from_first(lambda: value), value)
    self.assertEqual(processes.all_values(value), [value])
    processes.barrier()
    with self.assertRaises(SystemExit) as caught:
      processes.leave(2)
    self.assertEqual(caught.exception.code, 2)


if __name__ == '__main__':
  absltest.main()
