"""The policies of a config: their trainings, networks and saved parameters.

A config names one training for every reward, number of steps, repetition and
kind of policy: one that sees the NAT's features, one that does not, or both. A
third kind is shared by all numbers of steps: each iteration of its training
draws one of them, and the policy is told which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from adanat_jax.decoding import actions, guidance, tables
from adanat_jax.errors import UserError
from adanat_jax.experiment import networks
from adanat_jax.learning import agent as agent_lib
from adanat_jax.models import denoisers, policy
from adanat_jax.models.policy import PolicyNetworks
from adanat_jax.runtime import checkpoint
from adanat_jax.sampling import requests
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment

# The policy that sees the NAT's features, the one that does not, and the one
# that sees them and serves every number of steps.
KINDS = ('adaptive', 'constant', 'shared')
# What configs train that have no such field, of older versions.
_OLDER_KINDS = ('adaptive', 'constant')
RESIDUALS = {
  'published': actions.published_residual,
  'maskgit': tables.maskgit_residual,
  'none': actions.no_residual,
}


@dataclasses.dataclass(frozen=True)
class Training:
  """One policy to be trained."""

  reward: str  # `adversarial`, `frechet` or `pretrained`
  num_steps: int  # T, or the largest that is drawn
  adaptive: bool  # whether the policy sees the NAT's features
  index: int  # tells repeated trainings apart, and seeds them
  drawn: tuple[int, ...] = ()  # of a shared policy, from which T is drawn

  @property
  def name(self) -> str:
    """Name of its directory under `policy/`."""
    kind, steps = 'adaptive' if self.adaptive else 'constant', self.num_steps
    of_steps = f'T{steps}'
    if self.drawn:
      kind, of_steps = 'shared', f'T{min(self.drawn)}to{steps}'
    return f'{self.reward}-{kind}-{of_steps}-{self.index}'

  @property
  def all_num_steps(self) -> range:
    """Every T that its policy serves, also those that were never drawn."""
    return range(min(self.drawn or (self.num_steps,)), self.num_steps + 1)


def trainings(experiment: Experiment) -> list[Training]:
  """All trainings of a config, in the order of its kinds, shared ones last."""
  section = experiment.config.policy
  kinds = section.get('kinds', _OLDER_KINDS)
  alone = [
    Training(reward, num_steps, kind == 'adaptive', index)
    for reward in section.rewards
    for num_steps in section.num_steps
    for index in range(section.trainings)
    for kind in kinds
    if kind != 'shared'
  ]
  if 'shared' not in kinds:
    return alone
  drawn = _drawn(experiment)
  return alone + [
    Training(reward, max(drawn), True, index, drawn)
    for reward in section.rewards
    for index in range(section.trainings)
  ]


def repetitions(experiment: Experiment, num_steps: int) -> list[Training]:
  """The finished trainings like the one whose policy serves T in `agents`."""
  finished = [
    training
    for training in trainings(experiment)
    if training.adaptive
    and num_steps in training.all_num_steps
    and experiment.is_complete(f'policy/{training.name}')
  ]
  return [
    training
    for training in finished
    if dataclasses.replace(training, index=finished[0].index) == finished[0]
  ]


def _drawn(experiment: Experiment) -> tuple[int, ...]:
  """From which a shared policy's T is drawn."""
  section = experiment.config.policy
  # Configs of older versions have no such field.
  return tuple(section.get('drawn_num_steps', ()) or section.num_steps)


def make_actor_critic(
  experiment: Experiment, training: Training, num_steps: int | None = None
) -> agent_lib.ActorCritic:
  """Both policy networks of a training as one function.

  Of a shared policy, for decodes of `num_steps`.
  """
  modules = networks.policy_modules(experiment.config, bool(training.drawn))
  num_steps = num_steps or training.num_steps
  both = PolicyNetworks(*modules, num_steps if training.drawn else None)
  if training.adaptive:
    return both
  return agent_lib.non_adaptive(both, num_steps)


def initial_params(
  experiment: Experiment, key: Array, reads_budget: bool = False
) -> Any:
  """New parameters of actor and critic."""
  config = experiment.config
  actor, critic = networks.policy_modules(config, reads_budget)
  features = jnp.zeros((1, experiment.num_tokens, config.nat.width))
  return policy.initial_params(actor, critic, key, features)


def residual_of(experiment: Experiment, num_steps: int) -> Array:
  """The schedule a zero action stands for, float32[T, A]."""
  return RESIDUALS[experiment.config.policy.residual](num_steps)


