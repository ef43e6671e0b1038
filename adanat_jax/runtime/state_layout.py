"""The layout of a loop's state: fixed types, and one place for every leaf.

A state that comes back from a checkpoint has exactly the types and places of
the one that was saved. A run that was stopped and one that was not are the
same program only if no step changes them.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from adanat_jax.runtime import leaves, processes, sharding

State = TypeVar('State')


def without_weak_types(state: State) -> State:
  """Makes every leaf an array of a fixed type.

  A Python number in a state is weakly typed: it would promote differently
  before and after a restore, and the two runs would differ.
  """

  def fix(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array) and not leaf.aval.weak_type:
      return leaf
    return put(np.asarray(leaf, dtype=jnp.result_type(leaf)))

  return jax.tree.map(fix, state)


def put(tree: Any) -> Any:
  """Puts host arrays beside the arrays that a step works on.

  Args:
    tree: host arrays, equal in all processes, and global arrays, which stay.

  Returns:
    The tree as arrays; those from the host are on all devices of the ambient
    mesh, or on the default device where there is neither a mesh nor another
    process.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    if not processes.is_shared():
      return jax.device_put(tree)
    mesh = sharding.make_mesh()
  everywhere = NamedSharding(mesh, PartitionSpec())

  def put(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array):
      return leaf
    if not processes.is_shared():
      return jax.device_put(leaf, everywhere)
    # `device_put` would compare the processes' values, at every step.
    return jax.make_array_from_process_local_data(everywhere, np.asarray(leaf))

  return jax.tree.map(put, tree)


def check_same_layout(before: Any, after: Any) -> None:
  """Raises if a step changes the state's layout.

  A restored state has the layout of the initial one: if a step returned
  another, the runs with and without a restart would be different programs.

  Args:
    before: abstract leaves (see `abstract`) of the state a step took.
    after: the same of the state it returned.
  """
  for path in [*before, *after]:
    old, new = before.get(path), after.get(path)
    if (
      old is None
      or new is None
      or (old.shape, old.dtype, old.weak_type)
      != (new.shape, new.dtype, new.weak_type)
      or not old.sharding.is_equivalent_to(new.sharding, len(old.shape))
    ):
      raise ValueError(
        'train_step must return a state of the layout it takes (dtype, shape, '
        f'no weak type, sharding): {path} was {old}, is {new}'
      )


def abstract(state: Any) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the leaves by name without their numbers."""
  return {
    path: jax.ShapeDtypeStruct(
      leaf.shape,
      leaf.dtype,
      sharding=leaf.sharding,
      weak_type=leaf.aval.weak_type,
    )
    for path, leaf in leaves.by_name(state).items()
  }
