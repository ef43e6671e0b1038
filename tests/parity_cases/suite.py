"""Runs a reference file through our code and says what does not agree."""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
import re
from typing import Any

import jax
import numpy as np

from parity_cases import (
  decoding,
  discriminators,
  enat,
  learning,
  networks,
  published,
)
from parity_cases.tolerances import TOLERANCES
from support.reference_arrays import Reference

CASES = {
  **networks.CASES,
  **discriminators.CASES,
  **decoding.CASES,
  **learning.CASES,
  **published.CASES,
  **enat.CASES,
}


def kind_of(path: pathlib.Path) -> str | None:
  """Returns the longest known kind that the file's name begins with."""
  kinds = [kind for kind in CASES if f'{path.stem}_'.startswith(f'{kind}_')]
  return max(kinds, key=len, default=None)


def disagreements(reference: Reference) -> list[str]:
  """Compares all outputs of a file of a known kind.

  Args:
    reference: the file.

  Returns:
    A sentence for each output that is missing, of another shape, or further
    from ours than the kind's tolerance.
  """
  kind = kind_of(reference.path)
  tolerance = TOLERANCES[kind]
  with jax.default_matmul_precision('highest'):
    ours = CASES[kind](reference)
  problems = []
  for name, theirs in reference.outputs.items():
    if any(re.fullmatch(p, name) for p in tolerance.not_compared):
      continue
    if name not in ours:
      problems.append(f'{name}: we have no such output')
      continue
    value = np.asarray(ours[name])
    if value.shape != theirs.shape:
      problems.append(f'{name}: ours is {value.shape}, not {theirs.shape}')
    elif np.issubdtype(theirs.dtype, np.floating):
      error = np.max(np.abs(value.astype(np.float64) - theirs))
      limit = tolerance.absolute + tolerance.relative * np.abs(theirs).max()
      # Not `error > limit`, which a NaN would pass.
      if not error <= limit:
        problems.append(f'{name}: differs by {error:.2e}, above {limit:.2e}')
    elif not np.array_equal(value, theirs):
      count = np.count_nonzero(value != theirs)
      problems.append(f'{name}: {count} of {theirs.size} differ')
  return problems


def measured_mistakes(meta: Mapping[str, Any]) -> dict[str, float]:
  """Returns how far each mistake that a file lists moves its outputs."""
  moves = {}
  for name, entries in meta.get('measured', {}).items():
    if '_move' in name and isinstance(entries, dict):
      for mistake, move in entries.items():
        if mistake not in ('f32_vs_f64', 'nothing'):
          moves[mistake] = float(np.max(move))
  return moves
