"""A moving average of the policy's parameters over iterations.

A policy and the discriminator that judges it circle around each other, so where
a training happens to end is partly luck, and an average over the circle depends
on it less: Yazici et al., The Unusual Effectiveness of Averaging in GAN
Training (ICLR 2019). The average only looks on: nothing that is learned depends
on it. AdaNAT has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from adanat_jax.learning.policy import PolicyState
from adanat_jax.types import Array


@struct.dataclass
class AveragedState(PolicyState):
  """The state of a training that keeps an average.

  Without one it is a `PolicyState`, as it is saved by versions that have none.

  Attributes:
    average: of `params`.
  """

  average: Any


def with_average(state: PolicyState, decay: float) -> PolicyState:
  """The state of a training before its first iteration; 0.0 leaves it as is."""
  if not decay:
    return state
  average = jax.tree.map(jnp.copy, state.params)
  return AveragedState(state.params, state.opt_state, state.adversary, average)


def decay_at(iteration: Array | int, decay: float) -> Array:
  """The share of the old average that stays, `min(decay, (1+i) / (10+i))`.

  Early iterations are forgotten fast: what the policy was at the start says
  nothing of what it becomes, and a short training ends before a large decay
  would have forgotten it. As TensorFlow's ExponentialMovingAverage with
  `num_updates`.

  Args:
    iteration: i, counted from 0.
    decay: the limit; 1.0 is the fraction alone, which makes an average over
      about the last tenth of the iterations.

  Returns:
    float32[].
  """
  iteration = jnp.asarray(iteration, jnp.float32)
  return jnp.minimum(decay, (1 + iteration) / (10 + iteration))


def averaging(
  train_step: Callable[..., tuple[PolicyState, Any]], decay: float
) -> Callable[..., tuple[PolicyState, Any]]:
  """Makes a training step keep the average of a state that has one.

  Args:
    train_step: of `trainer.make_train_step`.
    decay: see `decay_at`; 0.0 returns the step as it is.
  """
  if not decay:
    return train_step

  def step(
    state: AveragedState, real: Any, iteration: Array, prompts: Any = None
  ) -> tuple[PolicyState, Any]:
    new, metrics = train_step(state, real, iteration, prompts)
    average = optax.incremental_update(
      new.params, state.average, 1 - decay_at(iteration, decay)
    )
    state = AveragedState(new.params, new.opt_state, new.adversary, average)
    return state, metrics

  return step
