"""Processes meet before JAX connects them: who is missing, and who differs.

JAX's own connecting aborts a process from C++ when another one does not come,
with a stack trace that does not say which. So every process first meets the
others over the same address and port, in plain TCP and before JAX uses it:

  1. process 0 listens; the others connect, again and again until the time is
     up, and say who they are: number, host, versions, config;
  2. when all have come, or the time is up, process 0 judges: nobody is missing
     or there twice, and all say the same;
  3. it answers everybody with the same one line, empty if all is well, and
     closes the port for JAX.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import json
import socket
import time

from adanat_jax.errors import UserError

_HELLO = 'adanat_jax'
# How long one attempt to connect, or one sentence of the other side, may take.
_PATIENCE_SECONDS = 5.0
_MAX_SENTENCE = 1 << 22
_MAX_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Attendee:
  """What a process says of itself.

  Attributes:
    process: its number.
    host: the name of its machine.
    facts: what has to be the same in all processes, by name.
  """

  process: int
  host: str
  facts: Mapping[str, str]

  def __str__(self) -> str:
    return f'process {self.process} ({self.host})'


def meet(
  address: str,
  num_processes: int,
  process: int,
  facts: Mapping[str, str],
  timeout: float,
) -> None:
  """Returns once all processes have come and agree.

  Args:
    address: HOST:PORT of process 0; the port is free again afterwards.
    num_processes: how many there have to be.
    process: this one's number, 0 to `num_processes` - 1.
    facts: what has to be the same in all processes, by name.
    timeout: seconds to wait for the others.

  Raises:
    UserError: in every process that came, the same line.
  """
  if num_processes == 1:
    return
  deadline = time.monotonic() + timeout
  us = Attendee(process, socket.gethostname(), dict(facts))
  if process == 0:
    verdict = _preside(address, num_processes, us, deadline, timeout)
  else:
    verdict = _attend(address, us, deadline, timeout)
  if verdict:
    raise UserError(verdict)


def judge(attendees: Sequence[Attendee], num_processes: int, where: str) -> str:
  """Returns what is wrong with those who came, in one line; '' if nothing.

  Args:
    attendees: those who came, process 0 first.
    num_processes: how many there have to be.
    where: the address and the time-out, for the message.
  """
  by_number: dict[int, Attendee] = {}
  problems = []
  for attendee in attendees:
    twin = by_number.setdefault(attendee.process, attendee)
    if twin is not attendee:
      problems.append(
        f'two processes have --process_id={attendee.process}, on {twin.host} '
        f'and {attendee.host}'
      )
  expected = attendees[0].facts
  for attendee in attendees[1:]:
    names = {**expected, **attendee.facts}
    for name in names:
      ours, theirs = expected.get(name), attendee.facts.get(name)
      if ours != theirs:
        problems.append(
          f'{name} is {ours or "absent"} in {attendees[0]} and '
          f'{theirs or "absent"} in {attendee}'
        )
  if problems:
    shown = problems[:_MAX_SHOWN]
    if len(problems) > len(shown):
      shown.append(f'and {len(problems) - len(shown)} more')
    return (
      f'processes do not fit together: {"; ".join(shown)}. Start the same '
      'command with the same code and libraries everywhere'
    )
  missing = [str(i) for i in range(num_processes) if i not in by_number]
  if missing:
    text = ', '.join(missing[:8]) + (', ...' if len(missing) > 8 else '')
    return (
      f'only {len(by_number)} of {num_processes} processes came to {where}, '
      f'missing: {text}. Start the same command on every host (gcloud: '
      '--worker=all), and check that each reaches this address'
    )
  return ''


def free_port() -> int:
  """Returns a TCP port of this machine that nobody uses."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def _preside(
  address: str,
  num_processes: int,
  us: Attendee,
  deadline: float,
  timeout: float,
) -> str:
  """Process 0's part; returns the verdict that all were told."""
  with contextlib.ExitStack() as stack:
    listener = stack.enter_context(_listen(address, num_processes))
    guests: list[tuple[socket.socket, Attendee]] = []
    while len(guests) < num_processes - 1:
      remaining = deadline - time.monotonic()
      if remaining <= 0:
        break
      listener.settimeout(remaining)
      try:
        connection, _ = listener.accept()
      except TimeoutError:
        break
      stack.enter_context(connection)
      attendee = _introduction(connection)
      # One that was started again has left its first connection behind.
      guests = [guest for guest in guests if _is_open(guest[0])]
      if attendee is None:
        connection.close()
      else:
        guests.append((connection, attendee))
    verdict = judge(
      [us, *(attendee for _, attendee in guests)],
      num_processes,
      f'{address} within {timeout:g} s',
    )
    for connection, _ in guests:
      with contextlib.suppress(OSError):
        _say(connection, {'verdict': verdict})
    for connection, _ in guests:
      # The side that closes first keeps the port busy for a while: let it be
      # theirs, JAX needs ours.
      with contextlib.suppress(OSError):
        connection.settimeout(_PATIENCE_SECONDS)
        connection.recv(1)
  return verdict


