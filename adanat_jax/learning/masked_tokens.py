"""Training a masked-token transformer: its masks, its loss, and one step.

Each example gets a mask ratio, by a curve such as MaskGIT's cosine or by
AutoNAT's Beta(12, 3), and that share of its tokens is masked. The loss is the
label-smoothed cross-entropy of all masked tokens of the batch, or of all
tokens; some examples get the null condition, for guidance. Decoding uses an
exponential moving average of the parameters.

A network that decodes with a cache (ENAT) also learns to use one. Some examples
get a cache that the moving average computes, from fewer visible tokens than the
trained network sees: `k = round(u * their number)` of them, with uniform u, are
masked for it. As published, the moving average itself gets no cache: training
has one level of reuse, decoding has many.

AutoNAT, section 3.1; LeapLabTHU/ImprovedNAT train.py and libs/nat_misc.py;
LeapLabTHU/ENAT likewise; docs/how_it_works.md lists the differences. Shape
letters: `B` samples, `N` tokens, `K` codebook.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from adanat_jax.decoding.step import least_confident
from adanat_jax.decoding.tables import mask_ratio_curve
from adanat_jax.learning.ppo import limited
from adanat_jax.runtime import batch_parts, sharding
from adanat_jax.types import Array, Cache


@struct.dataclass
class NatState:
  """What NAT training carries from step to step."""

  params: Any
  ema: Any  # moving average of `params`; what decoding uses
  opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How examples are made from tokens, and the constants of the step."""

  mask_token: int  # the id that stands for a masked token
  mask_ratio: str = 'cosine'  # law of the mask ratios, see `sample_mask_ratio`
  beta: tuple[float, float] = (12.0, 3.0)  # parameters of the Beta law
  # Smaller ratios are raised to it (huggingface/open-muse train_muse.py,
  # `min_masking_rate`).
  least_mask_ratio: float = 0.0
  # Whether the mask ratio, whether there is a cache, and what it has seen are
  # drawn for each `'example'`, or once for the `'batch'`, as ENAT's authors do.
  mask_ratio_per: str = 'example'
  reuse_probability: float = 0.0  # of a cache; 0 for a network without one
  label_smoothing: float = 0.1  # share of the target spread evenly over all ids
  condition_dropping: float = 0.1  # share of examples with the null condition
  # Whether the loss is of the `'masked'` tokens, or of `'all'`, so that those
  # that the network sees are to be predicted too.
  loss_tokens: str = 'masked'
  ema_decay: float = 0.9999  # of the moving average, a step
  # In how many parts of the batch a gradient is computed, one after the other,
  # so that only one part's activations are held.
  micro_batches: int = 1


@dataclasses.dataclass(frozen=True)
class Network:
  """The network that is trained, as functions; all are traced."""

  # `(params, tokens int32[B, N], condition, dropout key, cache) ->
  # float32[B, N, K]`, with dropout; the cache is None if nothing is reused.
  logits: Callable[[Any, Array, Array, Array, Cache], Array]
  # `(frozen, batch) -> [B, ...]`, what the network reads.
  condition: Callable[[Any, dict[str, Array]], Array]
  null: Callable[[Any], Any]  # `frozen -> [...]`, one null condition.
  # `(params, tokens int32[B, N], condition, wanted bool[B]) -> cache`, without
  # dropout; the cache that a later forward reads, empty for samples that are
  # not wanted. A cache of zeros must count as empty. None for a network without
  # a cache.
  encode: Callable[[Any, Array, Array, Array], Cache] | None = None


def sample_mask_ratio(
  key: Array, batch_size: int, num_tokens: int, recipe: Recipe
) -> Array:
  """Mask ratios for training, float32[B] in [0, 1].

  The law is `'beta'`, with its two parameters, or a curve of `decoding.tables`
  at uniform u, such as `cos(pi/2 u)` (MaskGIT, section 3.1). Of `num_tokens`
  tokens a ratio is the share.
  """
  if recipe.mask_ratio == 'beta':
    ratio = jax.random.beta(key, *recipe.beta, (batch_size,))
  else:
    progress = jax.random.uniform(key, (batch_size,))
    ratio = mask_ratio_curve(progress, num_tokens, recipe.mask_ratio)
  return jnp.maximum(ratio, recipe.least_mask_ratio)


