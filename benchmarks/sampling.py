"""How fast images are sampled, and how much of the machine that uses.

  python benchmarks/sampling.py --output=sampling.json

prints tables in Markdown. Weights are random: speed does not depend on them.
What is measured, and how, is in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import pathlib
import statistics
import time
from typing import Any, TypeAlias

import clock
import hlo
import jax
import jax.numpy as jnp
import ml_collections
import output
import programs

from adanat_jax.decoding import actions
from adanat_jax.experiment import config as config_lib, networks
from adanat_jax.learning.agent import Agent
from adanat_jax.models import operations
from adanat_jax.models.nat import NAT
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import timing
from adanat_jax.sampling import program
from adanat_jax.types import Array

# What generators are measured, by the configs that have their sizes.
_CONFIGS = {'digits': 'digits.py', 'nat_l': 'in256.py'}
_NETWORKS = ('nat', 'actor', 'critic', 'decoder')
# A program that runs longer than this many seconds is not run to warm it up.
_LONG = 1.0
_YES_NO = ('no', 'yes')

# Batch size, number of steps T, guided or not.
Case: TypeAlias = tuple[int, int, bool]
Seconds: TypeAlias = dict[tuple[Any, ...], list[tuple[float, ...]]]

# What is sampled of each generator, and rounds of measurements.
FULL: dict[str, tuple[Sequence[Case], int]] = {
  'digits': (tuple(itertools.product((1, 32, 256), (4, 8), (False, True))), 7),
  'nat_l': (((1, 4, False), (1, 4, True), (1, 8, True), (4, 4, True)), 3),
}
QUICK: dict[str, tuple[Sequence[Case], int]] = {
  'digits': (((32, 4, True),), 3),
  'nat_l': (((1, 1, True),), 1),
}


@dataclasses.dataclass(frozen=True)
class Subject:
  """A generator without weights."""

  nat: NAT
  actor: PolicyNetwork  # Gives the four values of a step.
  critic: PolicyNetwork  # Runs in training alone.
  decoder: VQGAN  # The tokenizer, of which only the decoder is run.

  @property
  def operations(self) -> dict[str, int]:
    """Of one forward of one sample, by network."""
    nat = self.nat
    return {
      'nat': operations.nat_operations(nat),
      'actor': operations.policy_operations(self.actor, nat.width),
      'critic': operations.policy_operations(self.critic, nat.width),
      'decoder': operations.decoder_operations(self.decoder, nat.num_tokens),
    }

  def inputs(self, batch_size: int) -> dict[str, tuple[Any, ...]]:
    """Shapes of what each network is applied to."""
    shape = jax.ShapeDtypeStruct
    tokens = shape((batch_size, self.nat.num_tokens), jnp.int32)
    features = shape((*tokens.shape, self.nat.width), jnp.float32)
    labels = shape((batch_size,), jnp.int32)
    policy = features, labels
    return dict(
      zip(_NETWORKS, ((tokens, labels), policy, policy, (tokens,)), strict=True)
    )

  def shapes(self) -> dict[str, Any]:
    """Shapes of the parameters of every network."""
    # The encoder belongs to the tokenizer's parameters too; any size will do.
    side = 4 * self.decoder.downsampling
    image = (1, side, side, self.decoder.image_channels)
    inputs = self.inputs(1) | {
      'decoder': (jax.ShapeDtypeStruct(image, jnp.float32),)
    }
    return {
      name: jax.eval_shape(
        getattr(self, name).init, jax.random.key(0), *inputs[name]
      )['params']
      for name in _NETWORKS
    }

  def apply(self, name: str, params: Any, *inputs: Any) -> Any:
    """Runs a network; `params` are those of all."""
    method = 'decode_tokens' if name == 'decoder' else None
    variables = {'params': params[name]}
    return getattr(self, name).apply(variables, *inputs, method=method)

  def xla_operations(self) -> dict[str, float]:
    """XLA's own count of one forward of one sample, before it optimises.

    It includes what `operations` leaves out; nothing is compiled.
    """
    shapes = self.shapes()
    lowered = {
      name: jax.jit(self.apply, static_argnums=0).lower(name, shapes, *inputs)
      for name, inputs in self.inputs(1).items()
    }
    return {name: x.cost_analysis()['flops'] for name, x in lowered.items()}

  def decoding(
    self, params: Any, batch_size: int, num_steps: int
  ) -> tuple[Any, ...]:
    """What `program.decode_tokens` is given after the network and its plan."""

    def actor_critic(
      params: Any, features: Array, step: Array
    ) -> tuple[Array, Array]:
      mean = self.apply('actor', params, features, step)
      return mean, self.apply('critic', params, features, step)[:, 0]

    policy = {name: params[name] for name in ('actor', 'critic')}
    agent = Agent(policy, actions.published_residual(num_steps), actor_critic)
    shape = batch_size, self.nat.num_tokens
    batch = {
      'tokens': jnp.full(shape, self.nat.codebook_size, jnp.int32),
      'labels': jnp.zeros(batch_size, jnp.int32),
      'index': jnp.arange(batch_size),
    }
    null_label = jnp.int32(self.nat.num_classes)
    return params['nat'], agent, batch, null_label, jax.random.key(0)


def subject_of(name: str) -> Subject:
  """One of `_CONFIGS`."""
  path = pathlib.Path(__file__).parents[1] / 'configs' / _CONFIGS[name]
  return of_config(config_lib.load(str(path)))


def of_config(config: ml_collections.ConfigDict) -> Subject:
  """The networks of a config."""
  return Subject(
    networks.nat_module(config),
    *networks.policy_modules(config),
    networks.tokenizer_module(config),
  )


def forwards(subject: Subject, num_steps: int, guided: bool) -> float:
  """How often a sample goes through the NAT, by the trace of its decoding."""
  shapes = subject.shapes()
  decode = functools.partial(
    program.decode_tokens, subject.nat, program.Plan(num_steps, guided)
  )
  whole = hlo.traced_operations(decode, subject.decoding(shapes, 1, num_steps))
  once = {
    name: hlo.traced_operations(
      functools.partial(subject.apply, name), (shapes, *inputs)
    )
    for name, inputs in subject.inputs(1).items()
  }
  # The trace has the critic too; nothing reads its value, and XLA drops it.
  policy = num_steps * (once['actor'] + once['critic'])
  return (whole - policy) / once['nat']


def measure(
  subject: Subject, cases: Sequence[Case], rounds: int, deadline: float
) -> Seconds:
  """Measures one generator in rounds, see `clock.interleaved`.

  Returns:
    A list with seconds, one entry a round, of each case, `'sample', *case`:
    to its tokens and from there to its images; and of single forwards by batch
    size: `'nat', B, guided`, `'actor', B`, `'both', B`.
  """
  params = programs.random_arrays(subject.shapes())
  calls: dict[tuple[Any, ...], clock.Timed] = {}
  for batch_size, _, guided in cases:
    calls |= _single_forwards(subject, params, batch_size, guided)
  decode_images = jax.jit(functools.partial(subject.apply, 'decoder'))
  for case in cases:
    call = _sampling(subject, params, decode_images, *case)
    calls['sample', *case] = call
    batch_size, num_steps, guided = case
    (seconds_a_step,) = calls['nat', batch_size, guided]()
    if num_steps * seconds_a_step < _LONG:
      call()
  clock.say(f'{len(calls)} measurements a round')
  return clock.interleaved(calls, rounds, deadline)


def _single_forwards(
  subject: Subject, params: Any, batch_size: int, guided: bool
) -> dict[tuple[Any, ...], clock.Timed]:
  """The networks of one step alone, warmed up."""

  def both(params: Any, *inputs: Array) -> tuple[Array, Array]:
    actor, critic = (subject.apply(x, params, *inputs) for x in _NETWORKS[1:3])
    return actor, critic

  actor, nat = (functools.partial(subject.apply, x) for x in ('actor', 'nat'))
  inputs = subject.inputs(batch_size)
  rows = subject.inputs(batch_size * (1 + guided))
  result = {}
  for name, function, shapes in (
    (('actor', batch_size), actor, inputs['actor']),
    (('both', batch_size), both, inputs['actor']),
    (('nat', batch_size, guided), nat, rows['nat']),
  ):
    call = functools.partial(
      jax.jit(function), params, *(jnp.zeros(x.shape, x.dtype) for x in shapes)
    )
    result[name] = clock.timed(call)
    result[name]()
  return result


def _sampling(
  subject: Subject,
  params: Any,
  decode_images: Any,
  batch_size: int,
  num_steps: int,
  guided: bool,
) -> clock.Timed:
  """Sampling a batch: seconds to its tokens, and from there to its images."""
  arguments = subject.decoding(params, batch_size, num_steps)
  plan = program.Plan(num_steps, guided)
  sample = program.decode_tokens.lower(subject.nat, plan, *arguments).compile()
  no_tokens = jnp.zeros((batch_size, subject.nat.num_tokens), jnp.int32)
  jax.block_until_ready(decode_images(params, no_tokens))

  def run() -> tuple[float, float]:
    start = time.perf_counter()
    tokens = jax.block_until_ready(sample(*arguments).tokens)
    middle = time.perf_counter()
    jax.block_until_ready(decode_images(params, tokens))
    return middle - start, time.perf_counter() - middle

  return run


def look_for_peak(best: dict[int, float], repeats: int) -> None:
  """Keeps the fastest float32 product of square matrices seen so far.

  `best` holds operations a second by the side of the matrices.
  """
  product = jax.jit(lambda a, b: a @ b)
  for size in best:
    matrix = jax.random.normal(jax.random.key(size), (size, size))
    call = clock.timed(lambda x=matrix: product(x, x))
    call()
    seconds = min(call()[0] for _ in range(repeats))
    best[size] = max(best[size], 2 * size**3 / seconds)


def check_forwards() -> list[str]:
  """Counts the forwards of the digits' NAT at T = 4.

  Raises:
    RuntimeError: if a sample does not go through it 2 T times where it is
      guided, and T times otherwise.
  """
  said = []
  for guided, how in enumerate(('unguided', 'guided')):
    count = forwards(subject_of('digits'), 4, bool(guided))
    if count != 4 * (1 + guided):
      raise RuntimeError(f'{count} forwards a sample, {how}')
    said.append(f'{count:.0f} at T = 4 {how}')
  return said


def tables(subject: Subject, seconds: Seconds, peak: float) -> list[str]:
  """Images a second, the networks of one step, and their operations.

  `seconds` are what `measure` returned, `peak` is operations a second.
  """
  number, counts = output.number, subject.operations
  milli = lambda values: f'{number(1e3 * statistics.median(values))} ms'
  sampled, steps = [], []
  for (kind, *case), values in seconds.items():
    if kind == 'nat':
      batch_size, guided = case
      nat = [x for (x,) in values]
      row = [batch_size, _YES_NO[guided], milli(nat)]
      for name in ('actor', 'both'):
        part = [x for (x,) in seconds[name, batch_size]]
        share = [x / y for x, y in zip(part, nat, strict=True)]
        row += [milli(part), f'{statistics.median(share):.2%}']
      steps.append(row)
    if kind != 'sample':
      continue
    batch_size, num_steps, guided = case
    for with_decoder in (False, True):
      speeds = [batch_size / sum(x[: 1 + with_decoder]) for x in values]
      speed = statistics.median(speeds)
      count = operations.sampling_operations(
        counts['nat'],
        counts['actor'],
        with_decoder * counts['decoder'],
        num_steps,
        guided,
      )
      sampled.append(
        (
          *(batch_size, num_steps, _YES_NO[guided], _YES_NO[with_decoder]),
          number(speed),
          f'{number(min(speeds))} to {number(max(speeds))}',
          output.operations(count),
          f'{speed * count / peak:.0%}',
        )
      )
  counted = [
    (
      name,
      output.operations(counts[name]),
      output.operations(found),
      f'{found / counts[name] - 1:+.1%}',
    )
    for name, found in subject.xla_operations().items()
  ]
  heads = (
    'batch,T,guided,decoder,images/s,lowest to highest,operations/image,'
    'of the peak',
    'batch,guided,NAT (a step),actor,share,with critic,share',
    "network,operations a sample,XLA's count,difference",
  )
  return [
    output.table(head.split(','), rows)
    for head, rows in zip(heads, (sampled, steps, counted), strict=True)
  ]


def main() -> None:
  """Measures, prints, writes."""
  parser = output.parser(__doc__)
  add = parser.add_argument
  names = list(_CONFIGS)
  add('--models', nargs='+', choices=names, default=names)
  add('--quick', action='store_true', help='Few cases, to see that all works.')
  add('--minutes', type=float, default=5.5, help='No round ends later.')
  given = parser.parse_args()
  deadline = time.monotonic() + 60 * given.minutes
  machine, said = timing.machine(), ', '.join(check_forwards())
  peaks = dict.fromkeys((1024, 2048, 4096), 0.0)
  look_for_peak(peaks, 1 if given.quick else 3)
  found = {}
  for name in given.models:
    clock.say(f'{name}: weights and programs')
    plan = (QUICK if given.quick else FULL)[name]
    found[name] = measure(subject_of(name), *plan, deadline)
  look_for_peak(peaks, 1 if given.quick else 3)
  peak = max(peaks.values())
  sizes = ', '.join(f'{size}: {x / 1e9:.0f}' for size, x in peaks.items())
  parts = [
    output.machine(machine),
    f'Peak of float32 matrix products: {peak / 1e9:.0f} G operations/s'
    f' ({sizes})',
    f'NAT forwards a sample, counted: {said}',
  ]
  for name, seconds in found.items():
    parts += [f'### {name}', *tables(subject_of(name), seconds, peak)]
  figures = {
    name: {' '.join(map(str, case)): x for case, x in seconds.items()}
    for name, seconds in found.items()
  }
  figures = {'machine': machine, 'peaks': peaks, 'seconds': figures}
  output.finish(figures, '\n\n'.join(parts), given.output)


if __name__ == '__main__':
  main()
