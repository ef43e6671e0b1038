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
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
from numpy.typing import ArrayLike

from adanat_jax.data import digits
from adanat_jax.decoding import buckets as buckets_lib, schedules
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  config as config_lib,
  field_rules,
  networks,
  policies,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import study as measures_lib
from adanat_jax.models import operations
from adanat_jax.models.enat import ENAT
from adanat_jax.report import comparison, trade_offs
from adanat_jax.runtime import files, processes, timing
from adanat_jax.runtime.journal import Ledger, is_complete, mark_complete
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import (
  compare_costs as costs,
  evaluate_study,
  nat as nat_stage,
  policy as policy_stage,
  search as search_stage,
  search_common,
)
from adanat_jax.stages.evaluate_study import FEWEST_SAMPLES
from adanat_jax.types import PolicyValues, TokenCounts

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
  if config.evaluate.num_samples < FEWEST_SAMPLES:
    yield (
      f'config.evaluate.num_samples={config.evaluate.num_samples} is not'
      f' allowed in mode compare: give {FEWEST_SAMPLES} or more'
    )
  for name in config.compare.enat:
    if f'nat.{name}' not in field_rules.RULES:
      yield (
        f'config.compare.enat.{name}: config.nat has no such field to replace'
      )
  for name in ('nat', 'policy'):
    if experiment.is_converted(name):
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
      section.init_from = str(experiment.workdir.absolute() / stage)
  steps = tuple(sorted(config.compare.num_steps))
  result.search.num_steps = steps
  result.policy.update(num_steps=steps, kinds=('adaptive',))
  return Experiment(result, experiment.workdir / 'compare' / network)


def run(experiment: Experiment) -> None:
  """Trains what is missing, measures, times, and writes the comparison.

  Args:
    experiment: tokenizer and classifiers must be complete; gets `compare/`.

  Raises:
    UserError: for a missing stage, a value that is not allowed, or a comparison
      that was begun with other settings.
  """
  config = experiment.config
  check_config(experiment)
  directory = experiment.workdir / 'compare'
  # Also of a finished one: it is not that of other settings.
  ledger = _open_ledger(experiment, directory)
  if is_complete(directory):
    return
  for name, stage in _SHARED.items():
    if not experiment.is_converted(name):
      experiment.require(stage)
  ours = {
    network: network_experiment(experiment, network)
    for network in config.compare.networks
  }
  for network, part in ours.items():
    _say(f'{network}: trainings and searches')
    _train(part)
  results: dict[str, Any] = {'settings': _settings(experiment), 'methods': []}
  calls: dict[str, Callable[[int], None]] = {}
  for network, part in ours.items():
    contender = Contender(network, part, ledger)
    results['settings'][network.upper()] = contender.sizes()
    results.setdefault('floors', contender.floors())
    for num_steps in sorted(config.compare.num_steps):
      for method in contender.methods(num_steps):
        _say(f'{network}, T={num_steps}, {method.schedule.label}')
        results['methods'].append(contender.entry(method))
        calls |= contender.calls(method)
  _say(f'{config.compare.timing_rounds} rounds of timing')
  timed = ledger.get('timing', lambda: _timing(experiment, calls))
  results['machine'] = timed['machine']
  for entry in results['methods']:
    for path, figures in entry['paths'].items():
      figures['seconds'] = timed['seconds'].get(f'{entry["key"]}/{path}')
  results['trade_offs'] = trade_offs.rows(results)
  files.write_json(directory / 'results.json', results)
  comparison.save_plot(directory / 'comparison.png', results)
  files.write_text(directory / 'comparison.md', comparison.compose(results))
  mark_complete(directory, len(results['methods']), {})
  _say(f'tables in {directory / "comparison.md"}')


def _train(experiment: Experiment) -> None:
  """Makes one network, its tables and its policies, as far as missing."""
  directory = files.make_directory(experiment.workdir)
  # With it the directory is a workdir that `adanat_jax.load` reads.
  record = {
    'source': '',
    'overrides': {},
    'config': config_lib.to_dict(experiment.config),
  }
  files.write_json(directory / 'config.json', record)
  for stage in (nat_stage, search_stage, policy_stage):
    stage.run(experiment)


