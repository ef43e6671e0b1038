"""JAX's persistent compilation cache: where it is, and that it stays sound.

A cached program is the same machine code that compiling again would give, so
the cache changes how soon a run starts and nothing else. Two things could break
that, and are dealt with here:

* A program compiled for one kind of processor may run on another that shares
  the home directory. Each kind of processor has a directory of its own.
* JAX writes an entry in place. A run that is killed while it writes leaves half
  an entry; JAX takes it for a miss, warns, and never replaces it, so every
  later run would warn and compile again. Entries that are newer than the last
  look at them are read once at the start, and the damaged ones deleted.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import zlib

import jax

DEFAULT_DIRECTORY = '~/.cache/adanat_jax'

# Programs that compile faster than this are not worth a file each, unless JAX's
# own variable says otherwise.
_MIN_COMPILE_SECONDS = 0.5
_MIN_COMPILE_VARIABLE = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
_STAMP = '.looked_at'
_ZSTANDARD = b'\x28\xb5\x2f\xfd'


def enable(directory: str) -> pathlib.Path | None:
  """Turns the cache on, before anything is compiled.

  Args:
    directory: a directory that nobody else can write to: whoever can, can run
      code here. `gs://` addresses are handed to JAX as they are.

  Returns:
    The directory in use, or None if it cannot be written to: then nothing is
    cached, and nothing else changes.
  """
  if _MIN_COMPILE_VARIABLE not in os.environ:
    jax.config.update(_MIN_COMPILE_VARIABLE.lower(), _MIN_COMPILE_SECONDS)
  if '://' in directory:
    jax.config.update('jax_compilation_cache_dir', directory)
    return None
  path = pathlib.Path(directory).expanduser() / processor_tag()
  try:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    delete_damaged(path)
  except OSError:
    return None
  jax.config.update('jax_compilation_cache_dir', str(path))
  return path


def processor_tag() -> str:
  """A name for this kind of processor: its family and a hash of its features.

  Linux lists the features in /proc/cpuinfo; elsewhere the name has to do.
  """
  features = platform.processor()
  try:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith(('flags', 'Features', 'model name')):
        features += line
  except OSError:
    pass
  unique = ' '.join(sorted(set(features.split())))
  digest = hashlib.sha256(unique.encode()).hexdigest()
  return f'{platform.machine()}-{digest[:8]}'


def delete_damaged(directory: pathlib.Path) -> int:
  """Deletes entries that were cut short; returns how many.

  Only entries written since the last call are read. An entry that another
  process is writing at this moment looks cut short too; deleting it costs one
  compilation.
  """
  stamp = directory / _STAMP
  since = stamp.stat().st_mtime_ns if stamp.exists() else 0
  # Before the look, so that an entry written meanwhile is looked at next time.
  stamp.touch()
  damaged = 0
  for entry in directory.glob('*-cache'):
    try:
      if entry.stat().st_mtime_ns < since or _is_whole(entry.read_bytes()):
        continue
    except FileNotFoundError:  # Another process came first.
      continue
    entry.unlink(missing_ok=True)
    damaged += 1
  return damaged


def _is_whole(entry: bytes) -> bool:
  """Whether an entry can be unpacked. zstandard, an option of JAX, goes by."""
  if entry.startswith(_ZSTANDARD):
    return True
  try:
    zlib.decompress(entry)
  except zlib.error:
    return False
  return True
