"""A policy of one's own: any function of what is observed, for every mode.

  python -m adanat_jax.main --config=configs/digits.py --workdir=runs/digits \
      --config.mode=sample --config.sample.policy=examples.own_policy:careful

samples with it, by networks that are trained.
"""

import jax.numpy as jnp

import adanat_jax


def careful(step, observation, keys, carry):
  """Reveals fewer tokens of a sample the less sure the network is of it."""
  masked = observation.masked
  unsure = (observation.entropy * masked).sum(-1) / masked.sum(-1).clip(1)
  values = adanat_jax.PolicyValues(
    mask_ratio=masked.mean(-1) * jnp.clip(unsure / 3.0, 0.2, 0.9),
    sampling_temperature=jnp.ones(keys.shape),
    masking_temperature=2.0 / (step + 1) * jnp.ones(keys.shape),
    guidance_scale=jnp.zeros(keys.shape),
  )
  return values, (), carry
