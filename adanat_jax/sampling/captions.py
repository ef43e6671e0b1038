"""Captions as conditions: a text network with its vocabulary, or vectors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.data import byte_tokens, caption_vectors, clip_tokens
from adanat_jax.errors import UserError
from adanat_jax.models.captions import CaptionTransformer, VectorTable
from adanat_jax.models.clip import CLIPText
from adanat_jax.runtime import processes, sharding
from adanat_jax.sampling import program

# Words that a message names.
_MOST_SHOWN = 6


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionEncoder:
  """Encodes captions as the states that a NAT reads.

  Attributes:
    module: CLIP's text tower, or a network that was trained with the NAT.
    params: its parameters.
    vocabulary: a `tokenizer.json` of CLIP; empty for that of the package
      `instant-clip-tokenizer`.
    words: those of the captions that the network was trained on; empty if they
      are not known. Others are reported.
  """

  module: CLIPText | CaptionTransformer
  params: Mapping[str, Any]
  vocabulary: str = ''
  words: Collection[str] = ()

  def __call__(self, captions: Sequence[str]) -> np.ndarray:
    """Encodes captions, as float32[B, L, D].

    Raises:
      UserError: if there is no tokenizer.
    """
    self._report_words(captions)
    ids = tokenize(self.module, captions, self.vocabulary)
    # One at a time, so that a caption's states do not depend on the others.
    read = lambda row: program.apply(
      self.module, '__call__', self.params, jnp.asarray(row[None])
    )
    return np.concatenate([sharding.gather(read(row).states) for row in ids])

  def _report_words(self, captions: Sequence[str]) -> None:
    """Says which words the network has never seen."""
    unknown = byte_tokens.words(captions) - set(self.words)
    if self.words and unknown:
      shown = ', '.join(map(repr, sorted(unknown)[:_MOST_SHOWN]))
      more = ', ...' if len(unknown) > _MOST_SHOWN else ''
      processes.say(
        f'captions: no caption of the training has {shown}{more}: what is drawn'
        ' for that is chance'
      )


@dataclasses.dataclass(frozen=True, eq=False)
class VectorEncoder:
  """Looks up captions in a table, and takes vectors of the same encoder.

  Attributes:
    module: the table.
    params: its vectors, float32[1 + n, D]; see `data.caption_vectors`.
    places: first row and number of vectors of each caption.
  """

  module: VectorTable
  params: Mapping[str, Any]
  places: Mapping[str, tuple[int, int]]

  def __call__(self, captions: Sequence[str]) -> np.ndarray:
    """The vectors of captions, float32[B, L, D]; zeros for the empty one.

    Raises:
      UserError: naming captions that have no vector.
    """
    table = np.asarray(sharding.gather(self.params['vectors']))
    found = caption_vectors.CaptionVectors(table, self.places)
    try:
      return table[found.ids(captions, self.module.num_positions)]
    except UserError as error:
      known = caption_vectors.examples(list(self.places)[:4])
      raise UserError(
        f'{error}; there are {len(self.places)} captions, such as {known}: give'
        ' one of them, or the vectors of your encoder as floats'
        f' [B, {self.module.width}]'
      ) from error

  def states(self, vectors: np.ndarray) -> np.ndarray:
    """Vectors of the same encoder as a NAT reads them, float32[B, L, D].

    Args:
      vectors: float[B, D], or float[B, l, D] with l at most L.

    Raises:
      UserError: for other shapes, or numbers that are not finite.
    """
    length, width = self.module.num_positions, self.module.width
    found = vectors[:, None] if vectors.ndim == 2 else vectors
    fits = found.ndim == 3 and found.dtype.kind == 'f' and found.size > 0
    if not fits or found.shape[1] > length or found.shape[2] != width:
      raise UserError(
        f'vectors are {vectors.dtype}{list(vectors.shape)}; give captions, or'
        f' floats [B, {width}] or [B, 1 to {length}, {width}] of the encoder'
        ' that the generator was trained with'
      )
    if not np.isfinite(found).all():
      raise UserError('vectors are not finite')
    padding = ((0, 0), (0, length - found.shape[1]), (0, 0))
    return np.pad(caption_vectors.scaled(found), padding)


def tokenize(
  module: CLIPText | CaptionTransformer,
  captions: Sequence[str],
  vocabulary: str = '',
) -> np.ndarray:
  """Ids of captions, int32[B, ...], as a text network reads them.

  Arguments are those of `CaptionEncoder`.
  """
  if isinstance(module, CaptionTransformer):
    return byte_tokens.tokenize(captions, module.num_positions)
  return clip_tokens.tokenize(captions, module.num_positions, vocabulary)
