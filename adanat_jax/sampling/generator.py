"""A trained generator as a library object.

  import adanat_jax
  generator = adanat_jax.load('runs/digits')
  generator.sample(['even', 'odd', 'odd'], num_steps=4).save_grid('digits.png')

`load` is in `adanat_jax.experiment.experiment`; this module holds what it
returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import itertools
import os
import pathlib
from typing import TYPE_CHECKING, Any, Unpack

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from adanat_jax.decoding import guidance
from adanat_jax.decoding.schedules import PolicyLike, Schedule
from adanat_jax.learning.agent import Agent
from adanat_jax.models import denoisers
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import files, sharding
from adanat_jax.sampling import program, requests
from adanat_jax.sampling.first_step import FirstSteps
from adanat_jax.sampling.program import Plan, Samples, decode_batch
from adanat_jax.sampling.requests import (
  AnyPolicy,
  EncodeCaptions,
  InpaintingOptions,
  Labels,
  Pictures,
  SamplingOptions,
)
from adanat_jax.types import Array, TokenCounts

if TYPE_CHECKING:
  from PIL import Image

# Parameters of a network, as Flax nests them.
Params = Mapping[str, Any]


# Compared by identity: arrays have no single answer to `==`.
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Generator:
  """A NAT or ENAT, its tokenizer and its policies.

  An ENAT follows a table on the tokens that each step needs, which is where it
  saves operations: see `static_counts`, and `buckets` for other policies.

  Attributes:
    nat: the network.
    nat_params: its parameters.
    tokenizer: turns images into tokens and back.
    tokenizer_params: its parameters.
    num_classes: labels lie in `[0, num_classes)`.
    agents: learned policies by number of steps; one may serve several.
    batch_size: samples decoded at a time, at most.
    null_condition: float32[L, C], what stands for no caption; None where
      conditions are class ids, of which `num_classes` stands for none.
    mesh: the devices among which each batch is divided; all by default. Where
      their number does not divide `batch_size`, batches are a little larger.
    static_counts: False has an ENAT follow a table as it follows any policy, at
      every position: slower, and nothing is compiled for another table.
    buckets: of an ENAT's policies by number of steps, see `with_buckets`.
    encode_captions: turns captions into conditions, float32[B, L, C].
    class_names: of the classes, in the order of their ids; may be empty.
    schedules: of its own by name, such as searched tables; they are saved too.
    first_steps: keeps what the network says of empty canvases, by class.
  """

  nat: denoisers.DenoiserModule
  nat_params: Params
  tokenizer: VQGAN
  tokenizer_params: Params
  num_classes: int
  agents: Mapping[int, Agent]
  batch_size: int = 500
  null_condition: np.ndarray | None = None
  mesh: Mesh | None = None
  static_counts: bool = True
  buckets: Mapping[int, tuple[TokenCounts, ...]] = dataclasses.field(
    default_factory=dict
  )
  encode_captions: EncodeCaptions | None = None
  class_names: Sequence[str] = ()
  schedules: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
  first_steps: FirstSteps = dataclasses.field(default_factory=FirstSteps)

  def __post_init__(self) -> None:
    """Raises UserError for a batch size that is none."""
    requests.integer('batch_size', self.batch_size, 1)

  def __repr__(self) -> str:
    networks = [
      f'{type(module).__name__} ({sum(map(np.size, leaves)):,} parameters)'
      for module, leaves in (
        (self.nat, jax.tree.leaves(self.nat_params)),
        (self.tokenizer, jax.tree.leaves(self.tokenizer_params)),
      )
    ]
    conditions = 'captions'
    if self.null_condition is None:
      names = requests.some(self.class_names)
      conditions = f'{self.num_classes} classes'
      conditions += f' ({names})' if names else ''
    steps = requests.steps_of(self.agents)
    devices = [*self._mesh.devices.flat]
    height, width, channels = self.image_shape
    return (
      f'<Generator: {" and ".join(networks)}, images of {height}x{width}x'
      f'{channels} as {self.nat.num_tokens} tokens, {conditions}, policies'
      f' learned for num_steps: {steps}, on {len(devices)} x'
      f' {devices[0].device_kind}>'
    )

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of its images."""
    rows, columns = requests.grid(self)
    side = self.tokenizer.downsampling
    return side * rows, side * columns, self.tokenizer.image_channels

  def sample(
    self,
    labels: Labels,
    num_steps: int = 4,
    seed: int = 0,
    policy: str | AnyPolicy = 'learned',
    *,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    tokens: np.ndarray | None = None,
    record: bool = False,
    callback: Callable[[int, Samples], None] | None = None,
    progress: bool = True,
  ) -> Samples:
    """Generates one image a label.

    Args:
      labels: class ids or names, or captions, or their states float32[B, L, C].
      num_steps: T.
      seed: an integer from 0 to 2**32 - 1; image i of a seed is the same
        whatever comes after it.
      policy: `'learned'`; a name of `schedules.SCHEDULES`, such as `'maskgit'`
        (which `'hand-made'` is, too); a `Schedule`; or a table of T numbers
        (`PolicyValues`, or its lists by name), an agent, or a function `(step,
        observation, keys, carry) -> (values, aux, carry)` (`types.Policy`; it
        is compiled, once for each function object), which are guided and
        decoded as AdaNAT does.
      guidance_scale: instead of the policy's at every step; 0 runs no
        unconditional pass, which halves the cost.
      batch_size: images decoded at a time, at most; None for the generator's.
      tokens: int32[B, N] canvases to start from, the mask token (`codebook
        size`) where unknown; given tokens stay. None starts from nothing.
      record: whether to return the trajectory.
      callback: called after each batch, with the number of images that are done
        and the batch's samples.
      progress: show a bar on a terminal, if it takes longer than two seconds.

    Returns:
      Images, tokens and trajectory, as NumPy arrays.

    Raises:
      UserError: for what this generator cannot do.
    """
    generator, given = requests.checked(
      self, labels, num_steps, seed, policy, guidance_scale, batch_size, tokens
    )
    count = len(given['labels'])
    with program.progress_bar(count, progress, callback) as advance:
      return generator.run(**given, record=record, callback=advance)

  def sample_batches(
    self,
    labels: Labels,
    num_steps: int = 4,
    seed: int = 0,
    policy: str | AnyPolicy = 'learned',
    *,
    guidance_scale: float | None = None,
    batch_size: int | None = None,
    tokens: np.ndarray | None = None,
    record: bool = False,
  ) -> Iterator[Samples]:
    """Yields the samples of `sample` in their order, batch after batch.

    Images of two batches are held at a time; the states of captions are made
    before all. Arguments are those of `sample`; mistakes are raised at once.
    """
    generator, given = requests.checked(
      self, labels, num_steps, seed, policy, guidance_scale, batch_size, tokens
    )
    return generator.parts(**given, record=record)

  def generate(
    self,
    labels: Labels,
    num_steps: int = 4,
    seed: int = 0,
    policy: str | AnyPolicy = 'learned',
    tokens: np.ndarray | None = None,
    record: bool = False,
  ) -> Samples:
    """The same as `sample`, under its older name."""
    return self.sample(
      labels, num_steps, seed, policy, tokens=tokens, record=record
    )

  def encode(self, images: Pictures) -> np.ndarray:
    """Tokens int32[B, N] of images float[B, H, W, C] in [0, 1], or Pillow's.

    One image, float[H, W, C], gives int32[1, N].

    Raises:
      UserError: for images of another size, mode or range.
    """
    return self._tokenize(
      'tokenize', requests.pictures(images, self.image_shape)
    )

  def decode(self, tokens: np.ndarray) -> np.ndarray:
    """Images float32[B, H, W, C] in [0, 1] of complete grids int[B, N].

    Raises:
      UserError: for tokens that are none, the mask token included.
    """
    last = self.nat.codebook_size - 1
    return self._tokenize(
      'decode_tokens', requests.grids(tokens, self.nat.num_tokens, last)
    )

  def inpaint(
    self,
    images: Pictures,
    mask: np.ndarray | Image.Image,
    labels: Labels | int | str,
    **options: Unpack[InpaintingOptions],
  ) -> Samples:
    """Draws the masked part of pictures anew; see `editing.inpaint`."""
    from adanat_jax.sampling import editing

    return editing.inpaint(self, images, mask, labels, **options)

  def edit(
    self,
    images: Pictures,
    box: tuple[int, int, int, int],
    labels: Labels | int | str,
    **options: Unpack[InpaintingOptions],
  ) -> Samples:
    """Draws what lies in a box as something else; see `editing.edit`."""
    from adanat_jax.sampling import editing

    return editing.edit(self, images, box, labels, **options)

  def outpaint(
    self,
    images: Pictures,
    sides: tuple[int, int, int, int],
    labels: Labels | int | str,
    **options: Unpack[InpaintingOptions],
  ) -> Samples:
    """Draws what lies beyond the edges; see `editing.outpaint`."""
    from adanat_jax.sampling import editing

    return editing.outpaint(self, images, sides, labels, **options)

  def variations(
    self,
    images: Pictures,
    strength: float,
    labels: Labels | int | str,
    **options: Unpack[SamplingOptions],
  ) -> Samples:
    """Draws a share of the tokens anew; see `editing.variations`."""
    from adanat_jax.sampling import editing

    return editing.variations(self, images, strength, labels, **options)

  def save_page(
    self,
    path: str | os.PathLike[str],
    labels: Labels,
    num_steps: int = 4,
    seed: int = 0,
    policies: Sequence[str | AnyPolicy] = ('maskgit', 'learned'),
  ) -> None:
    """Writes an HTML page that plays decodes; see `replay.make_page`."""
    from adanat_jax.sampling import replay

    text = replay.make_page(self, labels, num_steps, seed, policies)
    files.write_text(path, text)

  def save(
    self,
    path: str | os.PathLike[str],
    *,
    dtype: str = 'float32',
    about: str = '',
  ) -> None:
    """Writes a folder that can be moved, shared, and loaded by its path.

    It holds all that sampling needs, and no code; docs/library.md describes it.
    A generator that was saved there before is replaced, at once.

    Args:
      path: the folder; nothing else may be in it.
      dtype: of the parameters in the files: `'float32'`, `'bfloat16'` or
        `'float16'`. They are loaded as float32.
      about: Markdown for the folder's README.md, such as how it was trained.

    Raises:
      UserError: if something else is there, the folder cannot be written, or
        policies are functions of Python.
    """
    from adanat_jax.sampling import folder

    folder.save(self, pathlib.Path(path), dtype, about)

  def export(
    self,
    path: str | os.PathLike[str],
    num_steps: int = 4,
    policy: str | AnyPolicy = 'learned',
    *,
    guidance_scale: float | None = None,
    platforms: Sequence[str] = ('cpu', 'cuda', 'tpu'),
  ) -> None:
    """Writes the sampler to a file that plain JAX runs; docs/library.md.

    Args:
      path: the file; its directory must exist.
      num_steps: see `sample`, as for the next two.
      policy: what decides, a function of Python too.
      guidance_scale: instead of the policy's.
      platforms: where the file is to run: 'cpu', 'cuda', 'rocm', 'tpu'.

    Raises:
      UserError: for what this generator cannot do, for platforms that are not
        known, or if the file cannot be written.
    """
    from adanat_jax.sampling import stablehlo

    stablehlo.save(self, path, num_steps, policy, guidance_scale, platforms)

  def schedule(
    self,
    policy: str | AnyPolicy,
    num_steps: int,
    num_samples: int | None = None,
  ) -> Schedule:
    """The schedule that `sample` follows for its `policy`.

    A table may have a column for each of `num_samples`.

    Raises:
      UserError: for a name that is not known here, another number of steps, or
        a table with numbers that are not allowed.
    """
    num_steps = requests.integer('num_steps', num_steps, 1)
    if isinstance(policy, str):
      return requests.named(self, policy, num_steps)
    return requests.as_schedule(policy, num_steps, num_samples)

  def run(
    self,
    schedule: Schedule,
    labels: np.ndarray,
    key: Array,
    *,
    tokens: np.ndarray | None = None,
    record: bool = False,
    callback: Callable[[int, Samples], None] | None = None,
  ) -> Samples:
    """Decodes by a schedule, in batches; nothing is checked.

    Args:
      schedule: what decides the decode.
      labels: int32[B], or float32[B, L, C] states of captions.
      key: of the whole set of samples.
      tokens: see `sample`, as for the two that follow.
      record: whether to return the trajectory.
      callback: called after each batch.
    """
    parts, done = [], 0
    for part in self.parts(schedule, labels, key, tokens=tokens, record=record):
      parts.append(part)
      done += len(part)
      if callback is not None:
        callback(done, part)
    return program.join(parts)

  def parts(
    self,
    schedule: Schedule,
    labels: np.ndarray,
    key: Array,
    *,
    tokens: np.ndarray | None = None,
    record: bool = False,
  ) -> Iterator[Samples]:
    """Yields the batches of `run`, each while the next one is decoded."""
    count, is_empty = len(labels), tokens is None
    if tokens is None:
      shape = (count, self.nat.num_tokens)
      tokens = np.full(shape, self.nat.codebook_size, np.int32)
    plan = Plan.from_schedule(schedule, record)
    plan = self.planned(plan, schedule.policy, tokens, labels)
    ready = lambda part, num_real: program.keep(
      sharding.gather(part), num_real, plan.num_steps
    )
    waiting: list[tuple[Samples, int]] = []
    for index, num_real in self._batches(0, count, plan):
      rows = sharding.local_rows(index, self._mesh)
      batch = {
        'tokens': tokens[rows],
        'labels': labels[rows],
        **program.priority_of(schedule, len(rows)),
      }
      batch = sharding.put_batch(batch, self._mesh)
      if is_empty:
        batch |= self._first_step(labels[index], plan)
      part = self._decode_part(schedule.policy, batch, index, key, plan)
      waiting.append((part, num_real))
      if len(waiting) > 1:
        yield ready(*waiting.pop(0))
    yield from itertools.starmap(ready, waiting)

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
    mesh = self._mesh
    plan = Plan.from_schedule(schedule)
    for index, num_real in self._batches(first, count, plan, whole=True):
      shape = (len(sharding.local_rows(index, mesh)), self.nat.num_tokens)
      unknown = np.full(shape, self.nat.codebook_size, np.int32)
      batch = {
        'tokens': sharding.put_batch(unknown, mesh),
        'labels': condition_of(index),
        **sharding.put_batch(program.priority_of(schedule, len(unknown)), mesh),
      }
      batch |= self._first_step(batch['labels'], plan)
      planned = self.planned(plan, schedule.policy, unknown, batch['labels'])
      part = self._decode_part(schedule.policy, batch, index, key, planned)
      yield index[:num_real], part

  def with_buckets(
    self,
    policy: str | AnyPolicy,
    labels: np.ndarray,
    key: Array,
    *,
    num_steps: int,
    num_buckets: int = 8,
  ) -> Generator:
    """The same generator, faster with an ENAT and such a policy.

    Args:
      policy: see `sample`; other policies stay right, if slower.
      labels: conditions [B, ...] of samples on which the policy is watched.
      key: of those samples.
      num_steps: T.
      num_buckets: how many shapes are compiled at most, besides a fallback.

    Returns:
      One with `buckets` for this number of steps; or this one, if its network
      reuses nothing or the policy is a table or guided at some steps.

    Raises:
      UserError: for steps or a policy that this generator cannot do.
    """
    from adanat_jax.decoding import buckets as buckets_lib
    from adanat_jax.models import operations

    chosen = self.schedule(policy, num_steps, len(labels))
    # Where some steps are guided, the two passes find unlike counts.
    alike = isinstance(chosen.guided, bool) and denoisers.reuses(self.nat)
    if not alike or program.is_shared_table(chosen.policy):
      return self
    watched = dataclasses.replace(self, buckets={}).run(
      chosen, labels, key, record=True
    )
    assert watched.trajectory is not None  # It was asked for.
    length, mask = denoisers.text_length(labels), self.nat.codebook_size
    start = jnp.full_like(watched.tokens, mask)
    found = buckets_lib.counts_of_decode(
      watched.trajectory.tokens, start, mask, length
    )
    largest = [
      np.asarray(found)[:, index[:num_real]].max(axis=1)
      for index, num_real in self._batches(0, len(labels))
    ]
    best = buckets_lib.choose(
      np.concatenate(largest),
      length + self.nat.num_tokens,
      num_buckets,
      lambda counts: operations.enat_operations(self.nat, counts, length),
    )
    return dataclasses.replace(self, buckets={**self.buckets, num_steps: best})

  def planned(
    self, plan: Plan, policy: PolicyLike, tokens: np.ndarray, labels: Any
  ) -> Plan:
    """A plan with the counts that the network can make use of."""
    if not denoisers.reuses(self.nat) or plan.options.candidates > 1:
      return plan
    if not program.is_shared_table(policy):
      found = self.buckets.get(plan.num_steps, ())
      return dataclasses.replace(plan, buckets=found)
    if not self.static_counts:
      return plan
    return program.with_counts(self.nat, plan, policy, tokens, labels)

  def _first_step(self, labels: Any, plan: Plan) -> dict[str, Any]:
    given = self.nat, self.nat_params, labels, self.null()
    guided = guidance.each_step(plan.guided, plan.num_steps)[0]
    return self.first_steps.of(*given, guided, self._mesh)

  def _decode_part(
    self,
    policy: PolicyLike,
    batch: dict[str, Any],
    index: np.ndarray,
    key: Array,
    plan: Plan,
  ) -> Samples:
    """Decodes a batch of global arrays."""
    mesh, record = self._mesh, plan.record
    plan, policy, more = program.shared(plan, policy, index, mesh)
    with jax.set_mesh(mesh):
      part = decode_batch(
        self.nat,
        self.tokenizer,
        plan,
        self.nat_params,
        self.tokenizer_params,
        policy,
        {**batch, **more},
        self.null(),
        key,
      )
    return part if record else dataclasses.replace(part, trajectory=None)

  def _tokenize(self, method: str, inputs: np.ndarray) -> np.ndarray:
    """Applies the tokenizer to arrays of any length, in batches."""
    mesh, parts = self._mesh, []
    for index, num_real in self._batches(0, len(inputs)):
      part = sharding.put_batch(inputs[sharding.local_rows(index, mesh)], mesh)
      with jax.set_mesh(mesh):
        part = program.apply(
          self.tokenizer, method, self.tokenizer_params, part
        )
      parts.append(sharding.gather(part)[:num_real])
    return np.concatenate(parts)

  def _batches(
    self, first: int, count: int, plan: Plan | None = None, whole: bool = False
  ) -> Iterator[tuple[Any, int]]:
    """See `program.batches`; all draws of a step lie in a batch."""
    size = max(1, self.batch_size // (plan.options.candidates if plan else 1))
    return program.batches(first, count, size, self._mesh.size, whole)

  @property
  def _mesh(self) -> Mesh:
    return self.mesh or sharding.make_mesh()

  def null(self) -> np.ndarray:
    """What stands for no condition, without a batch axis."""
    if self.null_condition is None:
      return np.asarray(self.num_classes, np.int32)
    return np.asarray(self.null_condition)
