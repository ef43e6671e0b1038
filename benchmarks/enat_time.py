"""How long an image takes an ENAT, whose blocks run on some of the tokens.

  python benchmarks/enat_time.py --workdir=runs/full [--output=FILE.json]
    [--size=L] [--depth=12] [--guided] [--rounds=3] [--buckets=4] [--markdown]

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

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import pathlib
import time
from typing import Any

from absl import app, flags, logging
import clock
import enat_subjects
import enat_tables
import jax
import jax.numpy as jnp
import numpy as np

import adanat_jax
from adanat_jax.decoding import buckets, loop, schedules, unrolled
from adanat_jax.errors import UserError
from adanat_jax.learning.agent import Agent
from adanat_jax.models import denoisers, enat
from adanat_jax.runtime import timing
from adanat_jax.types import Array, Policy, PolicyValues, TokenCounts

WAYS = ('all', 'static', 'buckets', 'masks')

# What takes fewer operations a batch is run once before it is timed.
_SHORT = 1e10


class Undivided(enat.ENAT):
  """The same blocks in a NAT: all of them run on all tokens."""

  def everywhere(
    self, tokens: Array, condition: Array
  ) -> tuple[Array, Array, enat.Encoded]:
    """As `__call__`; there is one projection to keys and values, no mask."""
    visible, x, label = self._embed(tokens, condition, train=False)
    for block in self.blocks:
      x = block(x, label)
    return self._outputs(x, visible)


def program(
  subject: enat_subjects.Subject, way: str, bounds: Sequence[TokenCounts]
) -> Callable[[Any, Agent, enat_subjects.Batch], Array]:
  """Decodes a batch in one of `WAYS`: `(params, agent, batch) -> tokens`."""
  module = subject.module

  def decode(params: Any, agent: Agent, batch: enat_subjects.Batch) -> Array:
    rows = len(batch.labels)
    common: dict[str, Any] = dict(
      tokens=loop.full_mask(rows, module.num_tokens, module.codebook_size),
      condition=batch.labels,
      null_condition=jnp.int32(module.num_classes) if subject.guided else None,
      keys=batch.keys,
      mask_token=module.codebook_size,
    )
    gathering = denoisers.make_gathering(module, params)
    if way == 'static':
      return unrolled.decode(gathering, subject.table, **common).tokens
    denoiser, policy = denoisers.make(module, params), _adaptive(agent, batch)
    if way == 'buckets':
      denoiser = buckets.bucketed(
        gathering, denoiser, bounds, module.codebook_size
      )
    elif way == 'all':
      denoiser, policy = (
        _undivided(module, params),
        schedules.table_policy(subject.table),
      )
    return loop.decode(
      denoiser,
      policy,
      num_steps=subject.num_steps,
      cache=module.nothing_encoded(rows * (1 + subject.guided)),
      **common,
    ).tokens

  return decode


def _undivided(module: enat.ENAT, params: Any) -> Any:
  fields = {
    field.name: getattr(module, field.name)
    for field in dataclasses.fields(module)
    if field.name not in ('parent', 'name')
  }
  undivided = Undivided(**fields)
  return lambda tokens, condition, cache: undivided.apply(
    {'params': params}, tokens, condition, method='everywhere'
  )


def _adaptive(agent: Agent, batch: enat_subjects.Batch) -> Policy:
  """The policy, with the mask ratios of the batch if it has any."""
  policy = agent.policy()
  if batch.ratios is None:
    return policy

  def replaying(
    step: Array, features: Array, keys: Array, carry: Any
  ) -> tuple[PolicyValues, Any, Any]:
    values, aux, carry = policy(step, features, keys, carry)
    return values.replace(mask_ratio=batch.ratios[step]), aux, carry

  return replaying


def measure(
  subject: enat_subjects.Subject, num_buckets: int, rounds: int, deadline: float
) -> dict[str, Any]:
  """Measures one subject.

  Args:
    subject: what to decode.
    num_buckets: at most so many.
    rounds: of measurements.
    deadline: of `time.monotonic`, see `clock.interleaved`.

  Returns:
    Everything, as JSON has it.
  """
  bounds = subject.choose(num_buckets)
  taken = _taken(subject.found, bounds)
  costs = _operations(subject, bounds, taken)
  size = len(subject.batches[0].labels)
  tokens: dict[tuple[str, int], np.ndarray] = {}
  compiling, calls = {}, {}
  for way in WAYS:
    clock.say(f'{subject.label}: compiling {way}')
    start = time.monotonic()
    compiled = (
      jax.jit(program(subject, way, bounds))
      .lower(subject.params, subject.agent, subject.batches[0])
      .compile()
    )
    compiling[way] = time.monotonic() - start
    calls[way] = _timed(subject, way, compiled, tokens)
    if costs[way] * size < _SHORT:
      calls[way]()
  clock.say(f'{subject.label}: {rounds} rounds')
  seconds = clock.interleaved(calls, rounds, deadline)
  # Seconds of an image and share of those of all tokens, round by round.
  images, shares = {}, {}
  for way, values in seconds.items():
    images[way] = np.array(values).T / size
    shares[way] = images[way] / images['all']
  same = [
    np.mean(tokens['buckets', i] == tokens['masks', i])
    for i in range(len(subject.batches))
    if ('buckets', i) in tokens and ('masks', i) in tokens
  ]
  return {
    'label': subject.label,
    'batch_size': size,
    'num_steps': subject.num_steps,
    'guided': subject.guided,
    'ways': {
      way: {
        'seconds_an_image': timing.spread(images[way][0].tolist()),
        'of_all_tokens': timing.spread(shares[way][0].tolist()),
        'processor_seconds_an_image': timing.spread(images[way][1].tolist()),
        'processor_of_all_tokens': timing.spread(shares[way][1].tolist()),
        'operations_an_image': costs[way],
        'seconds_to_compile': compiling[way],
        'rounds': len(seconds[way]),
      }
      for way in WAYS
    },
    'found': [
      {
        'step': t + 1,
        **{
          kind: {
            'min': int(row[..., i].min()),
            'mean': float(row[..., i].mean()),
            'max': int(row[..., i].max()),
            'std': float(row[..., i].std()),
          }
          for i, kind in enumerate(TokenCounts._fields)
        },
      }
      for t, row in enumerate(subject.others.reshape(subject.num_steps, -1, 3))
    ],
    'buckets': [
      {
        'counts': None if counts is None else list(counts),
        'of_all_tokens': subject.cost(counts) / subject.undivided_cost,
        'steps': [int(np.sum(row == i)) for row in taken],
      }
      for i, counts in enumerate([*bounds, None])
    ],
    'same_tokens_as_masks': float(np.mean(same)),
  }


def _timed(
  subject: enat_subjects.Subject,
  way: str,
  compiled: Any,
  tokens: dict[tuple[str, int], np.ndarray],
) -> clock.Timed:
  """Seconds and, over all threads, seconds of processors to decode a batch.

  Each call decodes the next batch; `tokens` keeps what came out.
  """
  calls = 0

  def run() -> tuple[float, float]:
    nonlocal calls
    index = calls % len(subject.batches)
    calls += 1
    start, busy = time.perf_counter(), time.process_time()
    result = compiled(subject.params, subject.agent, subject.batches[index])
    jax.block_until_ready(result)
    seconds = time.perf_counter() - start
    busy = time.process_time() - busy
    if seconds > 1:
      clock.say(f'    {way}: {seconds:.1f} s, of processors {busy:.1f} s')
    tokens[way, index] = np.asarray(result)
    return seconds, busy

  return run


def _taken(found: np.ndarray, bounds: Sequence[TokenCounts]) -> np.ndarray:
  """The bucket of each step and batch, int[T, batches]; after the last: none.

  Args:
    found: int[T, batches, B, 3].
    bounds: the buckets.
  """
  needs = found.max(axis=2)
  fits = np.all(needs[:, :, None] <= np.array(bounds), axis=-1)
  return np.where(fits.any(-1), fits.argmax(-1), len(bounds))


def _operations(
  subject: enat_subjects.Subject,
  bounds: Sequence[TokenCounts],
  taken: np.ndarray,
) -> Mapping[str, float]:
  """Of an image, by way; that of the buckets is a mean over the batches."""
  of_bucket = np.array([subject.cost(x) for x in [*bounds, None]], float)
  counts = unrolled.counts_of(subject.table, subject.module.num_tokens)
  steps = subject.num_steps
  nat = {
    'all': steps * subject.undivided_cost,
    'static': sum(map(subject.cost, counts)),
    'buckets': float(of_bucket[taken].sum(axis=0).mean()),
    'masks': steps * subject.cost(None),
  }
  actor = steps * subject.actor_operations
  return {
    way: (1 + subject.guided) * value
    + (actor if way in ('buckets', 'masks') else 0)
    for way, value in nat.items()
  }


def main(argv: Sequence[str]) -> None:
  """Measures, prints, writes."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  if logging.get_verbosity() == logging.INFO:
    # What absl starts with; JAX tells there which accelerators it did not find.
    logging.set_verbosity(logging.WARNING)
  given = flags.FLAGS
  deadline = time.monotonic() + 60 * given.minutes
  result: dict[str, Any] = {'machine': timing.machine()}
  generator = adanat_jax.load(given.workdir)
  steps, size, seed = given.num_steps, given.batch_size, 0
  if steps not in generator.agents:
    raise UserError(f'{given.workdir} has no policy for num_steps={steps}')
  shape = (enat_subjects.NUM_OTHERS + given.rounds, size)
  labels = np.resize(np.arange(generator.num_classes), shape).astype(np.int32)
  recorded = generator.generate(
    labels.reshape(-1), steps, seed, 'learned', record=True
  ).trajectory
  assert recorded is not None
  run_one = lambda subject: measure(
    subject, given.buckets, given.rounds, deadline
  )
  ratios = np.asarray(recorded.values.mask_ratio)
  large = enat_subjects.published(
    given.size, given.depth, ratios, size, given.guided
  )
  result['subjects'] = [run_one(large)]
  if denoisers.reuses(generator.nat):
    own = enat_subjects.trained(generator, recorded, jnp.array(labels), seed)
    result['subjects'].append(run_one(own))
  result['load_after'] = timing.machine()['load_before']
  print(enat_tables.render(result, given.markdown))
  if given.output:
    text = json.dumps(result, indent=1)
    pathlib.Path(given.output).write_text(text + '\n')


def run() -> None:
  """Defines the flags, which a module that is imported should not, and runs."""
  flags.DEFINE_string(
    'workdir', None, 'Where a policy has been learned.', required=True
  )
  flags.DEFINE_string('output', '', 'JSON file for all figures.')
  flags.DEFINE_enum('size', 'L', list(enat.SIZES), 'Published size.')
  flags.DEFINE_integer(
    'depth', 0, "Blocks, as many of them the decoder's as published; 0 for all."
  )
  flags.DEFINE_integer('num_steps', 8, 'T.')
  flags.DEFINE_bool('guided', False, 'Unconditional forwards too.')
  flags.DEFINE_integer('batch_size', 8, 'Samples decoded together.')
  flags.DEFINE_integer('buckets', 4, 'At most so many buckets.')
  flags.DEFINE_integer('rounds', 3, 'Measurements of each way.')
  flags.DEFINE_float('minutes', 40, 'No round that would end later.')
  flags.DEFINE_bool('markdown', False, 'Print Markdown tables.')
  app.run(main)


if __name__ == '__main__':
  run()
