"""Training curves, drawn from the rows of a metrics.jsonl."""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
import numpy as np

from adanat_jax.report import style


@dataclasses.dataclass(frozen=True)
class Panel:
  """One small plot of training curves.

  Attributes:
    title: above the plot.
    lines: metric name to label, or to '' if the title says it all. A metric
      that is a list, one number a decoding step, becomes a line for each step,
      from pale to dark.
    limits: of the vertical axis; None fits the curves.
  """

  title: str
  lines: Mapping[str, str]
  limits: tuple[float, float] | None = None


# Metrics that the training of a policy writes.
POLICY_PANELS = (
  Panel('reward', {'reward': ''}),
  Panel('spread of the reward', {'reward_std': ''}),
  Panel(
    'accuracy of the discriminator',
    {
      'accuracy_train': 'training images',
      'accuracy_held_out': 'held-out images',
      'accuracy_generated': 'generated images',
    },
    (0.0, 1.02),
  ),
  Panel('KL from the old policy', {'kl': ''}),
  Panel('clip fraction', {'clip_fraction': ''}),
  Panel(
    'explained variance of the values', {'explained_variance': ''}, (-1, 1)
  ),
  Panel('entropy', {'entropy': ''}),
  Panel('mask ratio', {'mask_ratio': ''}, (0.0, 1.02)),
  Panel('sampling temperature', {'sampling_temperature': ''}),
  Panel('masking temperature', {'masking_temperature': ''}),
  Panel('guidance scale', {'guidance_scale': ''}),
  Panel('tokens committed', {'committed': ''}),
)


def save_training_plot(
  path: str | os.PathLike[str],
  rows: Sequence[Mapping[str, Any]],
  panels: Sequence[Panel],
  title: str = '',
  columns: int = 3,
) -> None:
  """Draws training curves from the rows of a metrics.jsonl.

  Args:
    path: the PNG file; its directory must exist.
    rows: each with 'step' and any metrics; a metric may be missing in some.
    panels: what to draw; a panel with none of its metrics in the rows is
      left out.
    title: above all panels.
    columns: panels side by side.

  Raises:
    ValueError: if no panel has anything to draw.
  """
  filled = [
    (panel, curves)
    for panel in panels
    if (curves := {key: _curve(rows, key) for key in panel.lines})
    and any(len(steps) for steps, _ in curves.values())
  ]
  if not filled:
    raise ValueError('none of the metrics to draw is in the rows')
  columns = min(columns, len(filled))
  lines = math.ceil(len(filled) / columns)
  figure = Figure(figsize=(3.3 * columns, 2.35 * lines), layout='constrained')
  grid = figure.subplots(lines, columns, squeeze=False)
  for axes in grid.flat[len(filled) :]:
    axes.set_axis_off()
  for axes, (panel, curves) in zip(grid.flat, filled, strict=False):
    for place, (key, (steps, values)) in enumerate(curves.items()):
      if values.ndim == 2:
        _draw_steps(axes, steps, values)
      elif len(steps):
        colour = style.LINE_COLOURS[place % len(style.LINE_COLOURS)]
        _draw_line(axes, steps, values, colour, panel.lines[key])
    axes.set_title(panel.title, **style.TITLE)
    if panel.limits:
      axes.set_ylim(*panel.limits)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    style.clean(axes, grid='y')
    if any(line.get_label()[0] != '_' for line in axes.get_lines()):
      axes.legend(fontsize=8.5, framealpha=0.7, edgecolor='none')
  if title:
    figure.suptitle(
      title, x=0.01, ha='left', color=style.INK, fontweight='bold'
    )
  style.save(path, figure)


def _draw_line(
  axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str, label: str
) -> None:
  """A running mean, over the faint curve itself where that is long."""
  smooth = _smooth(values)
  if smooth is not values:
    axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
  axes.plot(steps, smooth, color=colour, linewidth=1.7, label=label or None)


def _draw_steps(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
  """One line for each decoding step of values [M, T]; two are named."""
  num_steps = values.shape[1]
  for step, line in enumerate(values.T):
    part = step / max(num_steps - 1, 1)
    named = step in (0, num_steps - 1)
    label = f'step {step + 1}' if named else ''
    _draw_line(axes, steps, line, style.shade(part), label)


def _curve(
  rows: Sequence[Mapping[str, Any]], key: str
) -> tuple[np.ndarray, np.ndarray]:
  """Steps [M] and values [M] or [M, T] of one metric, where it was written."""
  written = [row for row in rows if key in row]
  steps = np.array([row['step'] for row in written], np.float64)
  return steps, np.array([row[key] for row in written], np.float64)


def _smooth(values: np.ndarray) -> np.ndarray:
  """A centred running mean over a thirtieth of the curve, if it is long.

  Where a window would reach beyond an end there is none (NaN): a shorter one
  would show the noise of the last rows as a trend.
  """
  half = len(values) // 60
  if half < 1:
    return values
  window = 2 * half + 1
  finite = np.isfinite(values)
  sums = np.cumsum(np.concatenate([[0.0], np.where(finite, values, 0.0)]))
  counts = np.cumsum(np.concatenate([[0], finite]))
  number = counts[window:] - counts[:-window]
  smooth = np.full(len(values), np.nan)
  smooth[half:-half] = np.where(
    number > 0, (sums[window:] - sums[:-window]) / np.maximum(number, 1), np.nan
  )
  return smooth
