"""The examples that a config asks for: images, tokens, and conditions alone.

The only place that knows `config.data.source`. Everything a training loop
reads is an `adanat_jax.data.examples.Examples`: the digits are arrays in
memory, raw images are decoded as they are asked for, tokens come from the sets
that stage `prepare` has written.
"""

from __future__ import annotations

from collections.abc import Iterator
import functools
from typing import TYPE_CHECKING, Any

import jax

from adanat_jax.data import digits
from adanat_jax.data.examples import ArrayExamples, Examples
from adanat_jax.data.prepared import PreparedExamples, check_settings
from adanat_jax.data.raw_images import RawImages
from adanat_jax.data.sources import registry
from adanat_jax.data.sources.raw_source import RawSource, SourceSettings
from adanat_jax.experiment import encoder, networks, texts
from adanat_jax.runtime import sharding

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment

SPLITS = ('train', 'test')


def problems(experiment: Experiment) -> Iterator[str]:
  """Says why images cannot be had, or not as tokens; see `Experiment.check`."""
  section, known = experiment.config.data, {'class', 'text'}
  if experiment.is_digits:
    known = {*digits.CONDITION_NAMES}
  if section.condition not in known:
    yield (
      f'config.data.condition={section.condition!r} is not allowed with'
      f' config.data.source={section.source}: give'
      f' {" or ".join(sorted(known))}'
    )
  if not experiment.is_digits and not section.path:
    yield (
      'config.data.path is empty; give the raw images of source'
      f' {section.source} ({page(experiment)})'
    )
  side = networks.downsampling(experiment.config)
  for name in ('image_size', 'image_width'):
    if section.get(name, 0) % side:
      yield (
        f'config.data.{name} is {section[name]}; give a multiple of {side}, the'
        ' number of pixels of a token'
      )
  size = section.image_size
  if experiment.is_digits and size % digits.SOURCE_SIZE:
    yield (
      f'config.data.image_size is {size}; give a multiple of'
      f' {digits.SOURCE_SIZE}, the side of the digits before they are enlarged'
    )
  if not experiment.is_digits and section.path:
    registry.check_apart(_settings(experiment))


def condition_of(experiment: Experiment, judged: Any) -> Any:
  """The conditions int[n] of classes int[n] that the judges tell apart."""
  if experiment.is_digits:
    return digits.condition_of(judged, experiment.config.data.condition)
  return judged


def page(experiment: Experiment) -> str:
  """The page of the documentation that goes from raw images to figures."""
  return f'docs/{experiment.config.evaluate.benchmark or "own_images"}.md'


def path_of(experiment: Experiment, split: str) -> str:
  """Where the raw images of a split are."""
  data = experiment.config.data
  return (split == 'test' and data.validation_path) or data.path


def has_validation(experiment: Experiment) -> bool:
  """Whether the config leads to validation images."""
  config = experiment.config
  if (
    experiment.is_digits or config.data.held_out or config.data.validation_path
  ):
    return True
  # tfds has them under the same path.
  return config.data.source == 'tfds'


def raw_source(experiment: Experiment, split: str) -> RawSource:
  """The raw images of a split.

  Raises:
    UserError: naming the field that does not lead to such images.
  """
  return registry.open_source(_settings(experiment), split)


def _settings(experiment: Experiment) -> SourceSettings:
  """The fields of the config that say where images are."""
  data = experiment.config.data
  return SourceSettings(
    source=data.source,
    path=data.path,
    validation_path=data.validation_path,
    tfds_name=data.tfds_name,
    annotations=data.annotations,
    validation_annotations=data.validation_annotations,
    held_out=data.held_out,
    # To mode discover pairs without a class are unlabelled ones.
    condition='' if experiment.config.mode == 'discover' else data.condition,
    num_classes=0 if experiment.is_text else data.num_classes,
    max_corrupt_share=data.max_corrupt_share,
    # Configs of other sources have none.
    text_column=data.get('text_column', ''),
    label_column=data.get('label_column', ''),
  )


def examples(
  experiment: Experiment, split: str, what: str, mirrored: bool
) -> Examples:
  """The examples of a split.

  Args:
    experiment: of this run.
    split: 'train' or 'test'.
    what: `tokens` int32[N] or `images`, uint8 or float32 [H, W, C], with the
      condition that they show; or `prompts`, what generated images are asked to
      show, alone. A condition is `condition` int32[], or for texts what
      `texts.conditions` takes. `judged` is images with captions as the networks
      of stage `judges` read them, `texts.judged_ids`.
    mirrored: whether mirror images count too, if `data.mirror` wants them.

  Raises:
    UserError: if there are none, or tokens were made by another tokenizer.
  """
  if experiment.is_digits:
    return _digits(experiment, split, what)
  if what not in ('images', 'judged'):
    return _prepared(experiment, split, with_tokens=what == 'tokens')
  data = experiment.config.data
  tokenize = None
  if experiment.is_text:
    as_nat = functools.partial(texts.tokenize, experiment)
    tokenize = texts.judged_ids if what == 'judged' else as_nat
  return RawImages(
    raw_source(experiment, split),
    experiment.image_shape[:2],
    apply_orientation=data.apply_orientation,
    background=experiment.background,
    mirrored=mirrored and experiment.mirrors,
    tokenize=tokenize,
  )


def _digits(experiment: Experiment, split: str, what: str) -> Examples:
  data = digits.load(experiment.config.data.image_size)
  is_train = split == 'train'
  images = data.train_images if is_train else data.test_images
  labels = data.train_labels if is_train else data.test_labels
  condition = digits.condition_of(labels, experiment.config.data.condition)
  arrays = {'condition': condition}
  if what == 'images':
    arrays['images'] = images
  elif what == 'tokens':
    tokenizer, params = experiment.network('tokenizer')
    tokenize = jax.jit(functools.partial(tokenizer.apply, method='tokenize'))
    arrays['tokens'] = sharding.gather(tokenize({'params': params}, images))
  return ArrayExamples(arrays)


def _prepared(
  experiment: Experiment, split: str, with_tokens: bool
) -> Examples:
  directory = experiment.prepared_directory
  found = PreparedExamples(directory, split, with_tokens=with_tokens)
  settings = encoder.settings_of(experiment)
  check_settings(directory, found.manifest['settings'], settings)
  return found
