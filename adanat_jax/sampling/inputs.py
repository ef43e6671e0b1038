"""Conditions and canvases, as a caller gives them to a `Generator`, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from adanat_jax.errors import UserError

Labels = Sequence[int] | Sequence[str] | np.ndarray


def checked_labels(
  labels: Labels,
  num_classes: int,
  null_condition: Any,
  encode_captions: Callable[[Sequence[str]], np.ndarray] | None,
) -> np.ndarray:
  """What the network takes for what was asked for.

  Args:
    labels: class ids, or captions, or float32[B, L, C] states of captions.
    num_classes: class ids lie in `[0, num_classes)`.
    null_condition: float32[L, C] of texts; None where conditions are classes.
    encode_captions: turns captions into states; None where nothing can.

  Returns:
    int32[B] or float32[B, L, C].

  Raises:
    UserError: naming what was given and what is allowed.
  """
  if null_condition is not None:
    return _checked_states(labels, np.shape(null_condition), encode_captions)
  result = np.asarray(labels)
  if result.ndim != 1 or result.size == 0 or result.dtype.kind not in 'iu':
    raise UserError(f'labels are {labels!r}; give a list of class ids')
  if result.min() < 0 or result.max() >= num_classes:
    raise UserError(
      f'labels hold {sorted(set(result.tolist()))}; classes are'
      f' 0 to {num_classes - 1}'
    )
  return result.astype(np.int32)


def checked_tokens(
  tokens: np.ndarray, shape: tuple[int, int], codebook_size: int
) -> np.ndarray:
  """Canvases to start from, int32 of that shape.

  Raises:
    UserError: for another shape, or tokens beyond `codebook_size`, the mask.
  """
  result = np.asarray(tokens)
  if result.shape != shape or result.dtype.kind not in 'iu':
    raise UserError(
      f'tokens are {result.dtype}{list(result.shape)}; give integers'
      f' {list(shape)}, one canvas a label'
    )
  if result.min() < 0 or result.max() > codebook_size:
    raise UserError(
      f'tokens lie in {result.min()} to {result.max()}; allowed are 0 to'
      f' {codebook_size}, which marks an unknown one'
    )
  return result.astype(np.int32)


def _checked_states(
  labels: Labels,
  expected: tuple[int, ...],
  encode_captions: Callable[[Sequence[str]], np.ndarray] | None,
) -> np.ndarray:
  captions = np.asarray(labels)
  if captions.dtype.kind == 'U' and captions.ndim == 1 and encode_captions:
    return encode_captions(captions.tolist())
  if captions.dtype.kind != 'f' or captions.shape[1:] != expected:
    raise UserError(
      f'conditions are {captions.dtype}{list(captions.shape)}; give a list of'
      f' captions, or their states, float32[B, {expected[0]}, {expected[1]}]'
    )
  return captions.astype(np.float32)
