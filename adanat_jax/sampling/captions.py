"""Captions as conditions: a text tower with its vocabulary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.data import clip_tokens
from adanat_jax.models.clip import CLIPText
from adanat_jax.runtime import sharding
from adanat_jax.sampling import program


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionEncoder:
  """Encodes captions as the states that a NAT reads.

  Attributes:
    module: the tower.
    params: its parameters.
    vocabulary: a `tokenizer.json` of CLIP; empty for that of the package
      `instant-clip-tokenizer`.
  """

  module: CLIPText
  params: Mapping[str, Any]
  vocabulary: str = ''

  def __call__(self, captions: Sequence[str]) -> np.ndarray:
    """Encodes captions, as float32[B, 77, D].

    Raises:
      UserError: if there is no tokenizer.
    """
    ids = clip_tokens.tokenize(captions, vocabulary=self.vocabulary)
    # One at a time, so that a caption's states do not depend on the others.
    read = lambda row: program.apply(
      self.module, '__call__', self.params, jnp.asarray(row[None])
    )
    return np.concatenate([sharding.gather(read(row).states) for row in ids])
