"""Trials on copies of one stage in two processes, for `faults`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import time
from typing import Any

import jax
import numpy as np

from adanat_jax.runtime import checkpoint, checkpoint_format, files
from adanat_jax.runtime.journal import COMPLETE_FILE, is_complete, read_complete
from adanat_jax.runtime.metric_writer import TIME_PREFIX, read_metrics

# `--distributed_timeout`, and when the last process has to be gone after a
# fault: it may meet the time-out, and then its farewell.
TIMEOUT = 20
GONE = TIMEOUT + 15
# Of kills along a run: how many strike while the processes start.
EARLY = 0.25
# What `compare` measures with a clock, and what follows from it.
_TIMED = {'seconds', 'timing', 'trade_offs', 'machine'}
_TIMED_FILES = {'comparison.md', 'comparison.png'}


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


class Child:
  """A process of `multiprocessing` with the methods of `Popen`."""

  def __init__(self, process: multiprocessing.process.BaseProcess):
    """Wraps a process that was started."""
    self._process = process
    self.pid = process.pid

  def poll(self) -> int | None:
    """Returns the exit status, if it has ended."""
    return self._process.exitcode

  def wait(self, timeout: float | None = None) -> int | None:
    """Waits for its end and returns the exit status."""
    self._process.join(timeout)
    return self._process.exitcode


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


@dataclasses.dataclass
class Kills:
  """A stage's row in the table of kills."""

  stage: str
  victims: list[int] = dataclasses.field(default_factory=list)
  early: int = 0  # How many struck before the stage had written anything.
  runs: int = 0  # How many went to their end, after the kills along them.
  seconds: float = 0.0  # From a kill to the end of the other process, at most.
  statuses: list[int] = dataclasses.field(default_factory=list)  # Of the other.
  difference: str = ''  # What is not as in the undisturbed run.

  def row(self) -> str:
    """The row as Markdown."""
    count = len(self.victims)
    cells = (
      self.stage,
      count,
      self.victims.count(0),
      self.early,
      self.runs,
      ', '.join(map(str, sorted(set(self.statuses)))),
      f'{self.seconds:.0f} s',
      self.difference or f'the same bits, {count} of {count}',
    )
    return f'| {" | ".join(map(str, cells))} |'


class Laboratory:
  """Copies of one stage's workdir, and what is done to them."""

  def __init__(
    self, root: pathlib.Path, base: pathlib.Path, stage: str, launch: Launch
  ):
    """Runs the training once without disturbance, unless that was done.

    Args:
      root: gets all workdirs and outputs.
      base: the workdir that every trial starts from.
      stage: its name, and its directory in a workdir.
      launch: starts both processes.
    """
    self.root, self._base, self.stage = root, base, stage
    self._launch = launch
    self.whole = root / 'whole'
    if not self.whole.exists():
      workdir = self.copy('work')
      statuses = self.run(workdir)
      if any(statuses):
        raise RuntimeError('\n'.join(self.outputs(workdir)))
      workdir.rename(self.whole)

  @functools.cached_property
  def num_steps(self) -> int:
    """The steps of the training."""
    return int(read_complete(self.whole / self.stage)['step'])

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

  def kill_along(self, count: int, seed: int) -> Kills:
    """Kills one process of a run, starts it again, kills again, to its end.

    Then another run is begun, until there were so many kills. Each run has the
    path of the undisturbed one, which some files hold. What was found so far is
    kept, so this may itself be killed.
    """
    work, kept = self.root / 'work', self.root / 'kills.json'
    found = Kills(self.stage)
    if kept.exists():
      found = Kills(**json.loads(kept.read_text()))
    # Seconds of a whole run before and after its first file; measured below.
    spans = [10.0, 10.0]
    while not found.difference:
      files.write_json(kept, dataclasses.asdict(found))
      fresh = not work.exists()
      if fresh:
        if len(found.victims) >= count:
          break
        self.copy('work')
      rng = np.random.default_rng([seed, len(found.victims), found.runs])
      since, times = time.time_ns(), [time.monotonic()]
      processes = self.start(work)
      is_early, victim = rng.random() < EARLY, int(rng.integers(len(processes)))
      wait = rng.uniform(0, spans[not is_early])
      while any(p.poll() is None for p in processes):
        if len(times) == 1 and self._has_written(work, since):
          times.append(time.monotonic())
        if is_early or len(times) == 2:
          if time.monotonic() > times[not is_early] + wait:
            break
        time.sleep(0.01)
      if processes[victim].poll() is None and len(found.victims) < count:
        os.kill(processes[victim].pid, signal.SIGKILL)
        found.victims.append(victim)
        found.early += len(times) == 1
        struck = time.monotonic()
        statuses = [p.wait(GONE) for p in processes]
        found.seconds = max(found.seconds, time.monotonic() - struck)
        del statuses[victim]
        if None in statuses:
          found.difference = 'the other process goes on'
        else:
          found.statuses += statuses
        continue
      statuses = [p.wait(600) for p in processes]
      if any(statuses):
        found.difference = '\n'.join([str(statuses), *self.outputs(work)])
        continue
      if fresh and len(times) == 2:
        times.append(time.monotonic())
        spans = np.diff(times).tolist()
      found.runs += 1
      found.difference = difference(self.whole / self.stage, work / self.stage)
      if not found.difference:
        shutil.rmtree(work)
    return found

  def _has_written(self, workdir: pathlib.Path, since: int) -> bool:
    """Whether the stage has written a file since then, in nanoseconds."""
    for place, _, names in os.walk(workdir / self.stage):
      for name in names:
        # The run renames and deletes meanwhile.
        with contextlib.suppress(FileNotFoundError):
          if os.lstat(os.path.join(place, name)).st_mtime_ns > since:
            return True
    return False

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
  """Returns what two finished stages do not have in common, or ''."""
  ours, theirs = contents(one), contents(other)
  return ', '.join(
    f'{name}: not the same'
    for name in sorted(ours.keys() | theirs.keys())
    if ours.get(name) != theirs.get(name)
  )


