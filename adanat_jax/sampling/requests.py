"""What a user asks of a generator, checked: one line says what is wrong.

Labels, canvases, images and counts become arrays and numbers of the types that
the compiled program takes, and whatever may decide a decode a `Schedule`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import math
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import schedules, step as step_lib, tables
from adanat_jax.decoding.schedules import LearnedPolicy, PolicyLike, Schedule
from adanat_jax.errors import UserError, shown
from adanat_jax.models import denoisers
from adanat_jax.types import (
  Array,
  Carry,
  Critic,
  Observation,
  Policy,
  PolicyValues,
)

if TYPE_CHECKING:
  from PIL import Image

  from adanat_jax.sampling.generator import Generator
  from adanat_jax.sampling.program import Samples

# Class ids or names, captions, or states of captions, float32[B, L, C]; where
# captions have given vectors, those of the same encoder, float[B, C], too.
Labels: TypeAlias = Sequence[int] | Sequence[str] | np.ndarray

# What `Generator.sample` takes for a policy, besides its name.
AnyPolicy: TypeAlias = (
  Schedule | PolicyLike | Mapping[str, Sequence[float] | np.ndarray] | Policy
)

EncodeCaptions: TypeAlias = Callable[[Sequence[str]], np.ndarray]

# One picture or many: float[H, W, C] or float[B, H, W, C] in [0, 1], or
# Pillow's, grey or RGB as the generator's are.
Pictures: TypeAlias = (
  'np.ndarray | Image.Image | Sequence[np.ndarray] | Sequence[Image.Image]'
)

# JAX takes others modulo 2**32, so that two would give the same samples.
LAST_SEED = 2**32 - 1


class SamplingOptions(TypedDict, total=False):
  """What `Generator.sample` and all that edits take besides, by name."""

  num_steps: int
  seed: int
  policy: str | AnyPolicy
  guidance_scale: float | None
  batch_size: int | None
  record: bool
  callback: Callable[[int, Samples], None] | None
  progress: bool


class InpaintingOptions(SamplingOptions, total=False):
  """The same with the width of the soft border, in pixels."""

  border: float | None


# Equal for the same function: nothing is compiled twice.
@dataclasses.dataclass(frozen=True)
class CheckedFunction:
  """A user's function of a policy's signature, checked where it is traced."""

  function: Policy

  def __call__(
    self, step: Array, observation: Observation, keys: Array, carry: Carry
  ) -> tuple[PolicyValues, Any, Carry]:
    """Calls it, and broadcasts its values to float32[B]."""
    result = self.function(step, observation, keys, carry)
    if not (
      isinstance(result, tuple)
      and len(result) == 3
      and isinstance(result[0], PolicyValues)
    ):
      raise UserError(
        f'the policy returned {shown(result)}; it must return (PolicyValues,'
        ' aux, carry)'
      )
    values, aux, carry = result
    wide = lambda x: jnp.broadcast_to(jnp.float32(x), keys.shape)
    return jax.tree.map(wide, values), aux, carry


@struct.dataclass
class GuidedPolicy:
  """A policy whose guidance is another one at every step."""

  inner: LearnedPolicy
  guidance_scale: Array  # float32[]

  @property
  def num_steps(self) -> int:
    """T."""
    return self.inner.num_steps

  def initial_carry(self, keys: Array) -> Carry:
    """What the inner policy carries at first."""
    return self.inner.initial_carry(keys)

  def critic(self) -> Critic | None:
    """The inner policy's, if it has one."""
    return getattr(self.inner, 'critic', lambda: None)()

  def policy(self) -> Policy:
    """The policy, with this guidance."""
    inner = self.inner.policy()

    def policy(
      step: Array, observation: Observation, keys: Array, carry: Carry
    ) -> tuple[PolicyValues, Any, Carry]:
      values, aux, carry = inner(step, observation, keys, carry)
      scale = jnp.broadcast_to(self.guidance_scale, keys.shape)
      return dataclasses.replace(values, guidance_scale=scale), aux, carry

    return policy


def guided_for(
  nat: denoisers.DenoiserModule, schedule: Schedule, scale: float | None
) -> Schedule:
  """The schedule, with this `guidance_scale` if it is not None.

  Raises:
    UserError: as `with_guidance`, and if nothing can guide the network.
  """
  if scale is not None:
    schedule = with_guidance(schedule, scale)
  if schedule.guided and not denoisers.knows_null(nat):
    raise UserError(
      f'{schedule.label} is guided, and {type(nat).__name__} knows no null'
      ' class; give guidance_scale=0.0, or an unguided schedule such as maskgit'
    )
  return schedule


