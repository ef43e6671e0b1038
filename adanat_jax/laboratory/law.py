"""A small law whose exact posterior is the denoiser.

A Potts law with random fields on a grid: neighbours like to be equal, and each
cell prefers some values. With 2 x 3 cells of three values there are 729 grids
and 4096 canvases, so every probability is a sum that can be written down. What
a decoder does to such a law it does itself: its network makes no error.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import itertools

import jax.numpy as jnp
import numpy as np

from adanat_jax.decoding import schedules
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.types import Array, Cache, Condition, Denoiser


@dataclasses.dataclass(frozen=True)
class PottsLaw:
  """The law `p(x) ~ exp(J #{equal neighbours} + sum_i h_i(x_i))`.

  Attributes:
    rows: of the grid.
    columns: of the grid.
    num_values: K.
    coupling: J.
    field: standard deviation of the fields h, which are normal.
    seed: of the fields.
  """

  rows: int = 2
  columns: int = 3
  num_values: int = 3
  coupling: float = 1.6
  field: float = 0.5
  seed: int = 1

  @property
  def num_tokens(self) -> int:
    """N."""
    return self.rows * self.columns

  @functools.cached_property
  def grids(self) -> np.ndarray:
    """All grids, int32[K^N, N], the last position changing fastest."""
    values = itertools.product(range(self.num_values), repeat=self.num_tokens)
    return np.array([*values], np.int32)

  @functools.cached_property
  def probabilities(self) -> np.ndarray:
    """Of each grid, float64[K^N]."""
    draw = np.random.default_rng(self.seed)
    fields = draw.normal(0, self.field, (self.num_tokens, self.num_values))
    cells = self.grids.reshape(-1, self.rows, self.columns)
    equal = (cells[:, 1:] == cells[:, :-1]).sum((1, 2))
    equal += (cells[:, :, 1:] == cells[:, :, :-1]).sum((1, 2))
    weights = self.coupling * equal
    weights += fields[np.arange(self.num_tokens), self.grids].sum(1)
    return np.exp(weights) / np.exp(weights).sum()

  @functools.cached_property
  def known(self) -> np.ndarray:
    """The probability of what a canvas knows, float64[(K + 1)^N]."""
    table = self.probabilities.reshape((self.num_values,) * self.num_tokens)
    for axis in range(self.num_tokens):
      table = np.concatenate([table, table.sum(axis, keepdims=True)], axis)
    return table.ravel()

  def index(self, canvases: np.ndarray) -> np.ndarray:
    """The number of a canvas int[..., N], K being the mask: int[...]."""
    return canvases @ self._places

  @functools.cached_property
  def _places(self) -> np.ndarray:
    exponents = np.arange(self.num_tokens)[::-1]
    return (self.num_values + 1) ** exponents

  @functools.cached_property
  def canvases(self) -> np.ndarray:
    """All canvases, int32[(K + 1)^N, N], by their number."""
    values = range(self.num_values + 1)
    return np.array([*itertools.product(values, repeat=self.num_tokens)])

  @functools.cached_property
  def posterior(self) -> np.ndarray:
    """Of each canvas and position the law of its token, given the others.

    float64[(K + 1)^N, N, K].
    """
    masked = self.canvases * self._places
    rest = masked.sum(1, keepdims=True) - masked
    tokens = np.arange(self.num_values)
    at = rest[..., None] + self._places[:, None] * tokens
    weights = self.known[at]
    return weights / weights.sum(-1, keepdims=True)

  def denoiser(self) -> Denoiser:
    """The network that has nothing left to learn; it reads no condition."""
    logits = jnp.asarray(np.log(self.posterior), jnp.float32)
    places = jnp.asarray(self._places, jnp.int32)

    def denoiser(
      tokens: Array, condition: Condition, cache: Cache
    ) -> tuple[Array, Array, Cache]:
      del condition
      found = logits[tokens @ places]
      return found, found, cache

    return denoiser

  def schedule(
    self,
    name: str,
    num_steps: int,
    make: Callable[[str, int, int], Schedule] = schedules.make,
  ) -> Schedule:
    """A schedule for this grid, unguided: there is no condition.

    Args:
      name: of the schedule.
      num_steps: T.
      make: `(name, num_steps, num_tokens)`, who knows the name.

    Raises:
      UserError: see `make`.
    """
    base, bracket, rest = name.partition('(')
    if base == 'halton' and 'rows' not in rest:
      grid = f'rows={self.rows}, columns={self.columns}'
      name = f'halton({grid}, {rest}' if bracket else f'halton({grid})'
    made = make(name, num_steps, self.num_tokens)
    return dataclasses.replace(made, guided=False)
