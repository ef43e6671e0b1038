"""Checks, before JAX connects the processes, that all are there and agree.

If a process is missing, JAX aborts the others from C++ with a stack trace that
does not name it. So the processes first talk over plain TCP, at the address
that JAX will use:

  1. process 0 listens; the others try to connect until the time is up, and
     introduce themselves: number, host, and facts such as versions;
  2. once all are connected or the time is up, process 0 checks that none is
     missing or duplicated and that all facts agree;
  3. it sends all the same one-line verdict, empty if all is well, and frees
     the port for JAX.
"""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import json
import socket
import time

from adanat_jax.errors import UserError

_HELLO = 'adanat_jax'
# The time-out of one attempt to connect, and of one message.
_PATIENCE_SECONDS = 5.0
_MAX_MESSAGE = 1 << 22
_MAX_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Attendee:
  """How a process introduces itself.

  Attributes:
    process: its number.
    host: the name of its machine.
    facts: what must be the same in all processes, by name.
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
  """Returns once all processes have met and agree.

  Args:
    address: HOST:PORT of process 0; the port is free again afterwards.
    num_processes: number of processes.
    process: this one's number, 0 to `num_processes` - 1.
    facts: what must be the same in all processes, by name.
    timeout: seconds to wait for the others.

  Raises:
    UserError: in every process that came, with the same message.
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
  """Returns what is wrong with the attendees, in one line; '' if nothing.

  Args:
    attendees: the processes that came, process 0 first.
    num_processes: number of processes expected.
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
      f'the processes differ: {"; ".join(shown)}. Start the same command with '
      'the same code and libraries on every host'
    )
  missing = [str(i) for i in range(num_processes) if i not in by_number]
  if missing:
    text = ', '.join(missing[:8]) + (', ...' if len(missing) > 8 else '')
    return (
      f'only {len(by_number)} of {num_processes} processes came to {where}, '
      f'missing: {text}. Start the same command on every host (gcloud: '
      '--worker=all), and check that each can reach this address'
    )
  return ''


def free_port() -> int:
  """Returns an unused TCP port of this machine."""
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
  """Process 0's part; returns the verdict that it sent to all."""
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
      # A process that was restarted has left its first connection closed.
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
        _send(connection, {'verdict': verdict})
    for connection, _ in guests:
      # The side that closes first keeps its port busy for a while. That must
      # be theirs: JAX needs ours.
      with contextlib.suppress(OSError):
        connection.settimeout(_PATIENCE_SECONDS)
        connection.recv(1)
  return verdict


def _attend(address: str, us: Attendee, deadline: float, timeout: float) -> str:
  """The other processes' part; returns the verdict of process 0."""
  host, port = split_address(address)
  reason = 'no answer'
  while (remaining := deadline - time.monotonic()) > 0:
    try:
      with socket.create_connection(
        (host, port), timeout=min(remaining, _PATIENCE_SECONDS)
      ) as connection:
        _send(connection, {'hello': _HELLO, **dataclasses.asdict(us)})
        # Process 0 may have been started later and wait longer.
        connection.settimeout(timeout + _PATIENCE_SECONDS)
        answer = _receive(connection)
        if answer is not None and 'verdict' in answer:
          return answer['verdict']
        reason = 'another program answers there'
    except OSError as error:
      reason = error.strerror or str(error)
    time.sleep(min(0.2, max(deadline - time.monotonic(), 0)))
  return (
    f'{us} got no answer from process 0 at {address} within {timeout:g} s '
    f'({reason}): check --coordinator_address, that process 0 is running, and '
    'that no firewall blocks the port'
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
  """Reads who has connected; None if it is not one of our processes."""
  connection.settimeout(_PATIENCE_SECONDS)
  try:
    said = _receive(connection)
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
  # Another version of this program may send more; its facts differ anyway.
  return Attendee(process, host, {k: str(v) for k, v in facts.items()})


def _is_open(connection: socket.socket) -> bool:
  """Returns whether the other side has not closed the connection."""
  connection.setblocking(False)
  try:
    return connection.recv(1, socket.MSG_PEEK) != b''
  except BlockingIOError:
    return True
  except OSError:
    return False
  finally:
    connection.setblocking(True)


def _send(connection: socket.socket, message: Mapping[str, object]) -> None:
  connection.sendall(json.dumps(message).encode() + b'\n')


def _receive(connection: socket.socket) -> dict | None:
  """Returns the object in one JSON line; None for anything else."""
  data = b''
  while not data.endswith(b'\n') and len(data) < _MAX_MESSAGE:
    piece = connection.recv(1 << 16)
    data += piece
    if not piece or not data.startswith(b'{'):
      break
  try:
    message = json.loads(data)
  except ValueError:
    return None
  return message if isinstance(message, dict) else None
