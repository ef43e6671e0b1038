"""Captions as conditions: CLIP's text tower, as `config.text` describes it.

A batch holds captions either as token ids, and the tower runs inside the
compiled step, or as the states and the embedding that were prepared from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from adanat_jax.data import clip_tokens
from adanat_jax.experiment import networks
from adanat_jax.models.clip import CLIPText
from adanat_jax.runtime import sharding
from adanat_jax.types import Array

Config = ml_collections.ConfigDict


def text_module(config: Config) -> CLIPText:
  """CLIP's text tower of `config.text`."""
  section = config.text
  return CLIPText(
    section.width,
    section.depth,
    section.num_heads,
    section.mlp_width,
    section.projection_width,
    section.activation,
  )


def load_text(config: Config) -> tuple[CLIPText, Any]:
  """The text tower and its parameters.

  Raises:
    UserError: if `config.text.init_from` names no tower of these sizes.
  """
  module = text_module(config)
  ids = jax.ShapeDtypeStruct((1, clip_tokens.NUM_POSITIONS), jnp.int32)
  return module, networks.load_converted(
    config, 'text', 'params', networks.param_shapes(config, module, ids)
  )


def tokenize(config: Config, captions: Sequence[str]) -> np.ndarray:
  """Token ids of captions, int32[B, 77], as the tower reads them."""
  return clip_tokens.tokenize(captions, vocabulary=config.text.tokenizer)


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


def encode_captions(config: Config, captions: Sequence[str]) -> np.ndarray:
  """What a text-conditional NAT reads of captions, float32[B, 77, D].

  Raises:
    UserError: if there is no tokenizer or no text tower.
  """
  return caption_encoder(config)(captions)


def caption_encoder(
  config: Config, text: tuple[CLIPText, Any] | None = None
) -> Callable[[Sequence[str]], np.ndarray]:
  """`encode_captions` for many calls: the first one loads the tower.

  Args:
    config: the whole config.
    text: `load_text(config)` if the caller has it already.
  """

  @functools.cache
  def tower() -> tuple[Any, Callable[[Any, Array], Array]]:
    module, params = text or load_text(config)
    apply = lambda params, ids: module.apply({'params': params}, ids).states
    return params, jax.jit(apply)

  def encode(captions: Sequence[str]) -> np.ndarray:
    ids = tokenize(config, captions)
    params, apply = tower()
    # One at a time, so that a caption's states do not depend on the others.
    rows = [apply(params, jnp.asarray(row)[None]) for row in ids]
    return np.concatenate(sharding.gather(rows))

  return encode


def null_states(
  config: Config, text: tuple[CLIPText, Any] | None = None
) -> np.ndarray:
  """The null condition: the states of the empty caption, float32[77, D]."""
  return caption_encoder(config, text)([''])[0]
