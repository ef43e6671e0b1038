"""glibc's allocator, told to keep what it has where the CPU is the device.

XLA asks for a program's scratch memory anew at every call, hundreds of MB for a
training step. By default glibc maps a request of that size freshly and unmaps
it afterwards, and the kernel hands out zeroed pages one fault at a time, at
every step. docs/benchmarks.md has what that costs. What a process frees it now
keeps for its next request, so it stays at the most memory it has ever used.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform

import jax

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


def _is_cpu() -> bool:
  """Whether JAX will run on the CPU, told without starting it."""
  platforms = jax.config.values['jax_platforms']
  if platforms:
    return platforms == 'cpu'
  return not any(importlib.util.find_spec(name) for name in _PLUGINS)
