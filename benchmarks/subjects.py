"""What the benchmark runs: generators with random weights."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from adanat_jax.decoding import actions, loop
from adanat_jax.experiment import config as config_lib, networks
from adanat_jax.learning.agent import Agent
from adanat_jax.models import operations
from adanat_jax.models.nat import NAT
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.types import Array

_DIGITS = pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'


@dataclasses.dataclass(frozen=True)
class Subject:
  """A NAT, its tokenizer and its policy.

  Attributes:
    label: for tables.
    nat: the denoiser.
    tokenizer: decodes its tokens.
    actor: gives the four values of a step.
    critic: runs in training alone.
  """

  label: str
  nat: NAT
  tokenizer: VQGAN
  actor: PolicyNetwork
  critic: PolicyNetwork

  @property
  def operations(self) -> dict[str, int]:
    """Of one forward of one sample, by network."""
    return {
      'nat': operations.nat_operations(self.nat),
      'actor': operations.policy_operations(self.actor, self.nat.width),
      'critic': operations.policy_operations(self.critic, self.nat.width),
      'decoder': operations.decoder_operations(
        self.tokenizer, self.nat.num_tokens
      ),
    }

  def inputs(self, batch_size: int) -> dict[str, tuple[Any, ...]]:
    """Shapes of what each network is applied to."""
    shape = jax.ShapeDtypeStruct
    tokens = shape((batch_size, self.nat.num_tokens), jnp.int32)
    features = shape((*tokens.shape, self.nat.width), jnp.float32)
    labels = shape((batch_size,), jnp.int32)
    return {
      'nat': (tokens, labels),
      'actor': (features, labels),
      'critic': (features, labels),
      'decoder': (tokens,),
    }

  def apply(self, name: str) -> Callable[..., Any]:
    """`(params, *inputs) -> ...` of a network."""
    if name == 'decoder':
      return lambda params, tokens: self.tokenizer.apply(
        {'params': params}, tokens, method='decode_tokens'
      )
    module = getattr(self, name)
    return lambda params, *inputs: module.apply({'params': params}, *inputs)

  def shapes(self) -> dict[str, Any]:
    """Shapes of the parameters of every network."""
    inputs, key = self.inputs(1), jax.random.key(0)
    # The encoder belongs to the tokenizer's parameters too; any size will do.
    side = 4 * self.tokenizer.downsampling
    channels = self.tokenizer.image_channels
    image = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    shape_of = lambda module, *x: jax.eval_shape(module.init, key, *x)['params']
    return {
      'nat': shape_of(self.nat, *inputs['nat']),
      'actor': shape_of(self.actor, *inputs['actor']),
      'critic': shape_of(self.critic, *inputs['critic']),
      'decoder': shape_of(self.tokenizer, image),
    }

  def xla_operations(self) -> dict[str, float]:
    """XLA's own count of one forward of one sample, by network.

    It is that of the program before XLA optimises it, nothing is compiled; it
    includes what `operations` leaves out.
    """
    shapes, inputs = self.shapes(), self.inputs(1)
    return {
      name: float(
        jax.jit(self.apply(name))
        .lower(shapes[name], *inputs[name])
        .cost_analysis()['flops']
      )
      for name in inputs
    }

  def denoiser(self, params: Any) -> Any:
    """The NAT as the decoding loop calls it."""

    def denoise(
      tokens: Array, condition: Array, cache: Any
    ) -> tuple[Array, Array, Any]:
      features, logits = self.apply('nat')(params, tokens, condition)
      return features, logits, cache

    return denoise

  def agent(self, params: Any, num_steps: int) -> Agent:
    """The learned policy, as training and sampling hold it."""

    def actor_critic(
      params: Any, features: Array, step: Array
    ) -> tuple[Array, Array]:
      mean = self.apply('actor')(params['actor'], features, step)
      value = self.apply('critic')(params['critic'], features, step)
      return mean, value[:, 0]

    return Agent(params, actions.published_residual(num_steps), actor_critic)

  def sample_tokens(
    self, params: Any, labels: Array, key: Array, num_steps: int, guided: bool
  ) -> Array:
    """Tokens int32[B, N] of the learned policy, as `Generator` decodes them."""
    null_label = jnp.int32(self.nat.num_classes)
    return loop.decode(
      self.denoiser(params['nat']),
      self.agent(params, num_steps).policy(),
      tokens=loop.full_mask(
        len(labels), self.nat.num_tokens, self.nat.codebook_size
      ),
      condition=labels,
      null_condition=null_label if guided else None,
      keys=loop.sample_keys(key, len(labels)),
      num_steps=num_steps,
      mask_token=self.nat.codebook_size,
    ).tokens


def digits() -> Subject:
  """What `configs/digits.py` trains."""
  config = config_lib.load(str(_DIGITS))
  return Subject(
    'digits',
    networks.nat_module(config),
    networks.tokenizer_module(config),
    *networks.policy_modules(config),
  )


def nat_l() -> Subject:
  """The published sizes for ImageNet at 256 pixels."""
  return Subject(
    'NAT-L',
    NAT(1024, 256, 768, 24, 8, num_classes=1000),
    VQGAN(1024, 256),
    PolicyNetwork(4, 16),
    PolicyNetwork(1, 16),
  )


SUBJECTS = {'digits': digits, 'nat_l': nat_l}


def count_rows(
  subject: Subject,
  params: Any,
  batch_size: int,
  num_steps: int,
  guided: bool,
) -> int:
  """How many canvases the NAT really sees while a batch is sampled.

  Args:
    subject: the generator.
    params: of all its networks.
    batch_size: B.
    num_steps: T.
    guided: whether the unconditional forwards run.

  Returns:
    Rows that went through the denoiser, counted as it runs.
  """
  rows: list[int] = []

  class Counting(Subject):
    """The same generator with a tally."""

    def denoiser(self, params: Any) -> Any:
      inner = super().denoiser(params)

      def denoise(tokens: Array, condition: Array, cache: Any) -> Any:
        # The callback runs once each time the loop's body does.
        jax.debug.callback(lambda x: rows.append(len(x)), tokens[:, 0])
        return inner(tokens, condition, cache)

      return denoise

  counting = Counting(
    **{f.name: getattr(subject, f.name) for f in dataclasses.fields(subject)}
  )
  jax.block_until_ready(
    jax.jit(counting.sample_tokens, static_argnums=(3, 4))(
      params,
      jnp.zeros(batch_size, jnp.int32),
      jax.random.key(0),
      num_steps,
      guided,
    )
  )
  jax.effects_barrier()
  return sum(rows)
