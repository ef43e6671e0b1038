"""Which classes are known, and which of their items have a label.

By the custom of generalized category discovery: half of the classes are known,
half of their items are labelled, all others are not (Vaze et al. 2022). Items
are divided, never pairs: one text may stand with several pictures.

Shape letters: `n` pairs, `C` classes, `M` items.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from adanat_jax.errors import UserError, printable


@dataclasses.dataclass(frozen=True)
class KnownSplit:
  """One division; classes are numbered anew, known ones first."""

  classes: np.ndarray  # int[C], the old number of each class
  num_known: int
  targets: np.ndarray  # int[n], the new number of each pair's class, -1: none
  is_labelled: np.ndarray  # bool[n]

  @property
  def labels(self) -> np.ndarray:
    """What a method may know: int[n], -1 without a label."""
    return np.where(self.is_labelled, self.targets, -1)

  @property
  def is_old(self) -> np.ndarray:
    """Whether a pair's true class is known, bool[n]."""
    return (self.targets >= 0) & (self.targets < self.num_known)

  @property
  def is_measured(self) -> np.ndarray:
    """Pairs that figures are of, bool[n]: without a label, of a true class."""
    return ~self.is_labelled & (self.targets >= 0)


def check(
  labels: np.ndarray,
  items: np.ndarray,
  names: Sequence[str],
  num_known: int,
  num_classes: int,
) -> None:
  """Refuses classes that cannot be known or found.

  Args:
    labels: int[n], -1 for pairs without a class.
    items: int[n], the item of each pair.
    names: of the C classes.
    num_known: how many are to be known.
    num_classes: how many clusters are to be found.

  Raises:
    UserError: for a class without items, one with a single item, or numbers
      that do not fit.
  """
  for label, name in enumerate(names):
    count = len(np.unique(items[labels == label]))
    if count < 2:
      many = 'one item' if count else 'no items'
      raise UserError(
        f'the class {printable(name, 60)!r} of config.data.path has {many}; a'
        ' class needs two, one to be labelled and one to be found: add some, or'
        ' leave the class out by config.discover.least_items'
      )
  if not 0 < num_known < len(names):
    raise UserError(
      f'config.discover.num_known is {num_known}; give 1 to {len(names) - 1}:'
      f' there are {len(names)} classes, and one at least must be new'
    )
  if num_classes < num_known:
    raise UserError(
      f'config.discover.num_classes is {num_classes}, fewer than the'
      f' {num_known} known classes (config.discover.num_known); give'
      f' {num_known} or more, or 0 for the {len(names)} that there are'
    )


def split(
  labels: np.ndarray,
  items: np.ndarray,
  num_known: int,
  share: float,
  seed: int,
) -> KnownSplit:
  """Draws the known classes and their labelled items.

  Args:
    labels: int[n], the class of each pair, -1 for none.
    items: int[n]; pairs of one item have one class.
    num_known: how many classes are known, at least 1 and not all.
    share: of the items of known classes that are labelled; one at least is,
      and one is not.
    seed: of the division; the same on every machine.
  """
  num_classes = int(labels.max()) + 1
  classes = _order(num_classes, seed, 0)
  renumbered = np.empty(num_classes + 1, np.int64)
  renumbered[classes] = np.arange(num_classes)
  renumbered[-1] = -1  # Of the class -1, none.
  is_labelled = np.zeros(len(labels), bool)
  for label in classes[:num_known]:
    own = np.unique(items[labels == label])
    own = own[_order(len(own), seed, int(label) + 1)]
    count = min(max(1, round(share * len(own))), len(own) - 1)
    is_labelled |= np.isin(items, own[:count])
  return KnownSplit(classes, num_known, renumbered[labels], is_labelled)


def permuted(items: np.ndarray, seed: int) -> np.ndarray:
  """For each pair one whose text it gets, int[n]: items swap their texts."""
  _, first, place = np.unique(items, return_index=True, return_inverse=True)
  return first[_order(len(first), seed, 0)][place]


def _order(count: int, *seed: int) -> np.ndarray:
  """A permutation int[count], of streams that NumPy keeps stable."""
  bits = np.random.PCG64(np.random.SeedSequence(seed))
  return np.argsort(bits.random_raw(count), kind='stable')
