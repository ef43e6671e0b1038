"""How long an image takes an ENAT, whose blocks run on some of the tokens.

  python benchmarks/enat_time.py --workdir=runs/full [--output=FILE.json]
    [--size=L] [--depth=12] [--guided] [--rounds=3] [--buckets=4]

Four ways to decode a batch take turns, in T steps, up to the tokens:

  all      every block at every position on one stream, nothing reused: what
           these blocks cost in a NAT; by a schedule
  static   `decoding.unrolled`, by the same schedule
  buckets  `decoding.buckets`, by an adaptive policy
  masks    attention masked at full length, by the same policy

Nobody has trained a policy at the published sizes. Its network runs there with
random weights, at its published size, and decides on three of the four numbers;
the mask ratio of each sample and step is one that the policy of `--workdir`
chose for a sample of its own (T = 8, any images). Buckets are chosen on other
samples than those that are timed. If the network of `--workdir` is an ENAT, it
is measured too, with its policy itself. What came out is in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import itertools
import time
from typing import Any

import clock
from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import output
import programs

import adanat_jax
from adanat_jax.decoding import actions, buckets, loop, step, tables, unrolled
from adanat_jax.errors import UserError
from adanat_jax.learning.agent import Agent
from adanat_jax.models import denoisers, enat, operations
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.runtime import timing
from adanat_jax.sampling.program import Plan, decode_tokens
from adanat_jax.types import (
  Array,
  Observation,
  Policy,
  PolicyValues,
  TokenCounts,
)

WAYS = ('all', 'static', 'buckets', 'masks')
# Batches that buckets are chosen on; those that are timed come after them.
NUM_OTHERS = 64
# What takes fewer operations a batch is run once before it is timed.
_SHORT = 1e10


class Undivided(enat.ENAT):
  """The same blocks in a NAT: all of them run on all tokens."""

  def __call__(
    self, tokens: Array, condition: Array, cache: Any = None, **_: Any
  ) -> tuple[Array, Array, enat.Encoded]:
    """There is one projection to keys and values, and no mask."""
    visible, x, label = self._embed(tokens, condition, train=False)
    for block in self.blocks:
      x = block(x, label)
    return self._outputs(x, visible)


@struct.dataclass
class Replaying(Agent):
  """A policy whose mask ratios, float32[T, B], are those of another one."""

  ratios: Any = None

  def policy(self, *how: Any) -> Policy:
    """As `Agent.policy`, but for the mask ratios."""
    inner = super().policy(*how)

    def policy(
      step: Array, observation: Observation, keys: Array, carry: Any
    ) -> tuple[PolicyValues, Any, Any]:
      values, aux, carry = inner(step, observation, keys, carry)
      return values.replace(mask_ratio=self.ratios[step]), aux, carry

    return policy


@dataclasses.dataclass(frozen=True)
class Subject:
  """A network, a policy and what the policy does."""

  label: str  # For the tables.
  module: enat.ENAT
  params: Any
  agent_of: Callable[[int], Agent]  # The policy of a batch, by its number.
  actor_operations: int  # Of one call of the policy for one sample.
  labels: np.ndarray  # int32[batches, B]; `NUM_OTHERS` are not timed.
  # int[T, batches, B, 3], what they find, in the order of `TokenCounts`.
  found: np.ndarray
  guided: bool  # Whether the unconditional forwards run.

  @property
  def num_steps(self) -> int:
    """T."""
    return len(self.found)

  @property
  def table(self) -> PolicyValues:
    """The schedule."""
    return tables.enat(self.num_steps, total=self.module.num_tokens)

  def cost(self, counts: TokenCounts | None) -> int:
    """Operations of one forward of one sample."""
    return operations.enat_operations(self.module, counts)

  @property
  def undivided_cost(self) -> int:
    """The same where every block runs on all tokens, all of one stream."""
    depth = self.module.encoder_depth + self.module.decoder_depth
    return operations.enat_operations(
      self.module.clone(encoder_depth=depth),
      TokenCounts(0, self.module.num_tokens, 0),
    )

  def choose(self, num_buckets: int) -> tuple[TokenCounts, ...]:
    """Buckets for what the batches found that are not timed."""
    needs = self.found[:, :NUM_OTHERS].max(axis=2).reshape(-1, 3)
    return buckets.choose(needs, self.module.num_tokens, num_buckets, self.cost)

  def decoder(
    self, way: str, bounds: tuple[TokenCounts, ...]
  ) -> tuple[Callable[..., Any], Callable[[int], tuple[Any, ...]]]:
    """A program of one of `WAYS`, and its arguments by the batch's number."""
    module = self.module
    plan = Plan(self.num_steps, self.guided)
    if way == 'static':
      counts = unrolled.counts_of(self.table, module.num_tokens)
      plan = dataclasses.replace(plan, counts=counts)
    elif way == 'buckets':
      plan = dataclasses.replace(plan, buckets=bounds)
    elif way == 'all':
      names = {f.name for f in dataclasses.fields(module)} - {'parent', 'name'}
      module = Undivided(**{name: getattr(module, name) for name in names})

    def arguments(number: int) -> tuple[Any, ...]:
      labels = jnp.asarray(self.labels[number])
      batch = {
        'tokens': loop.full_mask(
          len(labels), module.num_tokens, module.codebook_size
        ),
        'labels': labels,
        'index': number * len(labels) + jnp.arange(len(labels)),
      }
      by_table = way in ('all', 'static')
      policy = self.table if by_table else self.agent_of(number)
      null_label = jnp.int32(module.num_classes)
      return self.params, policy, batch, null_label, jax.random.key(0)

    return lambda *given: decode_tokens(module, plan, *given).tokens, arguments


