"""Draws docs/images/relatives.png, the figure of docs/relatives.md.

  python docs/images/make_relatives.py

Counts of tokens are those of the published schedules for ImageNet 256 at
T = 8, operations and buckets those of the package. The three images of the
column of AdaNAT are imagined: no policy of its authors was run.
"""

from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
import numpy as np

from adanat_jax.decoding import buckets, step, tables, unrolled
from adanat_jax.models import operations
from adanat_jax.models.enat import ENAT, SIZES
from adanat_jax.report import style
from adanat_jax.types import PolicyValues, TokenCounts

NUM_TOKENS = 256
NUM_STEPS = 8
NUM_BUCKETS = 4
# Height of a step's band, the rest of the step is free; gap between images.
BAND = 0.84
GAP = 0.05

# Hand, search, network; the last has a colour an image.
HAND, SEARCH = style.LINE_COLOURS[1], style.LINE_COLOURS[2]
IMAGES = ('#e4572e', '#b8275e', '#e09010')
MASKED = '#eff1f4'
PALE = 0.27

# Inches.
WIDTH, LEFT, COLUMN, BETWEEN = 10.4, 0.5, 3.05, 0.26

_LARGE = ENAT(1024, NUM_TOKENS, num_classes=1000, **SIZES['L'])
# The same blocks, all of them on all tokens.
_DEPTH = SIZES['L']['encoder_depth'] + SIZES['L']['decoder_depth']
_ALL = dataclasses.replace(_LARGE, encoder_depth=_DEPTH, decoder_depth=0)

Counts = Sequence[TokenCounts]


def counts_of(
  table: PolicyValues, options: step.StepOptions = step.ADANAT
) -> Counts:
  """What the network finds at each step of a table."""
  return unrolled.counts_of(table, NUM_TOKENS, options=options)


def imagined(speed: float) -> Counts:
  """Counts of an image whose tokens are revealed sooner (< 1) or later."""
  progress = (np.arange(NUM_STEPS) + 1) / NUM_STEPS
  ratio = np.cos(math.pi / 2 * progress**speed)
  zeros = np.zeros(NUM_STEPS, np.float32)
  return counts_of(PolicyValues(ratio, zeros, zeros, zeros))


def cost(counts: TokenCounts) -> int:
  """Operations of a forward of ENAT-L."""
  return operations.enat_operations(_LARGE, counts)


def share(counts: Counts) -> float:
  """Operations of a decode, all tokens in the same blocks being 1."""
  everything = operations.enat_operations(_ALL, TokenCounts(0, NUM_TOKENS, 0))
  return sum(map(cost, counts)) / (NUM_STEPS * everything)


def bounds_of(images: Sequence[Counts]) -> list[TokenCounts]:
  """The bucket that each step of a batch is computed in."""
  fullest = np.max(np.array([list(map(tuple, x)) for x in images]), axis=0)
  found = buckets.choose(fullest, NUM_TOKENS, NUM_BUCKETS, cost)
  return [
    next(one for one in found if np.all(np.array(one) >= needed))
    for needed in fullest
  ]


def draw_curves(
  axes: Axes, images: Sequence[Counts], colours: Sequence[str]
) -> None:
  """The share of the tokens that is still masked after each step."""
  steps = np.arange(NUM_STEPS + 1)
  for counts, colour in zip(images, colours, strict=True):
    masked = [one.masked / NUM_TOKENS for one in counts] + [0.0]
    axes.plot(
      steps, masked, color=colour, linewidth=2, marker='o', markersize=4,
      clip_on=False,
    )  # fmt: skip
  axes.set_xlim(0, NUM_STEPS)
  axes.set_ylim(0, 1)
  axes.set_yticks([0, 0.5, 1], ['0', '½', '1'])
  axes.set_xticks(steps)
  style.clean(axes, grid='y')
  axes.tick_params(length=0)


def draw_all(axes: Axes, colours: Sequence[str]) -> None:
  """A network that runs every block on every token at every step."""
  _frame(axes)
  for index, colour in enumerate(colours):
    left, width = _place(index, len(colours))
    for t in range(NUM_STEPS):
      _fill(axes, left, t, width, BAND, colour)


def draw_enat(
  axes: Axes,
  images: Sequence[Counts],
  colours: Sequence[str],
  bounds: Sequence[TokenCounts] | None = None,
) -> None:
  """ENAT: new tokens through the encoder, masked ones through the decoder.

  Args:
    axes: to draw in.
    images: counts of each image.
    colours: of each.
    bounds: of each step; what they exceed the counts by is padding.
  """
  _frame(axes)
  thin = BAND * SIZES['L']['decoder_depth'] / _DEPTH
  thick = BAND - thin
  for index, (counts, colour) in enumerate(zip(images, colours, strict=True)):
    left, width = _place(index, len(images))
    at = lambda n, left=left, width=width: left + width * n / NUM_TOKENS
    for t, (reused, new, _) in enumerate(counts):
      old, seen, end = at(reused), at(reused + new), at(NUM_TOKENS)
      _fill(axes, left, t, old - left, BAND, pale(colour))
      _fill(axes, seen, t, end - seen, BAND, MASKED)
      # The top line is the decoder's two blocks, the rest the encoder's.
      _fill(axes, old, t + thin, seen - old, thick, colour)
      _fill(axes, seen, t, end - seen, thin, colour)
      if bounds is not None:
        more = at(min(reused + bounds[t].new, NUM_TOKENS))
        _pad(axes, seen, t + thin, more - seen, thick, colour)
        first = at(NUM_TOKENS - bounds[t].masked)
        _pad(axes, first, t, seen - first, thin, colour)


def pale(colour: str) -> tuple[float, ...]:
  """A colour for what is kept and not computed."""
  return tuple(1 - PALE * (1 - part) for part in to_rgb(colour))


