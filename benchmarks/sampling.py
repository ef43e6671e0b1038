"""How fast images are sampled, and how much of the machine that uses.

  python benchmarks/sampling.py [--output=FILE.json] [--models=digits,nat_l]
    [--markdown] [--quick]

Weights are random: speed does not depend on them. Results go to standard
output as tables (`--markdown` for a document), and as JSON to `--output`. What
is measured, and how, is in docs/benchmarks.md.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import itertools
import json
import pathlib
import time
from typing import Any, TypeAlias

from absl import app, flags, logging
import clock
import jax
import jax.numpy as jnp
import programs
import subjects
import tables

from adanat_jax.models import operations
from adanat_jax.runtime import timing
from adanat_jax.types import Array

_OUTPUT = flags.DEFINE_string('output', '', 'JSON file for all figures.')
_MODELS = flags.DEFINE_list(
  'models', list(subjects.SUBJECTS), 'Which generators, with commas between.'
)
flags.register_validator(
  'models',
  lambda names: set(names) <= set(subjects.SUBJECTS),
  f'known models: {", ".join(subjects.SUBJECTS)}',
)
_QUICK = flags.DEFINE_bool(
  'quick', False, 'A few small cases once, to see that everything works.'
)
_MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print Markdown tables.')
_MINUTES = flags.DEFINE_float(
  'minutes', 5.5, 'No new round of measurements that would end later.'
)


# A program that runs longer than this is not run to warm it up.
_LONG = 1.0

# Batch size, number of steps T, guided or not.
Case: TypeAlias = tuple[int, int, bool]


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is measured of one generator.

  Attributes:
    cases: what is sampled.
    repeats: rounds of measurements.
  """

  cases: tuple[Case, ...]
  repeats: int


FULL = {
  'digits': Plan(
    tuple(itertools.product((1, 32, 256), (4, 8), (False, True))), 7
  ),
  'nat_l': Plan(((1, 4, False), (1, 4, True), (1, 8, True), (4, 4, True)), 3),
}
QUICK = {
  'digits': Plan(((32, 4, True),), 3),
  'nat_l': Plan(((1, 1, True),), 1),
}


def measure(
  subject: subjects.Subject, plan: Plan, deadline: float
) -> dict[str, Any]:
  """Measures one generator.

  Args:
    subject: the generator.
    plan: what to measure of it.
    deadline: of `time.monotonic`, see `clock.interleaved`.

  Returns:
    `operations` by network, `networks` with the seconds of single forwards by
    batch size, `sampling` with one row a case: everything as JSON has it, but
    for the fraction of the peak, which is not known yet.
  """
  clock.say(f'{subject.label}: weights and programs')
  shapes = subject.shapes()
  params = programs.random_arrays(shapes)
  decode_images = jax.jit(subject.apply('decoder'))
  calls: dict[tuple[Any, ...], clock.Timed] = {}
  steps = sorted({(case[0], case[2]) for case in plan.cases})
  for batch_size, guided in steps:
    calls |= _single_forwards(subject, params, batch_size, guided)
  for case in plan.cases:
    batch_size, num_steps, guided = case
    call = _sampling(subject, params, decode_images, *case)
    calls['sample', *case] = call
    (seconds_a_step,) = calls['nat', batch_size, guided]()
    if num_steps * seconds_a_step < _LONG:
      call()
  clock.say(f'{subject.label}: {len(calls)} measurements a round')
  seconds = clock.interleaved(calls, plan.repeats, deadline)
  counts_of_xla = subject.xla_operations()
  return {
    'operations': {
      name: {'formula': count, 'xla': counts_of_xla[name]}
      for name, count in subject.operations.items()
    },
    'networks': [_network_row(seconds, *step) for step in steps],
    'sampling': [
      _sampling_row(subject, name, values, with_decoder)
      for name, values in seconds.items()
      if name[0] == 'sample'
      for with_decoder in (False, True)
    ],
  }


