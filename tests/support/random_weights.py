"""Weights for tests, without compiling an initialiser."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import numpy as np


def random_variables(module: nn.Module, *inputs: Any) -> Any:
  """Returns the variables of a module, all of them N(0, 0.2^2)."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  random = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: (0.2 * random.normal(size=x.shape)).astype(x.dtype), shapes
  )
  # `jnp.asarray` would compile a program for every shape.
  return jax.device_put(variables)
