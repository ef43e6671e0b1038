"""Rows, their files, and what the terminal shows."""

import contextlib
import io
import json
import os
import pathlib
import re
from typing import Any
from unittest import mock

from absl.testing import absltest, parameterized
import jax.numpy as jnp
import numpy as np
import PIL.Image

from adanat_jax.errors import UserError
from adanat_jax.runtime import files, metric_writer, processes


class Terminal(io.StringIO):
  def isatty(self) -> bool:
    return True


class MetricWriterTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.directory / 'metrics.jsonl'

  def write(self, first_step: int, *steps: int, **options: Any) -> None:
    writer = metric_writer.MetricWriter(
      self.directory, first_step=first_step, **options
    )
    for step in steps:
      writer.write(step, {'loss': np.float32(step)})
    writer.close()

  def steps(self) -> list[int]:
    return [row['step'] for row in metric_writer.read_metrics(self.directory)]

  def test_rows_are_there_as_soon_as_they_are_written(self):
    writer = metric_writer.MetricWriter(self.directory)
    writer.write(3, {'loss': jnp.float32(0.1), 'values': np.arange(2)})
    row = '"format": 1, "step": 3, "loss": 0.1, "values": [0, 1]'
    checksum = files.checksum(json.loads(f'{{{row}}}'))
    self.assertEqual(
      self.path.read_text(), f'{{{row}, "checksum": {checksum}}}\n'
    )
    for name in ('step', 'format', 'checksum'):
      with self.assertRaisesRegex(ValueError, 'own key'):
        writer.write(4, {name: 1.0})
    writer.close()

  def test_no_step_stands_twice_after_a_resume(self):
    self.write(0, 2, 4, 6, 8)
    self.write(4, 6, 8, 10)
    self.assertEqual(self.steps(), [2, 4, 6, 8, 10])
    self.write(0, 2)
    self.assertEqual(self.steps(), [2])

  def test_cut_at_any_byte_it_goes_on_with_whole_rows(self):
    self.write(0, 2, 4, 6)
    data = self.path.read_bytes()
    for length in range(len(data) + 1):
      self.path.write_bytes(data[:length])
      whole = [2, 4, 6][: data[:length].count(b'\n')]
      self.assertEqual(self.steps(), whole)
      self.write(6, 8)
      self.assertEqual(self.steps(), [*whole, 8])

  def test_a_changed_digit_costs_its_row_and_is_told(self):
    self.write(0, 2, 4, 6)
    data = self.path.read_bytes()
    for old, new in ((b'4.0', b'4.5'), (b'"loss": 4', b'"l0ss": 4')):
      damaged = data.replace(old, new)
      self.assertNotEqual(damaged, data)
      self.path.write_bytes(damaged)
      for act in (self.steps, lambda: self.write(6)):
        with contextlib.redirect_stdout(io.StringIO()) as told:
          act()
        words = f'{self.path}: 1 of 3 rows are damaged and left out\n'
        self.assertEqual(told.getvalue(), words)
      self.assertEqual(self.steps(), [2, 6])
    # Without its checksum, too: that of an earlier version is in no row.
    bare = re.sub(rb'(4.0), .*', rb'\1}', data)
    self.path.write_bytes(bare)
    self.assertEqual(self.steps(), [2, 6])

  def test_rows_of_earlier_versions_are_read_and_sealed(self):
    rows = [{'step': 1, 'loss': 1e-7}, {'step': 2, 'values': [0.1, 'nan']}]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    self.path.write_text(text)
    self.assertEqual(metric_writer.read_metrics(self.directory), rows)
    self.write(2, 3)
    self.assertEqual(metric_writer.read_metrics(self.directory)[:2], rows)
    self.assertEqual(self.path.read_text().count('"checksum": '), 3)

  def test_a_torn_line_in_the_middle_costs_only_itself(self):
    self.path.write_bytes(b'{"step": 1}\n{"st\n[]\n{"step": 3}\n\xff\n')
    self.write(3, 5)
    self.assertEqual(self.steps(), [1, 3, 5])
    self.assertEqual(self.path.read_bytes().count(b'\n'), 3)

  def test_what_json_does_not_know_is_text(self):
    writer = metric_writer.MetricWriter(self.directory)
    writer.write(1, {'a': float('nan'), 'b': np.array([np.inf, 1, -np.inf])})
    row = json.loads(self.path.read_text(), parse_constant=self.fail)
    found = {'step': 1, 'a': 'nan', 'b': ['inf', 1.0, '-inf']}
    self.assertEqual(row, files.seal(found))
    writer.close()

  def test_other_processes_write_nothing(self):
    with mock.patch.object(processes, 'process_index', return_value=1):
      self.write(0, 1, 2)
      shown = io.StringIO()
      with contextlib.redirect_stdout(shown):
        metric_writer.Progress('nat', 1).update(1)
    self.assertEmpty(list(self.directory.iterdir()))
    self.assertEqual(shown.getvalue(), '')

  def test_tensorboard_gets_scalars_and_elements(self):
    writer = metric_writer.MetricWriter(self.directory)
    writer.write(1, {'loss': jnp.bfloat16(2), 'ratio': np.ones((1, 2))})
    writer.close()
    (events,) = (self.directory / 'tensorboard').iterdir()
    for tag in (b'loss', b'ratio/0_1'):
      self.assertIn(tag, events.read_bytes())

  def test_tensorboard_gets_the_pictures_of_a_step(self):
    (self.directory / 'samples').mkdir()
    for step in (3, 6):
      picture = PIL.Image.new('L', (5, 4), color=step)
      picture.save(self.directory / f'samples/{step:07d}.png')
    board = mock.Mock()
    with mock.patch.dict('sys.modules', {'tensorboardX': board}):
      writer = metric_writer.MetricWriter(self.directory)
      writer.show_pictures(6)
    (call,) = board.SummaryWriter.return_value.add_image.call_args_list
    name, pixels, step = call.args
    self.assertEqual((name, step), ('samples', 6))
    np.testing.assert_array_equal(pixels, np.full((4, 5, 3), 6))
    writer.close()

  def test_weights_and_biases_gets_the_same(self):
    (self.directory / 'samples').mkdir()
    PIL.Image.new('L', (5, 4)).save(self.directory / 'samples/0000002.png')
    wandb = mock.MagicMock()
    wandb.Error = KeyError
    with mock.patch.dict('sys.modules', {'wandb': wandb}):
      for first in (0, 2):
        writer = metric_writer.MetricWriter(
          self.directory, first_step=first, tensorboard=False, wandb='digits'
        )
        writer.write(first + 1, {'loss': 0.5, 'ratio': np.ones((1, 2))})
        writer.show_pictures(2)
        writer.close()
    once, again = wandb.init.call_args_list
    self.assertEqual(once, again)  # The same run goes on.
    self.assertEqual(once.kwargs['project'], 'digits')
    run = wandb.init.return_value
    logged = [
      (call.args[0], call.kwargs['step']) for call in run.log.mock_calls
    ]
    picture = {'samples': wandb.Image.return_value}
    self.assertEqual(
      logged[:4],
      [
        *(({'loss': 0.5}, 1), ({'ratio/0_0': 1.0}, 1), ({'ratio/0_1': 1.0}, 1)),
        (picture, 2),
      ],
    )
    self.assertEqual(run.finish.call_count, 2)
    wandb.init.side_effect = KeyError('no key\nfound')
    for module, reason in ((wandb, 'no key.*offline'), (None, 'not installed')):
      with (
        mock.patch.dict('sys.modules', {'wandb': module}),
        self.assertRaisesRegex(UserError, f'config.wandb=digits: .*{reason}'),
      ):
        metric_writer.MetricWriter(
          self.directory, tensorboard=False, wandb='digits'
        )

  def test_tensorboard_is_left_out_when_not_installed_or_not_wanted(self):
    with mock.patch.dict('sys.modules', {'tensorboardX': None}):
      self.write(0, 1)
    self.write(1, 2, tensorboard=False)
    self.assertEqual(os.listdir(self.directory), ['metrics.jsonl'])
    self.assertEqual(self.steps(), [1, 2])


