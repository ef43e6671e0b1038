"""What a decode did at each step, for pages and pictures that show it."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import guidance
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.decoding.step import effective_temperature
from adanat_jax.report import page
from adanat_jax.sampling import best_of
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.program import Samples
from adanat_jax.sampling.requests import AnyPolicy, Labels


def make(
  generator: Generator, schedule: Schedule, samples: Samples
) -> page.Replay:
  """The replay of recorded samples, which started from empty canvases.

  What is still masked at the end counts as revealed by the last step.
  """
  trajectory, options = samples.trajectory, schedule.options
  assert trajectory is not None  # The caller asked for it.
  masked = np.array(trajectory.tokens == generator.nat.codebook_size)
  masked[-1] = False
  before = np.concatenate([np.ones_like(masked[:1]), masked[:-1]])
  needed = before.any(-1) | (options.revisit != 'never')
  passes = np.cumsum(schedule.passes[:, None] * needed, axis=0)
  sampled = np.asarray(trajectory.sampled)
  images = generator.decode(sampled.reshape(-1, sampled.shape[-1]))
  values = {
    **trajectory.values.by_name(),
    'effective_temperature': effective_temperature(trajectory.values, options),
  }
  guided = np.array(guidance.each_step(schedule.guided, schedule.num_steps))
  scale = jnp.multiply(guided[:, None], values['guidance_scale'])
  values['guidance_scale'] = scale
  if options.is_adaptive:
    values = {'bound': values.pop('mask_ratio'), **values}
  return page.Replay(
    label=schedule.label or schedule.name,
    images=images.reshape(*sampled.shape[:2], *images.shape[1:]),
    masked=masked,
    values={
      name.replace('_', ' '): np.where(needed, rows, np.nan)
      for name, rows in values.items()
    },
    # By an adaptive rule a full batch takes no more steps.
    passes=np.minimum(best_of.draws_of(generator) * passes, samples.passes),
  )


def make_page(
  generator: Generator,
  labels: Labels,
  num_steps: int,
  seed: int,
  policies: Sequence[str | AnyPolicy],
  *,
  is_finished: bool = False,
) -> str:
  """Makes a page, in HTML, that plays decodes by several policies.

  Args:
    generator: what decodes, each time from the same noise.
    labels: see `Generator.sample`, as for the next two; a dozen fit a screen.
    num_steps: T.
    seed: of the noise.
    policies: each as `policy` of `Generator.sample`.
    is_finished: whether it opens with the last step.

  Raises:
    UserError: for what this generator cannot do.
  """
  replays = []
  for policy in policies:
    schedule = generator.schedule(policy, num_steps, len(labels))
    samples = generator.sample(labels, num_steps, seed, schedule, record=True)
    replays.append(make(generator, schedule, samples))
  title = f'Decoding in {num_steps} steps'
  names = [_name(generator, label) for label in labels]
  return page.make(replays, names, title, is_finished=is_finished)


def _name(generator: Generator, label: str | int | np.ndarray) -> str:
  """What a sample was asked to be: a class, a caption, or its states."""
  if isinstance(label, str):
    return label
  if np.ndim(label):
    return 'a caption'
  names = generator.class_names
  return names[int(label)] if names else f'class {label}'
