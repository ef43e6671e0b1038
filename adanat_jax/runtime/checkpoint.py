"""Checkpoints: what is saved, how it is checked, in which order it is used.

A thin layer over Orbax. A checkpoint is one directory
`<stage>/checkpoints/<step>` that holds `state`, the whole train state, and
`meta` (see `checkpoint_meta`). It becomes visible in one rename, after
everything in it is written.

Order of restoring, used by `adanat_jax.runtime.loop.run_loop`:
  1. the newest checkpoint of the stage's own directory;
  2. if that one is damaged, it is named in a warning, moved to
     `checkpoints.damaged`, and the one before it is used;
  3. if there is none, the state the caller has initialised.
A checkpoint may be restored onto another number of devices or processes than
saved it. With several processes each reads its own part, and a checkpoint that
one of them cannot read is damaged for all.
Weights of a finished stage are read by `load_params`, which writes nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
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
from adanat_jax.runtime.metric_writer import EVAL_PREFIX

# A save may take so long; that a process failed or died is noticed otherwise.
_TIMEOUT_SECONDS = 1200

_instances = itertools.count()


class NonFiniteError(UserError):
  """A number of a run became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a checkpoint holds: `step` finished steps, the state, the meta."""

  step: int
  state: Any
  meta: Mapping[str, Any]


class Checkpointer:
  """Saves and restores the states of one stage, asynchronously."""

  def __init__(
    self,
    directory: str | os.PathLike[str],
    *,
    max_to_keep: int = 2,
    keep_every: int | None = None,
    best_of: tuple[str, str] | None = None,
  ):
    """Opens `<directory>/checkpoints` and removes half-written ones.

    Args:
      directory: the stage's directory; created when missing.
      max_to_keep: how many of the newest checkpoints stay, at least 2: the
        older is what a damaged newest one is replaced by.
      keep_every: checkpoints of steps that this divides stay too.
      best_of: `(metric, 'min' or 'max')`: the checkpoint with the smallest or
        the largest value of this metric stays too. Metrics `eval/...` are
        learned by `score`, all others by `save`.
    """
    if max_to_keep < 2:
      raise UserError(f'max_to_keep: {max_to_keep} given, at least 2 is needed')
    if keep_every is not None and keep_every < 1:
      raise UserError(f'keep_every: {keep_every} given, at least 1 is needed')
    managers = ocp.checkpoint_managers
    policies: list[Any] = [managers.LatestN(max_to_keep)]
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
        preservation_policy=managers.AnyPreservationPolicy(policies),
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
      meta: what JSON can hold; see `checkpoint_meta` for what is added.
      metrics: of this step, kept in the meta; `best_of` chooses by them.

    Raises:
      NonFiniteError: if a leaf holds NaN or infinity. Nothing is saved.
      UserError: if this or the save before it cannot be written, or if the
        metric of `best_of` is none of `metrics`.
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
    """Learns by what `best_of` chooses, where that is measured after saving.

    Args:
      evaluations: figures `eval/...` by step.

    Raises:
      UserError: if the metric of `best_of` is none of them.
    """
    if self._best is not None and self._best.is_evaluated:
      for step, figures in evaluations.items():
        self._best.add(step, figures)

  def best(self) -> dict[str, Any] | None:
    """Step, metric and value of the best checkpoint that is there.

    None without `best_of`, and before anything is known.
    """
    if self._best is None:
      return None
    return self._best.of(self._manager.all_steps())

  def _check_permission(self) -> None:
    """Raises WriteError if no checkpoint could be created.

    Process 0 creates it, in the background, and Orbax lets the others wait for
    it for ten minutes: better that all know before.
    """
    if not os.access(self._path, os.W_OK | os.X_OK):
      raise WriteError(f'{self._path}: cannot be written: Permission denied')

  def wait(self) -> None:
    """Blocks until the last save is on the disk.

    Raises:
      UserError: in every process, if one could not write its part.
    """
    with files.writing(self._path), _own_errors():
      self._manager.wait_until_finished()

  def restore(self, target: Any) -> Restored | None:
    """Restores the newest good checkpoint.

    Args:
      target: a pytree of arrays (or `jax.ShapeDtypeStruct`s with shardings)
        of the same structure; the restored arrays get its shardings.

    Returns:
      The checkpoint, or None if there is none.

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

  def _set_aside(self, path: pathlib.Path, error: Exception) -> None:
    """Moves a damaged checkpoint out of the way, so its step can be saved."""
    damaged = self._path.with_name('checkpoints.damaged')

    def move() -> None:
      # An earlier one of the same step stays, it may be worth something.
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
      # What went wrong first tells more than a save that fails because of it.
      if kind is None:
        raise


