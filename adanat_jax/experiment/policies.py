"""The policies of a config: which are trained, their networks, where they lie.

A config names several trainings: of every reward, number of steps and
repetition, one policy that sees the NAT's features and one that does not, or
one of the two.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from adanat_jax.decoding import actions
from adanat_jax.experiment import networks
from adanat_jax.learning import agent as agent_lib
from adanat_jax.runtime import checkpoint, sharding
from adanat_jax.types import Array

# The policy that sees the NAT's features, and the one that does not.
KINDS = ('adaptive', 'constant')
RESIDUALS = {
  'published': actions.published_residual,
  'maskgit': actions.maskgit_residual,
  'none': actions.no_residual,
}


@dataclasses.dataclass(frozen=True)
class Training:
  """One policy to be trained.

  Attributes:
    reward: `adversarial`, `frechet` or `pretrained`.
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
  """All trainings that a config asks for, in the order of its kinds."""
  section = config.policy
  return [
    Training(reward, num_steps, kind == 'adaptive', index)
    for reward in section.rewards
    for num_steps in section.num_steps
    for index in range(section.trainings)
    # A workdir of an older version says nothing of kinds: it has both.
    for kind in section.get('kinds', KINDS)
  ]


def make_actor_critic(
  config: ml_collections.ConfigDict, which: Training
) -> agent_lib.ActorCritic:
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


def iterate_field(config: ml_collections.ConfigDict) -> str:
  """Which field of a training's state is measured, and used afterwards."""
  # A workdir of an older version may say nothing of iterates: it has the last.
  averaged = config.policy.get('iterate', 'last') == 'average'
  return 'average' if averaged else 'params'


def load_agent(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, which: Training
) -> agent_lib.Agent:
  """The iterate of a finished training that `config.policy.iterate` names.

  Raises:
    UserError: if the training has not finished or has other shapes.
  """
  stage = f'policy/{which.name}'
  networks.require(workdir, stage)
  shapes = sharding.placed(
    jax.eval_shape(lambda key: initial_params(config, key), jax.random.key(0)),
    networks.mesh_of(config),
  )
  params = checkpoint.load_params(
    workdir / stage,
    iterate_field(config),
    shapes,
    best=config.policy.get('iterate', 'last') == 'best',
  )
  return agent_lib.Agent(
    params,
    residual_of(config, which.num_steps),
    make_actor_critic(config, which),
  )
