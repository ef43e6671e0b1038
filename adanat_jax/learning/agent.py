"""The learned policy behind the same signature as every schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import math
from typing import Any, TypeAlias

from flax import struct
import jax
import jax.numpy as jnp

from adanat_jax.decoding import actions as actions_lib, guidance
from adanat_jax.types import (
  Array,
  Carry,
  Critic,
  Observation,
  Policy,
  PolicyAux,
  PolicyValues,
)

# (params, features [M, N, D], step int32[M]) -> (mean [M, A], value [M])
# PPO may pass what features are computed from in place of features.
ActorCritic: TypeAlias = Callable[[Any, Any, Array], tuple[Array, Array]]


def gaussian_log_prob(
  action: Array, mean: Array, std: Array | float, weights: Array | float = 1.0
) -> Array:
  """Log-density of `action` under `N(mean, std^2 I)`, summed over entries.

  Args:
    action: float32[..., A].
    mean: float32[..., A].
    std: standard deviation of every entry, or float32[A].
    weights: float32[A] or broadcastable; entries of weight 0 do not count.

  Returns:
    float32[...].
  """
  normalised = (action - mean) / std
  log_prob = -0.5 * (normalised**2 + math.log(2 * math.pi)) - jnp.log(std)
  return (weights * log_prob).sum(-1)


@struct.dataclass
class Agent:
  """A policy network, its parameters, and the schedule that it modulates.

  Attributes:
    params: of actor and critic.
    residual: the schedule that a zero action gives, before the activations.
    actor_critic: `(params, features, step) -> (mean, value)`.
    smoothing: of actions from step to step, see `actions.smooth`. Learning sees
      the raw action: smoothing belongs to the environment.
    guided: whether it was trained with the unconditional pass, which its
      guidance needs, or at which of its T steps.
    learned: which of `actions.NAMES` it chooses; the others are those of the
      residual's schedule.
    dial: where its dial stands, float32[] in [0, 1]; None for a policy that has
      none. Its networks then take `(features, dial float32[M])`.
  """

  params: Any
  residual: Array  # float32[T, A]
  actor_critic: ActorCritic = struct.field(pytree_node=False)
  smoothing: float = struct.field(pytree_node=False, default=0.0)
  guided: guidance.Guided = struct.field(pytree_node=False, default=True)
  learned: tuple[str, ...] = struct.field(
    pytree_node=False, default=actions_lib.NAMES
  )
  dial: Array | None = None

  @property
  def num_steps(self) -> int:
    """T, the number of steps that the residual has."""
    return len(self.residual)

  def initial_carry(self, keys: Array, dial: Array | None = None) -> Carry:
    """What it carries of samples with these keys, key[B].

    The smoothed action before the first, float32[B, A], if any is; beside it
    the dial of each, float32[B], if it has one: `dial`, or what is set.
    """
    action: Carry = ()
    if self.smoothing:
      action = jnp.zeros((*keys.shape, self.residual.shape[-1]))
    if self.dial is None:
      return action
    chosen = self.dial if dial is None else dial
    return jnp.broadcast_to(chosen, keys.shape), action

  def critic(self) -> Critic | None:
    """What it expects of a step's features; None without a critic."""
    if not isinstance(self.params, Mapping) or 'critic' not in self.params:
      return None

    def critic(step: Array, features: Array) -> Array:
      steps = jnp.full(features.shape[:1], step)
      seen: Any = features
      if self.dial is not None:
        seen = features, jnp.broadcast_to(self.dial, steps.shape)
      return self.actor_critic(self.params, seen, steps)[1]

    return critic

  def policy(
    self, std: Array | float | None = None, weights: Array | None = None
  ) -> Policy:
    """The policy, whose aux is `PolicyAux`.

    Args:
      std: of the exploration, float32[] or one for each entry, float32[A]; None
        takes the mean action, as at inference.
      weights: float32[T, A], which entries count; None for all.
    """

    def policy(
      step: Array, observation: Observation, keys: Array, carry: Carry
    ) -> tuple[PolicyValues, PolicyAux, Carry]:
      features: Any = observation.features
      steps = jnp.full(features.shape[:1], step)
      dial = None
      if self.dial is not None:
        dial, carry = carry
        features = features, dial
      mean, value = self.actor_critic(self.params, features, steps)
      if std is None:
        action, log_prob = mean, jnp.zeros_like(value)
      else:
        normal = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(keys)
        action = mean + std * normal
        counted = 1.0 if weights is None else weights[step]
        log_prob = gaussian_log_prob(action, mean, std, counted)
      if self.learned != actions_lib.NAMES:
        action = action * actions_lib.chosen(self.learned)
      taken = action
      if self.smoothing:
        carry = taken = actions_lib.smooth(step, carry, action, self.smoothing)
      residual = self.residual[step]
      values = actions_lib.values_from_action(taken, residual[None])
      carry = carry if dial is None else (dial, carry)
      return values, PolicyAux(action, log_prob, value), carry

    return policy


def non_adaptive(actor_critic: ActorCritic, num_steps: int) -> ActorCritic:
  """The same networks blind to the image: zeros in place of the features.

  All samples of a step (in `[0, num_steps)`) then get the same action, so the
  networks run on one row per step.
  """

  def blind(params: Any, features: Array, step: Array) -> tuple[Array, Array]:
    nothing = jnp.zeros((num_steps, *features.shape[1:]), features.dtype)
    mean, value = actor_critic(params, nothing, jnp.arange(num_steps))
    return mean[step], value[step]

  return blind
