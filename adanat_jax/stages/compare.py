"""Stage `compare`: MaskGIT, AutoNAT and AdaNAT, each on a NAT and on an ENAT.

  python -m adanat_jax.main --config=configs/digits.py:relatives \
      --workdir=runs/relatives

runs the stages `tokenizer` and `judges` and then this one, which, for each
network of `compare.networks`,

1. trains it, searches AutoNAT's table for each T, and trains AdaNAT's policies,
   by the stages `nat`, `search` and `policy` in `compare/<network>/`;
2. samples every method with the same seeds, labels and noise, measures the
   images, and counts the operations of an image;

and at last times all of it in turn. It leaves in `compare/`

ledger.jsonl    each piece as soon as it is done; a killed run goes on from it
results.json    every figure
comparison.md   the tables, and what they say
comparison.png  quality against operations, and against seconds
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from adanat_jax.data import digits
from adanat_jax.decoding import buckets as buckets_lib
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  config as config_lib,
  field_rules,
  networks,
  policies,
  workdir as workdir_lib,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import evaluation as evaluation_lib
from adanat_jax.measuring.evaluation import Evaluation, Method
from adanat_jax.models import operations
from adanat_jax.models.enat import ENAT
from adanat_jax.report import comparison, trade_offs
from adanat_jax.runtime import files, processes, timing
from adanat_jax.runtime.journal import (
  RESULTS_FILE,
  Ledger,
  has_results,
  mark_complete,
  open_ledger,
)
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import (
  compare_costs as costs,
  nat as nat_stage,
  policy as policy_stage,
  search as search_stage,
  search_common,
)
from adanat_jax.types import TokenCounts

Config = ml_collections.ConfigDict

# What the networks of a comparison share, and the stages that make it.
_SHARED = {
  'tokenizer': 'tokenizer',
  'judges.measure': 'judges/measure',
  'judges.reward': 'judges/reward',
}


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be compared."""
  experiment.check(
    _problems,
    _problems_of_stages,
    reads=('data', 'compare', 'evaluate', 'search', 'policy', 'nat'),
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why nothing can be compared."""
  config = experiment.config
  if not experiment.is_digits:
    yield (
      f'config.data.source={config.data.source!r} is not allowed in mode'
      ' compare: give digits'
    )
  if config.search.rounds:
    yield (
      f'config.search.rounds={config.search.rounds} is not allowed in mode'
      ' compare: give 0'
    )
  # What is compared are schedules, not ways of finding them.
  for name in ('search.optimizers', 'search.common_noise', 'policy.rewards'):
    value = experiment.field(name)
    if len(value) != 1:
      yield (
        f'config.{name}={value} is not allowed in mode compare: give a tuple of'
        ' 1 element'
      )
  yield from evaluation_lib.problems(
    experiment, _schedule_names(experiment), config.compare.num_steps
  )
  for name in config.compare.enat:
    if f'nat.{name}' not in field_rules.RULES:
      yield (
        f'config.compare.enat.{name}: config.nat has no such field to replace'
      )
  for name in ('nat', 'policy'):
    if config[name].get('init_from', ''):
      yield (
        f'config.{name}.init_from={config[name].init_from!r} is not allowed in'
        ' mode compare, which trains its networks alike; leave it empty'
      )
  yield from experiment.uneven_batches({'compare.batch_size': 1})


def _problems_of_stages(experiment: Experiment) -> Iterator[str]:
  """Says what a stage of one of the networks would refuse."""
  for network in experiment.config.compare.networks:
    ours = network_experiment(experiment, network)
    where = '' if network == 'nat' else ', as config.compare.enat has it'
    for stage in (nat_stage, search_stage, policy_stage):
      try:
        stage.check_config(ours)
      except UserError as error:
        yield from (f'{problem}{where}' for problem in error.problems)


def network_experiment(experiment: Experiment, network: str) -> Experiment:
  """The experiment of one network, in a directory of its own.

  Args:
    experiment: of this run, whose workdir has the tokenizer and the judges.
    network: 'nat', or 'enat', of which `compare.enat` says how it differs.
  """
  config = experiment.config
  result = ml_collections.ConfigDict(config.to_dict())
  if network == 'enat':
    result.nat.update(config.compare.enat.to_dict())
  result.nat.network = network
  for name, stage in _SHARED.items():
    if not experiment.is_converted(name):
      section: Any = functools.reduce(getattr, name.split('.'), result)
      directory = str(experiment.workdir.absolute() / stage)
      section.update(init_from=directory, fine_tune=False)
  steps = tuple(sorted(config.compare.num_steps))
  result.search.num_steps = steps
  kind = 'shared' if _is_shared(experiment) else 'adaptive'
  result.policy.update(num_steps=steps, kinds=(kind,))
  return Experiment(result, experiment.workdir / 'compare' / network)


def run(experiment: Experiment) -> None:
  """Trains what is missing, measures, times, and writes `compare/`.

  Raises:
    UserError: also for a comparison that was begun with other settings.
  """
  config = experiment.config
  check_config(experiment)
  directory = experiment.workdir / 'compare'
  # A workdir may go on with another search, a comparison may not: its tables
  # would not be those that were measured. So a finished one is asked, too.
  about = {
    f'{section}.{name}': value
    for section in ('compare', 'search')
    for name, value in config_lib.fields(config[section])
  }
  ledger = open_ledger(
    directory, about, 'config', added={'search.guided': True}
  )
  if has_results(directory):
    return
  for name, stage in _SHARED.items():
    if not experiment.is_converted(name):
      experiment.require(stage)
  ours = {
    network: network_experiment(experiment, network)
    for network in config.compare.networks
  }
  for network, part in ours.items():
    processes.say(f'compare: {network}: trainings and searches')
    _train(part)
  results: dict[str, Any] = {'settings': _settings(experiment), 'methods': []}
  calls: dict[str, Callable[[int], None]] = {}
  for network, part in ours.items():
    evaluation = Evaluation(part, config.compare.batch_size)
    results['settings'][network.upper()] = _sizes(evaluation.generator)
    floor = functools.partial(_floor, evaluation)
    results['floors'] = {'held-out images': ledger.get('floors', floor)}
    for num_steps in sorted(config.compare.num_steps):
      for method in _methods(evaluation, num_steps):
        schedule = method.schedule
        key = f'{network}/T{num_steps}/{schedule.name}/{method.training or 0}'
        processes.say(f'compare: {network}, T={num_steps}, {schedule.label}')
        generator = _generator_for(evaluation, schedule, key, ledger)
        results['methods'].append(
          _entry(evaluation, generator, method, key, ledger)
        )
        for path in costs.paths_of(generator, schedule):
          calls[f'{key}/{path}'] = costs.make_calls(
            generator, schedule, path, config.compare.timing_batches
          )
  processes.say(f'compare: {config.compare.timing_rounds} rounds of timing')
  timed = ledger.get('timing', lambda: _timing(config.compare, calls))
  results['machine'] = timed['machine']
  for entry in results['methods']:
    for path, figures in entry['paths'].items():
      figures['seconds'] = timed['seconds'].get(f'{entry["key"]}/{path}')
  results['trade_offs'] = trade_offs.rows(results)
  files.write_json(directory / RESULTS_FILE, results)
  comparison.save_plot(directory / 'comparison.png', results)
  files.write_text(directory / 'comparison.md', comparison.compose(results))
  mark_complete(directory, len(results['methods']), {})
  processes.say(f'compare: tables in {directory / "comparison.md"}')


def _train(experiment: Experiment) -> None:
  """Trains the network, searches its tables, trains its policies.

  What exists is skipped.
  """
  directory = files.make_directory(experiment.workdir)
  # With it the directory is a workdir that `adanat_jax.load` reads.
  workdir_lib.write_config(directory, experiment.config)
  for stage in (nat_stage, search_stage, policy_stage):
    stage.run(experiment)


def _timing(
  section: Config, calls: dict[str, Callable[[int], None]]
) -> dict[str, Any]:
  """Seconds of an image by method and path, and the machine they belong to."""
  machine = timing.machine()
  images = section.batch_size * section.timing_batches
  measured = costs.seconds_of(calls, section.timing_rounds)
  return {
    'machine': machine,
    'seconds': {
      name: timing.spread([value / images for value in values])
      for name, values in measured.items()
    },
  }


def _settings(experiment: Experiment) -> dict[str, Any]:
  """What a reader of the figures has to know."""
  config = experiment.config
  section = config.compare
  return {
    'condition': config.data.condition,
    'seed': config.seed,
    'sampling seeds': config.evaluate.num_seeds,
    'images a seed': config.evaluate.num_samples,
    'batch': section.batch_size,
    'timing rounds': section.timing_rounds,
    'images a timing': section.batch_size * section.timing_batches,
    'search': f'{config.search.optimizers[0]},'
    f' {config.search.evaluations} evaluations of'
    f' {config.search.num_samples} images,'
    f' start {config.search.start.replace("_", " ")}, by the distance of'
    f' config.evaluate.network={config.evaluate.network}',
    'policy iterations': config.policy.iterations,
    'trajectories an iteration': config.policy.batch_size,
  }


def _sizes(generator: Generator) -> dict[str, Any]:
  """What the network consists of."""
  nat = generator.nat
  depths = (
    ('encoder_depth', 'decoder_depth') if isinstance(nat, ENAT) else ('depth',)
  )
  leaves = jax.tree.leaves(generator.nat_params)
  return {
    'parameters': sum(leaf.size for leaf in leaves),
    **{name: getattr(nat, name) for name in ('width', 'num_heads', *depths)},
  }


def _floor(evaluation: Evaluation) -> dict[str, float]:
  """Measures of real images that nothing was trained on."""
  section = evaluation.experiment.config.data
  data = digits.load(section.image_size)
  condition = digits.condition_of(data.test_labels, section.condition)
  return evaluation.measures(data.test_images, condition)


def _is_shared(experiment: Experiment) -> bool:
  """Whether one policy serves every T that is compared."""
  # A config of an older version has no such field.
  return 'shared' in experiment.config.policy.get('kinds', ())


def _schedule_names(experiment: Experiment) -> tuple[str, ...]:
  """The schedules that are compared with searched and learned ones."""
  # A config of an older version has no such field.
  return experiment.config.compare.get('schedules') or ('maskgit',)


def _methods(evaluation: Evaluation, num_steps: int) -> Iterator[Method]:
  """The schedules of T steps: hand-made, searched, learned."""
  experiment = evaluation.experiment
  for name in _schedule_names(experiment):
    schedule = experiment.schedule(name, num_steps)
    # Whether it is guided stands beside it.
    label = schedule.label.removesuffix(', unguided')
    yield Method(dataclasses.replace(schedule, label=label), 'hand-made')
  for which in search_common.of(experiment):
    if which.num_steps == num_steps:
      schedule = search_common.found(experiment, which)
      yield Method(schedule, 'tuned', which.repetition)
  for training in policies.trainings(experiment):
    if num_steps in training.all_num_steps:
      agent = policies.load_agent(experiment, training, num_steps)
      label = 'AdaNAT, one for all T' if training.drawn else 'AdaNAT'
      schedule = Schedule('adanat', agent, agent.guided, label=label)
      yield Method(schedule, 'adaptive', training.index, training.reward)


def _generator_for(
  evaluation: Evaluation, schedule: Schedule, key: str, ledger: Ledger
) -> Generator:
  """The generator, with the buckets that an adaptive policy of ENAT gets."""
  generator = evaluation.generator
  if costs.paths_of(generator, schedule)[0] != 'buckets':
    return generator

  def choose() -> list[TokenCounts]:
    found = evaluation.generator_for(
      schedule,
      evaluation.experiment.config.compare.num_buckets,
      lambda: evaluation.labels(evaluation.count),
      'compare/buckets',
    )
    return list(found.buckets[schedule.num_steps])

  rows = ledger.get(f'{key}/buckets', choose)
  buckets = tuple(TokenCounts(*row) for row in rows)
  return dataclasses.replace(generator, buckets={schedule.num_steps: buckets})


def _row(
  evaluation: Evaluation, generator: Generator, schedule: Schedule, seed: int
) -> dict[str, Any]:
  """What is measured of one seed."""
  samples = evaluation.sample(
    schedule, f'seed-{seed}', evaluation.count, True, generator
  )
  row = evaluation.row(schedule, samples, ('mean', 'std', 'low', 'high'))
  nat = generator.nat
  if costs.paths_of(generator, schedule)[0] == 'buckets':
    assert samples.trajectory is not None  # It was asked for.
    start = jnp.full_like(samples.tokens, nat.codebook_size)
    found = buckets_lib.counts_of_decode(
      samples.trajectory.tokens, start, nat.codebook_size
    )
    row['adaptive'] = costs.adaptive_operations(
      nat,
      np.asarray(found),
      generator.buckets[schedule.num_steps],
      generator.batch_size,
      schedule.guided,
    )
  return row


def _entry(
  evaluation: Evaluation,
  generator: Generator,
  method: Method,
  key: str,
  ledger: Ledger,
) -> dict[str, Any]:
  """A method as `results.json` has it, but for the seconds.

  Args:
    evaluation: of the network.
    generator: what decodes, with buckets where it has some.
    method: what is measured.
    key: of it, in the ledger and among the timings.
    ledger: of the comparison.
  """
  schedule, num_steps = method.schedule, method.schedule.num_steps
  config = evaluation.experiment.config
  network = config.nat.network
  actor, _ = networks.policy_modules(config, _is_shared(evaluation.experiment))
  rows = evaluation.rows(
    ledger, key, functools.partial(_row, evaluation, generator, schedule)
  )
  paths: dict[str, dict[str, Any]] = {
    path: {'operations': count}
    for path, count in costs.path_operations(generator, schedule, actor).items()
  }
  result = {
    **evaluation.entry(method, rows),
    'key': key,
    'name': f'{network}/{schedule.name}',
    'label': f'{schedule.label} on {network.upper()}',
    'network': network,
    'schedule': schedule.name,
    'guided': schedule.guided,
    'path': costs.paths_of(generator, schedule)[0],
    'paths': paths,
  }
  if 'adaptive' in rows[0]:
    policy = num_steps * operations.policy_operations(
      actor, generator.nat.width
    )
    found = {
      name: float(np.mean([row['adaptive'][name] for row in rows]))
      for name in rows[0]['adaptive']
    }
    for path in ('buckets', 'own'):
      paths[path] = {'operations': found[path] + policy}
    result['buckets'] = [list(x) for x in generator.buckets[num_steps]]
    result['beyond_buckets'] = found['beyond']
  decoder = operations.decoder_operations(
    generator.tokenizer, generator.nat.num_tokens
  )
  for figures in paths.values():
    figures['operations_with_decoder'] = figures['operations'] + decoder
  return result
