"""Checks, before JAX connects the processes, that all are there and agree.

If a process is missing, JAX aborts the others from C++ with a stack trace that
does not name it. So the processes first talk over plain TCP, at the address
that JAX will use:

  1. process 0 listens; the others try to connect until the time is up, and
     introduce themselves: number, host, and facts such as versions. Process 0
     welcomes each, and counts it once it has answered and until it leaves;
  2. once all are connected or the time is up, process 0 checks that none is
     missing or duplicated and that all facts agree;
  3. it sends all the same one-line verdict, empty if all is well, and frees
     the port for JAX.

Anybody who reaches the port may talk to it. All are heard at the same time,
none for longer than a few seconds, and none is believed that does not know the
run's secret (`adanat_jax.runtime.conversation`).
"""

import asyncio
from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import hashlib
import json
import os
import socket
import struct
import time
from typing import Any

from adanat_jax.errors import UserError, printable
from adanat_jax.runtime import addresses, conversation
from adanat_jax.runtime.conversation import Conversation, StrangerError

# For one attempt to connect, and for one introduction.
_PATIENCE_SECONDS = 5.0
_GOODBYE_SECONDS = 2.0
_PAUSE_SECONDS = 0.2
# More than these who have not introduced themselves are not heard at once.
_MAX_STRANGERS = 128
_MAX_SHOWN = 4
_LONGEST_FACT = 200
_LONGEST_INTRODUCTION = conversation.MAX_SENTENCE - 200
_LONGEST_SHOWN = 60
_LARGEST_NUMBER = 1 << 20
_LONGEST_DIFFERENCES = 800
_LONGEST_VERDICT = 1000


@dataclasses.dataclass(frozen=True)
class Attendee:
  """How a process introduces itself."""

  process: int  # Its number.
  host: str  # The name of its machine.
  facts: Mapping[str, str]  # What must be the same in all processes, by name.

  def __str__(self) -> str:
    return f'process {self.process} ({_shown(self.host)})'


def meet(
  address: str,
  num_processes: int,
  process: int,
  facts: Mapping[str, str],
  timeout: float,
) -> str:
  """Returns once all processes have met and agree.

  Args:
    address: HOST:PORT of process 0; the port is free again afterwards.
    num_processes: number of processes.
    process: this one's number, from 0.
    facts: what must be the same in all processes, by name.
    timeout: seconds to wait for the others.

  Returns:
    HOST:PORT at which process 0 listened, and JAX's coordinator should.

  Raises:
    UserError: in every process that came, with the same message.
  """
  deadline = time.monotonic() + timeout
  place = os.environ.get(addresses.BIND_VARIABLE) or address
  us = Attendee(
    process,
    socket.gethostname(),
    {name: _compact(value) for name, value in facts.items()},
  )
  if len(json.dumps(dataclasses.asdict(us))) > _LONGEST_INTRODUCTION:
    raise UserError(
      'the config is too long for the processes to compare: '
      f'{len(us.facts)} values'
    )
  if process == 0:
    with contextlib.ExitStack() as stack:
      listeners, place = addresses.listen(
        address, place, num_processes, min(timeout, _PATIENCE_SECONDS)
      )
      for listener in listeners:
        stack.enter_context(listener)
      if num_processes == 1:
        return place
      where = f'{address} within {timeout:g} s'
      verdict = asyncio.run(
        _preside(listeners, num_processes, us, deadline, where)
      )
  else:
    verdict = asyncio.run(_attend(address, us, deadline, timeout))
  if verdict:
    raise UserError(verdict)
  return place


def judge(
  attendees: Sequence[Attendee],
  num_processes: int,
  where: str,
  turned_away: str = '',
) -> str:
  """Returns what is wrong with the attendees, in one line; '' if nothing.

  Process 0 comes first. The message says `where` they met, and who was
  `turned_away`.
  """
  problems = _differences(attendees)
  if problems:
    shown = problems[:_MAX_SHOWN]
    if len(problems) > len(shown):
      shown.append(f'and {len(problems) - len(shown)} more')
    text = '; '.join(shown)
    if len(text) > _LONGEST_DIFFERENCES:
      text = f'{text[:_LONGEST_DIFFERENCES]}...'
    return (
      f'the processes differ: {text}. Start the same command with the same '
      'code and libraries on every host'
    )
  came = {attendee.process for attendee in attendees}
  missing = [str(i) for i in range(num_processes) if i not in came]
  if missing:
    text = ', '.join(missing[:8]) + (', ...' if len(missing) > 8 else '')
    return (
      f'only {len(came)} of {num_processes} processes came to {where}, '
      f'missing: {text}{turned_away}. Start the same command on every host '
      '(gcloud: --worker=all), and check that each can reach this address'
    )
  return ''


