"""Stage `judges`: trains two classifiers of the ten digits.

They are kept apart on purpose:

  measure  a convolutional network; evaluation reads its features. Nothing is
           ever optimised against it.
  reward   a vision transformer with another seed and other augmentation; the
           discriminator's heads, the Fréchet reward and the pre-trained reward
           read it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adanat_jax.data import digits
from adanat_jax.data.examples import ArrayExamples
from adanat_jax.experiment import (
  datasets,
  field_rules,
  fit,
  networks,
  reward_network,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import classifier
from adanat_jax.runtime import sharding
from adanat_jax.types import Array


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for classifiers that cannot be trained."""
  experiment.check(
    _problems,
    reward_network.problems_of_sizes,
    reads=('data', 'judges', *field_rules.LOOP),
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why the classifiers cannot be trained."""
  section = experiment.config.data
  if not experiment.is_digits:
    yield (
      f'config.data.source is {section.source}; mode=judges trains networks for'
      ' the digits alone. Name converted weights by'
      ' config.judges.reward.init_from (docs/weights.md)'
    )
    return
  yield from datasets.problems(experiment)
  for judge in ('judges.measure', 'judges.reward'):
    yield from experiment.uneven_batches({f'{judge}.batch_size': 1})
    for name in (f'{judge}.max_shift', f'{judge}.cutout'):
      value = experiment.field(name)
      if value > section.image_size:
        yield (
          f'config.{name}={value} is not allowed: give at most'
          f' config.data.image_size, which is {section.image_size}'
        )


def run(experiment: Experiment) -> None:
  """Trains both classifiers, each until its `num_steps`.

  Args:
    experiment: its workdir gets `judges/measure` and `judges/reward`.

  Raises:
    UserError: for a value that is not allowed.
  """
  config = experiment.config
  check_config(experiment)
  measure, reward = (
    networks.measuring_module(config),
    networks.reward_module(config),
  )

  def apply_measure(params: Any, images: Array, key: Array | None) -> Array:
    rngs = None if key is None else {'dropout': key}
    train = key is not None
    return measure.apply({'params': params}, images, train, rngs=rngs)[1]

  def apply_reward(params: Any, images: Array, key: Array | None) -> Array:
    del key
    variables = {'params': sharding.whole(params)}
    return reward.apply(variables, networks.centred(images)).outputs

  _train(experiment, 'measure', measure, apply_measure)
  _train(experiment, 'reward', reward, apply_reward)


def _train(
  experiment: Experiment,
  name: str,
  module: Any,
  apply: classifier.Apply,
) -> None:
  """Trains one classifier unless it is complete."""
  config = experiment.config
  if experiment.is_complete(f'judges/{name}'):
    return
  section = config.judges[name]
  data = digits.load(config.data.image_size)
  key = experiment.key(f'judges/{name}')
  init_key, step_key = jax.random.split(key)
  optimizer = optax.adam(
    optax.cosine_decay_schedule(section.learning_rate, section.num_steps)
  )
  image_shape = data.train_images.shape[1:]

  def initial(frozen: Any) -> classifier.ClassifierState:
    params = module.init(init_key, jnp.zeros((1, *image_shape)))['params']
    return classifier.ClassifierState(params, optimizer.init(params))

  train_step = classifier.make_train_step(
    apply,
    optimizer,
    key=step_key,
    max_shift=section.max_shift,
    noise=section.noise,
    cutout=section.cutout,
  )

  def figures(state: classifier.ClassifierState) -> dict[str, float]:
    logits = jax.jit(lambda p, x: apply(p, x, None))(
      state.params, data.test_images
    )
    right = sharding.gather(logits).argmax(-1) == data.test_labels
    return {'test_accuracy': float(right.mean())}

  fit.fit(
    experiment,
    f'judges/{name}',
    initial=initial,
    train_step=lambda frozen, *arguments: train_step(*arguments),
    batch_at=fit.Batches(
      experiment,
      f'judges/{name}',
      ArrayExamples({'images': data.train_images, 'labels': data.train_labels}),
      (section.batch_size,),
    ),
    num_steps=section.num_steps,
    final_figures=figures,
  )