def _place(index: int, count: int) -> tuple[float, float]:
  """Left edge and width of one of several images in [0, 1]."""
  width = (1 - GAP * (count - 1)) / count
  return index * (width + GAP), width


def _frame(axes: Axes) -> None:
  axes.set_xlim(0, 1)
  axes.set_ylim(NUM_STEPS - 1 + BAND, 0)
  axes.set_yticks(np.arange(NUM_STEPS) + BAND / 2, range(1, NUM_STEPS + 1))
  axes.set_xticks([])
  for side in axes.spines.values():
    side.set_visible(False)
  axes.tick_params(colors=style.FAINT_INK, labelsize=9, length=0)


def _fill(
  axes: Axes, x: float, y: float, width: float, height: float, colour: Any
) -> None:
  axes.add_patch(Rectangle((x, y), width, height, color=colour, linewidth=0))


def _pad(
  axes: Axes, x: float, y: float, width: float, height: float, colour: str
) -> None:
  if width > 0:
    patch = Rectangle((x, y), width, height, **_hatched(colour))
    axes.add_patch(patch)


def _hatched(colour: str) -> dict[str, Any]:
  return dict(
    facecolor='white', edgecolor=colour, hatch='////////', linewidth=0
  )


class Page:
  """A figure that is filled from the top, measured in inches."""

  def __init__(self, height: float):
    self.figure = Figure(figsize=(WIDTH, height))
    self._height = height
    self._y = 0.0

  def skip(self, inches: float) -> None:
    """Leaves room."""
    self._y += inches

  def text(self, text: str, left: float = LEFT, **kwargs: Any) -> None:
    """Writes a line whose foot is here."""
    place = (left / WIDTH, 1 - self._y / self._height)
    self.figure.text(*place, text, va='bottom', **kwargs)

  def row(self, height: float) -> list[Axes]:
    """Makes the axes of the three columns."""
    self._y += height
    found = [
      self.figure.add_axes(
        (
          left_of(i) / WIDTH, 1 - self._y / self._height,
          COLUMN / WIDTH, height / self._height,
        )
      )
      for i in range(3)
    ]  # fmt: skip
    for axes in found[1:]:
      axes.tick_params(labelleft=False)
    return found


def left_of(column: int) -> float:
  """Where a column begins, in inches."""
  return LEFT + column * (COLUMN + BETWEEN)


def draw(path: pathlib.Path) -> None:
  """Draws the figure into a PNG file."""
  matplotlib.rcParams['hatch.linewidth'] = 0.9
  hand = counts_of(tables.enat_256(NUM_STEPS))
  searched = counts_of(tables.autonat_large(NUM_STEPS), step.AUTONAT)
  images = [imagined(speed) for speed in (0.75, 1.05, 1.5)]
  every = [([hand], (HAND,)), ([searched], (SEARCH,)), (images, IMAGES)]
  heading: dict[str, Any] = dict(color=style.INK, fontsize=10.5)
  note: dict[str, Any] = dict(color=style.FAINT_INK, fontsize=9.5)

  page = Page(8.12)
  page.skip(0.34)
  for i, (name, chooser, (_, colours)) in enumerate(
    zip(
      ('MaskGIT', 'AutoNAT', 'AdaNAT'),
      ('by hand', 'by search, once', 'by a network, for each image'),
      every,
      strict=True,
    )
  ):
    page.text(
      name, left_of(i), color=colours[0], fontsize=14, fontweight='bold'
    )
    page.text(chooser, left_of(i) + 1.0, **{**note, 'fontsize': 10.5})
  page.skip(0.36)
  page.text(
    r'$\bf{The\ schedule}$   One of its four numbers a step: the share of'
    ' the tokens that stays masked',
    **heading,
  )
  page.skip(0.14)
  for axes, (counts, colours) in zip(page.row(1.2), every, strict=True):
    draw_curves(axes, counts, colours)

  page.skip(0.64)
  page.text(
    r'$\bf{NAT}$   Every step runs all tokens through all blocks'
    ' (a band is a step: 256 tokens across, 24 blocks high)',
    **heading,
  )
  page.skip(0.08)
  for axes, (_, colours) in zip(page.row(2.1), every, strict=True):
    draw_all(axes, colours)

  page.skip(0.42)
  page.text(
    r'$\bf{ENAT}$   A token runs through the 22 blocks of the encoder once,'
    " when it is known; the masked ones run through the decoder's 2",
    **heading,
  )
  page.skip(0.08)
  for axes, (counts, colours) in zip(page.row(2.1), every, strict=True):
    several = len(counts) > 1
    draw_enat(axes, counts, colours, bounds_of(counts) if several else None)

  page.skip(0.26)
  for i, counts in enumerate((hand, searched)):
    page.text(
      f'{share(counts):.0%} of the operations above', left_of(i), **note
    )
  page.text(
    'counts differ: padded to common bounds',
    left_of(2),
    **note,
  )
  page.skip(0.36)
  patches = [
    Patch(color=HAND, label='computed'),
    Patch(color=pale(HAND), label='read from the cache'),
    Patch(color=MASKED, label='masked'),
    Patch(label='padding', **_hatched(IMAGES[0])),
  ]
  legend = page.figure.legend(
    handles=patches, loc='lower left', ncols=4, frameon=False, fontsize=9.5,
    bbox_to_anchor=(LEFT / WIDTH - 0.008, 0.004), labelcolor=style.FAINT_INK,
    handlelength=1.4, columnspacing=2.0,
  )  # fmt: skip
  legend.set_in_layout(False)
  style.save(path, page.figure)


if __name__ == '__main__':
  draw(pathlib.Path(__file__).with_name('relatives.png'))
