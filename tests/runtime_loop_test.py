"""The loop: killed anywhere, interrupted, fed with bad numbers, resumed."""

import contextlib
import io
import pathlib
import resource
import signal
import threading
import time
from typing import Any
from unittest import mock

from absl import logging
from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.runtime import checkpoint, journal, stopping
from support import toy_training
from support.toy_training import rows, train


def run(directory: pathlib.Path, death: str = 'none') -> tuple[int | None, str]:
  """Trains in a process of its own; returns its exit status and output."""
  output = directory.with_suffix('.txt')
  process = toy_training.start(directory, toy_training.NUM_STEPS, death, output)
  process.join(timeout=60)
  return process.exitcode, output.read_text()


def setUpModule():
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.


class TrainingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    self.output = self.enter_context(contextlib.redirect_stdout(io.StringIO()))

  def test_stopped_at_every_moment_ends_with_the_same_bits(self):
    whole, broken = self.directory / 'whole', self.directory / 'broken'
    self.assertEqual(run(whole)[0], 0)
    # Each start goes on from what the stop before it has left.
    for death, status, words in (
      ('compile', -9, ''),  # nothing is there yet
      ('SIGKILL:3', -9, ''),  # rows, but no checkpoint
      ('cut', -9, ''),  # while the rows of that run are being dropped
      ('commit:5', -9, ''),  # inside the first save
      ('SIGTERM:7', 143, 'SIGTERM after step 8 of 23: saved'),
      ('committed:10', -9, 'continues after step 8'),
      ('SIGINT:12', 130, 'SIGINT after step 13 of 23: saved'),
      ('row:18', -9, 'continues after step 13'),  # half a line
      ('delete', -9, 'continues after step'),  # an old checkpoint half gone
      ('commit:23', -9, 'continues after step'),  # inside the last save
      ('complete', -9, 'continues after step'),  # all but the marker
    ):
      with self.subTest(death):
        exit_status, output = run(broken, death)
        self.assertEqual(exit_status, status, output)
        self.assertIn(words, output)
        self.assertNotIn('done', output)
        self.assertFalse(journal.is_complete(broken))
    exit_status, output = run(broken)
    self.assertEqual(exit_status, 0, output)
    self.assertIn('continues after step 23 of 23', output)
    toy_training.assert_same_run(self, whole, broken)
    self.assertEqual(
      [row['step'] for row in rows(whole)], [1, 3, 6, 9, 12, 15, 18, 21, 23]
    )

  def test_the_handlers_are_given_back(self):
    def handlers() -> list[Any]:
      return [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]

    before = handlers()
    train(self.directory / 'undisturbed', num_steps=2)
    self.assertEqual(handlers(), before)
    during = []

    def batch_at(step: int) -> Any:
      during.append(handlers())
      if step == 4:
        signal.raise_signal(signal.SIGTERM)
      return toy_training.batch_at(step)

    with self.assertRaises(stopping.Interrupted) as caught:
      train(self.directory, batch_at=batch_at)
    self.assertEqual(caught.exception.code, 143)
    self.assertEqual(caught.exception.step, 5)
    self.assertNotIn(before[0], during[0])
    self.assertEqual(handlers(), before)

  def test_works_outside_the_main_thread(self):
    thread = threading.Thread(target=train, args=(self.directory,))
    thread.start()
    thread.join(timeout=60)
    self.assertTrue(journal.is_complete(self.directory))

  def test_a_complete_stage_is_not_repeated_and_can_be_prolonged(self):
    first = train(self.directory, num_steps=10)
    begun = time.time()
    again = train(self.directory, num_steps=10, batch_at=self.fail)
    np.testing.assert_array_equal(first.params['bias'], again.params['bias'])
    marker = self.directory / 'complete.json'
    self.assertLess(marker.stat().st_mtime, begun)
    state = toy_training.initial_state()
    longer = train(self.directory, num_steps=14, state=state)
    # Nor does the state that was not needed stay on the devices.
    self.assertTrue(all(x.is_deleted() for x in jax.tree.leaves(state)))
    whole = train(self.directory / 'whole', num_steps=14)
    np.testing.assert_array_equal(longer.params['bias'], whole.params['bias'])
    self.assertEqual(journal.read_complete(self.directory)['step'], 14)
    with self.assertRaisesRegex(UserError, 'step 14, but only 7 steps'):
      train(self.directory, num_steps=7)

  def test_a_damaged_last_checkpoint_is_made_again(self):
    whole = self.directory / 'whole'
    train(whole, num_steps=10)
    train(self.directory, num_steps=10)
    path = self.directory / 'checkpoints' / '10' / 'state' / '_METADATA'
    path.write_bytes(path.read_bytes()[:50])
    with self.assertRaisesRegex(UserError, '10.* is damaged .*run the stage'):
      checkpoint.load_params(self.directory, 'params')
    with self.assertLogs('absl', 'WARNING') as logs:
      train(self.directory, num_steps=10)
    self.assertRegex(logs.output[0], r'checkpoints/10 is damaged')
    toy_training.assert_same_run(self, whole, self.directory)

  @parameterized.parameters(
    # One step behind: the step after the bad one is on its way already.
    {'bad': 12, 'last': 13, 'row': 9, 'saved': {'5', '10'}},
    # Unless it is to be saved: then nothing goes on before it is known good.
    {'bad': 10, 'last': 10, 'row': 9, 'saved': {'5'}},
    {'bad': 1, 'last': 2, 'row': None, 'saved': set()},
  )
  def test_a_number_that_is_not_finite_stops_the_run(
    self, bad: int, last: int, row: int | None, saved: set[str]
  ):
    inner = toy_training.train_step_of()
    dispatched = []

    @jax.transfer_guard_host_to_device('allow')
    def train_step(state: Any, batch: Any, step: jax.Array) -> Any:
      dispatched.append(int(step) + 1)
      state, metrics = inner(state, batch, step)
      if step + 1 == bad:
        metrics = metrics | {'bias': metrics['bias'].at[2].set(jnp.nan)}
      return state, metrics

    with self.assertRaisesRegex(
      checkpoint.NonFiniteError,
      f'toy: bias is not finite in 1 of 4 places at step {bad};',
    ):
      train(self.directory, train_step=train_step)
    self.assertEqual(dispatched[-1], last)
    written = [row['step'] for row in rows(self.directory)]
    self.assertEqual(written[-1] if written else None, row)
    steps = {p.name for p in (self.directory / 'checkpoints').iterdir()}
    self.assertEqual(steps, saved)
    self.assertFalse(journal.is_complete(self.directory))

  def test_a_state_that_is_not_finite_is_not_saved(self):
    inner = toy_training.train_step_of()

    @jax.transfer_guard_host_to_device('allow')
    def train_step(state: Any, batch: Any, step: jax.Array) -> Any:
      state, metrics = inner(state, batch, step)
      if step == 9:
        bias = state.params['bias'].at[0].set(jnp.inf)
        state = state.replace(params=state.params | {'bias': bias})
      return state, metrics

    with self.assertRaisesRegex(
      checkpoint.NonFiniteError, 'after step 10: params/bias holds NaN or inf'
    ):
      train(self.directory, train_step=train_step)
    steps = {p.name for p in (self.directory / 'checkpoints').iterdir()}
    self.assertEqual(steps, {'5'})
    self.assertFalse(journal.is_complete(self.directory))

  def test_a_step_that_changes_the_layout_is_refused(self):
    state = {'count': jnp.zeros((), jnp.int32)}

    def train_step(state: Any, batch: Any, step: Any) -> Any:
      return {'count': jnp.float32(step)}, {}

    with self.assertRaisesRegex(ValueError, 'count was .*int32.*float32'):
      train(self.directory, state=state, train_step=jax.jit(train_step))

  def test_a_python_number_in_the_state_resumes_equal(self):
    # Weakly typed, 0.1 would give bfloat16 before a restart, float32 after.
    def train_step(state: Any, batch: Any, step: Any) -> Any:
      grown = (state['x'] * state['rate']).astype(jnp.bfloat16)
      return {'x': grown, 'rate': state['rate']}, {'x': grown[0]}

    ends = []
    for name, stops in (('whole', [8]), ('broken', [4, 8])):
      for num_steps in stops:
        state = {'x': jnp.full(3, 1.1, jnp.bfloat16), 'rate': 1.01}
        end = train(
          self.directory / name,
          state=state,
          train_step=jax.jit(train_step),
          num_steps=num_steps,
        )
      ends.append(end['x'])
    np.testing.assert_array_equal(*ends)

  def test_trace_and_figures(self):
    train(
      self.directory,
      num_steps=6,
      profile=(2, 4),
      final_figures=lambda state: {'width': np.int64(16)},
      config_for_meta={'seed': 3},
    )
    self.assertNotEmpty(list((self.directory / 'trace').rglob('*.xplane.pb')))
    marker = journal.read_complete(self.directory)
    self.assertEqual(marker, {'step': 6, 'figures': {'width': 16}})
    self.assertRegex(self.output.getvalue(), r'toy 6/6 .* steps/s  ETA 0s')
    self.assertStartsWith(self.output.getvalue(), 'toy: compiling ...\n')

  def test_a_full_disk_is_named_and_the_last_checkpoint_stays(self):
    state = {'x': jnp.asarray(np.random.default_rng(0).normal(size=(200, 200)))}
    step = jax.jit(lambda state, batch, step: (state, {'x': state['x'][0, 0]}))
    options = {'state': state, 'train_step': step, 'num_steps': 10}
    train(self.directory, **options | {'num_steps': 5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
      with self.assertRaisesRegex(
        UserError, 'checkpoints: cannot be written: File too large'
      ):
        train(self.directory, **options)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    self.assertFalse(journal.is_complete(self.directory))
    train(self.directory, **options)
    self.assertIn('continues after step 5 of 10', self.output.getvalue())
    self.assertEqual(
      [row['step'] for row in rows(self.directory)], [1, 3, 5, 6, 9, 10]
    )

  def test_checkpoints_stay_by_policy(self):
    train(self.directory, log_every=1, keep_every=10, best_of=('loss', 'max'))
    loss = {row['step']: row['loss'] for row in rows(self.directory)}
    best = max((5, 10, 15, 20, 23), key=loss.__getitem__)
    self.assertEqual(best, 5)  # Neither among the last nor every tenth.
    steps = {p.name for p in (self.directory / 'checkpoints').iterdir()}
    self.assertEqual(steps, {'5', '10', '20', '23'})

  def test_no_step_at_all_leaves_the_initial_state(self):
    train(self.directory, num_steps=0)
    params = checkpoint.load_params(self.directory, 'params')
    expected = toy_training.initial_state().params
    np.testing.assert_array_equal(params['kernel'], expected['kernel'])

  def test_implicit_copies_to_the_device_are_refused(self):
    inner = toy_training.train_step_of()

    def train_step(state: Any, batch: Any, step: Any) -> Any:
      return inner(state, jax.tree.map(np.asarray, batch), step)

    with self.assertRaisesRegex(Exception, 'Disallowed host-to-device'):
      train(self.directory, train_step=train_step)

  def test_compiles_once(self):
    traces = mock.Mock(side_effect=toy_training.plain_step)
    train(self.directory, train_step=jax.jit(traces, donate_argnums=0))
    self.assertEqual(traces.call_count, 1)


if __name__ == '__main__':
  absltest.main()
