"""Reads reference files: weights, inputs and outputs of the originals.

A file is an `.npz` with `sd/<key>` (weights), `in/<name>`, `out/<name>` and
`meta/json`: UTF-8 text as uint8, with `config`, perhaps `measured`, and
perhaps a `recipe` for weights too large to store. A recipe lists `{name,
shape, k, off, amp}`; with C-order flat index i, in exact integers,

  x = (i * 2654435761 + k * 40503 + 12345) mod 2^32
  x = ((x ^ (x >> 15)) * 2246822519) mod 2^32
  u = (x ^ (x >> 13)) / 2^32
  w = float32(off + amp * (2 u - 1))
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Reference:
  """One file.

  Attributes:
    path: where it is.
    meta: what `meta/json` says.
    weights: arrays by the original's key; a recipe in groups gives keys
      `<group>.<name>`.
    inputs: arrays by name.
    outputs: arrays by name.
  """

  path: pathlib.Path
  meta: Mapping[str, Any]
  weights: Mapping[str, np.ndarray]
  inputs: Mapping[str, np.ndarray]
  outputs: Mapping[str, np.ndarray]

  @property
  def config(self) -> Mapping[str, Any]:
    return self.meta.get('config', {})

  def neighbour(self, kind: str, other: str) -> Reference:
    """Reads the file on whose weights this one leans.

    Args:
      kind: of this file, such as `enat_decode`.
      other: kind of the other one, such as `enat`; the rest of the names is
        the same, and so is the directory.

    Returns:
      The other file.
    """
    name = self.path.name.removeprefix(kind)
    return read(self.path.with_name(other + name))


def uniform(index: np.ndarray, k: int) -> np.ndarray:
  """The recipe's numbers u in [0, 1), float64, at flat indices `index`."""
  # Products and sums of uint32 are modulo 2^32.
  x = index.astype(np.uint32) * np.uint32(2654435761)
  x += np.uint32((k * 40503 + 12345) % 2**32)
  x ^= x >> np.uint32(15)
  x *= np.uint32(2246822519)
  x ^= x >> np.uint32(13)
  return x / 2.0**32


def _tensor(entry: Mapping[str, Any]) -> np.ndarray:
  """Evaluates one line of a recipe."""
  index = np.arange(math.prod(entry['shape']), dtype=np.uint32)
  u = uniform(index, entry['k'])
  values = entry['off'] + entry['amp'] * (2 * u - 1)
  return values.astype(np.float32).reshape(entry['shape'])


@functools.lru_cache(maxsize=4)
def read(path: pathlib.Path) -> Reference:
  """Reads a reference file; an explicit weight wins over the recipe's.

  Its arrays are shared by those who read it, so nobody can write into them.
  """
  with np.load(path) as file:
    arrays = dict(file)
  meta = json.loads(arrays.pop('meta/json').tobytes())
  recipe = meta.get('recipe') or []
  if isinstance(recipe, Mapping):
    recipe = [
      {**entry, 'name': f'{group}.{entry["name"]}'}
      for group, entries in recipe.items()
      for entry in entries
    ]
  weights = {entry['name']: _tensor(entry) for entry in recipe}
  part = lambda prefix: {
    key.removeprefix(prefix): value
    for key, value in arrays.items()
    if key.startswith(prefix)
  }
  weights.update(part('sd/'))
  for array in (*arrays.values(), *weights.values()):
    array.flags.writeable = False
  return Reference(path, meta, weights, part('in/'), part('out/'))