def _open_ledger(experiment: Experiment, directory: pathlib.Path) -> Ledger:
  """What was measured so far.

  A workdir may go on with another search, a comparison may not: its tables
  would not be those that were measured.

  Raises:
    UserError: if it was begun with other settings.
  """
  ledger = Ledger(directory / 'ledger.jsonl')
  ours = {
    f'{section}.{name}': value
    for section in ('compare', 'search')
    for name, value in config_lib.fields(experiment.config[section])
  }
  ours = files.to_json(ours)
  theirs = ledger.get('about', lambda: ours)
  for name in sorted(ours.keys() | theirs.keys()):
    if theirs.get(name) != ours.get(name):
      raise UserError(
        f'{directory} was begun with config.{name}={theirs.get(name)} and not'
        f' {ours.get(name)}; use that, or another --workdir, or delete it'
      )
  return ledger


def _timing(
  experiment: Experiment, calls: dict[str, Callable[[int], None]]
) -> dict[str, Any]:
  """Seconds of an image by method and path, and the machine they belong to."""
  section = experiment.config.compare
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


def _say(text: str) -> None:
  processes.say(f'compare: {text}')


class Contender:
  """One network with its schedules."""

  def __init__(
    self,
    network: str,
    experiment: Experiment,
    ledger: Ledger,
  ):
    """Loads what the network's stages have made.

    Args:
      network: its name.
      experiment: its own.
      ledger: of the comparison.
    """
    config = experiment.config
    self._network = network
    self._experiment = experiment
    self._ledger = ledger
    self._evaluation = evaluate_study.Evaluation(experiment)
    self._generator: Generator = dataclasses.replace(
      self._evaluation.generator, batch_size=config.compare.batch_size
    )
    self._actor, _ = networks.policy_modules(config)

  def sizes(self) -> dict[str, Any]:
    """What the network consists of."""
    nat = self._generator.nat
    names = ['width', 'num_heads']
    if isinstance(nat, ENAT):
      names += ['encoder_depth', 'decoder_depth']
    else:
      names += ['depth']
    leaves = jax.tree.leaves(self._generator.nat_params)
    return {
      'parameters': sum(leaf.size for leaf in leaves),
      **{name: getattr(nat, name) for name in names},
    }

  def floors(self) -> dict[str, dict[str, float]]:
    """Measures of real images that nothing was trained on."""
    data = digits.load(self._experiment.config.data.image_size)
    condition = digits.condition_of(
      data.test_labels, self._experiment.config.data.condition
    )
    return {
      'held-out images': self._ledger.get(
        'floors',
        lambda: self._evaluation.measures(data.test_images, condition),
      )
    }

  def methods(self, num_steps: int) -> Iterator[evaluate_study.Method]:
    """The schedules of T steps: hand-made, searched, learned."""
    num_tokens = self._generator.nat.num_tokens
    maskgit = schedules.make('maskgit', num_steps, num_tokens)
    yield evaluate_study.Method(
      dataclasses.replace(maskgit, label='MaskGIT'), 'hand-made'
    )
    for which in search_common.of(self._experiment):
      if which.num_steps == num_steps:
        yield self._searched(which)
    for training in policies.trainings(self._experiment):
      if training.num_steps == num_steps:
        agent = policies.load_agent(self._experiment, training)
        yield evaluate_study.Method(
          Schedule('adanat', agent, label='AdaNAT'),
          'adaptive',
          training.index,
          training.reward,
        )

  def _searched(self, which: search_common.Search) -> evaluate_study.Method:
    """The best of a search's tables, measured with noise of their own.

    Which neither the search has seen nor the comparison sees. Where the search
    began is one of them: at the lowest of its distances it may have fitted no
    more than its noise.
    """
    path = self._experiment.workdir / 'search' / which.name / 'results.json'
    tables = files.read_json(path)['tables']
    name = min(tables, key=lambda x: tables[x]['fresh']['mean'])
    evaluations = self._experiment.config.search.evaluations
    schedule = Schedule(
      'autonat',
      search_common.table_of_lists(tables[name]['table']),
      label='AutoNAT',
      note=f'{name} table of {evaluations} evaluations',
    )
    return evaluate_study.Method(schedule, 'tuned', which.repetition)

  def _key(self, method: evaluate_study.Method) -> str:
    schedule = method.schedule
    return (
      f'{self._network}/T{schedule.num_steps}/{schedule.name}'
      f'/{method.training or 0}'
    )

  def _generator_of(self, method: evaluate_study.Method) -> Generator:
    """The generator, with the buckets that an adaptive policy of ENAT gets."""
    schedule, num_steps = method.schedule, method.schedule.num_steps
    if schedule.is_table or not isinstance(self._generator.nat, ENAT):
      return self._generator

    def make() -> list[TokenCounts]:
      # Samples that no measure sees.
      found = self._generator.with_buckets(
        schedule,
        self._evaluation.labels(self._experiment.config.evaluate.num_samples),
        self._experiment.key('compare/buckets'),
        num_steps=num_steps,
        num_buckets=self._experiment.config.compare.num_buckets,
      )
      return list(found.buckets[num_steps])

    rows = self._ledger.get(f'{self._key(method)}/buckets', make)
    chosen = tuple(TokenCounts(*row) for row in rows)
    return dataclasses.replace(self._generator, buckets={num_steps: chosen})

  def entry(self, method: evaluate_study.Method) -> dict[str, Any]:
    """A method as `results.json` has it, but for the seconds."""
    schedule, num_steps = method.schedule, method.schedule.num_steps
    generator = self._generator_of(method)
    key = self._key(method)
    seeds = list(range(self._experiment.config.evaluate.num_seeds))
    rows = [
      self._ledger.get(
        f'{key}/{seed}',
        functools.partial(self._row, generator, schedule, seed),
      )
      for seed in seeds
    ]
    paths: dict[str, dict[str, Any]] = {
      path: {'operations': count}
      for path, count in costs.path_operations(
        generator, schedule, self._actor
      ).items()
    }
    result = {
      'key': key,
      'name': f'{self._network}/{schedule.name}',
      'label': f'{schedule.label} on {self._network.upper()}',
      'network': self._network,
      'schedule': schedule.name,
      'role': method.role,
      'reward': method.reward,
      'note': schedule.note,
      'num_steps': num_steps,
      'training': method.training,
      'guided': schedule.guided,
      'seeds': seeds,
      'samples_per_seed': self._experiment.config.evaluate.num_samples,
      'measures': {
        measure: _summary([row['measures'][measure] for row in rows])
        for measure in measures_lib.MEASURES
      },
      'values_per_step': rows[0]['values_per_step'],
      'committed_per_step': rows[0]['committed_per_step'],
      'path': costs.paths_of(generator, schedule)[0],
      'paths': paths,
    }
    if 'adaptive' in rows[0]:
      policy = num_steps * operations.policy_operations(
        self._actor, generator.nat.width
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

  def calls(
    self, method: evaluate_study.Method
  ) -> dict[str, Callable[[int], None]]:
    """What is timed of a method, by its key and the path."""
    generator = self._generator_of(method)
    return {
      f'{self._key(method)}/{path}': costs.make_calls(
        generator,
        method.schedule,
        path,
        self._experiment.config.compare.timing_batches,
      )
      for path in costs.paths_of(generator, method.schedule)
    }

  def _row(
    self, generator: Generator, schedule: Schedule, seed: int
  ) -> dict[str, Any]:
    """What is measured of one seed."""
    labels = self._evaluation.labels(
      self._experiment.config.evaluate.num_samples
    )
    samples = generator.decode(
      schedule,
      labels,
      # The same noise for every method and network, and that of `evaluate`.
      self._experiment.key(f'evaluate/seed-{seed}'),
      record=True,
    )
    trajectory = samples.trajectory
    assert trajectory is not None  # It was asked for.
    row = {
      'measures': self._evaluation.measures(samples.images, labels),
      'values_per_step': {
        field.name: _over_samples(getattr(trajectory.values, field.name))
        for field in dataclasses.fields(PolicyValues)
      },
      'committed_per_step': _over_samples(trajectory.num_committed),
    }
    nat = generator.nat
    if isinstance(nat, ENAT) and not schedule.is_table:
      start = np.full_like(samples.tokens, nat.codebook_size)
      found = buckets_lib.counts_of_decode(
        trajectory.tokens, start, nat.codebook_size
      )
      row['adaptive'] = costs.adaptive_operations(
        nat,
        np.asarray(found),
        generator.buckets[schedule.num_steps],
        generator.batch_size,
      )
    return row


def _over_samples(values: ArrayLike) -> dict[str, list[float]]:
  """What the samples of [T, B] have in common, and how far they differ."""
  array = np.asarray(values, np.float64)
  return {
    'mean': array.mean(1).tolist(),
    'std': array.std(1).tolist(),
    'low': array.min(1).tolist(),
    'high': array.max(1).tolist(),
  }


def _summary(values: list[float]) -> dict[str, Any]:
  """Mean and spread over seeds."""
  return {
    'mean': float(np.mean(values)),
    'std': float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
    'values': values,
  }
