"""Stage `policy`: learns to schedule the frozen NAT, by PPO against a reward.

Each iteration is `adanat_jax.rl.trainer`'s train step, in one jitted call. A
config names several trainings: of every reward, number of steps and
repetition, one policy that sees the NAT's features and one that does not.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from adanat_jax import checkpoint, training as training_lib
from adanat_jax.config_rules import (
  between,
  check,
  choice,
  int_at_least,
  tuple_of,
)
from adanat_jax.data import digits
from adanat_jax.decoding import actions
from adanat_jax.errors import UserError
from adanat_jax.rl import agent as agent_lib, ppo, trainer
from adanat_jax.stages import judging, networks
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
  shapes = jax.eval_shape(
    lambda key: initial_params(config, key), jax.random.key(0)
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
      'policy.residual': choice(*RESIDUALS),
      'policy.discriminator.updates': int_at_least(1),
      'policy.discriminator.batch_size': int_at_least(8),
      'policy.discriminator.held_out': int_at_least(8),
      'policy.discriminator.spectral_warmup': int_at_least(0),
      'policy.discriminator.learning_rate': between(0.0, 1.0),
    },
  )
  section = config.policy
  for name, size in (
    ('batch_size', section.batch_size),
    ('discriminator.batch_size', section.discriminator.batch_size),
    ('discriminator.held_out', section.discriminator.held_out),
  ):
    if size % 8:
      raise UserError(
        f'config.policy.{name} is {size}; it must be a multiple of 8, because'
        ' the discriminator shares statistics in groups of 8'
      )
  minibatches = ppo_config(config).num_minibatches
  if section.batch_size % minibatches:
    raise UserError(
      f'config.policy.batch_size is {section.batch_size}; it must be a'
      f' multiple of the {minibatches} minibatches of PPO'
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


def make_problem(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> trainer.Problem:
  """The frozen NAT and tokenizer of a workdir."""
  nat, nat_params = networks.load_nat(config, workdir)
  tokenizer, tokenizer_params = networks.load_tokenizer(config, workdir)

  def denoiser(
    tokens: Array, condition: Array, cache: Any
  ) -> tuple[Array, Array, Any]:
    features, logits = nat.apply({'params': nat_params}, tokens, condition)
    return features, logits, cache

  def decode_images(tokens: Array) -> Array:
    return tokenizer.apply(
      {'params': tokenizer_params}, tokens, method='decode_tokens'
    )

  return trainer.Problem(
    denoiser,
    decode_images,
    nat.num_tokens,
    nat.codebook_size,
    networks.num_classes(config),
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
  problem = make_problem(config, workdir)
  judge = judging.make_judge(which.reward, config, workdir, judge_key)
  ppo_constants = ppo_config(config)
  params = initial_params(config, init_key)
  state = trainer.PolicyState(
    params,
    ppo.make_optimizer(ppo_constants).init(params),
    judge.initial,
  )
  train_step = trainer.make_train_step(
    problem,
    make_actor_critic(config, which),
    residual_of(config, which.num_steps),
    judge,
    ppo_constants,
    key=step_key,
    batch_size=section.batch_size,
    num_iterations=section.iterations,
    fresh_rollouts=section.discriminator.fresh_rollouts,
  )
  images, condition = judging.real_images(config, workdir, 'train')
  reals = section.discriminator.updates * section.discriminator.batch_size

  def batch_at(iteration: int) -> tuple[np.ndarray, np.ndarray]:
    index = digits.epoch_batch(
      iteration,
      reals if judge.initial is not None else 1,
      len(condition),
      networks.order_seed(config, name),
    )
    return images[index], condition[index]

  training_lib.run_loop(
    state,
    jax.jit(train_step, donate_argnums=0),
    batch_at,
    directory=workdir / 'policy' / which.name,
    name=name,
    num_steps=section.iterations,
    **{
      **networks.loop_options(config),
      'log_every': section.log_every,
      'save_every': section.save_every,
    },
  )
