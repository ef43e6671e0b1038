"""Writes a run's metrics as JSON lines, to boards, and to the terminal.

`metrics.jsonl` is the record: one row a line, append-only, flushed after every
row, and valid when cut at any line. On resume it is cut back to the restored
step, so that no step occurs twice. Each row is sealed (`files.seal`): its
`checksum` covers all of it, `time/` too. Rows of earlier versions have none and
get one on resume, so that a file has it in all rows or in none. TensorBoard
files are written beside it if tensorboardX is installed, and Weights & Biases
gets the same if asked for. A terminal gets a progress bar, a file plain lines.
"""

from collections.abc import Mapping, Sequence
import contextlib
import hashlib
import json
import os
import pathlib
import sys
import time
from typing import Any, TextIO

import numpy as np
import PIL.Image

from adanat_jax.errors import UserError
from adanat_jax.runtime import files, processes

TIME_PREFIX = 'time/'
_PAUSE_SECONDS = 10.0
_OWN_KEYS = {'step', 'format', 'checksum'}


class MetricWriter:
  """Appends rows of metrics to a stage's directory.

  Only process 0 writes; on the others every method does nothing.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    first_step: int = 0,
    tensorboard: bool = True,
    wandb: str = '',
  ):
    """Opens `metrics.jsonl` and drops the rows after `first_step`.

    Args:
      directory: the stage's directory; created if missing.
      first_step: number of finished steps.
      tensorboard: also write TensorBoard files, if tensorboardX is importable.
      wandb: a project of Weights & Biases that gets the same; '' for none.

    Raises:
      UserError: if there is a project, and no access to it.
    """
    self._file: TextIO | None = None
    # They have the methods of tensorboardX's SummaryWriter.
    self._boards: list[Any] = []
    if processes.process_index() != 0:
      return
    directory = files.make_directory(directory)
    self._directory = directory
    if wandb:
      self._boards.append(_WandbBoard(directory, wandb))
    path = directory / 'metrics.jsonl'
    cut_back(path, first_step)
    with files.writing(path):
      self._file = path.open('a', encoding='utf-8')
    if tensorboard:
      self._boards += _open_board(directory / 'tensorboard', first_step)

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Appends one row `{"step": step, **metrics}`.

    Args:
      step: number of finished steps; must not decrease from row to row.
      metrics: scalars and small arrays by name. Keys that start with `time/`
        hold wall-clock times, which differ from run to run.
    """
    if self._file is None:
      return
    if taken := _OWN_KEYS & metrics.keys():
      raise ValueError(f"no metric may be named {taken}, the row's own key")
    with files.writing(self._file.name):
      self._file.write(_line({'step': step, **metrics}))
      self._file.flush()
    for board in self._boards:
      for name, value in metrics.items():
        array = np.asarray(value)
        if array.dtype.kind not in 'biuf' and array.dtype.name != 'bfloat16':
          continue
        for index, item in np.ndenumerate(array):
          suffix = '_'.join(map(str, index))
          full = f'{name}/{suffix}' if suffix else name
          board.add_scalar(full, float(item), step)

  def show_pictures(self, step: int) -> None:
    """Adds the pictures `*/<step>.png` of the stage to the boards."""
    for board in self._boards:
      for path in sorted(self._directory.glob(f'*/{step:07d}.png')):
        with PIL.Image.open(path) as picture:
          pixels = np.asarray(picture.convert('RGB'))
        name = path.parent.name
        board.add_image(name, pixels, step, dataformats='HWC')

  def sync(self) -> None:
    """Flushes all rows to the disk; called before their step is saved."""
    if self._file is not None:
      with files.writing(self._file.name):
        os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the files; further writes do nothing."""
    if self._file is not None:
      # `write` has already reported what could not be written.
      with contextlib.suppress(OSError):
        self._file.close()
      self._file = None
    while self._boards:
      self._boards.pop().close()


def cut_back(path: str | os.PathLike[str], step: int) -> None:
  """Drops rows after `step` and lines without a row, and tells of the latter.

  The `metrics.jsonl` need not exist.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return
  kept = ''.join(_line(row) for row in _read(path) if row['step'] <= step)
  if kept.encode() != files.read_bytes(path):
    files.write_text(path, kept)


def read_metrics(
  directory: str | os.PathLike[str], *, tell: bool = True
) -> list[dict[str, Any]]:
  """Returns the whole rows of a stage's `metrics.jsonl`, oldest first.

  Args:
    directory: the stage's directory.
    tell: say how many rows are damaged.
  """
  path = pathlib.Path(directory) / 'metrics.jsonl'
  return _read(path, tell) if path.exists() else []


def _line(row: Mapping[str, Any]) -> str:
  return json.dumps(files.seal(row), allow_nan=False) + '\n'


def _read(path: pathlib.Path, tell: bool = True) -> list[dict[str, Any]]:
  """Returns the rows of a file, without their seals."""
  # What a kill has left of a last line is no damage.
  lines = [
    line
    for line in files.read_bytes(path).splitlines(keepends=True)
    if line.endswith(b'\n')
  ]
  sealed = any(map(_row_of, filter(_is_sealed, lines)))
  rows = [_row_of(x) for x in lines if _is_sealed(x) or not sealed]
  whole = list(filter(None, rows))
  if tell and (damaged := len(lines) - len(whole)):
    processes.say(
      f'{path}: {damaged} of {len(lines)} rows are damaged and left out'
    )
  return whole


