"""A trained generator as a library object.

  import adanat_jax
  generator = adanat_jax.load('runs/digits')
  images = generator.sample([0, 1, 1], num_steps=4, seed=0)

`load` is in `adanat_jax.experiment.experiment`; this module holds what it
returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from adanat_jax.decoding import buckets as buckets_lib, schedules
from adanat_jax.decoding.schedules import LearnedPolicy, PolicyLike, Schedule
from adanat_jax.errors import UserError
from adanat_jax.learning.agent import Agent
from adanat_jax.models import denoisers
from adanat_jax.runtime import sharding
from adanat_jax.sampling import program
from adanat_jax.sampling.program import Plan, Samples, decode_batch
from adanat_jax.types import Array, PolicyValues, TokenCounts

Labels = Sequence[int] | Sequence[str] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Generator:
  """A NAT or ENAT, its tokenizer and its policies.

  An ENAT follows a table on the tokens that each step needs, which is where it
  saves operations: see `static_counts`, and `buckets` for other policies.

  Attributes:
    nat: the network.
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
    static_counts: False has an ENAT follow a table as it follows any policy, at
      every position: slower, and nothing is compiled for another table.
    buckets: of the policies of an ENAT by number of steps; `with_buckets` finds
      them.
    encode_captions: turns captions into conditions, float32[B, L, C].
  """

  nat: denoisers.DenoiserModule
  nat_params: Any
  tokenizer: Any
  tokenizer_params: Any
  num_classes: int
  agents: Mapping[int, Agent]
  batch_size: int = 500
  null_condition: Any = None
  mesh: Mesh | None = None
  static_counts: bool = True
  buckets: Mapping[int, tuple[TokenCounts, ...]] = dataclasses.field(
    default_factory=dict
  )
  encode_captions: Callable[[Sequence[str]], np.ndarray] | None = None

  def sample(
    self,
    labels: Labels,
    num_steps: int = 4,
    seed: int = 0,
    policy: str | PolicyLike | Schedule = 'learned',
  ) -> np.ndarray:
    """Generates one image a label.

    Args:
      labels: class ids, or captions, or their states, float32[B, L, C].
      num_steps: T.
      seed: image i of a seed is the same whatever comes after it.
      policy: `'learned'`; a name of `schedules.SCHEDULES`, such as `'maskgit'`
        (which `'hand-made'` is, too); a `Schedule`; or a table of float32[T]
        values or an agent, which are guided and decoded as AdaNAT does.

    Returns:
      float32[B, H, W, C] in [0, 1].

    Raises:
      UserError: for labels, steps or a policy that this generator cannot do.
    """
    return self.generate(labels, num_steps, seed, policy).images

  def generate(
    self,
    labels: Labels,
    num_steps: int = 4,
    seed: int = 0,
    policy: str | PolicyLike | Schedule = 'learned',
    tokens: np.ndarray | None = None,
    record: bool = False,
  ) -> Samples:
    """As `sample`, with tokens and, on demand, what happened on the way.

    Args:
      labels: see `sample`, as for the three that follow.
      num_steps: T.
      seed: of the samples.
      policy: what decides the decode.
      tokens: int32[B, N] canvases to start from, the mask token (`codebook
        size`) where unknown; given tokens stay. None starts from nothing.
      record: whether to return the trajectory.

    Returns:
      Images, tokens and trajectory, as NumPy arrays.

    Raises:
      UserError: see `sample`.
    """
    checked = _checked_labels(
      labels, self.num_classes, self.null_condition, self.encode_captions
    )
    if tokens is not None:
      shape = (len(checked), self.nat.num_tokens)
      tokens = _checked_tokens(tokens, shape, self.nat.codebook_size)
    return self.decode(
      self.schedule(policy, num_steps),
      checked,
      jax.random.key(seed),
      tokens=tokens,
      record=record,
    )

  def schedule(
    self, policy: str | PolicyLike | Schedule, num_steps: int
  ) -> Schedule:
    """The schedule that `sample` follows for its `policy`.

    Raises:
      UserError: for a name that is not known here, or another number of steps.
    """
    if num_steps < 1:
      raise UserError(f'num_steps is {num_steps}; at least 1 is needed')
    if isinstance(policy, str):
      return self._named(policy, num_steps)
    if isinstance(policy, Schedule):
      chosen, made = policy, f'the schedule {policy.name} has'
    elif isinstance(policy, PolicyValues):
      chosen, made = Schedule('table', policy), 'the table has'
    elif isinstance(policy, LearnedPolicy):
      chosen, made = Schedule('agent', policy), 'the agent was made for'
    else:
      raise _unknown(policy)
    if chosen.num_steps != num_steps:
      raise UserError(
        f'{made} {chosen.num_steps} steps, num_steps is {num_steps}'
      )
    return chosen

  def decode(
    self,
    schedule: Schedule,
    labels: np.ndarray,
    key: Array,
    *,
    tokens: np.ndarray | None = None,
    record: bool = False,
  ) -> Samples:
    """Decodes by a schedule, in batches of `batch_size`.

    Args:
      schedule: what decides the decode.
      labels: int32[B], or float32[B, L, C] states of captions.
      key: of the whole set of samples.
      tokens: see `generate`.
      record: see `generate`.
    """
    count = len(labels)
    if tokens is None:
      shape = (count, self.nat.num_tokens)
      tokens = np.full(shape, self.nat.codebook_size, np.int32)
    mesh = self.mesh or sharding.make_mesh()
    plan = Plan.from_schedule(schedule, record)
    plan = self._planned(plan, schedule.policy, tokens, labels)
    parts = []
    for index, num_real in self._batches(0, count):
      rows = sharding.local_rows(index, mesh)
      batch = {
        'tokens': tokens[rows],
        'labels': labels[rows],
        **_priority(schedule, len(rows)),
      }
      batch = sharding.put_batch(batch, mesh)
      policy = program.rows_of(schedule.policy, rows, mesh)
      part = self._decode_part(policy, batch, index[0], key, plan)
      parts.append(program.keep(sharding.gather(part), num_real))
    return program.join(parts)

  def stream(
    self,
    schedule: Schedule,
    condition_of: Callable[[np.ndarray], Any],
    count: int,
    key: Array,
    *,
    first: int = 0,
  ) -> Iterator[tuple[np.ndarray, Samples]]:
    """The samples of `decode`, batch after batch, left on the devices.

    Args:
      schedule: see `decode`; a table has a value a step, not one a sample.
      condition_of: `int[B] -> [B, ...]`: conditions of samples by their number,
        as global arrays divided over the mesh.
      count: how many samples there are.
      key: see `decode`.
      first: sample to begin with, one with which a batch begins.

    Yields:
      The numbers int[n] of a batch's samples, and global arrays whose first n
      rows they are; what follows is padding.
    """
    mesh = self.mesh or sharding.make_mesh()
    plan = Plan.from_schedule(schedule)
    for index, num_real in self._batches(first, count):
      shape = (len(sharding.local_rows(index, mesh)), self.nat.num_tokens)
      unknown = np.full(shape, self.nat.codebook_size, np.int32)
      batch = {
        'tokens': sharding.put_batch(unknown, mesh),
        'labels': condition_of(index),
        **sharding.put_batch(_priority(schedule, len(unknown)), mesh),
      }
      planned = self._planned(plan, schedule.policy, unknown, batch['labels'])
      part = self._decode_part(schedule.policy, batch, index[0], key, planned)
      yield index[:num_real], part

  def with_buckets(
    self,
    policy: str | PolicyLike | Schedule,
    labels: np.ndarray,
    key: Array,
    *,
    num_steps: int,
    num_buckets: int = 8,
  ) -> Generator:
    """The same generator, faster with an ENAT and such a policy.

    Args:
      policy: see `sample`; what decides for each sample.
      labels: conditions [B, ...] of samples on which the policy is watched,
        batch by batch; samples of other policies stay right, if slower.
      key: of those samples.
      num_steps: T.
      num_buckets: how many shapes are compiled at most, besides a fallback.

    Returns:
      A generator with `buckets` for this number of steps; this one if its
      network reuses nothing, or the policy is a table of float32[T].

    Raises:
      UserError: for steps or a policy that this generator cannot do.
    """
    from adanat_jax.models import operations

    chosen = self.schedule(policy, num_steps)
    if not denoisers.reuses(self.nat) or program.is_shared_table(chosen.policy):
      return self
    watched = dataclasses.replace(self, buckets={}).decode(
      chosen, labels, key, record=True
    )
    assert watched.trajectory is not None  # It was asked for.
    length, mask = denoisers.text_length(labels), self.nat.codebook_size
    start = np.full_like(watched.tokens, mask)
    found = buckets_lib.counts_of_decode(
      watched.trajectory.tokens, start, mask, length
    )
    largest = [
      np.asarray(found)[:, index[:num_real]].max(axis=1)
      for index, num_real in self._batches(0, len(labels))
    ]
    buckets = buckets_lib.choose(
      np.concatenate(largest),
      length + self.nat.num_tokens,
      num_buckets,
      lambda counts: operations.enat_operations(self.nat, counts, length),
    )
    buckets_by_steps = {**self.buckets, num_steps: buckets}
    return dataclasses.replace(self, buckets=buckets_by_steps)

  def _planned(
    self, plan: Plan, policy: PolicyLike, tokens: np.ndarray, labels: Any
  ) -> Plan:
    """A plan with the counts that the network can make use of."""
    if not denoisers.reuses(self.nat):
      return plan
    if not program.is_shared_table(policy):
      buckets = self.buckets.get(plan.num_steps, ())
      return dataclasses.replace(plan, buckets=buckets)
    if not self.static_counts:
      return plan
    return program.with_counts(self.nat, plan, policy, tokens, labels)

  def _decode_part(
    self,
    policy: PolicyLike,
    batch: dict[str, Array],
    start: int,
    key: Array,
    plan: Plan,
  ) -> Samples:
    """Decodes a batch of global arrays."""
    mesh = self.mesh or sharding.make_mesh()
    index = (start + np.arange(len(batch['tokens']))).astype(np.int32)
    index = sharding.put_batch(sharding.local_rows(index, mesh), mesh)
    with jax.set_mesh(mesh):
      return decode_batch(
        self.nat,
        self.tokenizer,
        plan,
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

  def _named(self, name: str, num_steps: int) -> Schedule:
    if name == 'learned':
      if num_steps not in self.agents:
        known = ', '.join(str(steps) for steps in sorted(self.agents)) or 'none'
        raise UserError(
          f'no policy was learned for num_steps={num_steps}; learned: {known}'
        )
      return Schedule('learned', self.agents[num_steps], label='AdaNAT')
    if name == 'hand-made':
      name = 'maskgit'
    if name.partition('(')[0] not in schedules.SCHEDULES:
      raise _unknown(name)
    return schedules.make(name, num_steps, self.nat.num_tokens)


def _priority(schedule: Schedule, count: int) -> dict[str, np.ndarray]:
  """The order of positions for each sample of a batch, if there is one."""
  if schedule.priority is None:
    return {}
  return {'priority': np.tile(schedule.priority, (count, 1))}


def _unknown(policy: Any) -> UserError:
  names = ', '.join(schedules.SCHEDULES)
  return UserError(
    f'policy is {policy!r}; give learned, hand-made, {names}, a Schedule, a'
    ' table or an agent'
  )


def _checked_labels(
  labels: Labels,
  num_classes: int,
  null_condition: Any,
  encode_captions: Callable[[Sequence[str]], np.ndarray] | None,
) -> np.ndarray:
  """What the network takes for `labels`: int32[B] or float32[B, L, C].

  A `null_condition` float32[L, C] says that it takes texts.

  Raises:
    UserError: naming what was given and what is allowed.
  """
  if null_condition is not None:
    return _checked_states(labels, np.shape(null_condition), encode_captions)
  result = np.asarray(labels)
  if result.ndim != 1 or result.size == 0 or result.dtype.kind not in 'iu':
    raise UserError(f'labels are {labels!r}; give a list of class ids')
  if result.min() < 0 or result.max() >= num_classes:
    raise UserError(
      f'labels hold {sorted(set(result.tolist()))}; classes are'
      f' 0 to {num_classes - 1}'
    )
  return result.astype(np.int32)


def _checked_tokens(
  tokens: np.ndarray, shape: tuple[int, int], codebook_size: int
) -> np.ndarray:
  """Canvases to start from, int32 of that shape.

  Raises:
    UserError: for another shape, or tokens beyond `codebook_size`, the mask.
  """
  result = np.asarray(tokens)
  if result.shape != shape or result.dtype.kind not in 'iu':
    raise UserError(
      f'tokens are {result.dtype}{list(result.shape)}; give integers'
      f' {list(shape)}, one canvas a label'
    )
  if result.min() < 0 or result.max() > codebook_size:
    raise UserError(
      f'tokens lie in {result.min()} to {result.max()}; allowed are 0 to'
      f' {codebook_size}, which marks an unknown one'
    )
  return result.astype(np.int32)


def _checked_states(
  labels: Labels,
  expected: tuple[int, ...],
  encode_captions: Callable[[Sequence[str]], np.ndarray] | None,
) -> np.ndarray:
  captions = np.asarray(labels)
  if captions.dtype.kind == 'U' and captions.ndim == 1 and encode_captions:
    return encode_captions(captions.tolist())
  if captions.dtype.kind != 'f' or captions.shape[1:] != expected:
    raise UserError(
      f'conditions are {captions.dtype}{list(captions.shape)}; give a list of'
      f' captions, or their states, float32[B, {expected[0]}, {expected[1]}]'
    )
  return captions.astype(np.float32)