class _Reception:
  """Process 0's side of all connections, each a task of its own."""

  def __init__(self, us: Attendee, num_processes: int):
    """Nobody is here yet."""
    self._us = us
    self._num_processes = num_processes
    self._key = conversation.secret()
    self._changed = asyncio.Event()
    # Who has not introduced itself yet, the oldest first.
    self._strangers: dict[asyncio.Task[None], None] = {}
    self._guests: dict[asyncio.Task[None], tuple[Attendee, Conversation]] = {}
    self._refusals = 0
    self._last_refusal = ''

  @property
  def attendees(self) -> list[Attendee]:
    """This process, and those that have introduced themselves and are here."""
    return [self._us, *(attendee for attendee, _ in self._guests.values())]

  @property
  def turned_away(self) -> str:
    """Who was not believed, as part of a sentence; '' if nobody."""
    if not self._refusals:
      return ''
    return f'; turned away: {self._refusals}, the last {self._last_refusal}'

  def receive(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    """Begins to hear a connection; asyncio calls this for each."""
    if len(self._strangers) >= _MAX_STRANGERS:
      next(iter(self._strangers)).cancel()
    task = asyncio.create_task(self._hear(reader, writer))
    self._strangers[task] = None
    task.add_done_callback(self._forget)

  async def wait_for_all(self) -> None:
    """Returns once as many are here as there are processes."""
    while len(self._guests) < self._num_processes - 1:
      self._changed.clear()
      await self._changed.wait()

  async def tell_all(self, verdict: str) -> None:
    """Tells all guests the verdict, and waits for them to leave.

    The side that closes first keeps its port busy for a while. That must be
    theirs: JAX needs ours.
    """
    guests = dict(self._guests)
    if not guests:
      return
    told = [talk.say({'verdict': verdict}) for _, talk in guests.values()]
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(_GOODBYE_SECONDS):
        await asyncio.gather(*told, return_exceptions=True)
        await asyncio.wait(guests)

  async def end(self) -> None:
    """Drops whoever is still here."""
    tasks = [*self._strangers, *self._guests]
    for task in tasks:
      task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

  async def _hear(
    self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
  ) -> None:
    """Hears one connection from its beginning to its end."""
    task = asyncio.current_task()
    assert task is not None
    talk = Conversation(reader, writer, 'host', 'guest', self._key)
    try:
      _notice_dead_hosts(writer)
      async with asyncio.timeout(_PATIENCE_SECONDS):
        attendee = await self._introduction(talk)
      del self._strangers[task]
      self._guests[task] = attendee, talk
      self._changed.set()
      await talk.wait_for_end()
    except (StrangerError, OSError) as error:
      if task in self._strangers:
        self._refuse(writer, error)
    finally:
      writer.transport.abort()

  async def _introduction(self, talk: Conversation) -> Attendee:
    """Hears who has connected.

    Raises:
      StrangerError: if it is not one of our processes.
      OSError: if it leaves, or says nothing in time.
    """
    await talk.greet()
    guest = parse_attendee(await talk.hear())
    # Those that differ are heard: the user has to learn of them.
    if guest.facts == self._us.facts and not (
      0 < guest.process < self._num_processes
    ):
      raise StrangerError(f'it says that it is process {guest.process}')
    await talk.say({'welcome': guest.process})
    # One that has left does not answer, and is not counted.
    await talk.hear()
    return guest

  def _refuse(self, writer: asyncio.StreamWriter, error: Exception) -> None:
    """Remembers why a stranger is turned away, for the verdict."""
    self._refusals += 1
    peer = writer.get_extra_info('peername') or ('?',)
    self._last_refusal = f'{peer[0]} because {addresses.reason(error)}'
    # Reset, for a connection that we close would keep the port busy.
    with contextlib.suppress(OSError):
      writer.get_extra_info('socket').setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)
      )

  def _forget(self, task: asyncio.Task[None]) -> None:
    self._strangers.pop(task, None)
    self._guests.pop(task, None)


async def _preside(
  listeners: Sequence[socket.socket],
  num_processes: int,
  us: Attendee,
  deadline: float,
  where: str,
) -> str:
  """Process 0's part; returns the verdict that it sent to all."""
  reception = _Reception(us, num_processes)
  servers = [
    await asyncio.start_server(
      reception.receive, sock=listener, limit=conversation.MAX_SENTENCE
    )
    for listener in listeners
  ]
  try:
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(deadline - time.monotonic()):
        await reception.wait_for_all()
    for server in servers:
      server.close()
    verdict = judge(
      reception.attendees, num_processes, where, reception.turned_away
    )
    await reception.tell_all(verdict)
  finally:
    await reception.end()
  return verdict


async def _attend(
  address: str, us: Attendee, deadline: float, timeout: float
) -> str:
  """The other processes' part; returns the verdict of process 0."""
  reason = 'no answer'
  while (remaining := deadline - time.monotonic()) > 0:
    try:
      return await _visit(
        address, us, min(remaining, _PATIENCE_SECONDS), timeout
      )
    except (StrangerError, OSError) as error:
      reason = addresses.reason(error)
    await asyncio.sleep(
      min(_PAUSE_SECONDS, max(deadline - time.monotonic(), 0))
    )
  return (
    f'{us} got no answer from process 0 at {address} within {timeout:g} s '
    f'({reason}): check --coordinator_address, that process 0 is running, and '
    'that no firewall blocks the port'
  )


