"""Stage `policy`: learns to schedule the frozen NAT, by PPO against a reward.

One iteration, all inside one jitted function:

1. the policy, exploring, decodes a batch of images from random conditions;
2. the reward judges the finished images;
3. PPO improves actor and critic on that batch;
4. with the adversarial reward, the discriminator learns to tell these images
   from real ones (preset `paper`: images of fresh rollouts).

AdaNAT, section 3; LeapLabTHU/AdaNAT train.py.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from adanat_jax import training as training_lib
from adanat_jax.config_rules import between, check, choice, int_at_least
from adanat_jax.config_rules import tuple_of
from adanat_jax.data import digits
from adanat_jax.decoding import actions
from adanat_jax.decoding import loop
from adanat_jax.errors import UserError
from adanat_jax.rl import adversary
from adanat_jax.rl import agent as agent_lib
from adanat_jax.rl import ppo
from adanat_jax.rl import rewards
from adanat_jax.stages import judging
from adanat_jax.stages import networks
from adanat_jax.types import Array, Denoiser, PolicyValues

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


@struct.dataclass
class PolicyState:
  """What policy training carries from iteration to iteration.

  Attributes:
    params: of actor and critic.
    opt_state: of PPO's optimizer.
    adversary: the discriminator, None for other rewards.
  """

  params: Any
  opt_state: optax.OptState
  adversary: adversary.AdversaryState | None


@dataclasses.dataclass(frozen=True)
class Problem:
  """What a policy is trained on: the frozen parts, as callables.

  Attributes:
    denoiser: the NAT.
    decode_images: `tokens int32[B, N] -> images float32[B, H, W, C]`.
    num_tokens: N.
    mask_token: `codebook_size`.
    num_classes: conditions are int32 in `[0, num_classes)`.
  """

  denoiser: Denoiser
  decode_images: Callable[[Array], Array]
  num_tokens: int
  mask_token: int
  num_classes: int


def collect(
  problem: Problem,
  agent: agent_lib.Agent,
  key: Array,
  *,
  batch_size: int,
  num_steps: int,
  std: Array,
  weights: Array,
) -> tuple[Any, Array, Array]:
  """Decodes one batch with an exploring policy.

  Returns:
    The trajectory, the images float32[B, H, W, C], the conditions int32[B].
  """
  condition_key, sample_key = jax.random.split(key)
  condition = jax.random.randint(
    condition_key, (batch_size,), 0, problem.num_classes
  )
  decoded = loop.decode(
    problem.denoiser,
    agent.policy(std, weights),
    tokens=loop.full_mask(batch_size, problem.num_tokens, problem.mask_token),
    condition=condition,
    null_condition=jnp.int32(problem.num_classes),
    keys=loop.sample_keys(sample_key, batch_size),
    num_steps=num_steps,
    mask_token=problem.mask_token,
    record=True,
  )
  return (
    decoded.trajectory,
    problem.decode_images(decoded.tokens),
    condition,
  )


def make_train_step(
  problem: Problem,
  actor_critic: ppo.ActorCritic,
  residual: Array,
  judge: judging.Judge,
  config: ppo.PPOConfig,
  *,
  key: Array,
  batch_size: int,
  num_iterations: int,
  fresh_rollouts: bool,
) -> Callable[[PolicyState, Any, Array], tuple[PolicyState, Any]]:
  """Returns `(state, real batch, iteration) -> (state, metrics)`, not jitted.

  Args:
    problem: the frozen parts.
    actor_critic: the networks.
    residual: float32[T, A].
    judge: the reward, and how the discriminator learns.
    config: constants of PPO.
    key: all randomness of the training.
    batch_size: trajectories an iteration.
    num_iterations: configured total, on which exploration depends.
    fresh_rollouts: whether the discriminator sees images of rollouts of its
      own, as published, or those that PPO has just used.
  """
  num_steps = residual.shape[0]
  optimizer = ppo.make_optimizer(config)
  weights = ppo.action_weights(
    num_steps, actions.NUM_ACTIONS, config.drop_dead_actions
  )

  def train_step(
    state: PolicyState, real: Any, iteration: Array
  ) -> tuple[PolicyState, dict[str, Array]]:
    rollout_key, reward_key, update_key, adversary_key = jax.random.split(
      jax.random.fold_in(key, iteration), 4
    )
    std = ppo.exploration_std(iteration, num_iterations, config)
    agent = agent_lib.Agent(state.params, residual, actor_critic)
    trajectory, images, condition = collect(
      problem,
      agent,
      rollout_key,
      batch_size=batch_size,
      num_steps=num_steps,
      std=std,
      weights=weights,
    )
    reward = judge.reward(state.adversary)(images, condition, reward_key)
    final = jnp.zeros((num_steps, batch_size)).at[-1].set(reward)
    returns = ppo.discounted_returns(final, config.discount)
    rollout = ppo.Rollout(
      features=trajectory.features,
      actions=trajectory.aux.action,
      log_probs=trajectory.aux.log_prob,
      values=trajectory.aux.value,
      returns=ppo.standardise(returns),
      weights=weights,
    )
    params, opt_state, metrics = ppo.update(
      state.params,
      state.opt_state,
      rollout,
      std,
      update_key,
      actor_critic=actor_critic,
      optimizer=optimizer,
      config=config,
    )

    def fresh(key: Array) -> tuple[Array, Array]:
      new = agent_lib.Agent(params, residual, actor_critic)
      _, images, condition = collect(
        problem,
        new,
        key,
        batch_size=judge.fakes_per_update,
        num_steps=num_steps,
        std=std,
        weights=weights,
      )
      return images, condition

    new_adversary, judge_metrics = judge.learn(
      state.adversary,
      real,
      (images, condition),
      fresh if fresh_rollouts else None,
      adversary_key,
    )
    metrics |= judge_metrics
    metrics |= _describe(trajectory, reward, std)
    return PolicyState(params, opt_state, new_adversary), metrics

  return train_step


def _describe(trajectory: Any, reward: Array, std: Array) -> dict[str, Array]:
  """Reward, exploration, and what each step did: [T] means and spreads."""
  metrics = {
    'reward': reward.mean(),
    'reward_std': reward.std(),
    'exploration_std': jnp.asarray(std, jnp.float32),
    'committed': trajectory.num_committed.mean(1, dtype=jnp.float32),
  }
  for field in dataclasses.fields(PolicyValues):
    value = getattr(trajectory.values, field.name)
    metrics[field.name] = value.mean(1)
    metrics[f'{field.name}_std'] = value.std(1)
  return metrics


def make_actor_critic(
  config: ml_collections.ConfigDict, adaptive: bool
) -> ppo.ActorCritic:
  """Both policy networks of a config as one function."""
  actor, critic = networks.policy_modules(config)

  def actor_critic(
    params: Any, features: Array, step: Array
  ) -> tuple[Array, Array]:
    mean = actor.apply({'params': params['actor']}, features, step)
    value = critic.apply({'params': params['critic']}, features, step)
    return mean, value[:, 0]

  return actor_critic if adaptive else agent_lib.non_adaptive(actor_critic)


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
  params = training_lib.load_params(workdir / stage, 'params', shapes)
  return agent_lib.Agent(
    params,
    residual_of(config, which.num_steps),
    make_actor_critic(config, which.adaptive),
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
      'policy.discriminator.spectral_warmup': int_at_least(0),
      'policy.discriminator.learning_rate': between(0.0, 1.0),
    },
  )
  section = config.policy
  for name, size in (
    ('batch_size', section.batch_size),
    ('discriminator.batch_size', section.discriminator.batch_size),
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
) -> Problem:
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

  return Problem(
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
  state = PolicyState(
    params,
    ppo.make_optimizer(ppo_constants).init(params),
    judge.initial,
  )
  train_step = make_train_step(
    problem,
    make_actor_critic(config, which.adaptive),
    residual_of(config, which.num_steps),
    judge,
    ppo_constants,
    key=step_key,
    batch_size=section.batch_size,
    num_iterations=section.iterations,
    fresh_rollouts=section.discriminator.fresh_rollouts,
  )
  data = digits.load(config.data.image_size)
  condition = digits.condition_of(data.train_labels, config.data.condition)
  reals = section.discriminator.updates * section.discriminator.batch_size

  def batch_at(iteration: int) -> tuple[np.ndarray, np.ndarray]:
    index = digits.epoch_batch(
      iteration,
      reals if judge.initial is not None else 1,
      len(condition),
      networks.order_seed(config, name),
    )
    return data.train_images[index], condition[index]

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
