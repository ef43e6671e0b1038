"""Saves and restores the checkpoints of a stage, in a thin layer over Orbax.

A checkpoint is one directory `<stage>/checkpoints/<step>` with the items
`state`, the whole train state, and `meta` (see `checkpoint_format`). It becomes
visible by one rename, after all of it is written.

Order of restoring, used by `adanat_jax.runtime.loop.run_loop`:
  1. the newest checkpoint of the stage's own directory;
  2. if that one is damaged, a warning names it, it is moved to
     `checkpoints.damaged`, and the one before it is used;
  3. if there is none, the caller's initial state.
The number of devices or processes may differ from that when saving. Each
process reads its own part; a checkpoint that one cannot read counts as damaged
for all. `load_params` reads weights of a finished stage and writes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import threading
from typing import Any

from absl import logging
import orbax.checkpoint as ocp

from adanat_jax.errors import UserError, WriteError
from adanat_jax.runtime import checkpoint_format, files, leaves, processes
from adanat_jax.runtime.journal import (
  COMPLETE_FILE,
  is_complete,
  read_complete,
)

# What the names of measured figures begin with: the best state may be chosen by
# one of them.
EVAL_PREFIX = 'eval/'

# The newest checkpoints that are kept: if the last one is damaged, the other is
# used.
_NUM_KEPT = 2

# How long a save may take; failed or dead processes are noticed earlier.
_TIMEOUT_SECONDS = 1200

_instances = itertools.count()


class NonFiniteError(UserError):
  """A metric or a state became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """A restored checkpoint: number of finished steps, state and meta."""

  step: int
  state: Any
  meta: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Step:
  """What Orbax's policies ask about a checkpoint."""

  step: int


