"""Trials on copies of one training in two processes, for `faults`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import time
from typing import Any

import jax
import numpy as np

from adanat_jax.runtime import checkpoint, checkpoint_format
from adanat_jax.runtime.journal import COMPLETE_FILE, is_complete, read_complete
from adanat_jax.runtime.metric_writer import read_metrics

# `--distributed_timeout`, and when the last process has to be gone after a
# fault: it may meet the time-out, and then its farewell.
TIMEOUT = 40
GONE = TIMEOUT + 15


@dataclasses.dataclass(frozen=True)
class Start:
  """How the processes are started, if not as usual."""

  # One for each process; none: the trial's.
  workdirs: tuple[pathlib.Path, ...] = ()
  only: tuple[int, ...] = (0, 1)  # The processes that are started.
  fields: tuple[str, ...] = ()  # More fields of the config, for process 0.
  file_limit: int = 0  # No file may grow over it in bytes; 0: no limit.
  limited: tuple[int, ...] = (0, 1)  # The processes for which that holds.
  # Without root's privilege to write where modes forbid it.
  heeds_modes: bool = False


# What starts the processes; each has `pid`, `poll` and `wait` as `Popen` has.
Launch = Callable[[pathlib.Path, Sequence[pathlib.Path], Start], Sequence[Any]]


@dataclasses.dataclass
class Outcome:
  """A trial's row in the table."""

  fault: str  # What was done.
  statuses: tuple[int, ...] = ()  # Of the processes; negative for a signal.
  seconds: float = 0.0  # From the fault to the end of the last process.
  said: str = ''  # The line that names the fault, if one does.
  after: tuple[int, ...] = ()  # Statuses of a run that was started again.
  difference: str = ''  # What is not as in the undisturbed run.

  @property
  def good(self) -> bool:
    """Whether all ended in time, and then to the same bits."""
    in_time = self.seconds <= GONE
    return in_time and not any(self.after) and not self.difference

  def row(self) -> str:
    """The row as Markdown."""
    result = self.difference or ('the same bits' if self.good else 'FAILED')
    cells = (
      self.fault,
      ', '.join(map(str, self.statuses)),
      f'{self.seconds:.0f} s',
      self.said.replace('|', '/') or '-',
      result,
    )
    return f'| {" | ".join(cells)} |'


