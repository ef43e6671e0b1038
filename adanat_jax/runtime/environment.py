"""What a process asks of its surroundings before JAX starts: cache and memory.

The compilation cache. A cached program is the same machine code that compiling
again would give, so the cache changes how soon a run starts and nothing else.
Two things could break that, and are dealt with here:

* A program compiled for one kind of processor may run on another that shares
  the home directory. Each kind of processor has a directory of its own.
* JAX writes an entry in place. A run that is killed while it writes leaves half
  an entry; JAX takes it for a miss, warns, and never replaces it, so every
  later run would warn and compile again. Entries that are newer than the last
  look at them are read once at the start, and the damaged ones deleted.

glibc's allocator, told to keep what it has where the CPU is the device.

XLA asks for a program's scratch memory anew at every call, hundreds of MB for a
training step. By default glibc maps a request of that size freshly and unmaps
it afterwards, and the kernel hands out zeroed pages one fault at a time, at
every step. docs/benchmarks.md has what that costs. What a process frees it now
keeps for its next request, so it stays at the most memory it has ever used.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import pathlib
import platform
import zlib

import jax

CACHE_DIRECTORY = '~/.cache/adanat_jax'

# Programs that compile faster than this are not worth a file each, unless JAX's
# own variable says otherwise.
_MIN_COMPILE_SECONDS = 0.5
_MIN_COMPILE_VARIABLE = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
_STAMP = '.looked_at'
_ZSTANDARD = b'\x28\xb5\x2f\xfd'


# mallopt's names in glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8

_PLUGINS = ('jax_plugins', 'libtpu')


def keep_memory() -> bool:
  """Makes this process keep freed memory, if its device is the CPU.

  Has to come before JAX is asked for a device: threads that have an arena of
  their own by then keep it, and such arenas give memory back whatever is set.

  Returns:
    Whether it does: not with an accelerator, whose memory is not glibc's and
    whose host has better uses for its own, and not without glibc.
  """
  if platform.libc_ver()[0] != 'glibc' or not _is_cpu():
    return False
  mallopt = ctypes.CDLL(None).mallopt
  return bool(
    # One arena; nothing of it is mapped apart; its end is not given back.
    mallopt(_M_ARENA_MAX, 1)
    and mallopt(_M_MMAP_MAX, 0)
    and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
  )


def enable_cache(directory: str) -> pathlib.Path | None:
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


def _is_cpu() -> bool:
  """Whether JAX will run on the CPU, told without starting it."""
  platforms = jax.config.values['jax_platforms']
  if platforms:
    return platforms == 'cpu'
  return not any(importlib.util.find_spec(name) for name in _PLUGINS)
