"""Every schedule on a small law that is known exactly; see docs/schedules.md.

  adanat --config=laboratory

prints what each does to the law, and draws it, in under a minute. No network is
trained, and no data are read.
"""

import ml_collections

from adanat_jax import schedules


def get_config() -> ml_collections.ConfigDict:
  """The configuration; every field can be overridden by a flag."""
  config = ml_collections.ConfigDict()
  config.mode = 'laboratory'
  # Of what cannot be summed and has to be drawn.
  config.seed = 0
  config.data = data = ml_collections.ConfigDict()
  # Not read: every config has it.
  data.source = 'digits'

  config.laboratory = laboratory = ml_collections.ConfigDict()
  # Schedules of decoding/schedules.py, with parameters or without, and yours,
  # as in evaluate.schedules. They are decoded unguided: there is no condition.
  # One that has a single number of steps is measured at that alone.
  laboratory.schedules = (
    *schedules.SCHEDULES,
    'maskgit(curve="uniform", masking_temperature=0.0)',
    'maskgit(curve="uniform", masking_temperature=1.0)',
    'maskgit(curve="uniform")',
    'maskgit(curve="uniform", masking_temperature=1000.0)',
    'max_prob(curve="uniform")',
    'entropy(curve="uniform")',
    'random(curve="uniform")',
    'halton(final_sharpness=1.0)',
    'halton(final_sharpness=1.0, randomize=False)',
    'entropy_bound(bound=0.4)',
    'entropy_bound(bound=0.8)',
    'entropy_bound(bound=0.9)',
    'threshold(bound=0.6)',
  )
  laboratory.num_steps = (1, 2, 3, 4, 6, 8)
  # Grids that are decoded where a law cannot be summed.
  laboratory.draws = 20_000
  # Of the law: how much neighbours like to be equal, and the standard deviation
  # of what each cell prefers.
  laboratory.coupling = 1.6
  laboratory.field = 0.5
  return config
