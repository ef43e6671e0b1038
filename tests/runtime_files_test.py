"""Files of a workdir: read in one way, whatever stands in them."""

import errno
import fcntl
import json
import os
import pathlib
from unittest import mock

from absl.testing import absltest, parameterized

from adanat_jax.errors import UserError
from adanat_jax.runtime import files, journal

_DEEP = 10_000


class ReadJsonTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.create_tempdir().full_path, 'a.json')

  def assert_refused(self, words, shape=dict):
    with self.assertRaisesRegex(UserError, words) as caught:
      files.read_json(self.path, shape, 'the remedy')
    message = str(caught.exception)
    self.assertStartsWith(message, f'{self.path}: ')
    self.assertEndsWith(message, '; the remedy')
    self.assertLess(len(message), 400)

  @parameterized.parameters(
    (b'', 'not valid JSON'),
    (b'{"a": ', 'not valid JSON'),
    (b'[]', 'an object'),
    (b'null', 'an object'),
    (b'"a"', 'an object'),
    (b'{"a": NaN}', 'NaN is no number'),
    (b'{"a": -Infinity}', '-Infinity is no number'),
    (b'{"a": 1e999}', 'not valid JSON'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'not valid JSON'),
    (b'{"a": "\\ud800"}', 'UTF-8'),
    (b'{"a": "\xff"}', 'UTF-8'),
    ('{"a": 1}'.encode('utf-16'), 'UTF-8'),
    (b'{"a":' * _DEEP + b'1' + b'}' * _DEEP, 'too deeply'),
    (b'{"a":' * 40 + b'1' + b'}' * 40, 'too deeply'),
    (b'{"a": 1, "format": 2, "checksum": 3}', 'its format is 2'),
    (b'{"a": 1, "format": "x"}', "its format is 'x'"),
    (b'{"a": 1, "format": 1}', 'checksum'),
    (b'{"a": 1, "checksum": 3}', 'checksum'),
  )
  def test_what_is_no_object_of_ours_is_refused(self, data, words):
    self.path.write_bytes(data)
    self.assert_refused(words)

  def test_what_is_no_file_is_refused_and_not_waited_for(self):
    self.assert_refused('no such file')
    self.path.mkdir()
    self.assert_refused('not a file')
    self.path.rmdir()
    os.mkfifo(self.path)
    self.assert_refused('not a file')
    self.path.unlink()
    self.path.symlink_to(self.path)
    self.assert_refused('cannot be read: Too many levels')
    with self.assertRaisesRegex(UserError, 'cannot be read'):
      files.read_json('a\0b')

  @parameterized.parameters(
    ({'a': int}, {'a': 1}, ''),
    ({'a': int}, {'a': 1.0}, 'a must be an integer'),
    ({'a': int}, {'a': True}, 'a must be an integer'),
    ({'a': int}, {}, 'a is missing'),
    ({'a': int}, {'a': -(2**63)}, 'a must be an integer'),
    ({'a?': int}, {}, ''),
    ({'a?': int}, {'a': ''}, 'a must be an integer'),
    ({'a': float}, {'a': 1}, ''),
    ({'a': bool}, {'a': 1}, 'a must be true or false'),
    ({'a': (int, None)}, {'a': None}, ''),
    ({'a': (int, None)}, {'a': []}, 'a must be an integer'),
    ({'a': object}, {'a': None}, ''),
    ({'a': [str]}, {'a': ['b', 3]}, r'a\.1 must be a text'),
    ({'a': {str: [float]}}, {'a': {'b': [1, None]}}, r'a\.b\.1 must be a num'),
    ({'a': {'b': int}}, {'a': {}}, r'a\.b is missing'),
    ({str: int}, {'\x1b[2J': 'x'}, r'\\x1b\[2J must be'),
  )
  def test_shapes(self, shape, value, words):
    self.path.write_text(json.dumps(value))
    if words:
      self.assert_refused(words, shape)
    else:
      self.assertEqual(files.read_json(self.path, shape), value)

  def test_one_changed_digit_of_a_sealed_file_is_found(self):
    value = {'a': {'b': [1, 0.1, 'é']}, 'c': float('nan')}
    files.write_json(self.path, value, sealed=True)
    self.assertEqual(
      files.read_json(self.path), {'a': {'b': [1, 0.1, 'é']}, 'c': 'nan'}
    )
    text = self.path.read_text()
    for index, digit in enumerate(text):
      if digit.isdecimal():
        other = text[:index] + str((int(digit) + 1) % 10) + text[index + 1 :]
        self.path.write_text(other)
        self.assert_refused('differs|its format is|JSON')
    # Whoever means it says so, and other white space is no change.
    record = json.loads(text)
    self.path.write_text(json.dumps(record))
    self.assertLen(files.read_json(self.path), 2)
    del record['format'], record['checksum']
    self.path.write_text(json.dumps({**record, 'a': 5}))
    self.assertEqual(files.read_json(self.path)['a'], 5)


class LockTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path, 'w')
    self.path = self.directory / '.nat.lock'

  def lock(self, part='nat'):
    return files.only_one(self.directory, part, 'somebody is here')

  def test_one_at_a_time_and_nothing_is_left(self):
    with self.lock(), self.lock('policy'):
      with self.assertRaisesRegex(UserError, '^somebody is here$'), self.lock():
        pass
    self.assertEmpty(os.listdir(self.directory))
    # What a killed process left is taken.
    self.path.touch(0o600)
    with self.lock():
      pass
    self.assertEmpty(os.listdir(self.directory))

  def test_a_file_that_its_owner_deletes_meanwhile_is_no_lock(self):
    flock = fcntl.flock

    def late(handle, operation):
      flock(handle, operation)
      if not seen:
        self.path.unlink()
      seen.append(os.fstat(handle).st_ino)

    seen = []
    with mock.patch.object(fcntl, 'flock', late), self.lock():
      self.assertLen(seen, 2)
      self.assertEqual(self.path.stat().st_ino, seen[1])

  def test_something_else_in_its_place_is_neither_followed_nor_waited_for(self):
    self.directory.mkdir()
    target = self.directory / 'target'
    for make in (
      lambda: os.mkfifo(self.path),
      lambda: self.path.symlink_to(target),
      self.path.mkdir,
    ):
      make()
      with self.assertRaisesRegex(UserError, 'is no lock of yours'):
        with self.lock():
          pass
      self.assertFalse(target.exists())
      self.path.rmdir() if self.path.is_dir() else self.path.unlink()
    self.path.touch()
    with (
      mock.patch.object(os, 'geteuid', return_value=os.getuid() + 1),
      self.assertRaisesRegex(UserError, 'is no lock of yours; delete it'),
      self.lock(),
    ):
      pass

  def test_a_file_system_without_locks_is_used_without(self):
    error = OSError(errno.ENOLCK, 'No locks available')
    with mock.patch.object(fcntl, 'flock', side_effect=error), self.lock():
      self.assertTrue(self.path.exists())


class JournalTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.create_tempdir().full_path)
    self.path = self.directory / 'results.json'

  def test_a_damaged_line_is_dropped_alone(self):
    path = self.directory / 'ledger.jsonl'
    ledger = journal.Ledger(path)
    for name in 'abc':
      ledger.get(name, lambda: {'distance': 0.25})
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'0.25', b'0.35')
    # As earlier versions wrote them.
    lines.append(b'{"name": "d", "value": 4}\n')
    lines.append(b'{"name": "e", "value": 4, "checksun": 3}\n')
    path.write_bytes(b''.join(lines) + b'{"name": "f", "value": 4}')
    ledger = journal.Ledger(path)
    self.assertEqual(path.read_bytes(), lines[0] + lines[2] + lines[3])
    for name, expected in zip('abcdef', (None, 1, None, 4, 1, 1), strict=True):
      value = ledger.get(name, lambda: 1)
      self.assertEqual(value, expected or {'distance': 0.25}, name)

  def test_results_are_those_that_the_stage_finished_with(self):
    self.assertFalse(journal.has_results(self.directory))
    files.write_json(self.path, {'rows': [0.25]})
    self.assertFalse(journal.has_results(self.directory))
    journal.mark_complete(self.directory, 1, {})
    self.assertTrue(journal.has_results(self.directory))
    self.assertEqual(journal.read_results(self.directory), {'rows': [0.25]})
    for change in (
      lambda: files.write_json(self.path, {'rows': [0.35]}),
      lambda: self.path.write_text('{'),
      self.path.unlink,
      self.path.mkdir,
    ):
      change()
      self.assertFalse(journal.has_results(self.directory))
      with self.assertRaisesRegex(UserError, 'json: .*; run this stage again'):
        journal.read_results(self.directory)

  def test_results_of_earlier_versions_are_known_by_their_shape(self):
    marker = self.directory / journal.COMPLETE_FILE
    marker.write_text('{"step": 1, "figures": {}}')
    self.path.write_text('{"rows": []}')
    self.assertTrue(journal.has_results(self.directory, {'rows': list}))
    self.assertFalse(journal.has_results(self.directory, {'rows': dict}))
    self.assertFalse(journal.has_results(self.directory, {'methods': list}))

  def test_a_damaged_marker_says_what_to_do(self):
    marker = self.directory / journal.COMPLETE_FILE
    for text in ('{}', '[]', '{"step": 1}', '{"step": 1, "figures": []}', '{'):
      marker.write_text(text)
      with self.assertRaisesRegex(UserError, 'json: .*; delete it and run'):
        journal.read_complete(self.directory)


if __name__ == '__main__':
  absltest.main()
