"""Places arrays on devices: one mesh, one table of rules, global batches.

The mesh has two axes. A batch is split over both; a parameter is split over
`fsdp` if a rule says so, and otherwise replicated. Models know no axis names:
arrays are placed before a step, and the compiler inserts the communication.
"""

from collections.abc import Callable, Sequence
import math
import re
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.runtime import leaves

Tree = TypeVar('Tree')
Rule = tuple[str, PartitionSpec]

AXES = ('data', 'fsdp')
# Bytes that a device may use: chips of TPUs have 8 to 16 GiB, or 32 and more.
_LARGE_MEMORY = 24 * 2**30
# (pattern, spec): the first pattern found in a leaf's name decides. Names are
# paths, e.g. 'params/mid_block/mlp/fc1/kernel'; a leaf that matches no pattern
# is replicated. Names of optimizer moments contain those of their parameters.
#
# Only the matrices of transformer blocks and the token embedding are large
# enough to be worth the communication.
RULES: tuple[Rule, ...] = (
  (
    r'(attention/(qkv|query|self|context|proj)|mlp/fc[12]|skip'
    # Of an ENAT; a policy network's are small.
    r'|blocks_\d+/modulation)/kernel$',
    PartitionSpec(None, 'fsdp'),
  ),
  (r'tokens/words$', PartitionSpec(None, 'fsdp')),
)


