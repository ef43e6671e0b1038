"""Evaluations inside the loop: where they stand, what they choose, resumed."""

import contextlib
import io
import pathlib
import signal
from typing import Any

from absl import logging
from absl.testing import absltest, parameterized
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.runtime import checkpoint, journal, stopping
from support import toy_training
from support.toy_training import rows, train


def setUpModule():
  logging.set_verbosity(logging.WARNING)  # Orbax tells much at INFO.


class EvaluationsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    self.enter_context(contextlib.redirect_stdout(io.StringIO()))

  def test_evaluations_stand_in_the_rows_of_their_steps(self):
    seen = []

    def evaluate(state: Any, step: int) -> dict[str, Any]:
      seen.append(step)
      return {'bias': np.float32(state.params['bias'][0]), 'dip': abs(step - 8)}

    train(
      self.directory,
      evaluate=evaluate,
      evaluate_every=4,
      best_of=('eval/dip', 'min'),
    )
    self.assertEqual(seen, [4, 8, 12, 16, 20, 23])
    found = {
      row['step']: row['eval/dip']
      for row in rows(self.directory)
      if 'eval/dip' in row
    }
    self.assertEqual(found, {n: abs(n - 8) for n in seen})
    for row in rows(self.directory):
      if 'eval/bias' in row:
        self.assertEqual(
          np.float32(row['eval/bias']), np.float32(row['bias'][0])
        )
    # The best of them stays, and is what is loaded if that is asked for.
    steps = {p.name for p in (self.directory / 'checkpoints').iterdir()}
    self.assertEqual(steps, {'8', '20', '23'})
    best = journal.read_complete(self.directory)['best']
    self.assertEqual(best, {'step': 8, 'metric': 'eval/dip', 'value': 0.0})
    row = next(row for row in rows(self.directory) if row['step'] == 8)
    params = checkpoint.load_params(self.directory, 'params', best=True)
    np.testing.assert_array_equal(
      params['bias'], np.float32(row['bias']), strict=True
    )

  def test_warnings_are_said_once_and_kept(self):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
      train(
        self.directory,
        evaluate=lambda state, step: {'step': step},
        evaluate_every=4,
        final_figures=lambda state: {'step': 99},
        warnings_of=lambda figures: (
          [f'{figures["step"]} is much'] if figures['step'] > 5 else []
        ),
      )
    lines = [x for x in said.getvalue().splitlines() if 'warning' in x]
    self.assertEqual(
      [line.partition('warning: ')[2] for line in lines],
      ['8 is much', '99 is much'],
    )
    marker = journal.read_complete(self.directory)
    self.assertEqual(marker['warnings'], ['99 is much'])

  def test_an_evaluation_that_was_cut_short_is_made_again_and_once(self):
    options = {'evaluate_every': 4, 'best_of': ('eval/figure', 'max')}

    def evaluate(state: Any, step: int) -> dict[str, float]:
      if step in dies:
        dies.remove(step)
        raise InterruptedError(f'killed while evaluating step {step}')
      if step in stops:
        stops.remove(step)
        signal.raise_signal(signal.SIGTERM)
      figures.append(step)
      return {'figure': float(np.sum(state.params['bias'])) * (step != 12)}

    def batch_at(step: int) -> Any:
      if step + 1 in asked:
        asked.remove(step + 1)
        signal.raise_signal(signal.SIGTERM)
      return toy_training.batch_at(step)

    dies: set[int] = set()
    stops: set[int] = set()
    asked: set[int] = set()
    figures: list[int] = []
    whole = self.directory / 'whole'
    train(whole, evaluate=evaluate, **options)
    expected, figures = figures, []
    # Step 4, 12 (a row of the log too) and the last die in their evaluation;
    # during that of 8 the run is asked to stop; so it is before that of 16.
    dies, stops, asked = {4, 12, 23}, {8}, {16}
    broken = self.directory / 'broken'
    ends = []
    for _ in range(6):
      try:
        train(broken, evaluate=evaluate, batch_at=batch_at, **options)
      except (InterruptedError, stopping.Interrupted) as error:
        ends.append(getattr(error, 'step', 0))
    self.assertEqual(ends, [0, 9, 0, 16, 0])
    self.assertEqual(figures, expected)
    toy_training.assert_same_run(self, whole, broken)

  @parameterized.parameters(
    ({'evaluate': None}, 'best_of is eval/figure, nothing is evaluated'),
    ({'evaluate_every': -1}, 'evaluate_every is -1'),
    ({'evaluate': lambda *_: {'x': 1}}, "'eval/figure' is no metric of step 4"),
    (
      {'evaluate': lambda *_: {'figure': np.nan}},
      'eval/figure is nan at step 4;',
    ),
  )
  def test_evaluations_that_cannot_be_used(
    self, change: dict[str, Any], message: str
  ):
    options = {
      'evaluate': lambda *_: {'figure': 1.0},
      'evaluate_every': 4,
      'best_of': ('eval/figure', 'min'),
    }
    with self.assertRaisesRegex(UserError, message):
      train(self.directory, **(options | change))


if __name__ == '__main__':
  absltest.main()