def random_mask(key: Array, ratio: Array, num_tokens: int) -> Array:
  """Marks `max(1, round(ratio * N))` random tokens a sample, bool[B, N]."""
  count = jnp.maximum(1, jnp.round(ratio * num_tokens)).astype(jnp.int32)
  scores = jax.random.uniform(key, (len(ratio), num_tokens))
  return least_confident(scores, count)


def draw_masks(
  keys: tuple[Array, Array], shape: tuple[int, int], recipe: Recipe
) -> Array:
  """Marks the tokens to be predicted, bool[B, N].

  With one ratio for the batch at least one token stays visible, as published;
  an example with its own ratio may be masked altogether, as in the first step
  of decoding.

  Args:
    keys: of the ratios, and of where.
    shape: B and N.
    recipe: how.
  """
  ratio_key, mask_key = keys
  batch_size, num_tokens = shape
  if recipe.mask_ratio_per == 'batch':
    ratio = sample_mask_ratio(ratio_key, 1, num_tokens, recipe)
    ratio = jnp.minimum(ratio, 1 - 1 / num_tokens)
    ratio = jnp.broadcast_to(ratio, (batch_size,))
  else:
    ratio = sample_mask_ratio(ratio_key, batch_size, num_tokens, recipe)
  return random_mask(mask_key, ratio, num_tokens)


def draw_reuse(
  key: Array, masked: Array, recipe: Recipe
) -> tuple[Array, Array]:
  """Draws which examples get a cache, bool[B], and what is hidden from it.

  The latter, bool[B, N], includes `masked` bool[B, N]: of the `Nv` visible
  tokens `round(u Nv)` are hidden too, from none to all.
  """
  wanted_key, share_key, mask_key = jax.random.split(key, 3)
  batch_size = len(masked)
  num_draws = 1 if recipe.mask_ratio_per == 'batch' else batch_size
  chance = recipe.reuse_probability
  wanted = jax.random.bernoulli(wanted_key, chance, (num_draws,))
  share = jax.random.uniform(share_key, (num_draws,))
  num_masked = jnp.sum(masked, axis=-1)
  more = jnp.round(share * (masked.shape[1] - num_masked)).astype(jnp.int32)
  scores = jax.random.uniform(mask_key, masked.shape)
  return (
    jnp.broadcast_to(wanted, (batch_size,)),
    least_confident(jnp.where(masked, -1.0, scores), num_masked + more),
  )


def masked_cross_entropy(
  logits: Array,
  tokens: Array,
  masked: Array,
  label_smoothing: float,
  num_masked: Array | None = None,
) -> Array:
  """Cross-entropy in nats, averaged over the masked tokens: float32[].

  Args:
    logits: float[B, N, K]; the sums over K are float32.
    tokens: int32[B, N], the true ids.
    masked: bool[B, N].
    label_smoothing: share of the target spread evenly over all K ids.
    num_masked: divisor of the sum: the masked tokens of the whole batch, where
      these samples are a part of it; None for those of these samples.
  """
  target = jax.nn.one_hot(tokens, logits.shape[-1])
  target = optax.smooth_labels(target, label_smoothing)
  loss = optax.softmax_cross_entropy(logits.astype(jnp.float32), target)
  if num_masked is None:
    num_masked = jnp.sum(masked)
  return jnp.sum(loss * masked) / num_masked


def make_optimizer(
  num_steps: int,
  learning_rate: float,
  warmup_steps: int,
  schedule: str,
  weight_decay: float,
  betas: tuple[float, float],
  max_gradient_norm: float = 0.0,
) -> optax.GradientTransformation:
  """AdamW with linear warm-up, then a constant rate or a cosine fall to 0.

  Args:
    num_steps: of the training.
    learning_rate: after the warm-up.
    warmup_steps: how many updates have a smaller rate.
    schedule: 'cosine', whose first update has rate 0, or 'constant', whose
      update u of w has (u + 1) / w of the rate, so that none is wasted.
    weight_decay: of all parameters.
    betas: decays of Adam's two averages.
    max_gradient_norm: see `limited`.
  """
  if schedule == 'cosine':
    rate = optax.warmup_cosine_decay_schedule(
      0.0, learning_rate, warmup_steps, num_steps
    )
  else:
    length = max(1, warmup_steps)
    rate = lambda count: learning_rate * jnp.minimum(1.0, (count + 1) / length)
  adam = optax.adamw(rate, b1=betas[0], b2=betas[1], weight_decay=weight_decay)
  return limited(adam, max_gradient_norm)