def acting(experiment: Experiment, num_steps: int) -> dict[str, Any]:
  """How policies act: all of an `Agent` but its networks and its residual."""
  section = experiment.config.policy
  # Configs of older versions have no such fields.
  guided: guidance.Guided = section.get('guided', True)
  if guided and (chosen := section.get('guided_steps', ())):
    guided = guidance.of_steps(chosen, num_steps)
  return {
    'smoothing': section.get('smoothing', 0.0),
    'guided': guided,
    'learned': tuple(section.get('learned', actions.NAMES)),
    'dial': jnp.zeros(()) if section.get('dial', '') else None,
  }


def rollout_features(
  experiment: Experiment, memory: float | None, num_devices: int
) -> str:
  """What PPO's epochs read: 'store' or 'recompute', see `RolloutConfig`.

  Args:
    experiment: its `policy.rollout_features` may leave it to the memory.
    memory: bytes of a device; None where it does not say, as on a CPU.
    num_devices: that share the trajectories.
  """
  section = experiment.config.policy
  if section.rollout_features != 'auto':
    return section.rollout_features
  nat = networks.nat_module(experiment.config)
  # What an ENAT sees depends on the steps before.
  if memory is None or denoisers.reuses(nat):
    return 'store'
  types = jnp.dtype(section.rollout_dtype), jnp.dtype(nat.dtype)
  num_steps = max(*section.num_steps, *_drawn(experiment))
  numbers = num_steps * section.batch_size * nat.num_tokens * nat.width
  kept = numbers * min(kind.itemsize for kind in types)
  return 'store' if kept <= memory * num_devices / 2 else 'recompute'


def iterate_field(experiment: Experiment) -> str:
  """The field of a training's state that is measured, and used afterwards."""
  return 'average' if _iterate(experiment) == 'average' else 'params'


def _iterate(experiment: Experiment) -> str:
  # Configs of older versions have no such field: they use the last iterate.
  return experiment.config.policy.get('iterate', 'last')


def load_agent(
  experiment: Experiment, training: Training, num_steps: int | None = None
) -> agent_lib.Agent:
  """The iterate of a finished training that `config.policy.iterate` names.

  Args:
    experiment: whose workdir has it.
    training: see `trainings`.
    num_steps: the T at which a shared policy is to act; None for its largest.

  Raises:
    UserError: if the training has not finished or has other shapes.
  """
  params = _load_params(experiment, training)
  return _trained_agent(experiment, training, params, num_steps)


def _load_params(experiment: Experiment, training: Training) -> Any:
  stage = f'policy/{training.name}'
  experiment.require(stage)
  make = lambda key: initial_params(experiment, key, bool(training.drawn))
  return experiment.load_trained(
    stage,
    iterate_field(experiment),
    lambda: jax.eval_shape(make, jax.random.key(0)),
    best=_iterate(experiment) == 'best',
  )


def _trained_agent(
  experiment: Experiment,
  training: Training,
  params: Any,
  num_steps: int | None = None,
) -> agent_lib.Agent:
  num_steps = num_steps or training.num_steps
  return agent_lib.Agent(
    params,
    residual_of(experiment, num_steps),
    make_actor_critic(experiment, training, num_steps),
    **acting(experiment, num_steps),
  )


class _Agents(Mapping[int, agent_lib.Agent]):
  """Policies by number of steps, each made when it is first asked for.

  A shared policy has many, and the schedule that each starts from takes a
  quarter of a second to compile.
  """

  def __init__(
    self,
    all_num_steps: Iterable[int],
    make: Callable[[int], agent_lib.Agent],
    known: Mapping[int, agent_lib.Agent],
  ):
    """Those of `all_num_steps` are made, unless they are `known`."""
    self._all = sorted({*all_num_steps, *known})
    self._make, self._made = make, dict(known)

  def __getitem__(self, num_steps: int) -> agent_lib.Agent:
    if num_steps not in self._all:
      raise KeyError(num_steps)
    if num_steps not in self._made:
      self._made[num_steps] = self._make(num_steps)
    return self._made[num_steps]

  def __iter__(self) -> Iterator[int]:
    return iter(self._all)

  def __len__(self) -> int:
    return len(self._all)

  def __contains__(self, num_steps: object) -> bool:
    return num_steps in self._all


