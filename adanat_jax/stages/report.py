"""Stage `report`: the pictures and the text that an evaluation comes to.

Everything is made again from `evaluate/results.json`, the metrics of the
trainings and the trained networks, so a report can be redrawn at any time.
`report.md` is written last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import pathlib
import shlex
from typing import Any

import numpy as np

from adanat_jax.experiment import config as config_lib, policies
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import scores
from adanat_jax.measuring.evaluation import Evaluation
from adanat_jax.report import (
  document,
  page,
  pictures,
  plots,
  results as reading,
)
from adanat_jax.report.document import Picture
from adanat_jax.runtime import files, metric_writer, processes
from adanat_jax.runtime.journal import read_complete, read_results
from adanat_jax.sampling import program, replay
from adanat_jax.stages import evaluate_published, evaluate_study

# Roles whose samples are shown side by side.
SHOWN = ('hand-made', 'tuned', 'non-adaptive', 'adaptive', 'shared')
_WATCHED = 12  # samples of the page, at least
# Of the picture of samples: images a method, classes, and pixels of an image.
_MOST_SAMPLES = 480
_MOST_CLASSES = 10
_SIDE = 48
# Captions among which distinct ones are looked for.
_LOOKED_AT = 200
_PAGE = 'Decoding step by step'


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for fields that are missing or not allowed."""
  experiment.check(_problems, reads=('data', 'report', 'evaluate.protocol'))


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says that the published protocol has no report."""
  page = experiment.workdir / 'evaluate' / 'results.md'
  if experiment.config.evaluate.protocol != 'study':
    yield (
      'config.mode=report is of config.evaluate.protocol=study; what the'
      f' published one measured is in {page}'
    )


def run(experiment: Experiment) -> None:
  """Writes `report/report.md`, `report/results.json` and the pictures."""
  check_config(experiment)
  experiment.require('evaluate')
  directory = files.make_directory(experiment.workdir / 'report')
  compose: Callable[..., str]
  results: dict[str, Any]
  if experiment.is_text:
    compose = document.compose_captions
    results = read_results(experiment.workdir / 'evaluate', {'rows': [dict]})
    shown = [
      *_tokenizer(experiment, directory),
      *_captioned(experiment, directory),
      *_training_curves(experiment, directory),
    ]
  else:
    compose = document.compose
    results = reading.read(experiment.workdir / 'evaluate')
    shown = [
      *_tokenizer(experiment, directory),
      *_drawn(experiment, directory, results),
      *_plotted(experiment, directory, results),
      *_training_curves(experiment, directory),
    ]
  trained = {}
  for stage in ('tokenizer', 'judges/measure', 'judges/reward', 'nat'):
    if experiment.is_converted(stage.replace('/', '.')):
      continue  # Only a tokenizer would be measured.
    experiment.require(stage)
    trained[stage] = read_complete(experiment.workdir / stage)['figures']
  files.write_json(directory / 'results.json', {**results, 'training': trained})
  text = compose(
    results,
    shown,
    _title(experiment),
    _command(experiment.workdir),
    [f'{stage}: {warning}' for stage, warning in experiment.warnings()],
  )
  files.write_text(directory / 'report.md', text)
  processes.say(f'report: {directory / "report.md"}')


def _title(experiment: Experiment) -> str:
  if experiment.is_digits:
    return 'AdaNAT on handwritten digits'
  return f'AdaNAT on {pathlib.Path(experiment.config.data.path).name}'


def _command(workdir: pathlib.Path) -> str:
  """The command line that makes this workdir from nothing."""
  made_by = config_lib.read_record(workdir)
  source, overrides = made_by.get('source', ''), made_by.get('overrides', {})
  words = ['python', '-m', 'adanat_jax.main', f'--config={source}']
  for name, value in sorted(overrides.items()):
    if name != 'mode':
      # JSON knows no tuples, and the command line no lists.
      given = str(tuple(value) if isinstance(value, list) else value)
      words.append(f'--config.{name}=' + given.replace("'", '"'))
  return shlex.join([*words, f'--workdir={workdir}'])


def _tokenizer(
  experiment: Experiment, directory: pathlib.Path
) -> Iterator[Picture]:
  """What the tokenizer makes of images, if it was trained here."""
  reconstructions = experiment.workdir / 'tokenizer' / 'reconstructions.png'
  if reconstructions.is_file():
    name = reconstructions.name
    files.write_bytes(directory / name, reconstructions.read_bytes())
    caption = 'Held-out images above what the tokenizer makes of their tokens.'
    yield Picture(name, 'The tokenizer', caption)


def _captioned(
  experiment: Experiment, directory: pathlib.Path
) -> Iterator[Picture]:
  """Samples of held-out captions at equal passes, and decodes step by step."""
  config = experiment.config
  evaluation = Evaluation(experiment)
  generator, conditions = evaluation.generator, scores.Conditions(experiment)
  num_revealed = config.report.revealed_samples
  # Distinct ones as far as there are, in the order that evaluation has.
  chosen = conditions.of(max(_LOOKED_AT, num_revealed), 0)
  texts = conditions.captions(chosen)
  first = [i for i, text in enumerate(texts) if text not in texts[:i]]
  rest = [i for i in range(len(texts)) if i not in first]
  chosen = chosen[[*first, *rest][: max(_WATCHED, num_revealed)]]
  captions, states = conditions.captions(chosen), conditions.on_hosts(chosen)
  key = experiment.key('evaluate/report')
  scale = max(1, 2 * _SIDE // experiment.image_shape[0])
  rows: dict[int, list[tuple[str, np.ndarray]]] = {}
  replays = []
  for schedule in evaluate_published.schedules(evaluation):
    num_steps = schedule.num_steps
    passes = int(schedule.passes.sum())
    samples = generator.run(schedule, states, key, record=True)
    label = f'{schedule.label}\n{num_steps} steps'
    rows.setdefault(passes, []).append((label, samples.images))
    replays.append(replay.make(generator, schedule, samples))
    if schedule.name == 'learned':
      name = f'revealed-T{num_steps}.png'
      watched = replays[-1]
      pictures.save_reveal(
        directory / name,
        [
          (captions[i], watched.images[:, i], watched.masked[:, i])
          for i in range(num_revealed)
        ],
      )
      yield Picture(
        name, f'Revealed step by step, T = {num_steps}', _revealed(watched)
      )
  for passes, methods in sorted(rows.items()):
    name = f'samples-{passes}-passes.png'
    pictures.save_captioned(directory / name, methods, captions, scale=scale)
    yield Picture(
      name,
      f'Samples, {passes} passes',
      'Held-out captions, not chosen; every method has the same noise.',
    )
  page.save(directory / 'page.html', replays, captions, _PAGE)


def _revealed(watched: page.Replay) -> str:
  return (
    f'{watched.label}: after each step the image of what was sampled; grey'
    ' cells were masked again. [page.html](page.html) plays all methods side by'
    ' side.'
  )


def _drawn(
  experiment: Experiment, directory: pathlib.Path, results: dict[str, Any]
) -> Iterator[Picture]:
  """Pictures of samples, and of one decode step by step, at each T."""
  config = experiment.config
  evaluation = Evaluation(experiment)
  names = experiment.class_names or tuple(
    f'class {i}' for i in range(experiment.num_classes)
  )
  most = max(1, _MOST_SAMPLES // len(names))
  count = min(config.report.images_per_class, most) * len(names)
  num_revealed = config.report.revealed_samples
  num_watched = max(_WATCHED, num_revealed)
  asked = [names[label] for label in evaluation.labels(num_watched)]
  replays = []
  for num_steps in sorted(set(config.policy.num_steps)):
    rows: list[tuple[str, np.ndarray]] = []
    adaptive: page.Replay | None = None
    grid = next(g for g in results['grid'] if g['num_steps'] == num_steps)
    for method in evaluate_study.methods(evaluation, grid):
      if method.role in SHOWN and method.training in (None, 0):
        schedule = method.schedule
        samples = evaluation.sample(
          schedule, 'report', max(count, num_watched), record=True
        )
        images = samples.images[:count]
        by_class = images.reshape(-1, len(names), *images.shape[1:])
        by_class = np.moveaxis(by_class, 1, 0)[:_MOST_CLASSES]
        rows.append((schedule.label, by_class))
        watched = program.keep(samples, num_watched)
        replays.append(replay.make(evaluation.generator, schedule, watched))
        if method.role in ('adaptive', 'shared'):
          adaptive = adaptive or replays[-1]
    name = f'samples-T{num_steps}.png'
    scale = max(1, _SIDE // experiment.image_shape[0])
    pictures.save_class_grid(
      directory / name, rows, names[:_MOST_CLASSES], scale=scale
    )
    yield Picture(
      name,
      f'Samples, T = {num_steps}',
      'The first images of one seed, not chosen; every method has the same'
      ' noise.',
    )
    if adaptive is not None:
      name = f'revealed-T{num_steps}.png'
      pictures.save_reveal(
        directory / name,
        [
          (f'asked: {asked[i]}', adaptive.images[:, i], adaptive.masked[:, i])
          for i in range(num_revealed)
        ],
      )
      yield Picture(
        name,
        f'Revealed step by step, T = {num_steps}',
        _revealed(adaptive),
      )
  page.save(directory / 'page.html', replays, asked, _PAGE)


def _plotted(
  experiment: Experiment, directory: pathlib.Path, results: dict[str, Any]
) -> Iterator[Picture]:
  """Plots of distances and of learned values."""
  all_num_steps = sorted(set(experiment.config.policy.num_steps))
  for num_steps in all_num_steps:
    entries = [e for e in results['methods'] if e['num_steps'] == num_steps]
    for measure in ('frechet', 'pixel_frechet'):
      name = f'{measure}-T{num_steps}.png'
      plots.save_distance_plot(directory / name, results, num_steps, measure)
      yield Picture(
        name,
        f'{reading.title_of(measure)}, T = {num_steps}',
        'A marker is a training, a tick a sampling seed.',
      )
    learned = [
      e
      for e in entries
      if e['role'] in ('adaptive', 'shared', 'non-adaptive')
      and e['training'] == 0
    ]
    hand_made = [e for e in entries if e['name'] in ('residual', 'tuned')]
    name = f'values-T{num_steps}.png'
    plots.save_values_plot(directory / name, results, learned, hand_made)
    yield Picture(
      name,
      f'What the policies chose, T = {num_steps}',
      'Mean over samples, and one standard deviation; hand-made schedules are'
      ' dashed.',
    )
  if len(all_num_steps) > 1:
    name = 'frechet-over-steps.png'
    plots.save_steps_plot(directory / name, results)
    yield Picture(
      name,
      'Fréchet distance over the number of steps',
      'Trainings of a method are pooled.',
    )


def _training_curves(
  experiment: Experiment, directory: pathlib.Path
) -> Iterator[Picture]:
  """Plots of the policies' trainings."""
  for which in policies.trainings(experiment):
    if not which.adaptive or which.index:
      continue
    rows = metric_writer.read_metrics(
      experiment.workdir / 'policy' / which.name
    )
    for num_steps in which.drawn or (which.num_steps,):
      # A shared policy's iterations have unlike numbers of steps.
      shown = [r for r in rows if r.get('num_steps', num_steps) == num_steps]
      if not shown:
        continue
      title = f'{which.name}, T = {num_steps}' if which.drawn else which.name
      of_steps = f'-at-T{num_steps}' if which.drawn else ''
      name = f'training-{which.name}{of_steps}.png'
      plots.save_training_plot(
        directory / name, shown, plots.POLICY_PANELS, title
      )
      shared = ', shared' if which.drawn else ''
      yield Picture(
        name,
        f'Training curves{shared}, {which.reward} reward, T = {num_steps}',
        'One point an iteration.',
      )
