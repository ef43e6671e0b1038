"""Vectors of texts that need no network: latent semantic analysis.

Words that occur together in the texts at hand come close (Deerwester et al.
1990, "Indexing by Latent Semantic Analysis"): counts, weighted by how rare a
word is, are reduced to the directions along which texts differ most. Nothing is
downloaded, and no label is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from adanat_jax.errors import UserError


def drop_words(
  texts: Sequence[str], share: float, seed: Sequence[int]
) -> list[str]:
  """Views of texts: each word is left out with a probability; one stays."""
  random = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))
  found = []
  for text in texts:
    words = text.split()
    stays = random.random(len(words)) >= share
    if words and not stays.any():
      stays[random.integers(len(words))] = True
    kept = zip(words, stays, strict=True)
    found.append(' '.join(word for word, stay in kept if stay))
  return found


def fit(
  texts: Sequence[str], views: Sequence[Sequence[str]], width: int
) -> np.ndarray:
  """Learns vectors of texts and places their views among them.

  Args:
    texts: n of them, from which the vectors are learned.
    views: V times n, each another wording of the texts.
    width: numbers of a vector; fewer where there are fewer words.

  Returns:
    float32[n, 1 + V, width]: the texts, then their views.

  Raises:
    UserError: if the texts have fewer than two words.
  """
  # Single characters are words, too: flags and keys are named by them.
  count = TfidfVectorizer(sublinear_tf=True, token_pattern=r'(?u)\b\w+\b')
  try:
    table = count.fit_transform(texts)
  except ValueError as error:
    raise UserError(f'the texts have no words: {error}') from error
  most = min(table.shape) - 1
  if most < 1:
    raise UserError('the texts have one word; categories need different ones')
  svd = TruncatedSVD(min(width, most), random_state=0)
  found = [svd.fit_transform(table)]
  found += [svd.transform(count.transform(view)) for view in views]
  return np.stack(found, axis=1).astype(np.float32)
