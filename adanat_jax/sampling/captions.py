"""Captions as conditions: a text network with its vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from adanat_jax.data import byte_tokens, clip_tokens
from adanat_jax.models.captions import CaptionTransformer
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
