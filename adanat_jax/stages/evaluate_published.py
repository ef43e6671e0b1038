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
import itertools
import pathlib
from typing import Any

import numpy as np

from adanat_jax.convert import files as weights
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  config as config_lib,
  datasets,
  named_schedules,
  networks,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import (
  clip_score,
  features,
  published_weights,
  real_images,
  scores,
)
from adanat_jax.measuring.evaluation import Evaluation
from adanat_jax.measuring.scores import SampleFile
from adanat_jax.metrics.precision_recall import precision_recall
from adanat_jax.metrics.tally import SampleTally
from adanat_jax.report import published_figures
from adanat_jax.report.published_figures import BENCHMARKS
from adanat_jax.runtime import files, processes
from adanat_jax.runtime.journal import (
  RESULTS_FILE,
  Ledger,
  has_results,
  mark_complete,
)

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
  """Says why real images or schedules are missing."""
  config = experiment.config
  if config.evaluate.precision_recall:
    yield from datasets.problems(experiment)
  names = [n for n in config.evaluate.policies if n != 'learned']
  for name, num_steps in itertools.product(names, config.policy.num_steps):
    named_schedules.make(name, num_steps, experiment.num_tokens)


def run(experiment: Experiment) -> None:
  """Measures every policy of the config."""
  check_config(experiment)
  directory = experiment.workdir / 'evaluate'
  if has_results(directory):
    return
  evaluation = Evaluation(experiment)
  # Before anything that takes long: a policy may not be there.
  found = _schedules(evaluation)
  clip = _clip_score(evaluation)
  ledger = Ledger(directory / 'ledger.jsonl')
  rows = []
  for schedule in found:
    name = f'{schedule.name}-T{schedule.num_steps}'
    processes.say(f'evaluate: {schedule.label}, {schedule.num_steps} steps')
    row = ledger.get(
      name,
      functools.partial(_row, evaluation, clip, schedule, directory / name),
    )
    scores.forget(directory / name)
    rows.append(row)
    processes.say(
      'evaluate: , '.join(f'{k} {v:.4g}' for k, v in row['figures'].items())
    )
  results = {**_about(evaluation, clip), 'rows': rows}
  files.write_json(directory / RESULTS_FILE, results)
  files.write_text(directory / 'results.md', published_figures.compose(results))
  mark_complete(directory, len(rows), {})


def _schedules(evaluation: Evaluation) -> list[Schedule]:
  """Every policy at every number of steps, in the order of results."""
  config = evaluation.experiment.config
  found = []
  for num_steps in sorted(set(config.policy.num_steps)):
    for name in config.evaluate.policies:
      if name == 'learned' and num_steps not in evaluation.generator.agents:
        raise UserError(
          f'{evaluation.experiment.workdir} holds no learned policy for'
          f' {num_steps} steps: name converted weights by'
          ' config.policy.init_from, leave learned out of'
          ' config.evaluate.policies, or first run:'
          f' {config_lib.rerun("--config.mode=policy")}'
        )
      if name == 'learned':
        found.append(evaluation.generator.schedule(name, num_steps))
      else:
        num_tokens = evaluation.experiment.num_tokens
        found.append(named_schedules.make(name, num_steps, num_tokens))
  return found


def _clip_score(evaluation: Evaluation) -> clip_score.ClipScore | None:
  """What compares images with their captions, if the config asks for it."""
  if not clip_score.is_wanted(evaluation.experiment):
    return None
  conditions = evaluation.scorer.conditions
  chosen = conditions.of(evaluation.count, _SEED)
  return clip_score.ClipScore(evaluation.experiment, conditions, chosen)


