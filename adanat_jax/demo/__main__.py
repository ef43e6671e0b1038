"""Draws samples of hand-made and learned schedules side by side.

python -m adanat_jax.demo
python -m adanat_jax.demo --generator=runs/digits --output=digits.png
python -m adanat_jax.demo --serve runs/digits
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import sys

import numpy as np

from adanat_jax.errors import UserError
from adanat_jax.experiment import loading
from adanat_jax.report import page, pictures
from adanat_jax.sampling import program, replay
from adanat_jax.sampling.generator import Generator

_COUNT = 16  # images of a class and a schedule
_MOST_CLASSES = 4
_WATCHED = 12  # samples of the page


def draw(generator: Generator, path: pathlib.Path) -> None:
  """Draws MaskGIT's schedule and the learned ones, each with the same noise.

  Beside the picture, a page shows how samples came about.

  Raises:
    UserError: if no policy was learned, or the file cannot be written.
  """
  if not generator.agents or not generator.num_classes:
    raise UserError(
      'the demonstration needs classes and learned policies; this is'
      f' {generator}'
    )
  num_classes = min(generator.num_classes, _MOST_CLASSES)
  names = [*(generator.class_names or map(str, range(num_classes)))]
  names = names[:num_classes]
  labels = np.tile(np.arange(num_classes), _COUNT)
  methods, replays = [], []
  for num_steps in sorted(generator.agents):
    for policy, name in (('maskgit', 'MaskGIT'), ('learned', 'AdaNAT')):
      schedule = generator.schedule(policy, num_steps)
      samples = generator.sample(
        labels, num_steps, policy=schedule, record=True
      )
      images = samples.images.reshape(_COUNT, num_classes, *samples.shape[1:])
      passes = int(samples.passes[0])
      label = f'{name}, {num_steps} steps\n{passes} passes'
      methods.append((label, np.moveaxis(images, 1, 0)))
      watched = program.keep(samples, _WATCHED)
      replays.append(replay.make(generator, schedule, watched))
  pictures.save_class_grid(path, methods, names)
  asked = [names[label] for label in labels[:_WATCHED]]
  page.save(path.with_suffix('.html'), replays, asked, 'Decoding step by step')


def main(argv: Sequence[str] | None = None) -> None:
  """Reads the flags, and draws or serves."""
  parser = argparse.ArgumentParser(
    'python -m adanat_jax.demo', allow_abbrev=False
  )
  parser.add_argument(
    '--generator', default='digits', help='what adanat_jax.load takes'
  )
  parser.add_argument('--output', default='demo.png', help='the picture')
  parser.add_argument(
    '--serve',
    nargs='?',
    const='digits',
    metavar='GENERATOR',
    help='opens the app, for this generator: a server at --host and --port',
  )
  parser.add_argument(
    '--host', default='127.0.0.1', help='0.0.0.0 lets other machines in'
  )
  parser.add_argument('--port', type=int, help='7860, or the next free one')
  given = parser.parse_args(argv)
  path = pathlib.Path(given.output).expanduser()
  try:
    if given.serve:
      from adanat_jax.demo import app

      app.serve(loading.load(given.serve), given.host, given.port)
      return
    draw(loading.load(given.generator), path)
  except UserError as error:
    print('adanat_jax:', error, file=sys.stderr)
    sys.exit(error.status)
  print(
    f'{path.resolve()}: for each number of steps the same noise, above with'
    ' the hand-made schedule and below with the learned one\n'
    f'{path.resolve().with_suffix(".html")}: the same step by step'
  )


if __name__ == '__main__':
  main()
