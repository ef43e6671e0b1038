"""One network of a comparison with all of its schedules: see `compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import functools
from typing import Any

import jax
import ml_collections
import numpy as np
from numpy.typing import ArrayLike

from adanat_jax.data import digits
from adanat_jax.decoding import buckets as buckets_lib, schedules
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.experiment import networks, policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import study as measures_lib
from adanat_jax.models import operations
from adanat_jax.models.enat import ENAT
from adanat_jax.runtime import files
from adanat_jax.runtime.journal import Ledger
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages import (
  compare_costs as costs,
  evaluate_study,
  search_common,
)
from adanat_jax.types import PolicyValues, TokenCounts

Config = ml_collections.ConfigDict


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
