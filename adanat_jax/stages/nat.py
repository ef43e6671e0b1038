"""Stage `nat`: trains the masked-token transformer on tokenized images.

1. Images become tokens once, by the trained tokenizer.
2. Each example gets a mask ratio (MaskGIT's cosine law, or AutoNAT's
   Beta(12, 3)); that many of its tokens are masked.
3. The loss is the cross-entropy of the masked tokens, with label smoothing;
   some examples see the null condition, so that guidance can be used later.
4. An exponential moving average of the parameters is what decoding uses.

AutoNAT, section 3.1; LeapLabTHU/ImprovedNAT train.py and libs/nat_misc.py.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
import pathlib
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from adanat_jax import sharding, training
from adanat_jax.config_rules import between, check, choice, int_at_least
from adanat_jax.data import digits
from adanat_jax.data.examples import ArrayExamples
from adanat_jax.models.nat import NAT
from adanat_jax.stages import fit, networks
from adanat_jax.types import Array


@struct.dataclass
class NatState:
  """What NAT training carries from step to step.

  Attributes:
    params: of the network.
    ema: moving average of `params`; what decoding uses.
    opt_state: of the optimizer.
  """

  params: Any
  ema: Any
  opt_state: optax.OptState


def sample_mask_ratio(
  key: Array, batch_size: int, law: str, beta: tuple[float, float]
) -> Array:
  """Mask ratios for training, float32[B] in [0, 1].

  Args:
    key: typed key.
    batch_size: B.
    law: `'cosine'`, `cos(pi/2 u)` of uniform u (MaskGIT), or `'beta'`.
    beta: the two parameters of the Beta law.
  """
  if law == 'beta':
    return jax.random.beta(key, *beta, (batch_size,))
  return jnp.cos(math.pi / 2 * jax.random.uniform(key, (batch_size,)))


def random_mask(key: Array, ratio: Array, num_tokens: int) -> Array:
  """Marks `max(1, round(ratio * N))` random tokens a sample, bool[B, N]."""
  count = jnp.maximum(1, jnp.round(ratio * num_tokens)).astype(jnp.int32)
  scores = jax.random.uniform(key, (ratio.shape[0], num_tokens))
  rank = jnp.argsort(jnp.argsort(scores, axis=-1), axis=-1)
  return rank < count[:, None]


def masked_cross_entropy(
  logits: Array, tokens: Array, masked: Array, label_smoothing: float
) -> Array:
  """Cross-entropy in nats, averaged over the masked tokens of the batch.

  Args:
    logits: float32[B, N, K].
    tokens: int32[B, N], the true ids.
    masked: bool[B, N].
    label_smoothing: share of the target spread evenly over all K ids.

  Returns:
    float32[].
  """
  target = jax.nn.one_hot(tokens, logits.shape[-1])
  target = optax.smooth_labels(target, label_smoothing)
  loss = optax.softmax_cross_entropy(logits, target)
  return jnp.sum(loss * masked) / jnp.sum(masked)


def make_optimizer(
  num_steps: int,
  learning_rate: float,
  warmup_steps: int,
  schedule: str,
  weight_decay: float,
  betas: tuple[float, float],
) -> optax.GradientTransformation:
  """AdamW with linear warm-up, then a constant rate or a cosine fall to 0."""
  if schedule == 'cosine':
    rate = optax.warmup_cosine_decay_schedule(
      0.0, learning_rate, warmup_steps, num_steps
    )
  else:
    rate = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.adamw(rate, b1=betas[0], b2=betas[1], weight_decay=weight_decay)


def make_train_step(
  module: NAT,
  optimizer: optax.GradientTransformation,
  *,
  key: Array,
  mask_ratio: str,
  beta: tuple[float, float],
  label_smoothing: float,
  condition_dropping: float,
  ema_decay: float,
) -> Callable[[NatState, Any, Array], tuple[NatState, Any]]:
  """Returns `(state, batch, step) -> (state, metrics)`, not yet jitted.

  The batch holds `tokens` int32[B, N] and `condition` int32[B].
  """
  mask_token, null_class = module.codebook_size, module.num_classes
  assert null_class is not None  # This stage trains class-conditional NATs.

  def train_step(
    state: NatState, batch: dict[str, Array], step: Array
  ) -> tuple[NatState, dict[str, Array]]:
    ratio_key, mask_key, drop_key, dropout_key = jax.random.split(
      jax.random.fold_in(key, step), 4
    )
    tokens, condition = batch['tokens'], batch['condition']
    size = tokens.shape[0]
    ratio = sample_mask_ratio(ratio_key, size, mask_ratio, beta)
    masked = random_mask(mask_key, ratio, tokens.shape[1])
    dropped = jax.random.bernoulli(drop_key, condition_dropping, (size,))
    condition = jnp.where(dropped, null_class, condition)

    def loss_fn(params: Any) -> Array:
      _, logits = module.apply(
        {'params': sharding.whole(params)},
        jnp.where(masked, mask_token, tokens),
        condition,
        train=True,
        rngs={'dropout': dropout_key},
      )
      return masked_cross_entropy(logits, tokens, masked, label_smoothing)

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema, 1 - ema_decay)
    metrics = {'loss': loss, 'gradient_norm': optax.tree.norm(grads)}
    return NatState(params, ema, opt_state), metrics

  return train_step


def held_out_loss(
  module: NAT, params: Any, tokens: Array, condition: Array, key: Array
) -> Array:
  """Cross-entropy in nats without smoothing, mask ratios by the cosine law."""
  ratio_key, mask_key = jax.random.split(key)
  ratio = sample_mask_ratio(ratio_key, tokens.shape[0], 'cosine', (1.0, 1.0))
  masked = random_mask(mask_key, ratio, tokens.shape[1])
  _, logits = module.apply(
    {'params': params},
    jnp.where(masked, module.codebook_size, tokens),
    condition,
  )
  return masked_cross_entropy(logits, tokens, masked, 0.0)


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for values of `config.nat` that cannot work."""
  check(
    config,
    {
      'nat.num_steps': int_at_least(1),
      'nat.batch_size': int_at_least(1),
      'nat.learning_rate_schedule': choice('cosine', 'constant'),
      'nat.mask_ratio': choice('cosine', 'beta'),
      'nat.ema_decay': between(0.0, 1.0),
      'nat.label_smoothing': between(0.0, 1.0),
      'nat.condition_dropping': between(0.0, 1.0),
      'nat.dropout_rate': between(0.0, 1.0),
      'nat.dtype': choice('float32', 'bfloat16'),
    },
  )
  networks.check_batches(config, {'nat.batch_size': 1})


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Tokenizes the data and trains the NAT.

  Args:
    config: the whole config; `nat`, `tokenizer`, `data`, `seed` are read.
    workdir: `tokenizer/` must be complete; gets `nat/`.

  Raises:
    UserError: for a missing tokenizer or a value that is not allowed.
  """
  check_config(config)
  if training.is_complete(workdir / 'nat'):
    return
  section = config.nat
  data = digits.load(config.data.image_size)
  tokenizer, tokenizer_params = networks.load_tokenizer(config, workdir)
  tokenize = jax.jit(functools.partial(tokenizer.apply, method='tokenize'))
  tokens, test_tokens = (
    sharding.gather(tokenize({'params': tokenizer_params}, images))
    for images in (data.train_images, data.test_images)
  )
  condition, test_condition = (
    digits.condition_of(labels, config.data.condition)
    for labels in (data.train_labels, data.test_labels)
  )

  module = networks.nat_module(config)
  optimizer = make_optimizer(
    section.num_steps,
    section.learning_rate,
    min(section.warmup_steps, section.num_steps // 2),
    section.learning_rate_schedule,
    section.weight_decay,
    tuple(section.betas),
  )
  init_key, step_key, test_key = jax.random.split(
    networks.stage_key(config, 'nat'), 3
  )

  def initial(frozen: Any) -> NatState:
    params = module.init(init_key, tokens[:1], condition[:1])['params']
    ema = jax.tree.map(jnp.copy, params)
    return NatState(params, ema, optimizer.init(params))

  train_step = make_train_step(
    module,
    optimizer,
    key=step_key,
    mask_ratio=section.mask_ratio,
    beta=tuple(section.beta),
    label_smoothing=section.label_smoothing,
    condition_dropping=section.condition_dropping,
    ema_decay=section.ema_decay,
  )

  def figures(state: NatState) -> dict[str, float]:
    loss = jax.jit(held_out_loss, static_argnums=0)
    return {
      'train_loss': float(loss(module, state.ema, tokens, condition, test_key)),
      'test_loss': float(
        loss(module, state.ema, test_tokens, test_condition, test_key)
      ),
    }

  fit.fit(
    config,
    workdir,
    'nat',
    initial=initial,
    train_step=lambda frozen, *arguments: train_step(*arguments),
    batch_at=fit.Batches(
      config,
      'nat',
      ArrayExamples({'tokens': tokens, 'condition': condition}),
      (section.batch_size,),
    ),
    num_steps=section.num_steps,
    final_figures=figures,
  )
