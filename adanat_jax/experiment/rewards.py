"""The reward of a policy training, and how its discriminator learns.

Each function makes the court of one reward from the networks of a workdir: the
arrays it needs, placed on the mesh, and the functions that become its `Judge`
inside the compiled training step. Arrays are handed in, never closed over: a
compiled function would hold them as constants.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.data import digits
from adanat_jax.experiment import adversarial_reward, reward_network
from adanat_jax.experiment.adversarial_reward import Court
from adanat_jax.learning import rewards
from adanat_jax.learning.policy import Judge, Labelled
from adanat_jax.models.clip import CLIPText
from adanat_jax.runtime import processes, sharding
from adanat_jax.types import Array, Reward

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment


def _learn_nothing(
  state: None, real: Any, fakes: Labelled, fresh: Any, key: Array
) -> tuple[None, dict[str, Array]]:
  del real, fakes, fresh, key
  return state, {}


def _unlearned(reward: Reward) -> Judge:
  """A reward that no discriminator stands behind."""
  return Judge(lambda state: reward, _learn_nothing)


def frechet_court(experiment: Experiment) -> Court:
  """Each sample's influence on the distance in the reward's features."""
  module, params = experiment.network('reward')
  data = digits.load(experiment.config.data.image_size)

  def features(params: Any, images: Array) -> Array:
    variables = {'params': sharding.whole(params)}
    inputs = reward_network.inputs(experiment, images)
    return module.apply(variables, inputs).cls

  real = sharding.gather(jax.jit(features)(params, data.train_images))
  real = real.astype(np.float64)

  def judge(frozen: Any) -> Judge:
    return _unlearned(
      rewards.frechet_reward(
        functools.partial(features, frozen['reward']),
        frozen['mean'],
        frozen['covariance'],
      )
    )

  # One host's: unlike processors may differ in the last bit.
  mean, covariance = processes.from_first(
    lambda: [real.mean(0).tolist(), np.cov(real, rowvar=False).tolist()]
  )
  statistics = sharding.shard_state(
    {
      'mean': np.asarray(mean, np.float32),
      'covariance': np.asarray(covariance, np.float32),
    },
    experiment.mesh,
  )
  return Court({'reward': params, **statistics}, judge)


def pretrained_court(experiment: Experiment) -> Court:
  """The reward network's log-probability of the asked condition."""
  module, params = experiment.network('reward')
  classes = digits.condition_of(np.arange(10), experiment.config.data.condition)

  def judge(frozen: Any) -> Judge:
    def log_probs(images: Array) -> Array:
      inputs = reward_network.inputs(experiment, images)
      variables = {'params': sharding.whole(frozen['reward'])}
      out = module.apply(variables, inputs).outputs
      # The network knows ten digits; a condition's probability is their sum.
      members = jax.nn.one_hot(classes, experiment.num_classes)
      return jnp.log(jax.nn.softmax(out) @ members + 1e-6)

    return _unlearned(rewards.pretrained_reward(log_probs))

  return Court({'reward': params}, judge)


def make_court(
  name: str,
  experiment: Experiment,
  groups: int,
  text: tuple[CLIPText, Any] | None = None,
) -> Court:
  """The court of a reward: adversarial, frechet or pretrained.

  Args:
    name: of the reward; the last two judge the digits alone.
    experiment: its reward network is trained or converted.
    groups: see `adversarial.court`.
    text: see `adversarial.court`.
  """
  if name == 'adversarial':
    return adversarial_reward.court(experiment, groups, text)
  if name == 'frechet':
    return frechet_court(experiment)
  return pretrained_court(experiment)
