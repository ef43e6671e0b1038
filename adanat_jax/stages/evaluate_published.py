"""Stage `evaluate` by the published protocol: policies against real images.

1. Each policy makes `evaluate.num_samples` images, of classes that are drawn
   or of the validation captions; nothing of them is kept but counts.
2. Fréchet distance and inception score, precision and recall, CLIP score.
3. `evaluate/results.json`, and `results.md` with what others published.

A run that was killed goes on where it was, within a policy too.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import io
import pathlib
from typing import Any

import ml_collections
import numpy as np

from adanat_jax.decoding import schedules
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import datasets, networks
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import (
  clip_score,
  features,
  published_weights,
  real_images,
  scores,
)
from adanat_jax.measuring.scores import SampleFile
from adanat_jax.metrics.precision_recall import precision_recall
from adanat_jax.metrics.tally import SampleTally
from adanat_jax.report import published_figures
from adanat_jax.report.published_figures import BENCHMARKS
from adanat_jax.runtime import files, processes
from adanat_jax.runtime.journal import Ledger, is_complete, mark_complete
from adanat_jax.sampling.generator import Generator

Config = ml_collections.ConfigDict

# One set of samples: all policies are measured with the same noise.
_SEED = 0
# Batches of other samples that a policy is watched on for its buckets.
_WATCHED_BATCHES = 8
# Neighbours that say how far the real, and the generated, images reach.
_NEIGHBOURS = 3


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be measured."""
  experiment.check(
    features.problems,
    _problems,
    clip_score.problems,
    reads=('data', 'evaluate', 'policy.num_steps'),
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why real images, or schedules, are not to be had."""
  config = experiment.config
  if config.evaluate.precision_recall:
    yield from datasets.problems(experiment)
  for name in config.evaluate.policies:
    if name in schedules.SCHEDULES:
      for num_steps in config.policy.num_steps:
        schedules.make(name, num_steps, experiment.num_tokens)


def run(experiment: Experiment) -> None:
  """Measures every policy of the config.

  Args:
    experiment: its networks are trained or converted; its workdir gets
      `evaluate/`.

  Raises:
    UserError: for a missing network, policy, or file of moments.
  """
  check_config(experiment)
  directory = experiment.workdir / 'evaluate'
  if is_complete(directory):
    return
  evaluation = Evaluation(experiment)
  ledger = Ledger(directory / 'ledger.jsonl')
  rows = []
  for schedule in evaluation.schedules:
    name = f'{schedule.name}-T{schedule.num_steps}'
    _say(f'{schedule.label}, {schedule.num_steps} steps')
    row = ledger.get(
      name, functools.partial(evaluation.row, schedule, directory / name)
    )
    evaluation.tidy(directory / name)
    rows.append(row)
    _say(', '.join(f'{k} {v:.4g}' for k, v in row['figures'].items()))
  results = {**evaluation.about(), 'rows': rows}
  files.write_json(directory / 'results.json', results)
  files.write_text(directory / 'results.md', published_figures.compose(results))
  mark_complete(directory, len(rows), {})


def _say(text: str) -> None:
  processes.say(f'evaluate: {text}')


class Evaluation:
  """The networks of a config, and what they are measured against."""

  def __init__(self, experiment: Experiment):
    """Loads everything, and makes the moments of real images if need be.

    Raises:
      UserError: naming what is missing.
    """
    self.experiment = experiment
    self.generator: Generator = experiment.generator()
    # Before anything that takes long: a policy may not be there.
    self.schedules = self._find_schedules()
    self.scorer = scores.Scorer(experiment)
    self._count: int = experiment.config.evaluate.num_samples
    self._clip = None
    if clip_score.is_wanted(experiment):
      chosen = self.scorer.conditions.of(self._count, _SEED)
      self._clip = clip_score.ClipScore(
        experiment, self.scorer.conditions, chosen
      )

  def _find_schedules(self) -> list[Schedule]:
    """Every policy at every number of steps, in the order of results."""
    return [
      self._find(name, num_steps)
      for num_steps in sorted(set(self.experiment.config.policy.num_steps))
      for name in self.experiment.config.evaluate.policies
    ]

  def _find(self, name: str, num_steps: int) -> Schedule:
    if name == 'learned' and num_steps not in self.generator.agents:
      raise UserError(
        f'{self.experiment.workdir} holds no learned policy for'
        f' {num_steps} steps: run --config.mode=policy first, name converted'
        ' weights by config.policy.init_from, or leave learned out of'
        ' config.evaluate.policies'
      )
    return self.generator.schedule(name, num_steps)

  def row(self, schedule: Schedule, directory: pathlib.Path) -> dict[str, Any]:
    """Samples of a schedule, measured.

    Args:
      schedule: what decodes.
      directory: keeps what was counted so far, and the samples if asked for.
    """
    section = self.experiment.config.evaluate
    images = None
    if section.save_npz:
      images = SampleFile(directory, self._sample_shape(), self._labels())
      if not processes.from_first(images.is_begun):
        self.tidy(directory)
    # First: what is wrong with real images is told before any is generated.
    real = self._real_features()
    tally = self.scorer.tally(
      self._generator_of(schedule),
      schedule,
      num_samples=self._count,
      seed=_SEED,
      directory=directory,
      num_kept=section.precision_recall,
      observers=() if self._clip is None else (self._clip,),
      images=images,
    )
    row: dict[str, Any] = {
      'name': schedule.name,
      'label': schedule.label,
      'note': schedule.note,
      'num_steps': schedule.num_steps,
      'figures': processes.from_first(lambda: self._figures(tally, real)),
    }
    if images is not None:
      processes.from_first(images.finish)
      row['samples'] = images.path.name
    return row

  def _generator_of(self, schedule: Schedule) -> Generator:
    """The generator, with the buckets that an adaptive policy of ENAT gets."""
    num_buckets = self.experiment.config.evaluate.num_buckets
    if not num_buckets or schedule.is_table:
      return self.generator
    watched = min(
      self._count, _WATCHED_BATCHES * self.experiment.config.evaluate.batch_size
    )
    chosen = self.scorer.conditions.of(watched, _SEED + 1)
    return self.generator.with_buckets(
      schedule,
      self.scorer.conditions.on_hosts(chosen),
      self.experiment.key('evaluate/buckets'),
      num_steps=schedule.num_steps,
      num_buckets=num_buckets,
    )

  def tidy(self, directory: pathlib.Path) -> None:
    """Deletes what only an unfinished row needs."""
    if processes.process_index() == 0:
      scores.forget(directory)
      SampleFile.forget(directory)

  def _figures(
    self, tally: SampleTally, real: np.ndarray | None
  ) -> dict[str, float]:
    result = {**self.scorer.figures(tally), **tally.means()}
    if real is not None:
      generated = tally.kept
      # The measure depends on the sizes of both sets: equal ones.
      size = min(len(real), len(generated))
      shares = precision_recall(real[:size], generated[:size], _NEIGHBOURS)
      name = f'{self.scorer.network.name}_{size}'
      result[f'precision_{name}'] = shares.precision
      result[f'recall_{name}'] = shares.recall
    return result

  def _real_features(self) -> np.ndarray | None:
    """Features of real images, float32[n, d], in process 0; made once."""
    count = self.experiment.config.evaluate.precision_recall
    if not count:
      return None
    split = self.experiment.config.evaluate.reference_split
    path = self.experiment.workdir / 'evaluate' / f'real-{split}.npy'
    if not processes.from_first(path.is_file):
      found = real_images.some_features(
        self.experiment,
        self.scorer.network,
        split,
        count,
      )
      buffer = io.BytesIO()
      np.save(buffer, found)
      files.write_bytes(path, buffer.getvalue())
    return np.load(path) if processes.process_index() == 0 else None

  def _labels(self) -> np.ndarray | None:
    if self.experiment.is_text:
      return None
    return self.scorer.conditions.of(self._count, _SEED)

  def _sample_shape(self) -> tuple[int, int, int, int]:
    side = self.experiment.config.data.image_size
    return (
      self._count,
      side,
      side,
      networks.image_channels(self.experiment.config),
    )

  def about(self) -> dict[str, Any]:
    """What a reader of the figures has to know."""
    config, section = self.experiment.config, self.experiment.config.evaluate
    benchmark = BENCHMARKS.get(section.benchmark)
    is_text = networks.is_text(config)
    settings: dict[str, Any] = {
      'samples': self._count,
      'conditions': 'validation captions' if is_text else section.labels,
      'image size': config.data.image_size,
      'rounding': section.rounding,
      'seed': config.seed,
      'statistics': self.scorer.reference.description,
      'features': self.scorer.network.description(),
      'weights': self._weights(),
    }
    if self._clip is not None:
      settings['CLIP'] = self._clip.description
    return {
      'protocol': 'published',
      'benchmark': benchmark.title if benchmark else '',
      'settings': settings,
      'published samples': benchmark.num_samples if benchmark else None,
      'published statistics': benchmark.statistics if benchmark else '',
      'published': [
        dataclasses.asdict(figure)
        for figure in (benchmark.figures if benchmark else ())
      ],
    }

  def _weights(self) -> dict[str, str]:
    """Where each network is from: the hash of a converted file, or here."""
    result = {}
    for name in ('tokenizer', 'nat', 'policy'):
      result[name] = 'trained in this workdir'
      if self.experiment.is_converted(name):
        source = published_weights.source_of(
          self.experiment.config[name].init_from
        )
        given = ', '.join(f'{file} {digest}' for file, digest in source.items())
        result[name] = given or 'converted, hash unknown'
      elif name == 'policy':
        result[name] += f', the {self.experiment.config.policy.iterate} iterate'
    return result