class Checkpointer:
  """Saves and restores the states of one stage, asynchronously."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    keep_every: int | None = None,
    best_of: tuple[str, str] | None = None,
  ):
    """Opens `<directory>/checkpoints` and removes half-written checkpoints.

    Args:
      directory: the stage's directory; created if missing.
      keep_every: also keep the checkpoints of steps divisible by this.
      best_of: `(metric, 'min' or 'max')`: also keep the checkpoint with the
        smallest or largest value of this metric. `score` gets the values of
        metrics `eval/...`, `save` those of all others.
    """
    if keep_every is not None and keep_every < 1:
      raise UserError(f'keep_every: {keep_every} given, at least 1 is needed')
    managers = ocp.checkpoint_managers
    policies: list[Any] = [managers.LatestN(_NUM_KEPT)]
    self._policy = managers.AnyPreservationPolicy(policies)
    if keep_every is not None:
      policies.append(managers.EveryNSteps(keep_every))
    self._best = None if best_of is None else _Best(*best_of)
    if self._best is not None:
      policies.append(self._best)
    self._path = files.make_directory(
      pathlib.Path(directory).absolute() / 'checkpoints'
    )
    logging.get_absl_logger().addFilter(_without_traces)
    waiting = ocp.options.AsyncOptions(
      timeout_secs=_TIMEOUT_SECONDS,
      barrier_sync_fn=(_SaveBarrier() if processes.is_shared() else None),
    )
    self._manager = ocp.CheckpointManager(
      self._path,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._policy,
        cleanup_tmp_directories=True,
        async_options=waiting,
      ),
      item_names=('state', 'meta'),
    )
    if self._best is not None:
      self._best.look_up(list(self._manager.all_steps()), self._path)

  def save(
    self,
    step: int,
    state: Any,
    meta: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
  ) -> None:
    """Starts saving; returns once the state may be changed or donated.

    Args:
      step: number of finished steps.
      state: a pytree of arrays; typed PRNG keys are fine.
      meta: JSON values by name; `checkpoint_format.build` adds more.
      metrics: of this step; kept in the meta, and read by `best_of`.

    Raises:
      NonFiniteError: if a leaf holds NaN or infinity. Nothing is saved.
      UserError: if this checkpoint or the one before it cannot be written, or
        if `metrics` lacks the metric of `best_of`.
    """
    metrics = dict(metrics or {})
    if self._best is not None and not self._best.is_evaluated:
      self._best.add(step, metrics)
    meta = {**meta, 'metrics': metrics}
    examined = leaves.examine(state)
    for name, leaf in examined.items():
      if not leaf.finite:
        raise NonFiniteError(
          f'the state is not finite after step {step}: {name} holds NaN or '
          'infinity; it is not saved, the last checkpoint is kept'
        )
    self.wait()
    processes.from_first(self._check_permission)
    with files.writing(self._path):
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          meta=ocp.args.JsonSave(checkpoint_format.build(step, meta, examined)),
        ),
        force=True,
      )
    if not saved:
      raise RuntimeError(f'{self._path}: step {step} was not saved')

  def score(self, evaluations: Mapping[int, Mapping[str, Any]]) -> None:
    """Takes metrics `eval/...` by step, measured after saving.

    Raises:
      UserError: if they lack the metric of `best_of`.
    """
    if self._best is not None and self._best.is_evaluated:
      for step, figures in evaluations.items():
        self._best.add(step, figures)

  def best(self) -> dict[str, Any] | None:
    """Returns step, metric and value of the best checkpoint, if known."""
    if self._best is None:
      return None
    return self._best.choose(self._manager.all_steps())

  def _check_permission(self) -> None:
    """Raises WriteError if no checkpoint can be created.

    Process 0 creates it in the background; if that fails, Orbax lets the other
    processes wait ten minutes. So all check first.
    """
    if not os.access(self._path, os.W_OK | os.X_OK):
      raise WriteError(f'{self._path}: cannot be written: Permission denied')

  def wait(self) -> None:
    """Blocks until the last save is on the disk.

    Raises:
      UserError: in all processes, if one could not write its part.
    """
    with files.writing(self._path), _own_errors():
      self._manager.wait_until_finished()

  def restore(self, target: Any) -> Restored | None:
    """Restores the newest good checkpoint; None if there is none.

    Args:
      target: a pytree of arrays (or `jax.ShapeDtypeStruct`s with shardings)
        of the same structure; the restored arrays get its shardings.

    Raises:
      UserError: if the newest good checkpoint has other leaves, shapes or
        types than `target`; names the first that differs.
    """
    steps = processes.from_first(lambda: list(self._manager.all_steps()))
    for step in sorted(steps, reverse=True):
      path = self._path / str(step)
      try:
        state, meta = checkpoint_format.read_state(path, target)
      except checkpoint_format.DamagedError as error:
        self._set_aside(path, error)
        continue
      return Restored(step=step, state=state, meta=meta)
    return None

  def tidy(self) -> None:
    """Deletes what is not kept, once all metrics are known.

    A save does so, too; but a kill after the last save may leave a checkpoint
    of which only some files are deleted.
    """
    self.wait()

    def delete() -> None:
      steps = [_Step(int(step)) for step in sorted(self._manager.all_steps())]
      context = ocp.checkpoint_managers.PreservationContext()
      kept = self._policy.should_preserve(steps, context=context)
      with files.writing(self._path):
        for step, is_kept in zip(steps, kept, strict=True):
          if not is_kept:
            shutil.rmtree(self._path / str(step.step))

    processes.from_first(delete)
    self._manager.reload()

  def _set_aside(self, path: pathlib.Path, error: Exception) -> None:
    """Moves a damaged checkpoint away, so that its step can be saved again."""
    damaged = self._path.with_name('checkpoints.damaged')

    def move() -> None:
      # Do not overwrite an earlier damaged one of the same step.
      names = itertools.chain(
        (path.name,), (f'{path.name}-{i}' for i in itertools.count(2))
      )
      place = next(p for n in names if not (p := damaged / n).exists())
      logging.warning(
        'checkpoint %s is damaged (%s); it is moved to %s, and the one before '
        'it is used',
        path,
        error,
        place,
      )
      files.make_directory(damaged)
      with files.writing(damaged):
        path.rename(place)

    processes.from_first(move)
    self._manager.reload()

  def close(self) -> None:
    """Waits for the last save and frees the threads."""
    with files.writing(self._path), _own_errors():
      self._manager.close()

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
    try:
      self.close()
    except UserError:
      # The first error says more than a save that fails because of it.
      if kind is None:
        raise


class _Best:
  """A preservation policy for Orbax that keeps the best checkpoint.

  Orbax's own policy stores the metric in a file beside the state and does not
  open the directory if that file is damaged.
  """

  def __init__(self, metric: str, mode: str):
    if mode not in ('min', 'max'):
      raise UserError(f"best_of: {mode!r} given, it must be 'min' or 'max'")
    self._metric = metric
    self._sign = 1.0 if mode == 'min' else -1.0
    self._scores: dict[int, float] = {}
    self.is_evaluated = metric.startswith(EVAL_PREFIX)

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    """Returns for each checkpoint whether it is the best of them."""
    del context
    best = self._best_step([checkpoint.step for checkpoint in checkpoints])
    return [checkpoint.step == best for checkpoint in checkpoints]

  def choose(self, steps: Sequence[int]) -> dict[str, Any] | None:
    """Returns the best of these steps, with the metric's name and value."""
    step = self._best_step(steps)
    if step is None:
      return None
    value = self._sign * self._scores[step]
    return {'step': step, 'metric': self._metric, 'value': value}

  def _best_step(self, steps: Sequence[int]) -> int | None:
    known = [step for step in steps if step in self._scores]
    # The newest of equal ones.
    return min(known, key=lambda s: (self._scores[s], -s), default=None)

  def look_up(self, steps: Sequence[int], directory: pathlib.Path) -> None:
    """Reads the metric of the existing checkpoints."""

    def read() -> list[tuple[int, float]]:
      found = []
      for step in steps:
        try:
          with checkpoint_format.quiet():
            metrics = checkpoint_format.read(directory / str(step))['metrics']
          found.append((step, float(metrics[self._metric])))
        except Exception:  # Damaged: `restore` reports it if it gets there.
          continue
      return found

    for step, value in processes.from_first(read):
      self._scores[step] = self._sign * value

  def add(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes the metric of the checkpoint of `step`."""
    if self._metric not in metrics:
      raise UserError(
        f'best_of: {self._metric!r} is no metric of step {step}; there are '
        f'{", ".join(sorted(metrics)) or "none"}'
      )
    self._scores[step] = self._sign * float(metrics[self._metric])


def load_params(
  directory: str | os.PathLike[str],
  field: str,
  target: Any = None,
  *,
  best: bool = False,
) -> Any:
  """Reads one field of a finished stage's last state, and no other.

  Args:
    directory: the stage's directory, which holds `checkpoints`.
    field: name of the state's field, e.g. 'ema'; 'a/b' is the field `b` of `a`.
    target: pytree of arrays or `jax.ShapeDtypeStruct`s that the field must
      match and whose shardings it gets; None for nested dicts as saved, if the
      field consists of dicts. A leaf without a sharding is replicated over the
      ambient mesh, or put on the first device if there is no mesh.
    best: read the checkpoint that the training's `best_of` chose, if any,
      instead of the last.

  Returns:
    The field's pytree of arrays.

  Raises:
    UserError: if the stage has not finished or has no such field, if the field
      differs from `target`, or if the checkpoint is damaged.
  """
  with _last_checkpoint(directory, best) as path:
    return checkpoint_format.read_state(path, target, field)[0]


def read_layouts(directory: str | os.PathLike[str]) -> dict[str, str]:
  """Type and shape of every leaf of a finished stage's last state, by name.

  Such as 'float32[2,3]' of 'params/a/kernel'. Errors are those of
  `load_params`.
  """
  return checkpoint_format.layouts(read_meta(directory))


def load_leaves(
  directory: str | os.PathLike[str], target: Mapping[str, Any]
) -> dict[str, Any]:
  """Reads some leaves of a finished stage's last state, by their full names.

  They must lie in nested dicts. `target`, by name, and errors are as for
  `load_params`.
  """
  if not target:
    return {}
  with _last_checkpoint(directory) as path:
    tree = leaves.nested(target)
    found = checkpoint_format.read_state(path, tree, partial=True)[0]
  return leaves.by_name(found)


def saved_shapes(meta: Mapping[str, Any], field: str) -> dict[str, Any]:
  """A field as `jax.ShapeDtypeStruct`s in nested dicts, from `read_meta`."""
  saved = checkpoint_format.layouts(meta, field)
  return leaves.nested({k: leaves.of_layout(x) for k, x in saved.items()})


def digest_params(directory: str | os.PathLike[str], field: str) -> str:
  """Returns a digest of one field of a finished stage's last state.

  It reads the checkpoint's meta only, not the arrays. Arguments and errors are
  those of `load_params`.

  Returns:
    16 hexadecimal digits, a hash of the leaves' names, layouts and checksums.
  """
  saved = checkpoint_format.below(read_meta(directory), field)
  if not saved:
    raise UserError(f'{directory}: no field {field!r}')
  text = json.dumps(saved, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_meta(
  directory: str | os.PathLike[str], *, best: bool = False
) -> dict[str, Any]:
  """Returns the meta of a finished stage's state, see `load_params`."""
  with _last_checkpoint(directory, best) as path:
    return checkpoint_format.together(
      path, lambda: checkpoint_format.read(path)
    )


def _without_traces(record: Any) -> bool:
  """A log filter: Orbax's traces are not shown, as the error is raised too."""
  return not (record.exc_info and 'orbax' in record.pathname)


class _SavedInPartError(OSError):
  """Another process could not write its part of a checkpoint."""


class _SaveBarrier:
  """A `barrier_sync_fn` for Orbax that ends at once if a process has failed.

  Orbax's threads wait for each other in the middle of a save, when all have
  written, and at its end. A process that could not write skips to the end and
  waits there for the others, while they wait for it in the middle, until the
  time-out of 20 minutes. Here the waits are numbered, and at each the processes
  announce what they are waiting for. If the announcements differ, one has
  failed, and all raise at once.

  All processes must create their barriers in the same order. Orbax waits for
  one thing at a time, from any thread.
  """

  def __init__(self) -> None:
    self._place = f'adanat_jax/save/{next(_instances)}'
    self._lock = threading.Lock()
    self._count = 0
    self._failed = False

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Waits until all processes have called with the same key.

    Raises:
      _SavedInPartError: if another process waits for another key, and at every
        later call.
    """
    with self._lock:
      if not self._failed:
        keys = processes.exchange(
          f'{self._place}/{self._count}/', key, timeout_ms
        )
        self._count += 1
        self._failed = len(set(keys)) > 1
      if self._failed:
        raise _SavedInPartError(
          'another process could not write its part of a checkpoint'
        )


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
  """Raises this process's own error instead of the barrier's, if it has one."""
  try:
    yield
  except _SavedInPartError as error:
    own: BaseException = error
    while isinstance(own, _SavedInPartError) and own.__context__ is not None:
      own = own.__context__
    raise own from None


@contextlib.contextmanager
def _last_checkpoint(
  directory: str | os.PathLike[str], best: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a finished stage's checkpoint; turns damage into a UserError."""
  directory = pathlib.Path(directory).absolute()
  if not is_complete(directory):
    raise UserError(
      f'{directory}: no finished training here ({COMPLETE_FILE} is missing); '
      'run this stage first'
    )
  marker = read_complete(directory)
  step = marker.get('best', marker)['step'] if best else marker['step']
  path = directory / 'checkpoints' / str(step)
  try:
    yield path
  except checkpoint_format.DamagedError as error:
    raise UserError(
      f'{path}: this checkpoint is damaged ({error}); delete '
      f'{directory / COMPLETE_FILE} and run the stage again: it continues from'
      ' the last good one'
    ) from error