def _is_sealed(line: bytes) -> bool:
  return b'"checksum": ' in line


class Progress:
  """A progress bar on a terminal, else plain lines; process 0 only."""

  def __init__(
    self,
    name: str,
    num_steps: int,
    *,
    first_step: int = 0,
    shown: Sequence[str] = (),
  ):
    """Starts the clock.

    Args:
      name: shown before the numbers, e.g. the stage.
      num_steps: total number of steps.
      first_step: number of steps finished by earlier runs.
      shown: the metrics that come before others, in their order.
    """
    self._name = name
    self._num_steps = num_steps
    self._first = tuple(shown)
    self._start = self._last_line = time.monotonic()
    self._timed_from: int | None = None
    self._shown = processes.process_index() == 0
    self._bar: Any = None
    if self._shown and sys.stderr.isatty():
      try:
        import tqdm  # pylint: disable=import-outside-toplevel
      except ImportError:
        return
      self._bar = tqdm.tqdm(
        total=num_steps, initial=first_step, desc=name, dynamic_ncols=True
      )

  def update(self, step: int, metrics: Mapping[str, Any] | None = None) -> None:
    """Shows that `step` steps are finished, and four of the scalars."""
    if not self._shown:
      return
    text = _describe(metrics or {}, self._first)
    if self._bar is not None:
      if text:
        self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    if self._timed_from is None:
      # The first step includes compilation, which would distort the rate.
      self._timed_from, self._start = step, now
    if now - self._last_line < _PAUSE_SECONDS and step < self._num_steps:
      return
    self._last_line = now
    parts = [f'{self._name} {step}/{self._num_steps}']
    if step > self._timed_from:
      rate = (step - self._timed_from) / max(now - self._start, 1e-9)
      left = (self._num_steps - step) / rate
      parts += [f'{rate:.3g} steps/s', f'ETA {format_seconds(left)}']
    print('  '.join([*parts, text]).rstrip(), flush=True)

  def say(self, line: str) -> None:
    """Prints one line without breaking the bar."""
    if not self._shown:
      return
    if self._bar is not None:
      self._bar.write(line)
    else:
      print(line, flush=True)

  def close(self) -> None:
    """Closes the bar."""
    if self._bar is not None:
      self._bar.close()
      self._bar = None


def format_seconds(seconds: float) -> str:
  """Returns a duration as text: '42s', '3m05s', '2h07m'."""
  whole = round(seconds)
  if whole < 60:
    return f'{whole}s'
  if whole < 3600:
    return f'{whole // 60}m{whole % 60:02d}s'
  return f'{whole // 3600}h{whole % 3600 // 60:02d}m'


def _describe(metrics: Mapping[str, Any], first: Sequence[str]) -> str:
  """Returns 'loss 1.23  accuracy 0.5': four scalars, those of `first` first."""
  shown = [
    f'{name} {float(np.asarray(metrics[name])):.4g}'
    for name in dict.fromkeys([*first, *metrics])
    if name in metrics
    and not name.startswith(TIME_PREFIX)
    and np.ndim(metrics[name]) == 0
  ]
  return '  '.join(shown[:4])


def _row_of(line: bytes) -> dict[str, Any] | None:
  """Returns the row of a line, or None if it holds none."""
  try:
    return files.parse_json(line, {'step': int})
  except ValueError:
    return None


def _open_board(path: pathlib.Path, first_step: int) -> list[Any]:
  """A tensorboardX writer; none if it is not installed."""
  try:
    import tensorboardX  # pylint: disable=import-outside-toplevel
  except ImportError:
    return []
  purge = first_step + 1
  return [tensorboardX.SummaryWriter(logdir=str(path), purge_step=purge)]


class _WandbBoard:
  """A run of Weights & Biases, the same one when its stage is continued."""

  def __init__(self, directory: pathlib.Path, project: str):
    try:
      import wandb  # pylint: disable=import-outside-toplevel
    except ImportError as error:
      raise UserError(
        f'config.wandb={project}: wandb is not installed; pip install wandb'
      ) from error
    self._wandb = wandb
    whole = directory.resolve()
    try:
      self._run = wandb.init(
        project=project,
        name='/'.join(whole.parts[-2:]),
        id=hashlib.sha256(str(whole).encode()).hexdigest()[:16],
        dir=str(whole),
        resume='allow',
        settings=wandb.Settings(silent=True, console='off'),
      )
    except wandb.Error as error:
      reason = ' '.join(str(error).split())
      raise UserError(
        f'config.wandb={project}: {reason}; WANDB_MODE=offline needs no account'
      ) from error

  def add_scalar(self, name: str, value: float, step: int) -> None:
    self._run.log({name: value}, step=step)

  def add_image(
    self, name: str, pixels: np.ndarray, step: int, dataformats: str
  ) -> None:
    del dataformats  # Always HWC.
    self._run.log({name: self._wandb.Image(pixels)}, step=step)

  def close(self) -> None:
    self._run.finish()
