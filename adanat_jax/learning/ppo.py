"""Proximal policy optimisation for a policy that acts T times an image.

1. The reward of the finished image is the return of each of its T actions
   (discount 1); returns are standardised over the batch.
2. The advantage is the standardised return minus the value that the critic
   gave when the action was taken.
3. A few epochs of gradient steps on

     mean( -min(r A, clip(r, 1-eps, 1+eps) A) + c_v (V - R)^2 - c_e H )

   where r is the ratio of the action's densities now and then.

AdaNAT, section 3.3; LeapLabTHU/AdaNAT PPO.py and train.py. The Gaussian's
standard deviation is given, not learned, so its entropy H has no gradient.
`PAPER` is that algorithm to the letter; `OURS` is for runs of a hundred
iterations, in which the published rate of 1e-5 could not act.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import chex
from flax import struct
import jax
import jax.numpy as jnp
import optax

from adanat_jax.decoding import actions, guidance
from adanat_jax.learning.agent import ActorCritic, gaussian_log_prob
from adanat_jax.runtime import batch_parts
from adanat_jax.types import Array


@dataclasses.dataclass(frozen=True)
class PPOConfig:
  """The constants of the update."""

  learning_rate: float = 1e-5
  num_epochs: int = 5  # passes over the batch
  num_minibatches: int = 1  # gradient steps a pass, on whole trajectories
  # Minibatches are drawn within this many equal consecutive parts of the batch;
  # where the number of devices divides it no feature moves between devices. 1:
  # from the whole batch.
  shuffle_groups: int = 1
  # A gradient is the mean over this many parts of its minibatch, computed one
  # after the other, so that only one part's activations are held.
  micro_batches: int = 1
  clip_epsilon: float = 0.2  # ratios are clipped to 1 - this and 1 + this
  value_coefficient: float = 0.5  # weight of the critic's squared error
  entropy_coefficient: float = 0.01  # weight of the (constant) entropy
  discount: float = 1.0  # of rewards, a step
  max_gradient_norm: float = 0.0  # largest norm of a gradient; 0 for no limit
  adam_epsilon: float = 1e-8
  # Leave the last step's mask ratio and masking temperature, and the guidance
  # of steps that are not guided, out of the density: they change nothing.
  drop_dead_actions: bool = False
  initial_std: float = 0.6  # of the exploration, at the first iteration
  final_std: float = 0.1  # at the last (`linear`); lower limit (`steps`)
  std_schedule: str = 'steps'  # or 'linear' over the configured iterations
  std_decay: float = 0.3  # taken off at each of `std_decay_steps` (`steps`)
  std_decay_steps: tuple[int, ...] = (500,)  # from these iterations on
  # Of each entry of the action, in place of `initial_std`; empty for one. The
  # rest of the `std_*` fields is the same for all.
  std_per_action: tuple[float, ...] = ()


PAPER = PPOConfig()
OURS = PPOConfig(
  learning_rate=3e-4,
  num_minibatches=4,
  max_gradient_norm=1.0,
  adam_epsilon=1e-5,
  drop_dead_actions=True,
  final_std=0.2,
  std_schedule='linear',
)
PRESETS = {'paper': PAPER, 'ours': OURS}


@struct.dataclass
class Rollout:
  """One batch of trajectories as the update takes it, time-major."""

  # Features, or what they are computed from, as `actor_critic` takes them.
  observations: Any  # each [T, B, ...], e.g. float[T, B, N, D]
  actions: Array  # float32[T, B, A]; raw actions it took
  log_probs: Array  # float32[T, B]; their log-densities then
  values: Array  # float32[T, B]; the critic's estimates then
  returns: Array  # float32[T, B]; standardised
  # 1 for action entries that count in the density, 0 for dead ones.
  weights: Array  # float32[T, A]


def gaussian_entropy(std: Array | float, num_entries: Array | int) -> Array:
  """Entropy in nats of a Gaussian with `num_entries` entries of equal `std`."""
  return num_entries * (0.5 * math.log(2 * math.pi * math.e) + jnp.log(std))


def action_weights(
  num_steps: int,
  drop_dead: bool,
  guided: guidance.Guided = True,
  learned: tuple[str, ...] = actions.NAMES,
) -> Array:
  """Which action entries count, float32[T, A].

  Those that are not `learned` never do; see `drop_dead_actions`.
  """
  weights = jnp.tile(actions.chosen(learned), (num_steps, 1))
  if not drop_dead:
    return weights
  weights = weights.at[-1, :2].set(0.0)
  counts = jnp.array(guidance.each_step(guided, num_steps))
  return weights.at[:, 3].multiply(counts)


def discounted_returns(rewards: Array, discount: float) -> Array:
  """`G_t = r_t + discount * G_{t+1}` of rewards, float32[T, B] both."""

  def body(later: Array, reward: Array) -> tuple[Array, Array]:
    total = reward + discount * later
    return total, total

  nothing = jnp.zeros_like(rewards[0])
  return jax.lax.scan(body, nothing, rewards, reverse=True)[1]


def standardise(returns: Array) -> Array:
  """`(x - mean) / (std + 1e-7)` over all entries, with the unbiased std."""
  return (returns - returns.mean()) / (returns.std(ddof=1) + 1e-7)


def exploration_std(
  iteration: Array | int, total: int, constants: PPOConfig
) -> Array:
  """Standard deviation of the exploration, float32[]; [A] if one per entry.

  It depends on the iteration, counted from 0, the configured total and the
  `std_*` fields alone.
  """
  iteration = jnp.asarray(iteration)
  initial: Array | float = constants.initial_std
  if constants.std_per_action:
    initial = jnp.array(constants.std_per_action, jnp.float32)
  if constants.std_schedule == 'linear':
    done = iteration / max(total - 1, 1)
    return initial + done * (constants.final_std - initial)
  steps = jnp.array(constants.std_decay_steps)
  passed = (iteration[..., None] >= steps).sum(-1)
  return jnp.maximum(
    initial - constants.std_decay * passed, constants.final_std
  )


def ppo_loss(
  mean: Array,
  values: Array,
  rollout: Rollout,
  std: Array | float,
  constants: PPOConfig,
) -> tuple[Array, dict[str, Array]]:
  """The clipped objective, float32[], with a dict of float32[] metrics.

  Args:
    mean: float32[T, B, A], the actor's means now.
    values: float32[T, B], the critic's estimates now.
    rollout: the batch.
    std: exploration standard deviation with which it was collected, float32[]
      or [A].
    constants: of PPO.
  """
  chex.assert_equal_shape([values, rollout.returns, rollout.log_probs])
  weights = rollout.weights[:, None]
  log_probs = gaussian_log_prob(rollout.actions, mean, std, weights)
  log_ratio = log_probs - rollout.log_probs
  ratio = jnp.exp(log_ratio)
  advantages = rollout.returns - rollout.values
  low, high = 1 - constants.clip_epsilon, 1 + constants.clip_epsilon
  clipped = jnp.clip(ratio, low, high)
  surrogate = -jnp.minimum(ratio * advantages, clipped * advantages).mean()
  value_loss = jnp.mean((values - rollout.returns) ** 2)
  if jnp.ndim(std):
    entropy = gaussian_entropy(std, rollout.weights).sum(-1).mean()
  else:
    entropy = gaussian_entropy(std, rollout.weights.sum(-1)).mean()
  loss = (
    surrogate
    + constants.value_coefficient * value_loss
    - constants.entropy_coefficient * entropy
  )
  return loss, {
    'loss': loss,
    'surrogate': surrogate,
    'value_loss': value_loss,
    'entropy': entropy,
    'kl': jnp.mean(ratio - 1 - log_ratio),
    'clip_fraction': jnp.mean(jnp.abs(ratio - 1) > constants.clip_epsilon),
    'ratio_deviation': jnp.max(jnp.abs(ratio - 1)),
  }


def limited(
  optimizer: optax.GradientTransformation, max_gradient_norm: float
) -> optax.GradientTransformation:
  """The optimizer of gradients scaled down to a norm; 0 for no limit."""
  if not max_gradient_norm:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(max_gradient_norm), optimizer)


def make_optimizer(constants: PPOConfig) -> optax.GradientTransformation:
  """Adam; gradients are scaled down to `max_gradient_norm` if that is set."""
  adam = optax.adam(constants.learning_rate, eps=constants.adam_epsilon)
  return limited(adam, constants.max_gradient_norm)


def update(
  params: Any,
  opt_state: optax.OptState,
  rollout: Rollout,
  std: Array | float,
  key: Array,
  *,
  actor_critic: ActorCritic,
  optimizer: optax.GradientTransformation,
  constants: PPOConfig,
) -> tuple[Any, optax.OptState, dict[str, Array]]:
  """All epochs of gradient steps on one batch of trajectories.

  Args:
    params: of actor and critic.
    opt_state: of `optimizer`.
    rollout: the batch; B must be divisible by `num_minibatches *
      shuffle_groups * micro_batches`.
    std: exploration standard deviation with which it was collected.
    key: shuffles trajectories into minibatches.
    actor_critic: `(params, features, step) -> (mean, value)`.
    optimizer: from `make_optimizer`.
    constants: of PPO.

  Returns:
    New parameters and optimizer state; metrics of the last epoch (means over
    its minibatches), `first_ratio_deviation` of the very first minibatch,
    which is 0 but for rounding, and the explained variance of the values with
    which the batch was collected.
  """
  num_steps, batch_size = rollout.returns.shape
  per_epoch = constants.num_minibatches * constants.micro_batches
  chex.assert_is_divisible(batch_size, per_epoch)

  def loss_fn(params: Any, batch: Rollout) -> tuple[Array, dict[str, Array]]:
    steps = jnp.arange(num_steps)[:, None]
    steps = jnp.broadcast_to(steps, batch.returns.shape)
    flat = batch_parts.flatten_steps((batch.observations, steps))
    results = actor_critic(params, *flat)
    mean, values = batch_parts.unflatten_steps(results, num_steps)
    return ppo_loss(mean, values, batch, std, constants)

  def gradient(params: Any, part: Array) -> tuple[Any, dict[str, Array]]:
    batch = _part(rollout, part, constants)
    return jax.grad(loss_fn, has_aux=True)(params, batch)

  def mean_gradient(params: Any, parts: Array) -> tuple[Any, dict[str, Array]]:
    if constants.micro_batches == 1:
      return gradient(params, parts[0])

    def add(total: Any, part: Array) -> tuple[Any, dict[str, Array]]:
      grads, metrics = gradient(params, part)
      return optax.tree.add(total, grads), metrics

    total, metrics = jax.lax.scan(add, optax.tree.zeros_like(params), parts)
    # Parts are of one size: the mean of their means is the mean.
    worst = metrics['ratio_deviation'].max()
    metrics = jax.tree.map(jnp.mean, metrics) | {'ratio_deviation': worst}
    return optax.tree.scale(1 / constants.micro_batches, total), metrics

  def gradient_step(carry: Any, parts: Array) -> tuple[Any, Any]:
    params, opt_state = carry
    grads, metrics = mean_gradient(params, parts)
    metrics['gradient_norm'] = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), metrics

  def epoch(carry: Any, key: Array) -> tuple[Any, Any]:
    parts = jnp.arange(per_epoch)
    if constants.num_minibatches > 1:
      parts = batch_parts.shuffled_rows(
        key, batch_size, groups=constants.shuffle_groups, parts=per_epoch
      )
    parts = parts.reshape(-1, constants.micro_batches, *parts.shape[1:])
    return jax.lax.scan(gradient_step, carry, parts)

  keys = jax.random.split(key, constants.num_epochs)
  (params, opt_state), history = jax.lax.scan(epoch, (params, opt_state), keys)
  metrics = jax.tree.map(lambda x: x[-1].mean(), history)
  del metrics['ratio_deviation']
  metrics['first_ratio_deviation'] = history['ratio_deviation'][0, 0]
  residual = rollout.returns - rollout.values
  # A batch of equal rewards has no variance to explain.
  variance = jnp.maximum(rollout.returns.var(), 1e-8)
  metrics['explained_variance'] = 1 - residual.var() / variance
  return params, opt_state, metrics


def _part(rollout: Rollout, part: Array, constants: PPOConfig) -> Rollout:
  """The trajectories of one micro-batch.

  `part` is int32[G, M], rows of each group; with one minibatch int32[], the
  number of the micro-batch.
  """
  if constants.num_minibatches == constants.micro_batches == 1:
    return rollout
  samples = {
    field.name: getattr(rollout, field.name)
    for field in dataclasses.fields(rollout)
    if field.name != 'weights'  # They have no axis B.
  }
  if constants.num_minibatches > 1:
    samples = batch_parts.pick(samples, part)
  else:
    samples = batch_parts.take_every(
      samples, part, constants.micro_batches, axis=1
    )
  return dataclasses.replace(rollout, **samples)
