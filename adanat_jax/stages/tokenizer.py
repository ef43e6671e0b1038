"""Stage `tokenizer`: trains the VQ autoencoder that turns images into tokens.

1. For a first share of the steps, `warmup_fraction`, it is a plain
   autoencoder.
2. Then the codebook is set to encodings of one batch, and images are rebuilt
   from codes, with straight-through gradients to the encoder.
3. The codebook follows the encodings by moving averages; a code that falls
   out of use is revived at a random encoding of the batch.
4. If it is asked for, a discriminator of patches joins in later
   (`adanat_jax.stages.tokenizer_adversary`).

Quantisation as in van den Oord et al. 2017 (VQ-VAE), appendix A.1; reviving
as in Dhariwal et al. 2020 (Jukebox), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
import pathlib
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from adanat_jax.data import pixels
from adanat_jax.data.examples import Examples
from adanat_jax.experiment import datasets, fit, networks
from adanat_jax.experiment.fields import (
  between,
  check,
  choice,
  int_at_least,
  non_negative,
  positive,
  tuple_of,
)
from adanat_jax.learning import augment
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import completion, files, loop
from adanat_jax.stages import tokenizer_adversary, tokenizer_reconstruction
from adanat_jax.stages.tokenizer_adversary import Adversary, DiscriminatorState
from adanat_jax.stages.tokenizer_reconstruction import perplexity
from adanat_jax.types import Array

# What a reconstruction's distance from its image is, over all of their values.
ERRORS: Mapping[str, Callable[[Array], Array]] = {
  'squared': jnp.square,
  'absolute': jnp.abs,
}


@struct.dataclass
class TokenizerState:
  """What tokenizer training carries from step to step.

  Attributes:
    params: of the VQGAN.
    opt_state: of the optimizer.
    code_counts: moving average of how many encodings each code got.
    code_sums: moving average of the sum of those encodings.
    adversary: the discriminator, if there is one.
  """

  params: Any
  opt_state: optax.OptState
  code_counts: Array  # float32[K]
  code_sums: Array  # float32[K, C]
  adversary: DiscriminatorState | None = None


def update_codebook(
  counts: Array,
  sums: Array,
  encodings: Array,
  ids: Array,
  key: Array,
  decay: float,
) -> tuple[Array, Array]:
  """One step of the codebook's moving averages, reviving unused codes.

  Args:
    counts: float32[K].
    sums: float32[K, C].
    encodings: float32[M, C].
    ids: int32[M], nearest code of each encoding.
    key: chooses the encodings at which unused codes are revived.
    decay: of the averages.

  Returns:
    New counts and sums. A code that gets less than a tenth of its even share
    starts anew at a random encoding, with its even share.
  """
  share = encodings.shape[0] / counts.shape[0]
  assigned = jax.nn.one_hot(ids, counts.shape[0])
  counts = decay * counts + (1 - decay) * assigned.sum(0)
  sums = decay * sums + (1 - decay) * (assigned.T @ encodings)
  fresh = _random_rows(key, encodings, counts.shape[0])
  unused = counts < 0.1 * share
  return (
    jnp.where(unused, share, counts),
    jnp.where(unused[:, None], share * fresh, sums),
  )


def _random_rows(key: Array, rows: Array, count: int) -> Array:
  index = jax.random.choice(
    key, rows.shape[0], (count,), replace=count > rows.shape[0]
  )
  return rows[index]


def make_train_step(
  module: VQGAN,
  optimizer: optax.GradientTransformation,
  *,
  key: Array,
  warmup_steps: int,
  commitment: float,
  codebook_decay: float,
  max_shift: int,
  error: str = 'squared',
  adversary: Adversary | None = None,
) -> Callable[[TokenizerState, Array, Array], tuple[TokenizerState, Any]]:
  """Returns `(state, images, step) -> (state, metrics)`, not yet jitted.

  Args:
    module: the VQGAN.
    optimizer: of its parameters.
    key: of all that is random while it trains.
    warmup_steps: first step in which images are rebuilt from codes.
    commitment: weight of the encoder's pull towards its codes.
    codebook_decay: of the codebook's moving averages.
    max_shift: images are moved by up to so many pixels.
    error: one of `ERRORS`.
    adversary: how reconstructions are judged, if they are.
  """

  def rebuild(
    params: Any, images: Array, quantized: Array
  ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    encoding = module.apply({'params': params}, images, method='encode')
    codes, ids = module.apply({'params': params}, encoding, method='quantize')
    codes = jax.lax.stop_gradient(codes)
    through = encoding + quantized * jax.lax.stop_gradient(codes - encoding)
    images_out = module.apply({'params': params}, through, method='decode')
    pull = jnp.mean((encoding - codes) ** 2)
    return (images_out, pull), (encoding, ids)

  def error_of(images_out: Array, images: Array) -> Array:
    return jnp.mean(ERRORS[error](images_out - images))

  def plain_gradients(
    state: TokenizerState, images: Array, quantized: Array, step: Array
  ) -> tuple[Any, Array, Array, tuple[Array, Array], None, dict[str, Array]]:
    del step

    def loss_fn(params: Any) -> tuple[Array, Any]:
      (images_out, pull), seen = rebuild(params, images, quantized)
      distance = error_of(images_out, images)
      return distance + quantized * commitment * pull, (distance, pull, seen)

    (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return grads, *aux, None, {}

  def judged_gradients(
    state: TokenizerState, images: Array, quantized: Array, step: Array
  ) -> tuple[Any, Array, Array, tuple[Array, Array], Any, dict[str, Array]]:
    assert adversary is not None and state.adversary is not None
    (images_out, pull), pull_back, seen = jax.vjp(
      functools.partial(rebuild, images=images, quantized=quantized),
      state.params,
      has_aux=True,
    )

    def last_layer_norm(by_images: Array) -> Array:
      # All else that is pulled back is not read, and the compiler drops it.
      (grads,) = pull_back((by_images, jnp.zeros_like(pull)))
      return optax.tree.norm(grads['decoder']['conv_out']['kernel'])

    distance, towards = jax.value_and_grad(error_of)(images_out, images)
    judge, push, metrics = adversary.step(
      state.adversary, images, images_out, towards, last_layer_norm, step
    )
    (grads,) = pull_back((towards + push, quantized * commitment))
    return grads, distance, pull, seen, judge, metrics

  gradients = plain_gradients if adversary is None else judged_gradients

  def train_step(
    state: TokenizerState, images: Array, step: Array
  ) -> tuple[TokenizerState, dict[str, Array]]:
    shift_key, start_key, revive_key = jax.random.split(
      jax.random.fold_in(key, step), 3
    )
    images = augment.shift(shift_key, images, max_shift)
    quantized = (step >= warmup_steps).astype(jnp.float32)
    grads, distance, pull, (encoding, ids), judge, metrics = gradients(
      state, images, quantized, step
    )
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    encodings = encoding.reshape(-1, encoding.shape[-1])
    num_codes = state.code_counts.shape[0]
    share = encodings.shape[0] / num_codes
    start = _random_rows(start_key, encodings, num_codes)
    counts, sums = update_codebook(
      state.code_counts,
      state.code_sums,
      encodings,
      ids.reshape(-1),
      revive_key,
      codebook_decay,
    )
    # Before codes are used, the codebook is drawn anew from every batch.
    unset = step < warmup_steps
    counts = jnp.where(unset, share, counts)
    sums = jnp.where(unset, share * start, sums)
    params = {**params, 'codebook': sums / counts[:, None]}
    state = TokenizerState(params, opt_state, counts, sums, judge)
    usage = jnp.bincount(ids.reshape(-1), length=num_codes)
    return state, {
      # Without what the discriminator says: that is no measure of progress.
      'loss': distance + quantized * commitment * pull,
      'error': distance,
      'commitment': pull,
      'perplexity': perplexity(usage),
      **metrics,
    }

  return train_step


def initial_state(
  module: VQGAN,
  optimizer: optax.GradientTransformation,
  image_shape: tuple[int, ...],
  key: Array,
  adversary: Adversary | None = None,
) -> TokenizerState:
  """A new state for images of `image_shape` (H, W, C)."""
  params = module.init(key, jnp.zeros((1, *image_shape)))['params']
  codebook = params['codebook']
  judge = None
  if adversary is not None:
    judge = adversary.initial_state(image_shape, jax.random.fold_in(key, 1))
  return TokenizerState(
    params=params,
    opt_state=optimizer.init(params),
    code_counts=jnp.ones(codebook.shape[0]),
    # A copy: the train state is donated, and no buffer may be given twice.
    code_sums=codebook + 0.0,
    adversary=judge,
  )


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for values of `config.tokenizer` that cannot work."""
  datasets.check_config(config)
  check(
    config,
    {
      'data.image_size': int_at_least(8),
      'tokenizer.measured_images': int_at_least(0),
    },
  )
  if networks.is_converted(config, 'tokenizer'):
    return
  check(
    config,
    {
      'tokenizer.codebook_size': int_at_least(2),
      'tokenizer.num_steps': int_at_least(1),
      'tokenizer.batch_size': int_at_least(1),
      'tokenizer.learning_rate': positive,
      'tokenizer.betas': tuple_of(between(0.0, 1.0), length=2),
      'tokenizer.error': choice(*ERRORS),
      'tokenizer.warmup_fraction': between(0.0, 1.0),
      'tokenizer.commitment': non_negative,
      'tokenizer.codebook_decay': between(0.0, 1.0),
      'tokenizer.max_shift': int_at_least(0),
      'tokenizer.evaluate_every': int_at_least(0),
    },
  )
  networks.check_batches(config, {'tokenizer.batch_size': 1})
  tokenizer_adversary.check_config(config)


