"""What `config.policy` may hold, and the constants that it stands for."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import ml_collections

from adanat_jax.errors import ConfigError, UserError
from adanat_jax.experiment import (
  datasets,
  field_rules,
  networks,
  policies,
  reward_network,
)
from adanat_jax.learning import policy, ppo
from adanat_jax.measuring import features
from adanat_jax.models import denoisers
from adanat_jax.models.discriminator import GROUP_SIZE

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment


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
  """Raises ConfigError for policies that cannot be trained."""
  experiment.check(
    policies.check_converted,
    _check_training,
    reads=('data', 'tokenizer', 'judges.reward', 'nat', 'policy'),
  )


def _check_training(experiment: Experiment) -> None:
  """Raises ConfigError for a training that cannot work, if there is one."""
  if experiment.is_converted('policy'):
    return
  experiment.check(
    _check_batches,
    _check_held_out,
    _check_features_kept,
    _check_minibatches,
    _check_groups,
    _check_rollouts,
    reward_network.check_config,
    _check_iterate,
    _check_measurements,
    reads=field_rules.LOOP,
  )


def _check_batches(experiment: Experiment) -> None:
  """Refuses batches that devices and groups cannot share."""
  batches = ['policy.batch_size']
  if has_discriminator(experiment):
    batches.append('policy.discriminator.batch_size')
    batches.append('policy.discriminator.held_out')
  experiment.check_batches(dict.fromkeys(batches, GROUP_SIZE))


def _check_features_kept(experiment: Experiment) -> None:
  """Refuses to run a network again whose features depend on earlier steps."""
  config = experiment.config
  if config.policy.rollout_features == 'recompute' and denoisers.reuses(
    networks.nat_module(config)
  ):
    raise UserError(
      'config.policy.rollout_features=recompute needs config.nat.network=nat:'
      ' what an ENAT sees depends on the steps before; give store'
    )


def _check_iterate(experiment: Experiment) -> None:
  """Refuses to use an iterate that there is not."""
  section = experiment.config.policy
  if section.iterate == 'best' and not section.evaluate_every:
    raise UserError(
      'config.policy.iterate=best needs measurements to choose by; set'
      ' config.policy.evaluate_every, or give last'
    )
  if section.iterate == 'average' and not section.ema_decay:
    raise UserError(
      'config.policy.iterate=average needs an average; set'
      ' config.policy.ema_decay, which is 0.0, or give last'
    )


def _check_measurements(experiment: Experiment) -> None:
  """Refuses measurements in training that cannot be made."""
  if not experiment.config.policy.evaluate_every:
    return
  try:
    features.check_config(experiment)
  except UserError as error:
    remedy = (
      'config.policy.evaluate_every=0 measures nothing while the policy trains'
    )
    raise ConfigError(
      [f'{problem}; {remedy}' for problem in error.problems]
    ) from error


def has_discriminator(experiment: Experiment) -> bool:
  """Whether any of the rewards learns."""
  return 'adversarial' in experiment.config.policy.rewards


def _check_held_out(experiment: Experiment) -> None:
  """Refuses to hold out validation images where there are none."""
  held_out = experiment.config.policy.discriminator.held_out
  if (
    has_discriminator(experiment)
    and held_out
    and not datasets.has_validation(experiment)
  ):
    raise UserError(
      f'config.policy.discriminator.held_out is {held_out}, and there are no'
      ' validation images: give config.data.validation_path or'
      ' config.data.held_out, or 0'
    )


def _check_minibatches(experiment: Experiment) -> None:
  """Refuses batches that PPO cannot cut evenly."""
  config = experiment.config
  size, constants = config.policy.batch_size, ppo_config(config)
  devices = experiment.mesh.size
  minibatches, parts = constants.num_minibatches, constants.micro_batches
  groups = constants.shuffle_groups if minibatches > 1 else 1
  multiple = minibatches * parts * math.lcm(groups, devices)
  if size % multiple:
    raise UserError(
      f'config.policy.batch_size is {size}; it must be a multiple of'
      f' {multiple}: PPO cuts it into {minibatches} minibatches of {parts}'
      f' micro-batches, drawn from {groups} groups on {devices} devices'
    )


def _check_groups(experiment: Experiment) -> None:
  """Refuses batches that cannot be drawn from equal groups."""
  config = experiment.config
  groups = ppo_config(config).shuffle_groups
  sizes = {'batch_size': config.policy.batch_size}
  if has_discriminator(experiment):
    sizes['discriminator.batch_size'] = config.policy.discriminator.batch_size
  problems = [
    f'config.policy.{name} is {size}; it must be a multiple of the {groups}'
    ' shuffle_groups of PPO'
    for name, size in sizes.items()
    if size % groups
  ]
  if problems:
    raise ConfigError(problems)


def _check_rollouts(experiment: Experiment) -> None:
  """Refuses parts of rollouts that do not fill the batches."""
  section, devices = experiment.config.policy, experiment.mesh.size
  size, wholes = section.rollout_size, [section.batch_size]
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
