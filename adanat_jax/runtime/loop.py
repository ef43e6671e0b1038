"""The loop of every training: resumable, interruptible, checked.

`run_loop` guarantees that, whatever happens to the process, running the same
command again ends with the same state, bit for bit, and the same rows of
metrics (except `time/...`). For this `batch_at(step)` must be a pure function
of the step, and everything else that a step depends on must be in the state.
Then the number of finished steps is the data position, and a checkpoint needs
nothing more.

One step:
  1. make the batch and put it on the device;
  2. dispatch `train_step`;
  3. while the device works, fetch and check the metrics of the step before: a
     value that is not finite stops the run and names the step;
  4. every `log_every` steps, write those metrics as a row;
  5. every `save_every` steps, check this step's metrics too, flush the rows to
     the disk, and start a checkpoint;
  6. every `evaluate_every` steps and after the last, do the same, then evaluate
     the state and add the results to the row of that step. An interrupted
     evaluation is repeated from its checkpoint.

With several processes each runs this loop. They stop after the same step, and
process 0 writes the rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import functools
import os
import pathlib
import signal
import time
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.runtime import files, leaves, metric_writer, processes, sharding
from adanat_jax.runtime.checkpoint import (
  EVAL_PREFIX,
  Checkpointer,
  NonFiniteError,
)
from adanat_jax.runtime.journal import (
  COMPLETE_FILE,
  is_complete,
  mark_complete,
  read_complete,
  warn,
)
from adanat_jax.runtime.metric_writer import TIME_PREFIX
from adanat_jax.runtime.stopping import Interrupted, StopSignals, StopVote

State = TypeVar('State')
Metrics = Mapping[str, Any]


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
  evaluate: Callable[[State, int], Mapping[str, float]] | None = None,
  evaluate_every: int = 0,
  final_figures: Callable[[State], Mapping[str, Any]] | None = None,
  warnings_of: Callable[[Metrics], Sequence[str]] = lambda figures: (),
  tensorboard: bool = True,
  wandb: str = '',
  shown: Sequence[str] = ('loss',),
  keep_every: int | None = None,
  best_of: tuple[str, str] | None = None,
  begin: Callable[[State], State] | None = None,
) -> State:
  """Trains from the newest checkpoint, or from `state`, to `num_steps`.

  Args:
    state: the initial state, a pytree of arrays (typed keys included). It is
      donated: do not use it afterwards.
    train_step: `(state, batch, step int32[]) -> (state, metrics)`, jitted by
      the caller with `donate_argnums=0`; implicit copies to the device are not
      allowed in it. Metrics are scalars or small arrays.
    batch_at: `(step) -> pytree of arrays`, a pure function; steps count from
      0. Global arrays stay where they are; host arrays, equal in all processes,
      are replicated over the ambient mesh, or put on the default device if
      there is no mesh.
    num_steps: total number of steps, including those of earlier runs.
    directory: the stage's directory.
    name: the stage's name in messages.
    log_every: a row is written every so many steps, after the first, and after
      the last.
    save_every: a checkpoint is written every so many steps and after the last.
    config_for_meta: JSON values by name, kept in every checkpoint.
    profile: `(first, last)`: steps `first <= step < last` are traced into
      `<directory>/trace`.
    evaluate: `(state, finished steps) -> results`, a pure function that may
      take long and must not keep the state. All processes call it, as well as
      `final_figures`; the results of process 0 are written as `eval/<name>`.
    evaluate_every: the state is evaluated every so many steps and after the
      last; 0 for the last only.
    final_figures: returns results of the finished state for `complete.json`.
    warnings_of: `results -> sentences` about what makes them doubtful. They are
      said after the first evaluation that has any, and at the end, and those
      of `final_figures` are kept in `complete.json`.
    tensorboard: write TensorBoard files if tensorboardX is installed.
    wandb: the project of Weights & Biases that gets the same; '' for none.
    shown: the metrics that the progress line shows before others.
    keep_every: see `Checkpointer`.
    best_of: see `Checkpointer`; `complete.json` names the best checkpoint.
    begin: `initial state -> state to start from`, of the same layout; called
      only where there is no checkpoint.

  Returns:
    The state after `num_steps` steps.

  Raises:
    Interrupted: after SIGTERM or Ctrl-C, once this step's state is saved.
    NonFiniteError: if a metric or the state is not finite; no checkpoint of
      that state is written.
    UserError: if the directory holds checkpoints of another shape or of more
      steps than `num_steps`, or if `best_of` names an unknown metric.
  """
  for field, value in (('log_every', log_every), ('save_every', save_every)):
    if value < 1:
      raise UserError(f'{name}: {field} is {value}, at least 1 is needed')
  if evaluate_every < 0:
    raise UserError(f'{name}: evaluate_every is {evaluate_every}, less than 0')
  if best_of and best_of[0].startswith(EVAL_PREFIX) and evaluate is None:
    raise UserError(f'{name}: best_of is {best_of[0]}, nothing is evaluated')
  directory = files.make_directory(directory)
  state = _without_weak_types(state)
  meta = {'name': name, 'config': dict(config_for_meta or {})}
  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      Checkpointer(
        directory,
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
    first = state
    if restored:
      first = restored.state
    elif begin is not None:
      first = begin(state)
    kept = {*map(id, jax.tree.leaves(first))}
    # The caller's reference would keep it on the devices.
    for leaf in jax.tree.leaves(state):
      if id(leaf) not in kept:
        leaf.delete()
    state = first
    marked = processes.from_first(
      lambda: read_complete(directory) if is_complete(directory) else None
    )
    if marked is not None:
      if restored and marked['step'] == first_step == num_steps:
        return state
      # There are more steps to do, or the last checkpoint is damaged.
      processes.from_first(functools.partial(_remove_marker, directory))

    def to_evaluate(step: int) -> bool:
      due = step == num_steps or (evaluate_every and step % evaluate_every == 0)
      return bool(evaluate is not None and step and due)

    # Saved, but stopped before its evaluation ended: rewrite this step's row.
    unfinished = to_evaluate(first_step) and first_step not in evaluated
    writer = metric_writer.MetricWriter(
      directory,
      first_step=first_step - int(unfinished),
      tensorboard=tensorboard,
      wandb=wandb,
    )
    stack.callback(writer.close)
    progress = metric_writer.Progress(
      name, num_steps, first_step=first_step, shown=shown
    )
    stack.callback(progress.close)
    if first_step:
      progress.say(f'{name}: continues after step {first_step} of {num_steps}')
    if first_step < num_steps:
      progress.say(f'{name}: compiling ...')
    record = _Record(name, writer, progress, log_every, num_steps)
    finished = first_step
    warned = False

    def save(finished: int, *, hold_row: bool = False) -> None:
      record.check()
      if not hold_row:
        record.write()
      writer.sync()
      checkpoints.save(finished, state, meta, record.latest)

    def write_evaluation(finished: int) -> None:
      nonlocal warned
      assert evaluate is not None
      begun = time.monotonic()
      found = evaluate(state, finished)
      # All processes decide by the same values.
      figures = processes.from_first(
        lambda: {EVAL_PREFIX + key: float(x) for key, x in found.items()}
      )
      _require_finite(name, finished, figures)
      checkpoints.score({finished: figures})
      seconds = time.monotonic() - begun
      record.pause(seconds)
      record.write({**figures, f'{TIME_PREFIX}evaluation': seconds})
      writer.show_pictures(finished)
      writer.sync()
      if not warned and finished < num_steps:
        warnings = warnings_of(found)
        warned = bool(warnings)
        for warning in warnings:
          progress.say(f'{name}: warning: {warning}')

    vote = StopVote()
    with (
      StopSignals() as stop,
      _traced(directory / 'trace', profile) as before_step,
    ):
      if unfinished and restored:
        record.take(first_step, restored.meta.get('metrics', {}))
        write_evaluation(first_step)
      for step in range(first_step, num_steps):
        before_step(step, state)
        batch, index = _put((batch_at(step), np.int32(step)))
        before = _abstract(state) if step == first_step else None
        with (
          jax.transfer_guard_host_to_device('disallow'),
          jax.profiler.StepTraceAnnotation(name, step_num=step),
        ):
          state, metrics = train_step(state, batch, index)
        if before is not None:
          _check_same_layout(before, _abstract(state))
        record.add(step + 1, metrics)
        finished = step + 1
        # Read once: a signal may arrive between any two lines.
        stopping = vote.after_step(stop.requested)
        evaluating = to_evaluate(finished) and not stopping
        last = finished == num_steps or bool(stopping)
        if finished % save_every == 0 or evaluating or last:
          save(finished, hold_row=evaluating)
        if evaluating:
          # An evaluation may take long: once the state is on the disk, being
          # killed costs no step.
          checkpoints.wait()
          write_evaluation(finished)
        if stopping:
          break
      checkpoints.wait()
      stopping = vote.at_end(stop.requested)
      if stopping:
        progress.say(
          f'{name}: {signal.Signals(stopping).name} after step {finished} of '
          f'{num_steps}: saved; the same command continues the run'
        )
        raise Interrupted(stopping, finished)
    if num_steps == 0 and not restored:
      save(0)
      checkpoints.wait()
    # The signals' handlers are restored: this may take long and is repeatable.
    figures = final_figures(state) if final_figures is not None else {}
    warnings = warnings_of(figures)
    warn(name, warnings)
    checkpoints.tidy()
    mark_complete(directory, num_steps, figures, checkpoints.best(), warnings)
  return state


def _evaluated(
  directory: pathlib.Path, last_step: int
) -> dict[int, dict[str, float]]:
  """Reads from the rows the results of evaluations up to a step, by step."""
  rows = processes.from_first(
    lambda: [
      [row['step'], found]
      for row in metric_writer.read_metrics(directory, tell=False)
      if row['step'] <= last_step
      and (found := {k: v for k, v in row.items() if k.startswith(EVAL_PREFIX)})
    ]
  )
  return dict(rows)


def _remove_marker(directory: pathlib.Path) -> None:
  path = directory / COMPLETE_FILE
  with files.writing(path):
    path.unlink()


class _Record:
  """Checks metrics one step late and writes the rows that are due."""

  def __init__(
    self,
    name: str,
    writer: metric_writer.MetricWriter,
    progress: metric_writer.Progress,
    log_every: int,
    num_steps: int,
  ):
    self._name = name
    self._writer = writer
    self._progress = progress
    self._log_every = log_every
    self._num_steps = num_steps
    self.latest: Metrics = {}  # Of the last step that was checked.
    self._waiting: tuple[int, Metrics] | None = None
    self._checked: tuple[int, Metrics] | None = None
    self._row_time = self._start = time.monotonic()
    self._row_step: int | None = None

  def add(self, step: int, metrics: Metrics) -> None:
    """Takes a dispatched step's metrics; checks and writes those before."""
    self.check()
    self.write()
    self._waiting = (step, metrics)

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
    _require_finite(self._name, step, metrics)
    self.latest = metrics
    self._checked = (step, metrics)

  def take(self, step: int, metrics: Metrics) -> None:
    """Takes metrics that an earlier run has checked."""
    self._checked = (step, metrics)

  def write(self, figures: Metrics | None = None) -> None:
    """Writes the row of the last checked step, if due and not yet written.

    With figures, which are added to it, the row is due.
    """
    if self._checked is None:
      return
    step, metrics = self._checked
    self._checked = None
    due = step in (1, self._num_steps) or step % self._log_every == 0
    if figures or due:
      metrics = {**metrics, **(figures or {})}
      self._writer.write(step, {**metrics, **self._times(step)})
      self._progress.update(step, {**(figures or {}), **metrics})
    else:
      self._progress.update(step)

  def pause(self, seconds: float) -> None:
    """Excludes a pause between steps from the next row's rate."""
    self._row_time += seconds

  def _times(self, step: int) -> dict[str, float]:
    """Returns seconds since the run's start, and per step since the last row.

    The first row of a run has no rate, as its time includes compilation.
    """
    now = time.monotonic()
    times = {metric_writer.TIME_PREFIX + 'elapsed': now - self._start}
    if self._row_step is not None and step > self._row_step:
      seconds = (now - self._row_time) / (step - self._row_step)
      times[metric_writer.TIME_PREFIX + 'seconds_per_step'] = seconds
    self._row_time, self._row_step = now, step
    return times


