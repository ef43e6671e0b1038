"""Strangers at the port where processes meet: nobody is held, none believed."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
import contextlib
import json
import os
import secrets
import socket
import threading
import time
from typing import Any

from absl.testing import absltest, parameterized

from adanat_jax.errors import UserError
from adanat_jax.runtime import addresses, conversation, handshake

FACTS = {'jax': '0.10.2', '--num_processes': '2'}
VARIABLE = conversation.SECRET_VARIABLE
# All that a test may take, on a busy machine; the time-out of the meeting.
SECONDS = 20.0


def greeting(**more: Any) -> bytes:
  return json.dumps({'hello': 'adanat_jax 2', 'number': '0'} | more).encode()


# What strangers send at once.
SENTENCES = {
  'nothing': b'',
  'half_a_line': b'{"hello": "adanat_jax 2", "num',
  'http': b'GET / HTTP/1.1\r\n\r\n',
  'no_text': b'\xff\xfe\x00\n',
  'no_object': b'[]\n',
  'a_megabyte': b'a' * (1 << 20),
  'a_megabyte_of_greeting': greeting(more='a' * (1 << 20)) + b'\n',
  'deep': b'{"hello": ' + b'[' * 60_000 + b'\n',
  'deep_within_the_limit': b'{"a":' * 10_000 + b'1' + b'}' * 10_000 + b'\n',
  'a_long_integer': b'{"number": ' + b'9' * 60_000 + b'}\n',
  'quotes': b'{"a": "' + b'\\"' * 30_000 + b'\n',
  'unproven': greeting()
  + b'\n'
  + b'{"process": 1, "host": "h", "facts": {}}\n' * 3,
  'wrong_proof': greeting()
  + b'\n'
  + b'0' * 64
  + b' {"process": 1, "host": "h", "facts": {}}\n',
  'an_older_version': b'{"hello": "adanat_jax", "process": 1, "host": "h", '
  b'"facts": {"jax": "0.10.2", "--num_processes": "2"}}\n',
}


class Meeting:
  """A process 0 that waits for a process 1."""

  def __init__(self, num_processes: int = 2, timeout: float = SECONDS):
    self.port = addresses.free_port()
    self.address = f'127.0.0.1:{self.port}'
    self.told: list[str] = []
    self._thread = threading.Thread(
      target=self._preside, args=(num_processes, timeout), daemon=True
    )
    self._thread.start()

  def _preside(self, num_processes: int, timeout: float) -> None:
    try:
      handshake.meet(self.address, num_processes, 0, FACTS, timeout)
      self.told.append('')
    except UserError as error:
      self.told.append(str(error))

  def connect(self) -> socket.socket:
    """A connection to it, which may be about to begin."""
    for _ in range(100):
      with contextlib.suppress(ConnectionRefusedError):
        return socket.create_connection(('127.0.0.1', self.port), timeout=5)
      time.sleep(0.05)
    raise TimeoutError('process 0 does not listen')

  def verdict(self) -> str:
    self._thread.join(SECONDS)
    return self.told[0]


class Guest:
  """A guest that follows the rules, with any secret and any introduction."""

  def __init__(self, port: int, secret: bytes = b''):
    self._loop = asyncio.new_event_loop()
    self._reader, self.writer = self._run(
      asyncio.open_connection('127.0.0.1', port)
    )
    self.talk = conversation.Conversation(
      self._reader, self.writer, 'guest', 'host', secret
    )
    self._run(self.talk.greet())

  def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
    return self._loop.run_until_complete(asyncio.wait_for(coroutine, 10))

  def say(self, **message: Any) -> None:
    self._run(self.talk.say(message))

  def hear(self) -> dict[str, Any]:
    return self._run(self.talk.hear())

  def introduce(self, process: Any = 1, **more: Any) -> None:
    self.say(**{'process': process, 'host': 'h', 'facts': FACTS} | more)

  def leave(self) -> None:
    self.writer.transport.abort()
    self._loop.run_until_complete(asyncio.sleep(0))
    self._loop.close()


class StrangersTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    environment = dict(os.environ)
    environment.pop(VARIABLE, None)
    self.enter_context(
      absltest.mock.patch.dict(os.environ, environment, clear=True)
    )
    began = time.monotonic()
    self.addCleanup(lambda: self.assertLess(time.monotonic() - began, SECONDS))

  def assert_well(self, meeting: Meeting) -> None:
    """Process 1 comes, and both hear that all is well, soon."""
    began = time.monotonic()
    handshake.meet(meeting.address, 2, 1, FACTS, SECONDS)
    self.assertEqual(meeting.verdict(), '')
    self.assertLess(time.monotonic() - began, SECONDS / 2)

  @parameterized.named_parameters(SENTENCES.items())
  def test_what_strangers_send(self, sentence: bytes):
    meeting = Meeting()
    with meeting.connect() as one, meeting.connect() as other:
      for stranger in (one, other):
        with contextlib.suppress(ConnectionError):
          stranger.sendall(sentence)
      self.assert_well(meeting)

  def test_what_strangers_send_as_guests_without_a_secret(self):
    meeting = Meeting()
    meeting.connect().close()
    deep: Any = 0
    for _ in range(900):
      deep = [deep]
    for process, more in (
      (0, {}),
      (2, {}),
      (-1, {}),
      (True, {}),
      ('1', {}),
      (1.0, {}),
      (10**400, {}),
      (None, {}),
      (1, {'host': None}),
      (1, {'facts': []}),
      (1, {'facts': {'deep': deep}}),
    ):
      with self.subTest(process=process, more=list(more)):
        guest = Guest(meeting.port)
        guest.introduce(process, **more)
        with self.assertRaises(OSError):
          guest.hear()
        guest.leave()
    self.assert_well(meeting)

  @parameterized.parameters(b'', b'GET / ', greeting())
  def test_one_byte_now_and_then(self, beginning: bytes):
    meeting = Meeting(timeout=2.5)
    with self.slowly(meeting.connect(), beginning):
      self.assert_well(meeting)
    # Nor is the deadline asked only between two strangers.
    meeting = Meeting(timeout=2.5)
    began = time.monotonic()
    with self.slowly(meeting.connect(), beginning):
      self.assertIn('missing: 1', meeting.verdict())
    self.assertBetween(time.monotonic() - began, 2, SECONDS / 2)

  @contextlib.contextmanager
  def slowly(
    self, connection: socket.socket, beginning: bytes = b''
  ) -> Iterator[None]:
    """Sends a byte every 0.2 s, for at most 5 s."""
    enough = threading.Event()

    def send() -> None:
      with contextlib.suppress(OSError):
        connection.sendall(beginning)
        for _ in range(25):
          connection.sendall(b'a')
          if enough.wait(0.2):
            return

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
      yield
    finally:
      enough.set()
      thread.join()
      connection.close()

  def test_more_strangers_than_are_heard(self):
    meeting = Meeting()
    with contextlib.ExitStack() as stack:
      for _ in range(200):
        stack.enter_context(meeting.connect())
      self.assert_well(meeting)

  def test_a_guest_that_has_left_is_not_counted(self):
    for after in ('greeting', 'introduction', 'welcome', 'all'):
      with self.subTest(after):
        meeting = Meeting()
        meeting.connect().close()
        # With three processes, it would wait for both.
        guest = Guest(meeting.port)
        if after != 'greeting':
          guest.introduce(1, facts={'jax': 'another'})
        if after == 'welcome':
          guest.hear()
        if after != 'all':
          guest.leave()
          self.assert_well(meeting)
        else:
          guest.hear()
          guest.say(here=1)
          self.assertIn('jax is 0.10.2', guest.hear()['verdict'])
          guest.leave()
          self.assertIn('jax is 0.10.2', meeting.verdict())

  def test_a_guest_that_leaves_later_is_not_counted(self):
    meeting = Meeting(num_processes=3, timeout=1.5)
    meeting.connect().close()
    for _ in range(2):
      guest = Guest(meeting.port)
      guest.introduce(1)
      guest.hear()
      guest.say(here=1)
      guest.leave()
      time.sleep(0.1)
    verdict = meeting.verdict()
    self.assertIn('only 1 of 3 processes came', verdict)
    self.assertIn('missing: 1, 2', verdict)

  def test_a_taken_number_is_no_second_process(self):
    meeting = Meeting(num_processes=3)
    meeting.connect().close()
    told = []
    guests = [Guest(meeting.port) for _ in range(2)]
    for guest in guests:
      guest.introduce(1)
      guest.hear()
      guest.say(here=1)
    for guest in guests:
      told.append(guest.hear()['verdict'])
      guest.leave()
    self.assertEqual(told, [meeting.verdict()] * 2)
    self.assertIn('two processes have --process_id=1', told[0])

  @parameterized.parameters(b'', b'another', b'0123')
  def test_without_the_secret_nobody_is_believed(self, secret: bytes):
    ours = secrets.token_hex(16)
    with absltest.mock.patch.dict(os.environ, {VARIABLE: ours}):
      meeting = Meeting(timeout=4)
      meeting.connect().close()
      for _ in range(3):
        guest = Guest(meeting.port, secret)
        guest.introduce(1)
        with self.assertRaises(OSError):
          guest.hear()
        guest.leave()
      self.assert_well(meeting)
      # They do not count, and process 0 says why.
      meeting = Meeting(timeout=1.5)
      meeting.connect().close()
      guest = Guest(meeting.port, secret)
      guest.introduce(1)
      verdict = meeting.verdict()
      guest.leave()
    self.assertIn('only 1 of 2 processes came', verdict)
    self.assertRegex(
      verdict, f'the last 127.0.0.1 because it has no {VARIABLE}, or another'
    )
    self.assertNotIn(ours, verdict)

  def test_processes_with_different_secrets(self):
    """Process 1 says where to look."""
    with absltest.mock.patch.dict(os.environ, {VARIABLE: 'one secret'}):
      meeting = Meeting(timeout=3)
      meeting.connect().close()
    time.sleep(0.2)
    with (
      absltest.mock.patch.dict(os.environ, {VARIABLE: 'another secret'}),
      self.assertRaisesRegex(UserError, f'is {VARIABLE} the same in both'),
    ):
      handshake.meet(meeting.address, 2, 1, FACTS, 1.5)
    self.assertIn(f'no {VARIABLE}, or another', meeting.verdict())

  def test_the_secret_is_never_sent(self):
    """What a listener hears of a meeting, and says again, is no use."""
    ours = secrets.token_hex(16)
    with absltest.mock.patch.dict(os.environ, {VARIABLE: ours}):
      heard: list[bytes] = []
      meeting = Meeting()
      relay = Relay(meeting, heard)
      handshake.meet(relay.address, 2, 1, FACTS, SECONDS)
      self.assertEqual(meeting.verdict(), '')
      relay.thread.join(5)
      whole = b''.join(heard)
      self.assertIn(b'verdict', whole)
      self.assertNotIn(ours.encode(), whole)
      meeting = Meeting()
      with meeting.connect() as stranger:
        # Process 0 may have hung up on the first of them.
        with contextlib.suppress(ConnectionError):
          stranger.sendall(b''.join(heard[::2]))
          stranger.sendall(b''.join(heard))
        self.assert_well(meeting)

  @parameterized.parameters('host', 'facts', 'name')
  def test_control_characters_are_shown_escaped(self, place: str):
    foul = '\x1b[2J\r\nroot# \u202e\ud800\x00' + 'a' * 5000
    more = {
      'host': {'host': foul, 'facts': FACTS | {'jax': '9'}},
      'facts': {'facts': FACTS | {'jax': foul}},
      'name': {'facts': FACTS | {foul: 'a'}},
    }[place]
    meeting = Meeting()
    meeting.connect().close()
    guest = Guest(meeting.port)
    guest.introduce(1, **more)
    guest.hear()
    guest.say(here=1)
    told = guest.hear()['verdict']
    guest.leave()
    self.assertEqual(told, meeting.verdict())
    self.assertTrue(meeting.verdict().isprintable(), meeting.verdict())
    self.assertIn('\\x1b[2J\\r\\nroot# ', meeting.verdict())
    self.assertLess(len(meeting.verdict()), 1000)


class Relay:
  """Passes one connection on and keeps what it hears."""

  def __init__(self, meeting: Meeting, heard: list[bytes]):
    self._meeting = meeting
    self._heard = heard
    self._server = socket.create_server(('127.0.0.1', 0))
    self.address = f'127.0.0.1:{self._server.getsockname()[1]}'
    self.thread = threading.Thread(target=self._pass_on, daemon=True)
    self.thread.start()

  def _pass_on(self) -> None:
    with self._server:
      theirs, _ = self._server.accept()
    with theirs, self._meeting.connect() as ours:
      back = threading.Thread(target=self._copy, args=(ours, theirs))
      back.start()
      self._copy(theirs, ours)
      back.join(5)

  def _copy(self, source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
      while piece := source.recv(1 << 16):
        self._heard.append(piece)
        target.sendall(piece)
      target.shutdown(socket.SHUT_WR)


class ImpostorTest(parameterized.TestCase):
  """Something else than process 0 listens where it should."""

  def setUp(self):
    super().setUp()
    self.enter_context(
      absltest.mock.patch.dict(os.environ, {VARIABLE: secrets.token_hex(16)})
    )

  def visit(
    self, answer: Callable[[socket.socket], None], timeout: float = 0.8
  ) -> str:
    """What process 1 says that was answered by a stranger."""
    server = self.enter_context(socket.create_server(('127.0.0.1', 0)))
    server.settimeout(timeout)
    open_ones = []

    def serve() -> None:
      for _ in range(20):
        try:
          connection, _ = server.accept()
        except OSError:
          return
        open_ones.append(connection)
        with contextlib.suppress(OSError):
          answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    began = time.monotonic()
    with self.assertRaises(UserError) as caught:
      address = f'127.0.0.1:{server.getsockname()[1]}'
      handshake.meet(address, 2, 1, FACTS, timeout)
    self.assertLess(time.monotonic() - began, SECONDS / 2)
    server.shutdown(socket.SHUT_RDWR)  # It ends a call of accept.
    thread.join(5)
    for connection in open_ones:
      connection.close()
    return str(caught.exception)

  @parameterized.parameters(
    b'',
    b'{"verdict": ""}\n',
    greeting() + b'\n{"verdict": ""}\n',
    greeting() + b'\n' + b'0' * 64 + b' {"verdict": ""}\n',
    b'a' * (1 << 20),
    b'{"a":' * 10_000 + b'\n',
    b'\x1b[2J\n',
  )
  def test_its_verdict_is_not_believed(self, sentence: bytes):
    told = self.visit(lambda connection: connection.sendall(sentence))
    self.assertIn('process 1 (', told)
    self.assertIn('no answer from process 0', told)
    self.assertTrue(told.isprintable())

  def test_one_byte_now_and_then(self):
    def answer(connection: socket.socket) -> None:
      for byte in greeting()[:8]:
        connection.sendall(bytes([byte]))
        time.sleep(0.2)

    self.assertIn('no answer from process 0', self.visit(answer))

  def test_it_sends_back_what_it_hears(self):
    def answer(connection: socket.socket) -> None:
      connection.settimeout(1)
      for _ in range(10):
        connection.sendall(connection.recv(1 << 16))

    self.assertIn('no answer from process 0', self.visit(answer))

  def test_an_older_process_0_hears_that_we_are_newer(self):
    """And an older guest shows the verdict that it is greeted with."""
    heard = []

    def answer(connection: socket.socket) -> None:
      connection.settimeout(1)
      heard.append(json.loads(connection.recv(1 << 16)))

    self.visit(answer)
    self.assertNotIn('process', heard[0])
    self.assertRegex(heard[0]['verdict'], '^process 0 runs another version')


class AddressesTest(parameterized.TestCase):
  def listen(
    self, address: str, place: str | None = None
  ) -> tuple[list[tuple[str, int]], str]:
    """Where process 0 listens, and where JAX will."""
    listeners, where = addresses.listen(address, place or address, 2, 0.5)
    names = [listener.getsockname()[:2] for listener in listeners]
    for listener in listeners:
      listener.close()
    return names, where

  def test_loopback_is_nowhere_else(self):
    port = addresses.free_port()
    listeners, place = addresses.listen(
      f'127.0.0.1:{port}', f'127.0.0.1:{port}', 2, 5
    )
    self.assertEqual(place, f'127.0.0.1:{port}')
    self.assertLen(listeners, 1)
    with listeners[0]:
      socket.create_connection(('127.0.0.1', port), timeout=5).close()
      # All of 127.0.0.0/8 is this machine, where Linux runs.
      with self.assertRaises(OSError):
        socket.create_connection(('127.0.0.2', port), timeout=5).close()

  def test_another_place_to_listen_at(self):
    port = addresses.free_port()
    names, place = self.listen('worker-0.invalid:81', f'127.0.0.1:{port}')
    self.assertEqual(names, [('127.0.0.1', port)])
    self.assertEqual(place, f'127.0.0.1:{port}')
    with self.assertRaisesRegex(UserError, 'BIND_ADDRESS=port: HOST:PORT is'):
      self.listen('localhost:81', 'port')

  @parameterized.parameters(
    ('nohost.invalid:81', 'cannot listen there .*HOST:PORT has it listen'),
    ('a..b:81', 'this cannot be the name of a host'),
    (f'{"a" * 70}:81', 'this cannot be the name of a host'),
    # For documentation (RFC 5737): no machine has it.
    ('192.0.2.1:81', 'Cannot assign requested address.: it has to run on'),
  )
  def test_places_that_are_none(self, address: str, message: str):
    with self.assertRaisesRegex(UserError, message):
      self.listen(address)

  def test_a_name_server_that_is_silent(self):
    enough = threading.Event()
    self.addCleanup(enough.set)
    self.enter_context(
      absltest.mock.patch.object(
        addresses.socket,
        'getaddrinfo',
        lambda *a, **k: [][: enough.wait(SECONDS)],
      )
    )
    began = time.monotonic()
    with self.assertRaisesRegex(UserError, 'is not found in time'):
      self.listen('worker-0:81')
    self.assertLess(time.monotonic() - began, SECONDS / 2)

  @parameterized.parameters(
    ('worker-0', '127.0.1.1', False),
    ('localhost', '127.0.0.1', True),
    ('localhost.localdomain', '127.0.0.1', True),
    ('127.0.0.1', '127.0.0.1', True),
    ('worker-0', '192.0.2.1', False),
  )
  def test_who_is_warned(self, host: str, found: str, private: bool):
    """Debian gives a machine's own name a loopback address on itself."""
    places = []

    def bind(found: Any, backlog: int) -> list[socket.socket]:
      places.extend(found)
      return []

    mock = absltest.mock.patch.object
    self.enter_context(mock(addresses, '_bind', bind))
    self.enter_context(
      mock(
        addresses,
        'resolve',
        lambda *unused: [(socket.AF_INET, (found, 81))],
      )
    )
    for secret in ('', 'a long random text'):
      places.clear()
      with (
        absltest.mock.patch.dict(os.environ, {VARIABLE: secret}),
        mock(addresses.logging, 'warning') as warning,
      ):
        _, place = self.listen(f'{host}:81')
      warned = [VARIABLE in call.args for call in warning.call_args_list]
      self.assertEqual(warned, [True] if not (private or secret) else [])
      everywhere = places[0][1][0] in ('::', '0.0.0.0')
      self.assertEqual(everywhere, found == '127.0.1.1')
      self.assertEqual(place == f'{host}:81', not everywhere)


if __name__ == '__main__':
  absltest.main()