def make_train_step(
  network: Network,
  optimizer: optax.GradientTransformation,
  recipe: Recipe,
  *,
  key: Array,
) -> Callable[[Any, NatState, Any, Array], tuple[NatState, Any]]:
  """Returns `(frozen, state, batch, step) -> (state, metrics)`, not yet jitted.

  The batch holds `tokens` int32[B, N] and what `network.condition` reads. In
  micro-batches the masks, the dropped conditions, the caches and the gradient
  are those of the whole batch; only dropout is drawn anew in each part.

  Args:
    network: what is trained.
    optimizer: from `make_optimizer`.
    recipe: how.
    key: everything random follows from it and the step.
  """
  reuses = recipe.reuse_probability > 0

  def cache_of(ema: Any, part: dict[str, Array], condition: Array) -> Cache:
    """The moving average's cache of the tokens that are visible to it."""

    def encoded() -> Cache:
      return network.encode(  # type: ignore[misc]
        ema,
        jnp.where(part['hidden'], recipe.mask_token, part['tokens']),
        # The cache sees the null condition as well: guided decoding keeps one
        # cache per pass.
        condition,
        part['wanted'],
      )

    def nothing() -> Cache:
      return optax.tree.zeros_like(jax.eval_shape(encoded))

    return jax.lax.cond(jnp.any(part['wanted']), encoded, nothing)

  def train_step(
    frozen: Any, state: NatState, batch: dict[str, Array], step: Array
  ) -> tuple[NatState, dict[str, Array]]:
    step_key = jax.random.fold_in(key, step)
    ratio_key, mask_key, drop_key, dropout_key = jax.random.split(step_key, 4)
    size, num_tokens = batch['tokens'].shape
    masked = draw_masks((ratio_key, mask_key), (size, num_tokens), recipe)
    dropped = jax.random.bernoulli(drop_key, recipe.condition_dropping, (size,))
    learned = masked
    if recipe.loss_tokens == 'all':
      learned = jnp.ones_like(masked)
    num_learned = jnp.sum(learned)
    whole = {'masked': masked, 'learned': learned, 'dropped': dropped, **batch}
    if reuses:
      # Not a fifth part of the split: that would change the other four.
      reuse_key = jax.random.fold_in(step_key, 4)
      whole['wanted'], whole['hidden'] = draw_reuse(reuse_key, masked, recipe)
      # Once; in `cache_of` a split average would be gathered for each part.
      average = sharding.whole(state.ema)

    def gradient(part: dict[str, Array], dropout: Array) -> tuple[Array, Any]:
      condition = network.condition(frozen, part)
      unseen = part['dropped'].reshape(-1, *[1] * (condition.ndim - 1))
      condition = jnp.where(unseen, network.null(frozen), condition)
      cache = cache_of(average, part, condition) if reuses else None

      def loss_fn(params: Any) -> Array:
        logits = network.logits(
          sharding.whole(params),
          jnp.where(part['masked'], recipe.mask_token, part['tokens']),
          condition,
          dropout,
          cache,
        )
        tokens, learned = part['tokens'], part['learned']
        return masked_cross_entropy(
          logits, tokens, learned, recipe.label_smoothing, num_learned
        )

      return jax.value_and_grad(loss_fn)(state.params)

    def add(total: Any, index: Array) -> tuple[Any, None]:
      part = batch_parts.take_every(whole, index, recipe.micro_batches, axis=0)
      found = gradient(part, jax.random.fold_in(dropout_key, index))
      return optax.tree.add(total, found), None

    if recipe.micro_batches == 1:
      loss, grads = gradient(whole, dropout_key)
    else:
      nothing = (jnp.zeros(()), optax.tree.zeros_like(state.params))
      parts = jnp.arange(recipe.micro_batches)
      (loss, grads), _ = jax.lax.scan(add, nothing, parts)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optax.incremental_update(params, state.ema, 1 - recipe.ema_decay)
    metrics = {'loss': loss, 'gradient_norm': optax.tree.norm(grads)}
    return NatState(params, ema, opt_state), metrics

  return train_step
