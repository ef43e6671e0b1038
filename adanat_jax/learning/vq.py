"""Training a vector-quantised autoencoder: its codebook, and one step.

1. In the first steps, the warm-up, it is a plain autoencoder.
2. Then the codebook is set to encodings of one batch, and images are rebuilt
   from codes, with straight-through gradients to the encoder.
3. The codebook follows the encodings by moving averages; a code that falls
   out of use restarts at a random encoding of the batch.
4. Optionally a patch discriminator adds an adversarial loss
   (`adanat_jax.learning.patch_gan`).

Quantisation as in van den Oord et al. 2017 (VQ-VAE), appendix A.1; restarts as
in Dhariwal et al. 2020 (Jukebox), section 3.1.

Shape letters: `B` samples, `H`, `W`, `I` an image, `h`, `w` the grid of codes,
`K` codes, `C` width of a code, `M` = B h w encodings of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from adanat_jax.learning import augment
from adanat_jax.learning.patch_gan import (
  AdversarialLoss,
  PatchDiscriminatorState,
)
from adanat_jax.types import Array

# The reconstruction error is the mean of this over all values of the images.
ERRORS: Mapping[str, Callable[[Array], Array]] = {
  'squared': jnp.square,
  'absolute': jnp.abs,
}


@dataclasses.dataclass(frozen=True)
class Autoencoder:
  """The network that is trained, as functions of its parameters.

  The parameters are a dict; its entry `codebook` is float32[K, C].
  """

  init: Callable[[Array], Any]  # `key -> params`, newly drawn.
  # `(params, images float32[B, H, W, I]) -> float32[B, h, w, C]`.
  encode: Callable[[Any, Array], Array]
  # `(params, encoding) -> (codes float32[B, h, w, C], ids int32[B, h, w])`, the
  # nearest code of each encoding.
  quantize: Callable[[Any, Array], tuple[Array, Array]]
  # `(params, codes) -> images float32[B, H, W, I]`, not clipped.
  decode: Callable[[Any, Array], Array]
  # `params -> kernel` of the decoder's last layer.
  last_layer: Callable[[Any], Array]


@struct.dataclass
class TokenizerState:
  """What tokenizer training carries from step to step."""

  params: Any  # Of the autoencoder.
  opt_state: optax.OptState  # Of the optimizer.
  # Moving average of how many encodings each code got.
  code_counts: Array  # float32[K]
  # Moving average of the sum of those encodings.
  code_sums: Array  # float32[K, C]
  # The discriminator; None without an adversarial loss.
  adversary: PatchDiscriminatorState | None = None


def initial_state(
  network: Autoencoder,
  optimizer: optax.GradientTransformation,
  key: Array,
  adversarial: AdversarialLoss | None = None,
) -> TokenizerState:
  """The state before the first step; `key` draws all parameters."""
  params = network.init(key)
  codebook = params['codebook']
  discriminator = None
  if adversarial is not None:
    discriminator = adversarial.initial_state(jax.random.fold_in(key, 1))
  return TokenizerState(
    params=params,
    opt_state=optimizer.init(params),
    code_counts=jnp.ones(codebook.shape[0]),
    # A copy: the train state is donated, and no buffer may be given twice.
    code_sums=codebook + 0.0,
    adversary=discriminator,
  )


def with_sums(state: TokenizerState) -> TokenizerState:
  """The state whose averages give the codebook that it has."""
  sums = state.code_counts[:, None] * state.params['codebook']
  return dataclasses.replace(state, code_sums=sums)


def perplexity(usage: Array) -> Array:
  """exp(entropy) of code frequencies, in codes; `usage` is [K] counts."""
  share = usage / usage.sum()
  return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


def update_codebook(
  counts: Array,
  sums: Array,
  encodings: Array,
  ids: Array,
  key: Array,
  decay: float,
) -> tuple[Array, Array]:
  """One step of the codebook's moving averages; unused codes restart.

  A code whose count falls below a tenth of its even share, M / K, restarts at a
  random encoding, with its even share.

  Args:
    counts: float32[K].
    sums: float32[K, C].
    encodings: float32[M, C].
    ids: int32[M], nearest code of each encoding.
    key: chooses the encodings at which unused codes restart.
    decay: of the averages.

  Returns:
    New counts and sums.
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
  replace = count > rows.shape[0]
  return rows[jax.random.choice(key, rows.shape[0], (count,), replace=replace)]


