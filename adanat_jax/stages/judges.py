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
    yield from experiment.larger_than_images(
      f'{judge}.max_shift', f'{judge}.cutout'
    )


def run(experiment: Experiment) -> None:
  """Trains `judges/measure` and `judges/reward`, each until `num_steps`."""
  config = experiment.config
  check_config(experiment)
  measure = networks.measuring_module(config)
  reward = networks.reward_module(config)

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
  experiment: Experiment, judge: str, module: Any, apply: classifier.Apply
) -> None:
  """Trains one classifier unless it is complete."""
  name = f'judges/{judge}'
  if experiment.is_complete(name):
    return
  section = experiment.config.judges[judge]
  data = digits.load(experiment.config.data.image_size)
  init_key, step_key = jax.random.split(experiment.key(name))
  optimizer = optax.adam(
    optax.cosine_decay_schedule(section.learning_rate, section.num_steps)
  )

  def initial(frozen: Any) -> classifier.ClassifierState:
    image = jnp.zeros((1, *data.train_images.shape[1:]))
    params = module.init(init_key, image)['params']
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

  examples = {'images': data.train_images, 'labels': data.train_labels}
  fit.fit(
    experiment,
    name,
    initial=initial,
    train_step=lambda frozen, *arguments: train_step(*arguments),
    batch_at=fit.Batches(
      experiment, name, ArrayExamples(examples), (section.batch_size,)
    ),
    num_steps=section.num_steps,
    final_figures=figures,
  )
