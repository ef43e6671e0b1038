"""Runs compiled programs on weights and inputs of the right shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import programs
import subjects


def inputs(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
  """Arrays of given shapes: random weights, class 0, a key."""

  def make(leaf: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    return jnp.zeros(leaf.shape, leaf.dtype)

  weights = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
  drawn = iter(
    jax.tree.leaves(
      subjects.random_params(
        [x for x in jax.tree.leaves(arguments) if weights(x)]
      )
    )
  )
  return jax.tree.map(
    lambda leaf: next(drawn) if weights(leaf) else make(leaf), arguments
  )


def runner(program: programs.Program, compiled: Any) -> Callable[[], Any]:
  """Runs it on its own results: a training step goes on from the last one."""
  arguments = list(inputs(program.arguments))

  def run() -> Any:
    # A copy to a compiled program's place costs nothing on the same device.
    result = compiled(*arguments)
    if program.donated != ():
      arguments[program.donated] = result[0]
    return result

  return run
