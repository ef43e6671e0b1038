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
import functools
import pathlib
from typing import Any

import ml_collections

from adanat_jax.errors import UserError
from adanat_jax.experiment import config as config_lib, field_rules
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.report import comparison, trade_offs
from adanat_jax.runtime import files, processes, timing
from adanat_jax.runtime.journal import Ledger, is_complete, mark_complete
from adanat_jax.stages import (
  compare_costs as costs,
  nat as nat_stage,
  policy as policy_stage,
  search as search_stage,
)
from adanat_jax.stages.compare_contender import Contender
from adanat_jax.stages.evaluate_study import FEWEST_SAMPLES

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