class Laboratory:
  """Copies of one training, and what is done to them."""

  def __init__(
    self, root: pathlib.Path, base: pathlib.Path, stage: str, launch: Launch
  ):
    """Runs the training once without disturbance, unless that was done.

    Args:
      root: gets all workdirs and outputs.
      base: the workdir that every trial starts from.
      stage: the directory of the training in a workdir.
      launch: starts both processes.
    """
    self.root, self._base, self.stage = root, base, stage
    self._launch = launch
    self.whole = root / 'whole'
    if not is_complete(self.whole / stage):
      self.copy('whole')
      statuses = self.run(self.whole)
      if any(statuses):
        raise RuntimeError('\n'.join(self.outputs(self.whole)))
    self.num_steps: int = read_complete(self.whole / stage)['step']

  def copy(self, name: str, source: pathlib.Path | None = None) -> pathlib.Path:
    """Returns a new workdir."""
    workdir = self.root / name
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(source or self._base, workdir)
    return workdir

  def start(self, workdir: pathlib.Path, how: Start = Start()) -> Sequence[Any]:
    """Starts the processes."""
    return self._launch(workdir, self._outputs(workdir), how)

  def run(self, workdir: pathlib.Path, how: Start = Start()) -> tuple[int, ...]:
    """Runs the processes to their end, and returns their exit statuses."""
    return tuple(p.wait(600) for p in self.start(workdir, how))

  def outputs(self, workdir: pathlib.Path) -> list[str]:
    """What the processes of the last run printed."""
    paths = self._outputs(workdir)
    return [p.read_text(errors='replace') for p in paths if p.exists()]

  def _outputs(self, workdir: pathlib.Path) -> list[pathlib.Path]:
    return [workdir.with_name(f'{workdir.name}-{i}.txt') for i in range(2)]

  def finished_steps(self, workdir: pathlib.Path) -> int:
    """The step of the newest row."""
    rows = read_metrics(workdir / self.stage)
    return rows[-1]['step'] if rows else 0

  def strike(
    self,
    workdir: pathlib.Path,
    victim: int,
    number: int,
    step: int,
    wait: float,
  ) -> Outcome:
    """Sends a signal to one process, and waits for the end of all.

    It is sent `wait` seconds after the row of a step.
    """
    processes = self.start(workdir)
    while self.finished_steps(workdir) < step:
      if processes[victim].poll() is not None:
        break
      time.sleep(0.01)
    time.sleep(wait)
    if processes[victim].poll() is None:
      os.kill(processes[victim].pid, number)
    begun = time.monotonic()
    statuses = tuple(p.wait(600) for p in processes)
    name = signal.Signals(number).name
    when = f'in step {step + 1}' if step else f'{wait:.1f} s after the start'
    return Outcome(
      f'{name} to process {victim} {when}',
      statuses,
      time.monotonic() - begun,
      self.said(workdir),
    )

  def said(self, workdir: pathlib.Path) -> str:
    """The line of the last run that says why it ended or what it passed by."""
    for output in self.outputs(workdir):
      for line in reversed(output.splitlines()):
        if line.startswith('adanat_jax: '):
          return self._short(line.removeprefix('adanat_jax: '))
        if ' is damaged (' in line or ': saved;' in line:
          return self._short(line.partition('] ')[2] or line)
    return ''

  def _short(self, line: str) -> str:
    line = line.replace(f'{self.root}/', '')
    return line if len(line) <= 150 else line[:147] + '...'

  def finish(self, outcome: Outcome, workdir: pathlib.Path) -> None:
    """Starts the same command again, if it has not finished, and compares."""
    if not is_complete(workdir / self.stage):
      outcome.after = self.run(workdir)
    if not any(outcome.after):
      outcome.difference = difference(
        self.whole / self.stage, workdir / self.stage
      )

  def kill(
    self, name: str, victim: int, number: int, step: int, wait: float
  ) -> Outcome:
    """Tries a signal."""
    workdir = self.copy(name)
    outcome = self.strike(workdir, victim, number, step, wait)
    self.finish(outcome, workdir)
    return outcome

  def stopped(self) -> pathlib.Path:
    """A workdir whose training was stopped in the middle, to do things to."""
    path = self.root / 'stopped'
    if not path.exists():
      self.copy('stopped')
      outcome = self.strike(path, 1, signal.SIGTERM, self.num_steps // 2, 0.0)
      assert outcome.statuses == (143, 143), outcome
    return path

  def spoil(
    self,
    fault: str,
    how: Start = Start(),
    spoil: Callable[[pathlib.Path], Any] = lambda workdir: None,
    mend: Callable[[pathlib.Path], Any] = lambda workdir: None,
  ) -> Outcome:
    """Tries a fault that is there when the run is started.

    Args:
      fault: its name in the table, and of the workdir.
      how: how the processes are started with it.
      spoil: makes the fault.
      mend: takes it away again.
    """
    workdir = self.copy(re.sub(r'\W+', '-', fault), self.stopped())
    spoil(workdir)
    begun = time.monotonic()
    outcome = Outcome(fault, self.run(workdir, how))
    outcome.seconds = time.monotonic() - begun
    outcome.said = self.said(workdir)
    if not any(outcome.statuses):
      outcome.seconds = 0.0  # It did not end, it went on.
    mend(workdir)
    self.finish(outcome, workdir)
    return outcome

  def newest(self, workdir: pathlib.Path) -> pathlib.Path:
    """The newest checkpoint."""
    steps = (workdir / self.stage / 'checkpoints').iterdir()
    return max(steps, key=lambda p: int(p.name) if p.name.isdigit() else -1)


def difference(one: pathlib.Path, other: pathlib.Path) -> str:
  """Returns what two finished trainings do not have in common, or ''."""
  step = str(read_complete(one)['step'])

  def parts(path: pathlib.Path) -> dict[str, Any]:
    found = checkpoint_format.read(path / 'checkpoints' / step)
    params = jax.tree.leaves(checkpoint.load_params(path, 'params'))
    return {
      COMPLETE_FILE: (path / COMPLETE_FILE).read_text(),
      'metrics.jsonl': [
        {k: v for k, v in row.items() if 'time/' not in k}
        for row in read_metrics(path)
      ],
      'leaves': checkpoint_format.checksums(found),
      'parameters': [np.asarray(leaf).tobytes() for leaf in params],
    }

  ours, theirs = parts(one), parts(other)
  return ', '.join(
    f'{name}: not the same' for name in ours if ours[name] != theirs[name]
  )