def with_guidance(schedule: Schedule, scale: float) -> Schedule:
  """The schedule with this `guidance_scale` at every step; 0 is unguided.

  Raises:
    UserError: unless the scale is a finite number of at least 0.
  """
  number = isinstance(scale, (int, float, np.number)) and scale is not True
  if not number or not 0 <= scale < math.inf:
    raise UserError(
      f'guidance_scale is {shown(scale)}; give a finite number of at least 0,'
      ' or None for what the policy decides'
    )
  policy: PolicyLike = schedule.policy
  if isinstance(policy, PolicyValues):
    given = jnp.full_like(policy.mask_ratio, scale)
    policy = dataclasses.replace(policy, guidance_scale=given)
  elif scale:
    policy = GuidedPolicy(policy, jnp.float32(scale))
  # Which steps are guided is the schedule's, unless none is.
  guided = schedule.guided if isinstance(schedule.guided, tuple) else True
  return dataclasses.replace(
    schedule, policy=policy, guided=guided if scale > 0 else False
  )


def as_schedule(
  policy: AnyPolicy, num_steps: int, num_samples: int | None
) -> Schedule:
  """What a policy that is no name stands for.

  Args:
    policy: see `Generator.sample`.
    num_steps: T.
    num_samples: B, with which a table a sample has to agree; None for no such
      table.

  Raises:
    UserError: for a table that is none, another T, or no policy at all.
  """
  if isinstance(policy, Schedule):
    chosen, made = policy, f'the schedule {policy.name} has'
  elif isinstance(policy, (PolicyValues, Mapping)):
    table = tables.checked_table(policy, num_samples=num_samples)
    chosen, made = Schedule('table', table), 'the table has'
  elif isinstance(policy, LearnedPolicy):
    # Only agents know whether, or at which steps, they were guided in training.
    guided = getattr(policy, 'guided', True)
    chosen, made = Schedule('agent', policy, guided), 'the agent was made for'
  elif callable(policy):
    checked = CheckedFunction(policy)
    function = schedules.FunctionPolicy(checked, num_steps)
    chosen, made = Schedule('function', function), ''
  else:
    raise unknown_policy(policy)
  if isinstance(chosen.policy, PolicyValues) and chosen is policy:
    tables.checked_table(
      chosen.policy,
      f'the schedule {chosen.name}',
      num_samples,
      in_nats=chosen.options.commit == 'entropy_bound',
    )
  if chosen.num_steps != num_steps:
    raise UserError(
      f'{made} {chosen.num_steps} steps, num_steps is {num_steps}'
    )
  return chosen


def checked(
  generator: Generator,
  labels: Labels,
  num_steps: int,
  seed: int,
  policy: str | AnyPolicy,
  guidance_scale: float | None,
  batch_size: int | None,
  tokens: np.ndarray | None,
) -> tuple[Generator, dict[str, Any]]:
  """What `Generator.sample` is given, as `Generator.run` takes it.

  Returns:
    The generator that is to run, and its arguments by name.

  Raises:
    UserError: see `Generator.sample`.
  """
  if batch_size is not None:
    generator = dataclasses.replace(generator, batch_size=batch_size)
  seed = integer('seed', seed, 0, LAST_SEED)
  found = conditions(
    labels,
    generator.num_classes,
    generator.class_names,
    generator.null_condition,
    generator.encode_captions,
  )
  schedule = generator.schedule(policy, num_steps, len(found))
  nat = generator.nat
  if tokens is not None:
    # The one after the last code marks an unknown token.
    tokens = grids(tokens, nat.num_tokens, nat.codebook_size, len(found))
  return generator, {
    'schedule': guided_for(nat, schedule, guidance_scale),
    'labels': found,
    'key': jax.random.key(seed),
    'tokens': tokens,
  }


def named(generator: Generator, name: str, num_steps: int) -> Schedule:
  """The schedule that a generator has, or all have, by this name."""
  if learned_options(name) is not None:
    return _learned(generator, name, num_steps)
  if name in generator.schedules:
    return as_schedule(generator.schedules[name], num_steps, None)
  if name == 'hand-made':
    name = 'maskgit'
  if name.partition('(')[0] not in schedules.SCHEDULES:
    raise unknown_policy(name)
  columns = getattr(generator.tokenizer, 'columns', 0)
  return schedules.make(name, num_steps, generator.nat.num_tokens, columns)


