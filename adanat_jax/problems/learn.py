"""Learns a schedule for anybody's generator, by PPO against any reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
import os
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from adanat_jax.decoding import actions, loop as decoding_loop, tables
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError
from adanat_jax.learning import policy, ppo, rewards
from adanat_jax.learning.agent import Agent
from adanat_jax.models import policy as networks
from adanat_jax.problems.decode import as_schedule
from adanat_jax.problems.problem import Problem, checked_reward
from adanat_jax.runtime import closures, files, loop, processes, sharding
from adanat_jax.sampling import requests
from adanat_jax.sampling.requests import AnyPolicy
from adanat_jax.types import Array, Condition, PolicyValues

_SETTINGS = 'learn.json'


def learn(
  problem: Problem,
  reward: Callable[[Any, Condition, Array], Any],
  *,
  num_steps: int = 8,
  iterations: int = 200,
  batch_size: int = 256,
  seed: int = 0,
  directory: str | os.PathLike[str] | None = None,
  start: str | AnyPolicy | None = None,
  width: int = 64,
  constants: ppo.PPOConfig = ppo.OURS,
  save_every: int = 50,
  mesh: Mesh | None = None,
) -> Schedule:
  """Trains a policy for a generator, on all devices; prints how far it is.

  Args:
    problem: the generator.
    reward: `(samples, conditions, key) -> float[B]`, of what the decoder
      returns, or of token grids int32[B, N]; larger is better, and no gradient
      is needed. JAX must be able to trace it.
    num_steps: T.
    iterations: of PPO, each on a new batch.
    batch_size: samples an iteration.
    seed: of all that is random.
    directory: where checkpoints and `metrics.jsonl` go. The same call continues
      what was stopped there, bit for bit, and returns at once what has been
      finished. None keeps nothing.
    start: the table that the untrained policy follows, see `decode`; values at
      which nothing could be learned are moved a little. None for MaskGIT's,
      or, if the problem is guided, AdaNAT's hand-made one.
    width: of the policy network, whose layers are in AdaNAT's proportions.
    constants: of PPO.
    save_every: iterations from checkpoint to checkpoint.
    mesh: the devices; all by default.

  Returns:
    The schedule, for `decode`. It acts by the average of the last tenth of the
    iterations, and without exploring.

  Raises:
    UserError: for functions that return what they should not, arguments that do
      not fit, or a directory that holds another training.
  """
  numbers = dict(
    num_steps=num_steps,
    iterations=iterations,
    batch_size=batch_size,
    width=width,
    save_every=save_every,
  )
  for name, value in numbers.items():
    requests.integer(name, value, 4 if name == 'width' else 1)
  key = jax.random.key(requests.integer('seed', seed, 0, requests.LAST_SEED))
  init_key, condition_key, step_key = jax.random.split(key, 3)
  mesh = mesh or sharding.make_mesh()
  multiple = constants.num_minibatches * constants.micro_batches * mesh.size
  if batch_size % multiple:
    raise UserError(
      f'batch_size is {batch_size}; it must be a multiple of {multiple}:'
      f' {constants.num_minibatches} minibatches on {mesh.size} devices'
    )

  def batch_at(step: int) -> Condition:
    drawn = problem.draw(jax.random.fold_in(condition_key, step), batch_size)
    cut = lambda x: sharding.local_rows(np.asarray(x), mesh)
    return sharding.put_batch(jax.tree.map(cut, drawn), mesh)

  checked = checked_reward(reward)
  width_of_features = _probe(problem, checked, batch_at(0), batch_size, mesh)
  rows, columns = problem.shape
  network = functools.partial(
    networks.PolicyNetwork,
    grid_size=rows,
    columns=columns,
    hidden_size=width,
    conv_width=width // 4,
    mlp_widths=(2 * width, width),
  )
  modules = network(num_outputs=actions.NUM_ACTIONS), network(num_outputs=1)
  actor_critic = networks.PolicyNetworks(*modules)
  residual = _residual(problem, start, num_steps)

  def initial() -> policy.PolicyState:
    features = np.zeros((1, problem.num_tokens, width_of_features), np.float32)
    params = networks.initial_params(*modules, init_key, features)
    return policy.initial_state(params, constants, ema_decay=1.0)

  step = policy.make_train_step(
    policy.FrozenParts(
      problem.denoise,
      problem.decode_tokens,
      problem.num_tokens,
      problem.mask_token,
      num_classes=None,
      null_condition=problem.null_condition,
    ),
    actor_critic,
    residual,
    rewards.fixed_model(checked),
    constants,
    key=step_key,
    batch_size=batch_size,
    num_iterations=iterations,
    fresh_rollouts=False,
    ema_decay=1.0,
  )
  with jax.set_mesh(mesh), _directory(directory) as path:
    settings = numbers | dataclasses.asdict(constants) | {
      'seed': seed,
      'start': residual,
    }  # fmt: skip
    del settings['save_every']
    _same_training(path, settings)
    state = sharding.init_state(initial, mesh=mesh)
    compiled = closures.Compiled(
      lambda state, batch, iteration: step(
        state, None, iteration, policy.Prompts(batch)
      ),
      mesh,
      donate_argnums=1,
      out_shardings=(
        sharding.state_shardings(state, mesh),
        NamedSharding(mesh, PartitionSpec()),
      ),
    )
    # The loop allows no copies to the devices, which tracing may need.
    compiled.trace(state, batch_at(0), np.int32(0))
    state = loop.run_loop(
      state,
      compiled,
      batch_at,
      num_steps=iterations,
      directory=path,
      name='learn',
      log_every=1,
      save_every=save_every,
      shown=('reward',),
    )
    params = sharding.gather(state.average)
  agent = Agent(params, residual, actor_critic)
  return Schedule('learned', agent, problem.is_guided, label='AdaNAT')


def _probe(
  problem: Problem,
  reward: Callable[[Any, Condition, Array], Array],
  condition: Condition,
  batch_size: int,
  mesh: Mesh,
) -> int:
  """Runs a problem's functions once; returns the width of its features.

  Raises:
    UserError: if one of them fails, or returns NaN or infinity.
  """
  shape = batch_size, problem.num_tokens

  def probe(condition: Condition, key: Array) -> Any:
    empty = decoding_loop.full_mask(*shape, problem.mask_token)
    empty = sharding.split_batch(empty)
    features, logits, _, _ = decoding_loop.denoise(
      problem.denoise, empty, condition, problem.null_like(condition)
    )
    tokens = jax.random.randint(key, shape, 0, problem.mask_token)
    samples = problem.decode_tokens(sharding.split_batch(tokens))
    found = logits, features, samples, reward(samples, condition, key)
    finite = lambda tree: jax.tree.reduce(
      lambda x, y: x & jnp.isfinite(y).all(), tree, jnp.bool_(True)
    )
    return tuple(map(finite, found)), features[0, 0]

  finite, features = jax.device_get(
    closures.Compiled(probe, mesh)(condition, jax.random.key(0))
  )
  of_what = (
    'the denoiser returns logits of an empty canvas',
    'the denoiser returns features of an empty canvas',
    'the decoder returns samples of random tokens',
    'the reward returns numbers for samples of random tokens',
  )
  for what, holds in zip(of_what, finite, strict=True):
    if not holds:
      raise UserError(
        f'{what} with NaN or infinity; they must be finite (-1e9 is a logit for'
        ' what must not be drawn)'
      )
  return len(features)


def _residual(
  problem: Problem, start: str | AnyPolicy | None, num_steps: int
) -> Array:
  """The schedule of an untrained policy in raw action space, float32[T, A]."""
  if start is None:
    if problem.is_guided:
      return actions.published_residual(num_steps)
    return tables.maskgit_residual(num_steps)
  table = as_schedule(problem, start, num_steps).policy
  if not isinstance(table, PolicyValues) or np.ndim(table.mask_ratio) != 1:
    raise UserError(
      f'start is {start!r}; give a table of {num_steps} numbers a row, or the'
      ' name of one'
    )
  return tables.learnable_residual(table)


def _directory(given: str | os.PathLike[str] | None) -> Any:
  """A context with the directory of a training."""
  if given is None:
    return tempfile.TemporaryDirectory()
  return contextlib.nullcontext(given)


def _same_training(
  directory: str | os.PathLike[str], settings: Mapping[str, Any]
) -> None:
  """Raises UserError if the directory holds a training with other settings."""
  path = pathlib.Path(directory, _SETTINGS)
  wanted = files.to_json(settings)

  def first() -> dict[str, Any]:
    if not path.exists():
      files.make_directory(path.parent)
      files.write_json(path, settings)
    return files.read_json(path)

  held = processes.from_first(first)
  for name, value in wanted.items():
    if held.get(name) != value:
      raise UserError(
        f'{directory} holds a training with {name}={held.get(name)}, and'
        f' {value} is given; give another directory'
      )
