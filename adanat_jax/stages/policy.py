"""Stage `policy`: learns to schedule the frozen NAT, by PPO against a reward.

Each iteration is `adanat_jax.rl.trainer`'s train step, in one jitted call. A
config names several trainings: of every reward, number of steps and
repetition, one policy that sees the NAT's features and one that does not.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from adanat_jax import checkpoint, sharding, training as training_lib
from adanat_jax.config_rules import (
  between,
  check,
  choice,
  int_at_least,
  optional,
  tuple_of,
)
from adanat_jax.data.examples import ArrayExamples
from adanat_jax.decoding import actions
from adanat_jax.errors import UserError
from adanat_jax.models.nat import NAT
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.rl import agent as agent_lib, ppo, trainer
from adanat_jax.stages import fit, judging, networks
from adanat_jax.types import Array

REWARDS = ('adversarial', 'frechet', 'pretrained')
RESIDUALS = {
  'published': actions.published_residual,
  'none': actions.no_residual,
}


@dataclasses.dataclass(frozen=True)
class Training:
  """One policy to be trained.

  Attributes:
    reward: one of `REWARDS`.
    num_steps: T.
    adaptive: whether the policy sees the NAT's features.
    index: tells repeated trainings apart, and seeds them.
  """

  reward: str
  num_steps: int
  adaptive: bool
  index: int

  @property
  def name(self) -> str:
    """Name of its directory under `policy/`."""
    kind = 'adaptive' if self.adaptive else 'constant'
    return f'{self.reward}-{kind}-T{self.num_steps}-{self.index}'


def trainings(config: ml_collections.ConfigDict) -> list[Training]:
  """All trainings that a config asks for, adaptive ones first."""
  section = config.policy
  return [
    Training(reward, num_steps, adaptive, index)
    for reward in section.rewards
    for num_steps in section.num_steps
    for index in range(section.trainings)
    for adaptive in (True, False)
  ]


def make_actor_critic(
  config: ml_collections.ConfigDict, which: Training
) -> ppo.ActorCritic:
  """Both policy networks of a training as one function."""
  actor, critic = networks.policy_modules(config)

  def actor_critic(
    params: Any, features: Array, step: Array
  ) -> tuple[Array, Array]:
    mean = actor.apply({'params': params['actor']}, features, step)
    value = critic.apply({'params': params['critic']}, features, step)
    return mean, value[:, 0]

  if which.adaptive:
    return actor_critic
  return agent_lib.non_adaptive(actor_critic, which.num_steps)


def initial_params(config: ml_collections.ConfigDict, key: Array) -> Any:
  """New parameters of actor and critic."""
  actor, critic = networks.policy_modules(config)
  num_tokens = networks.grid_size(config) ** 2
  features = jnp.zeros((1, num_tokens, config.nat.width))
  actor_key, critic_key = jax.random.split(key)
  return {
    'actor': actor.init(actor_key, features, 0)['params'],
    'critic': critic.init(critic_key, features, 0)['params'],
  }


def residual_of(config: ml_collections.ConfigDict, num_steps: int) -> Array:
  """The schedule a zero action stands for, float32[T, A]."""
  return RESIDUALS[config.policy.residual](num_steps)


def load_agent(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, which: Training
) -> agent_lib.Agent:
  """The last iterate of a finished training.

  Raises:
    UserError: if the training has not finished or has other shapes.
  """
  stage = f'policy/{which.name}'
  networks.require(workdir, stage)
  shapes = sharding.placed(
    jax.eval_shape(lambda key: initial_params(config, key), jax.random.key(0)),
    networks.mesh_of(config),
  )
  params = checkpoint.load_params(workdir / stage, 'params', shapes)
  return agent_lib.Agent(
    params,
    residual_of(config, which.num_steps),
    make_actor_critic(config, which),
  )


def ppo_config(config: ml_collections.ConfigDict) -> ppo.PPOConfig:
  """The preset that `config.policy.preset` names, with its overrides."""
  given = {k: v for k, v in config.policy.ppo.items() if v is not None}
  return dataclasses.replace(ppo.PRESETS[config.policy.preset], **given)


def rollout_config(config: ml_collections.ConfigDict) -> trainer.RolloutConfig:
  """How `config.policy` keeps its rollouts."""
  section = config.policy
  return trainer.RolloutConfig(
    section.rollout_features, section.rollout_dtype, section.rollout_size
  )


def check_config(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for values of `config.policy` that cannot work."""
  check(
    config,
    {
      'policy.rewards': tuple_of(choice(*REWARDS)),
      'policy.num_steps': tuple_of(int_at_least(1)),
      'policy.trainings': int_at_least(1),
      'policy.iterations': int_at_least(1),
      'policy.batch_size': int_at_least(8),
      'policy.preset': choice(*ppo.PRESETS),
      'policy.rollout_size': int_at_least(0),
      'policy.rollout_features': choice('store', 'recompute'),
      'policy.rollout_dtype': choice('float32', 'bfloat16'),
      'policy.ppo.num_minibatches': optional(int_at_least(1)),
      'policy.ppo.shuffle_groups': optional(int_at_least(1)),
      'policy.ppo.micro_batches': optional(int_at_least(1)),
      'policy.residual': choice(*RESIDUALS),
      'policy.discriminator.updates': int_at_least(1),
      'policy.discriminator.batch_size': int_at_least(8),
      'policy.discriminator.held_out': int_at_least(8),
      'policy.discriminator.spectral_warmup': int_at_least(0),
      'policy.discriminator.learning_rate': between(0.0, 1.0),
    },
  )
  # The discriminator shares statistics among 8 consecutive samples.
  networks.check_batches(
    config,
    {
      'policy.batch_size': 8,
      'policy.discriminator.batch_size': 8,
      'policy.discriminator.held_out': 8,
    },
  )
  _check_parts(config)


