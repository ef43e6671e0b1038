"""Stage `tokenizer`: trains the VQ autoencoder that turns images into tokens.

What is learned, and how: `adanat_jax.learning.vq`, with the adversarial loss of
`adanat_jax.learning.patch_gan` if the config gives it a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from adanat_jax.data import images as images_lib
from adanat_jax.data.examples import Examples
from adanat_jax.experiment import (
  datasets,
  field_rules,
  fit,
  networks,
  warm_start,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import patch_gan, vq
from adanat_jax.models import layers
from adanat_jax.models.patch_discriminator import PatchDiscriminator
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import files, journal
from adanat_jax.stages import tokenizer_reconstruction

# Where an error is a blur, as a share of the variance of pixels.
_BLURRED = 0.2
# The share of codes in use below which a codebook has collapsed.
_COLLAPSED = 0.2


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for a tokenizer that cannot be trained."""
  experiment.check(
    datasets.problems, _problems, reads=('data', 'tokenizer', *field_rules.LOOP)
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why the tokenizer cannot be trained, if it is to be."""
  section = experiment.config.tokenizer
  if experiment.is_converted('tokenizer'):
    return
  if section.network != 'vqgan':
    yield (
      f'config.tokenizer.network={section.network} is not trained here: name'
      ' converted weights by config.tokenizer.init_from (docs/weights.md)'
    )
  yield from experiment.uneven_batches({'tokenizer.batch_size': 1})
  yield from experiment.larger_than_images('tokenizer.max_shift')
  widths = [section.base_width * m for m in section.width_multipliers]
  if any(width % section.num_groups for width in widths):
    yield (
      f'config.tokenizer.num_groups={section.num_groups}: give one that divides'
      f' base_width times each of width_multipliers, {widths}'
    )
  if section.adversarial.weight:
    patches = 'tokenizer.adversarial'
    yield from experiment.no_divisors(
      {f'{patches}.num_groups': f'{patches}.base_width'}
    )


def splits_of(experiment: Experiment) -> dict[str, Examples]:
  """Images to train on and, if there are any, those to measure on, by split.

  Mirror images, if `data.mirror` wants them, count as images of their own, in
  training and in measuring.
  """
  names = [*datasets.SPLITS]
  # CC3M's validation split has captions alone: there is nothing to rebuild.
  if not (experiment.is_digits or experiment.raw_source('test').has_images):
    names.remove('test')
  return {
    name: experiment.examples(name, 'images', mirrored=True) for name in names
  }


def make_autoencoder(
  module: VQGAN, image_shape: tuple[int, ...]
) -> vq.Autoencoder:
  """The tokenizer of images of `image_shape` (H, W, C), as functions."""

  def method(name: str) -> Any:
    return lambda params, x: module.apply({'params': params}, x, method=name)

  return vq.Autoencoder(
    init=lambda key: module.init(key, jnp.zeros((1, *image_shape)))['params'],
    encode=method('encode'),
    quantize=method('quantize'),
    decode=method('decode'),
    last_layer=lambda params: params['decoder']['conv_out']['kernel'],
  )


def make_adversarial_loss(
  experiment: Experiment, image_shape: tuple[int, ...]
) -> patch_gan.AdversarialLoss | None:
  """The adversarial loss of a config, None where its weight is 0."""
  config = experiment.config
  section = config.tokenizer.adversarial
  if not section.weight:
    return None
  module = PatchDiscriminator(
    section.base_width, section.num_levels, section.num_groups
  )
  num_steps = config.tokenizer.num_steps
  trains_from = int(section.start_fraction * num_steps)
  return patch_gan.AdversarialLoss(
    init=lambda key: module.init(key, jnp.zeros((1, *image_shape)))['params'],
    logits=lambda params, images: layers.side_by_side(
      lambda x: module.apply({'params': params}, x),
      images,
      least=layers.MANY_TRAINED_PIXELS,
    ),
    optimizer=optax.adam(section.learning_rate, *section.betas),
    weight=section.weight,
    adaptive=section.adaptive,
    trains_from=trains_from,
    used_from=trains_from + int(section.lead_fraction * num_steps),
  )


def run(experiment: Experiment) -> None:
  """Trains `tokenizer/`, and draws originals beside reconstructions.

  A converted tokenizer is only measured, so that its quality can be checked
  before a NAT is trained on it.
  """
  check_config(experiment)
  if experiment.is_complete('tokenizer'):
    return
  config, section = experiment.config, experiment.config.tokenizer
  directory = experiment.workdir / 'tokenizer'
  # It trains, and is measured, in float32.
  module = networks.tokenizer_module(config).clone(dtype=jnp.float32)
  splits = splits_of(experiment)
  rebuilding = tokenizer_reconstruction.Reconstruction(
    module,
    experiment.mesh,
    section.measured_images,
    directory / 'reconstructions.png',
  )
  if experiment.is_converted('tokenizer'):
    _, params = experiment.network('tokenizer')
    files.make_directory(directory)
    figures = rebuilding.figures(params, splits)
    warnings = _warnings(experiment, splits, figures)
    journal.warn('tokenizer', warnings)
    journal.mark_complete(directory, 0, figures, warnings=warnings)
    return
  optimizer = optax.adam(
    optax.warmup_cosine_decay_schedule(
      0.0,
      section.learning_rate,
      min(50, section.num_steps // 2),
      section.num_steps,
    ),
    *section.betas,
  )
  shape = experiment.image_shape
  network = make_autoencoder(
    module.clone(divided_from=layers.MANY_TRAINED_PIXELS), shape
  )
  adversarial = make_adversarial_loss(experiment, shape)
  init_key, step_key = jax.random.split(experiment.key('tokenizer'))
  begin = warm_start.make(
    experiment,
    'tokenizer',
    {
      'tokenizer': {
        field: (field,)
        for field in (
          *('params', 'opt_state', 'code_counts'),
          *('adversary/params', 'adversary/opt_state'),
        )
      }
    },
  )
  share = section.batch_size * experiment.num_tokens / section.codebook_size

  def begin_with_codes(state: vq.TokenizerState) -> vq.TokenizerState:
    assert begin is not None
    # As at the end of a warm-up, which is left out.
    counts = share * state.code_counts
    return vq.with_sums(begin(dataclasses.replace(state, code_counts=counts)))

  warmup = 0.0 if begin else section.warmup_fraction
  train_step = vq.make_train_step(
    network,
    optimizer,
    key=step_key,
    warmup_steps=int(warmup * section.num_steps),
    commitment=section.commitment,
    codebook_decay=section.codebook_decay,
    max_shift=section.max_shift,
    error=section.error,
    adversarial=adversarial,
  )

  evaluated, last = section.evaluate_every > 0, list(splits)[-1]
  fit.fit(
    experiment,
    'tokenizer',
    initial=lambda frozen: vq.initial_state(
      network, optimizer, init_key, adversarial
    ),
    train_step=lambda frozen, state, batch, step: train_step(
      state, images_lib.to_unit(batch['images']), step
    ),
    batch_at=fit.Batches(
      experiment, 'tokenizer', splits['train'], (section.batch_size,)
    ),
    num_steps=section.num_steps,
    evaluate=(
      lambda state, step: rebuilding.measure(state.params, last, splits[last])
    )
    if evaluated
    else None,
    evaluate_every=section.evaluate_every,
    best_of=('eval/error' if evaluated else 'loss', 'min'),
    final_figures=lambda state: rebuilding.figures(state.params, splits),
    warnings_of=lambda figures: _warnings(experiment, splits, figures),
    begin=begin_with_codes if begin else None,
  )


def _warnings(
  experiment: Experiment,
  splits: Mapping[str, Examples],
  figures: Mapping[str, float],
) -> list[str]:
  """Says why nothing good can be generated by the tokens.

  Only of `Reconstruction.figures`: until the training ends they may improve.
  """
  section, last = experiment.config.tokenizer, list(splits)[-1]
  if f'{last}_error' not in figures:
    return []
  warnings = []
  error = figures[f'{last}_error_of_variance']
  if error > _BLURRED:
    warnings.append(
      f'reconstructions are blurred: their error is {error:.2f} of the variance'
      f' of pixels ({_BLURRED} is a blur, 0.05 is good), and no sample will be'
      ' sharper; train longer (config.tokenizer.num_steps) or give more'
      ' base_width or codebook_size'
    )
  # A few pictures cannot use more codes than they have tokens.
  images = tokenizer_reconstruction.chosen(
    len(splits['train']), section.measured_images
  )
  most = min(section.codebook_size, len(images) * experiment.num_tokens)
  used = figures['train_codes_used']
  if used < _COLLAPSED * most:
    warnings.append(
      f'the codebook has collapsed: {used} of {section.codebook_size} codes are'
      ' in use; give a smaller config.tokenizer.learning_rate or codebook_size,'
      ' or more warmup_fraction'
    )
  return warnings
