"""Captions to the token ids of CLIP.

The byte-pair encoding and its vocabulary come with the package
`instant-clip-tokenizer`, which needs neither torch nor a network; where it
has no build (Python 3.13 and later), Hugging Face's `tokenizers` reads the
`tokenizer.json` beside CLIP's weights. Texts are cleaned with `ftfy` first, as
in CLIP's own code and in open_clip. All are in the extra `text`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import html
import importlib
from types import ModuleType

import numpy as np

from adanat_jax.errors import UserError

NUM_POSITIONS = 77
# The ids of the start and the end of a text.
START = 49406
END = 49407


def _import(name: str) -> ModuleType:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise UserError(
      f"captions need the package {name}: pip install 'adanat_jax[text]'"
    ) from error


@functools.cache
def _encode(vocabulary: str) -> Callable[[str], list[int]]:
  """Returns a function that encodes a clean text, without start and end."""
  if not vocabulary:
    return _import('instant_clip_tokenizer').Tokenizer().encode
  try:
    tokenizer = _import('tokenizers').Tokenizer.from_file(vocabulary)
  except UserError:
    raise
  except Exception as error:
    # The library raises plain exceptions.
    raise UserError(
      f'cannot read the vocabulary {vocabulary}: {error!s:.120}'
    ) from error
  size = tokenizer.get_vocab_size()
  if size != END + 1:
    raise UserError(
      f'the vocabulary {vocabulary} has {size} tokens; CLIP has {END + 1}'
    )
  return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def clean(text: str) -> str:
  """Repairs a text, undoes HTML escapes and joins runs of white space."""
  text = _import('ftfy').fix_text(text)
  return ' '.join(html.unescape(html.unescape(text)).split())


def tokenize(
  texts: Sequence[str], num_positions: int = NUM_POSITIONS, vocabulary: str = ''
) -> np.ndarray:
  """Encodes captions, in lower case; the empty one is the null condition.

  Args:
    texts: captions.
    num_positions: L, at least 2; longer texts are cut, their end is kept
      marked.
    vocabulary: a `tokenizer.json` of CLIP; empty takes the vocabulary of
      `instant-clip-tokenizer`.

  Returns:
    int32[len(texts), L]: 49406, the text, 49407, then zeros, as AdaNAT pads
    (train.py sets `pad_token_id` to 0).

  Raises:
    UserError: if a package or the vocabulary is not there.
  """
  ids = np.zeros((len(texts), num_positions), np.int32)
  for row, text in zip(ids, texts, strict=True):
    tokens = _encode(vocabulary)(clean(text))[: num_positions - 2]
    row[: len(tokens) + 2] = [START, *tokens, END]
  return ids
