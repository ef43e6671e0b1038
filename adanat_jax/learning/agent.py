"""The learned policy behind the same signature as every schedule."""

from __future__ import annotations

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from adanat_jax.decoding import actions as actions_lib
from adanat_jax.learning import ppo
from adanat_jax.types import Array, Carry, Policy, PolicyAux, PolicyValues


@struct.dataclass
class Agent:
  """A trained, or training, policy network and what its actions stand for.

  Attributes:
    params: of actor and critic.
    residual: the schedule that a zero action stands for.
    actor_critic: `(params, features, step) -> (mean, value)`.
  """

  params: Any
  residual: Array  # float32[T, A]
  actor_critic: ppo.ActorCritic = struct.field(pytree_node=False)

  def policy(
    self,
    std: Array | float | None = None,
    weights: Array | None = None,
  ) -> Policy:
    """The policy, whose aux is `PolicyAux`.

    Args:
      std: exploration standard deviation; None takes the mean action, as at
        inference.
      weights: float32[T, A], entries that count in the log-density; all if
        None.
    """

    def policy(
      step: Array, features: Array, keys: Array, carry: Carry
    ) -> tuple[PolicyValues, PolicyAux, Carry]:
      steps = jnp.full(features.shape[:1], step)
      mean, value = self.actor_critic(self.params, features, steps)
      if std is None:
        action, log_prob = mean, jnp.zeros_like(value)
      else:
        normal = jax.vmap(lambda k: jax.random.normal(k, mean.shape[1:]))(keys)
        action = mean + std * normal
        counted = 1.0 if weights is None else weights[step]
        log_prob = ppo.gaussian_log_prob(action, mean, std, counted)
      residual = self.residual[step]
      values = actions_lib.values_from_action(action, residual[None])
      return values, PolicyAux(action, log_prob, value), carry

    return policy


def non_adaptive(
  actor_critic: ppo.ActorCritic, num_steps: int
) -> ppo.ActorCritic:
  """The same networks blind to the image: zeros in place of the features.

  All samples of a step are then alike: the networks run on one row a step.

  Args:
    actor_critic: `(params, features, step) -> (mean, value)`.
    num_steps: T; steps are in `[0, T)`.
  """

  def blind(params: Any, features: Array, step: Array) -> tuple[Array, Array]:
    nothing = jnp.zeros((num_steps, *features.shape[1:]), features.dtype)
    mean, value = actor_critic(params, nothing, jnp.arange(num_steps))
    return mean[step], value[step]

  return blind
