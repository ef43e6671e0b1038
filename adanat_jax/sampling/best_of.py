"""The best of several draws of each image, by a score.

  score = adanat_jax.load_discriminator('runs/digits')
  generator = adanat_jax.best_of(adanat_jax.load('runs/digits'), score, 4)
  generator.sample(['even', 'odd'])

Four draws cost four times the passes, which `Samples.passes` counts: compare
them with a decode of as many passes. What scores well becomes more frequent
than it is, so look at recall or coverage, too.

A score is a function of images float32[M, H, W, C] and their conditions,
int32[M] class ids or float32[M, L, C] texts; it returns float[M], larger for
better images. It gets all draws of a batch in one call, draw after draw. Where
it looks at each image by itself, neither the size of batches nor later samples
change a sample. AdaGen takes the final discriminator (arXiv 2603.06993,
refinement at inference).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any, NoReturn, TypeAlias

import jax
import numpy as np

from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError, shown
from adanat_jax.sampling import requests
from adanat_jax.sampling.generator import Generator
from adanat_jax.sampling.program import Samples
from adanat_jax.types import Array

Score: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]

# Beside the numbers of samples, which are folded into the same key.
_DRAWS = 2**32 - 2


def best_of(generator: Generator, score: Score, num_draws: int) -> Generator:
  """The generator that draws each image several times and keeps the best.

  Args:
    generator: draws; with one draw it is returned as it is.
    score: see above; `load_discriminator` has that of a workdir. Of an edit it
      sees what the network drew, before kept pixels are put back.
    num_draws: N. The first draw is what `generator` gives.

  Returns:
    A generator whose samples, edits and pages are the best of N. It can be
    neither saved nor exported.

  Raises:
    UserError: if `num_draws` is no positive integer, the score no function, or
      the generator takes the best of several draws already.
  """
  if requests.integer('num_draws', num_draws, 1) == 1:
    return generator
  if not callable(score):
    raise UserError(
      f'score is {shown(score)}; give a function of images and conditions'
    )
  if draws_of(generator) > 1:
    raise UserError(
      f'the generator takes the best of {draws_of(generator)} draws already;'
      ' give best_of the one that it was made of'
    )
  fields = dataclasses.fields(Generator)
  given = {field.name: getattr(generator, field.name) for field in fields}
  return _BestOf(**given, score=score, num_draws=num_draws)


def draws_of(generator: Generator) -> int:
  """How often a generator draws each image."""
  return generator.num_draws if isinstance(generator, _BestOf) else 1


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _BestOf(Generator):
  """See `best_of`."""

  score: Score = dataclasses.field(kw_only=True)
  num_draws: int = dataclasses.field(kw_only=True)

  def __repr__(self) -> str:
    return f'<the best of {self.num_draws} draws of {super().__repr__()}>'

  def parts(
    self,
    schedule: Schedule,
    labels: np.ndarray,
    key: Array,
    *,
    tokens: np.ndarray | None = None,
    record: bool = False,
  ) -> Iterator[Samples]:
    """Yields the batches, each with the best draw of every sample."""
    others = jax.random.fold_in(key, _DRAWS)
    keys = [key]
    keys += [jax.random.fold_in(others, i) for i in range(1, self.num_draws)]
    draws = [
      super(_BestOf, self).parts(
        schedule, labels, k, tokens=tokens, record=record
      )
      for k in keys
    ]
    done = 0
    for batch in zip(*draws, strict=True):
      rows = labels[done : done + len(batch[0])]
      done += len(rows)
      yield _best(batch, _scores(self.score, batch, rows))

  def stream(self, *given: Any, **named: Any) -> NoReturn:
    """Draws stay on the devices there, and scores read arrays of NumPy."""
    raise UserError('the best of several draws cannot be streamed; give 1 draw')

  def save(self, *given: Any, **named: Any) -> NoReturn:
    """A folder holds no score."""
    raise UserError(
      'what takes the best of several draws cannot be saved: save the generator'
      ' that was given to best_of'
    )

  def export(self, *given: Any, **named: Any) -> NoReturn:
    """A file of plain JAX holds no score."""
    raise UserError(
      'what takes the best of several draws cannot be exported: export the'
      ' generator that was given to best_of'
    )


def _scores(
  score: Score, draws: Sequence[Samples], labels: np.ndarray
) -> np.ndarray:
  """Scores float64[N, B] of N draws of a batch."""
  images = np.concatenate([draw.images for draw in draws])
  conditions = np.concatenate([labels] * len(draws))
  given = score(images, conditions)
  try:
    found = np.asarray(given, np.float64)
  except (TypeError, ValueError):
    found = np.zeros(())
  if found.shape != (len(images),) or np.isnan(found).any():
    raise UserError(
      f'the score of best_of returned {shown(given)} for {len(images)} images;'
      ' it must return a number for each'
    )
  return found.reshape(len(draws), len(labels))


def _best(draws: Sequence[Samples], scores: np.ndarray) -> Samples:
  """Keeps each sample's best draw, of equal ones the first."""
  chosen, rows = scores.argmax(0), np.arange(scores.shape[1])

  def pick(axis: int) -> Callable[..., np.ndarray]:
    def of(*leaves: np.ndarray) -> np.ndarray:
      stacked = np.moveaxis(np.stack(leaves), axis + 1, 1)
      return np.moveaxis(stacked[chosen, rows], 0, axis)

    return of

  trajectory = jax.tree.map(pick(1), *(draw.trajectory for draw in draws))
  return Samples(
    images=pick(0)(*(draw.images for draw in draws)),
    tokens=pick(0)(*(draw.tokens for draw in draws)),
    trajectory=trajectory,
    passes=np.stack([draw.passes for draw in draws]).sum(0, np.int32),
  )