class ProgressTest(parameterized.TestCase):
  def test_plain_lines_tell_step_total_rate_and_time_left(self):
    shown = io.StringIO()
    with (
      contextlib.redirect_stdout(shown),
      mock.patch('time.monotonic', side_effect=[0, 50, 55, 60, 62]),
    ):
      progress = metric_writer.Progress('nat', 100, first_step=10)
      progress.update(20)  # holds the compilation: starts the clock
      progress.update(25)  # too early for another line
      progress.update(40, {'loss': 0.12345, 'x': np.ones(3), 'time/a': 1.0})
      progress.update(100)  # the last one is always shown
      progress.close()
    self.assertEqual(
      shown.getvalue().splitlines(),
      [
        'nat 20/100',
        # 20 steps in 10 s; 60 are left.
        'nat 40/100  2 steps/s  ETA 30s  loss 0.1235',
        'nat 100/100  6.67 steps/s  ETA 0s',
      ],
    )

  def test_what_matters_comes_first(self):
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
      progress = metric_writer.Progress('nat', 1, shown=('reward', 'c', 'none'))
      metrics = {'a': 1, 'b': 2, 'c': np.ones(2), 'd': 3, 'e': 4, 'reward': 5}
      progress.update(1, metrics)
    self.assertEndsWith(shown.getvalue(), '  reward 5  a 1  b 2  d 3\n')

  def test_a_bar_on_a_terminal(self):
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
      progress = metric_writer.Progress('nat', 10, first_step=4)
      progress.update(7, {'loss': 0.5})
      with contextlib.redirect_stdout(io.StringIO()) as shown:
        progress.say('saved')
      progress.update(10)
      progress.close()
    self.assertIn('nat', terminal.getvalue())
    self.assertIn('10/10', terminal.getvalue())
    self.assertEqual(shown.getvalue(), 'saved\n')

  @parameterized.parameters(
    (0.4, '0s'), (59.6, '1m00s'), (185, '3m05s'), (7620, '2h07m')
  )
  def test_durations(self, seconds: float, text: str):
    self.assertEqual(metric_writer.format_seconds(seconds), text)


class FilesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.directory / 'figures.json'

  def test_the_old_file_stays_until_the_new_one_is_whole(self):
    files.write_json(self.path, {'a': np.float32(0.1)})
    self.assertEqual(self.path.read_text(), '{\n  "a": 0.1\n}\n')
    with (
      mock.patch('os.fsync', side_effect=OSError(28, 'No space left')),
      self.assertRaisesRegex(UserError, 'figures.json: .* written: No space'),
    ):
      files.write_json(self.path, {'a': 2})
    self.assertEqual(files.read_json(self.path), {'a': 0.1})
    # What the failed attempt has left is in nobody's way.
    files.write_json(self.path, {'a': 3})
    self.assertEqual(files.read_json(self.path), {'a': 3})
    self.assertEqual(os.listdir(self.directory), ['figures.json'])

  def test_broken_and_missing_files_are_named(self):
    with self.assertRaisesRegex(UserError, 'figures.json: no such file'):
      files.read_json(self.path)
    self.path.write_text('{"a": ')
    with self.assertRaisesRegex(UserError, 'figures.json: not valid JSON'):
      files.read_json(self.path)

  def test_narrow_floats_keep_their_shortest_text(self):
    values = {
      'half': np.float16(0.1),
      'bfloat': jnp.bfloat16(0.1),
      'wide': np.float64(0.1) + 0.2,
      'flag': np.bool_(True),
      'path': pathlib.Path('a/b'),
      'both': (np.int8(3), None),
      1: jnp.zeros((0, 2)),
    }
    self.assertEqual(
      files.to_json(values),
      {
        'half': 0.1,
        'bfloat': 0.100098,
        'wide': 0.30000000000000004,
        'flag': True,
        'path': 'a/b',
        'both': [3, None],
        '1': [],
      },
    )


if __name__ == '__main__':
  absltest.main()