def _attend(address: str, us: Attendee, deadline: float, timeout: float) -> str:
  """The others' part; returns the verdict of process 0."""
  host, port = split_address(address)
  reason = 'no answer'
  while (remaining := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection(
        (host, port), timeout=min(remaining, _PATIENCE_SECONDS)
      ) as connection:
        _say(connection, {'hello': _HELLO, **dataclasses.asdict(us)})
        # Process 0 may have been started later: its time is not up yet.
        connection.settimeout(timeout + _PATIENCE_SECONDS)
        answer = _hear(connection)
        if answer is not None and 'verdict' in answer:
          return answer['verdict']
        reason = 'what answers is not this program'
    except OSError as error:
      reason = error.strerror or str(error)
    time.sleep(min(0.2, max(deadline - time.monotonic(), 0)))
  return (
    f'{us} got no answer of process 0 at {address} within {timeout:g} s '
    f'({reason}): check --coordinator_address, that process 0 is started, and '
    'that no firewall closes the port'
  )


def split_address(address: str) -> tuple[str, int]:
  """Splits HOST:PORT."""
  host, colon, port = address.rpartition(':')
  if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise UserError(
      f'--coordinator_address={address}: HOST:PORT is needed, for example '
      'worker-0:8476'
    )
  return host.strip('[]'), int(port)


def _listen(address: str, backlog: int) -> socket.socket:
  """Listens on all addresses of this machine, as JAX will."""
  _, port = split_address(address)
  dual = socket.has_dualstack_ipv6()
  try:
    return socket.create_server(
      ('', port),
      family=socket.AF_INET6 if dual else socket.AF_INET,
      dualstack_ipv6=dual,
      backlog=backlog,
    )
  except OSError as error:
    raise UserError(
      f'--coordinator_address={address}: process 0 cannot listen there '
      f'({error.strerror}): is it started twice, or still running? Stop it or '
      'choose another port'
    ) from error


def _introduction(connection: socket.socket) -> Attendee | None:
  """Hears who has connected; None if it is none of us."""
  connection.settimeout(_PATIENCE_SECONDS)
  try:
    said = _hear(connection)
  except OSError:
    return None
  if said is None or said.pop('hello', None) != _HELLO:
    return None
  process, host, facts = (said.get(k) for k in ('process', 'host', 'facts'))
  if (
    not isinstance(process, int)
    or not isinstance(host, str)
    or not isinstance(facts, dict)
  ):
    return None
  # Whatever else another version of this program may say: its facts tell.
  return Attendee(process, host, {k: str(v) for k, v in facts.items()})


def _is_open(connection: socket.socket) -> bool:
  """Returns whether the other side has not hung up."""
  connection.setblocking(False)
  try:
    return connection.recv(1, socket.MSG_PEEK) != b''
  except BlockingIOError:
    return True
  except OSError:
    return False
  finally:
    connection.setblocking(True)


def _say(connection: socket.socket, sentence: Mapping[str, object]) -> None:
  connection.sendall(json.dumps(sentence).encode() + b'\n')


def _hear(connection: socket.socket) -> dict | None:
  """Returns one JSON line; None for anything else."""
  heard = b''
  while not heard.endswith(b'\n') and len(heard) < _MAX_SENTENCE:
    piece = connection.recv(1 << 16)
    heard += piece
    if not piece or not heard.startswith(b'{'):
      break
  try:
    sentence = json.loads(heard)
  except ValueError:
    return None
  return sentence if isinstance(sentence, dict) else None
