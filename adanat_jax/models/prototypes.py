"""The network of category discovery: features to prototypes and to contrast.

SimGCD's head (Wen et al. 2023; CVMI-Lab/SimGCD, model.py): prototypes of length
1, whose cosines with the normalised feature are the logits, and DINO's
projector of three layers for the contrast. In the published code the last block
of the encoder is trained below it. Here encoders are frozen, and their features
are computed once: residual blocks on the feature stand for that block.

Shape letters: `B` samples, `F` width of a modality's feature, `D` width, `P`
width of the projection, `K` prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp

from adanat_jax.models import layers

_EPSILON = 1e-6


@struct.dataclass
class Branch:
  """What the network makes of one modality."""

  feature: jax.Array  # float32[B, D], of length 1
  projection: jax.Array  # float32[B, P], not normalised
  logits: jax.Array  # float32[B, K], cosines


class PrototypeHead(nn.Module):
  """Prototypes and projector."""

  num_prototypes: int
  hidden_width: int
  projection_width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> Branch:
    """Maps float32[B, D]."""
    hidden = x
    for i in range(2):
      hidden = nn.Dense(self.hidden_width, name=f'fc{i + 1}')(hidden)
      hidden = layers.gelu(hidden)
    projection = nn.Dense(self.projection_width, name='fc3')(hidden)
    prototypes = self.param(
      'prototypes', layers.normal_init, (self.num_prototypes, x.shape[-1])
    )
    feature = _normalised(x)
    return Branch(feature, projection, feature @ _normalised(prototypes).T)


class DiscoveryNetwork(nn.Module):
  """Residual blocks for each modality, then one head, or one for each."""

  modalities: tuple[str, ...]
  width: int  # D, which the modalities share
  depth: int  # residual blocks of a modality
  hidden_width: int  # of blocks and projector
  projection_width: int
  num_prototypes: int
  shared_head: bool = True
  dropout_rate: float = 0.0  # of the features, in training

  @nn.compact
  def __call__(
    self, features: Mapping[str, jax.Array], train: bool = False
  ) -> dict[str, Branch]:
    """Maps a modality's float32[B, F] each; `train` drops out."""
    head = lambda name: PrototypeHead(
      self.num_prototypes,
      self.hidden_width,
      self.projection_width,
      name=name,
    )
    shared = head('head') if self.shared_head else None
    found = {}
    for name in self.modalities:
      x = nn.Dropout(self.dropout_rate, deterministic=not train)(features[name])
      # Orthogonal, and blocks that begin at 0: at first distances are those of
      # the frozen features, as the last block of an encoder would leave them.
      x = nn.Dense(
        self.width,
        kernel_init=nn.initializers.orthogonal(),
        name=f'{name}_in',
      )(x)
      for i in range(self.depth):
        hidden = nn.LayerNorm(_EPSILON, name=f'{name}_norm_{i}')(x)
        hidden = nn.Dense(self.hidden_width, name=f'{name}_fc1_{i}')(hidden)
        x = x + nn.Dense(
          self.width,
          kernel_init=nn.initializers.zeros,
          name=f'{name}_fc2_{i}',
        )(layers.gelu(hidden))
      found[name] = (shared or head(f'{name}_head'))(x)
    return found


def _normalised(x: jax.Array) -> jax.Array:
  length = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.maximum(length, 1e-12)
