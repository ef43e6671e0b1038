"""A generator of a path, whatever has written it."""

from __future__ import annotations

import contextlib
import os

import jax

from adanat_jax.errors import UserError
from adanat_jax.runtime import environment
from adanat_jax.sampling import folder
from adanat_jax.sampling.generator import Generator


def load(
  path: str | os.PathLike[str], *, compile_cache: bool = True
) -> Generator:
  """Loads a NAT, its tokenizer and its learned policies.

  Args:
    path: a workdir of `adanat_jax.main`, a folder of `Generator.save`, or
      `'digits'`, the generator that comes with the package.
    compile_cache: whether compiled programs are kept in `~/.cache/adanat_jax`
      for later processes, unless JAX has a directory for them already.

  Raises:
    UserError: if this is neither, is damaged, or its NAT has not been trained.
  """
  if compile_cache and not jax.config.values['jax_compilation_cache_dir']:
    # Where others may write, nothing is kept.
    with contextlib.suppress(UserError):
      environment.set_cache(environment.CACHE_DIRECTORY)
      environment.leave_cache_to_one()
  place = folder.find(path)
  if folder.is_generator(place):
    return folder.load(place)
  # A folder needs no config.
  from adanat_jax.experiment.experiment import Experiment

  return Experiment.of_workdir(place).generator()
