"""Stage `evaluate`: samples with schedules and measures the images.

`config.evaluate.protocol` says how: by the study of the digits, or as the
published benchmarks do.
"""

from __future__ import annotations

from adanat_jax.experiment.experiment import Experiment
from adanat_jax.stages import evaluate_published, evaluate_study

_PROTOCOLS = {'study': evaluate_study, 'published': evaluate_published}


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be measured."""
  experiment.check(_problems, reads=('evaluate.protocol',))


def _problems(experiment: Experiment) -> None:
  _PROTOCOLS[experiment.config.evaluate.protocol].check_config(experiment)


def run(experiment: Experiment) -> None:
  """Measures in `evaluate/` everything that the protocol asks for."""
  check_config(experiment)
  _PROTOCOLS[experiment.config.evaluate.protocol].run(experiment)
