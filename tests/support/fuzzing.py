"""Seeded fuzzing of what reads other people's files.

  tally = fuzzing.fuzz(make, act, seed=0)

`make(random)` draws an input, `act(input)` reads it. A try ends well in two
ways only: `act` returns, or it raises a `UserError` of one printable line. Any
other exception, a message of several lines, more than ten seconds or another
GiB of memory are failures, which name seed and try.

`FUZZ_TRIES` sets the number of tries, for as long a search as one likes:
`FUZZ_TRIES=5000 python tests/fuzz_captions_test.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import os
import resource
import signal
import traceback
from typing import Any

import numpy as np

from adanat_jax.errors import UserError

DEFAULT_TRIES = 200
_MAX_SECONDS = 10.0
_MAX_BYTES = 1 << 30
_LONGEST_MESSAGE = 1000
# Values that stand where a reader of JSON may not expect them.
_VALUES = (
  *(None, True, 0, -1, 1e300, '', 'a dog', ' ', '\0', '\ud83d', '\udcff', []),
  *({}, [[]], 10**400, 'x' * 5000, '../1.jpg', '/', '1.jpg', ['a', 'b']),
)


@dataclasses.dataclass
class FuzzTally:
  """How the tries ended.

  Attributes:
    accepted: returned.
    refused: ended in a `UserError` of one line.
    failures: what went wrong in the others.
  """

  accepted: int = 0
  refused: int = 0
  failures: list[str] = dataclasses.field(default_factory=list)

  @property
  def tried(self) -> int:
    return self.accepted + self.refused + len(self.failures)


def fuzz(
  make: Callable[[np.random.Generator], Any],
  act: Callable[[Any], Any],
  *,
  seed: int = 0,
  tries: int | None = None,
) -> FuzzTally:
  """Draws inputs and reads each; see the module.

  Args:
    make: draws an input; everything random comes from its argument.
    act: reads it.
    seed: of all tries; try i is reproduced by `make(generator(seed, i))`.
    tries: how many; `FUZZ_TRIES`, or 200.
  """
  if tries is None:
    tries = int(os.environ.get('FUZZ_TRIES', DEFAULT_TRIES))
  tally = FuzzTally()
  for index in range(tries):
    given = make(generator(seed, index))
    before = _peak_bytes()
    try:
      with _at_most(_MAX_SECONDS):
        act(given)
      problem = ''
    except UserError as error:
      found = filter(None, map(_problem_of_message, error.problems))
      problem = next(found, 'refused')
    except Exception:
      problem = traceback.format_exc(limit=-4)
    if _peak_bytes() - before > _MAX_BYTES:
      problem = f'took {(_peak_bytes() - before) / 2**30:.1f} GiB'
    if not problem:
      tally.accepted += 1
    elif problem == 'refused':
      tally.refused += 1
    else:
      tally.failures.append(
        f'seed {seed}, try {index}: {_shown(given)!r}: {problem}'
      )
  return tally


def generator(seed: int, index: int) -> np.random.Generator:
  """What draws the input of one try."""
  return np.random.default_rng([seed, index])


def pick(random: np.random.Generator, options: Sequence[Any]) -> Any:
  """One of some options."""
  return options[int(random.integers(len(options)))]


def changed(
  random: np.random.Generator,
  value: Any,
  names: Sequence[str],
  share: float = 0.05,
) -> Any:
  """A JSON value in which some values are others.

  Args:
    random: draws what is changed.
    value: the value.
    names: other names for the members of objects.
    share: of the values that are replaced; fewer are renamed or dropped.
  """
  if random.random() < share:
    return pick(random, _VALUES)
  if isinstance(value, dict):
    return {
      pick(random, names) if random.random() < share / 2 else name: changed(
        random, inner, names, share
      )
      for name, inner in value.items()
      if random.random() > share / 2
    }
  if isinstance(value, list):
    return [changed(random, inner, names, share) for inner in value]
  return value


def mutated(random: np.random.Generator, data: bytes) -> bytes:
  """Bytes with a few places changed, cut out, doubled, or cut off."""
  result = bytearray(data)
  for _ in range(random.integers(1, 5)):
    if not result:
      break
    place = int(random.integers(len(result)))
    length = int(random.integers(1, 1 + min(64, len(result) - place)))
    kind = random.integers(6)
    if kind == 0:
      result[place] ^= 1 << int(random.integers(8))
    elif kind == 1:
      result[place : place + length] = random.bytes(length)
    elif kind == 2:
      del result[place : place + length]
    elif kind == 3:
      result[place:place] = result[place : place + length]
    elif kind == 4:
      del result[place:]
    else:
      result[place : place + length] = b'\xff' * length
  return bytes(result)


def _shown(given: Any) -> str:
  try:
    return str(given)[:200]
  except ValueError:
    # Python refuses to print integers of thousands of digits.
    return 'what cannot be printed'


def _problem_of_message(message: str) -> str:
  if len(message) > _LONGEST_MESSAGE:
    return f'a message of {len(message)} characters: {message[:200]!r}'
  if not message.strip() or not message.isprintable():
    return f'no printable line: {message[:200]!r}'
  return ''


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
  def late(*unused: Any) -> None:
    raise TimeoutError(f'more than {seconds} s')

  before = signal.signal(signal.SIGALRM, late)
  signal.setitimer(signal.ITIMER_REAL, seconds)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def _peak_bytes() -> int:
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
