"""Where process 0 is reached: names of hosts, their addresses, and ports."""

from collections.abc import Sequence
import errno
import ipaddress
import os
import re
import socket
import threading
import time
from typing import Any

from absl import logging

from adanat_jax.errors import UserError, printable
from adanat_jax.runtime import conversation

# JAX's variable: where process 0 listens if not at the coordinator's address.
BIND_VARIABLE = 'JAX_COORDINATOR_BIND_ADDRESS'

_PAUSE_SECONDS = 0.2
_LONGEST_ADDRESS = 200
_LOOPBACK_NAMES = re.compile(
  r'(.*\.)?localhost[46]?(\.localdomain[46]?)?|ip6-(localhost|loopback)'
)
_REMEDIES = {
  errno.EADDRINUSE: 'is it started twice, or still running? Stop it or choose '
  'another port',
  errno.EACCES: 'choose a port above 1023',
}
_REMEDY = (
  'it has to run on the machine of this address; '
  f'{BIND_VARIABLE}=HOST:PORT has it listen elsewhere'
)

# The family and the address of a socket.
Place = tuple[socket.AddressFamily, Any]


def split_address(
  address: str, name: str = '--coordinator_address'
) -> tuple[str, int]:
  """Splits HOST:PORT, which the user gave under this name."""
  host, colon, port = address.rpartition(':')
  if (
    not colon
    or not host
    or not (port.isascii() and port.isdigit() and len(port) < 6)
    or not 0 < int(port) < 65536
  ):
    raise UserError(
      f'{name}={printable(address, _LONGEST_ADDRESS)}: HOST:PORT is needed, '
      'for example worker-0:8476'
    )
  return host.strip('[]'), int(port)


def free_port() -> int:
  """Returns an unused TCP port of this machine."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def listen(
  address: str, place: str, backlog: int, patience: float
) -> tuple[list[socket.socket], str]:
  """Listens where process 0 is reached, and nowhere else.

  On some systems a machine's own name leads to a loopback address (Debian's
  `127.0.1.1 worker-0`), where no other machine reaches it. Such a name stands
  for all addresses of the machine.

  Args:
    address: HOST:PORT that all processes were given.
    place: where to listen, of the same form.
    backlog: how many may connect at the same moment.
    patience: seconds for a name to be found.

  Returns:
    The listening sockets, and HOST:PORT for JAX to listen at.

  Raises:
    UserError: if that is not possible.
  """
  given = f'--coordinator_address={address}'
  if place != address:
    given = f'{BIND_VARIABLE}={place}'
  host, port = split_address(place, given.partition('=')[0])
  try:
    found = _resolve_patiently(host, port, patience)
    is_private = all(_is_loopback(where[0]) for _, where in found)
    if is_private and not _means_loopback(host):
      is_private = False
      if socket.has_dualstack_ipv6():
        found, place = [(socket.AF_INET6, ('::', port))], f'[::]:{port}'
      else:
        found, place = [(socket.AF_INET, ('0.0.0.0', port))], f'0.0.0.0:{port}'
    listeners = _bind(found, backlog)
  except OSError as error:
    remedy = _REMEDIES.get(error.errno or 0, _REMEDY)
    raise UserError(
      f'{given}: process 0 cannot listen there ({reason(error)}): {remedy}'
    ) from error
  if not (is_private or backlog == 1 or conversation.secret()):
    logging.warning(
      '%s is open to the network, and whoever reaches it could pose as a '
      'process of this run: set %s to the same long random text everywhere',
      given,
      conversation.SECRET_VARIABLE,
    )
  return listeners, place


def _bind(found: Sequence[Place], backlog: int) -> list[socket.socket]:
  """Listens at those of the addresses that this machine has.

  Raises:
    OSError: if one of them is taken, or none is this machine's.
  """
  listeners: list[socket.socket] = []
  problem = OSError('its name has no address')
  for family, where in found:
    try:
      listeners.append(
        socket.create_server(
          where,
          family=family,
          backlog=backlog,
          dualstack_ipv6=where[0] == '::' and socket.has_dualstack_ipv6(),
        )
      )
    except OSError as error:
      problem = error
      if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        break
  else:
    if listeners:
      return listeners
  for listener in listeners:
    listener.close()
  raise problem


def _resolve_patiently(host: str, port: int, patience: float) -> list[Place]:
  """Like `resolve`; a machine's name may become known only after its start.

  Raises:
    OSError: if it does not in time.
  """
  deadline = time.monotonic() + patience
  while True:
    try:
      return resolve(host, port, deadline - time.monotonic())
    except OSError:
      if time.monotonic() + _PAUSE_SECONDS > deadline:
        raise
    time.sleep(_PAUSE_SECONDS)


def resolve(host: str, port: int, patience: float) -> list[Place]:
  """Looks up a name's addresses, and gives up in time.

  Raises:
    OSError: if it has none, or the name servers do not answer.
  """
  answers: list[list[Place] | OSError] = []

  def ask() -> None:
    try:
      found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
      answers.append(list(dict.fromkeys((each[0], each[4]) for each in found)))
    except OSError as error:
      answers.append(error)
    except ValueError:  # An empty or too long part, or one that is no text.
      answers.append(OSError('this cannot be the name of a host'))

  # Nothing else stops a question to a name server that is silent.
  thread = threading.Thread(target=ask, daemon=True)
  thread.start()
  thread.join(max(patience, 0))
  if not answers:
    raise TimeoutError('its name is not found in time')
  if isinstance(answers[0], OSError):
    raise answers[0]
  return answers[0]


def _is_loopback(address: str) -> bool:
  return ipaddress.ip_address(address.partition('%')[0]).is_loopback


def _means_loopback(host: str) -> bool:
  """Whether an address that leads to loopback was meant to."""
  try:
    return _is_loopback(host)
  except ValueError:
    return _LOOPBACK_NAMES.fullmatch(host.lower()) is not None


def reason(error: Exception) -> str:
  """Returns why a connection failed, without what it was about."""
  if (
    isinstance(error, OSError)
    and error.errno
    and not isinstance(error, socket.gaierror)
  ):
    return os.strerror(error.errno)
  if isinstance(error, TimeoutError) and not str(error):
    return 'it did not answer in time'
  return getattr(error, 'strerror', None) or str(error)
