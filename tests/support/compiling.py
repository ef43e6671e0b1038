"""Fewer compilations in tests that run a stage more than once."""

from collections.abc import Iterator
import contextlib
import os

import jax
from jax.experimental.compilation_cache import compilation_cache


@contextlib.contextmanager
def compiled_once(directory: str | os.PathLike[str]) -> Iterator[None]:
  """Programs are compiled once and kept in a directory."""
  names = 'compilation_cache_dir', 'persistent_cache_min_compile_time_secs'
  before = {name: getattr(jax.config, f'jax_{name}') for name in names}
  for name, value in zip(names, (str(directory), 0), strict=True):
    jax.config.update(f'jax_{name}', value)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(f'jax_{name}', value)
    compilation_cache.reset_cache()
