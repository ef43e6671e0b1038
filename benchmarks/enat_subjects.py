"""What `enat_time` decodes with: a network, a policy, and what it does."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import programs

import adanat_jax
from adanat_jax.decoding import actions, buckets, loop, schedules, step
from adanat_jax.learning.agent import Agent
from adanat_jax.models import enat, operations
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.types import Array, PolicyValues, TokenCounts

# Batches that buckets are chosen on; those that are timed come after them.
NUM_OTHERS = 64


@struct.dataclass
class Batch:
  """What differs from one decode to the next.

  Attributes:
    labels: classes.
    keys: of the samples.
    ratios: mask ratios to use instead of those that the policy asks for.
  """

  labels: Array  # int32[B]
  keys: Array  # key[B]
  ratios: Array | None  # float32[T, B]


@dataclasses.dataclass(frozen=True)
class Subject:
  """A network, a schedule, a policy and what the policy does.

  Attributes:
    label: for tables.
    module: the network.
    params: its parameters.
    agent: the policy.
    actor_operations: of one call of the policy for one sample.
    table: the schedule.
    guided: whether the unconditional forwards run.
    batches: those to be timed.
    found: int[T, batches, B, 3], what they find, in the order of `TokenCounts`.
    others: the same of batches that buckets may be chosen on.
  """

  label: str
  module: enat.ENAT
  params: Any
  agent: Agent
  actor_operations: int
  table: PolicyValues
  guided: bool
  batches: Sequence[Batch]
  found: np.ndarray
  others: np.ndarray

  @property
  def num_steps(self) -> int:
    """T."""
    return len(self.table.mask_ratio)

  def cost(self, counts: TokenCounts | None) -> int:
    """Operations of one forward of one sample."""
    return operations.enat_operations(self.module, counts)

  @property
  def undivided_cost(self) -> int:
    """The same where every block runs on all tokens, all of one stream."""
    depth = self.module.encoder_depth + self.module.decoder_depth
    return operations.enat_operations(
      self.module.clone(encoder_depth=depth),
      TokenCounts(0, self.module.num_tokens, 0),
    )

  def choose(self, num_buckets: int) -> tuple[TokenCounts, ...]:
    """Buckets for what `others` found."""
    needs = self.others.max(axis=2).reshape(-1, 3)
    return buckets.choose(needs, self.module.num_tokens, num_buckets, self.cost)


def found_of_ratios(ratios: np.ndarray, num_tokens: int) -> np.ndarray:
  """What a denoiser finds if samples are masked so: int[T, S, 3].

  Args:
    ratios: float32[T, S].
    num_tokens: N.
  """
  start = jnp.full(ratios.shape[1], num_tokens)
  reused, masked, found = jnp.zeros_like(start), start, []
  # How many tokens are masked does not depend on which, nor on the network.
  for ratio in jnp.asarray(ratios, jnp.float32):
    visible = num_tokens - masked
    found.append(jnp.stack([reused, visible - reused, masked], axis=-1))
    reused = visible
    after = step.count_to_mask(ratio, masked, start, num_tokens, step.ADANAT)
    masked = jnp.minimum(masked, after)
  return np.stack(found)


def _in_batches(values: Any, batch_size: int) -> np.ndarray:
  """[T, S, ...] as [T, S / B, B, ...]."""
  values = np.asarray(values)
  return values.reshape(len(values), -1, batch_size, *values.shape[2:])


def published(
  size: str, depth: int, ratios: np.ndarray, batch_size: int, guided: bool
) -> Subject:
  """A published size with random weights.

  Args:
    size: key of `enat.SIZES`.
    depth: blocks in all; 0 for as many as were published.
    ratios: float32[T, S], chosen by a policy for its samples.
    batch_size: B.
    guided: whether the unconditional forwards run.
  """
  sizes = dict(enat.SIZES[size])
  if depth:
    blocks = sizes['encoder_depth'] + sizes['decoder_depth']
    decoder = max(1, round(depth * sizes['decoder_depth'] / blocks))
    sizes |= dict(encoder_depth=depth - decoder, decoder_depth=decoder)
  module = enat.ENAT(1024, 256, num_classes=1000, **sizes)
  actor = PolicyNetwork(4, 16)
  ids = jax.ShapeDtypeStruct((1,), jnp.int32)
  tokens = jax.ShapeDtypeStruct((1, module.num_tokens), jnp.int32)
  features = jax.ShapeDtypeStruct((*tokens.shape, module.width), jnp.float32)
  weights = lambda network, *inputs: programs.random_arrays(
    jax.eval_shape(network.init, jax.random.key(0), *inputs)['params']
  )

  def mean(params: Any, features: Array, step: Array) -> tuple[Array, Array]:
    action = actor.apply({'params': params}, features, step)
    return action, jnp.zeros(len(action))

  num_steps, count = ratios.shape
  keys = loop.sample_keys(jax.random.key(0), count).reshape(-1, batch_size)
  parts = _in_batches(ratios, batch_size)
  found = _in_batches(found_of_ratios(ratios, module.num_tokens), batch_size)
  return Subject(
    f'ENAT-{size}, {module.encoder_depth} + {module.decoder_depth} blocks',
    module,
    weights(module, tokens, ids),
    Agent(
      weights(actor, features, ids), actions.published_residual(num_steps), mean
    ),
    operations.policy_operations(actor, module.width),
    schedules.enat(num_steps, total=module.num_tokens),
    guided,
    [
      Batch(jnp.arange(batch_size), keys[i], jnp.array(parts[:, i]))
      for i in range(NUM_OTHERS, len(keys))
    ],
    found[:, NUM_OTHERS:],
    found[:, :NUM_OTHERS],
  )


def trained(
  generator: adanat_jax.Generator, recorded: Any, labels: Array, seed: int
) -> Subject:
  """The ENAT of a workdir, with its policy and guidance.

  Args:
    generator: of the workdir.
    recorded: the policy's trajectory of all samples.
    labels: int32[batches, B], theirs.
    seed: theirs.
  """
  module = generator.nat
  num_steps, batch_size = len(recorded.tokens), labels.shape[1]
  start = loop.full_mask(labels.size, module.num_tokens, module.codebook_size)
  found = _in_batches(
    buckets.counts_of_decode(recorded.tokens, start, module.codebook_size),
    batch_size,
  )
  keys = loop.sample_keys(jax.random.key(seed), labels.size)
  keys = keys.reshape(labels.shape)
  agent = generator.agents[num_steps]
  actor = agent.params['actor']
  return Subject(
    'the ENAT of the workdir',
    module,
    generator.nat_params,
    agent,
    # Its sizes are in the config alone; a product a weight is near enough.
    2 * sum(x.size for x in jax.tree.leaves(actor)),
    schedules.enat(num_steps, total=module.num_tokens),
    True,
    [Batch(labels[i], keys[i], None) for i in range(NUM_OTHERS, len(labels))],
    found[:, NUM_OTHERS:],
    found[:, :NUM_OTHERS],
  )
