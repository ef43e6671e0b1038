"""The families of networks behind one signature.

A NAT, and the networks of MaskGIT and Halton-MaskGIT, encode the canvas anew at
every step; an ENAT also reads its cache of the step before. Decoding starts
from `empty_cache` and passes on the cache that a call returns; all but an
ENAT's are empty. A process imports only the family that it uses, so each class
says about itself what is asked here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from adanat_jax.types import Array, Cache, Condition, Denoiser, TokenCounts

if TYPE_CHECKING:
  from adanat_jax.decoding.unrolled import GatheringDenoiser
  from adanat_jax.models.enat import ENAT
  from adanat_jax.models.halton import HaltonTransformer
  from adanat_jax.models.maskgit import MaskGITTransformer
  from adanat_jax.models.nat import NAT

  DenoiserModule: TypeAlias = (
    NAT | ENAT | MaskGITTransformer | HaltonTransformer
  )


def reuses(module: DenoiserModule) -> bool:
  """Whether the network reuses features of the step before."""
  return getattr(module, 'reuses', False)


def knows_null(module: DenoiserModule) -> bool:
  """Whether the network was trained without a condition, too."""
  return getattr(module, 'knows_null', True)


def make(module: DenoiserModule, params: Any) -> Denoiser:
  """Makes a denoiser for any policy.

  An ENAT runs its blocks at every position and masks the attention: each sample
  may have its own number of masked tokens, and nothing is saved.
  """

  def denoiser(
    tokens: Array, condition: Condition, cache: Cache
  ) -> tuple[Array, Array, Cache]:
    if reuses(module):
      return module.apply({'params': params}, tokens, condition, cache)
    features, logits = module.apply({'params': params}, tokens, condition)
    return features, logits, cache

  return denoiser


def make_gathering(module: ENAT, params: Any) -> GatheringDenoiser:
  """Makes a denoiser of an ENAT that is given the numbers of tokens."""

  def denoiser(
    tokens: Array, condition: Condition, cache: Cache, counts: TokenCounts
  ) -> tuple[Array, Array, Cache]:
    return module.apply(
      {'params': params}, tokens, condition, cache, counts, method='gathered'
    )

  return denoiser


def empty_cache(
  module: DenoiserModule, batch_size: int, text_length: int = 0
) -> Cache:
  """Makes the cache for the first step.

  `batch_size` counts the rows of a forward, two per sample where it is guided;
  `text_length` the tokens of a text, 0 for classes.
  """
  if reuses(module):
    return module.nothing_encoded(batch_size, text_length)
  return ()


def text_length(condition: Array | np.ndarray) -> int:
  """Number of tokens of float[B, L, C] text states; 0 for int32[B] classes."""
  return condition.shape[1] if condition.ndim == 3 else 0
