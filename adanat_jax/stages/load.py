"""From a workdir to a `Generator`: what sampling and evaluation start with."""

from __future__ import annotations

import math
import os
import pathlib

import jax
import ml_collections

from adanat_jax import files
from adanat_jax.errors import UserError
from adanat_jax.sampler import Generator
from adanat_jax.stages import networks, policy as policy_stage, published


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
  """The NAT, tokenizer and learned policies of a workdir.

  Where several policies were learned for the same number of steps, the first
  training of the first reward is taken.
  """
  if published.is_published(config):
    return published.generator(config)
  nat, nat_params = networks.load_nat(config, workdir)
  tokenizer, tokenizer_params = networks.load_tokenizer(config, workdir)
  agents = {}
  for which in policy_stage.trainings(config):
    finished = networks.is_complete(workdir, f'policy/{which.name}')
    if which.adaptive and finished and which.num_steps not in agents:
      agents[which.num_steps] = policy_stage.load_agent(config, workdir, which)
  return Generator(
    nat,
    nat_params,
    tokenizer,
    tokenizer_params,
    networks.num_classes(config),
    agents,
    config.evaluate.batch_size,
    mesh=networks.mesh_of(config),
  )
