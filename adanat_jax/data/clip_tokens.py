"""Captions to the token ids of CLIP.

The byte-pair encoding and its vocabulary come with the package
`instant-clip-tokenizer`, which needs neither torch nor a network. Texts are
cleaned before with `ftfy`, as CLIP's own code and open_clip's do. Both are in
the extra `text`.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
import html
import importlib
from types import ModuleType
from typing import Any

import numpy as np

from adanat_jax.errors import UserError

NUM_POSITIONS = 77


def _import(name: str) -> ModuleType:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(
      f"captions need the package {name}: pip install 'adanat_jax[text]'"
    ) from error


@functools.cache
def _tokenizer() -> Any:
  return _import('instant_clip_tokenizer').Tokenizer()


def clean(text: str) -> str:
  """Repairs a text, undoes HTML escapes and joins runs of white space."""
  text = _import('ftfy').fix_text(text)
  return ' '.join(html.unescape(html.unescape(text)).split())


def tokenize(
  texts: Sequence[str], num_positions: int = NUM_POSITIONS
) -> np.ndarray:
  """Encodes captions, in lower case.

  Args:
    texts: captions; the empty one is the null condition.
    num_positions: L, at least 2; longer texts are cut, their end is kept
      marked.

  Returns:
    int32[len(texts), L]: 49406, the text, 49407, then zeros, as AdaNAT pads
    (train.py sets `pad_token_id` to 0).

  Raises:
    UserError: if the tokenizer is not installed.
  """
  cleaned = [clean(text) for text in texts]
  if not cleaned:
    return np.zeros((0, num_positions), np.int32)
  ids = _tokenizer().tokenize_batch(cleaned, context_length=num_positions)
  return np.asarray(ids).astype(np.int32)