def learned_options(name: str) -> dict[str, Any] | None:
  """What `'learned(dial=0.7, candidates=2)'` asks for, by name.

  None of a name that is no learned policy's.

  Raises:
    UserError: for what cannot be read, a dial that is not from 0 to 1, or what
      `StepOptions` refuses.
  """
  base, bracket, _ = name.partition('(')
  if base != 'learned':
    return None
  if not bracket:
    return {}
  from adanat_jax.decoding import names

  defaults = {'dial': 0.0, **schedules.LOOKING_AHEAD}
  given = names.parameters(name, defaults, 'policy')
  if not 0 <= given.get('dial', 0) <= 1:
    raise UserError(f'{name}: the dial is {given["dial"]}; give 0 to 1')
  ahead = {key: given.get(key, x) for key, x in schedules.LOOKING_AHEAD.items()}
  try:
    step_lib.StepOptions(**ahead)
  except UserError as error:
    raise UserError(f'{name}: {error}') from error
  return given


def _learned(generator: Generator, name: str, num_steps: int) -> Schedule:
  """The policy that a generator learned, as `learned_options` asks for it."""
  given = learned_options(name) or {}
  if num_steps not in generator.agents:
    known = steps_of(generator.agents)
    raise UserError(
      f'no policy was learned for num_steps={num_steps}; learned: {known}'
    )
  agent, label = generator.agents[num_steps], 'AdaNAT'
  if 'dial' in given:
    if agent.dial is None:
      raise UserError(
        f'{name}: the policy of num_steps={num_steps} has no dial, which'
        ' config.policy.dial gives it in its training; give learned'
      )
    agent = dataclasses.replace(agent, dial=jnp.float32(given['dial']))
    label += f', dial {given["dial"]:g}'
  schedule = Schedule(name, agent, agent.guided, label=label)
  if (candidates := given.get('candidates', 1)) != 1:
    chosen_by = given.get('chosen_by', schedules.LOOKING_AHEAD['chosen_by'])
    schedule = schedule.looking_ahead(candidates, chosen_by)
  return schedule


def grid(generator: Generator) -> tuple[int, int]:
  """Rows and columns of a generator's tokens."""
  count = generator.nat.num_tokens
  # Another tokenizer may know squares alone.
  columns = getattr(generator.tokenizer, 'columns', 0) or math.isqrt(count)
  return count // columns, columns


def unknown_policy(policy: object) -> UserError:
  """The error that lists what a policy may be."""
  known = ', '.join(schedules.SCHEDULES)
  return UserError(
    f'policy is {shown(policy)}; give learned, hand-made, {known}, a Schedule,'
    ' a table, an agent or a function'
  )


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
  """An integer of Python or NumPy within its limits, as one of Python.

  Raises:
    UserError: for anything else, truth values and texts included.
  """
  number = int(value) if isinstance(value, (int, np.integer)) else low - 1
  if isinstance(value, bool) or number < low or number > (high or number):
    allowed = f'of at least {low}' if high is None else f'from {low} to {high}'
    raise UserError(f'{name} is {shown(value)}; give an integer {allowed}')
  return number


def conditions(
  labels: Labels,
  num_classes: int,
  class_names: Sequence[str] = (),
  null_condition: np.ndarray | None = None,
  encode_captions: EncodeCaptions | None = None,
) -> np.ndarray:
  """What the network takes for `labels`: int32[B] or float32[B, L, C].

  A `null_condition` float32[L, C] says that it takes texts.

  Raises:
    UserError: naming what was given and what is allowed.
  """
  result = _array('labels', labels)
  is_text = result.dtype.kind == 'U' and result.ndim == 1 and result.size > 0
  if null_condition is not None:
    return _states(result, is_text, np.shape(null_condition), encode_captions)
  known = f'0 to {num_classes - 1}'
  if class_names:
    known += f', {some(class_names)}'
  if is_text and class_names:
    places = {name: index for index, name in enumerate(class_names)}
    unknown = [name for name in result.tolist() if name not in places]
    if unknown:
      raise UserError(f'labels hold {shown(unknown[0])}; classes are {known}')
    return np.array([places[name] for name in result.tolist()], np.int32)
  if result.ndim != 1 or result.size == 0 or result.dtype.kind not in 'iu':
    names = ' or names' if class_names else ''
    raise UserError(
      f'labels are {shown(labels)}; give a list of class ids{names}'
    )
  if result.min() < 0 or result.max() >= num_classes:
    raise UserError(
      f'labels hold {shown(sorted(set(result.tolist())))}; classes are {known}'
    )
  return result.astype(np.int32)


