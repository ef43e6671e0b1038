"""Stage `sample`: images of chosen classes as PNG files.

python -m adanat_jax.main --config=configs/digits.py --workdir=runs/digits \
    --config.mode=sample --config.sample.classes=0,1 --config.sample.seed=7
"""

from __future__ import annotations

from collections.abc import Iterator
import time

import jax
import numpy as np

from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  adversarial_reward,
  named_schedules,
  policies,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.report import pictures
from adanat_jax.runtime import files, processes
from adanat_jax.sampling import best_of, program, requests
from adanat_jax.sampling.generator import Generator

# Images in the grid, the first ones: it should open in a viewer.
_MOST_SHOWN = 1024
# Fields and groups that must be there.
READS = ('data', 'tokenizer', 'nat', 'mesh', 'sample', 'evaluate.batch_size')


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be sampled."""
  experiment.check(
    _problems, problems_of_policy, problems_of_draws, reads=READS
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says which class does not exist, or that there is no caption."""
  section = experiment.config.sample
  # Another generator has classes of its own.
  if experiment.config.get('generator'):
    return
  if experiment.is_text and not section.captions:
    yield (
      'config.sample.captions is empty; give what the images are to show, such'
      " as 'a red square','two cats'"
    )
  if not experiment.is_text:
    last = experiment.num_classes - 1
    # Without a workdir none are counted, and `run` says what is missing.
    if last >= 0 and max(section.classes) > last:
      yield (
        f'config.sample.classes={section.classes} is not allowed: give classes'
        f' from 0 to {last}'
      )


def problems_of_policy(experiment: Experiment) -> Iterator[str]:
  """Says which schedule does not exist."""
  name = policy_of(experiment)
  if isinstance(name, str):
    yield from policies.problems(experiment)
    if not experiment.config.get('generator'):
      yield from policies.problems_of_names(experiment, [name])


def problems_of_draws(experiment: Experiment) -> None:
  """Raises UserError if there is no discriminator to choose among draws."""
  # That of another generator is looked for when it is loaded.
  if _num_draws(experiment) > 1 and not experiment.config.get('generator'):
    adversarial_reward.discriminator_stage(experiment)


def _num_draws(experiment: Experiment) -> int:
  # Configs of older versions have no such field.
  return experiment.config.sample.get('num_draws', 1)


def drawing_generator(experiment: Experiment) -> Generator:
  """The generator of `config.generator`, or of this workdir.

  Where `config.sample.num_draws` says so it takes the best of several draws.

  Raises:
    UserError: if there is none, or no discriminator to choose.
  """
  if (num_draws := _num_draws(experiment)) == 1:
    return experiment.drawing_generator()
  score = adversarial_reward.drawing_discriminator(experiment)
  return best_of.best_of(experiment.drawing_generator(), score, num_draws)


def run(experiment: Experiment) -> None:
  """Writes `grid.png` and the single images; times more rounds if asked to."""
  check_config(experiment)
  section = experiment.config.sample
  generator = drawing_generator(experiment)
  policy = policy_of(experiment, generator)
  names, labels = conditions_of(experiment, generator)
  if section.num_buckets:
    generator = generator.with_buckets(
      policy,
      labels,
      # Samples have the numbers from 0 on.
      jax.random.fold_in(jax.random.key(section.seed), 2**32 - 1),
      num_steps=section.num_steps,
      num_buckets=section.num_buckets,
    )
  sample = lambda: generator.sample_batches(
    labels, section.num_steps, section.seed, policy
  )
  output = files.make_directory(section.output or experiment.workdir / 'sample')
  shown: list[np.ndarray] = []
  done = 0
  with program.progress_bar(len(labels), True, None) as advance:
    for samples in sample():
      for image in samples.images:
        pictures.save_image(output / f'{done:05d}-{names[done]}.png', image)
        done += 1
      shown += [*samples.images[: _MOST_SHOWN - len(shown)]]
      advance(done, samples)
  columns = min(section.images_per_class, 16)
  images = np.stack(shown)
  scale = max(1, 64 // images.shape[1])
  pictures.save_grid(output / 'grid.png', images, columns, scale)
  speed = ''
  if rounds := section.timing_rounds:
    start = time.perf_counter()
    for _ in range(rounds):
      for _ in sample():
        pass
    seconds = (time.perf_counter() - start) / rounds
    speed = f'; {done / seconds:.1f} images/s'
  processes.say(
    f'sample: {done} images in {output}, grid in {output / "grid.png"}{speed}'
  )


def conditions_of(
  experiment: Experiment, generator: Generator
) -> tuple[list[str], np.ndarray]:
  """The conditions to sample, and what names them in the files.

  Returns:
    Names, and int32[B] class ids or, for texts, float32[B, L, C] states.
  """
  section = experiment.config.sample
  count = section.images_per_class
  captions = section.get('captions')
  if captions and generator.encode_captions is not None:
    states = generator.encode_captions(captions)
    names = [f'text{i}' for i in range(len(captions))]
    return np.repeat(names, count).tolist(), np.repeat(states, count, axis=0)
  classes = np.repeat(np.asarray(section.classes, np.int32), count)
  return [f'class{label}' for label in classes], classes


def policy_of(
  experiment: Experiment, generator: Generator | None = None
) -> str | Schedule:
  """What decides: a generator's by name, else as `config.sample` names it.

  Raises:
    UserError: for a schedule or a file that is none.
  """
  section = experiment.config.sample
  name = section.policy
  if name == 'hand-made' or requests.learned_options(name) is not None:
    return name
  if section.policy != 'table':
    if generator is None:
      return experiment.schedule(section.policy, section.num_steps)
    # It may be another than the config's.
    return named_schedules.make(
      section.policy,
      section.num_steps,
      generator.nat.num_tokens,
      requests.grid(generator)[1],
    )
  if not section.table:
    raise UserError(
      'config.sample.policy=table needs config.sample.table, a JSON file'
    )
  try:
    return named_schedules.read_file(section.table)
  except UserError as error:
    raise UserError(f'config.sample.table={error}') from error
