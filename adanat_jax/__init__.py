"""AdaNAT in JAX: learned policies for parallel, token-based image generators.

import adanat_jax
generator = adanat_jax.load('runs/digits')
images = generator.sample([0, 1, 1], num_steps=4, seed=0)
"""

from typing import Any

__all__ = ['load']


def __getattr__(name: str) -> Any:
  """Imports `load` when it is first asked for: `main` must set JAX up first."""
  if name == 'load':
    from adanat_jax.experiment.experiment import load

    return load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
