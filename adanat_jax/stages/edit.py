"""Stage `edit`: a part of a real picture drawn anew, as PNG files.

adanat --config=digits --config.mode=edit --config.generator=digits \
    --config.edit.image=photo.png --config.edit.mask=mask.png \
    --config.edit.labels=odd
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import re
from typing import Any

import numpy as np
from PIL import Image

from adanat_jax.data import images as images_lib
from adanat_jax.errors import UserError
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.report import pictures
from adanat_jax.runtime import files, processes
from adanat_jax.sampling import editing, requests
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.requests import SamplingOptions
from adanat_jax.stages import sample

# The fields of which one says what is drawn anew.
_WAYS = ('mask', 'box', 'sides', 'strength')


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be edited."""
  experiment.check(
    *(_problems, sample.problems_of_policy, sample.problems_of_draws),
    reads=(*sample.READS, 'edit'),
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says what is not given, or twice."""
  section = experiment.config.edit
  if not section.image:
    yield 'config.edit.image is empty; give a picture, such as photo.png'
  if not section.labels:
    yield (
      'config.edit.labels is empty; give what the result shows: class ids or'
      ' names, or captions'
    )
  given = [f'config.edit.{way}' for way in _WAYS if section[way]]
  if len(given) != 1:
    yield (
      'what is drawn anew is said by one of'
      f' {", ".join(f"config.edit.{way}" for way in _WAYS)}; given are'
      f' {" and ".join(given) or "none"}'
    )


def run(experiment: Experiment) -> None:
  """Writes the results, and `grid.png`: the picture before and after."""
  check_config(experiment)
  section, sampling = experiment.config.edit, experiment.config.sample
  generator = sample.drawing_generator(experiment)
  options: SamplingOptions = {
    'num_steps': sampling.num_steps,
    'seed': sampling.seed,
    'policy': sample.policy_of(experiment, generator),
  }
  output = files.make_directory(section.output or experiment.workdir / 'edit')
  asked = _labels(section.labels, generator)
  count = sampling.images_per_class
  labels = [label for label in asked for _ in range(count)]
  before = _before(experiment, generator)
  if section.strength:
    shown = before
    samples = generator.variations(before, section.strength, labels, **options)
  else:
    kept = before
    if section.sides:
      kept, mask = editing.moved(generator, before, section.sides)
    elif section.box:
      mask = editing.box_mask(generator, section.box)
    else:
      mask = _mask(experiment, generator)
    shown = np.where(mask[..., None], np.float32(0.5), kept)
    samples = generator.inpaint(
      kept, mask, labels, border=section.border, **options
    )
  for index, (label, image) in enumerate(
    zip(labels, samples.images, strict=True)
  ):
    name = re.sub(r'[^\w.-]+', '_', str(label))[:40]
    pictures.save_image(output / f'{index:05d}-{name}.png', image)
  rows = samples.images.reshape(len(asked), count, *generator.image_shape)
  pictures.save_class_grid(
    output / 'grid.png',
    [
      (str(label)[:40], [before, shown, results])
      for label, results in zip(asked, rows, strict=True)
    ],
    ['before', 'kept', 'after'],
    scale=max(1, 64 // generator.image_shape[0]),
  )
  processes.say(
    f'edit: {len(labels)} pictures in {output}, before and after in'
    f' {output / "grid.png"}'
  )


def _labels(given: tuple[str | int, ...], generator: Generator) -> list[Any]:
  """The labels; `even,odd` on a command line is one text and two classes."""
  if generator.null_condition is not None:
    return [*given]
  return [
    part
    for label in given
    for part in (
      [label]
      if isinstance(label, int) or label in generator.class_names
      else label.split(',')
    )
  ]


def _before(experiment: Experiment, generator: Generator) -> np.ndarray:
  """The picture, float32[1, H, W, C]."""
  with _named(experiment, 'image'):
    picture = _open(experiment, 'image', generator)
  with _named(experiment, 'image', '; or give config.edit.fit=True'):
    return requests.pictures(picture, generator.image_shape)


def _mask(experiment: Experiment, generator: Generator) -> np.ndarray:
  """Where the picture of the mask is white, bool[H, W]."""
  with _named(experiment, 'mask'):
    mask = _open(experiment, 'mask', generator)
    return editing.pixel_masks(generator, mask, 1)[0]


def _open(
  experiment: Experiment, field: str, generator: Generator
) -> Image.Image:
  """The picture of a field; of the generator's size and mode if asked for."""
  section = experiment.config.edit
  picture = images_lib.open_picture(files.read_bytes(section[field]))
  if not section.fit:
    return picture
  height, width, channels = generator.image_shape
  pixels = images_lib.center_crop(picture.convert('RGB'), (height, width))
  mode = 'L' if channels == 1 or field == 'mask' else 'RGB'
  return Image.fromarray(pixels).convert(mode)


@contextlib.contextmanager
def _named(
  experiment: Experiment, field: str, hint: str = ''
) -> Iterator[None]:
  """Names the field in the error of a picture, and what helps."""
  try:
    yield
  except (images_lib.CorruptImageError, UserError) as error:
    path = experiment.config.edit[field]
    raise UserError(f'config.edit.{field}={path}: {error}{hint}') from error
