"""Checkpoints of random networks, in the form that conversion gives them."""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import ml_collections

from adanat_jax.experiment import networks
from adanat_jax.runtime import checkpoint, journal
from support import random_weights


def save(directory: pathlib.Path, **fields: Any) -> str:
  """Writes a finished checkpoint of these fields; returns its directory."""
  with checkpoint.Checkpointer(directory) as checkpointer:
    checkpointer.save(0, fields, {'converted': {'files': ['random']}})
    checkpointer.wait()
  journal.mark_complete(directory, 0, {})
  return str(directory)


def _params(module: Any, *inputs: Any) -> Any:
  return random_weights.random_variables(module, *inputs)['params']


def reward(
  config: ml_collections.ConfigDict, root: pathlib.Path, *, head: bool = False
) -> str:
  """The reward network that a config asks for; published ones have no head."""
  module = networks.reward_module(config)
  if not head:
    module = module.clone(num_outputs=0)
  side = module.image_size
  image = jnp.zeros((1, side, side, module.image_channels))
  return save(root / 'reward', params=_params(module, image))


def measure(config: ml_collections.ConfigDict, root: pathlib.Path) -> str:
  """The measuring network that stage `judges` would train."""
  module = networks.measuring_module(config)
  side = config.data.image_size
  image = jnp.zeros((1, side, side, networks.image_shape(config)[2]))
  return save(root / 'measure', params=_params(module, image))


def text(config: ml_collections.ConfigDict, root: pathlib.Path) -> str:
  """The text tower that a config asks for."""
  module = networks.text_module(config)
  ids = jnp.zeros((1, 77), jnp.int32)
  return save(root / 'text', params=_params(module, ids))


def tokenizer(config: ml_collections.ConfigDict, root: pathlib.Path) -> str:
  """The tokenizer that a config asks for."""
  module = networks.tokenizer_module(config)
  side = config.data.image_size
  image = jnp.zeros((1, side, side, module.image_channels))
  return save(root / 'tokenizer', params=_params(module, image))
