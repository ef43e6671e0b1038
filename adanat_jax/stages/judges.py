"""Stage `judges`: trains the networks that measure and that reward.

They learn to tell the classes of the pictures of this run, of the digits all
ten, whatever the NAT is asked for; where there are captions, which one is of
which picture, each with a network of words of its own; where there is neither,
that two views of a picture show the same (`config.judges.training`). They are
kept apart on purpose:

  measure  a convolutional network; evaluation reads its features. Nothing is
           ever optimised against it.
  reward   a vision transformer with another seed and other augmentation; the
           discriminator's heads, the Fréchet reward and the pre-trained reward
           read it.

What a published network does is not trained: `judges.reward.init_from` names a
reward network, and `evaluate.network` another one that measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adanat_jax.data import digits, images as images_lib
from adanat_jax.data.examples import ArrayExamples, Examples
from adanat_jax.data.order import epoch_batch
from adanat_jax.experiment import (
  datasets,
  field_rules,
  fit,
  networks,
  reward_network,
  texts,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import classifier, contrast, views
from adanat_jax.learning.augment import Augmentation
from adanat_jax.runtime import sharding
from adanat_jax.types import Array

# Held-out images that a judge is asked about, at most.
_MOST_HELD_OUT = 2000


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for networks that cannot be trained."""
  experiment.check(
    _problems,
    reads=('data', 'judges', 'evaluate', *field_rules.LOOP),
  )


