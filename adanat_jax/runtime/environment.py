"""What a process sets up before JAX starts: memory and the compilation cache.

A cached program is the same machine code that compiling again would give, so
the cache changes how soon a run starts and nothing else. Three things could
break that:

* A program compiled for one kind of processor may run on another that shares
  the home directory. So each kind of processor has its own directory.
* JAX writes an entry in place. A run killed while it writes leaves half an
  entry; JAX treats it as a miss, warns, and never replaces it, so every later
  run would warn and compile again. So a run first reads the entries that are
  newer than the last check, and deletes the damaged ones.
* Where CPUs compute together, a program that was read back may do its
  collectives in another order than one that was compiled, and then both wait
  for ever. So these compile.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import pathlib
import platform
import stat
import zlib

import jax

from adanat_jax.errors import UserError

CACHE_DIRECTORY = '~/.cache/adanat_jax'

# Programs that compile faster are not worth a file each. JAX's own variable,
# where it is set, takes precedence.
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
  """Stops glibc from returning freed memory to the kernel, on the CPU.

  XLA allocates a program's scratch memory anew at every call, hundreds of MB
  for a training step. By default glibc maps such a block and unmaps it
  afterwards, and the kernel zeroes its pages, one fault at a time, at every
  step; docs/benchmarks.md has the cost. With this setting the process reuses
  what it frees, so its size stays at its peak.

  Call it before JAX is asked for a device: a thread that already has its own
  arena keeps it, and such arenas return memory regardless.

  Returns:
    Whether the setting is made: not with an accelerator, whose memory is not
    glibc's, and not without glibc.
  """
  if platform.libc_ver()[0] != 'glibc' or not _is_cpu():
    return False
  mallopt = ctypes.CDLL(None).mallopt
  return bool(
    # One arena, no separate mappings, and no trimming of the heap's end.
    mallopt(_M_ARENA_MAX, 1)
    and mallopt(_M_MMAP_MAX, 0)
    and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
  )


def set_cache(directory: str | None) -> pathlib.Path | None:
  """Turns the compilation cache on or off, before anything is compiled.

  Args:
    directory: where nobody else may write: whoever can, can run code here.
      `gs://` addresses are passed to JAX unchanged. None turns the cache off,
      whatever JAX's own environment variables say.

  Returns:
    The local directory in use; None for an address, or if the directory cannot
    be made, in which case nothing is cached.

  Raises:
    UserError: if others own the directory or may write there.
  """
  jax.config.update('jax_enable_compilation_cache', directory is not None)
  jax.config.update('jax_compilation_cache_dir', None)
  if directory is None:
    return None
  if _MIN_COMPILE_VARIABLE not in os.environ:
    jax.config.update(_MIN_COMPILE_VARIABLE.lower(), _MIN_COMPILE_SECONDS)
  if '://' in directory:
    jax.config.update('jax_compilation_cache_dir', directory)
    return None
  whole = pathlib.Path(os.path.expanduser(directory))
  path = whole / processor_tag()
  try:
    whole.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.mkdir(exist_ok=True, mode=0o700)
    _check_private(path.resolve())
    delete_damaged(path)
  except OSError:
    return None
  jax.config.update('jax_compilation_cache_dir', str(path))
  return path


def _check_private(path: pathlib.Path) -> None:
  """Raises UserError if others could put programs into the cache `path`.

  The path and its parent must be this user's and nobody else may write there. A
  group of the user's number is the user's own, as many systems make them. Above
  those it is enough that not everybody may rename what others own.
  """
  user = os.geteuid()
  for place in (path, *path.parents):
    about = place.stat()
    near = place in (path, path.parent)
    writers = 0o022 if near and about.st_gid != user else 0o002
    if near and about.st_uid != user:
      problem = "is another user's"
    elif about.st_mode & writers and (near or not about.st_mode & stat.S_ISVTX):
      problem = 'may be written by others'
    else:
      continue
    raise UserError(
      f'--jax_cache_dir: {place} {problem}, who could run code here: chmod go-w'
      ' it, or give a directory of your own, or --jax_cache=off'
    )


def leave_cache_to_one() -> bool:
  """Turns the cache off where several CPU devices compute together.

  XLA orders all collectives of a program by one resource that they share. In a
  program that is read back, those inside loops no longer share it with those
  around them (jaxlib 0.10.2). Of two processes one then waited in an
  all-gather and the other in an all-reduce.

  Call it when the processes have met, and before anything is compiled.

  Returns:
    Whether the cache was turned off.
  """
  if jax.default_backend() != 'cpu' or jax.device_count() == 1:
    return False
  jax.config.update('jax_enable_compilation_cache', False)
  return True


def processor_tag() -> str:
  """Names this kind of processor: its family and a hash of its features.

  Linux lists the features in /proc/cpuinfo; elsewhere the hash is of the name.
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
  """Deletes truncated entries and returns their number.

  Only entries written since the last call are read. An entry that another
  process is just writing looks truncated too; deleting it costs one
  compilation.
  """
  stamp = directory / _STAMP
  since = stamp.stat().st_mtime_ns if stamp.exists() else 0
  # First, so that an entry written during this check is read by the next.
  stamp.touch()
  damaged = 0
  for entry in directory.glob('*-cache'):
    try:
      if entry.stat().st_mtime_ns < since or _is_whole(entry.read_bytes()):
        continue
    except FileNotFoundError:  # Another process deleted it.
      continue
    entry.unlink(missing_ok=True)
    damaged += 1
  return damaged


def _is_whole(entry: bytes) -> bool:
  """Whether an entry decompresses; zstandard entries are assumed intact."""
  if entry.startswith(_ZSTANDARD):
    return True
  try:
    zlib.decompress(entry)
  except zlib.error:
    return False
  return True


def _is_cpu() -> bool:
  """Whether JAX will run on the CPU, found without starting JAX."""
  platforms = jax.config.values['jax_platforms']
  if platforms:
    return platforms == 'cpu'
  return not any(importlib.util.find_spec(name) for name in _PLUGINS)
