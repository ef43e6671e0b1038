"""A tiny training which can be made to die, for processes of their own.

`start` runs it in a process forked from a server that has only imported the
modules, so that many deaths cost little; nothing else is shared.
"""

import functools
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import sys
from typing import Any

from absl.testing import absltest
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.runtime import checkpoint, journal, leaves, loop, metric_writer
from support import children

BATCH, WIDTH, OUTPUTS = 8, 16, 4
NUM_STEPS = 23
OPTIMIZER = optax.sgd(0.01, momentum=0.9)


@flax.struct.dataclass
class ToyState:
  params: dict[str, jax.Array]  # float32[WIDTH, OUTPUTS], float32[OUTPUTS]
  opt_state: optax.OptState
  key: jax.Array  # key<fry>[]


def initial_state(seed: int = 0) -> ToyState:
  """Returns the state before the first step."""
  # NumPy draws: compiling random functions would be most of a short run.
  kernel = np.random.default_rng(seed).normal(size=(WIDTH, OUTPUTS))
  params = {
    'kernel': jnp.asarray(kernel, jnp.float32),
    'bias': jnp.asarray(np.zeros(OUTPUTS, np.float32)),
  }
  return ToyState(params, OPTIMIZER.init(params), jax.random.key(seed))


def batch_at(step: int) -> dict[str, np.ndarray]:
  """Returns the batch of a step: inputs float32[BATCH, WIDTH]."""
  generator = np.random.default_rng((7, step))
  inputs = generator.normal(size=(BATCH, WIDTH)).astype(np.float32)
  return {'inputs': inputs}


def plain_step(
  state: ToyState, batch: dict[str, jax.Array], step: jax.Array
) -> tuple[ToyState, dict[str, jax.Array]]:
  """Fits noisy sums; the noise makes the step depend on the state's key."""
  noise = jax.random.normal(jax.random.fold_in(state.key, step), (BATCH, 1))

  def loss_of(params: dict[str, jax.Array]) -> jax.Array:
    outputs = batch['inputs'] @ params['kernel'] + params['bias'][None]
    target = batch['inputs'].sum(axis=1, keepdims=True) + noise
    return jnp.mean((outputs - target) ** 2)

  loss, gradient = jax.value_and_grad(loss_of)(state.params)
  updates, opt_state = OPTIMIZER.update(gradient, state.opt_state)
  params = optax.apply_updates(state.params, updates)
  metrics = {'loss': loss, 'bias': params['bias']}
  return state.replace(params=params, opt_state=opt_state), metrics


def train_step_of(*, dies: bool = False) -> Any:
  """Returns a fresh jitted step; if it `dies`, then in its compilation."""

  @functools.partial(jax.jit, donate_argnums=0)
  def train_step(
    state: ToyState, batch: dict[str, jax.Array], step: jax.Array
  ) -> tuple[ToyState, dict[str, jax.Array]]:
    if dies:
      die()
    return plain_step(state, batch, step)

  return train_step


def die(number: int = signal.SIGKILL) -> None:
  """Sends this process a signal."""
  os.kill(os.getpid(), number)


def arm(moment: str) -> None:
  """Replaces a function so that the process dies at `moment`.

  Moments: `commit:N` before the rename that makes checkpoint N visible,
  `committed:N` after it, `delete` with an old checkpoint half deleted,
  `complete` before complete.json appears, `cut` before metrics.jsonl is cut
  back, `row:N` with the row of step N half written.

  Args:
    moment: one of these.
  """
  what, _, number = moment.partition(':')
  rename, replace, rmtree = os.rename, os.replace, shutil.rmtree
  write = metric_writer.MetricWriter.write

  def dying_rename(source: str, target: str) -> None:
    ours = pathlib.Path(target).name == number and 'checkpoints' in str(target)
    if ours and what == 'commit':
      die()
    rename(source, target)
    if ours and what == 'committed':
      die()

  def dying_replace(source: str, target: str) -> None:
    if what == {'complete.json': 'complete', 'metrics.jsonl': 'cut'}.get(
      pathlib.Path(target).name
    ):
      die()
    replace(source, target)

  def dying_rmtree(path: str, *args: object, **kwargs: object) -> None:
    if what == 'delete' and pathlib.Path(path).name.isdigit():
      rmtree(pathlib.Path(path) / 'state')
      die()
    rmtree(path, *args, **kwargs)

  def dying_write(
    writer: metric_writer.MetricWriter, step: int, metrics: dict[str, object]
  ) -> None:
    if what == 'row' and step == int(number):
      writer._file.write(json.dumps({'step': step, 'loss': 1.0})[:-4])
      writer._file.flush()
      die()
    write(writer, step, metrics)

  os.rename, os.replace = dying_rename, dying_replace
  shutil.rmtree = dying_rmtree
  metric_writer.MetricWriter.write = dying_write


def train(directory: str | os.PathLike[str], **changes: Any) -> Any:
  """Runs the toy loop in this process."""
  arguments: dict[str, Any] = {
    'state': initial_state(),
    'train_step': train_step_of(),
    'batch_at': batch_at,
    'num_steps': NUM_STEPS,
    'directory': directory,
    'name': 'toy',
    'log_every': 3,
    'save_every': 5,
    'tensorboard': False,
  }
  return loop.run_loop(**(arguments | changes))


def rows(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Returns the rows without wall-clock figures."""
  return [
    {key: value for key, value in row.items() if not key.startswith('time/')}
    for row in metric_writer.read_metrics(directory)
  ]


def saved_bits(directory: str | os.PathLike[str]) -> dict[str, Any]:
  """Returns every leaf of the last checkpoint as NumPy arrays."""
  with checkpoint.Checkpointer(directory) as checkpoints:
    restored = checkpoints.restore(initial_state())
  state = restored.state.replace(key=jax.random.key_data(restored.state.key))
  return jax.tree.map(np.asarray, leaves.by_name(state))


def assert_same_run(
  test: absltest.TestCase, one: pathlib.Path, other: pathlib.Path
) -> None:
  """Checks that two runs left the same state, rows and marker."""
  ours, theirs = saved_bits(one), saved_bits(other)
  test.assertEqual(ours.keys(), theirs.keys())
  for name in ours:
    np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
  test.assertEqual(rows(one), rows(other))
  test.assertEqual(journal.read_complete(one), journal.read_complete(other))


def main(
  directory: pathlib.Path, num_steps: int, death: str, output: pathlib.Path
) -> None:
  """Trains, and dies when told to; what it prints goes to a file."""
  with output.open('w') as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  sys.stdout.reconfigure(line_buffering=True)
  what, _, number = death.partition(':')
  arm(death)

  def dying_batch_at(step: int) -> dict[str, np.ndarray]:
    if what in ('SIGKILL', 'SIGTERM', 'SIGINT') and step == int(number):
      die(signal.Signals[what])
    return batch_at(step)

  loop.run_loop(
    initial_state(),
    train_step_of(dies=death == 'compile'),
    dying_batch_at,
    num_steps=num_steps,
    directory=directory,
    name='toy',
    log_every=3,
    save_every=5,
    final_figures=lambda state: {'bias': state.params['bias']},
    tensorboard=False,
  )
  print('done')


def start(
  directory: pathlib.Path, num_steps: int, death: str, output: pathlib.Path
) -> multiprocessing.process.BaseProcess:
  """Starts `main` in a process of its own."""
  process = children.context().Process(
    target=main, args=(directory, num_steps, death, output), daemon=True
  )
  process.start()
  return process
