"""The policies of a config: their trainings, networks and saved parameters.

A config names one training for every reward, number of steps, repetition and
kind of policy: one that sees the NAT's features, one that does not, or both.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from adanat_jax.decoding import actions, tables
from adanat_jax.experiment import networks
from adanat_jax.learning import agent as agent_lib
from adanat_jax.models import policy
from adanat_jax.models.policy import PolicyNetworks
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment

# The policy that sees the NAT's features, and the one that does not.
KINDS = ('adaptive', 'constant')
RESIDUALS = {
  'published': actions.published_residual,
  'maskgit': tables.maskgit_residual,
  'none': actions.no_residual,
}


@dataclasses.dataclass(frozen=True)
class Training:
  """One policy to be trained."""

  reward: str  # `adversarial`, `frechet` or `pretrained`
  num_steps: int
  adaptive: bool  # whether the policy sees the NAT's features
  index: int  # tells repeated trainings apart, and seeds them

  @property
  def name(self) -> str:
    """Name of its directory under `policy/`."""
    kind = 'adaptive' if self.adaptive else 'constant'
    return f'{self.reward}-{kind}-T{self.num_steps}-{self.index}'


def trainings(experiment: Experiment) -> list[Training]:
  """All trainings that a config asks for, in the order of its kinds."""
  section = experiment.config.policy
  return [
    Training(reward, num_steps, kind == 'adaptive', index)
    for reward in section.rewards
    for num_steps in section.num_steps
    for index in range(section.trainings)
    # Configs of older versions have no such field: they train both.
    for kind in section.get('kinds', KINDS)
  ]


def make_actor_critic(
  experiment: Experiment, training: Training
) -> agent_lib.ActorCritic:
  """Both policy networks of a training as one function."""
  both = PolicyNetworks(*networks.policy_modules(experiment.config))
  if training.adaptive:
    return both
  return agent_lib.non_adaptive(both, training.num_steps)


def initial_params(experiment: Experiment, key: Array) -> Any:
  """New parameters of actor and critic."""
  config = experiment.config
  actor, critic = networks.policy_modules(config)
  features = jnp.zeros((1, experiment.num_tokens, config.nat.width))
  return policy.initial_params(actor, critic, key, features)


def residual_of(experiment: Experiment, num_steps: int) -> Array:
  """The schedule a zero action stands for, float32[T, A]."""
  return RESIDUALS[experiment.config.policy.residual](num_steps)


def acting(experiment: Experiment) -> dict[str, Any]:
  """How policies act: `smoothing`, `guided` and `learned` of an `Agent`."""
  section = experiment.config.policy
  # Configs of older versions have no such fields.
  return {
    'smoothing': section.get('smoothing', 0.0),
    'guided': section.get('guided', True),
    'learned': tuple(section.get('learned', actions.NAMES)),
  }


def iterate_field(experiment: Experiment) -> str:
  """The field of a training's state that is measured, and used afterwards."""
  return 'average' if _iterate(experiment) == 'average' else 'params'


def _iterate(experiment: Experiment) -> str:
  # Configs of older versions have no such field: they use the last iterate.
  return experiment.config.policy.get('iterate', 'last')


def load_agent(experiment: Experiment, training: Training) -> agent_lib.Agent:
  """The iterate of a finished training that `config.policy.iterate` names.

  Raises:
    UserError: if the training has not finished or has other shapes.
  """
  stage = f'policy/{training.name}'
  experiment.require(stage)
  params = experiment.load_trained(
    stage,
    iterate_field(experiment),
    lambda: jax.eval_shape(
      lambda key: initial_params(experiment, key), jax.random.key(0)
    ),
    best=_iterate(experiment) == 'best',
  )
  return agent_lib.Agent(
    params,
    residual_of(experiment, training.num_steps),
    make_actor_critic(experiment, training),
    **acting(experiment),
  )


def agents(experiment: Experiment) -> dict[int, agent_lib.Agent]:
  """The learned policies by number of steps: converted, or of the workdir."""
  if experiment.is_converted('policy'):
    return _converted_agent(experiment)
  found: dict[int, agent_lib.Agent] = {}
  for training in trainings(experiment):
    finished = experiment.is_complete(f'policy/{training.name}')
    if training.adaptive and finished and training.num_steps not in found:
      found[training.num_steps] = load_agent(experiment, training)
  return found


def problems(experiment: Experiment) -> Iterator[str]:
  """Says why a converted policy cannot be used; see `Experiment.check`."""
  num_steps = experiment.config.policy.num_steps
  if experiment.is_converted('policy') and len(num_steps) != 1:
    yield (
      f'config.policy.num_steps={num_steps} is not allowed with'
      ' config.policy.init_from: give a tuple of 1 element, the number of steps'
      ' of that policy'
    )


def _converted_agent(experiment: Experiment) -> dict[int, agent_lib.Agent]:
  """The published policy, at its number of steps."""
  experiment.check(problems)
  config = experiment.config
  (num_steps,) = config.policy.num_steps
  actor, _ = networks.policy_modules(config)
  features = jnp.zeros((1, experiment.num_tokens, config.nat.width))
  shapes = experiment.param_shapes(actor, features, jnp.zeros(1, jnp.int32))
  params = experiment.load_converted('policy', 'params/actor', shapes)

  agent = agent_lib.Agent(
    {'actor': params},
    residual_of(experiment, num_steps),
    PolicyNetworks(actor),
    **acting(experiment),
  )
  return {num_steps: agent}