def splits_of(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[str, Examples]:
  """Images to train on and, if there are any, those to measure on, by split.

  Mirror images are images: they are learnt from and measured.

  Raises:
    UserError: naming the field that does not lead to images.
  """
  names = [*datasets.SPLITS]
  # What CC3M is validated on is captions alone: there is nothing to rebuild.
  if not (
    datasets.is_digits(config) or datasets.raw_source(config, 'test').has_images
  ):
    names.remove('test')
  return {
    name: datasets.image_examples(config, workdir, name, mirrored=True)
    for name in names
  }


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Trains the tokenizer and draws originals beside reconstructions.

  One that was converted is only measured, so that it can be looked at before
  anything stands on it.

  Args:
    config: the whole config; `tokenizer`, `data` and `seed` are read.
    workdir: gets `tokenizer/`.

  Raises:
    UserError: for a value that is not allowed.
  """
  check_config(config)
  directory = workdir / 'tokenizer'
  if loop.is_complete(directory):
    return
  section = config.tokenizer
  module = networks.tokenizer_module(config)
  splits = splits_of(config, workdir)
  rebuilding = tokenizer_reconstruction.Reconstruction(
    module, networks.mesh_of(config)
  )
  most, picture = section.measured_images, directory / 'reconstructions.png'
  if networks.is_converted(config, 'tokenizer'):
    _, params = networks.load_tokenizer(config, workdir)
    files.make_directory(directory)
    found = rebuilding.figures(params, splits, most, picture)
    completion.mark_complete(directory, 0, found)
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
  adversary = tokenizer_adversary.of_config(config)
  init_key, step_key = jax.random.split(networks.stage_key(config, 'tokenizer'))
  train_step = make_train_step(
    module,
    optimizer,
    key=step_key,
    warmup_steps=int(section.warmup_fraction * section.num_steps),
    commitment=section.commitment,
    codebook_decay=section.codebook_decay,
    max_shift=section.max_shift,
    error=section.error,
    adversary=adversary,
  )
  shape = (config.data.image_size,) * 2 + (module.image_channels,)

  def evaluate(state: TokenizerState, step: int) -> dict[str, float]:
    del step
    last = list(splits)[-1]
    return rebuilding.measure(state.params, last, splits[last], most, picture)

  def figures(state: TokenizerState) -> dict[str, float]:
    return rebuilding.figures(state.params, splits, most, picture)

  evaluated = section.evaluate_every > 0
  fit.fit(
    config,
    workdir,
    'tokenizer',
    initial=lambda frozen: initial_state(
      module, optimizer, shape, init_key, adversary
    ),
    train_step=lambda frozen, state, batch, step: train_step(
      state, pixels.to_unit(batch['images']), step
    ),
    batch_at=fit.Batches(
      config, 'tokenizer', splits['train'], (section.batch_size,)
    ),
    num_steps=section.num_steps,
    evaluate=evaluate if evaluated else None,
    evaluate_every=section.evaluate_every,
    best_of=('eval/error' if evaluated else 'loss', 'min'),
    final_figures=figures,
  )
