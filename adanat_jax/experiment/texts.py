"""Captions as conditions: the text network that `config.text` describes.

It is CLIP's text tower, a network that is trained with the NAT and frozen
afterwards, or a table of vectors from a file. A batch holds captions either as
token ids, and the network runs inside the compiled step, or as the states and
the embedding that were prepared from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import functools
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.convert import files as foreign_files
from adanat_jax.data import byte_tokens, caption_vectors
from adanat_jax.data.caption_vectors import CaptionVectors
from adanat_jax.errors import UserError
from adanat_jax.experiment import networks
from adanat_jax.models.captions import (
  CaptionTransformer,
  TextNetwork,
  VectorTable,
)
from adanat_jax.runtime import files, processes, sharding
from adanat_jax.sampling import captions as captions_lib
from adanat_jax.sampling.captions import CaptionEncoder, VectorEncoder
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment


# Beside prepared tokens: the words of the training captions, a line each.
WORDS_FILE = 'words.txt'
# The same of a run whose captions have vectors: a copy of their file.
VECTORS_FILE = 'vectors'
# Of captions as judges read them, in words.
_JUDGED_WORDS = 32
# How far numbers of one vector, whose mean square is 1, may be apart in two
# files, which may be of half precision. Two encoders' differ by 1 and more.
_SAME = 0.02


def problems(experiment: Experiment) -> Iterator[str]:
  """Says which fields of `config.text` do not go together."""
  if not experiment.is_text:
    return
  section = experiment.config.text
  if experiment.text_network != 'clip' and section.init_from:
    part = {
      'learned': 'a learned network is part of the NAT: give'
      ' config.nat.init_from',
      'given': 'vectors are given by config.text.vectors',
    }[section.network]
    yield (
      f'config.text.init_from={section.init_from} is for text.network=clip;'
      f' {part}'
    )
  if experiment.text_network == 'given':
    copy = experiment.prepared_directory / VECTORS_FILE
    if section.get('vectors', '') or copy.is_file():
      vectors(experiment)
    else:
      yield (
        'config.text.vectors is empty; text.network=given needs a .npz or'
        ' safetensors file with a vector for each caption (docs/own_images.md)'
      )
    return
  if section.get('num_positions', 77) < 3:
    yield (
      f'config.text.num_positions is {section.num_positions}; give 3 or more: a'
      ' start, and two words'
    )
  yield from experiment.no_divisors({'text.num_heads': 'text.width'})


def problems_of_captions(experiment: Experiment) -> Iterator[str]:
  """Says which captions have no vector, before anything is trained.

  Of sources that do not know their captions without reading the images it says
  that it cannot know; there stage `prepare` ends at the first one.
  """
  if experiment.text_network != 'given' or not experiment.config.data.path:
    return
  found, path = vectors(experiment), experiment.config.text.vectors
  missing: list[str] = []
  count = 0
  has_test = experiment.config.data.held_out
  has_test = has_test or experiment.config.data.validation_path
  for split in ('train', 'test') if has_test else ('train',):
    source = experiment.raw_source(split)
    if source.captions is None or source.key_at is None:
      _say_once(
        f'text: captions of data.source={experiment.config.data.source} are'
        ' compared with config.text.vectors only while stage prepare reads the'
        ' images: one without a vector ends it then'
      )
      return
    for index in range(len(source)):
      key, captions = source.key_at(index), source.captions(index)
      count += len(captions)
      missing += found.missing((caption, key) for caption in captions)
  if missing:
    yield (
      f'config.text.vectors={path} has no vector for {len(missing)} of'
      f' {count} captions, such as {caption_vectors.examples(missing)}; it has'
      f' {len(found.places)}, such as'
      f' {caption_vectors.examples(list(found.places)[:3])}'
    )


def tokenize(
  experiment: Experiment, captions: Sequence[str], keys: Sequence[str] = ()
) -> np.ndarray:
  """Token ids of captions, int32[B, L], as the text network reads them.

  `keys` are those of their images, by which a file of vectors may name them.

  Raises:
    UserError: if a caption has no vector in the file that has to have it.
  """
  config = experiment.config
  if experiment.text_network == 'given':
    try:
      return vectors(experiment).ids(
        captions, config.text.num_positions, names=keys
      )
    except UserError as error:
      raise UserError(
        f'config.text.vectors={config.text.vectors}: {error}'
      ) from error
  return captions_lib.tokenize(
    networks.text_module(config), captions, config.text.tokenizer
  )


def vectors(experiment: Experiment) -> CaptionVectors:
  """The vectors of `config.text.vectors`, or of stage `prepare`'s copy.

  The copy serves where no file is named, as after `adanat_jax.load`, or the
  named one has gone. A file that is named and there serves itself, if it is of
  the copy's encoder: captions that both have must have the same vectors.

  Raises:
    UserError: if there is no such file, it is none of vectors, it is of another
      encoder, or they are wider or longer than this run's.
  """
  section = experiment.config.text
  path = pathlib.Path(section.vectors)
  copy = experiment.prepared_directory / VECTORS_FILE
  has_copy = copy.is_file()
  if has_copy and not (section.vectors and path.exists()):
    if section.vectors:
      _say_once(f'config.text.vectors={path} is not there: {copy} serves')
    path = copy
  found = read_vectors(path)
  if found.width != section.width or found.length > section.num_positions:
    raise UserError(
      f'config.text.vectors={path}: {found.length} vectors of {found.width}'
      f' numbers for a caption; this run was made with {section.num_positions}'
      f' of {section.width}: use a file of the same encoder'
    )
  if has_copy and (reason := _unlike(found, read_vectors(copy))):
    raise UserError(
      f'config.text.vectors={path}: {reason} in {copy}, with which this run was'
      ' prepared: name a file of the same encoder that has some of its captions'
      ' too, or leave text.vectors out'
    )
  return found


def keep_vectors(experiment: Experiment, digest: str) -> None:
  """Copies the file of vectors beside the tokens that were made with it.

  Raises:
    UserError: if the file has changed since: its digest is another one.
  """
  path = experiment.config.text.vectors
  copy = experiment.prepared_directory / VECTORS_FILE
  # A run was killed after it.
  if copy.is_file() and read_vectors(copy).digest() == digest:
    return
  data = files.read_bytes(path)
  files.write_bytes(copy, data)
  if read_vectors(copy).digest() != digest:
    copy.unlink()
    raise UserError(
      f'config.text.vectors={path}: it has changed while its captions were'
      f' prepared; put the old file back, or delete {copy.parent}'
    )


@functools.cache
def _say_once(line: str) -> None:
  """Says what every call for the vectors would say again."""
  processes.say(line)


@functools.lru_cache(maxsize=2)
def _unlike(found: CaptionVectors, kept: CaptionVectors) -> str:
  """Says why two tables are not of one encoder; '' if they are."""
  if found is kept:
    return ''
  shared = [caption for caption in found.places if caption in kept.places]
  if not shared:
    return 'it has no caption of those'
  for caption in shared:
    one, other = found.rows(caption), kept.rows(caption)
    # An encoder's last bits depend on the batch and the machine.
    if one.shape != other.shape or not np.allclose(one, other, atol=_SAME):
      return (
        f'{caption_vectors.examples([caption])} has another vector than it has'
      )
  return ''


def read_vectors(
  path: str | os.PathLike[str], field: str = 'text.vectors'
) -> CaptionVectors:
  """The vectors of the file that a field names, read once until it changes.

  Raises:
    UserError: if there is no such file, or it is none of vectors.
  """
  try:
    about = os.stat(path)
    found = _read_vectors(os.fspath(path), about.st_size, about.st_mtime_ns)
  except (OSError, UserError) as error:
    reason = error.strerror if isinstance(error, OSError) else error
    raise UserError(f'config.{field}={path}: {reason}') from error
  return found


@functools.lru_cache(maxsize=4)
def _read_vectors(path: str, size: int, changed: int) -> CaptionVectors:
  del size, changed  # They tell one content of a file from another.
  arrays = foreign_files.read(path)
  is_flat = isinstance(arrays, Mapping) and all(
    isinstance(array, np.ndarray) for array in arrays.values()
  )
  if not is_flat:
    raise UserError('it holds no arrays by name; give .npz or safetensors')
  return caption_vectors.from_arrays(arrays)


def table(experiment: Experiment) -> tuple[VectorTable, Any]:
  """The vectors of a run as a network and its parameters, on the mesh."""
  found, section = vectors(experiment), experiment.config.text
  module = VectorTable(section.width, section.num_positions, len(found.table))
  params = {'vectors': found.table}
  return module, sharding.shard_state(params, experiment.mesh)


def conditions(
  module: TextNetwork,
  params: Any,
  batch: Mapping[str, Array],
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


def judging_module(experiment: Experiment) -> CaptionTransformer:
  """The network of captions that a network of stage `judges` is trained with.

  It reads words, whatever the NAT reads, and its embeddings are as wide as
  those of images.
  """
  width = experiment.config.judges.embedding_width
  return CaptionTransformer(
    width,
    depth=1,
    num_heads=math.gcd(4, width),
    mlp_width=4 * width,
    num_positions=_JUDGED_WORDS,
    word_length=byte_tokens.ROW,
    vocabulary=byte_tokens.VOCABULARY,
  )


def judged_ids(captions: Sequence[str], keys: Sequence[str] = ()) -> np.ndarray:
  """Captions as `judging_module` reads them, int32[B, L]; no `keys` needed."""
  del keys
  return byte_tokens.tokenize(captions, _JUDGED_WORDS)


def caption_encoder(experiment: Experiment) -> CaptionEncoder | VectorEncoder:
  """Encodes captions as the states that a NAT reads.

  Raises:
    UserError: if there is no text network.
  """
  if experiment.text_network == 'given':
    module, params = experiment.network('text')
    return VectorEncoder(module, params, vectors(experiment).places)
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
