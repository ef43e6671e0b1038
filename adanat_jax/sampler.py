"""A trained generator as a library object.

  import adanat_jax
  generator = adanat_jax.load('runs/digits')
  images = generator.sample([0, 1, 1], num_steps=4, seed=0)

`load` is in `adanat_jax.stages.load`; this module holds what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import functools
from typing import Any, TypeAlias

from flax import struct
import jax
from jax.sharding import Mesh
import numpy as np

from adanat_jax import sharding
from adanat_jax.decoding import loop, schedules, step as step_lib
from adanat_jax.errors import UserError
from adanat_jax.rl.agent import Agent
from adanat_jax.types import Array, PolicyValues, Trajectory

PolicyLike: TypeAlias = PolicyValues | Agent


@struct.dataclass
class Samples:
  """What a batch of samples consists of.

  Attributes:
    images: in [0, 1].
    tokens: complete token grids.
    trajectory: time-major record of the decode, None unless asked for.
  """

  images: Any  # float32[B, H, W, C]
  tokens: Any  # int32[B, N]
  trajectory: Trajectory | None


@dataclasses.dataclass(frozen=True)
class Generator:
  """A NAT, its tokenizer and its policies.

  Attributes:
    nat: module with `apply(variables, tokens, condition)`.
    nat_params: its parameters.
    tokenizer: module with the method `decode_tokens`.
    tokenizer_params: its parameters.
    num_classes: labels lie in `[0, num_classes)`.
    agents: learned policies by number of steps.
    batch_size: samples decoded at a time; short batches are padded, so that
      every sample is computed in the same shapes.
    null_condition: what stands for no condition, without a batch axis, if
      conditions are no class ids; None for the class id `num_classes`.
    mesh: the devices among which each batch is divided; all by default. Where
      their number does not divide `batch_size`, batches are a little larger.
  """

  nat: Any
  nat_params: Any
  tokenizer: Any
  tokenizer_params: Any
  num_classes: int
  agents: Mapping[int, Agent]
  batch_size: int = 500
  null_condition: Any = None
  mesh: Mesh | None = None

  def sample(
    self,
    labels: Sequence[int] | np.ndarray,
    num_steps: int = 4,
    seed: int = 0,
    policy: str | PolicyLike = 'learned',
  ) -> np.ndarray:
    """Generates one image a label.

    Args:
      labels: class ids, or float32[B, L, C] states of captions.
      num_steps: T.
      seed: image i of a seed is the same whatever comes after it.
      policy: `'learned'`, `'hand-made'` (MaskGIT's unguided schedule), a table
        of float32[T] values, or an agent.

    Returns:
      float32[B, H, W, C] in [0, 1].

    Raises:
      UserError: for labels, steps or a policy that this generator cannot do.
    """
    return self.generate(labels, num_steps, seed, policy).images

  def generate(
    self,
    labels: Sequence[int] | np.ndarray,
    num_steps: int = 4,
    seed: int = 0,
    policy: str | PolicyLike = 'learned',
    tokens: np.ndarray | None = None,
    record: bool = False,
  ) -> Samples:
    """As `sample`, with tokens and, on demand, what happened on the way.

    Args:
      labels: class ids, or float32[B, L, C] states of captions.
      num_steps: T.
      seed: see `sample`.
      policy: see `sample`.
      tokens: int32[B, N] canvases to start from, the mask token (`codebook
        size`) where unknown; given tokens stay. None starts from nothing.
      record: whether to return the trajectory.

    Returns:
      Images, tokens and trajectory, as NumPy arrays.

    Raises:
      UserError: see `sample`.
    """
    checked = self._checked_labels(labels)
    if tokens is not None:
      tokens = self._checked_tokens(tokens, len(checked))
    chosen, guided, options = self._resolve(policy, num_steps)
    return self.decode(
      chosen,
      checked,
      jax.random.key(seed),
      num_steps=num_steps,
      guided=guided,
      options=options,
      tokens=tokens,
      record=record,
    )

  def decode(
    self,
    policy: PolicyLike,
    labels: np.ndarray,
    key: Array,
    *,
    num_steps: int,
    guided: bool = True,
    options: step_lib.StepOptions = step_lib.ADANAT,
    tokens: np.ndarray | None = None,
    record: bool = False,
  ) -> Samples:
    """Decodes with an explicit policy, in batches of `batch_size`.

    Args:
      policy: a table (float32[T], or float32[T, B] a sample) or an agent.
      labels: int32[B].
      key: of the whole set of samples.
      num_steps: T.
      guided: whether the unconditional pass runs at all.
      options: of the decode step.
      tokens: see `generate`.
      record: see `generate`.
    """
    count = len(labels)
    if tokens is None:
      tokens = np.full(
        (count, self.nat.num_tokens), self.nat.codebook_size, np.int32
      )
    mesh = self.mesh or sharding.make_mesh()
    static = (num_steps, guided, options, record)
    parts = []
    for index, num_real in self._batches(0, count):
      rows = sharding.local_rows(index, mesh)
      batch = {'tokens': tokens[rows], 'labels': labels[rows]}
      batch = sharding.put_batch(batch, mesh)
      steered = _rows_of(policy, rows, mesh)
      part = self._decode_part(steered, batch, index[0], key, static)
      parts.append(_keep(sharding.gather(part), num_real))
    return _join(parts)

  def stream(
    self,
    policy: PolicyLike,
    condition_of: Callable[[np.ndarray], Any],
    count: int,
    key: Array,
    *,
    num_steps: int,
    guided: bool = True,
    options: step_lib.StepOptions = step_lib.ADANAT,
    first: int = 0,
  ) -> Iterator[tuple[np.ndarray, Samples]]:
    """The samples of `decode`, batch after batch, left on the devices.

    Args:
      policy: see `decode`; a table has a value a step, not one a sample.
      condition_of: `int[B] -> [B, ...]`: conditions of samples by their number,
        as global arrays divided over the mesh.
      count: how many samples there are.
      key: see `decode`, as for `num_steps`, `guided` and `options`.
      num_steps: T.
      guided: whether the unconditional pass runs at all.
      options: of the decode step.
      first: sample to begin with, one with which a batch begins.

    Yields:
      The numbers int[n] of a batch's samples, and global arrays whose first n
      rows they are; what follows is padding.
    """
    mesh = self.mesh or sharding.make_mesh()
    static = (num_steps, guided, options, False)
    for index, num_real in self._batches(first, count):
      shape = (len(sharding.local_rows(index, mesh)), self.nat.num_tokens)
      unknown = np.full(shape, self.nat.codebook_size, np.int32)
      batch = {
        'tokens': sharding.put_batch(unknown, mesh),
        'labels': condition_of(index),
      }
      part = self._decode_part(policy, batch, index[0], key, static)
      yield index[:num_real], part

  def _decode_part(
    self,
    policy: PolicyLike,
    batch: dict[str, Array],
    start: int,
    key: Array,
    static: tuple[int, bool, step_lib.StepOptions, bool],
  ) -> Samples:
    """Decodes a batch of global arrays; `static` as `_decode_batch` has it."""
    mesh = self.mesh or sharding.make_mesh()
    index = (start + np.arange(len(batch['tokens']))).astype(np.int32)
    index = sharding.put_batch(sharding.local_rows(index, mesh), mesh)
    with jax.set_mesh(mesh):
      return _decode_batch(
        self.nat,
        self.tokenizer,
        *static,
        self.nat_params,
        self.tokenizer_params,
        policy,
        {**batch, 'index': index},
        self._null(),
        key,
      )

  def _batches(self, first: int, count: int) -> Iterator[tuple[Any, int]]:
    """Numbers int[B] of every batch's samples, and how many of them count.

    Padding repeats the first ones.
    """
    devices = (self.mesh or sharding.make_mesh()).size
    size = -(-self.batch_size // devices) * devices
    for start in range(first, count, size):
      num_real = min(size, count - start)
      yield start + np.resize(np.arange(num_real), size), num_real

  def _null(self) -> np.ndarray:
    if self.null_condition is None:
      return np.asarray(self.num_classes, np.int32)
    return np.asarray(self.null_condition)

  def _checked_labels(self, labels: Sequence[int] | np.ndarray) -> np.ndarray:
    result = np.asarray(labels)
    if self.null_condition is not None:
      expected = np.shape(self.null_condition)
      if result.ndim < 2 or result.shape[1:] != expected:
        raise UserError(
          f'conditions are {result.shape}; give [B, *{expected}] text states'
        )
      return result.astype(np.float32)
    if result.ndim != 1 or result.size == 0 or result.dtype.kind not in 'iu':
      raise UserError(f'labels are {labels!r}; give a list of class ids')
    if result.min() < 0 or result.max() >= self.num_classes:
      raise UserError(
        f'labels hold {sorted(set(result.tolist()))}; classes are'
        f' 0 to {self.num_classes - 1}'
      )
    return result.astype(np.int32)

  def _checked_tokens(self, tokens: np.ndarray, count: int) -> np.ndarray:
    result = np.asarray(tokens)
    shape = (count, self.nat.num_tokens)
    if result.shape != shape or result.dtype.kind not in 'iu':
      raise UserError(
        f'tokens are {result.dtype}{list(result.shape)}; give integers'
        f' {list(shape)}, one canvas a label'
      )
    if result.min() < 0 or result.max() > self.nat.codebook_size:
      raise UserError(
        f'tokens lie in {result.min()} to {result.max()}; allowed are 0 to'
        f' {self.nat.codebook_size}, which marks an unknown one'
      )
    return result.astype(np.int32)

  def _resolve(
    self, policy: str | PolicyLike, num_steps: int
  ) -> tuple[PolicyLike, bool, step_lib.StepOptions]:
    """The policy, whether it is guided, and its step options."""
    if num_steps < 1:
      raise UserError(f'num_steps is {num_steps}; at least 1 is needed')
    if isinstance(policy, PolicyValues):
      length = np.shape(policy.mask_ratio)[0]
      if length != num_steps:
        raise UserError(
          f'the table has {length} steps, num_steps is {num_steps}'
        )
      return policy, True, step_lib.ADANAT
    if isinstance(policy, Agent):
      return policy, True, step_lib.ADANAT
    if policy == 'hand-made':
      table = schedules.hand_made(num_steps, total=self.nat.num_tokens)
      return table, False, step_lib.MASKGIT
    if policy != 'learned':
      raise UserError(
        f'policy is {policy!r}; give learned, hand-made, a table or an agent'
      )
    if num_steps not in self.agents:
      known = ', '.join(str(steps) for steps in sorted(self.agents)) or 'none'
      raise UserError(
        f'no policy was learned for num_steps={num_steps}; learned: {known}'
      )
    return self.agents[num_steps], True, step_lib.ADANAT


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4, 5))
def _decode_batch(
  nat: Any,
  tokenizer: Any,
  num_steps: int,
  guided: bool,
  options: step_lib.StepOptions,
  record: bool,
  nat_params: Any,
  tokenizer_params: Any,
  policy: PolicyLike,
  batch: dict[str, Array],
  null_label: Array,
  key: Array,
) -> Samples:
  """One batch, the static arguments first."""
  nat_params, tokenizer_params = sharding.whole((nat_params, tokenizer_params))

  def denoiser(
    tokens: Array, condition: Array, cache: Any
  ) -> tuple[Array, Array, Any]:
    features, logits = nat.apply({'params': nat_params}, tokens, condition)
    return features, logits, cache

  if isinstance(policy, PolicyValues):
    steered = schedules.table_policy(policy)
  else:
    steered = policy.policy()
  decoded = loop.decode(
    denoiser,
    steered,
    tokens=batch['tokens'],
    condition=batch['labels'],
    null_condition=null_label if guided else None,
    keys=loop.keys_of(key, batch['index']),
    num_steps=num_steps,
    mask_token=nat.codebook_size,
    options=options,
    record=record,
  )
  images = tokenizer.apply(
    {'params': tokenizer_params}, decoded.tokens, method='decode_tokens'
  )
  return Samples(images, decoded.tokens, decoded.trajectory)


def _rows_of(policy: PolicyLike, rows: np.ndarray, mesh: Mesh) -> PolicyLike:
  """A table a sample, float32[T, B], restricted to this process's samples."""
  if isinstance(policy, Agent):
    return policy
  table = jax.tree.map(np.asarray, policy)
  if np.ndim(table.mask_ratio) == 1:
    return table
  table = jax.tree.map(lambda x: x[:, rows], table)
  return sharding.put_batch(table, mesh, axis=1)


def _keep(part: Samples, count: int) -> Samples:
  """Drops the padding of a batch."""
  return Samples(
    part.images[:count],
    part.tokens[:count],
    jax.tree.map(lambda x: x[:, :count], part.trajectory),
  )


def _join(parts: Sequence[Samples]) -> Samples:
  """Batches one after the other."""
  join = lambda axis: lambda *xs: np.concatenate(xs, axis)
  return Samples(
    join(0)(*(part.images for part in parts)),
    join(0)(*(part.tokens for part in parts)),
    jax.tree.map(join(1), *(part.trajectory for part in parts)),
  )