async def _visit(
  address: str, us: Attendee, patience: float, timeout: float
) -> str:
  """Goes to process 0 once; returns its verdict.

  Process 0 has to bid welcome within the patience. From then on it has the
  whole time-out: it may have been started later than this process.

  Raises:
    StrangerError: if something else answers.
    OSError: if nothing does, or not in time.
  """
  writer = None
  try:
    async with asyncio.timeout(patience):
      reader, writer = await _connect(address, patience)
      talk = Conversation(
        reader, writer, 'guest', 'host', conversation.secret()
      )
      await talk.greet()
      await talk.say(dataclasses.asdict(us))
      try:
        await talk.hear()
      except ConnectionError:
        raise StrangerError(
          'it turned this process away: is '
          f'{conversation.SECRET_VARIABLE} the same in both?'
        ) from None
      await talk.say({'here': us.process})
    async with asyncio.timeout(timeout + _PATIENCE_SECONDS):
      verdict = (await talk.hear()).get('verdict')
  finally:
    if writer is not None:
      writer.transport.abort()
  if not isinstance(verdict, str):
    raise StrangerError('it does not speak as our processes do')
  return printable(verdict[:_LONGEST_VERDICT])


async def _connect(
  address: str, patience: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
  """Connects to the first address of a name that answers."""
  problem = OSError('its name has no address')
  for family, place in addresses.resolve(
    *addresses.split_address(address), patience
  ):
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
      connection.setblocking(False)
      await asyncio.get_running_loop().sock_connect(connection, place)
      return await asyncio.open_connection(
        sock=connection, limit=conversation.MAX_SENTENCE
      )
    except BaseException as error:
      connection.close()
      if not isinstance(error, OSError):
        raise
      problem = error
  raise problem


def parse_attendee(said: Mapping[str, Any]) -> Attendee:
  """Returns who introduces itself by a sentence.

  Raises:
    StrangerError: if it is no introduction.
  """
  process, host, facts = (said.get(k) for k in ('process', 'host', 'facts'))
  if (
    not isinstance(process, int)
    or isinstance(process, bool)
    or not 0 <= process <= _LARGEST_NUMBER
    or not isinstance(host, str)
    or not isinstance(facts, dict)
  ):
    raise StrangerError('it does not speak as our processes do')
  # Another version of this program may send more; its facts differ anyway.
  return Attendee(process, host, {k: str(v) for k, v in facts.items()})


def _notice_dead_hosts(writer: asyncio.StreamWriter) -> None:
  """Has the kernel ask every few seconds whether the other machine is there."""
  connection = writer.get_extra_info('socket')
  connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in (
    ('TCP_KEEPIDLE', 5),
    ('TCP_KEEPINTVL', 5),
    ('TCP_KEEPCNT', 3),
  ):
    if hasattr(socket, name):  # macOS lacks the first.
      connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _compact(value: str) -> str:
  """Returns a fact in a length that fits into a sentence, still distinct."""
  if len(value) <= _LONGEST_FACT:
    return value
  digest = hashlib.sha256(value.encode('utf-8', 'surrogatepass')).hexdigest()
  return f'{value[:_LONGEST_FACT]}... ({len(value)} characters, {digest[:12]})'


def _differences(attendees: Sequence[Attendee]) -> list[str]:
  """Returns what differs from the first attendee, as parts of a sentence."""
  by_number: dict[int, Attendee] = {}
  problems = []
  for attendee in attendees:
    twin = by_number.setdefault(attendee.process, attendee)
    if twin is not attendee:
      problems.append(
        f'two processes have --process_id={attendee.process}, on '
        f'{_shown(twin.host)} and {_shown(attendee.host)}'
      )
  expected = attendees[0].facts
  for attendee in attendees[1:]:
    for name in {**expected, **attendee.facts}:
      ours, theirs = expected.get(name), attendee.facts.get(name)
      if ours != theirs:
        shown = _shown_apart(ours or 'absent', theirs or 'absent')
        problems.append(
          f'{_shown(name)} is {shown[0]} in {attendees[0]} and '
          f'{shown[1]} in {attendee}'
        )
  return problems


def _shown_apart(ours: str, theirs: str) -> tuple[str, str]:
  """Two texts as they are shown: long ones from where they differ."""
  if max(len(ours), len(theirs)) <= _LONGEST_SHOWN:
    return _shown(ours), _shown(theirs)
  same = len(os.path.commonprefix([ours, theirs]))
  start = max(same - _LONGEST_SHOWN // 2, 0)
  dots = '...' if start else ''
  return dots + _shown(ours[start:]), dots + _shown(theirs[start:])


def _shown(text: str) -> str:
  """Another process's text as it is shown: escaped, and not too long."""
  escaped = printable(text[:_LONGEST_SHOWN])
  if len(escaped) == len(text):
    return escaped
  cut = escaped[:_LONGEST_SHOWN]
  return f'{cut}...' if len(text) > _LONGEST_SHOWN or cut != escaped else cut