def make_mesh(
  *, fsdp: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Returns a mesh over all devices of all processes.

  Args:
    fsdp: number of devices that share one copy of the split parameters; the
      `data` axis takes the rest.
    devices: the devices to use, all by default.

  Raises:
    UserError: if `fsdp` does not divide the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  if fsdp < 1 or len(devices) % fsdp:
    raise UserError(
      f'fsdp: {fsdp} given, it must divide the number of devices, '
      f'{len(devices)}'
    )
  return jax.make_mesh(
    (len(devices) // fsdp, fsdp),
    AXES,
    axis_types=(AxisType.Auto, AxisType.Auto),
    devices=devices,
  )


def devices_of_a_copy(memory: float | None, num_devices: int) -> int:
  """How many devices should share one copy of a large training's state.

  Args:
    memory: bytes of a device; None where it does not say, as on a CPU.
    num_devices: of the mesh.

  Returns:
    1 where devices hold the state whole, else 8 or the largest power of two
    that divides the number of devices.
  """
  if memory is None or memory >= _LARGE_MEMORY:
    return 1
  return math.gcd(8, num_devices)


def platform() -> str:
  """The kind of the ambient mesh's devices, or of JAX's default ones.

  'cpu', 'gpu' or 'tpu'. The two differ where a program is compiled for devices
  that are not here.
  """
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device.platform if device else jax.default_backend()


def device_memory(mesh: Mesh) -> int | None:
  """Bytes that a device may use, of which the mesh's others have as many.

  None where it does not say, as CPUs.
  """
  stats = mesh.local_devices[0].memory_stats()
  return stats['bytes_limit'] if stats else None


def spec_of(name: str, rules: Sequence[Rule]) -> PartitionSpec:
  """Returns the spec of the first rule whose pattern is found in `name`."""
  for pattern, spec in rules:
    if re.search(pattern, name):
      return spec
  return PartitionSpec()


def state_shardings(
  state: Tree, mesh: Mesh, rules: Sequence[Rule] = RULES
) -> Tree:
  """Returns the sharding of every array of a state by the rules.

  Raises:
    UserError: if a leaf cannot be split as its rule says.
  """
  shardings = []
  for name, leaf in leaves.by_name(state).items():
    sharding = NamedSharding(mesh, spec_of(name, rules))
    try:
      sharding.check_compatible_aval(leaf.shape)
      sharding.shard_shape(leaf.shape)
    except ValueError as error:
      raise UserError(
        f'{name}: {leaves.layout(leaf)} cannot be split as {sharding.spec} '
        f'over the mesh {dict(mesh.shape)}; another fsdp is needed'
      ) from error
    shardings.append(sharding)
  return jax.tree.unflatten(jax.tree.structure(state), shardings)


def shard_state(state: Tree, mesh: Mesh, rules: Sequence[Rule] = RULES) -> Tree:
  """Places a state, equal in all processes, on the mesh by the rules."""
  return jax.device_put(state, state_shardings(state, mesh, rules))


def placed(shapes: Tree, mesh: Mesh, rules: Sequence[Rule] = RULES) -> Tree:
  """Returns `jax.ShapeDtypeStruct`s with the shardings of the rules."""
  return jax.tree.map(
    lambda x, sharding: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=sharding
    ),
    shapes,
    state_shardings(shapes, mesh, rules),
  )


def init_state(
  make: Callable[..., Tree],
  *arguments: Any,
  mesh: Mesh,
) -> Tree:
  """Creates a state directly in the placement that the rules say.

  `make` is traced, in every process, with global arrays as arguments; it must
  not close over any.
  """
  shardings = state_shardings(jax.eval_shape(make, *arguments), mesh)
  return jax.jit(make, out_shardings=shardings)(*arguments)


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
  """Returns the sharding of a batch: one axis over all devices."""
  return NamedSharding(mesh, _batch_spec(axis))


def local_rows(index: np.ndarray, mesh: Mesh, axis: int = 0) -> np.ndarray:
  """Returns this process's part of a global host array, for `put_batch`.

  Of the indices of a batch's examples, equal in all processes, it is what this
  process has to load.

  Raises:
    UserError: if the axis cannot be split evenly over the mesh's devices.
  """
  if index.shape[axis] % mesh.size:
    raise UserError(
      f'batch size {index.shape[axis]}: it must be a multiple of the number of'
      f' devices, {mesh.size}'
    )
  # A topology-aware mesh may interleave the devices of processes.
  places = batch_sharding(mesh, axis).addressable_devices_indices_map(
    index.shape
  )
  rows = {
    place[axis].indices(index.shape[axis])
    for place in places.values()
    if place is not None
  }
  parts = [np.arange(*row) for row in sorted(rows)]
  return np.take(index, np.concatenate(parts), axis)


def put_batch(batch: Tree, mesh: Mesh, axis: int = 0) -> Tree:
  """Makes global arrays, split over all devices, from each process's part.

  Args:
    batch: host arrays whose `axis` has B / number of processes entries;
      scalars are replicated and must be equal in all processes.
    mesh: from `make_mesh`.
    axis: the axis of the batch, which then has B entries.

  Raises:
    UserError: if a batch cannot be split evenly over this process's devices.
  """
  num_local = len(mesh.local_devices)

  def put(leaf: Any) -> jax.Array:
    leaf = np.asarray(leaf)
    if leaf.ndim == 0:
      sharding = NamedSharding(mesh, PartitionSpec())
    elif leaf.shape[axis] % num_local:
      raise UserError(
        f'batch size {leaf.shape[axis]} of this process: it must be a multiple '
        f'of the number of its devices, {num_local}'
      )
    else:
      sharding = batch_sharding(mesh, axis)
    return jax.make_array_from_process_local_data(sharding, leaf)

  return jax.tree.map(put, batch)


def split_batch(tree: Tree, axis: int = 0) -> Tree:
  """Inside jit: keeps one axis of every array split over all devices.

  An array that is created inside a compiled function has no sharding yet.
  Without this the compiler may put a whole batch on every device. Nothing
  happens without an ambient mesh, or with one of a single device.
  """
  return _constrain(tree, _batch_spec(axis))


def whole(params: Tree) -> Tree:
  """Inside jit: gathers split parameters, whole on every device.

  Applying a network to whole parameters means that only parameters are
  communicated; otherwise the compiler may split activations as the parameters
  are split. The gradient has the sharding of the parameters.
  """
  return _constrain(params, PartitionSpec())


def gather(tree: Tree) -> Tree:
  """Returns global arrays as whole NumPy arrays, the same in every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def _constrain(tree: Tree, spec: PartitionSpec) -> Tree:
  """Inside jit: gives every array this spec if the mesh has several devices."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return tree
  return jax.lax.with_sharding_constraint(tree, spec)


def _batch_spec(axis: int) -> PartitionSpec:
  """Returns the spec that splits one axis over both axes of the mesh."""
  return PartitionSpec(*[None] * axis, AXES)