def agents(experiment: Experiment) -> Mapping[int, agent_lib.Agent]:
  """The learned policies by number of steps: converted, or of the workdir.

  A shared one serves those for which no other was trained.
  """
  if experiment.is_converted('policy'):
    return _converted_agents(experiment)
  found: dict[int, agent_lib.Agent] = {}
  for training in trainings(experiment):
    if not training.adaptive:
      continue
    if not experiment.is_complete(f'policy/{training.name}'):
      continue
    if training.drawn:
      params = _load_params(experiment, training)
      make = functools.partial(_trained_agent, experiment, training, params)
      return _Agents(training.all_num_steps, make, found)
    if training.num_steps not in found:
      found[training.num_steps] = load_agent(experiment, training)
  return found


def problems_of_names(
  experiment: Experiment, names: Iterable[str]
) -> Iterator[str]:
  """Says which names set a dial that the config's policies do not have."""
  for name in names:
    given = requests.learned_options(name) or {}
    if 'dial' in given and not experiment.config.policy.get('dial', ''):
      yield (
        f'{name} sets a dial, and config.policy.dial is empty: give learned, or'
        ' the second reward of a policy with a dial'
      )


def problems(experiment: Experiment) -> Iterator[str]:
  """Says for which T there can be no policy; see `Experiment.check`."""
  section = experiment.config.policy
  num_steps = section.num_steps
  if section.get('guided_steps', ()) and not section.get('guided', True):
    yield (
      f'config.policy.guided_steps={section.guided_steps} names steps to guide,'
      ' and config.policy.guided is False: give True, or ()'
    )
  if section.get('dial', '') in section.get('rewards', ()):
    yield (
      f'config.policy.dial={section.dial} is one of config.policy.rewards='
      f'{tuple(section.rewards)}, and a dial goes from one reward to another:'
      ' give another, or none'
    )
  if section.get('dial', '') and experiment.is_converted('policy'):
    with contextlib.suppress(UserError):
      saved = checkpoint.read_layouts(section.init_from)
      if 'params/actor/dial_fc/kernel' not in saved:
        yield (
          f'config.policy.init_from={section.init_from} has no dial, and'
          f' config.policy.dial is {section.dial}: give an empty one'
        )
  if section.get('dial', '') and 'constant' in section.get('kinds', ()):
    yield (
      f'config.policy.dial={section.dial} is for policies that see the image:'
      " leave 'constant' out of config.policy.kinds"
    )
  shared = 'shared' in section.get('kinds', ())
  served = {*num_steps}
  if shared:
    served |= {*range(min(_drawn(experiment)), max(_drawn(experiment)) + 1)}
  try:
    for steps in sorted(served):
      acting(experiment, steps)
  except UserError as error:
    yield f'config.policy.{error}'
  if shared:
    drawn = _drawn(experiment)
    outside = [n for n in num_steps if not min(drawn) <= n <= max(drawn)]
    if outside:
      yield (
        f'config.policy.num_steps={num_steps} holds {outside[0]}, and a shared'
        f' policy that is trained on config.policy.drawn_num_steps={drawn}'
        f' serves {min(drawn)} to {max(drawn)}: give a wider'
        ' config.policy.drawn_num_steps, or leave it out of num_steps'
      )
    return
  if section.get('drawn_num_steps', ()):
    yield (
      f'config.policy.drawn_num_steps={section.drawn_num_steps} is for a policy'
      ' of many T: give config.policy.kinds=shared, or ()'
    )
  if experiment.is_converted('policy') and len(num_steps) != 1:
    yield (
      f'config.policy.num_steps={num_steps} is not allowed with'
      ' config.policy.init_from: give a tuple of 1 element, the number of steps'
      ' of that policy'
    )


def _converted_agents(experiment: Experiment) -> Mapping[int, agent_lib.Agent]:
  """The published policy at its number of steps, or a shared one at all."""
  experiment.check(problems)
  config = experiment.config
  shared = 'shared' in config.policy.get('kinds', ())
  actor, _ = networks.policy_modules(config, shared)
  features = jnp.zeros((1, experiment.num_tokens, config.nat.width))
  shapes = experiment.param_shapes(
    actor, features, jnp.zeros(1, jnp.int32), 1, 0.0
  )
  params = experiment.load_converted('policy', 'params/actor', shapes)

  def make(num_steps: int) -> agent_lib.Agent:
    return agent_lib.Agent(
      {'actor': params},
      residual_of(experiment, num_steps),
      PolicyNetworks(actor, num_steps=num_steps if shared else None),
      **acting(experiment, num_steps),
    )

  if not shared:
    (num_steps,) = config.policy.num_steps
    return {num_steps: make(num_steps)}
  drawn = _drawn(experiment)
  return _Agents(range(min(drawn), max(drawn) + 1), make, {})