def measure(
  subject: Subject, num_buckets: int, rounds: int, deadline: float
) -> dict[str, Any]:
  """Measures one subject, `rounds` times; see `clock.interleaved`.

  Returns:
    As JSON has it: of each of the `ways`, for an image, `operations`, `seconds`
    of each round with those of processors, and seconds `to_compile`; the
    `buckets`, and how often each was `taken` by step; `same`, the share of the
    tokens that buckets and masks have in common.
  """
  bounds = subject.choose(num_buckets)
  fits = [subject.found.max(axis=2) <= np.array(x) for x in bounds]
  # The bucket of each step and batch, int[T, batches]; after the last: none.
  fits = np.stack([*(x.all(-1) for x in fits), np.ones(fits[0].shape[:2])])
  taken = fits.argmax(0)[:, NUM_OTHERS:]
  counts = _operations(subject, bounds, taken)
  size = subject.labels.shape[1]
  tokens: dict[tuple[str, int], np.ndarray] = {}
  compiling, calls = {}, {}
  for way in WAYS:
    clock.say(f'{subject.label}: compiling {way}')
    start = time.monotonic()
    decode, arguments = subject.decoder(way, bounds)
    compiled = jax.jit(decode).lower(*arguments(NUM_OTHERS)).compile()
    compiling[way] = time.monotonic() - start
    calls[way] = _timed(way, compiled, arguments, tokens, taken.shape[1])
    if counts[way] * size < _SHORT:
      calls[way]()
  clock.say(f'{subject.label}: {rounds} rounds')
  seconds = clock.interleaved(calls, rounds, deadline)
  same = [
    np.mean(values == tokens['masks', index])
    for (way, index), values in tokens.items()
    if way == 'buckets' and ('masks', index) in tokens
  ]
  return {
    'ways': {
      way: {
        'operations': counts[way],
        'seconds': (np.array(seconds[way]) / size).tolist(),
        'to_compile': compiling[way],
      }
      for way in WAYS
    },
    'buckets': bounds,
    'taken': [
      [int(np.sum(row == i)) for row in taken] for i in range(len(bounds) + 1)
    ],
    'same': float(np.mean(same)),
  }


def _timed(
  way: str,
  compiled: Any,
  arguments: Callable[[int], tuple[Any, ...]],
  tokens: dict[tuple[str, int], np.ndarray],
  num_batches: int,
) -> clock.Timed:
  """Seconds and, over all threads, seconds of processors to decode a batch.

  Each call decodes the next batch; `tokens` keeps what came out.
  """
  numbers = itertools.cycle(range(num_batches))

  def run() -> tuple[float, float]:
    index = next(numbers)
    given = arguments(NUM_OTHERS + index)
    start, busy = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(compiled(*given))
    seconds = time.perf_counter() - start
    busy = time.process_time() - busy
    tokens[way, index] = np.asarray(result)
    return seconds, busy

  return run


