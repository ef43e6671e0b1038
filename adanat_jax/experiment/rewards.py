"""The rewards of a config, from the networks of its workdir.

Arrays are placed on the mesh here; `RewardSpec.build` gets them inside the
compiled training step.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.data import images as images_lib
from adanat_jax.data.order import epoch_batch
from adanat_jax.experiment import (
  adversarial_reward,
  datasets,
  networks,
  reward_network,
)
from adanat_jax.learning import rewards
from adanat_jax.runtime import processes, sharding
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment

# Real images that the Fréchet reward compares with, at most, and at a time.
_MOST_REAL = 20_000
_BATCH = 256


def _frechet(experiment: Experiment, groups: int) -> rewards.RewardSpec:
  """Each sample's influence on the distance in the reward's features."""
  del groups
  module, params = experiment.network('reward')

  @jax.jit
  def features(params: Any, images: Array) -> Array:
    variables = {'params': sharding.whole(params)}
    images = images_lib.to_unit(images)
    inputs = reward_network.inputs(experiment, images)
    return module.apply(variables, inputs).cls

  real = _real_features(experiment, functools.partial(features, params))

  def build(frozen: Any) -> rewards.RewardModel:
    return rewards.fixed_model(
      rewards.frechet_reward(
        functools.partial(features, frozen['reward']),
        frozen['mean'],
        frozen['covariance'],
      )
    )

  # Process 0's values: different CPUs may differ in the last bit.
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
  return rewards.RewardSpec({'reward': params, **statistics}, build)


def _real_features(
  experiment: Experiment, features: Callable[[Any], Array]
) -> np.ndarray:
  """Features float64[n, F] of training images, at most `_MOST_REAL`."""
  examples = experiment.examples('train', 'images')
  mesh = experiment.mesh
  count = min(len(examples), _MOST_REAL)
  chosen = epoch_batch(0, count, len(examples), experiment.order_seed('real'))
  size = -(-min(count, _BATCH) // mesh.size) * mesh.size
  found = []
  for start in range(0, count, size):
    # The last batch is filled up from the beginning.
    index = chosen[(start + np.arange(size)) % count]
    rows = examples.take(sharding.local_rows(index, mesh))
    images = sharding.put_batch(rows['images'], mesh)
    found.append(sharding.gather(features(images))[: count - start])
  return np.concatenate(found).astype(np.float64)


def _pretrained(experiment: Experiment, groups: int) -> rewards.RewardSpec:
  """The reward network's log-probability of the asked condition."""
  del groups
  module, params = experiment.network('reward')
  judged = np.arange(networks.num_classes(experiment.config, judged=True))
  classes = datasets.condition_of(experiment, judged)

  def build(frozen: Any) -> rewards.RewardModel:
    def log_probs(images: Array) -> Array:
      inputs = reward_network.inputs(experiment, images)
      variables = {'params': sharding.whole(frozen['reward'])}
      out = module.apply(variables, inputs).outputs
      # Of digits it knows ten; a condition's probability is their sum.
      members = jax.nn.one_hot(classes, experiment.num_classes)
      return jnp.log(jax.nn.softmax(out) @ members + 1e-6)

    return rewards.fixed_model(rewards.pretrained_reward(log_probs))

  return rewards.RewardSpec({'reward': params}, build)


@dataclasses.dataclass(frozen=True)
class RewardKind:
  """A reward that a config can name."""

  # `(experiment, groups) -> RewardSpec`; of the groups see
  # `learning.discriminator.deal`.
  make: Callable[[Experiment, int], rewards.RewardSpec]
  # Whether a discriminator learns in turn, from real images.
  learns: bool = False
  # Whether its values compare between iterations, so that the best one can be
  # kept; others are relative to a discriminator or to a batch.
  is_absolute: bool = False
  # Whether it asks a reward network that was trained to tell classes.
  needs_classes: bool = False


# The names that `config.policy.rewards` may hold.
REWARDS = {
  'adversarial': RewardKind(adversarial_reward.make_spec, learns=True),
  'frechet': RewardKind(_frechet),
  'pretrained': RewardKind(_pretrained, is_absolute=True, needs_classes=True),
}
