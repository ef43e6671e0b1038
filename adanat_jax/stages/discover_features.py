"""What mode `discover` reads: pairs, and their features by frozen encoders.

Encoders run once. Each picture, and each text, has one feature as it is and
some of changed views, between which a training draws; so a step of it costs no
encoder. Pictures' features are kept in `discover/image.npz`.

Shape letters: `n` pairs, `V` changed views of each, `F` width of a feature.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
from typing import Any
import zipfile
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.data import caption_vectors, clip_tokens, word_vectors
from adanat_jax.data.caption_vectors import CaptionVectors
from adanat_jax.data.images import to_unit
from adanat_jax.data.sources.raw_source import RawSource
from adanat_jax.errors import UserError, printable
from adanat_jax.experiment import reward_network, texts as texts_lib
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning.augment import Augmentation
from adanat_jax.measuring import clip_score
from adanat_jax.measuring.real_images import RealImages
from adanat_jax.models import clip
from adanat_jax.runtime import files, processes, sharding
from adanat_jax.types import Array

# Pictures, or texts, that an encoder reads at a time.
_BATCH = 64
_VECTORS = 'discover.text.vectors'
# What reading an .npz file raises that is none, or is damaged.
_BAD_FILE = (
  *(OSError, EOFError, ValueError, KeyError, IndexError, TypeError),
  *(AttributeError, zipfile.BadZipFile, zlib.error),
)


@dataclasses.dataclass(frozen=True)
class PairList:
  """The pairs that categories are looked for in, without their pictures."""

  source: RawSource
  places: np.ndarray  # int[n], the index of each in the source
  labels: np.ndarray  # int[n], its class, -1 for none
  # int[n]; pairs of one text and class are one item, which splits divide. No
  # training may see them: they tell classes apart that share a text.
  items: np.ndarray
  names: tuple[str, ...]  # of the classes
  texts: tuple[tuple[str, ...], ...]  # n of them

  @property
  def text_numbers(self) -> np.ndarray:
    """The number of each pair's text, int[n], which knows no class."""
    return _numbered(self.texts)

  def of(self, kept: np.ndarray) -> PairList:
    """Those of an index."""
    return dataclasses.replace(
      self,
      places=self.places[kept],
      labels=self.labels[kept],
      items=self.items[kept],
      texts=tuple(self.texts[i] for i in kept),
    )


def list_pairs(experiment: Experiment) -> PairList:
  """Lists the pairs of `config.data`, reading no picture.

  Pairs of classes that have fewer items than `discover.least_items` are left
  out.

  Raises:
    UserError: if they cannot be listed, or no class is left.
  """
  source = experiment.raw_source('train')
  if source.captions is None or source.labels is None:
    raise UserError(
      f'config.data.source={experiment.config.data.source} has no texts beside'
      ' classes; mode discover needs both: give pairs'
    )
  texts = tuple(source.captions(i) for i in range(len(source)))
  labels = np.asarray(source.labels)
  items = _numbered(zip(labels.tolist(), texts, strict=True))
  names = source.class_names or ()
  if not names:
    raise UserError(
      f'config.data.path={experiment.config.data.path}: no pair has a class;'
      ' name their column in config.data.label_column'
    )
  least = experiment.config.discover.least_items
  counts = [len(np.unique(items[labels == i])) for i in range(len(names))]
  kept = [i for i, count in enumerate(counts) if least == 1 or count >= least]
  if not kept:
    raise UserError(
      f'config.discover.least_items={least}: no class has so many items; the'
      f' largest of {len(names)} has {max(counts, default=0)}'
    )
  new = np.full(len(names) + 1, -2)
  new[kept], new[-1] = np.arange(len(kept)), -1
  found = PairList(
    *(source, np.arange(len(source)), new[labels], items),
    names=tuple(names[i] for i in kept),
    texts=texts,
  )
  return found.of(np.flatnonzero(found.labels > -2))


