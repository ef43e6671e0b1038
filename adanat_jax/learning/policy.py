"""One iteration of policy training, as a pure function.

1. The exploring policy decodes a batch of images, of random classes or of given
   texts.
2. The reward model scores the finished images. Where the policy has a dial,
   each image has its own l in [0, 1], which the policy reads: it earns (1 - l)
   of this reward and l of a second one, each standardised over the batch.
   AdaGen (arXiv 2603.06993) blends two policies instead.
3. PPO improves actor and critic on that batch.
4. With the adversarial reward, the discriminator learns to tell these images
   from real ones (as published: images of fresh rollouts).
5. Optionally, a moving average of the policy's parameters is updated; nothing
   learns from it.

Policy and discriminator circle around each other, so the last iterate is partly
luck; their average depends on it less (Yazici et al., The Unusual Effectiveness
of Averaging in GAN Training, ICLR 2019).

AdaNAT, section 3, which keeps no average; LeapLabTHU/AdaNAT train.py.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from adanat_jax.decoding import actions, guidance, loop
from adanat_jax.learning import agent as agent_lib, ppo
from adanat_jax.learning.discriminator import DiscriminatorState
from adanat_jax.learning.rewards import Labelled, RewardModel
from adanat_jax.runtime import batch_parts, sharding
from adanat_jax.types import (
  Array,
  Cache,
  Condition,
  Denoiser,
  PolicyAux,
  PolicyValues,
  Reward,
)

# Folded into keys beside small numbers, such as those of a sample's steps.
_DIAL = 2**32 - 2


@struct.dataclass
class Prompts:
  """The texts of one iteration; both None where classes are drawn.

  `fresh` are for the images that are generated for the discriminator, for each
  of its updates; None where it sees PPO's.
  """

  rollouts: Any = None  # each [B, ...]
  fresh: Any = None  # each [U, F, ...]


def _as_given(prompts: Any) -> tuple[Condition, Condition]:
  return prompts, prompts


@struct.dataclass
class PolicyState:
  """What policy training carries from iteration to iteration."""

  params: Any
  opt_state: optax.OptState
  # The discriminator, None for other rewards.
  adversary: DiscriminatorState | None = None
  average: Any = None  # moving average of `params`, None if none is kept


def initial_state(
  params: Any,
  constants: ppo.PPOConfig,
  discriminator: DiscriminatorState | None = None,
  *,
  ema_decay: float = 0.0,
) -> PolicyState:
  """The state before the first iteration, from newly drawn parameters.

  `discriminator` is that of the adversarial reward; without an `ema_decay` no
  average is kept.
  """
  return PolicyState(
    params,
    ppo.make_optimizer(constants).init(params),
    discriminator,
    # A copy: the train state is donated, and no buffer may be given twice.
    jax.tree.map(jnp.copy, params) if ema_decay else None,
  )


def decay_at(iteration: Array | int, decay: float) -> Array:
  """The share of the old average that stays, `min(decay, (1+i) / (10+i))`.

  Early iterations are forgotten fast: the untrained policy says nothing about
  the trained one, and a short training ends before a large decay would have
  forgotten it. As TensorFlow's ExponentialMovingAverage with `num_updates`.
  A decay of 1.0 averages about the last tenth of the iterations. float32[]; i
  is the iteration, counted from 0.
  """
  iteration = jnp.asarray(iteration, jnp.float32)
  return jnp.minimum(decay, (1 + iteration) / (10 + iteration))


def update_average(
  average: Any, params: Any, iteration: Array | int, decay: float
) -> Any:
  """The moving average after the iteration that gave `params`."""
  share = 1 - decay_at(iteration, decay)
  return optax.incremental_update(params, average, share)


@dataclasses.dataclass(frozen=True)
class FrozenParts:
  """What a policy is trained on: the frozen parts, as callables."""

  denoiser: Denoiser  # the NAT
  # `tokens int32[B, N] -> images float32[B, H, W, C]`.
  decode_images: Callable[[Array], Array]
  num_tokens: int
  mask_token: int
  # Conditions are int32 in `[0, num_classes)`, and their number is the null
  # condition; None if conditions are read from prompts.
  num_classes: int | None
  # `prompts -> (condition of the denoiser, condition of the reward)`, each
  # sample by itself; classes are both.
  read: Callable[[Any], tuple[Condition, Condition]] = _as_given
  # Of one sample, where there are no classes; None leaves guidance out.
  null_condition: Any = None
  # `(condition, rows of a forward) -> cache` of the first step.
  empty_cache: Callable[[Condition, int], Cache] = lambda *_: ()
  # Which steps run the unconditional pass; without it they cost half.
  guided: guidance.Guided = True
  # What the denoiser says of empty canvases, features float[C, N, D] and logits
  # float32[C, N, K] of every class, with the unconditional row; rollouts then
  # do not run their first step. None: they do.
  first: loop.FirstStep | None = None

  @property
  def is_guided(self) -> bool:
    """Whether any step runs the network without its condition, too."""
    has_null = self.num_classes is not None or self.null_condition is not None
    return bool(self.guided) and has_null


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
  """How trajectories are collected and kept.

  Apart from rounding to bfloat16, no choice changes the results.
  """

  # `'store'` keeps what the policy saw, [T, B, N, D]; `'recompute'` keeps the
  # canvases, [T, B, N], and runs the NAT again, without guidance, in each of
  # PPO's epochs.
  features: str = 'store'
  # `'float32'` leaves features as the NAT gives them; `'bfloat16'` rounds them,
  # for acting and for learning.
  dtype: str = 'float32'
  # How many trajectories are decoded at a time, over all devices; 0 for all of
  # a batch.
  size: int = 0


@struct.dataclass
class Experience:
  """What a rollout records, for learning and for metrics, time-major."""

  # float32 or uint16[T, B, N, D], or (int32[T, B, N], each [1, B, ...])
  # See `ppo.Rollout`: features, those in bfloat16 as their bits, or (canvases
  # before each step, prompts); with a dial (these, float32[T, B]).
  observations: Any
  # Actions, their log-densities and the critic's values.
  aux: PolicyAux  # each [T, B, ...]
  values: PolicyValues  # float32[T, B]; the four numbers of each step
  num_committed: Array  # int32[T, B]; how many tokens became known at each step
  # float32[1, B]; where each sample's dial stood, None without one.
  dial: Array | None = None


def _round(features: Array, dtype: str) -> Array:
  """Features rounded to the type in which they are kept."""
  if jnp.bfloat16 not in (features.dtype, jnp.dtype(dtype)):
    return features
  # Compilers may remove a cast to bfloat16 and back.
  return jax.lax.reduce_precision(features, 8, 7).astype(jnp.bfloat16)


def _rounded(denoiser: Denoiser, dtype: str) -> Denoiser:
  """The denoiser, with rounded features."""

  def rounded(
    tokens: Array, condition: Condition, cache: Cache
  ) -> tuple[Array, Array, Cache]:
    features, logits, cache = denoiser(tokens, condition, cache)
    return _round(features, dtype), logits, cache

  return rounded


def _first_step(
  problem: FrozenParts, classes: Array, num_steps: int, dtype: str
) -> loop.FirstStep | None:
  """The first step of samples of these classes int32[B], if it is known."""
  if problem.first is None:
    return None
  is_guided = guidance.each_step(problem.guided, num_steps)[0]
  return dataclasses.replace(
    problem.first,
    features=_round(problem.first.features, dtype),
    unconditional=problem.first.unconditional if is_guided else None,
    place=classes,
  )


def collect(
  problem: FrozenParts,
  agent: agent_lib.Agent,
  key: Array,
  *,
  batch_size: int,
  num_steps: int,
  std: Array,
  weights: Array,
  config: RolloutConfig = RolloutConfig(),
  prompts: Any = None,
) -> tuple[Experience, Array, Condition]:
  """Decodes one batch with an exploring policy.

  Returns:
    The experience, the images float32[B, H, W, C], and their conditions as a
    reward takes them: int32[B] classes, or what is read from the prompts.
  """
  condition_key, sample_key = jax.random.split(key)
  null_condition = problem.null_condition
  if problem.num_classes is not None:
    null_condition = jnp.int32(problem.num_classes)
    shape = (batch_size,)
    prompts = jax.random.randint(condition_key, shape, 0, problem.num_classes)
  if not problem.is_guided:
    null_condition = None
  prompts = sharding.split_batch(prompts)
  keys = sharding.split_batch(loop.sample_keys(sample_key, batch_size))
  denoiser = _rounded(problem.denoiser, config.dtype)

  def decode(inputs: tuple[Any, Array]) -> tuple[Experience, Any]:
    prompts, keys = inputs
    condition, reward_condition = sharding.split_batch(problem.read(prompts))
    start = loop.full_mask(len(keys), problem.num_tokens, problem.mask_token)
    start = sharding.split_batch(start)
    dial = None if agent.dial is None else _drawn_dial(keys)
    decoded = loop.decode(
      denoiser,
      agent.policy(std, weights),
      policy_carry=agent.initial_carry(keys, dial),
      tokens=start,
      condition=condition,
      null_condition=null_condition,
      keys=keys,
      num_steps=num_steps,
      mask_token=problem.mask_token,
      guided=problem.guided,
      # Guidance runs each sample with its condition and without.
      cache=sharding.split_batch(
        problem.empty_cache(condition, (1 + problem.is_guided) * len(keys))
      ),
      first=_first_step(problem, condition, num_steps, config.dtype),
      record=True,
    )
    trajectory = decoded.trajectory
    assert trajectory is not None  # It was asked for.
    observations: Any = trajectory.features
    if observations.dtype == jnp.bfloat16:
      # Slicing bfloat16 on a CPU would convert the whole array to float32.
      observations = jax.lax.bitcast_convert_type(observations, jnp.uint16)
    if config.features == 'recompute':
      canvases = jnp.concatenate([start[None], trajectory.tokens[:-1]])
      observations = canvases, jax.tree.map(lambda x: x[None], prompts)
    if dial is not None:
      dial = dial[None]
      observations = observations, jnp.repeat(dial, num_steps, axis=0)
    images = sharding.split_batch(problem.decode_images(decoded.tokens))
    experience = Experience(
      observations,
      trajectory.aux,
      trajectory.values,
      trajectory.num_committed,
      dial,
    )
    # As all of the experience, with an axis before that of the batch.
    labelled = jax.tree.map(lambda x: x[None], (images, reward_condition))
    return sharding.split_batch((experience, labelled), axis=1)

  parts = max(batch_size // config.size, 1) if config.size else 1
  experience, labelled = batch_parts.map_in_parts(
    decode, (prompts, keys), parts
  )
  images, reward_condition = jax.tree.map(lambda x: x[0], labelled)
  return experience, images, reward_condition


def _drawn_dial(keys: Array) -> Array:
  """Where the dials of samples with these keys stand, float32[B]."""
  draw = lambda key: jax.random.uniform(jax.random.fold_in(key, _DIAL))
  return jax.vmap(draw)(keys)


def _make_learner(
  problem: FrozenParts,
  actor_critic: agent_lib.ActorCritic,
  config: RolloutConfig,
  has_dial: bool,
) -> agent_lib.ActorCritic:
  """The networks as functions of what a rollout keeps as observations."""
  denoiser = _rounded(problem.denoiser, config.dtype)

  def features_of(observations: Any) -> Array:
    if config.features == 'recompute':
      canvases, prompts = observations
      # Once per sample, not once per step.
      condition, _ = problem.read(prompts)
      num_steps = len(canvases) // len(jax.tree.leaves(prompts)[0])
      condition = batch_parts.repeat_steps(condition, num_steps)
      return denoiser(canvases, condition, ())[0]
    if observations.dtype == jnp.uint16:
      return jax.lax.bitcast_convert_type(observations, jnp.bfloat16)
    return observations

  def learner(
    params: Any, observations: Any, step: Array
  ) -> tuple[Array, Array]:
    if not has_dial:
      return actor_critic(params, features_of(observations), step)
    observations, dial = observations
    return actor_critic(params, (features_of(observations), dial), step)

  return learner


def make_train_step(
  problem: FrozenParts,
  actor_critic: agent_lib.ActorCritic,
  residual: Array,
  reward_model: RewardModel,
  constants: ppo.PPOConfig,
  *,
  key: Array,
  batch_size: int,
  num_iterations: int,
  fresh_rollouts: bool,
  rollouts: RolloutConfig = RolloutConfig(),
  ema_decay: float = 0.0,
  smoothing: float = 0.0,
  learned: tuple[str, ...] = actions.NAMES,
  second_reward: Reward | None = None,
) -> Callable[..., tuple[PolicyState, Any]]:
  """Returns `(state, real batch, iteration, prompts) -> (state, metrics)`.

  It is not jitted. Without `Prompts`, images are of random classes.

  Args:
    problem: the frozen parts.
    actor_critic: the networks.
    residual: float32[T, A].
    reward_model: the reward, and how its discriminator learns.
    constants: of PPO.
    key: all randomness of the training.
    batch_size: trajectories an iteration.
    num_iterations: configured total, on which exploration depends.
    fresh_rollouts: whether the discriminator sees images of rollouts of its
      own, as published, or those that PPO has just used.
    rollouts: how trajectories are collected and kept.
    ema_decay: of the moving average, see `decay_at`; 0.0 keeps none.
    smoothing: of actions, see `Agent`.
    learned: which values are chosen, see `Agent`.
    second_reward: what a dial of 1 asks for; None for a policy without a dial.
  """
  num_steps = residual.shape[0]
  optimizer = ppo.make_optimizer(constants)
  weights = ppo.action_weights(
    num_steps,
    constants.drop_dead_actions,
    guided=problem.is_guided and problem.guided,
    learned=learned,
  )

  def train_step(
    state: PolicyState,
    real: Any,
    iteration: Array,
    prompts: Prompts | None = None,
  ) -> tuple[PolicyState, dict[str, Array]]:
    prompts = prompts or Prompts()
    rollout_key, reward_key, update_key, learn_key = jax.random.split(
      jax.random.fold_in(key, iteration), 4
    )
    std = ppo.exploration_std(iteration, num_iterations, constants)
    make_agent = lambda params: agent_lib.Agent(
      params,
      residual,
      actor_critic,
      smoothing,
      learned=learned,
      dial=None if second_reward is None else jnp.zeros(()),
    )
    decode = functools.partial(
      collect,
      problem,
      num_steps=num_steps,
      std=std,
      weights=weights,
      config=rollouts,
    )
    experience, images, condition = decode(
      make_agent(state.params),
      rollout_key,
      batch_size=batch_size,
      prompts=prompts.rollouts,
    )
    reward = reward_model.reward(state.adversary)(images, condition, reward_key)
    earned, described = reward, {}
    if second_reward is not None:
      assert experience.dial is not None  # Its agent has one.
      # The first reward splits the key, which takes small numbers.
      second_key = jax.random.fold_in(reward_key, _DIAL)
      second = second_reward(images, condition, second_key)
      earned = blended(reward, second, experience.dial[0])
      described = {'second_reward': second.mean()}
    final = jnp.zeros((num_steps, batch_size)).at[-1].set(earned)
    final = sharding.split_batch(final, axis=1)
    returns = ppo.discounted_returns(final, constants.discount)
    rollout = ppo.Rollout(
      observations=experience.observations,
      actions=experience.aux.action,
      log_probs=experience.aux.log_prob,
      values=experience.aux.value,
      returns=ppo.standardise(returns),
      weights=weights,
    )
    params, opt_state, metrics = ppo.update(
      state.params,
      state.opt_state,
      rollout,
      std,
      update_key,
      actor_critic=_make_learner(
        problem, actor_critic, rollouts, second_reward is not None
      ),
      optimizer=optimizer,
      constants=constants,
    )

    def fresh(key: Array, update: Array | int = 0) -> Labelled:
      _, images, condition = decode(
        make_agent(params),
        key,
        batch_size=reward_model.fakes_per_update,
        prompts=jax.tree.map(lambda x: x[update], prompts.fresh),
      )
      return images, condition

    discriminator, reward_metrics = reward_model.learn(
      state.adversary,
      real,
      (images, condition),
      fresh if fresh_rollouts else None,
      learn_key,
    )
    metrics |= reward_metrics | described
    metrics |= _describe(experience, reward, std)
    average = state.average
    if ema_decay:
      average = update_average(average, params, iteration, ema_decay)
    return PolicyState(params, opt_state, discriminator, average), metrics

  return train_step


def blended(first: Array, second: Array, dial: Array) -> Array:
  """`(1 - dial)` of one reward and `dial` of another, float32[B] all.

  Each is standardised before, so that neither's scale decides.
  """
  first, second = map(ppo.standardise, (first, second))
  return (1 - dial) * first + dial * second


def _describe(
  experience: Experience, reward: Array, std: Array
) -> dict[str, Array]:
  """Metrics of reward and exploration; means and spreads of each step, [T]."""
  metrics = {
    'reward': reward.mean(),
    'reward_std': reward.std(),
    'exploration_std': jnp.asarray(std, jnp.float32),
    'committed': experience.num_committed.mean(1, dtype=jnp.float32),
  }
  for name, value in experience.values.by_name().items():
    metrics[name] = value.mean(1)
    metrics[f'{name}_std'] = value.std(1)
  return metrics
