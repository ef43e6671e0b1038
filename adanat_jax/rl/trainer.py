"""One iteration of policy training, as a pure function.

1. The policy, exploring, decodes a batch of images from random conditions.
2. The reward judges the finished images.
3. PPO improves actor and critic on that batch.
4. With the adversarial reward, the discriminator learns to tell these images
   from real ones (as published: images of fresh rollouts).

AdaNAT, section 3; LeapLabTHU/AdaNAT train.py.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from adanat_jax.decoding import actions, loop
from adanat_jax.rl import adversary, agent as agent_lib, ppo
from adanat_jax.types import Array, Denoiser, PolicyValues, Reward

Labelled = tuple[Array, Array]  # images float32[B, H, W, C], int32[B]


@struct.dataclass
class PolicyState:
  """What policy training carries from iteration to iteration.

  Attributes:
    params: of actor and critic.
    opt_state: of PPO's optimizer.
    adversary: the discriminator, None for other rewards.
  """

  params: Any
  opt_state: optax.OptState
  adversary: adversary.AdversaryState | None


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a policy is trained on: the frozen parts, as callables.

  Attributes:
    denoiser: the NAT.
    decode_images: `tokens int32[B, N] -> images float32[B, H, W, C]`.
    num_tokens: N.
    mask_token: `codebook_size`.
    num_classes: conditions are int32 in `[0, num_classes)`.
  """

  denoiser: Denoiser
  decode_images: Callable[[Array], Array]
  num_tokens: int
  mask_token: int
  num_classes: int


@dataclasses.dataclass(frozen=True)
class Judge:
  """A reward and its learning.

  Attributes:
    initial: the discriminator's state at the start, None without one.
    reward: `state -> Reward`.
    learn: `(state, real, fakes, fresh, key) -> (state, metrics)`; `fakes` are
      the iteration's images and conditions, `fresh(key)` makes new ones.
    fakes_per_update: how many images one discriminator update takes.
  """

  initial: adversary.AdversaryState | None
  reward: Callable[[Any], Reward]
  learn: Callable[..., tuple[Any, dict[str, Array]]]
  fakes_per_update: int = 0


def collect(
  problem: Problem,
  agent: agent_lib.Agent,
  key: Array,
  *,
  batch_size: int,
  num_steps: int,
  std: Array,
  weights: Array,
) -> tuple[Any, Array, Array]:
  """Decodes one batch with an exploring policy.

  Returns:
    The trajectory, the images float32[B, H, W, C], the conditions int32[B].
  """
  condition_key, sample_key = jax.random.split(key)
  condition = jax.random.randint(
    condition_key, (batch_size,), 0, problem.num_classes
  )
  decoded = loop.decode(
    problem.denoiser,
    agent.policy(std, weights),
    tokens=loop.full_mask(batch_size, problem.num_tokens, problem.mask_token),
    condition=condition,
    null_condition=jnp.int32(problem.num_classes),
    keys=loop.sample_keys(sample_key, batch_size),
    num_steps=num_steps,
    mask_token=problem.mask_token,
    record=True,
  )
  return (
    decoded.trajectory,
    problem.decode_images(decoded.tokens),
    condition,
  )


def make_train_step(
  problem: Problem,
  actor_critic: ppo.ActorCritic,
  residual: Array,
  judge: Judge,
  config: ppo.PPOConfig,
  *,
  key: Array,
  batch_size: int,
  num_iterations: int,
  fresh_rollouts: bool,
) -> Callable[[PolicyState, Any, Array], tuple[PolicyState, Any]]:
  """Returns `(state, real batch, iteration) -> (state, metrics)`, not jitted.

  Args:
    problem: the frozen parts.
    actor_critic: the networks.
    residual: float32[T, A].
    judge: the reward, and how the discriminator learns.
    config: constants of PPO.
    key: all randomness of the training.
    batch_size: trajectories an iteration.
    num_iterations: configured total, on which exploration depends.
    fresh_rollouts: whether the discriminator sees images of rollouts of its
      own, as published, or those that PPO has just used.
  """
  num_steps = residual.shape[0]
  optimizer = ppo.make_optimizer(config)
  weights = ppo.action_weights(
    num_steps, actions.NUM_ACTIONS, config.drop_dead_actions
  )

  def train_step(
    state: PolicyState, real: Any, iteration: Array
  ) -> tuple[PolicyState, dict[str, Array]]:
    rollout_key, reward_key, update_key, adversary_key = jax.random.split(
      jax.random.fold_in(key, iteration), 4
    )
    std = ppo.exploration_std(iteration, num_iterations, config)
    agent = agent_lib.Agent(state.params, residual, actor_critic)
    trajectory, images, condition = collect(
      problem,
      agent,
      rollout_key,
      batch_size=batch_size,
      num_steps=num_steps,
      std=std,
      weights=weights,
    )
    reward = judge.reward(state.adversary)(images, condition, reward_key)
    final = jnp.zeros((num_steps, batch_size)).at[-1].set(reward)
    returns = ppo.discounted_returns(final, config.discount)
    rollout = ppo.Rollout(
      features=trajectory.features,
      actions=trajectory.aux.action,
      log_probs=trajectory.aux.log_prob,
      values=trajectory.aux.value,
      returns=ppo.standardise(returns),
      weights=weights,
    )
    params, opt_state, metrics = ppo.update(
      state.params,
      state.opt_state,
      rollout,
      std,
      update_key,
      actor_critic=actor_critic,
      optimizer=optimizer,
      config=config,
    )

    def fresh(key: Array) -> tuple[Array, Array]:
      new = agent_lib.Agent(params, residual, actor_critic)
      _, images, condition = collect(
        problem,
        new,
        key,
        batch_size=judge.fakes_per_update,
        num_steps=num_steps,
        std=std,
        weights=weights,
      )
      return images, condition

    new_adversary, judge_metrics = judge.learn(
      state.adversary,
      real,
      (images, condition),
      fresh if fresh_rollouts else None,
      adversary_key,
    )
    metrics |= judge_metrics
    metrics |= _describe(trajectory, reward, std)
    return PolicyState(params, opt_state, new_adversary), metrics

  return train_step


def _describe(trajectory: Any, reward: Array, std: Array) -> dict[str, Array]:
  """Reward, exploration, and what each step did: [T] means and spreads."""
  metrics = {
    'reward': reward.mean(),
    'reward_std': reward.std(),
    'exploration_std': jnp.asarray(std, jnp.float32),
    'committed': trajectory.num_committed.mean(1, dtype=jnp.float32),
  }
  for field in dataclasses.fields(PolicyValues):
    value = getattr(trajectory.values, field.name)
    metrics[field.name] = value.mean(1)
    metrics[f'{field.name}_std'] = value.std(1)
  return metrics