def _numbered(values: Iterable[Hashable]) -> np.ndarray:
  """int[n], the same of equal values, in the order of their appearance."""
  numbers: dict[Hashable, int] = {}
  return np.array([numbers.setdefault(x, len(numbers)) for x in values])


def digest(experiment: Experiment, pairs: PairList) -> str:
  """A hash of all that figures depend on: pairs, their classes, vectors.

  Of the pictures it has the names and their order, not what they show.
  """
  found = hashlib.blake2b(digest_size=8)
  found.update(pairs.source.key_hashes()[pairs.places].astype('<u8').tobytes())
  listed = (pairs.labels.tolist(), pairs.names, pairs.texts)
  found.update(json.dumps(listed).encode())
  section = experiment.config.discover.text
  if section.network == 'vectors':
    found.update(_read_vectors(section.vectors).digest().encode())
  return found.hexdigest()


def encode(
  experiment: Experiment, pairs: PairList, directory: pathlib.Path
) -> tuple[PairList, dict[str, np.ndarray]]:
  """Features of pictures and texts, float32[n, 1 + V, F] each, of length 1.

  Returns:
    The pairs whose pictures can be read, and `image` and `text`.

  Raises:
    UserError: if an encoder is not there, or more pictures than
      `data.max_corrupt_share` cannot be read.
  """
  path = directory / 'image.npz'
  if not processes.from_first(path.is_file):
    stream = io.BytesIO()
    found, places = _picture_features(experiment, pairs)
    np.savez(stream, features=found, places=places)
    files.write_bytes(path, stream.getvalue())
    processes.wait_until_seen(path)
  try:
    with np.load(path) as kept:
      pairs, pictures = pairs.of(kept['places']), kept['features']
  except _BAD_FILE as error:
    raise UserError(
      f'{path}: damaged ({printable(str(error), 200)}); delete it, and the'
      ' pictures are encoded again'
    ) from error
  section = experiment.config.discover
  texts = _text_features(experiment, pairs.texts)
  return pairs, {
    'image': _reduced(pictures, section.image.width),
    'text': _reduced(texts, section.text.width),
  }


def _reduced(features: np.ndarray, width: int) -> np.ndarray:
  """Principal components of features, of length 1; 0 keeps them whole."""
  if width:
    plain = features[:, 0].astype(np.float64)
    centre = plain.mean(0)
    _, _, axes = np.linalg.svd(plain - centre, full_matrices=False)
    features = (features - centre) @ axes[:width].T
  lengths = np.linalg.norm(features, axis=-1, keepdims=True)
  return (features / np.maximum(lengths, 1e-12)).astype(np.float32)


def _picture_features(
  experiment: Experiment, pairs: PairList
) -> tuple[np.ndarray, np.ndarray]:
  """Features float32[m, 1 + V, F] of what can be read, and which int[m]."""
  section = experiment.config.discover
  network, params = _picture_encoder(experiment)
  params = sharding.gather(params)
  change = Augmentation(
    least_crop=section.image.least_crop, jitter=section.image.jitter
  )
  mirror = bool(experiment.mirrors)

  @jax.jit
  def plain(params: Any, images: Array) -> Array:
    return network(params, to_unit(images))

  @jax.jit
  def changed(params: Any, images: Array, key: Array) -> Array:
    *keys, mirror_key = jax.random.split(key, 6)
    images = change(keys, to_unit(images))
    flips = jax.random.bernoulli(mirror_key, 0.5 * mirror, (len(images),))
    flips = flips[:, None, None, None]
    return network(params, jnp.where(flips, images[:, :, ::-1], images))

  images = RealImages(experiment, 'train')
  key, found, kept = experiment.key('discover'), [], []
  for start in range(0, len(pairs.places), _BATCH):
    # All batches have one shape; what fills the last one up is cut off.
    index = start + np.arange(_BATCH)
    rows = images.take(pairs.places[index % len(pairs.places)])
    views = [plain(params, rows['images'])]
    for view in range(section.views):
      once = jax.random.fold_in(jax.random.fold_in(key, start), view)
      views.append(changed(params, rows['images'], once))
    whole = rows['is_read'] & (index < len(pairs.places))
    found.append(np.stack(jax.device_get(views), 1)[whole])
    kept.append(index[whole])
  places = np.concatenate(kept)
  images.check_share(len(pairs.places) - len(places), len(pairs.places))
  return np.concatenate(found), places


