"""What a decode did at each step, for pages and pictures that show it."""

from __future__ import annotations

import numpy as np

from adanat_jax.decoding.schedules import Schedule
from adanat_jax.decoding.step import effective_temperature
from adanat_jax.report.page import Replay
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.program import Samples


def make(generator: Generator, schedule: Schedule, samples: Samples) -> Replay:
  """The replay of recorded samples, which started from empty canvases.

  What is still masked at the end counts as revealed by the last step.
  """
  trajectory, options = samples.trajectory, schedule.options
  assert trajectory is not None  # The caller asked for it.
  masked = np.array(trajectory.tokens == generator.nat.codebook_size)
  masked[-1] = False
  before = np.concatenate([np.ones_like(masked[:1]), masked[:-1]])
  needed = before.any(-1) | (options.revisit != 'never')
  passes = np.cumsum((1 + schedule.guided) * needed, axis=0)
  sampled = np.asarray(trajectory.sampled)
  images = generator.decode(sampled.reshape(-1, sampled.shape[-1]))
  values = {
    **trajectory.values.by_name(),
    'effective_temperature': effective_temperature(trajectory.values, options),
  }
  if not schedule.guided:
    values['guidance_scale'] = 0 * values['guidance_scale']
  if options.is_adaptive:
    values = {'bound': values.pop('mask_ratio'), **values}
  return Replay(
    label=schedule.label or schedule.name,
    images=images.reshape(*sampled.shape[:2], *images.shape[1:]),
    masked=masked,
    values={
      name.replace('_', ' '): np.where(needed, rows, np.nan)
      for name, rows in values.items()
    },
    # By an adaptive rule a full batch takes no more steps.
    passes=np.minimum(passes, samples.passes),
  )
