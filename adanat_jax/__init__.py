"""AdaNAT in JAX: schedules, learned and hand-made, for masked image generators.

  import adanat_jax
  generator = adanat_jax.load('runs/digits')
  generator.sample(['even', 'odd'], num_steps=4, seed=0).save_grid('digits.png')

Names are imported when they are first asked for, because `adanat_jax.main` must
set JAX up before anything else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from adanat_jax import types
  from adanat_jax.decoding import schedules
  from adanat_jax.decoding.schedules import Schedule
  from adanat_jax.decoding.step import StepOptions
  from adanat_jax.errors import UserError
  from adanat_jax.experiment import config
  from adanat_jax.experiment.adversarial_reward import load_discriminator
  from adanat_jax.experiment.experiment import Experiment
  from adanat_jax.experiment.loading import load
  from adanat_jax.problems.decode import decode
  from adanat_jax.problems.learn import learn
  from adanat_jax.problems.problem import Problem
  from adanat_jax.sampling.best_of import best_of
  from adanat_jax.sampling.calibration import calibrate
  from adanat_jax.sampling.generator import Generator
  from adanat_jax.sampling.likelihood import log_likelihood
  from adanat_jax.sampling.program import Samples
  from adanat_jax.types import PolicyValues

__version__ = '0.2.0.dev0'

__all__ = [
  'Experiment',
  'Generator',
  'PolicyValues',
  'Problem',
  'Samples',
  'Schedule',
  'StepOptions',
  'UserError',
  'best_of',
  'calibrate',
  'config',
  'decode',
  'learn',
  'load',
  'load_discriminator',
  'log_likelihood',
  'schedules',
  'types',
]

# Where each name is; without a name behind the colon it is the module itself.
_PLACES = {
  'Experiment': 'experiment.experiment:Experiment',
  'Generator': 'sampling.generator:Generator',
  'PolicyValues': 'types:PolicyValues',
  'Problem': 'problems.problem:Problem',
  'Samples': 'sampling.program:Samples',
  'Schedule': 'decoding.schedules:Schedule',
  'StepOptions': 'decoding.step:StepOptions',
  'UserError': 'errors:UserError',
  'best_of': 'sampling.best_of:best_of',
  'calibrate': 'sampling.calibration:calibrate',
  # Config files import it.
  'config': 'experiment.config:',
  'decode': 'problems.decode:decode',
  'learn': 'problems.learn:learn',
  'load': 'experiment.loading:load',
  'load_discriminator': 'experiment.adversarial_reward:load_discriminator',
  'log_likelihood': 'sampling.likelihood:log_likelihood',
  'schedules': 'decoding.schedules:',
  'types': 'types:',
}


def __getattr__(name: str) -> Any:
  """Imports one of the public names."""
  if name not in _PLACES:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module_name, _, attribute = _PLACES[name].partition(':')
  module = importlib.import_module(f'{__name__}.{module_name}')
  return getattr(module, attribute) if attribute else module


def __dir__() -> list[str]:
  """The public names, for completion."""
  return __all__