def _picture_encoder(
  experiment: Experiment,
) -> tuple[Callable[[Any, Array], Array], Any]:
  """`(params, images float32[B, H, W, 3] in [0, 1]) -> float32[B, F]`."""
  name = experiment.config.discover.image.network
  if name == 'clip':
    tower, params = clip_score.load_tower(experiment, 'image')
    return (
      lambda params, images: tower.apply(
        {'params': params}, clip.prepare_images(images, tower.image_size)
      )
    ), params
  module, params = experiment.network(name)
  if name == 'measure':
    return (
      lambda params, images: module.apply({'params': params}, images)[0]
    ), params
  return (
    lambda params, images: (
      module.apply(
        {'params': params}, reward_network.inputs(experiment, images)
      ).cls
    )
  ), params


def _text_features(
  experiment: Experiment, texts: Sequence[tuple[str, ...]]
) -> np.ndarray:
  """float32[n, 1 + V, F], V being that of the texts' encoder."""
  config = experiment.config
  section = config.discover.text
  if section.network == 'vectors':
    return given_vectors(section.vectors, texts)
  joined = [', '.join(several) for several in texts]
  seed = experiment.order_seed('discover/texts')
  views = [
    word_vectors.drop_words(joined, section.word_dropping, (seed, view))
    for view in range(config.discover.views)
  ]
  if section.network == 'words':
    return word_vectors.fit(joined, views, section.width or 256)
  tower, params = clip_score.load_tower(experiment, 'text')
  params = sharding.gather(params)
  pooled = jax.jit(
    lambda params, ids: tower.apply({'params': params}, ids).pooled
  )
  tokenize = functools.partial(
    clip_tokens.tokenize,
    num_positions=tower.num_positions,
    vocabulary=config.evaluate.clip.tokenizer,
  )
  found = []
  for several in (joined, *views):
    ids = tokenize(several)
    count = len(ids)
    ids = np.resize(ids, (-(-count // _BATCH) * _BATCH, ids.shape[1]))
    parts = [
      jax.device_get(pooled(params, ids[start : start + _BATCH]))
      for start in range(0, len(ids), _BATCH)
    ]
    found.append(np.concatenate(parts)[:count])
  return np.stack(found, axis=1)


def given_vectors(path: str, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
  """A file's vectors: the mean of a pair's texts, then each of its texts.

  Args:
    path: see `data.caption_vectors`; of a sequence the mean is taken.
    texts: those of n pairs.

  Returns:
    float32[n, 1 + V, F], V being the most texts that a pair has.

  Raises:
    UserError: if it is no such file, or lacks a text.
  """
  found = _read_vectors(path)
  asked = dict.fromkeys((x, '') for several in texts for x in several)
  if missing := found.missing(asked):
    raise UserError(
      f'config.{_VECTORS}={path} has no vector for {len(missing)} texts, such'
      f' as {caption_vectors.examples(missing)}'
    )
  most = max(map(len, texts))
  rows = []
  for several in texts:
    own = np.stack(
      [found.rows(caption_vectors.plain(text)).mean(0) for text in several]
    )
    views = [own[i % len(own)] for i in range(most)]
    rows.append(np.stack([own.mean(0), *views]))
  return np.stack(rows)


def _read_vectors(path: str) -> CaptionVectors:
  return texts_lib.read_vectors(path, _VECTORS)
