"""Published networks for sampling: built from a config, filled by `init_from`.

Each section of the config (`tokenizer`, `nat`, `policy`, `text`) may name a
checkpoint that `python -m adanat_jax.convert` wrote. A config whose NAT does is
sampled from those checkpoints alone, and its workdir needs no trained stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from adanat_jax import checkpoint, sharding
from adanat_jax.config_rules import check, choice, int_at_least, tuple_of
from adanat_jax.data import clip_tokens
from adanat_jax.errors import UserError
from adanat_jax.models.clip import CLIPText
from adanat_jax.rl.agent import Agent
from adanat_jax.sampler import Generator
from adanat_jax.stages import networks, policy as policy_stage
from adanat_jax.types import Array

Config = ml_collections.ConfigDict


def is_published(config: Config) -> bool:
  """Whether a config is sampled from converted checkpoints."""
  return 'init_from' in config.nat


def _load(config: Config, section: str, field: str, module: Any, *inputs: Any):
  """The parameters of a section's module, in the shapes of the config.

  Raises:
    UserError: if the section names no checkpoint, or one of other shapes.
  """
  directory = config[section].init_from
  if not directory:
    raise UserError(
      f'config.{section}.init_from is empty; give the directory that'
      ' python -m adanat_jax.convert wrote (docs/weights.md)'
    )
  shapes = networks.param_shapes(config, module, *inputs)
  try:
    return checkpoint.load_params(directory, field, shapes)
  except UserError as error:
    raise UserError(f'config.{section}.init_from: {error}') from error


def text_module(config: Config) -> CLIPText:
  """CLIP's text tower of `config.text`."""
  section = config.text
  return CLIPText(
    section.width,
    section.depth,
    section.num_heads,
    section.mlp_width,
    section.projection_width,
    section.activation,
  )


def encode_captions(config: Config, captions: Sequence[str]) -> np.ndarray:
  """What a text-conditional NAT reads of captions, float32[B, 77, D].

  Raises:
    UserError: if there is no tokenizer or no text tower.
  """
  module = text_module(config)
  ids = clip_tokens.tokenize(captions, vocabulary=config.text.tokenizer)
  params = _load(config, 'text', 'params', module, jnp.asarray(ids[:1]))

  @jax.jit
  def encode(params: Any, ids: Array) -> Array:
    return module.apply({'params': params}, ids).states

  # One at a time, so that a caption's states do not depend on the others.
  rows = [encode(params, ids[i : i + 1]) for i in range(len(ids))]
  return np.concatenate(sharding.gather(rows))


def _agents(config: Config, num_tokens: int) -> dict[int, Agent]:
  """The published policy at its number of steps, if the config names one."""
  section = config.policy
  if not section.init_from:
    return {}
  # A policy belongs to one number of steps and to one schedule.
  check(
    config,
    {
      'policy.num_steps': tuple_of(int_at_least(1), length=1),
      'policy.residual': choice(*policy_stage.RESIDUALS),
    },
  )
  (num_steps,) = section.num_steps
  actor, _ = networks.policy_modules(config)
  features = jnp.zeros((1, num_tokens, config.nat.width))
  params = _load(
    config, 'policy', 'params/actor', actor, features, jnp.zeros(1, jnp.int32)
  )

  def actor_alone(
    params: Any, features: Array, step: Array
  ) -> tuple[Array, Array]:
    mean = actor.apply({'params': params}, features.astype(jnp.float32), step)
    return mean, jnp.zeros(features.shape[0])

  residual = policy_stage.residual_of(config, num_steps)
  return {num_steps: Agent(params, residual, actor_alone)}


def generator(config: Config) -> Generator:
  """The networks of the config's checkpoints as a generator.

  Raises:
    UserError: if a section names no checkpoint or one of other shapes.
  """
  tokenizer, nat = (
    networks.tokenizer_module(config),
    networks.nat_module(config),
  )
  side = tokenizer.downsampling
  image = jnp.zeros((1, side, side, tokenizer.image_channels))
  tokenizer_params = _load(config, 'tokenizer', 'params', tokenizer, image)
  tokens = jnp.zeros((1, nat.num_tokens), jnp.int32)
  if nat.num_classes is None:
    null = encode_captions(config, [''])[0]
    condition: Array = jnp.zeros((1, *null.shape))
  else:
    null = None
    condition = jnp.zeros((1,), jnp.int32)
  return Generator(
    nat,
    _load(config, 'nat', 'ema', nat, tokens, condition),
    tokenizer,
    tokenizer_params,
    nat.num_classes or 0,
    _agents(config, nat.num_tokens),
    config.evaluate.batch_size,
    null,
    networks.mesh_of(config),
  )
