"""Stage `policy`: learns to schedule the frozen NAT, by PPO against a reward.

Each iteration is `adanat_jax.learning.policy`'s train step, in one jitted call.
Generated images are of random classes, or of captions in a random order; the
discriminator's real images are read during training, in an order of their own.
Optionally the images of the policy's mean actions are measured at intervals.
"""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import functools
from typing import Any

import jax

from adanat_jax.decoding.schedules import Schedule
from adanat_jax.experiment import (
  adversarial_reward,
  fit,
  rewards,
  texts,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.experiment.policies import (
  Training,
  initial_params,
  iterate_field,
  make_actor_critic,
  residual_of,
  trainings,
)
from adanat_jax.learning import agent as agent_lib, policy
from adanat_jax.measuring import scores
from adanat_jax.models import denoisers
from adanat_jax.models.clip import CLIPText
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import sharding
from adanat_jax.sampling.generator import Generator
from adanat_jax.stages.policy_rules import (
  check_config,
  ppo_config,
  rollout_config,
)
from adanat_jax.types import Array


def run(experiment: Experiment) -> None:
  """Trains every policy that the config asks for.

  Args:
    experiment: its tokenizer, NAT and reward network are trained or
      converted; its workdir gets `policy/<training>/`.

  Raises:
    UserError: for a missing stage or a value that is not allowed.
  """
  check_config(experiment)
  if experiment.is_converted('policy'):
    return
  for training in trainings(experiment):
    if not experiment.is_complete(f'policy/{training.name}'):
      train(experiment, training)


def train(experiment: Experiment, training: Training) -> None:
  """Trains one policy, from its newest checkpoint if there is one."""
  with contextlib.ExitStack() as stack:
    # Batches first: missing data is reported before anything slow.
    batches = make_batches(
      experiment,
      f'policy/{training.name}',
      has_discriminator=rewards.REWARDS[training.reward].learns,
    )
    for part in batches.values():
      stack.callback(part.close)
    _train(
      experiment,
      training,
      lambda step: {name: part(step) for name, part in batches.items()},
    )


def _train(
  experiment: Experiment,
  training: Training,
  batch_at: Callable[[int], dict[str, Any]],
) -> None:
  """Trains one policy.

  Args:
    experiment: of this run.
    training: which policy.
    batch_at: `iteration -> batches`, of `make_batches`.
  """
  config = experiment.config
  section = config.policy
  name = f'policy/{training.name}'
  init_key, reward_key, step_key = jax.random.split(experiment.key(name), 3)
  nat, nat_params = experiment.network('nat')
  tokenizer, tokenizer_params = experiment.network('tokenizer')
  text = experiment.network('text') if experiment.is_text else None
  constants = ppo_config(config)
  kind = rewards.REWARDS[training.reward]
  reward = kind.make(experiment, constants.shuffle_groups)
  frozen = {
    'nat': nat_params,
    'tokenizer': tokenizer_params,
    'reward': reward.frozen,
  }
  null = None
  if text is not None:
    null = texts.null_states(experiment)
    mesh = experiment.mesh
    frozen |= {'text': text[1], 'null': sharding.shard_state(null, mesh)}
  actor_critic = make_actor_critic(experiment, training)
  residual = residual_of(experiment, training.num_steps)

  def initial(frozen: Any) -> policy.PolicyState:
    params = initial_params(experiment, init_key)
    return policy.initial_state(
      params,
      constants,
      reward.initial(frozen['reward'], reward_key) if reward.initial else None,
      ema_decay=section.ema_decay,
    )

  def train_step(
    frozen: Any, state: policy.PolicyState, batch: Any, iteration: Array
  ) -> tuple[policy.PolicyState, dict[str, Array]]:
    step = policy.make_train_step(
      make_problem(nat, tokenizer, frozen, text[0] if text else None),
      actor_critic,
      residual,
      reward.build(frozen['reward']),
      constants,
      key=step_key,
      batch_size=section.batch_size,
      num_iterations=section.iterations,
      fresh_rollouts=section.discriminator.fresh_rollouts,
      rollouts=rollout_config(config),
      ema_decay=section.ema_decay,
    )
    prompts = policy.Prompts(batch.get('rollouts'), batch.get('fresh'))
    return step(state, batch.get('real'), iteration, prompts)

  options: dict[str, Any] = {
    'best_of': ('reward', 'max') if kind.is_absolute else None
  }
  if section.evaluate_every:
    generator = Generator(
      nat,
      nat_params,
      tokenizer,
      tokenizer_params,
      nat.num_classes or 0,
      {},
      # As many images as the devices hold while the policy explores.
      section.rollout_size or config.evaluate.batch_size,
      null,
      experiment.mesh,
    )
    as_agent = lambda params: agent_lib.Agent(params, residual, actor_critic)
    scorer = scores.Scorer(experiment)
    options = _evaluation(experiment, scorer, generator, as_agent)
  fit.fit(
    experiment,
    name,
    initial=initial,
    train_step=train_step,
    batch_at=batch_at,
    num_steps=section.iterations,
    frozen=frozen,
    keep_best=section.iterate == 'best',
    log_every=section.log_every,
    save_every=section.save_every,
    **options,
  )


def _evaluation(
  experiment: Experiment,
  scorer: scores.Scorer,
  generator: Generator,
  as_agent: Callable[[Any], agent_lib.Agent],
) -> dict[str, Any]:
  """Options of `fit` for measuring the policy while it trains."""
  section = experiment.config.policy

  def evaluate(state: policy.PolicyState, iteration: int) -> dict[str, float]:
    del iteration  # Every iterate gets the same conditions and noise.
    return scorer(
      generator,
      Schedule('learned', as_agent(getattr(state, iterate_field(experiment)))),
      num_samples=section.evaluate_samples,
    )

  distance = scorer.distance_name(section.evaluate_samples)
  return {
    'evaluate': evaluate,
    'evaluate_every': section.evaluate_every,
    'best_of': (f'eval/{distance}', 'min'),
  }


def make_batches(
  experiment: Experiment,
  name: str,
  *,
  has_discriminator: bool,
) -> dict[str, fit.Batches]:
  """The batches that the iterations of a training read, by part.

  Each part has an order of its own.

  Args:
    experiment: of this run.
    name: of the training.
    has_discriminator: whether real images are needed.

  Returns:
    `real` images of the discriminator's updates and, where the NAT reads texts,
    the captions of `rollouts` and of the discriminator's `fresh` images.

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
  text: CLIPText | None = None,
) -> policy.Problem:
  """NAT and tokenizer, with the parameters `frozen` holds, as callables.

  Args:
    nat: the NAT, `frozen['nat']` its parameters.
    tokenizer: the tokenizer, `frozen['tokenizer']` its parameters.
    frozen: where the NAT reads texts, `text` and `null` too: the parameters of
      the tower, and the states of the empty text.
    text: the tower.
  """
  denoiser = denoisers.make(nat, sharding.whole(frozen['nat']))
  tokenizer_params = sharding.whole(frozen['tokenizer'])

  def decode_images(tokens: Array) -> Array:
    return tokenizer.apply(
      {'params': tokenizer_params}, tokens, method='decode_tokens'
    )

  problem = policy.Problem(
    denoiser,
    decode_images,
    nat.num_tokens,
    nat.codebook_size,
    nat.num_classes,
    empty_cache=lambda condition, rows: denoisers.empty_cache(
      nat, rows, denoisers.text_length(condition)
    ),
  )
  if text is None:
    return problem
  return dataclasses.replace(
    problem,
    read=functools.partial(texts.conditions, text, frozen['text']),
    null_condition=frozen['null'],
  )