def trained(experiment: Experiment) -> tuple[str, ...]:
  """The judges that no published network stands for."""
  if experiment.config.mode == 'discover':
    read = experiment.config.get('discover', {}).get('image', {})
    wanted = {read.get('network', '')}
    if not reward_network.is_trained(experiment):
      wanted.discard('reward')
    return tuple(sorted(wanted & {'measure', 'reward'}))
  section = experiment.config.evaluate
  # The study has measures of its own.
  measures = section.network == 'measure' or section.protocol == 'study'
  rewards = reward_network.is_trained(experiment)
  return ('measure',) * measures + ('reward',) * rewards


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why the judges cannot be trained."""
  names = trained(experiment)
  if not names:
    return
  yield from datasets.problems(experiment)
  if 'reward' in names:
    yield from reward_network.problems_of_sizes(experiment)
  given, learned = experiment.config.judges.training, experiment.judges_learn
  if given not in ('auto', learned):
    needed = {
      'classes': 'two classes or more',
      'captions': 'captions, config.data.condition=text',
    }
    yield (
      f'config.judges.training={given} needs {needed[given]}; give views or'
      ' auto'
    )
  for name in names:
    judge = f'judges.{name}'
    yield from experiment.uneven_batches({f'{judge}.batch_size': 1})
    yield from experiment.larger_than_images(
      f'{judge}.max_shift', f'{judge}.cutout'
    )


def run(experiment: Experiment) -> None:
  """Trains `judges/measure` and `judges/reward`, each until `num_steps`."""
  check_config(experiment)
  networks_by_name = {'measure': _measure, 'reward': _reward}
  for name in trained(experiment):
    if not experiment.is_complete(f'judges/{name}'):
      _train(experiment, name, *networks_by_name[name](experiment))


def _measure(experiment: Experiment) -> tuple[Any, classifier.Apply]:
  """The measuring network, and its logits or embeddings of images."""
  module = networks.measuring_module(experiment.config)

  def apply(params: Any, images: Array, key: Array | None) -> Array:
    rngs = None if key is None else {'dropout': key}
    train = key is not None
    return module.apply({'params': params}, images, train, rngs=rngs)[1]

  return module, apply


def _reward(experiment: Experiment) -> tuple[Any, classifier.Apply]:
  """The reward network, and its logits or embeddings of images."""
  # It trains in float32.
  module = networks.reward_module(experiment.config).clone(dtype=jnp.float32)

  def apply(params: Any, images: Array, key: Array | None) -> Array:
    del key
    variables = {'params': sharding.whole(params)}
    inputs = reward_network.inputs(experiment, images)
    return module.apply(variables, inputs).outputs

  return module, apply


def _examples(experiment: Experiment, split: str) -> Examples:
  """Images of a split with what the judges are to see in them."""
  if not experiment.is_digits:
    return experiment.examples(split, 'judged', mirrored=split == 'train')
  data = digits.load(experiment.config.data.image_size)
  is_train = split == 'train'
  return ArrayExamples(
    {
      'images': data.train_images if is_train else data.test_images,
      'condition': data.train_labels if is_train else data.test_labels,
    }
  )


def _train(
  experiment: Experiment, judge: str, module: Any, apply: classifier.Apply
) -> None:
  """Trains one judge."""
  name = f'judges/{judge}'
  section = experiment.config.judges[judge]
  _, (shape,) = networks.module_and_inputs(experiment.config, judge)
  init_key, step_key = jax.random.split(experiment.key(name))
  optimizer = optax.adam(
    optax.cosine_decay_schedule(section.learning_rate, section.num_steps)
  )

  learned = experiment.judges_learn
  words = texts.judging_module(experiment) if learned == 'captions' else None

  def read(params: Any, ids: Array) -> Array:
    assert words is not None
    return words.apply({'params': params}, ids).pooled

  def initial(frozen: Any) -> Any:
    params = module.init(init_key, jnp.zeros(shape.shape))['params']
    if words is None:
      return classifier.ClassifierState(params, optimizer.init(params))
    ids = jnp.asarray(texts.judged_ids(['']))
    text = words.init(jax.random.fold_in(init_key, 1), ids)['params']
    return contrast.initial_state(params, text, optimizer)

  augmentation = Augmentation(
    section.max_shift,
    section.cutout,
    section.noise,
    section.least_crop,
    section.jitter,
  )
  options: dict[str, Any] = dict(key=step_key, augmentation=augmentation)
  # What it is trained by, the name of its column in batches and in the step,
  # and what is measured afterwards.
  step: Callable[..., Any]
  if words is not None:
    step = contrast.make_train_step(apply, read, optimizer, **options)
    column, name_in_step, figure = 'ids', 'ids', 'test_found'
    right = functools.partial(_finds_caption, apply, read)
  elif learned == 'classes':
    step = classifier.make_train_step(apply, optimizer, **options)
    column, name_in_step, figure = 'condition', 'labels', 'test_accuracy'
    right = functools.partial(_sees_class, apply)
  else:
    step = views.make_train_step(apply, optimizer, **options)
    column, name_in_step, figure = '', '', 'test_matches'
    right = functools.partial(_matches_view, apply, augmentation)

  def train_step(frozen: Any, state: Any, batch: Any, index: Array) -> Any:
    rows = {'images': images_lib.to_unit(batch['images'])}
    if column:
      rows[name_in_step] = batch[column]
    return step(state, rows, index)

  examples = _examples(experiment, 'train')
  fit.fit(
    experiment,
    name,
    initial=initial,
    train_step=train_step,
    batch_at=fit.Batches(experiment, name, examples, (section.batch_size,)),
    num_steps=section.num_steps,
    final_figures=_final_figures(experiment, figure, right),
  )


def _sees_class(
  apply: classifier.Apply, state: Any, batch: Mapping[str, Array]
) -> Array:
  """Whether the network sees the class of each image, bool[B]."""
  logits = apply(state.params, images_lib.to_unit(batch['images']), None)
  found: Array = logits.argmax(-1) == batch['condition']
  return found


def _finds_caption(
  apply: classifier.Apply,
  read: contrast.Read,
  state: Any,
  batch: Mapping[str, Array],
) -> Array:
  """Whether it finds each image's caption among the batch's, bool[B]."""
  found = apply(state.params, images_lib.to_unit(batch['images']), None)
  ids = batch['ids']
  return contrast.finds(found, read(state.text, ids), ids)


def _matches_view(
  apply: classifier.Apply,
  augmentation: Augmentation,
  state: Any,
  batch: Mapping[str, Array],
) -> Array:
  """Whether it knows each image again among those of the batch, bool[B]."""
  images = images_lib.to_unit(batch['images'])
  changed = augmentation([*jax.random.split(jax.random.key(0), 5)], images)
  return views.matches(
    apply(state.params, images, None), apply(state.params, changed, None)
  )


def _final_figures(
  experiment: Experiment,
  name: str,
  right: Callable[[Any, Mapping[str, Array]], Array],
) -> Callable[[Any], dict[str, float]] | None:
  """In what share of held-out images a judge is right; None if there are none.

  Args:
    experiment: of this run.
    name: of the figure.
    right: `(state, batch) -> bool[B]`.
  """
  if not datasets.has_validation(experiment):
    return None
  if not (experiment.is_digits or experiment.raw_source('test').has_images):
    return None  # Captions alone.
  examples = _examples(experiment, 'test')
  mesh = experiment.mesh
  count = min(len(examples), _MOST_HELD_OUT)
  chosen = epoch_batch(0, count, len(examples), seed=0)
  # Equal batches over all devices; the last one is filled up.
  size = min(experiment.config.judges.measure.batch_size, count)
  size = -(-size // mesh.size) * mesh.size
  compiled = jax.jit(right)

  def figures(state: Any) -> dict[str, float]:
    found: list[np.ndarray] = []
    for start in range(0, count, size):
      index = chosen[(start + np.arange(size)) % count]
      rows = examples.take(sharding.local_rows(index, mesh))
      batch = sharding.put_batch(dict[str, Any](rows), mesh)
      part = sharding.gather(compiled(state, batch))
      found.append(part[: count - start])
    return {name: float(np.concatenate(found).mean())}

  return figures