def _operations(
  subject: Subject, bounds: Sequence[TokenCounts], taken: np.ndarray
) -> dict[str, float]:
  """Of an image, by way; that of the buckets is a mean over the batches."""
  of_bucket = np.array([subject.cost(x) for x in [*bounds, None]], float)
  counts = unrolled.counts_of(subject.table, subject.module.num_tokens)
  steps, passes = subject.num_steps, 1 + subject.guided
  actor = steps * subject.actor_operations
  return {
    'all': passes * steps * subject.undivided_cost,
    'static': passes * sum(map(subject.cost, counts)),
    'buckets': passes * float(of_bucket[taken].sum(0).mean()) + actor,
    'masks': passes * steps * subject.cost(None) + actor,
  }


def render(subject: Subject, figures: dict[str, Any]) -> str:
  """The tables of one subject: the ways, what was found, the buckets."""
  guided = 'guided' if subject.guided else 'unguided'
  ways, whole = figures['ways'], figures['ways']['all']
  spread = lambda x: f'{np.median(x):.3g} ({np.min(x):.3g} to {np.max(x):.3g})'
  rows = []
  for way, row in ways.items():
    seconds, busy = np.array(row['seconds']).T
    all_seconds, all_busy = np.array(whole['seconds']).T
    rows.append(
      (
        way,
        f'{spread(seconds)} s',
        spread(seconds / all_seconds),
        output.operations(row['operations']),
        f'{row["operations"] / whole["operations"]:.3f}',
        f'{np.median(busy):.3g} s',
        f'{np.median(busy / all_busy):.3f}',
        f'{row["to_compile"]:.0f} s',
      )
    )
  found = [
    (
      step + 1,
      *(
        f'{part(values):.3g}'
        for values in np.moveaxis(counts, -1, 0)[1:]
        for part in (np.min, np.mean, np.max, np.std)
      ),
    )
    for step, counts in enumerate(subject.found[:, :NUM_OTHERS])
  ]
  taken = [
    (
      *(bounds or ['any'] * 3),
      f'{subject.cost(bounds) / subject.undivided_cost:.3f}',
      ' '.join(map(str, steps)),
    )
    for bounds, steps in zip(
      [*figures['buckets'], None], figures['taken'], strict=True
    )
  ]
  heads = (
    'way,an image,of all,operations,of all,of processors,of all,to compile',
    'step,new: min,mean,max,std,masked: min,mean,max,std',
    'reused,new,masked,of all,taken at steps',
  )
  return '\n\n'.join(
    [
      f'### {subject.label}',
      f'Batch {subject.labels.shape[1]}, T = {subject.num_steps}, {guided}.'
      ' Tokens that came out of the buckets as of the masks:'
      f' {figures["same"]:.2%}.',
      *(
        output.table(head.split(','), cells)
        for head, cells in zip(heads, (rows, found, taken), strict=True)
      ),
    ]
  )


def found_of_ratios(ratios: np.ndarray, num_tokens: int) -> np.ndarray:
  """What a denoiser finds if ratios float32[T, S] mask: int[T, S, 3]."""
  start = jnp.full(ratios.shape[1], num_tokens)
  reused, masked, found = jnp.zeros_like(start), start, []
  # How many tokens are masked does not depend on which, nor on the network.
  for ratio in jnp.asarray(ratios, jnp.float32):
    visible = num_tokens - masked
    found.append(jnp.stack([reused, visible - reused, masked], axis=-1))
    reused = visible
    after = step.count_to_mask(ratio, masked, start, num_tokens, step.ADANAT)
    masked = jnp.minimum(masked, after)
  return np.stack(found)


