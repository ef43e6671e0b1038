"""Stage `evaluate` by the published protocol: policies against real images.

1. Each policy makes `evaluate.num_samples` images, of classes that are drawn
   or of the validation captions; nothing of them is kept but counts.
2. Fréchet distance and inception score; against real images one by one
   precision and recall, density and coverage, the kernel distance; with
   captions a CLIP score, or how well they match by networks trained here.
3. `evaluate/results.json`, and `results.md` with what others published.

A run that was killed goes on where it was, within a policy too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import io
import pathlib
from typing import Any

import numpy as np

from adanat_jax.convert import files as weights
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import config as config_lib, datasets, policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import (
  clip_score,
  features,
  published_weights,
  real_images,
  scores,
  text_match,
)
from adanat_jax.measuring.evaluation import Evaluation
from adanat_jax.measuring.scores import SampleFile
from adanat_jax.metrics import kernel_distance, precision_recall
from adanat_jax.metrics.tally import SampleTally
from adanat_jax.report import published_figures
from adanat_jax.report.published_figures import BENCHMARKS
from adanat_jax.runtime import files, processes
from adanat_jax.runtime.journal import (
  RESULTS_FILE,
  Ledger,
  has_results,
  mark_complete,
  warn,
)
from adanat_jax.sampling import requests

# One set of samples: all policies are measured with the same noise.
_SEED = 0
# Batches of other samples that a policy is watched on for its buckets.
_WATCHED_BATCHES = 8
# Measures that compare images one by one, by the field that says how many, and
# the fewest real ones that each can do with.
_COMPARED: dict[str, tuple[int, Callable[..., Any]]] = {
  'precision_recall': (4, precision_recall.precision_recall),
  'density_coverage': (6, precision_recall.density_coverage),
  'kernel_distance': (4, kernel_distance.kernel_distance),
}


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
  if _compared(experiment):
    yield from datasets.problems(experiment)
  yield from policies.problems_of_names(experiment, _names(experiment))
  for num_steps in config.policy.num_steps:
    for name in _names(experiment):
      if requests.learned_options(name) is None:
        _hand_made(experiment, name, num_steps)


def run(experiment: Experiment) -> None:
  """Measures every policy of the config."""
  check_config(experiment)
  directory = experiment.workdir / 'evaluate'
  if has_results(directory):
    return
  evaluation = Evaluation(experiment)
  # Before anything that takes long: a policy may not be there.
  found = schedules(evaluation)
  observers = _of_captions(evaluation)
  warnings = evaluation.scorer.warnings(evaluation.count)
  warn('evaluate', warnings)
  told = [*experiment.warnings(), *(('evaluate', text) for text in warnings)]
  ledger = Ledger(directory / 'ledger.jsonl')
  rows = []
  for schedule in found:
    name = f'{schedule.name}-T{schedule.num_steps}'
    processes.say(f'evaluate: {schedule.label}, {schedule.num_steps} steps')
    row = ledger.get(
      name,
      functools.partial(
        _row, evaluation, observers, schedule, directory / name
      ),
    )
    scores.forget(directory / name)
    rows.append(row)
    processes.say(
      'evaluate: '
      + ', '.join(f'{k} {v:.4g}' for k, v in row['figures'].items())
    )
  results = {
    **_about(evaluation, observers),
    'rows': rows,
    # Where results are made again, both know those of this stage.
    'warnings': [f'{stage}: {text}' for stage, text in dict.fromkeys(told)],
  }
  files.write_json(directory / RESULTS_FILE, results)
  files.write_text(directory / 'results.md', published_figures.compose(results))
  mark_complete(directory, len(rows), {}, warnings=warnings)


def schedules(evaluation: Evaluation) -> list[Schedule]:
  """Every policy at every number of steps, in the order of results.

  Where captions of one's own are studied, AdaNAT's hand-made schedule comes
  with them, and hand-made ones that are never guided come at twice the steps,
  too, which are as many passes, if they exist for as many.

  Raises:
    UserError: if a policy has not been learned.
  """
  experiment = evaluation.experiment
  found = []
  for num_steps in sorted(set(experiment.config.policy.num_steps)):
    for name in _names(experiment):
      is_learned = requests.learned_options(name) is not None
      if is_learned and num_steps not in evaluation.generator.agents:
        raise UserError(
          f'{experiment.workdir} holds no learned policy for'
          f' {num_steps} steps: name converted weights by'
          ' config.policy.init_from, leave learned out of'
          ' config.evaluate.policies, or first run:'
          f' {config_lib.rerun("--config.mode=policy")}'
        )
      if is_learned:
        found.append(evaluation.generator.schedule(name, num_steps))
      else:
        found += _hand_made(experiment, name, num_steps)
  # With 4 and 8 steps a schedule comes twice.
  by_name = {(entry.name, entry.num_steps): entry for entry in found}
  return [*by_name.values()]


def _names(experiment: Experiment) -> list[str]:
  """The policies by the config's names."""
  names = [*experiment.config.evaluate.policies]
  if _is_studied(experiment) and 'residual' not in names:
    names.append('residual')
  return names


