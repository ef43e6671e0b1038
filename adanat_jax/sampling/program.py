"""The compiled decoding of one batch, from canvases to images.

`generator.Generator` cuts requests into batches; each of them runs this one
program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import os
from typing import TYPE_CHECKING, Any, TypeGuard

from flax import struct
import jax
from jax.sharding import Mesh
import numpy as np
from numpy.typing import DTypeLike

from adanat_jax.decoding import guidance, loop, step as step_lib
from adanat_jax.decoding.schedules import PolicyLike, Schedule
from adanat_jax.models import denoisers
from adanat_jax.runtime import batch_parts, processes, sharding
from adanat_jax.types import Array, PolicyValues, TokenCounts, Trajectory

if TYPE_CHECKING:
  import PIL.Image

# With fewer rows a device, CPUs sum in another order: the last bits of images
# would depend on how many were asked for.
_FEWEST_ROWS = 8
# Tables of up to so many steps have one program.
_LEAST_STEPS = 16
# Of the images that an accelerator decodes at a time: 16 of 256 pixels.
_TOKENS_OF_PART = 4096


@struct.dataclass
class Samples:
  """Images with what they were made of; as an array it is the images.

  Attributes:
    images: float32[B, H, W, C] in [0, 1]; of a `Problem` what its decoder
      returns, None without one.
    tokens: int32[B, N], complete token grids.
    trajectory: time-major record of the decode less the network's features;
      None unless asked for.
    passes: int32[B], denoiser passes that each sample needed.
  """

  images: np.ndarray
  tokens: np.ndarray
  trajectory: Trajectory | None
  passes: np.ndarray

  def __len__(self) -> int:
    return len(self.tokens)

  def __repr__(self) -> str:
    recorded = ', with the trajectory' if self.trajectory is not None else ''
    shape = np.shape(self.tokens if self.images is None else self.images)
    return f'<Samples: {list(shape)}{recorded}>'

  def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
    return self.images[index]

  def __array__(
    self, dtype: DTypeLike | None = None, copy: bool | None = None
  ) -> np.ndarray:
    return np.array(self.images, dtype, copy=copy)

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the images, (B, H, W, C)."""
    return self.images.shape

  def to_pil(self) -> list[PIL.Image.Image]:
    """The images as Pillow's, grey or RGB, rounded to 8 bits."""
    from adanat_jax.report import pictures

    return [pictures.to_pil(image) for image in self.images]

  def _repr_png_(self) -> bytes:
    """What notebooks show: the images as `save_grid` writes them."""
    from adanat_jax.report import pictures

    return pictures.grid_png(self.images, 8, max(1, 64 // self.shape[1]))

  def save_grid(
    self,
    path: str | os.PathLike[str],
    columns: int = 8,
    scale: int | None = None,
  ) -> None:
    """Writes the images to a PNG file, in lines from left to right.

    Args:
      path: the file; its directory must exist.
      columns: images a line.
      scale: each pixel becomes a square of so many pixels; None enlarges small
        images to 64.

    Raises:
      UserError: if it cannot be written.
    """
    from adanat_jax.report import pictures

    scale = scale or max(1, 64 // self.shape[1])
    pictures.save_grid(path, self.images, columns, scale)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a compiled program is made for: what is static of a schedule.

  Schedules that differ in nothing else, such as two tables of a search, share
  a program: their policies are its arguments.
  """

  num_steps: int
  guided: guidance.Guided = (
    True  # whether, or when, the unconditional pass runs
  )
  options: step_lib.StepOptions = step_lib.ADANAT
  record: bool = False  # whether to return the trajectory
  # Of each step of a table, where the network can make use of them: the steps
  # are unrolled, each gathers the tokens it needs.
  counts: tuple[TokenCounts, ...] | None = None
  # Bounds of the counts of a policy that decides for each sample, cheapest
  # first; none to run every block at every position.
  buckets: tuple[TokenCounts, ...] = ()

  @classmethod
  def from_schedule(cls, schedule: Schedule, record: bool = False) -> Plan:
    """The plan of a schedule, without counts and buckets."""
    return cls(schedule.num_steps, schedule.guided, schedule.options, record)


@functools.partial(jax.jit, static_argnums=(0, 1))
def decode_tokens(
  nat: denoisers.DenoiserModule,
  plan: Plan,
  nat_params: Any,
  policy: PolicyLike,
  batch: dict[str, Any],
  null_condition: Array,
  key: Array,
) -> loop.Decoded:
  """Decodes one batch to tokens.

  Args:
    nat: the network.
    plan: see `Plan`.
    nat_params: its parameters.
    policy: that of the schedule; a table of float32[T, B] has the columns of
      these samples.
    batch: `tokens` int32[B, N], the canvases to start from; `labels`, int32[B]
      classes or float32[B, L, C] texts; `index` int32[B], the numbers of the
      samples, from which their noise follows; `priority` float32[B, N] where
      the schedule has one; `first`, a `loop.FirstStep`, where one is known;
      `taken` int32[], how many of the plan's steps are, if not all.
    null_condition: what stands for no condition, without a batch axis.
    key: of the whole set of samples.
  """
  nat_params = sharding.whole(nat_params)
  tokens, condition = batch['tokens'], batch['labels']
  keys = loop.keys_of(key, batch['index'])
  shared: dict[str, Any] = dict(
    priority=batch.get('priority'),
    first=batch.get('first'),
    tokens=tokens,
    condition=condition,
    null_condition=null_condition if plan.guided else None,
    keys=keys,
    mask_token=nat.codebook_size,
    options=plan.options,
    record=plan.record,
  )
  if plan.counts is not None:
    assert isinstance(policy, PolicyValues) and isinstance(plan.guided, bool)
    from adanat_jax.decoding import unrolled

    gathering = denoisers.make_gathering(nat, nat_params)
    return without_features(
      unrolled.decode(gathering, policy, counts=plan.counts, **shared)
    )
  denoiser = denoisers.make(nat, nat_params)
  if plan.buckets:
    from adanat_jax.decoding import buckets

    denoiser = buckets.bucketed(
      denoisers.make_gathering(nat, nat_params),
      denoiser,
      plan.buckets,
      nat.codebook_size,
    )
  rows = (1 + bool(plan.guided)) * tokens.shape[0]
  cache = denoisers.empty_cache(nat, rows, denoisers.text_length(condition))
  from adanat_jax.decoding import lookahead

  return lookahead.decode(
    denoiser,
    policy,
    num_steps=plan.num_steps,
    guided=plan.guided,
    cache=sharding.split_batch(cache),
    taken=batch.get('taken'),
    **shared,
  )


def without_features(decoded: loop.Decoded) -> loop.Decoded:
  """Only training reads them; of many samples they would be gigabytes."""
  if decoded.trajectory is None:
    return decoded
  trajectory = dataclasses.replace(decoded.trajectory, features=None)
  return dataclasses.replace(decoded, trajectory=trajectory)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def decode_batch(
  nat: denoisers.DenoiserModule,
  tokenizer: Any,
  plan: Plan,
  nat_params: Any,
  tokenizer_params: Any,
  policy: PolicyLike,
  batch: dict[str, Any],
  null_condition: Array,
  key: Array,
) -> Samples:
  """Decodes one batch to images.

  `tokenizer` is a module with the method `decode_tokens`; of the others see the
  function `decode_tokens`.
  """
  decoded = decode_tokens(
    nat, plan, nat_params, policy, batch, null_condition, key
  )
  variables = {'params': sharding.whole(tokenizer_params)}

  def images_of(tokens: Array) -> Any:
    images = tokenizer.apply(variables, tokens, method='decode_tokens')
    return jax.tree.map(lambda x: x[None], images)

  images = batch_parts.map_in_parts(
    images_of, decoded.tokens, _num_parts(*decoded.tokens.shape)
  )
  images = jax.tree.map(lambda x: x[0], images)
  return Samples(images, decoded.tokens, decoded.trajectory, decoded.passes)


def _num_parts(batch_size: int, num_tokens: int) -> int:
  """In how many parts a batch of tokens becomes images.

  The activations of a decoder at full size are larger than all of the NAT's, so
  accelerators make a few images at a time.
  """
  # A batch of any size has no parts.
  if sharding.platform() == 'cpu' or not isinstance(batch_size, int):
    return 1
  mesh = jax.sharding.get_abstract_mesh()
  rows = batch_size // max(1, mesh.size)
  fewest = -(-rows * num_tokens // _TOKENS_OF_PART)
  return next(n for n in range(fewest, rows + 1) if rows % n == 0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(module: Any, method: str, params: Any, inputs: Array) -> Array:
  """Applies a method of a network to a batch."""
  return module.apply({'params': sharding.whole(params)}, inputs, method=method)


def is_shared_table(policy: PolicyLike) -> TypeGuard[PolicyValues]:
  """Whether a policy is a table of float32[T], the same for all samples."""
  return isinstance(policy, PolicyValues) and np.ndim(policy.mask_ratio) == 1


def with_counts(
  nat: denoisers.DenoiserModule,
  plan: Plan,
  table: PolicyValues,
  tokens: np.ndarray,
  labels: Any,
) -> Plan:
  """The plan of a table float32[T], with its counts if all canvases share them.

  `nat` can make use of them, `tokens` int32[B, N] are the canvases to start
  from, and of `labels` see `decode_tokens`.
  """
  # Where only some steps are guided, the two passes find unlike counts.
  if not plan.options.has_counts or isinstance(plan.guided, tuple):
    return plan
  unknown = np.unique((tokens == nat.codebook_size).sum(axis=1))
  if len(unknown) > 1:
    return plan
  from adanat_jax.decoding import unrolled

  counts = unrolled.counts_of(
    table,
    nat.num_tokens,
    num_unknown=int(unknown[0]),
    text_length=denoisers.text_length(labels),
    options=plan.options,
  )
  return dataclasses.replace(plan, counts=counts)


def shared(
  plan: Plan, policy: PolicyLike, index: np.ndarray, mesh: Mesh
) -> tuple[Plan, PolicyLike, dict[str, Any]]:
  """The plan that all tables of the same options and guidance share.

  Each number of steps, or a column for each sample, would else be compiled by
  itself, which takes longer than sampling with small networks. So a table gets
  columns, and rows up to a power of two, and the number of its steps becomes an
  argument. It always records.

  Args:
    plan: that of the schedule.
    policy: that of the schedule; others than tables stay as they are.
    index: int[B], the numbers of the samples of the whole batch.
    mesh: over which they are divided.

  Returns:
    The plan, the policy as `decode_tokens` takes it, and what belongs into the
    batch: `index` among it.
  """
  rows = sharding.local_rows(index, mesh)
  # Padding has numbers of its own.
  numbers = (index[0] + np.arange(len(index))).astype(np.int32)
  own = sharding.put_batch(sharding.local_rows(numbers, mesh), mesh)
  is_alike = plan.counts is None and isinstance(plan.guided, bool)
  is_alike &= plan.options.candidates == 1
  if not isinstance(policy, PolicyValues) or not is_alike:
    return plan, rows_of(policy, rows, mesh), {'index': own}
  num_steps = plan.num_steps
  most = max(_LEAST_STEPS, 1 << (num_steps - 1).bit_length())

  def extend(x: Any) -> np.ndarray:
    x = np.asarray(x, np.float32)
    x = x[:, rows] if x.ndim > 1 else x[:, None]
    padding = (0, most - num_steps), (0, 0)
    return np.broadcast_to(np.pad(x, padding), (most, len(rows)))

  table = sharding.put_batch(jax.tree.map(extend, policy), mesh, axis=1)
  plan = dataclasses.replace(plan, num_steps=most, record=True)
  return plan, table, {'index': own, 'taken': np.int32(num_steps)}


def rows_of(policy: PolicyLike, rows: np.ndarray, mesh: Mesh) -> PolicyLike:
  """A table a sample, float32[T, B], restricted to this process's samples."""
  if not isinstance(policy, PolicyValues):
    return policy
  table = jax.tree.map(np.asarray, policy)
  if is_shared_table(table):
    return table
  table = jax.tree.map(lambda x: x[:, rows], table)
  return sharding.put_batch(table, mesh, axis=1)


def priority_of(schedule: Schedule, count: int) -> dict[str, np.ndarray]:
  """The order of positions for each sample of a batch, if there is one."""
  if schedule.priority is None:
    return {}
  return {'priority': np.tile(schedule.priority, (count, 1))}


def batches(
  first: int, count: int, batch_size: int, devices: int, whole: bool = False
) -> Iterator[tuple[np.ndarray, int]]:
  """Numbers int[B] of every batch's samples, and how many of them count.

  Padding repeats the first ones. A request that fits into a batch gets one of
  the next power of two; longer ones, and `whole`, get batches of `batch_size`,
  the last one too: another program would take longer to compile than its
  padding does to run. The number of devices divides all.
  """
  size = -(-batch_size // devices) * devices
  if not whole and count < size:
    rows = max(_FEWEST_ROWS, 1 << (-(-count // devices) - 1).bit_length())
    size = min(size, rows * devices)
  for start in range(first, count, size):
    num_real = min(size, count - start)
    yield start + np.resize(np.arange(num_real), size), num_real


@contextlib.contextmanager
def progress_bar(
  count: int, shown: bool, callback: Callable[[int, Samples], None] | None
) -> Iterator[Callable[[int, Samples], None]]:
  """Shows on a terminal how many of the samples are done.

  Yields:
    What to call after each batch; it calls `callback`, too.
  """
  import tqdm  # Only few calls need it.

  # None leaves it out where there is no terminal.
  disable = None if shown and processes.process_index() == 0 else True
  with tqdm.tqdm(
    total=count, unit='image', delay=2, leave=False, disable=disable
  ) as bar:

    def advance(done: int, samples: Samples) -> None:
      bar.update(done - bar.n)
      if callback is not None:
        callback(done, samples)

    yield advance


def keep(part: Samples, count: int, num_steps: int | None = None) -> Samples:
  """Drops the padding of a batch, and of a trajectory's steps."""
  record = jax.tree.map(lambda x: x[:num_steps, :count], part.trajectory)
  rest = dataclasses.replace(part, trajectory=None)
  rest = jax.tree.map(lambda x: x[:count], rest)
  return dataclasses.replace(rest, trajectory=record)


def join(parts: Sequence[Samples]) -> Samples:
  """Batches one after the other."""
  join = lambda axis: lambda *xs: np.concatenate(xs, axis)
  record = jax.tree.map(join(1), *(part.trajectory for part in parts))
  rest = [dataclasses.replace(part, trajectory=None) for part in parts]
  rest = jax.tree.map(join(0), *rest)
  return dataclasses.replace(rest, trajectory=record)
