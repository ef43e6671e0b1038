"""From a workdir to a `Generator`: what sampling and evaluation start with."""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from adanat_jax.errors import UserError
from adanat_jax.experiment import networks, policies, texts
from adanat_jax.experiment.fields import check, choice, int_at_least, tuple_of
from adanat_jax.learning.agent import Agent
from adanat_jax.runtime import files
from adanat_jax.sampling.generator import Generator
from adanat_jax.types import Array


def load(path: str | os.PathLike[str]) -> Generator:
  """Loads what a workdir has trained.

  Args:
    path: the workdir of `python -m adanat_jax.main`.

  Returns:
    The NAT with its tokenizer and every policy that has been learned.

  Raises:
    UserError: if this is no workdir, or its NAT has not been trained.
  """
  workdir = pathlib.Path(path)
  config_file = workdir / 'config.json'
  if not config_file.is_file():
    raise UserError(f'{workdir} is no workdir: it has no config.json')
  config = ml_collections.ConfigDict(files.read_json(config_file)['config'])
  # Where the run was trained says nothing of the devices here.
  fsdp = config.get('mesh', {}).get('fsdp', 1)
  config.mesh = {'fsdp': math.gcd(fsdp, jax.device_count())}
  return generator(config, workdir)


def generator(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> Generator:
  """The NAT, tokenizer and learned policies of a config and its workdir.

  Where several policies were learned for the same number of steps, the first
  training of the first reward is taken.

  Raises:
    UserError: if a network is neither converted nor trained.
  """
  nat, nat_params = networks.load_nat(config, workdir)
  tokenizer, tokenizer_params = networks.load_tokenizer(config, workdir)
  is_text = networks.is_text(config)
  return Generator(
    nat,
    nat_params,
    tokenizer,
    tokenizer_params,
    0 if is_text else networks.num_classes(config),
    agents(config, workdir),
    config.evaluate.batch_size,
    texts.null_states(config) if is_text else None,
    networks.mesh_of(config),
    encode_captions=texts.caption_encoder(config) if is_text else None,
  )


def agents(
  config: ml_collections.ConfigDict, workdir: pathlib.Path
) -> dict[int, Agent]:
  """The learned policies by number of steps: converted, or of the workdir."""
  if networks.is_converted(config, 'policy'):
    return _converted_agent(config)
  found: dict[int, Agent] = {}
  for which in policies.trainings(config):
    finished = networks.is_complete(workdir, f'policy/{which.name}')
    if which.adaptive and finished and which.num_steps not in found:
      found[which.num_steps] = policies.load_agent(config, workdir, which)
  return found


def _converted_agent(config: ml_collections.ConfigDict) -> dict[int, Agent]:
  """The published policy, at its number of steps."""
  # A policy belongs to one number of steps and to one schedule.
  check(
    config,
    {
      'policy.num_steps': tuple_of(int_at_least(1), length=1),
      'policy.residual': choice(*policies.RESIDUALS),
    },
  )
  (num_steps,) = config.policy.num_steps
  actor, _ = networks.policy_modules(config)
  num_tokens = networks.grid_size(config) ** 2
  features = jnp.zeros((1, num_tokens, config.nat.width))
  shapes = networks.param_shapes(
    config, actor, features, jnp.zeros(1, jnp.int32)
  )
  params = networks.load_converted(config, 'policy', 'params/actor', shapes)

  def actor_alone(
    params: Any, features: Array, step: Array
  ) -> tuple[Array, Array]:
    mean = actor.apply({'params': params}, features.astype(jnp.float32), step)
    return mean, jnp.zeros(features.shape[0])

  residual = policies.residual_of(config, num_steps)
  return {num_steps: Agent(params, residual, actor_alone)}
