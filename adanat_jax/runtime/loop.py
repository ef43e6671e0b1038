"""The loop every training stage runs in: resumable, interruptible, checked.

`run_loop` makes one promise: whatever happens to the process, the same command
started again ends with the same state, bit for bit, and the same rows of
metrics (keys under `time/` apart). For that it needs two things from its
caller: `batch_at(step)` must be a pure function of the step, and everything
else that a step depends on must be in the state. Then the number of finished
steps is the data position, and a checkpoint needs nothing more.

One step:
  1. the batch of this step is made and put on the device;
  2. `train_step` is dispatched, and the device works;
  3. meanwhile the metrics of the step before are fetched and checked: a number
     that is not finite stops the run and names the step;
  4. every `log_every` steps those metrics become a row;
  5. every `save_every` steps this step's metrics are checked too, rows are put
     on the disk, and a checkpoint is started;
  6. every `evaluate_every` steps, and after the last, the same is done, then
     the state is evaluated, and the figures stand in the row of that step. An
     evaluation that was cut short is made again from its checkpoint.

With several processes each runs this loop, and the promise holds for all of
them together: they stop after the same step, and process 0 writes the rows.
"""

from collections.abc import Callable, Mapping
import contextlib
import functools
import os
import pathlib
import signal
import time
from typing import Any, TypeVar

import jax
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.runtime import files, metric_writer, processes, state_layout
from adanat_jax.runtime.checkpoint import Checkpointer, NonFiniteError
from adanat_jax.runtime.completion import (
  COMPLETE_FILE,
  is_complete,
  mark_complete,
  read_complete,
)
from adanat_jax.runtime.loop_record import Metrics, Record, require_finite
from adanat_jax.runtime.metric_writer import EVAL_PREFIX, TIME_PREFIX
from adanat_jax.runtime.stopping import Interrupted, StopSignals, StopVote

# What stages need of this module; some of it is made elsewhere.
__all__ = [
  'Interrupted',
  'NonFiniteError',
  'is_complete',
  'read_complete',
  'run_loop',
]

State = TypeVar('State')