def _row(
  evaluation: Evaluation,
  clip: clip_score.ClipScore | None,
  schedule: Schedule,
  directory: pathlib.Path,
) -> dict[str, Any]:
  """Samples of a schedule, measured.

  Args:
    evaluation: the generator, and what measures.
    clip: measures captions too; None for not.
    schedule: what decodes.
    directory: keeps what was counted so far, and the samples if asked for.
  """
  experiment, scorer = evaluation.experiment, evaluation.scorer
  config, section = experiment.config, experiment.config.evaluate
  images = None
  if section.save_npz:
    side, channels = config.data.image_size, networks.image_channels(config)
    shape = evaluation.count, side, side, channels
    labels = None
    if not experiment.is_text:
      labels = scorer.conditions.of(evaluation.count, _SEED)
    images = SampleFile(directory, shape, labels)
    if not processes.from_first(images.is_begun):
      scores.forget(directory)
  # First: what is wrong with real images is told before any is generated.
  real = _real_features(evaluation)

  def watched() -> np.ndarray:
    count = min(
      evaluation.count, _WATCHED_BATCHES * evaluation.generator.batch_size
    )
    conditions = scorer.conditions
    return conditions.on_hosts(conditions.of(count, _SEED + 1))

  tally = scorer.tally(
    evaluation.generator_for(
      schedule, section.num_buckets, watched, 'evaluate/buckets'
    ),
    schedule,
    num_samples=evaluation.count,
    seed=_SEED,
    directory=directory,
    num_kept=section.precision_recall,
    observers=() if clip is None else (clip,),
    images=images,
  )
  row: dict[str, Any] = {
    'name': schedule.name,
    'label': schedule.label,
    'note': schedule.note,
    'num_steps': schedule.num_steps,
    'figures': processes.from_first(lambda: _figures(scorer, tally, real)),
  }
  if images is not None:
    processes.from_first(images.finish)
    row['samples'] = images.path.name
  return row


def _figures(
  scorer: scores.Scorer, tally: SampleTally, real: np.ndarray | None
) -> dict[str, float]:
  result = {**scorer.figures(tally), **tally.means()}
  if real is not None:
    # The measure depends on the sizes of both sets: equal ones.
    size = min(len(real), len(tally.kept))
    shares = precision_recall(real[:size], tally.kept[:size], _NEIGHBOURS)
    name = f'{scorer.network.name}_{size}'
    result[f'precision_{name}'] = shares.precision
    result[f'recall_{name}'] = shares.recall
  return result


def _real_features(evaluation: Evaluation) -> np.ndarray | None:
  """Features of real images, float32[n, d], in process 0; made once."""
  experiment = evaluation.experiment
  count = experiment.config.evaluate.precision_recall
  if not count:
    return None
  split = experiment.config.evaluate.reference_split
  path = experiment.workdir / 'evaluate' / f'real-{split}.npz'
  if not processes.from_first(path.is_file):
    network = evaluation.scorer.network
    found = real_images.some_features(experiment, network, split, count)
    buffer = io.BytesIO()
    # Unlike a .npy file it has checksums.
    np.savez(buffer, features=found)
    files.write_bytes(path, buffer.getvalue())
  return None if processes.process_index() else weights.read(path)['features']


def _about(
  evaluation: Evaluation, clip: clip_score.ClipScore | None
) -> dict[str, Any]:
  """What a reader of the figures has to know."""
  config = evaluation.experiment.config
  section = config.evaluate
  benchmark = BENCHMARKS.get(section.benchmark)
  settings: dict[str, Any] = {
    'samples': evaluation.count,
    'conditions': (
      'validation captions' if evaluation.experiment.is_text else section.labels
    ),
    'image size': config.data.image_size,
    'rounding': section.rounding,
    'seed': config.seed,
    'statistics': evaluation.scorer.reference.description,
    'features': evaluation.scorer.network.description(),
    'weights': _weights(evaluation.experiment),
  }
  if clip is not None:
    settings['CLIP'] = clip.description
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


def _weights(experiment: Experiment) -> dict[str, str]:
  """Where each network is from: the hash of a converted file, or here."""
  result = {}
  for name in ('tokenizer', 'nat', 'policy'):
    result[name] = 'trained in this workdir'
    if experiment.is_converted(name):
      source = published_weights.source_of(experiment.config[name].init_from)
      given = ', '.join(f'{file} {digest}' for file, digest in source.items())
      result[name] = given or 'converted, hash unknown'
    elif name == 'policy':
      result[name] += f', the {experiment.config.policy.iterate} iterate'
  return result