def _single_forwards(
  subject: subjects.Subject,
  params: Any,
  batch_size: int,
  guided: bool,
) -> dict[tuple[Any, ...], clock.Timed]:
  """The networks of one step alone, warmed up."""
  nat, actor, critic = map(subject.apply, ('nat', 'actor', 'critic'))

  def both(params: Any, features: Array, step: Array) -> tuple[Array, Array]:
    return (
      actor(params['actor'], features, step),
      critic(params['critic'], features, step),
    )

  zeros = lambda rows: {
    name: tuple(jnp.zeros(x.shape, x.dtype) for x in inputs)
    for name, inputs in subject.inputs(rows).items()
  }
  inputs = zeros(batch_size)
  calls = {
    ('actor', batch_size): (actor, params['actor'], inputs['actor']),
    ('both', batch_size): (both, params, inputs['actor']),
    ('nat', batch_size, guided): (
      nat,
      params['nat'],
      zeros(batch_size * (1 + guided))['nat'],
    ),
  }
  result = {}
  for name, (function, weights, given) in calls.items():
    jitted = jax.jit(function)
    result[name] = clock.timed(lambda f=jitted, w=weights, x=given: f(w, *x))
    result[name]()
  return result


def _sampling(
  subject: subjects.Subject,
  params: Any,
  decode_images: Any,
  batch_size: int,
  num_steps: int,
  guided: bool,
) -> clock.Timed:
  """Sampling a batch: seconds to its tokens, and from there to its images."""
  labels = jnp.zeros(batch_size, jnp.int32)
  key = jax.random.key(0)
  sample = (
    jax.jit(subject.sample_tokens, static_argnums=(3, 4))
    .lower(params, labels, key, num_steps, guided)
    .compile()
  )

  no_tokens = jnp.zeros((batch_size, subject.nat.num_tokens), jnp.int32)
  jax.block_until_ready(decode_images(params['decoder'], no_tokens))

  def run() -> tuple[float, float]:
    start = time.perf_counter()
    tokens = jax.block_until_ready(sample(params, labels, key))
    middle = time.perf_counter()
    jax.block_until_ready(decode_images(params['decoder'], tokens))
    return middle - start, time.perf_counter() - middle

  return run


def _network_row(
  seconds: dict[Any, list[tuple[float, ...]]], batch_size: int, guided: bool
) -> dict[str, Any]:
  """Seconds of one step's networks, and the policy's share of the NAT's."""
  first = lambda *name: [values[0] for values in seconds[name]]
  nat, actor, both = (
    first('nat', batch_size, guided),
    first('actor', batch_size),
    first('both', batch_size),
  )
  share = lambda part: timing.spread(
    [x / y for x, y in zip(part, nat, strict=True)]
  )
  return {
    'batch_size': batch_size,
    'guided': guided,
    'nat_seconds': timing.spread(nat),
    'actor_seconds': timing.spread(actor),
    'actor_and_critic_seconds': timing.spread(both),
    'actor_share': share(actor),
    'actor_and_critic_share': share(both),
  }


def _sampling_row(
  subject: subjects.Subject,
  name: tuple[Any, ...],
  values: Sequence[tuple[float, ...]],
  with_decoder: bool,
) -> dict[str, Any]:
  """Images a second of one case."""
  _, batch_size, num_steps, guided = name
  counts = subject.operations
  seconds = [sum(parts) if with_decoder else parts[0] for parts in values]
  return {
    'batch_size': batch_size,
    'num_steps': num_steps,
    'guided': guided,
    'tokenizer_decoder': with_decoder,
    'operations_per_image': operations.sampling_operations(
      counts['nat'],
      counts['actor'],
      counts['decoder'] if with_decoder else 0,
      num_steps,
      guided,
    ),
    'images_per_second': timing.spread([batch_size / x for x in seconds]),
    'repeats': len(seconds),
  }