def _check_parts(config: ml_collections.ConfigDict) -> None:
  """Raises UserError for batches that PPO or rollouts cannot cut evenly."""
  section, constants = config.policy, ppo_config(config)
  devices = networks.mesh_of(config).size
  minibatches, parts = constants.num_minibatches, constants.micro_batches
  groups = constants.shuffle_groups if minibatches > 1 else 1
  multiple = minibatches * parts * math.lcm(groups, devices)
  if section.batch_size % multiple:
    raise UserError(
      f'config.policy.batch_size is {section.batch_size}; it must be a'
      f' multiple of {multiple}: PPO cuts it into {minibatches} minibatches of'
      f' {parts} micro-batches, drawn from {groups} groups on {devices} devices'
    )
  for name, size in (
    ('batch_size', section.batch_size),
    ('discriminator.batch_size', section.discriminator.batch_size),
  ):
    if size % constants.shuffle_groups:
      raise UserError(
        f'config.policy.{name} is {size}; it must be a multiple of the'
        f' {constants.shuffle_groups} shuffle_groups of PPO'
      )
  size = section.rollout_size
  wholes = [section.batch_size]
  if section.discriminator.fresh_rollouts:
    wholes.append(section.discriminator.batch_size)
  if size % devices or any(
    size and whole % min(size, whole) for whole in wholes
  ):
    raise UserError(
      f'config.policy.rollout_size is {size}; it must be 0, or a multiple of'
      f' the number of devices, {devices}, that divides the batches of'
      f' {" and ".join(map(str, wholes))} trajectories'
    )


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
  """Trains every policy that the config asks for.

  Args:
    config: the whole config; `policy` and what its networks need are read.
    workdir: `tokenizer/`, `nat/`, `judges/reward` must be complete; gets
      `policy/<training>/`.

  Raises:
    UserError: for a missing stage or a value that is not allowed.
  """
  check_config(config)
  for which in trainings(config):
    if not training_lib.is_complete(workdir / 'policy' / which.name):
      train(config, workdir, which)


def make_problem(nat: NAT, tokenizer: VQGAN, frozen: Any) -> trainer.Problem:
  """NAT and tokenizer, with the parameters `frozen` holds, as callables."""
  nat_params = sharding.whole(frozen['nat'])
  tokenizer_params = sharding.whole(frozen['tokenizer'])

  def denoiser(
    tokens: Array, condition: Array, cache: Any
  ) -> tuple[Array, Array, Any]:
    features, logits = nat.apply({'params': nat_params}, tokens, condition)
    return features, logits, cache

  def decode_images(tokens: Array) -> Array:
    return tokenizer.apply(
      {'params': tokenizer_params}, tokens, method='decode_tokens'
    )

  assert nat.num_classes is not None  # This stage has classes, not texts.
  return trainer.Problem(
    denoiser,
    decode_images,
    nat.num_tokens,
    nat.codebook_size,
    nat.num_classes,
  )


def train(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, which: Training
) -> None:
  """Trains one policy, from its newest checkpoint if there is one."""
  section = config.policy
  name = f'policy/{which.name}'
  init_key, judge_key, step_key = jax.random.split(
    networks.stage_key(config, name), 3
  )
  nat, nat_params = networks.load_nat(config, workdir)
  tokenizer, tokenizer_params = networks.load_tokenizer(config, workdir)
  constants = ppo_config(config)
  court = judging.make_court(
    which.reward, config, workdir, constants.shuffle_groups
  )
  frozen = {
    'nat': nat_params,
    'tokenizer': tokenizer_params,
    'court': court.frozen,
  }

  def initial(frozen: Any) -> trainer.PolicyState:
    params = initial_params(config, init_key)
    return trainer.PolicyState(
      params,
      ppo.make_optimizer(constants).init(params),
      court.initial(frozen['court'], judge_key) if court.initial else None,
    )

  def train_step(
    frozen: Any, state: trainer.PolicyState, real: Any, iteration: Array
  ) -> tuple[trainer.PolicyState, dict[str, Array]]:
    step = trainer.make_train_step(
      make_problem(nat, tokenizer, frozen),
      make_actor_critic(config, which),
      residual_of(config, which.num_steps),
      court.judge(frozen['court']),
      constants,
      key=step_key,
      batch_size=section.batch_size,
      num_iterations=section.iterations,
      fresh_rollouts=section.discriminator.fresh_rollouts,
      rollouts=rollout_config(config),
    )
    labelled = (real['images'], real['condition']) if real else ()
    return step(state, labelled, iteration)

  if court.initial is None:
    batch_at: Callable[[int], Any] = lambda iteration: {}
  else:
    images, condition = judging.real_images(config, workdir, 'train')
    batch_at = fit.Batches(
      config,
      name,
      ArrayExamples({'images': images, 'condition': condition}),
      (section.discriminator.updates, section.discriminator.batch_size),
    )
  fit.fit(
    config,
    workdir,
    name,
    initial=initial,
    train_step=train_step,
    batch_at=batch_at,
    num_steps=section.iterations,
    frozen=frozen,
    best_of=('reward', 'max'),
    log_every=section.log_every,
    save_every=section.save_every,
  )
