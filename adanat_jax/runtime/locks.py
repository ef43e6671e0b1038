"""Two runs on one machine do not write the same files.

The second one would delete saves of the first while they are written. The lock
is a file of this machine, not of the disk that holds the run: the kernel gives
it back however a process ends, and a machine that is gone leaves none behind.
So runs on other machines are not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import fcntl
import hashlib
import pathlib
import tempfile

from adanat_jax.errors import UserError


@contextlib.contextmanager
def only_one(
  directory: pathlib.Path, part: str, message: str
) -> Iterator[None]:
  """Holds a part of a directory while the context lasts.

  Args:
    directory: where the files are.
    part: which of them, a name; nothing of it need exist.
    message: what to tell whoever comes second.

  Raises:
    UserError: with that message, if another process holds it.
  """
  name = hashlib.sha256(f'{directory.resolve()}\n{part}'.encode()).hexdigest()
  path = pathlib.Path(tempfile.gettempdir(), f'adanat_jax-{name[:16]}.lock')
  try:
    file = path.open('a')
  except OSError:
    # Of another user, or there is no place for it: as without locks.
    yield
    return
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(message) from None
    except OSError:
      pass  # This place has no locks.
    try:
      yield
    finally:
      path.unlink(missing_ok=True)
