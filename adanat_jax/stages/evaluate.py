"""Stage `evaluate`: samples with schedules and measures the images.

`config.evaluate.protocol` says how: by the study, or as the published
benchmarks do. The study asks for classes; images of captions are measured by
the other protocol.
"""

from __future__ import annotations

from types import ModuleType

from adanat_jax.experiment.experiment import Experiment
from adanat_jax.stages import evaluate_published, evaluate_study

_PROTOCOLS = {'study': evaluate_study, 'published': evaluate_published}


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for values with which nothing can be measured."""
  experiment.check(_problems, reads=('evaluate.protocol',))


def _problems(experiment: Experiment) -> None:
  _protocol(experiment).check_config(experiment)


def _protocol(experiment: Experiment) -> ModuleType:
  name = experiment.config.evaluate.protocol
  return _PROTOCOLS['published' if experiment.is_text else name]


def run(experiment: Experiment) -> None:
  """Measures in `evaluate/` everything that the protocol asks for."""
  check_config(experiment)
  _protocol(experiment).run(experiment)