def some(names: Sequence[str]) -> str:
  """The first of some names for a message."""
  return ', '.join([*names[:10], *(['...'] if len(names) > 10 else [])])


def steps_of(agents: Iterable[int]) -> str:
  """Numbers of steps for a message: `2, 4, 8`, `2 to 8`, or `none`."""
  runs: list[list[int]] = []
  for steps in sorted(agents):
    if runs and steps == runs[-1][-1] + 1:
      runs[-1].append(steps)
    else:
      runs.append([steps])
  words = [
    f'{run[0]} to {run[-1]}' if len(run) > 2 else ', '.join(map(str, run))
    for run in runs
  ]
  return ', '.join(words) or 'none'


def grids(
  tokens: np.ndarray, num_tokens: int, last: int, count: int | None = None
) -> np.ndarray:
  """Token grids int32[B, N], of tokens from 0 to `last`.

  Raises:
    UserError: for another N, another B than `count`, or other tokens.
  """
  result = _array('tokens', tokens)
  fits = result.ndim == 2 and result.size > 0 and result.shape[1] == num_tokens
  if (
    not fits
    or result.dtype.kind not in 'iu'
    or count not in (None, len(result))
  ):
    raise UserError(
      f'tokens are {result.dtype}{list(result.shape)}; give integers'
      f' [{count or "B"}, {num_tokens}]'
    )
  if result.min() < 0 or result.max() > last:
    raise UserError(
      f'tokens lie in {result.min()} to {result.max()}; allowed are 0 to {last}'
    )
  return result.astype(np.int32)


def pictures(images: Pictures, shape: tuple[int, int, int]) -> np.ndarray:
  """Images to encode, float32[B, *shape] in [0, 1]; of one B is 1.

  Raises:
    UserError: for another shape, mode or type, or values that are not in
      [0, 1].
  """
  result = _from_pillow(images, shape)
  if result is None:
    result = _array('images', images)
  if result.ndim == len(shape):
    result = result[None]
  if result.dtype.kind != 'f' or result.shape[1:] != shape or not result.size:
    raise UserError(
      f'images are {result.dtype}{list(result.shape)}; give floats'
      f' [B, {", ".join(map(str, shape))}] in [0, 1]'
    )
  if not (result.min() >= 0 and result.max() <= 1):
    raise UserError(
      f'images lie in {result.min()} to {result.max()}; allowed is [0, 1]'
    )
  return result.astype(np.float32)


def _from_pillow(
  images: Pictures, shape: tuple[int, int, int]
) -> np.ndarray | None:
  """Pillow's images as float32[B, *shape]; None for what is none of them."""
  if isinstance(images, np.ndarray):
    return None
  from PIL import Image

  from adanat_jax.data import images as images_lib

  given: Sequence[Any] = images if isinstance(images, Sequence) else [images]
  if not given or not all(isinstance(image, Image.Image) for image in given):
    return None
  height, width, channels = shape
  mode = 'L' if channels == 1 else 'RGB'
  for image in given:
    if image.mode != mode or image.size != (width, height):
      raise UserError(
        f'the picture is of mode {image.mode} and {image.width}x{image.height}'
        f' pixels; give mode {mode} and {width}x{height} pixels:'
        f' picture.convert({mode!r}).resize(({width}, {height}))'
      )
  levels = np.stack([np.asarray(image) for image in given])
  return images_lib.to_unit(levels).reshape(-1, *shape)


def _array(what: str, value: object) -> np.ndarray:
  try:
    return np.asarray(value)
  except (ValueError, TypeError) as error:
    raise UserError(
      f'{what} are {shown(value)}; give rows of equal lengths'
    ) from error


def _states(
  labels: np.ndarray,
  is_text: bool,
  expected: tuple[int, ...],
  encode_captions: EncodeCaptions | None,
) -> np.ndarray:
  if is_text and encode_captions:
    return encode_captions(labels.tolist())
  # A table of vectors takes others of the same encoder.
  if of_vectors := getattr(encode_captions, 'states', None):
    states: np.ndarray = of_vectors(labels)
    return states
  if labels.dtype.kind != 'f' or labels.shape[1:] != expected:
    raise UserError(
      f'conditions are {labels.dtype}{list(labels.shape)}; give a list of'
      f' captions, or their states, float32[B, {expected[0]}, {expected[1]}]'
    )
  return labels.astype(np.float32)