def published(
  size: str, depth: int, ratios: np.ndarray, batch_size: int, guided: bool
) -> Subject:
  """A published size with random weights.

  Args:
    size: key of `enat.SIZES`.
    depth: blocks in all; 0 for as many as were published.
    ratios: float32[T, S], chosen by a policy for its samples.
    batch_size: B.
    guided: whether the unconditional forwards run.
  """
  sizes = dict(enat.SIZES[size])
  if depth:
    blocks = sizes['encoder_depth'] + sizes['decoder_depth']
    decoder = max(1, round(depth * sizes['decoder_depth'] / blocks))
    sizes |= dict(encoder_depth=depth - decoder, decoder_depth=decoder)
  module = enat.ENAT(1024, 256, num_classes=1000, **sizes)
  actor = PolicyNetwork(4, 16)
  ids = jax.ShapeDtypeStruct((1,), jnp.int32)
  tokens = jax.ShapeDtypeStruct((1, module.num_tokens), jnp.int32)
  features = jax.ShapeDtypeStruct((*tokens.shape, module.width), jnp.float32)
  weights = lambda network, *inputs: programs.random_arrays(
    jax.eval_shape(network.init, jax.random.key(0), *inputs)['params']
  )

  def mean(params: Any, features: Array, step: Array) -> tuple[Array, Array]:
    action = actor.apply({'params': params}, features, step)
    return action, jnp.zeros(len(action))

  num_steps, count = ratios.shape
  parts = ratios.reshape(num_steps, -1, batch_size)
  residual = actions.published_residual(num_steps)
  params = weights(actor, features, ids)
  return Subject(
    f'ENAT-{size}, {module.encoder_depth} + {module.decoder_depth} blocks',
    module,
    weights(module, tokens, ids),
    lambda i: Replaying(params, residual, mean, ratios=jnp.array(parts[:, i])),
    operations.policy_operations(actor, module.width),
    np.resize(np.arange(batch_size, dtype=np.int32), parts.shape[1:]),
    found_of_ratios(ratios, module.num_tokens).reshape(*parts.shape, 3),
    guided,
  )


def trained(
  generator: adanat_jax.Generator, recorded: Any, labels: np.ndarray
) -> Subject:
  """The ENAT of a workdir, with its policy and guidance.

  `recorded` is the policy's trajectory of samples of labels int32[batches, B],
  drawn with the seed 0.
  """
  module, num_steps = generator.nat, len(recorded.tokens)
  start = loop.full_mask(labels.size, module.num_tokens, module.codebook_size)
  found = buckets.counts_of_decode(recorded.tokens, start, module.codebook_size)
  agent = generator.agents[num_steps]
  return Subject(
    'the ENAT of the workdir',
    module,
    generator.nat_params,
    lambda _: agent,
    # Its sizes are in the config alone; a product a weight is near enough.
    2 * sum(x.size for x in jax.tree.leaves(agent.params['actor'])),
    labels,
    np.asarray(found).reshape(num_steps, *labels.shape, 3),
    guided=True,
  )


def main() -> None:
  """Measures, prints, writes."""
  parser = output.parser(__doc__)
  add = parser.add_argument
  add('--workdir', required=True, help='Where a policy has been learned.')
  add('--size', default='L', choices=list(enat.SIZES), help='Published size.')
  add('--depth', type=int, default=0, help='Blocks; 0 for those published.')
  add('--num_steps', type=int, default=8, help='T.')
  add('--guided', action='store_true', help='Unconditional forwards too.')
  add('--batch_size', type=int, default=8, help='Samples decoded together.')
  add('--buckets', type=int, default=4, help='At most this many buckets.')
  add('--rounds', type=int, default=3, help='Measurements of each way.')
  add('--minutes', type=float, default=40, help='No round ends later.')
  given = parser.parse_args()
  deadline = time.monotonic() + 60 * given.minutes
  machine = timing.machine()
  generator = adanat_jax.load(given.workdir)
  if given.num_steps not in generator.agents:
    raise UserError(f'{given.workdir} has no policy for T = {given.num_steps}')
  shape = (NUM_OTHERS + given.rounds, given.batch_size)
  labels = np.resize(np.arange(generator.num_classes), shape).astype(np.int32)
  recorded = generator.generate(
    labels.reshape(-1), given.num_steps, 0, 'learned', record=True
  ).trajectory
  assert recorded is not None
  ratios = np.asarray(recorded.values.mask_ratio)
  subjects = [
    published(given.size, given.depth, ratios, given.batch_size, given.guided)
  ]
  if denoisers.reuses(generator.nat):
    subjects.append(trained(generator, recorded, labels))
  rows = [measure(x, given.buckets, given.rounds, deadline) for x in subjects]
  load = timing.machine()['load_before']
  text = [f'{output.machine(machine)}, after: {load:.1f}']
  text += map(render, subjects, rows)
  figures = {x.label: row for x, row in zip(subjects, rows, strict=True)}
  figures = {'machine': machine, 'load_after': load, **figures}
  output.finish(figures, '\n\n'.join(text), given.output)


if __name__ == '__main__':
  main()
