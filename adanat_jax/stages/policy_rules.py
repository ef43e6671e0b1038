"""What `config.policy` may hold, and the constants that it stands for."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import math
from typing import TYPE_CHECKING

import ml_collections

from adanat_jax.experiment import (
  datasets,
  field_rules,
  networks,
  policies,
  reward_network,
  rewards,
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
    policies.problems,
    _problems,
    _problems_of_batches,
    reads=(
      *('data', 'tokenizer', 'judges.reward', 'nat', 'policy'),
      *field_rules.LOOP,
    ),
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why policies cannot be trained or measured."""
  config = experiment.config
  section = config.policy
  if experiment.is_converted('policy'):
    return
  held_out = section.discriminator.held_out
  if (
    has_discriminator(experiment)
    and held_out
    and not datasets.has_validation(experiment)
  ):
    yield (
      f'config.policy.discriminator.held_out is {held_out}, and there are no'
      ' validation images: give config.data.validation_path or'
      ' config.data.held_out, or 0'
    )
  if section.rollout_features == 'recompute' and denoisers.reuses(
    networks.nat_module(config)
  ):
    yield (
      'config.policy.rollout_features=recompute needs config.nat.network=nat:'
      ' what an ENAT sees depends on the steps before; give store'
    )
  yield from reward_network.problems(experiment)
  for name in section.rewards:
    if rewards.REWARDS[name].for_digits and not experiment.is_digits:
      yield (
        f'config.policy.rewards holds {name}, which is for the digits alone;'
        f' give adversarial for config.data.source={config.data.source}'
      )
  if section.iterate == 'best' and not section.evaluate_every:
    yield (
      'config.policy.iterate=best needs measurements to choose by; set'
      ' config.policy.evaluate_every, or give last'
    )
  if section.iterate == 'average' and not section.ema_decay:
    yield (
      'config.policy.iterate=average needs an average; set'
      ' config.policy.ema_decay, which is 0.0, or give last'
    )
  if section.evaluate_every:
    for problem in features.problems(experiment):
      yield (
        f'{problem}; config.policy.evaluate_every=0 measures nothing while the'
        ' policy trains'
      )


def _problems_of_batches(experiment: Experiment) -> Iterator[str]:
  """Says which batches devices, PPO or rollouts cannot cut evenly."""
  section, devices = experiment.config.policy, experiment.mesh.size
  if experiment.is_converted('policy'):
    return
  sizes = {'policy.batch_size': section.batch_size}
  wholes = [section.batch_size]
  multiples = dict.fromkeys(sizes, GROUP_SIZE)
  if has_discriminator(experiment):
    size = section.discriminator.batch_size
    sizes['policy.discriminator.batch_size'] = size
    multiples = dict.fromkeys(
      [*sizes, 'policy.discriminator.held_out'], GROUP_SIZE
    )
    if section.discriminator.fresh_rollouts:
      wholes.append(size)
  yield from experiment.uneven_batches(multiples)
  constants = ppo_config(experiment.config)
  minibatches, parts = constants.num_minibatches, constants.micro_batches
  groups = constants.shuffle_groups if minibatches > 1 else 1
  multiple = minibatches * parts * math.lcm(groups, devices)
  if section.batch_size % multiple:
    yield (
      f'config.policy.batch_size is {section.batch_size}; it must be a multiple'
      f' of {multiple}: PPO cuts it into {minibatches} minibatches of {parts}'
      f' micro-batches, drawn from {groups} groups on {devices} devices'
    )
  for name, size in sizes.items():
    if size % constants.shuffle_groups:
      yield (
        f'config.{name} is {size}; it must be a multiple of the'
        f' {constants.shuffle_groups} shuffle_groups of PPO'
      )
  size = section.rollout_size
  if size % devices or any(
    size and whole % min(size, whole) for whole in wholes
  ):
    yield (
      f'config.policy.rollout_size is {size}; it must be 0, or a multiple of'
      f' the number of devices, {devices}, that divides the batches of'
      f' {" and ".join(map(str, wholes))} trajectories'
    )


def has_discriminator(experiment: Experiment) -> bool:
  """Whether any of the rewards learns."""
  return any(
    rewards.REWARDS[n].learns for n in experiment.config.policy.rewards
  )
