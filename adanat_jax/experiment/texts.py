"""Captions as conditions: CLIP's text tower, as `config.text` describes it.

A batch holds captions either as token ids, and the tower runs inside the
compiled step, or as the states and the embedding that were prepared from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.data import clip_tokens
from adanat_jax.models.clip import CLIPText
from adanat_jax.runtime import sharding
from adanat_jax.sampling.captions import CaptionEncoder
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment


def tokenize(experiment: Experiment, captions: Sequence[str]) -> np.ndarray:
  """Token ids of captions, int32[B, 77], as the tower reads them."""
  return clip_tokens.tokenize(
    captions, vocabulary=experiment.config.text.tokenizer
  )


def conditions(
  module: CLIPText, params: Any, batch: Mapping[str, Array]
) -> tuple[Array, Array]:
  """What a NAT and what a discriminator reads of captions; inside jit.

  Args:
    module: the tower.
    params: its parameters; unused where states were prepared.
    batch: `states` [B, L, D] and `embedding` [B, P], or `ids` int32[B, L].

  Returns:
    float32[B, L, D], and float32[B, P], which is not normalised.
  """
  if 'states' in batch:
    return (
      batch['states'].astype(jnp.float32),
      batch['embedding'].astype(jnp.float32),
    )
  out = module.apply({'params': sharding.whole(params)}, batch['ids'])
  return out.states, out.pooled


def caption_encoder(experiment: Experiment) -> CaptionEncoder:
  """Encodes captions as the states that a NAT reads.

  Raises:
    UserError: if there is no text tower.
  """
  vocabulary = experiment.config.text.tokenizer
  return CaptionEncoder(*experiment.network('text'), vocabulary)


def null_states(experiment: Experiment) -> np.ndarray:
  """The null condition: the states of the empty caption, float32[77, D]."""
  return caption_encoder(experiment)([''])[0]
