"""Process 0 hears sentences of strangers, with bytes changed at random.

Without a secret anybody can prove a sentence, so nothing protects the parser
and what is shown of an introduction but their own care.
"""

import asyncio
import hashlib
import hmac
import json

from absl.testing import absltest
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.runtime import addresses, conversation, handshake
from support import fuzzing

FACTS = {'jax': '0.10.2', 'python': '3.11', '--num_processes': '2'}
GREETING = json.dumps({'hello': 'adanat_jax 2', 'number': '0' * 32}).encode()
INTRODUCTIONS = [
  json.dumps({'process': 1, 'host': 'worker-1', 'facts': facts} | more).encode()
  for facts, more in (
    (FACTS, {}),
    (FACTS | {'jax': '0.12.0'}, {}),
    (FACTS | {'config.data.path': 'a' * 5000}, {'host': '\x1b[2J' * 50}),
    (FACTS, {'mood': {'good': [True, None, 1e300, 10**300]}}),
  )
]
HERE = b'{"here": 1}'


class Stranger:
  """The stream of a stranger's who answers process 0's greeting at once.

  Attributes:
    reader: what process 0 reads.
  """

  def __init__(self, greeting: bytes, bodies: list[bytes], ending: bytes):
    self.reader = asyncio.StreamReader(conversation.MAX_SENTENCE)
    self._greeting = greeting
    self._bodies = bodies
    self._ending = ending
    self._is_greeted = False

  def write(self, line: bytes) -> None:
    if self._is_greeted:
      return
    self._is_greeted = True
    self.reader.feed_data(self._greeting + b'\n')
    try:
      theirs = json.loads(self._greeting)['number']
    except (ValueError, TypeError, KeyError, RecursionError):
      theirs = ''
    numbers = [['guest', theirs], ['host', json.loads(line)['number']]]
    for count, body in enumerate(self._bodies, start=1):
      facts = json.dumps(['guest', count, numbers]).encode()
      proof = hmac.new(b'', facts + b'\n' + body, hashlib.sha256).hexdigest()
      self.reader.feed_data(proof.encode() + b' ' + body + b'\n')
    self.reader.feed_data(self._ending)
    self.reader.feed_eof()

  async def drain(self) -> None:
    pass


def make(random: np.random.Generator) -> tuple[bytes, list[bytes], bytes]:
  """Draws what a stranger sends: a greeting, sentences to prove, the rest."""
  body = INTRODUCTIONS[random.integers(len(INTRODUCTIONS))]
  parts = [
    part
    if random.random() < likely
    else deepened(random, fuzzing.mutated(random, part))
    for part, likely in ((GREETING, 0.8), (body, 0.2), (HERE, 0.8))
  ]
  return parts[0], parts[1:], random.bytes(int(random.integers(3)))


def deepened(random: np.random.Generator, data: bytes) -> bytes:
  """Now and then, much of one bracket, quote or digit somewhere."""
  if random.random() < 0.8:
    return data
  place = int(random.integers(len(data) + 1))
  pieces = (b'[', b'{"a":', b'\\"', b'9', b'"', b'\\', b'\xf0\x9f', b'\\ud800')
  piece = pieces[random.integers(len(pieces))]
  return data[:place] + piece * int(random.integers(1, 20_000)) + data[place:]


class FuzzTest(absltest.TestCase):
  def test_introductions(self):
    loop = asyncio.new_event_loop()
    self.addCleanup(loop.close)
    us = handshake.Attendee(0, 'worker-0', FACTS)

    async def hear(given: tuple[bytes, list[bytes], bytes]) -> str:
      stranger = Stranger(*given)
      talk = conversation.Conversation(
        stranger.reader, stranger, 'host', 'guest', b''
      )
      try:
        reception = handshake._Reception(us, 2)
        guest = await reception._introduction(talk)
      except (conversation.StrangerError, OSError) as error:
        return addresses.reason(error)
      return handshake.judge([us, guest], 2, 'localhost:1 within 5 s')

    def act(given: tuple[bytes, list[bytes], bytes]) -> None:
      if verdict := loop.run_until_complete(hear(given)):
        reasons.add(verdict[:40])
        raise UserError(verdict)

    reasons: set[str] = set()
    tally = fuzzing.fuzz(make, act)
    print(f'{tally.accepted} accepted, {tally.refused} refused')
    self.assertEmpty(tally.failures[:3])
    # Both happen, and the second for many reasons.
    self.assertGreater(tally.accepted, tally.tried / 100)
    self.assertGreater(tally.refused, tally.tried / 4)
    self.assertGreater(len(reasons), 4)


if __name__ == '__main__':
  absltest.main()