def contents(stage: pathlib.Path) -> dict[str, Any]:
  """What a finished stage holds by file, without what a clock has measured."""
  found: dict[str, Any] = {}
  for path in sorted(stage.rglob('*')):
    parts = path.relative_to(stage).parts
    name = '/'.join(parts)
    if 'checkpoints.damaged' in parts:
      continue  # A fault has left it.
    if path.is_dir() and path.parent.name != 'checkpoints':
      continue
    if 'checkpoints' in parts[:-1]:
      # The last one is compared by its numbers below: files hold names drawn
      # at random. The one before it is another after a SIGTERM near the end.
      if path.parent.name == 'checkpoints' and not path.name.isdigit():
        found[name] = 'no checkpoint'
    elif path.name == 'metrics.jsonl':
      found[name] = [
        {k: v for k, v in row.items() if not k.startswith(TIME_PREFIX)}
        for row in read_metrics(path.parent)
      ]
    elif stage.name == 'compare' and path.parent == stage:
      if path.suffix in ('.json', '.jsonl'):
        lines = path.read_text().splitlines()
        whole = path.suffix == '.jsonl'
        values = map(json.loads, lines if whole else [''.join(lines)])
        found[name] = [x for x in map(_untimed, values) if x is not None]
      elif path.name not in _TIMED_FILES:
        found[name] = path.read_bytes()
    else:
      found[name] = path.read_bytes()
    if path.name == COMPLETE_FILE and (path.parent / 'checkpoints').exists():
      found |= _numbers(path.parent, name)
  return found


def _untimed(value: Any) -> Any:
  """A value of JSON without times and checksums of them; None for a time."""
  if isinstance(value, dict):
    if value.get('name') in _TIMED:
      return None
    left_out = _TIMED | {'checksum', 'results'}
    return {k: _untimed(v) for k, v in value.items() if k not in left_out}
  return list(map(_untimed, value)) if isinstance(value, list) else value


def _numbers(training: pathlib.Path, name: str) -> dict[str, Any]:
  """All leaves of the last checkpoint by their checksums; the parameters."""
  step = str(read_complete(training)['step'])
  read = checkpoint_format.read(training / 'checkpoints' / step)
  params = jax.tree.leaves(checkpoint.load_params(training, 'params'))
  return {
    f'{name}: leaves': checkpoint_format.checksums(read),
    f'{name}: parameters': [np.asarray(leaf).tobytes() for leaf in params],
  }
