"""What tests read off the trajectory of a decode."""

import jax.numpy as jnp

from adanat_jax.decoding.loop import Trajectory
from adanat_jax.types import Array


def revealed_at(trajectory: Trajectory, start: Array, mask_token: int) -> Array:
  """The step at which each token became known, int32[B, N].

  0 for tokens given by `start` int32[B, N], t + 1 for tokens known in the
  canvas after step t, and T for those that the end of the decode filled in.
  """
  num_steps = trajectory.tokens.shape[0]
  still_masked = (trajectory.tokens == mask_token).sum(0)
  step = jnp.minimum(still_masked + 1, num_steps)
  return jnp.where(start == mask_token, step, 0)
