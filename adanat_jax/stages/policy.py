"""Stage `policy`: learns to schedule the frozen NAT, by PPO against a reward.

Each iteration is `adanat_jax.learning.policy`'s train step, in one jitted call.
Generated images are of random classes, or of captions in a random order; the
discriminator's real images are read during training, in an order of their own.
A shared policy decodes each iteration in another number of steps, with a step
compiled for each. Optionally the images of the policy's mean actions are
measured at intervals.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from adanat_jax.decoding import actions, guidance
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.experiment import (
  adversarial_reward,
  datasets,
  field_rules,
  fit,
  networks,
  policies,
  reward_network,
  rewards,
  texts,
  warm_start,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import agent as agent_lib, policy, ppo
from adanat_jax.measuring import features, scores
from adanat_jax.models import denoisers
from adanat_jax.models.captions import TextNetwork
from adanat_jax.models.discriminator import GROUP_SIZE
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import sharding
from adanat_jax.sampling import first_step
from adanat_jax.types import Array

# What a training may begin with, see `warm_start.make`. A converted
# discriminator is a checkpoint of its own.
_DISCRIMINATOR: dict[str, tuple[str, ...]] = {
  'adversary/params': ('adversary/params', 'params'),
  'adversary/spectral': ('adversary/spectral', 'spectral'),
  'adversary/opt_state': ('adversary/opt_state', 'opt_state'),
}
_TAKEN_OVER: dict[str, dict[str, tuple[str, ...]]] = {
  'policy': {
    'params/actor': ('params/actor',),
    'params/critic': ('params/critic',),
    'opt_state': ('opt_state',),
    'average': ('average', 'params'),
    **{field: (field,) for field in _DISCRIMINATOR},
  },
  'policy.discriminator': _DISCRIMINATOR,
}


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for policies that cannot be trained."""
  experiment.check(
    policies.problems,
    _problems,
    _problems_of_batches,
    networks.problems_of_grids,
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
    _has_discriminator(experiment)
    and held_out
    and not datasets.has_validation(experiment)
  ):
    yield (
      f'config.policy.discriminator.held_out is {held_out}, and there are no'
      ' validation images: give config.data.validation_path or'
      f' config.data.held_out, or 0 ({datasets.page(experiment)})'
    )
  if section.rollout_features == 'recompute' and denoisers.reuses(
    networks.nat_module(config)
  ):
    yield (
      'config.policy.rollout_features=recompute needs config.nat.network=nat:'
      ' what an ENAT sees depends on the steps before; give store'
    )
  given = experiment.begins_with('policy.discriminator')
  if given and not _has_discriminator(experiment):
    yield (
      f'config.policy.discriminator.init_from={given} is for'
      f' config.policy.rewards=adversarial; they are {section.rewards}'
    )
  yield from reward_network.problems(experiment)
  asked = [*section.rewards, *filter(None, [section.get('dial', '')])]
  for name in asked:
    if rewards.REWARDS[name].needs_classes and not (
      reward_network.knows_classes(experiment)
    ):
      yield (
        f'config.policy.rewards or config.policy.dial has {name}, which asks a'
        ' reward network that was trained here to tell classes; give'
        ' adversarial or frechet'
      )
  if section.residual == 'none' and len(section.learned) < len(actions.NAMES):
    yield (
      f'config.policy.learned={tuple(section.learned)} leaves the other values'
      ' to config.policy.residual, which is none: give published or maskgit'
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
  """Says which batches cannot be cut evenly by devices, PPO or rollouts."""
  section, devices = experiment.config.policy, experiment.mesh.size
  if experiment.is_converted('policy'):
    return
  sizes = {'policy.batch_size': section.batch_size}
  wholes = [section.batch_size]
  multiples = dict.fromkeys(sizes, GROUP_SIZE)
  if _has_discriminator(experiment):
    size = section.discriminator.batch_size
    sizes['policy.discriminator.batch_size'] = size
    multiples = dict.fromkeys(
      [*sizes, 'policy.discriminator.held_out'], GROUP_SIZE
    )
    if section.discriminator.fresh_rollouts:
      wholes.append(size)
  yield from experiment.uneven_batches(multiples)
  constants = ppo_config(experiment.config)
  if _has_discriminator(experiment):
    yield from _problems_of_groupings(experiment, constants.shuffle_groups)
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


def _problems_of_groupings(
  experiment: Experiment, groups: int
) -> Iterator[str]:
  """Says why whom an image is scored with cannot be drawn."""
  section, devices = experiment.config.policy, experiment.mesh.size
  groupings = section.discriminator.get('groupings', 1)
  if groupings == 1:
    return
  name = f'config.policy.discriminator.groupings={groupings}'
  size = section.batch_size // groups
  if size % GROUP_SIZE or size == GROUP_SIZE:
    yield (
      f'{name} draws groups of {GROUP_SIZE} from'
      f' {groups} parts of config.policy.batch_size={section.batch_size}, of'
      f' {size}: each must be a multiple of {GROUP_SIZE}, {2 * GROUP_SIZE} or'
      ' more (config.policy.ppo.shuffle_groups)'
    )
  if groups % devices:
    yield (
      f'{name} would move images between devices: give'
      f' config.policy.ppo.shuffle_groups, which is {groups}, as a multiple of'
      f' the {devices} devices, or 1 grouping'
    )


def run(experiment: Experiment) -> None:
  """Trains `policy/<training>/` for each policy that the config asks for."""
  check_config(experiment)
  if experiment.is_converted('policy'):
    return
  for training in policies.trainings(experiment):
    if not experiment.is_complete(f'policy/{training.name}'):
      train(experiment, training)


def train(experiment: Experiment, training: policies.Training) -> None:
  """Trains one policy, from its newest checkpoint if there is one."""
  config, section = experiment.config, experiment.config.policy
  name = f'policy/{training.name}'
  kind = rewards.REWARDS[training.reward]
  # First: missing data is reported before anything slow.
  batches: dict[str, Any] = make_batches(
    experiment, name, has_discriminator=kind.learns
  )
  drawn = training.drawn
  if drawn:
    # An iteration has one T: the returns that PPO standardises are all of it.
    key = f'{name}/num_steps'
    batches['num_steps'] = fit.Choices(experiment, key, drawn)
  init_key, reward_key, step_key = jax.random.split(experiment.key(name), 3)
  nat, nat_params = experiment.network('nat')
  tokenizer, tokenizer_params = experiment.network('tokenizer')
  constants = ppo_config(config)
  reward = kind.make(experiment, constants.shuffle_groups)
  second = None
  if section.get('dial', ''):
    dialled = rewards.REWARDS[section.dial]
    second = dialled.make(experiment, constants.shuffle_groups)
  frozen = {
    'nat': nat_params,
    'tokenizer': tokenizer_params,
    'reward': reward.frozen,
    'second_reward': second.frozen if second else (),
  }
  rows = first_step.table(nat, nat_params, experiment.mesh)
  if rows is not None:
    frozen['first'] = rows
  tower = null = None
  if experiment.is_text:
    tower, params = experiment.network('text')
    null = texts.null_states(experiment)
    mesh = experiment.mesh
    frozen |= {'text': params, 'null': sharding.shard_state(null, mesh)}
  residuals = {
    num_steps: policies.residual_of(experiment, num_steps)
    for num_steps in {*(drawn or (training.num_steps,)), *section.num_steps}
    if num_steps in training.all_num_steps
  }
  networks_of = functools.partial(
    policies.make_actor_critic, experiment, training
  )
  acting = functools.partial(policies.acting, experiment)
  kept = policies.rollout_features(
    experiment, sharding.device_memory(experiment.mesh), experiment.mesh.size
  )

  def initial(frozen: Any) -> policy.PolicyState:
    return policy.initial_state(
      policies.initial_params(experiment, init_key, bool(drawn)),
      constants,
      reward.initial(frozen['reward'], reward_key) if reward.initial else None,
      ema_decay=section.ema_decay,
    )

  def train_step(
    frozen: Any, state: policy.PolicyState, batch: Any, iteration: Array
  ) -> tuple[policy.PolicyState, dict[str, Array]]:
    num_steps = batch['num_steps'].value if drawn else training.num_steps
    acts = acting(num_steps)
    step = policy.make_train_step(
      make_problem(nat, tokenizer, frozen, tower, acts['guided']),
      networks_of(num_steps),
      residuals[num_steps],
      reward.build(frozen['reward']),
      constants,
      key=step_key,
      batch_size=section.batch_size,
      num_iterations=section.iterations,
      fresh_rollouts=section.discriminator.fresh_rollouts,
      rollouts=policy.RolloutConfig(
        kept, section.rollout_dtype, section.rollout_size
      ),
      ema_decay=section.ema_decay,
      smoothing=acts['smoothing'],
      learned=acts['learned'],
      second_reward=(
        second.build(frozen['second_reward']).reward(None) if second else None
      ),
    )
    prompts = policy.Prompts(batch.get('rollouts'), batch.get('fresh'))
    state, metrics = step(state, batch.get('real'), iteration, prompts)
    if drawn:
      metrics['num_steps'] = jnp.int32(num_steps)
    return state, metrics

  options: dict[str, Any] = {
    # More steps earn more, so those of unlike T are not compared.
    'best_of': ('reward', 'max') if kind.is_absolute and not drawn else None
  }
  if section.evaluate_every:
    scorer, count = scores.Scorer(experiment), section.evaluate_samples
    generator = dataclasses.replace(
      experiment.generator_of(nat, nat_params, null),
      # As many images as the devices hold while the policy explores.
      batch_size=section.rollout_size or experiment.batch_size,
    )

    def evaluate(state: policy.PolicyState, iteration: int) -> dict[str, float]:
      del iteration  # Every iterate gets the same conditions and noise.
      params = getattr(state, policies.iterate_field(experiment))
      found = {}
      for num_steps in sorted({*section.num_steps} & residuals.keys()):
        agent = agent_lib.Agent(
          params,
          residuals[num_steps],
          networks_of(num_steps),
          **acting(num_steps),
        )
        schedule = Schedule('learned', agent, agent.guided)
        found[num_steps] = scorer(generator, schedule, num_samples=count)
      if not drawn:
        return found[training.num_steps]
      each = {
        f'T{num_steps}/{key}': figure
        for num_steps, figures in found.items()
        for key, figure in figures.items()
      }
      mean = jax.tree.map(lambda *x: sum(x) / len(x), *found.values())
      return mean | each

    options = {
      'evaluate': evaluate,
      'evaluate_every': section.evaluate_every,
      'best_of': (f'eval/{scorer.distance_name(count)}', 'min'),
    }
  fit.fit(
    experiment,
    name,
    initial=initial,
    train_step=train_step,
    batch_at=batches,
    num_steps=section.iterations,
    frozen=frozen,
    keep_best=section.iterate == 'best',
    log_every=section.log_every,
    save_every=section.save_every,
    shown=('reward', 'explained_variance', 'accuracy_held_out', 'entropy'),
    begin=warm_start.make(experiment, name, _TAKEN_OVER),
    **options,
  )


def make_batches(
  experiment: Experiment, name: str, *, has_discriminator: bool
) -> dict[str, fit.Batches]:
  """The batches that the iterations of a training read, by part.

  They are `real` images of the discriminator's updates, if it has one, and,
  where the NAT reads texts, the captions of `rollouts` and of the
  discriminator's `fresh` images. Each part has an order of its own.

  Raises:
    UserError: if images or prepared captions are missing.
  """
  config = experiment.config
  section = config.policy.discriminator
  shape = section.updates, section.batch_size
  result = {}
  if has_discriminator:
    real = adversarial_reward.real_examples(experiment, 'train')
    result['real'] = fit.Batches(experiment, name, real, shape)
  if experiment.is_text:
    prompts = experiment.examples('train', 'prompts')
    result['rollouts'] = fit.Batches(
      experiment, f'{name}/rollouts', prompts, (config.policy.batch_size,)
    )
    if has_discriminator and section.fresh_rollouts:
      result['fresh'] = fit.Batches(experiment, f'{name}/fresh', prompts, shape)
  return result


def make_problem(
  nat: denoisers.DenoiserModule,
  tokenizer: VQGAN,
  frozen: Any,
  text: TextNetwork | None = None,
  guided: guidance.Guided = True,
) -> policy.FrozenParts:
  """NAT and tokenizer as callables, with the parameters that `frozen` holds.

  Where the NAT reads texts, `text` encodes them, and `frozen` has its
  parameters as `text` and the states of the empty text as `null`. Of classes it
  may have the table of `first_step` as `first`. `guided`: whether, or at which
  steps, the unconditional pass runs.
  """
  denoiser = denoisers.make(nat, sharding.whole(frozen['nat']))
  tokenizer_params = sharding.whole(frozen['tokenizer'])

  def decode_images(tokens: Array) -> Array:
    return tokenizer.apply(
      {'params': tokenizer_params}, tokens, method='decode_tokens'
    )

  problem = policy.FrozenParts(
    denoiser,
    decode_images,
    nat.num_tokens,
    nat.codebook_size,
    nat.num_classes,
    empty_cache=lambda condition, rows: denoisers.empty_cache(
      nat, rows, denoisers.text_length(condition)
    ),
    guided=guided,
    first=frozen.get('first'),
  )
  if text is None:
    return problem
  return dataclasses.replace(
    problem,
    read=functools.partial(texts.conditions, text, frozen['text']),
    null_condition=frozen['null'],
  )


def ppo_config(config: ml_collections.ConfigDict) -> ppo.PPOConfig:
  """The preset that `config.policy.preset` names, with its overrides."""
  given = {k: v for k, v in config.policy.ppo.items() if v is not None}
  return dataclasses.replace(ppo.PRESETS[config.policy.preset], **given)


def _has_discriminator(experiment: Experiment) -> bool:
  """Whether any of the rewards learns."""
  return any(
    rewards.REWARDS[n].learns for n in experiment.config.policy.rewards
  )
