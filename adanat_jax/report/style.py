"""The look that all plots share: inks, titles, clean axes, whole files."""

import io
import math
import os
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
import numpy as np

from adanat_jax.runtime import files

INK = '#262b33'
FAINT_INK = '#787f8a'
GRID = '#e6e9ee'
LINE_COLOURS = ('#e4572e', '#34506b', '#2a9d8f', '#9a6fb0', '#f0a030')
TITLE: dict[str, Any] = {'loc': 'left', 'color': INK, 'fontsize': 11}
DOTS_PER_INCH = 110


def shade(part: float) -> str:
  """A colour between pale (0) and dark (1), for things that have an order."""
  pale, dark = np.array([246, 190, 160]), np.array([120, 30, 30])
  red, green, blue = np.rint(pale + part * (dark - pale)).astype(int)
  return f'#{red:02x}{green:02x}{blue:02x}'


def log_height(axes: Axes, low: float, high: float) -> None:
  """A logarithmic vertical axis with ticks at 1, 2, 5 times powers of ten."""
  axes.set_yscale('log')
  _set_ticks(axes.yaxis, low, high)


def log_width(axes: Axes, low: float, high: float) -> None:
  """A logarithmic horizontal axis, as `log_height`."""
  axes.set_xscale('log')
  _set_ticks(axes.xaxis, low, high)


def _set_ticks(axis: Axis, low: float, high: float) -> None:
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  ticks = [
    tick
    for decade in decades
    for tick in (10.0**decade, 2 * 10.0**decade, 5 * 10.0**decade)
    if low / 1.5 <= tick <= high * 1.5
  ]
  axis.set_major_locator(FixedLocator(ticks))
  axis.set_minor_locator(NullLocator())
  axis.set_major_formatter(lambda value, _: f'{value:g}')


def clean(axes: Axes, grid: str) -> None:
  """Removes lines that do not carry data."""
  for side in ('top', 'right', 'left'):
    axes.spines[side].set_visible(False)
  axes.spines['bottom'].set_color(FAINT_INK)
  axes.tick_params(colors=FAINT_INK, labelsize=9)
  for label in (*axes.get_yticklabels(), *axes.get_xticklabels()):
    label.set_fontsize(9.5)
  axes.set_axisbelow(True)
  axes.grid(axis=grid, color=GRID, linewidth=0.9)  # type: ignore[arg-type]


def save(path: str | os.PathLike[str], figure: Figure) -> None:
  """Writes a figure as a PNG, whole or not at all."""
  buffer = io.BytesIO()
  # Without the version of Matplotlib the same numbers are the same file.
  figure.savefig(
    buffer, format='png', dpi=DOTS_PER_INCH, metadata={'Software': None}
  )
  files.write_bytes(path, buffer.getvalue())