def check_rows() -> list[dict[str, int | bool]]:
  """Counts the canvases that sampling sends through the NAT.

  Returns:
    One row a case.

  Raises:
    RuntimeError: if it is not 2 T a sample when guided, and T otherwise.
  """
  subject, batch_size = subjects.digits(), 3
  # The loop does not know how large the network is: a small one will do.
  subject = dataclasses.replace(subject, nat=subject.nat.clone(depth=2))
  shapes = subject.shapes()
  params = programs.random_arrays(shapes)
  result: list[dict[str, int | bool]] = []
  for num_steps, guided in ((4, False), (4, True)):
    rows = subjects.count_rows(subject, params, batch_size, num_steps, guided)
    forwards, rest = divmod(rows, batch_size)
    if rest or forwards != (1 + guided) * num_steps:
      raise RuntimeError(
        f'{num_steps} steps, guided={guided}: {rows} canvases of'
        f' {batch_size} samples went through the NAT'
      )
    result.append(
      {'num_steps': num_steps, 'guided': guided, 'forwards_a_sample': forwards}
    )
  return result


class Peak:
  """The fastest float32 product of two square matrices seen so far."""

  def __init__(self, sizes: Sequence[int] = (1024, 2048, 4096)):
    self._product = jax.jit(lambda a, b: a @ b)
    self._best = dict.fromkeys(sizes, 0.0)

  def look(self, repeats: int) -> None:
    """Measures every size, once unmeasured and then `repeats` times."""
    for size in self._best:
      matrix = jax.random.normal(jax.random.key(size), (size, size))
      call = clock.timed(lambda x=matrix: self._product(x, x))
      call()
      seconds = min(call()[0] for _ in range(repeats))
      self._best[size] = max(self._best[size], 2 * size**3 / seconds)

  @property
  def by_size(self) -> dict[int, float]:
    """Operations per second at each size."""
    return dict(self._best)

  @property
  def best(self) -> float:
    """Operations per second."""
    return max(self._best.values())


def benchmark(
  plans: dict[str, Plan], peak_repeats: int, minutes: float
) -> dict[str, Any]:
  """Everything, as JSON has it.

  Args:
    plans: what to measure, by name of the generator.
    peak_repeats: products of each size, before and again after the rest.
    minutes: see the flag.
  """
  deadline = time.monotonic() + 60 * minutes
  clock.say('forwards')
  result: dict[str, Any] = {
    'machine': timing.machine(),
    'forwards': check_rows(),
  }
  clock.say('peak')
  peak = Peak()
  peak.look(peak_repeats)
  result['models'] = {
    name: measure(subjects.SUBJECTS[name](), plan, deadline)
    for name, plan in plans.items()
  }
  peak.look(peak_repeats)
  result['peak'] = {
    'operations_per_second': peak.best,
    'by_size': peak.by_size,
  }
  for model in result['models'].values():
    for row in model['sampling']:
      row['fraction_of_peak'] = {
        name: value * row['operations_per_image'] / peak.best
        for name, value in row['images_per_second'].items()
      }
  return result


def main(argv: Sequence[str]) -> None:
  """Measures, prints, writes."""
  if len(argv) > 1:
    raise app.UsageError(f'unexpected arguments: {" ".join(argv[1:])}')
  if logging.get_verbosity() == logging.INFO:
    # What absl starts with; JAX tells there which accelerators it did not find.
    logging.set_verbosity(logging.WARNING)
  plans = QUICK if _QUICK.value else FULL
  result = benchmark(
    {name: plans[name] for name in _MODELS.value},
    1 if _QUICK.value else 3,
    _MINUTES.value,
  )
  print(tables.render(result, _MARKDOWN.value))
  if _OUTPUT.value:
    text = json.dumps(result, indent=1)
    pathlib.Path(_OUTPUT.value).write_text(text + '\n')


if __name__ == '__main__':
  app.run(main)
