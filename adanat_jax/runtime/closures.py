"""Compiles functions that close over networks.

`jax.jit` writes arrays that a function closes over into the program as
constants: of a network that takes long to compile, and its memory twice. Here
they become arguments.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Compiled:
  """A function, compiled once for each structure of its arguments.

  Arrays that it closes over are read when it is compiled.
  """

  def __init__(self, function: Callable[..., Any], mesh: Mesh, **options: Any):
    """Compiles nothing yet.

    Args:
      function: of pytrees of arrays.
      mesh: on all of whose devices the arrays are that it closes over.
      **options: of `jax.jit`; the first argument is number 1 to it.
    """
    self._function = function
    self._mesh = mesh
    self._options = options
    self._programs: dict[Any, Callable[..., Any]] = {}

  def __call__(self, *arguments: Any) -> Any:
    with jax.set_mesh(self._mesh):
      return self.trace(*arguments)(*arguments)

  def trace(self, *arguments: Any) -> Callable[..., Any]:
    """The program for such arguments, which is compiled when it is called."""
    leaves, structure = jax.tree.flatten(arguments)
    kinds = ((x.shape, x.dtype) for x in map(jax.typeof, leaves))
    kind = structure, tuple(kinds)
    if kind not in self._programs:
      with jax.set_mesh(self._mesh):
        self._programs[kind] = self._compile(arguments)
    return self._programs[kind]

  def _compile(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
    closed, shapes = jax.make_jaxpr(self._function, return_shape=True)(
      *arguments
    )
    result = jax.tree.structure(shapes)

    def run(constants: Any, *arguments: Any) -> Any:
      leaves = jax.tree.leaves(arguments)
      found = jax.core.eval_jaxpr(closed.jaxpr, constants, *leaves)
      return jax.tree.unflatten(result, found)

    everywhere = NamedSharding(self._mesh, PartitionSpec())
    constants = jax.device_put(closed.consts, everywhere)
    return functools.partial(jax.jit(run, **self._options), constants)
