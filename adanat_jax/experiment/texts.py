"""Captions as conditions: the text network that `config.text` describes.

It is CLIP's text tower, or a network that is trained with the NAT and frozen
afterwards. A batch holds captions either as token ids, and the network runs
inside the compiled step, or as the states and the embedding that were prepared
from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.experiment import networks
from adanat_jax.models.captions import CaptionTransformer
from adanat_jax.models.clip import CLIPText
from adanat_jax.runtime import sharding
from adanat_jax.sampling import captions as captions_lib
from adanat_jax.sampling.captions import CaptionEncoder
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment


# Beside prepared tokens: the words of the training captions, a line each.
WORDS_FILE = 'words.txt'


def problems(experiment: Experiment) -> Iterator[str]:
  """Says which fields of `config.text` do not go together."""
  if not experiment.is_text:
    return
  section = experiment.config.text
  yield from experiment.no_divisors({'text.num_heads': 'text.width'})
  if experiment.learns_text and section.init_from:
    yield (
      f'config.text.init_from={section.init_from} is for text.network=clip; a'
      ' learned network is part of the NAT: give config.nat.init_from'
    )


def tokenize(experiment: Experiment, captions: Sequence[str]) -> np.ndarray:
  """Token ids of captions, int32[B, L], as the text network reads them."""
  config = experiment.config
  return captions_lib.tokenize(
    networks.text_module(config), captions, config.text.tokenizer
  )


def conditions(
  module: CLIPText | CaptionTransformer, params: Any, batch: Mapping[str, Array]
) -> tuple[Array, Array]:
  """What a NAT and what a discriminator reads of captions; inside jit.

  Args:
    module: the text network.
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
    UserError: if there is no text network.
  """
  vocabulary = experiment.config.text.tokenizer
  words: frozenset[str] = frozenset()
  path = experiment.prepared_directory / WORDS_FILE
  if experiment.learns_text and path.is_file():
    words = frozenset(path.read_text(encoding='utf-8').split('\n'))
  return CaptionEncoder(*experiment.network('text'), vocabulary, words)


def null_states(experiment: Experiment, params: Any = None) -> np.ndarray:
  """The null condition: the states of the empty caption, float32[L, D].

  `params` are those of a text network in training; None for the finished one.
  """
  if params is None:
    return caption_encoder(experiment)([''])[0]
  return CaptionEncoder(networks.text_module(experiment.config), params)([''])[
    0
  ]
