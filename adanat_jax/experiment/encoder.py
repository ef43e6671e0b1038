"""Images to token ids and captions to states, on this process's devices.

Each process encodes other images than the rest, so the networks lie whole on
its own devices and no process waits for another one.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from adanat_jax.data import images as images_lib
from adanat_jax.data.prepared import RecordLayout
from adanat_jax.experiment import networks, texts
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import checkpoint, sharding
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment


class Encoder:
  """The tokenizer, and the text tower where states are stored.

  Batches have one size, and short ones are filled up: everything is compiled
  once, and what an image becomes does not depend on how many came with it.
  """

  def __init__(self, experiment: Experiment, batch_size: int):
    """Loads the networks; with several processes all must do it.

    Args:
      experiment: of this run.
      batch_size: images, and captions, that are encoded at once.

    Raises:
      UserError: if a network is neither converted nor trained.
    """
    self.batch_size = batch_size
    self.layout = layout_of(experiment)
    self._mesh = sharding.make_mesh(devices=jax.local_devices())
    tokenizer, params = experiment.network('tokenizer')
    self._tokenizer_params = self._here(params)
    views = self.layout.num_views
    self._tokenize = jax.jit(functools.partial(tokens_of, tokenizer, views))
    if self.layout.state_width:
      tower, params = experiment.network('text')
      self._text_params = self._here(params)
      self._encode = jax.jit(functools.partial(_encode, tower))

  def tokens(self, pixels: np.ndarray) -> jax.Array:
    """Starts encoding images.

    Args:
      pixels: uint8[n, H, W, 3], n at most the batch size.

    Returns:
      int16[batch size, V, N], see `data.prepared`; rows from n on mean nothing.
    """
    with jax.set_mesh(self._mesh):
      return self._tokenize(self._tokenizer_params, self._put(pixels))

  def texts(self, ids: np.ndarray) -> list[tuple[jax.Array, jax.Array]]:
    """Starts encoding any number of captions.

    Args:
      ids: int32[n, L].

    Returns:
      For each batch, `states` float16[batch size, L, C] and `embedding`
      float32[batch size, E]; rows from n on mean nothing.
    """
    with jax.set_mesh(self._mesh):
      return [
        self._encode(self._text_params, self._put(ids[i : i + self.batch_size]))
        for i in range(0, len(ids), self.batch_size)
      ]

  def _put(self, rows: np.ndarray) -> Any:
    """A batch on the devices, filled up with zeros."""
    missing = self.batch_size - len(rows)
    if missing:
      rows = np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))
    return sharding.put_batch(rows, self._mesh)

  def _here(self, params: Any) -> Any:
    """Parameters whole on each device of this process."""
    everywhere = NamedSharding(self._mesh, PartitionSpec())
    return jax.device_put(sharding.gather(params), everywhere)


def settings_of(experiment: Experiment) -> dict[str, Any]:
  """The settings, other than the images, that determine a prepared set.

  Raises:
    UserError: if a network is neither converted nor trained.
  """
  config = experiment.config
  data = config.data
  settings = {
    f'data.{name}': data[name]
    for name in ('source', 'image_size', 'apply_orientation', 'condition')
  }
  height, width, _ = experiment.image_shape
  # Sets of earlier versions lack these.
  settings['data.image_width'] = None if width == height else width
  settings['data.background'] = list(data.get('background') or ()) or None
  settings['data.mirror'] = None if experiment.mirrors else False
  settings['tokenizer.codebook_size'] = config.tokenizer.codebook_size
  settings['tokenizer'] = _digest(experiment, 'tokenizer')
  if experiment.text_network in ('learned', 'given'):
    settings['text.network'] = config.text.network
    settings['text.num_positions'] = config.text.num_positions
    if experiment.text_network == 'given':
      settings['text.vectors'] = texts.vectors(experiment).digest()
  elif experiment.is_text:
    settings['data.text_embeddings'] = data.text_embeddings
    if data.text_embeddings == 'store':
      settings['text'] = _digest(experiment, 'text')
  else:
    settings['data.num_classes'] = data.num_classes
  return settings


def _digest(experiment: Experiment, section: str) -> str:
  """Names the parameters of a network without reading them."""
  if experiment.is_converted(section):
    return checkpoint.digest_params(
      experiment.config[section].init_from, 'params'
    )
  experiment.require(section)
  return checkpoint.digest_params(experiment.workdir / section, 'params')


def layout_of(experiment: Experiment) -> RecordLayout:
  """What is stored of an image, by the config."""
  config = experiment.config
  num_tokens, num_views = experiment.num_tokens, 1 + experiment.mirrors
  if not experiment.is_text:
    num_classes = experiment.num_classes
    return RecordLayout(num_tokens, num_views, num_classes=num_classes)
  stored = experiment.stores_states
  _, (ids,) = networks.module_and_inputs(config, 'text')
  return RecordLayout(
    num_tokens,
    num_views,
    text_length=ids.shape[1],
    state_width=config.text.width if stored else 0,
    embedding_width=config.text.projection_width if stored else 0,
  )


def tokens_of(
  module: VQGAN, num_views: int, params: Any, pixels: Array
) -> Array:
  """Token ids of images and perhaps their mirror images; inside jit.

  Args:
    module: the tokenizer.
    num_views: V, 1 or 2; mirror images are the second view.
    params: of the tokenizer.
    pixels: uint8[B, H, W, 3].

  Returns:
    int16[B, V, N].
  """
  images = images_lib.to_unit(pixels)
  # Stacked, not concatenated: each device keeps all views of its images.
  views = jnp.stack([images, images[:, :, ::-1]][:num_views], axis=1)
  flat = sharding.split_batch(views.reshape(-1, *images.shape[1:]))
  # Rounded products would choose other codes on other kinds of devices.
  with jax.default_matmul_precision('highest'):
    tokens = module.apply({'params': params}, flat, method='tokenize')
  return tokens.reshape(len(images), num_views, -1).astype(jnp.int16)


def _encode(module: Any, params: Any, ids: Array) -> tuple[Array, Array]:
  states, embedding = texts.conditions(module, params, {'ids': ids})
  return states.astype(jnp.float16), embedding