@contextlib.contextmanager
def _traced(
  path: pathlib.Path, steps: tuple[int, int] | None
) -> Iterator[Callable[[int, Any], None]]:
  """Traces the steps `first <= step < last` by jax.profiler, in process 0.

  Yields a function to call before every step, with its number and input state.
  """
  first, last = steps if steps and processes.process_index() == 0 else (0, 0)
  is_running = False

  def before(step: int, state: Any) -> None:
    nonlocal is_running
    if (first <= step < last) == is_running:
      return
    jax.block_until_ready(state)
    if is_running:
      jax.profiler.stop_trace()
    else:
      jax.profiler.start_trace(path)
    is_running = not is_running

  try:
    yield before
  finally:
    if is_running:
      jax.profiler.stop_trace()


def _without_weak_types(state: State) -> State:
  """Makes every leaf an array of a fixed type.

  A Python number in a state is weakly typed: its type promotion would differ
  before and after a restore, and so would the runs.
  """

  def fix(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.aval.weak_type:
      return leaf
    return _put(np.asarray(leaf, dtype=jnp.result_type(leaf)))

  return jax.tree.map(fix, state)


def _put(tree: Any) -> Any:
  """Puts host arrays, equal in all processes, on the devices of a step.

  They are replicated over the ambient mesh, or over all devices if there are
  other processes, or put on the default device. Global arrays stay.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    if not processes.is_shared():
      return jax.device_put(tree)
    mesh = sharding.make_mesh()
  everywhere = NamedSharding(mesh, PartitionSpec())

  def place(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array):
      return leaf
    if not processes.is_shared():
      return jax.device_put(leaf, everywhere)
    # `device_put` would compare the processes' values at every step.
    return jax.make_array_from_process_local_data(everywhere, np.asarray(leaf))

  return jax.tree.map(place, tree)


def _check_same_layout(before: Any, after: Any) -> None:
  """Raises ValueError if a step changes the layout of the state's leaves.

  A restored state has the layout of the initial one. If a step returned another
  layout, runs with and without a restart would be different programs.
  """
  for path in [*before, *after]:
    old, new = before.get(path), after.get(path)
    if (
      old is None
      or new is None
      or (old.shape, old.dtype, old.weak_type)
      != (new.shape, new.dtype, new.weak_type)
      or not old.sharding.is_equivalent_to(new.sharding, len(old.shape))
    ):
      raise ValueError(
        'train_step must return a state of the layout it takes (dtype, shape, '
        f'no weak type, sharding): {path} was {old}, is {new}'
      )


def _abstract(state: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the leaves by name, without their values."""
  return {
    path: jax.ShapeDtypeStruct(
      leaf.shape,
      leaf.dtype,
      sharding=leaf.sharding,
      weak_type=leaf.aval.weak_type,
    )
    for path, leaf in leaves.by_name(state).items()
  }


def _require_finite(name: str, step: int, metrics: Metrics) -> None:
  """Raises NonFiniteError, naming the metric, if one is not finite."""
  for key, value in metrics.items():
    if not np.isfinite(np.asarray(value, np.float64)).all():
      raise NonFiniteError(
        f'{name}: {key} is {_short(value)} at step {step}; the run '
        'is stopped, the last checkpoint is kept'
      )


def _short(value: Any) -> str:
  """Returns a scalar as text, or how many of an array are not finite."""
  array = np.asarray(value, np.float64)
  if array.ndim == 0:
    return str(array)
  return f'not finite in {np.sum(~np.isfinite(array))} of {array.size} places'