class _Best:
  """Orbax's preservation policy that keeps one checkpoint, the best.

  Orbax has one of its own, which keeps the metric in a file beside the state
  and refuses to open the directory when that file is damaged.
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
    """Tells for each checkpoint whether it is the best of them."""
    del context
    best = self._best_step([checkpoint.step for checkpoint in checkpoints])
    return [checkpoint.step == best for checkpoint in checkpoints]

  def of(self, steps: Sequence[int]) -> dict[str, Any] | None:
    """The best of these steps, with the metric's name and value."""
    step = self._best_step(steps)
    if step is None:
      return None
    value = self._sign * self._scores[step]
    return {'step': step, 'metric': self._metric, 'value': value}

  def _best_step(self, steps: Sequence[int]) -> int | None:
    known = [step for step in steps if step in self._scores]
    # Of equal ones the newest.
    return min(known, key=lambda s: (self._scores[s], -s), default=None)

  def look_up(self, steps: Sequence[int], directory: pathlib.Path) -> None:
    """Learns how good the checkpoints are that are there."""

    def read() -> list[tuple[int, float]]:
      found = []
      for step in steps:
        try:
          with checkpoint_format.quiet():
            metrics = checkpoint_format.read(directory / str(step))['metrics']
          found.append((step, float(metrics[self._metric])))
        except Exception:  # Damaged: `restore` says so when it comes to it.
          continue
      return found

    for step, value in processes.from_first(read):
      self._scores[step] = self._sign * value

  def add(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Learns how good the checkpoint is that is about to be saved."""
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
  """Reads one field of a finished stage's last state, and nothing else of it.

  Args:
    directory: the stage's directory (the one that holds `checkpoints`).
    field: name of the state's field, e.g. 'ema'; '/' goes deeper.
    target: pytree of arrays or `jax.ShapeDtypeStruct`s the field must agree
      with and whose shardings it gets; None takes nested dicts as saved, of a
      field that holds nothing but dicts. What has no sharding goes to every
      device of the ambient mesh, or to the first device where there is none.
    best: take the checkpoint that the training's `best_of` chose instead of the
      last one, where one was chosen.

  Returns:
    The field's pytree of arrays.

  Raises:
    UserError: if the stage has not finished, has no such field, or if shapes
      differ from `target`, or if the checkpoint is damaged.
  """
  with _last_checkpoint(directory, best) as path:
    return checkpoint_format.read_field(path, field, target)


def digest_params(directory: str | os.PathLike[str], field: str) -> str:
  """Names the numbers of one field of a finished stage's last state.

  Only what the checkpoint says of its leaves is read, not the leaves.

  Args:
    directory: as for `load_params`.
    field: as for `load_params`.

  Returns:
    16 hexadecimal digits: of the leaves' names, shapes, types and checksums,
    which are the same wherever the numbers are.

  Raises:
    UserError: as `load_params`.
  """
  with _last_checkpoint(directory) as path:
    meta = checkpoint_format.together(
      path, lambda: checkpoint_format.read(path)
    )
  leaves_of_field = checkpoint_format.below(meta, field)
  if not leaves_of_field:
    raise UserError(f'{path}: no field {field!r}')
  text = json.dumps(leaves_of_field, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without_traces(record: Any) -> bool:
  """Keeps Orbax's traces of an error off the terminal, which is raised too."""
  return not (record.exc_info and 'orbax' in record.pathname)


class _SavedInPartError(OSError):
  """Another process could not write its part of a checkpoint."""


class _SaveBarrier:
  """What `orbax.checkpoint.AsyncOptions` wants as `barrier_sync_fn`.

  Orbax's threads wait for each other in the middle of a save, when all have
  written, and at its end. A process that could not write goes straight to the
  end and waits there for the others, who wait for it in the middle: until a
  time-out of 20 minutes. Here the waits are counted, and everybody tells for
  what he waits. Where that is not the same thing, somebody has failed, and all
  go on at once, to an error.

  All processes must make theirs in the same order. Orbax waits for one thing
  after the other, from whatever thread.
  """

  def __init__(self) -> None:
    self._place = f'adanat_jax/save/{next(_instances)}'
    self._lock = threading.Lock()
    self._count = 0
    self._failed = False

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Waits until all have come here.

    Args:
      key: for what.
      timeout_ms: how long.

    Raises:
      _SavedInPartError: if another process has come to another key, and ever
        after.
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
  """Raises what this process has failed with, if it is the one that failed."""
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
  """A finished stage's checkpoint, to be read; damage is a UserError."""
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
      f'{directory / COMPLETE_FILE} and run the stage again: it goes on from'
      ' the last good one'
    ) from error