def run_loop(
  state: State,
  train_step: Callable[[State, Any, jax.Array], tuple[State, Metrics]],
  batch_at: Callable[[int], Any],
  *,
  num_steps: int,
  directory: str | os.PathLike[str],
  name: str,
  log_every: int,
  save_every: int,
  config_for_meta: Mapping[str, Any] | None = None,
  profile: tuple[int, int] | None = None,
  on_step: Callable[[State, int], None] | None = None,
  evaluate: Callable[[State, int], Mapping[str, float]] | None = None,
  evaluate_every: int = 0,
  final_figures: Callable[[State], Mapping[str, Any]] | None = None,
  tensorboard: bool = True,
  max_to_keep: int = 2,
  keep_every: int | None = None,
  best_of: tuple[str, str] | None = None,
  transfer_guard: str = 'disallow',
) -> State:
  """Trains from the newest checkpoint, or from `state`, to `num_steps`.

  Args:
    state: the initial state, a pytree of arrays (typed keys included). It is
      donated: do not use it afterwards.
    train_step: `(state, batch, step int32[]) -> (state, metrics)`, jitted by
      the caller with `donate_argnums=0`. Metrics are scalars or small arrays.
    batch_at: `(step) -> pytree of arrays`, a pure function; steps count from
      0. Global arrays stay where they are; host arrays, equal in all processes,
      are put on every device of the ambient mesh, or on the default device if
      there is none.
    num_steps: total number of steps, those of earlier runs included.
    directory: the stage's directory.
    name: the stage's name in messages.
    log_every: a row is written after this many steps, the first, and the last.
    save_every: a checkpoint is written after this many steps and at the end.
    config_for_meta: kept in every checkpoint.
    profile: `(first, last)`: steps `first <= step < last` are traced into
      `<directory>/trace`.
    on_step: `(state, finished steps)`, called after every step; it must not
      keep the state, and decides itself what to do when. All processes call
      it, as they call `evaluate` and `final_figures`.
    evaluate: `(state, finished steps) -> figures`, a pure function that may
      take long and must not keep the state. Its figures are written as
      `eval/<name>`; those of process 0 count.
    evaluate_every: after this many steps the state is evaluated, and after the
      last; 0 for the last alone.
    final_figures: figures of the finished state for `complete.json`.
    tensorboard: write TensorBoard files where tensorboardX is installed.
    max_to_keep: number of newest checkpoints that stay.
    keep_every: checkpoints of steps that this divides stay too.
    best_of: `(metric, 'min' or 'max')`: the checkpoint whose own step had the
      best value of this metric stays too, and `complete.json` names it. The
      metric may be an `eval/<name>`.
    transfer_guard: what an implicit copy to the device inside `train_step`
      does: 'disallow', 'log' or 'allow'.

  Returns:
    The state after `num_steps` steps.

  Raises:
    Interrupted: after SIGTERM or Ctrl-C, once this step's state is saved.
    NonFiniteError: if a metric or the state is not finite; no checkpoint of
      that state is written.
    UserError: if the directory holds checkpoints of another shape or of more
      steps than `num_steps`, or if `best_of` is nothing that is measured.
  """
  for field, value in (('log_every', log_every), ('save_every', save_every)):
    if value < 1:
      raise UserError(f'{name}: {field} is {value}, at least 1 is needed')
  if evaluate_every < 0:
    raise UserError(f'{name}: evaluate_every is {evaluate_every}, less than 0')
  if best_of and best_of[0].startswith(EVAL_PREFIX) and evaluate is None:
    raise UserError(f'{name}: best_of is {best_of[0]}, nothing is evaluated')
  directory = files.make_directory(directory)
  state = state_layout.without_weak_types(state)
  meta = {'name': name, 'config': dict(config_for_meta or {})}
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      Checkpointer(
        directory,
        max_to_keep=max_to_keep,
        keep_every=keep_every,
        best_of=best_of,
      )
    )
    restored = checkpoints.restore(state)
    first_step = restored.step if restored else 0
    evaluated = _evaluated(directory, first_step)
    checkpoints.score(evaluated)
    if first_step > num_steps:
      raise UserError(
        f'{directory}: holds a checkpoint of step {first_step}, but only '
        f'{num_steps} steps are asked for'
      )
    if restored:
      # It would stay on the devices as long as the caller does.
      for leaf in jax.tree.leaves(state):
        leaf.delete()
      state = restored.state
    marked = processes.from_first(
      lambda: read_complete(directory) if is_complete(directory) else None
    )
    if marked is not None:
      if restored and marked['step'] == first_step == num_steps:
        return state
      # More steps are asked for, or the last checkpoint is damaged.
      processes.from_first(functools.partial(_remove_marker, directory))

    def to_evaluate(step: int) -> bool:
      due = step == num_steps or (evaluate_every and step % evaluate_every == 0)
      return bool(evaluate is not None and step and due)

    # Saved, but stopped before or in its evaluation: its row is written anew.
    unfinished = to_evaluate(first_step) and first_step not in evaluated
    writer = metric_writer.MetricWriter(
      directory,
      first_step=first_step - int(unfinished),
      tensorboard=tensorboard,
    )
    stack.callback(writer.close)
    progress = metric_writer.Progress(name, num_steps, first_step=first_step)
    stack.callback(progress.close)
    if first_step:
      progress.say(f'{name}: goes on after step {first_step} of {num_steps}')
    record = Record(name, writer, progress, log_every, num_steps)
    finished = first_step

    def save(finished: int, *, hold_row: bool = False) -> None:
      record.check()
      if not hold_row:
        record.write()
      writer.sync()
      checkpoints.save(finished, state, meta, record.latest)

    def write_evaluation(finished: int) -> None:
      assert evaluate is not None
      begun = time.monotonic()
      found = evaluate(state, finished)
      # All decide by the same numbers.
      figures = processes.from_first(
        lambda: {EVAL_PREFIX + key: float(x) for key, x in found.items()}
      )
      require_finite(name, finished, figures)
      checkpoints.score({finished: figures})
      seconds = time.monotonic() - begun
      record.pause(seconds)
      record.write({**figures, f'{TIME_PREFIX}evaluation': seconds})
      writer.sync()

    vote = StopVote()
    with (
      StopSignals() as stop,
      _Trace(directory / 'trace', profile) as trace,
    ):
      if unfinished and restored:
        record.take(first_step, restored.meta.get('metrics', {}))
        write_evaluation(first_step)
      for step in range(first_step, num_steps):
        trace.before(step, state)
        batch, index = state_layout.put((batch_at(step), np.int32(step)))
        before = state_layout.abstract(state) if step == first_step else None
        with (
          jax.transfer_guard_host_to_device(transfer_guard),
          jax.profiler.StepTraceAnnotation(name, step_num=step),
        ):
          state, metrics = train_step(state, batch, index)
        if before is not None:
          state_layout.check_same_layout(before, state_layout.abstract(state))
        record.add(step + 1, metrics)
        if on_step is not None:
          on_step(state, step + 1)
        finished = step + 1
        # Read once: a signal may come between any two lines.
        stopping = vote.after_step(stop.requested)
        evaluating = to_evaluate(finished) and not stopping
        last = finished == num_steps or bool(stopping)
        if finished % save_every == 0 or evaluating or last:
          save(finished, hold_row=evaluating)
        if evaluating:
          # It may take long: with the state saved, being killed costs no step.
          checkpoints.wait()
          write_evaluation(finished)
        if stopping:
          break
      checkpoints.wait()
      stopping = vote.at_end(stop.requested)
      if stopping:
        progress.say(
          f'{name}: {signal.Signals(stopping).name} after step '
          f'{finished} of {num_steps}: saved; the same command goes on'
        )
        raise Interrupted(stopping, finished)
    if num_steps == 0 and not restored:
      save(0)
      checkpoints.wait()
    # Handlers are given back: figures may take long and are made again.
    figures = final_figures(state) if final_figures is not None else {}
    mark_complete(directory, num_steps, figures, checkpoints.best())
  return state


