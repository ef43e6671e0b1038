"""Stage `tokenizer`: trains the VQ autoencoder that turns images into tokens.

1. For the first tenth of the steps it is a plain autoencoder.
2. Then the codebook is set to encodings of one batch, and images are rebuilt
   from codes, with straight-through gradients to the encoder.
3. The codebook follows the encodings by moving averages; a code that falls
   out of use is revived at a random encoding of the batch.

Quantisation as in van den Oord et al. 2017 (VQ-VAE), appendix A.1; reviving
as in Dhariwal et al. 2020 (Jukebox), section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from adanat_jax import sharding, training
from adanat_jax.config_rules import between, check, choice, int_at_least
from adanat_jax.data import augment, digits
from adanat_jax.data.examples import ArrayExamples
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.report import pictures
from adanat_jax.stages import fit, networks
from adanat_jax.types import Array


@struct.dataclass
class TokenizerState:
  """What tokenizer training carries from step to step.

  Attributes:
    params: of the VQGAN.
    opt_state: of the optimizer.
    code_counts: moving average of how many encodings each code got.
    code_sums: moving average of the sum of those encodings.
  """

  params: Any
  opt_state: optax.OptState
  code_counts: Array  # float32[K]
  code_sums: Array  # float32[K, C]


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
) -> Callable[[TokenizerState, Array, Array], tuple[TokenizerState, Any]]:
  """Returns `(state, images, step) -> (state, metrics)`, not yet jitted."""

  def loss_fn(
    params: Any, images: Array, quantized: Array
  ) -> tuple[Array, Any]:
    encoding = module.apply({'params': params}, images, method='encode')
    codes, ids = module.apply({'params': params}, encoding, method='quantize')
    codes = jax.lax.stop_gradient(codes)
    through = encoding + quantized * jax.lax.stop_gradient(codes - encoding)
    images_out = module.apply({'params': params}, through, method='decode')
    error = jnp.mean((images_out - images) ** 2)
    pull = jnp.mean((encoding - codes) ** 2)
    loss = error + quantized * commitment * pull
    return loss, (error, pull, encoding, ids)

  def train_step(
    state: TokenizerState, images: Array, step: Array
  ) -> tuple[TokenizerState, dict[str, Array]]:
    shift_key, start_key, revive_key = jax.random.split(
      jax.random.fold_in(key, step), 3
    )
    images = augment.shift(shift_key, images, max_shift)
    quantized = (step >= warmup_steps).astype(jnp.float32)
    (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params, images, quantized
    )
    error, pull, encoding, ids = aux
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
    state = TokenizerState(params, opt_state, counts, sums)
    usage = jnp.bincount(ids.reshape(-1), length=num_codes)
    return state, {
      'loss': error + quantized * commitment * pull,
      'error': error,
      'commitment': pull,
      'perplexity': perplexity(usage),
    }

  return train_step


def perplexity(usage: Array) -> Array:
  """exp(entropy) of code frequencies, in codes; `usage` is [K] counts."""
  share = usage / usage.sum()
  return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


def initial_state(
  module: VQGAN,
  optimizer: optax.GradientTransformation,
  image_shape: tuple[int, ...],
  key: Array,
) -> TokenizerState:
  """A new state for images of `image_shape` (H, W, C)."""
  params = module.init(key, jnp.zeros((1, *image_shape)))['params']
  codebook = params['codebook']
  return TokenizerState(
    params=params,
    opt_state=optimizer.init(params),
    code_counts=jnp.ones(codebook.shape[0]),
    # A copy: the train state is donated, and no buffer may be given twice.
    code_sums=codebook + 0.0,
  )


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for values of `config.tokenizer` that cannot work."""
  check(
    config,
    {
      'data.image_size': int_at_least(8),
      # The digits are all there is to train on: a config of published networks
      # ends here, and not in the middle of a later stage.
      'data.condition': choice(*digits.CONDITION_NAMES),
      'tokenizer.codebook_size': int_at_least(2),
      'tokenizer.num_steps': int_at_least(1),
      'tokenizer.batch_size': int_at_least(1),
      'tokenizer.warmup_fraction': between(0.0, 1.0),
      'tokenizer.codebook_decay': between(0.0, 1.0),
      'tokenizer.max_shift': int_at_least(0),
    },
  )
  networks.check_batches(config, {'tokenizer.batch_size': 1})


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Trains the tokenizer and draws originals beside reconstructions.

  Args:
    config: the whole config; `tokenizer`, `data` and `seed` are read.
    workdir: gets `tokenizer/`.

  Raises:
    UserError: for a value that is not allowed.
  """
  check_config(config)
  directory = workdir / 'tokenizer'
  if training.is_complete(directory):
    return
  section = config.tokenizer
  data = digits.load(config.data.image_size)
  module = networks.tokenizer_module(config)
  optimizer = optax.adam(
    optax.warmup_cosine_decay_schedule(
      0.0,
      section.learning_rate,
      min(50, section.num_steps // 2),
      section.num_steps,
    )
  )
  init_key, step_key = jax.random.split(networks.stage_key(config, 'tokenizer'))
  train_step = make_train_step(
    module,
    optimizer,
    key=step_key,
    warmup_steps=int(section.warmup_fraction * section.num_steps),
    commitment=section.commitment,
    codebook_decay=section.codebook_decay,
    max_shift=section.max_shift,
  )

  def figures(state: TokenizerState) -> dict[str, float]:
    return _figures(module, state.params, data, directory)

  fit.fit(
    config,
    workdir,
    'tokenizer',
    initial=lambda frozen: initial_state(
      module, optimizer, data.train_images.shape[1:], init_key
    ),
    train_step=lambda frozen, state, batch, step: train_step(
      state, batch['images'], step
    ),
    batch_at=fit.batches(
      config,
      'tokenizer',
      ArrayExamples({'images': data.train_images}),
      (section.batch_size,),
    ),
    num_steps=section.num_steps,
    final_figures=figures,
  )


def _figures(
  module: VQGAN, params: Any, data: digits.DigitsData, directory: pathlib.Path
) -> dict[str, float]:
  """Reconstruction error and code use of both splits; draws the test images."""

  @jax.jit
  def rebuild(variables: Any, images: Array) -> tuple[Array, Array]:
    tokens = module.apply(variables, images, method='tokenize')
    return tokens, module.apply(variables, tokens, method='decode_tokens')

  result: dict[str, float] = {}
  for split, images in (
    ('train', data.train_images),
    ('test', data.test_images),
  ):
    tokens, rebuilt = sharding.gather(rebuild({'params': params}, images))
    usage = np.bincount(tokens.reshape(-1), minlength=module.codebook_size)
    error = float(np.mean((rebuilt - images) ** 2))
    result[f'{split}_error'] = error
    result[f'{split}_error_of_variance'] = error / float(images.var())
    result[f'{split}_codes_used'] = int((usage > 0).sum())
    result[f'{split}_perplexity'] = float(perplexity(jnp.asarray(usage)))
  pictures.save_pairs(
    directory / 'reconstructions.png',
    [
      ('held-out images', data.test_images[:16]),
      ('reconstructions', rebuilt[:16]),
    ],
  )
  return result
