"""Sentences between processes that share a secret, over one connection.

Each side greets with a random number. Every sentence after that is a line

  PROOF JSON

where the proof is an HMAC, with the secret as its key, over who speaks, how
many sentences came before, both random numbers, and the JSON. So the secret
never leaves a process; a sentence cannot be changed, said again elsewhere or
sent back to its speaker; and of a stranger only the greeting is interpreted.

Without a secret the key is empty and a proof says only that the speaker knows
these rules.
"""

import asyncio
import collections
from collections.abc import Mapping
import hashlib
import hmac
import json
import os
import re
import secrets
from typing import Any

SECRET_VARIABLE = 'ADANAT_JAX_SECRET'
# Bytes of a line. No more than this is kept of what one stranger sends.
MAX_SENTENCE = 1 << 16
# Objects and lists within each other; ours have two.
MAX_DEPTH = 4

_HELLO = 'adanat_jax 2'
# Processes before version 2 say this, and show the verdict that answers them.
_OLD_HELLO = 'adanat_jax'
_TO_OLD_GUESTS = (
  'process 0 runs another version of adanat_jax than this process. Start the '
  'same command with the same code and libraries on every host'
)
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)
_DEEPER = {'{': 1, '[': 1, '}': -1, ']': -1}


class StrangerError(Exception):
  """The other side is not a process of this run; says by what that shows."""


def secret() -> bytes:
  """Returns what the processes of this run share; b'' if nothing."""
  return os.environb.get(SECRET_VARIABLE.encode(), b'').strip()


def parse(data: bytes) -> dict[str, Any]:
  """Returns the JSON object in `data`, whatever that is.

  Raises:
    StrangerError: if it is no object, or one that no process sends.
  """
  if len(data) > MAX_SENTENCE:
    raise StrangerError('it sent too long a sentence')
  try:
    text = data.decode()
    depth = deepest = 0
    for character in _TEXT.sub('', text):
      depth += _DEEPER.get(character, 0)
      deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
      raise StrangerError('it sent a sentence that is nested too deeply')
    message = json.loads(text)
  except ValueError:
    raise StrangerError('it does not speak as our processes do') from None
  if not isinstance(message, dict):
    raise StrangerError('it does not speak as our processes do')
  return message


class Conversation:
  """One side of a connection."""

  def __init__(
    self,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    we: str,
    they: str,
    key: bytes,
  ):
    """Takes a fresh connection, whose reader has `MAX_SENTENCE` as its limit.

    `we` and `they` are the roles of the sides, `key` is the secret.
    """
    self._reader = reader
    self._writer = writer
    self._we, self._they = we, they
    self._key = key
    self._numbers: dict[str, str] = {}
    self._count: collections.Counter[str] = collections.Counter()

  async def greet(self) -> None:
    """Exchanges greetings; call it first.

    Raises:
      StrangerError: if the other side does not greet as our processes do.
      OSError: if the connection breaks.
    """
    number = secrets.token_hex(16)
    await self._write(
      _json({'hello': _HELLO, 'number': number, 'verdict': _TO_OLD_GUESTS})
    )
    greeting = parse(await self._line())
    theirs = greeting.get('number')
    if greeting.get('hello') == _OLD_HELLO:
      raise StrangerError('it runs an older version of adanat_jax')
    if greeting.get('hello') != _HELLO or not isinstance(theirs, str):
      raise StrangerError('it does not speak as our processes do')
    self._numbers = {self._we: number, self._they: theirs}

  async def say(self, message: Mapping[str, Any]) -> None:
    """Sends a sentence.

    Raises:
      ValueError: if it is longer than `MAX_SENTENCE`.
      OSError: if the connection breaks.
    """
    body = _json(message)
    await self._write(self._proof(self._we, body) + b' ' + body)

  async def hear(self) -> dict[str, Any]:
    """Receives a sentence.

    Raises:
      StrangerError: if it is not proven, or no sentence.
      OSError: if the connection breaks.
    """
    proof, _, body = (await self._line()).partition(b' ')
    if not hmac.compare_digest(proof, self._proof(self._they, body)):
      raise StrangerError(f'it has no {SECRET_VARIABLE}, or another one')
    return parse(body)

  async def wait_for_end(self) -> None:
    """Returns once the other side has left, or says more than it should."""
    await self._reader.read(1)

  def _proof(self, role: str, body: bytes) -> bytes:
    """Returns the proof of the next sentence in this role."""
    self._count[role] += 1
    facts = [role, self._count[role], sorted(self._numbers.items())]
    digest = hmac.new(self._key, _json(facts) + b'\n' + body, hashlib.sha256)
    return digest.hexdigest().encode()

  async def _write(self, line: bytes) -> None:
    if len(line) >= MAX_SENTENCE:
      raise ValueError(f'a sentence of {len(line)} bytes')
    self._writer.write(line + b'\n')
    await self._writer.drain()

  async def _line(self) -> bytes:
    try:
      line = await self._reader.readuntil(b'\n')
    except asyncio.IncompleteReadError as error:
      if error.partial:
        raise StrangerError('it left within a sentence') from None
      raise ConnectionError('it has closed the connection') from None
    except asyncio.LimitOverrunError:
      raise StrangerError('it sent too long a sentence') from None
    return line[:-1]


def _json(value: Any) -> bytes:
  return json.dumps(value).encode()
