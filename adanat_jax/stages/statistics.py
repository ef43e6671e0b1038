"""Stage `statistics`: the statistics of real images, for Fréchet distances.

  python -m adanat_jax.main --config=configs/image_folder.py --workdir=RUN \
      --config.mode=statistics --config.data.path=photos

writes `statistics/train-inception.npz`; `measuring.reference_statistics` says
what is in it.
"""

from __future__ import annotations

import functools
import pathlib

from adanat_jax.experiment import datasets
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import features, reference_statistics


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for statistics that cannot be made."""
  experiment.check(
    functools.partial(features.problems, needs_reference=False),
    datasets.problems,
    reads=('data', 'evaluate', 'mesh', 'statistics'),
  )


def run(experiment: Experiment) -> None:
  """Writes the statistics of the split `config.statistics.split`."""
  config = experiment.config
  check_config(experiment)
  split = config.statistics.split
  path = reference_statistics.path_of(experiment, split)
  if config.statistics.output:
    path = pathlib.Path(config.statistics.output)
  network = features.load(experiment)
  reference_statistics.make(experiment, network, split, path)
