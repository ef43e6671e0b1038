"""The learner: PPO's loss, gradients, returns and exploration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from adanat_jax.learning import agent as agent_lib, ppo
from support.reference_arrays import Reference

Outputs = Mapping[str, np.ndarray]


def ppo_update(reference: Reference) -> Outputs:
  given, config = reference.inputs, reference.config
  constants = ppo.PPOConfig(
    clip_epsilon=config['eps_clip'],
    value_coefficient=config['value_coef'],
    entropy_coefficient=config['entropy_coef'],
  )
  std = given['action_std']
  num_actions = given['old_actions'].shape[-1]
  # One row of N samples: the loss is a mean, whatever the steps.
  rollout = ppo.Rollout(
    observations=None,
    actions=given['old_actions'][None],
    log_probs=given['old_logprobs'][None],
    values=(given['rewards'] - given['advantages'])[None],
    returns=given['rewards'][None],
    weights=np.ones((1, num_actions), np.float32),
  )

  def loss(mean: np.ndarray, values: np.ndarray) -> jax.Array:
    now = (mean[None], values[None, :, 0])
    return ppo.ppo_loss(*now, rollout, std, constants)[0]

  value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(
    given['actor_mean'], given['values']
  )
  log_probs = jax.jit(agent_lib.gaussian_log_prob)(
    given['old_actions'], given['actor_mean'], std
  )
  entropy = np.sum(ppo.gaussian_entropy(std, 1))
  result = {
    'loss': value,
    'grad_actor_mean': grads[0],
    'grad_values': grads[1],
    'logprobs': log_probs,
    'ratios': np.exp(log_probs - given['old_logprobs']),
    'entropy': np.broadcast_to(entropy, log_probs.shape),
  }
  for discount in {k.split('/')[0] for k in reference.outputs if '/' in k}:
    if discount.startswith('gamma'):
      returns = _returns(reference, float(discount.removeprefix('gamma')))
      standardised = np.asarray(jax.jit(ppo.standardise)(returns))
      values = given['buffer/state_values'].reshape(-1)
      result[f'{discount}/returns'] = returns
      result[f'{discount}/normalised_rewards'] = standardised
      result[f'{discount}/advantages'] = standardised - values
  std_of = jax.jit(ppo.exploration_std, static_argnums=(1, 2))
  for i, schedule in enumerate(reference.meta['std_schedules']):
    constants = ppo.PPOConfig(
      initial_std=schedule['initial'][0],
      final_std=schedule['minimum'],
      std_schedule='steps',
      std_decay=schedule['decay_rate'],
      std_decay_steps=tuple(schedule['decay_steps']),
    )
    result[f'std_schedule_{i}'] = std_of(given['std_steps'], 0, constants)
  return result


def _returns(reference: Reference, discount: float) -> np.ndarray:
  """Returns of the buffer's episodes, float32[episodes * T * B]."""
  rewards = reference.inputs['buffer/rewards']
  ends = np.flatnonzero(reference.inputs['buffer/is_terminal']) + 1
  episodes = np.split(rewards, ends)[: len(ends)]
  discounted = jax.jit(ppo.discounted_returns)
  returns = [discounted(r, discount) for r in episodes]
  return np.concatenate(returns).reshape(-1)


CASES: dict[str, Callable[[Reference], Outputs]] = {'ppo': ppo_update}