def _evaluated(
  directory: pathlib.Path, last_step: int
) -> dict[int, dict[str, float]]:
  """What evaluations found up to a step, by step, from the rows."""
  rows = processes.from_first(
    lambda: [
      [row['step'], found]
      for row in metric_writer.read_metrics(directory)
      if row['step'] <= last_step
      and (found := {k: v for k, v in row.items() if k.startswith(EVAL_PREFIX)})
    ]
  )
  return dict(rows)


def _remove_marker(directory: pathlib.Path) -> None:
  path = directory / COMPLETE_FILE
  with files.writing(path):
    path.unlink()


class _Trace:
  """A jax.profiler trace of the steps `first <= step < last`, of process 0."""

  def __init__(self, path: pathlib.Path, steps: tuple[int, int] | None):
    self._path = path
    self._steps = (0, 0)
    if steps and processes.process_index() == 0:
      self._steps = steps
    self._running = False

  def __enter__(self) -> '_Trace':
    return self

  def before(self, step: int, state: Any) -> None:
    """Starts or stops the trace; `state` is what the step will work on."""
    first, last = self._steps
    if not self._running and first <= step < last:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._path)
      self._running = True
    elif self._running and step >= last:
      jax.block_until_ready(state)
      self._stop()

  def __exit__(self, *_: object) -> None:
    if self._running:
      self._stop()

  def _stop(self) -> None:
    jax.profiler.stop_trace()
    self._running = False
