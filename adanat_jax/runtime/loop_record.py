"""What a training loop does with the metrics of its steps: check, then write.

A step's metrics are fetched when the next step is on its way, so that nothing
waits for them, and stop the run if they are not finite.
"""

from collections.abc import Mapping
import time
from typing import Any

import jax
import numpy as np

from adanat_jax.runtime import metric_writer
from adanat_jax.runtime.checkpoint import NonFiniteError

Metrics = Mapping[str, Any]


class Record:
  """Checks metrics one step late, and writes the rows that are due.

  Attributes:
    latest: metrics of the last step that was checked.
  """

  def __init__(
    self,
    name: str,
    writer: metric_writer.MetricWriter,
    progress: metric_writer.Progress,
    log_every: int,
    num_steps: int,
  ):
    """Starts the clock.

    Args:
      name: the stage's name in messages.
      writer: what rows go to.
      progress: what shows them.
      log_every: a row is due after this many steps, the first, and the last.
      num_steps: total number of steps.
    """
    self._name = name
    self._writer = writer
    self._progress = progress
    self._log_every = log_every
    self._num_steps = num_steps
    self.latest: Metrics = {}
    self._waiting: tuple[int, Metrics] | None = None
    self._checked: tuple[int, Metrics] | None = None
    self._row_time = self._start = time.monotonic()
    self._row_step: int | None = None

  def add(self, step: int, metrics: Metrics) -> None:
    """Takes the metrics of a step in flight, deals with the one before."""
    self.flush()
    self._waiting = (step, metrics)

  def flush(self) -> None:
    """Checks what is waiting and writes its row if one is due."""
    self.check()
    self.write()

  def check(self) -> None:
    """Waits for the last step's metrics and checks them.

    Raises:
      NonFiniteError: if one of them is not finite.
    """
    if self._waiting is None:
      return
    step, on_device = self._waiting
    self._waiting = None
    metrics = jax.device_get(dict(on_device))
    require_finite(self._name, step, metrics)
    self.latest = metrics
    self._checked = (step, metrics)

  def take(self, step: int, metrics: Metrics) -> None:
    """Takes metrics that were checked by an earlier run."""
    self._checked = (step, metrics)

  def write(self, figures: Metrics | None = None) -> None:
    """Writes the row of the step that was checked last, once.

    Args:
      figures: what else is known of that step; its row is then due.
    """
    if self._checked is None:
      return
    step, metrics = self._checked
    self._checked = None
    due = step in (1, self._num_steps) or step % self._log_every == 0
    if figures or due:
      metrics = {**metrics, **(figures or {})}
      self._writer.write(step, {**metrics, **self._times(step)})
      self._progress.update(step, metrics)
    else:
      self._progress.update(step)

  def pause(self, seconds: float) -> None:
    """Leaves a pause between steps out of the next row's rate."""
    self._row_time += seconds

  def _times(self, step: int) -> dict[str, float]:
    """Returns seconds since the run's start, and per step since the last row.

    The first row of a run also holds the compilation and gives no rate.
    """
    now = time.monotonic()
    times = {metric_writer.TIME_PREFIX + 'elapsed': now - self._start}
    if self._row_step is not None and step > self._row_step:
      seconds = (now - self._row_time) / (step - self._row_step)
      times[metric_writer.TIME_PREFIX + 'seconds_per_step'] = seconds
    self._row_time, self._row_step = now, step
    return times


def require_finite(name: str, step: int, metrics: Metrics) -> None:
  """Raises NonFiniteError if a metric is not finite, and names it."""
  for key, value in metrics.items():
    if not np.isfinite(np.asarray(value, np.float64)).all():
      raise NonFiniteError(
        f'{name}: {key} is {_short(value)} at step {step}; the run '
        'is stopped, the last checkpoint is kept'
      )


def _short(value: Any) -> str:
  """Returns a number as text, or how many of an array's are not finite."""
  array = np.asarray(value, np.float64)
  if array.ndim == 0:
    return str(array)
  return f'not finite in {np.sum(~np.isfinite(array))} of {array.size} places'
