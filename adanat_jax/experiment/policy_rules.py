"""What `config.policy` may hold, and the constants that it stands for."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import ml_collections

from adanat_jax.errors import UserError
from adanat_jax.experiment import datasets, networks, reward_network
from adanat_jax.experiment.fields import (
  between,
  boolean,
  check,
  choice,
  int_at_least,
  non_negative,
  odd_int,
  optional,
  positive,
  positive_int,
  some_of,
  tuple_of,
)
from adanat_jax.experiment.policies import KINDS, RESIDUALS
from adanat_jax.learning import policy, ppo
from adanat_jax.measuring import features
from adanat_jax.models import denoisers
from adanat_jax.models.discriminator import GROUP_SIZE

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment

REWARDS = ('adversarial', 'frechet', 'pretrained')
ITERATES = ('last', 'best', 'average')


def ppo_config(config: ml_collections.ConfigDict) -> ppo.PPOConfig:
  """The preset that `config.policy.preset` names, with its overrides."""
  given = {k: v for k, v in config.policy.ppo.items() if v is not None}
  return dataclasses.replace(ppo.PRESETS[config.policy.preset], **given)


def rollout_config(config: ml_collections.ConfigDict) -> policy.RolloutConfig:
  """How `config.policy` keeps its rollouts."""
  section = config.policy
  return policy.RolloutConfig(
    section.rollout_features, section.rollout_dtype, section.rollout_size
  )


def check_config(experiment: Experiment) -> None:
  """Raises UserError for values of `config.policy` that cannot work."""
  config = experiment.config
  check(
    config,
    {
      'policy.num_steps': some_of(int_at_least(1)),
      'policy.residual': choice(*RESIDUALS),
    },
  )
  if experiment.is_converted('policy'):
    return
  check(
    config,
    {
      'policy.rewards': some_of(choice(*REWARDS)),
      'policy.trainings': int_at_least(1),
      'policy.kinds': some_of(choice(*KINDS)),
      'policy.iterations': int_at_least(1),
      'policy.batch_size': int_at_least(GROUP_SIZE),
      'policy.preset': choice(*ppo.PRESETS),
      'policy.rollout_size': int_at_least(0),
      'policy.rollout_features': choice('store', 'recompute'),
      'policy.rollout_dtype': choice('float32', 'bfloat16'),
      'policy.evaluate_every': int_at_least(0),
      'policy.evaluate_samples': int_at_least(2),
      'policy.iterate': choice(*ITERATES),
      'policy.ema_decay': between(0.0, 1.0),
      'policy.network.hidden_size': positive_int,
      'policy.network.conv_width': positive_int,
      'policy.network.mlp_widths': tuple_of(positive_int, length=2),
      'policy.ppo.learning_rate': optional(positive),
      'policy.ppo.clip_epsilon': optional(positive),
      'policy.ppo.value_coefficient': optional(non_negative),
      'policy.ppo.entropy_coefficient': optional(non_negative),
      'policy.ppo.max_gradient_norm': optional(non_negative),
      'policy.ppo.initial_std': optional(positive),
      'policy.ppo.final_std': optional(positive),
      'policy.ppo.num_epochs': optional(int_at_least(1)),
      'policy.ppo.num_minibatches': optional(int_at_least(1)),
      'policy.ppo.shuffle_groups': optional(int_at_least(1)),
      'policy.ppo.micro_batches': optional(int_at_least(1)),
      'policy.discriminator.mapping_width': positive_int,
      'policy.discriminator.mapping_layers': int_at_least(0),
      'policy.discriminator.condition_map_width': positive_int,
      'policy.discriminator.kernel_size': odd_int,
      'policy.discriminator.updates': int_at_least(1),
      'policy.discriminator.batch_size': int_at_least(GROUP_SIZE),
      'policy.discriminator.held_out': int_at_least(0),
      'policy.discriminator.spectral_warmup': int_at_least(0),
      'policy.discriminator.learning_rate': between(0.0, 1.0),
      'policy.discriminator.fresh_rollouts': boolean,
      'policy.discriminator.reconstruct_real': boolean,
    },
  )
  experiment.check_batches({'policy.batch_size': GROUP_SIZE})
  if has_discriminator(experiment):
    experiment.check_batches(
      {
        'policy.discriminator.batch_size': GROUP_SIZE,
        'policy.discriminator.held_out': GROUP_SIZE,
      },
    )
    _check_held_out(experiment)
  if config.policy.rollout_features == 'recompute' and denoisers.reuses(
    networks.nat_module(config)
  ):
    raise UserError(
      'config.policy.rollout_features=recompute needs config.nat.network=nat:'
      ' what an ENAT sees depends on the steps before; give store'
    )
  _check_parts(experiment)
  reward_network.check_config(experiment)
  if config.policy.evaluate_every:
    try:
      features.check_config(experiment)
    except UserError as error:
      raise UserError(
        f'{error}; config.policy.evaluate_every=0 measures nothing while the'
        ' policy trains'
      ) from error
  elif config.policy.iterate == 'best':
    raise UserError(
      'config.policy.iterate=best needs measurements to choose by; set'
      ' config.policy.evaluate_every, or give last'
    )
  if config.policy.iterate == 'average' and not config.policy.ema_decay:
    raise UserError(
      'config.policy.iterate=average needs an average; set'
      ' config.policy.ema_decay, which is 0.0, or give last'
    )


def has_discriminator(experiment: Experiment) -> bool:
  """Whether any of the rewards learns."""
  return 'adversarial' in experiment.config.policy.rewards


def _check_held_out(experiment: Experiment) -> None:
  """Raises UserError if validation images are wanted and there are none."""
  held_out = experiment.config.policy.discriminator.held_out
  if held_out and not datasets.has_validation(experiment):
    raise UserError(
      f'config.policy.discriminator.held_out is {held_out}, and there are no'
      ' validation images: give config.data.validation_path or'
      ' config.data.held_out, or 0'
    )


def _check_parts(experiment: Experiment) -> None:
  """Raises UserError for batches that PPO or rollouts cannot cut evenly."""
  config = experiment.config
  section, constants = config.policy, ppo_config(config)
  devices = experiment.mesh.size
  minibatches, parts = constants.num_minibatches, constants.micro_batches
  groups = constants.shuffle_groups if minibatches > 1 else 1
  multiple = minibatches * parts * math.lcm(groups, devices)
  if section.batch_size % multiple:
    raise UserError(
      f'config.policy.batch_size is {section.batch_size}; it must be a'
      f' multiple of {multiple}: PPO cuts it into {minibatches} minibatches of'
      f' {parts} micro-batches, drawn from {groups} groups on {devices} devices'
    )
  sizes = {'batch_size': section.batch_size}
  if has_discriminator(experiment):
    sizes['discriminator.batch_size'] = section.discriminator.batch_size
  for name, size in sizes.items():
    if size % constants.shuffle_groups:
      raise UserError(
        f'config.policy.{name} is {size}; it must be a multiple of the'
        f' {constants.shuffle_groups} shuffle_groups of PPO'
      )
  size = section.rollout_size
  wholes = [section.batch_size]
  if has_discriminator(experiment) and section.discriminator.fresh_rollouts:
    wholes.append(section.discriminator.batch_size)
  if size % devices or any(
    size and whole % min(size, whole) for whole in wholes
  ):
    raise UserError(
      f'config.policy.rollout_size is {size}; it must be 0, or a multiple of'
      f' the number of devices, {devices}, that divides the batches of'
      f' {" and ".join(map(str, wholes))} trajectories'
    )