def _hand_made(
  experiment: Experiment, name: str, num_steps: int
) -> list[Schedule]:
  """What needs no training, and its partner at as many passes; see above."""
  make = functools.partial(experiment.schedule, name)
  found = [make(num_steps=num_steps)]
  if _is_studied(experiment) and found[0].guided is False:
    # A table in a file, and some published ones, have one number of steps.
    with contextlib.suppress(UserError):
      found.append(make(num_steps=2 * num_steps))
  return found


def _is_studied(experiment: Experiment) -> bool:
  """Whether captions of one's own are measured."""
  return bool(experiment.config.evaluate.protocol == 'study')


def _of_captions(evaluation: Evaluation) -> dict[str, Any]:
  """What compares images with their captions, by what results call it."""
  experiment = evaluation.experiment
  conditions = evaluation.scorer.conditions
  given = experiment, conditions, conditions.of(evaluation.count, _SEED)
  found: dict[str, Any] = {}
  if clip_score.is_wanted(experiment):
    found['CLIP'] = clip_score.ClipScore(*given)
  elif experiment.is_text:
    processes.say(
      'evaluate: no CLIP score: config.evaluate.clip.image.init_from and'
      ' config.evaluate.clip.text.init_from name no CLIP (docs/weights.md)'
    )
  if text_match.is_wanted(experiment):
    found['text match'] = text_match.TextMatch(*given)
  return found


def _row(
  evaluation: Evaluation,
  observers: Mapping[str, Any],
  schedule: Schedule,
  directory: pathlib.Path,
) -> dict[str, Any]:
  """Samples of a schedule, measured.

  Args:
    evaluation: the generator, and what measures.
    observers: what else is measured of each image.
    schedule: what decodes.
    directory: keeps what was counted so far, and the samples if asked for.
  """
  experiment, scorer = evaluation.experiment, evaluation.scorer
  section = experiment.config.evaluate
  images = None
  if section.save_npz:
    shape = evaluation.count, *experiment.image_shape
    labels = None
    if not experiment.is_text:
      labels = scorer.conditions.of(evaluation.count, _SEED)
    images = SampleFile(directory, shape, labels)
    if not processes.from_first(images.is_begun):
      scores.forget(directory)
  counts = _compared(experiment)
  # First: what is wrong with real images is told before any is generated.
  real = _real_features(evaluation, max(counts.values(), default=0))

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
    num_kept=max(counts.values(), default=0),
    observers=(*observers.values(),),
    images=images,
  )
  row: dict[str, Any] = {
    'name': schedule.name,
    'label': schedule.label,
    'note': schedule.note,
    'num_steps': schedule.num_steps,
    'passes': int(schedule.passes.sum()),
    'figures': processes.from_first(
      lambda: _figures(scorer, tally, real, counts)
    ),
  }
  if images is not None:
    processes.from_first(images.finish)
    row['samples'] = images.path.name
  return row


def _compared(experiment: Experiment) -> dict[str, int]:
  """How many real and generated images each measure compares, if any."""
  section = experiment.config.evaluate
  # A config of an older version has precision and recall alone.
  counts = {name: section.get(name, 0) for name in _COMPARED}
  return {name: count for name, count in counts.items() if count}


def _figures(
  scorer: scores.Scorer,
  tally: SampleTally,
  real: np.ndarray | None,
  counts: Mapping[str, int],
) -> dict[str, float]:
  result = {**scorer.figures(tally), **tally.means()}
  if real is None:
    return result
  for measure, count in counts.items():
    # Most measures depend on the sizes of both sets: equal ones.
    size = min(count, len(real), len(tally.kept))
    _, compare = _COMPARED[measure]
    found = dataclasses.asdict(compare(real[:size], tally.kept[:size]))
    if measure == 'kernel_distance':
      name = scorer.figure_name(measure, size)
      result |= {name: found['mean'], f'{name}_std': found['std']}
    else:
      result |= {scorer.figure_name(n, size): x for n, x in found.items()}
  return result


def _real_features(evaluation: Evaluation, count: int) -> np.ndarray | None:
  """Features of real images, float32[n, d], in process 0; made once.

  None where none are asked for.

  Raises:
    UserError: if there are fewer than a measure can do with.
  """
  experiment = evaluation.experiment
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
  read = lambda: weights.read(path)['features']
  # Every process stops where they are too few.
  number = processes.from_first(lambda: len(read()))
  for name in _compared(experiment):
    fewest, _ = _COMPARED[name]
    if number < fewest:
      raise UserError(
        f'config.data: the {split} split has {number} images;'
        f' config.evaluate.{name} needs at least {fewest}: give 0 for it'
      )
  return None if processes.process_index() else read()


def _about(
  evaluation: Evaluation, observers: Mapping[str, Any]
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
    'image size': evaluation.experiment.image_size,
    'rounding': section.rounding,
    'seed': config.seed,
    'statistics': evaluation.scorer.reference.description,
    'features': evaluation.scorer.network.description(),
    'weights': _weights(evaluation.experiment),
  }
  settings |= {name: found.description for name, found in observers.items()}
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
