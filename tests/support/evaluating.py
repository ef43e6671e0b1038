"""What tests of evaluation share: a small config, and random networks."""

from __future__ import annotations

import jax.numpy as jnp

from adanat_jax.experiment import networks
from adanat_jax.sampling.generator import Generator
from support import configs, random_weights

COUNT = 42


def tiny_config(**evaluate_fields):
  config = configs.load('digits.py:tiny')
  config.policy.num_steps = (2,)
  # Little to compile.
  config.nat.depth = 0
  config.tokenizer.width_multipliers = (1, 1)
  config.evaluate.update(
    protocol='published',
    network='pixels',
    num_samples=COUNT,
    batch_size=16,
    save_every=16,
    policies=('maskgit', 'residual'),
    precision_recall=20,
    save_npz=True,
    benchmark='imagenet256',
  )
  config.evaluate.update(evaluate_fields)
  return config


def random_generator(config) -> Generator:
  nat = networks.nat_module(config)
  tokenizer = networks.tokenizer_module(config)
  tokens = jnp.zeros((1, nat.num_tokens), jnp.int32)
  image = jnp.zeros((1, 16, 16, 1))
  make = random_weights.random_variables
  return Generator(
    nat,
    make(nat, tokens, jnp.zeros(1, jnp.int32))['params'],
    tokenizer,
    make(tokenizer, image)['params'],
    networks.num_classes(config),
    {},
    config.evaluate.batch_size,
  )