def make_train_step(
  network: Autoencoder,
  optimizer: optax.GradientTransformation,
  *,
  key: Array,
  warmup_steps: int,
  commitment: float,
  codebook_decay: float,
  max_shift: int,
  error: str = 'squared',
  adversarial: AdversarialLoss | None = None,
) -> Callable[[TokenizerState, Array, Array], tuple[TokenizerState, Any]]:
  """Returns `(state, images, step) -> (state, metrics)`, not yet jitted.

  Images are float32[B, H, W, I] in [0, 1]; `step` counts from 0.

  Args:
    network: what is trained.
    optimizer: of its parameters.
    key: everything random follows from it and the step.
    warmup_steps: first step in which images are rebuilt from codes.
    commitment: weight of the encoder's squared distance from its codes.
    codebook_decay: of the codebook's moving averages.
    max_shift: images are shifted by up to this many pixels.
    error: one of `ERRORS`.
    adversarial: the adversarial loss, if there is one.
  """

  def rebuild(
    params: Any, images: Array, quantized: Array
  ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    encoding = network.encode(params, images)
    codes, ids = network.quantize(params, encoding)
    codes = jax.lax.stop_gradient(codes)
    through = encoding + quantized * jax.lax.stop_gradient(codes - encoding)
    rebuilt = network.decode(params, through)
    pull = jnp.mean((encoding - codes) ** 2)
    return (rebuilt, pull), (encoding, ids)

  def error_of(rebuilt: Array, images: Array) -> Array:
    return jnp.mean(ERRORS[error](rebuilt - images))

  def plain_gradients(
    state: TokenizerState, images: Array, quantized: Array, step: Array
  ) -> tuple[Any, Array, Array, tuple[Array, Array], None, dict[str, Array]]:
    del step

    def loss_fn(params: Any) -> tuple[Array, Any]:
      (rebuilt, pull), seen = rebuild(params, images, quantized)
      distance = error_of(rebuilt, images)
      return distance + quantized * commitment * pull, (distance, pull, seen)

    (_, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return grads, *aux, None, {}

  def adversarial_gradients(
    state: TokenizerState, images: Array, quantized: Array, step: Array
  ) -> tuple[Any, Array, Array, tuple[Array, Array], Any, dict[str, Array]]:
    assert adversarial is not None and state.adversary is not None
    (rebuilt, pull), pull_back, seen = jax.vjp(
      functools.partial(rebuild, images=images, quantized=quantized),
      state.params,
      has_aux=True,
    )

    def last_layer_norm(by_images: Array) -> Array:
      # Only this gradient is used; XLA removes the others.
      (grads,) = pull_back((by_images, jnp.zeros_like(pull)))
      return optax.tree.norm(network.last_layer(grads))

    distance, towards = jax.value_and_grad(error_of)(rebuilt, images)
    discriminator, push, metrics = adversarial.step(
      state.adversary, images, rebuilt, towards, last_layer_norm, step
    )
    (grads,) = pull_back((towards + push, quantized * commitment))
    return grads, distance, pull, seen, discriminator, metrics

  gradients = plain_gradients if adversarial is None else adversarial_gradients

  def train_step(
    state: TokenizerState, images: Array, step: Array
  ) -> tuple[TokenizerState, dict[str, Array]]:
    shift_key, start_key, restart_key = jax.random.split(
      jax.random.fold_in(key, step), 3
    )
    images = augment.shift(shift_key, images, max_shift)
    quantized = (step >= warmup_steps).astype(jnp.float32)
    grads, distance, pull, (encoding, ids), discriminator, metrics = gradients(
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
      restart_key,
      codebook_decay,
    )
    # Before codes are used, the codebook is drawn anew from every batch.
    unset = step < warmup_steps
    counts = jnp.where(unset, share, counts)
    sums = jnp.where(unset, share * start, sums)
    params = {**params, 'codebook': sums / counts[:, None]}
    state = TokenizerState(params, opt_state, counts, sums, discriminator)
    usage = jnp.bincount(ids.reshape(-1), length=num_codes)
    return state, {
      # Without the adversarial loss, which does not measure progress.
      'loss': distance + quantized * commitment * pull,
      'error': distance,
      'commitment': pull,
      'perplexity': perplexity(usage),
      **metrics,
    }

  return train_step
