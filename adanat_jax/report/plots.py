"""Plots of an evaluation and of trainings, by Matplotlib's objects alone.

No pyplot: nothing global is touched, so plots can be drawn from any thread
and in any order. Every function writes a PNG at `path`, whose directory must
exist; `results` are those of `adanat_jax.report.results`, and `measure` is a
key of their `measures`. A method has the same colour and marker in every plot
of one `results`. Shape legend: `T` steps.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import os
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
  FixedLocator,
  MaxNLocator,
  NullLocator,
  ScalarFormatter,
)
import numpy as np

from adanat_jax.report import results as reading, style

# Hand-made schedules are cool, learned policies warm, and what an adaptive
# policy becomes when its adaptivity is taken away is pale.
_PALETTES = {
  reading.HAND_MADE: ('#5b7c99', '#8fb3cf', '#34506b', '#a7b0ba', '#6f9c8c'),
  reading.TUNED: ('#2a9d8f', '#176b61'),
  reading.NON_ADAPTIVE: ('#9a6fb0', '#c3a3d1', '#6b4a80'),
  reading.ADAPTIVE: ('#e4572e', '#f0a030', '#b8275e'),
  reading.SHARED: ('#8c1c13', '#bf7a10', '#5e1a3a'),
  reading.FROZEN: ('#eea48c', '#f2cd94', '#d78fae'),
  reading.SHUFFLED: ('#c98a76', '#cfa968', '#a8728a'),
}
_MARKERS = {
  reading.HAND_MADE: 's',
  reading.TUNED: 'D',
  reading.NON_ADAPTIVE: '^',
  reading.ADAPTIVE: 'o',
  reading.SHARED: 'v',
  reading.FROZEN: 'P',
  reading.SHUFFLED: 'X',
}

# How many times the best distance a plot of one T still shows to scale.
FAR = 2.5

# key, title, and whether the last step's value has an effect on the image.
_VALUE_PANELS = (
  ('mask_ratio', 'mask ratio', False),
  ('sampling_temperature', 'sampling temperature', True),
  ('masking_temperature', 'masking temperature', False),
  ('guidance_scale', 'guidance scale', True),
)


def method_styles(results: reading.Results) -> dict[str, tuple[str, str]]:
  """Colour and marker of every method, by name."""
  styles: dict[str, tuple[str, str]] = {}
  used: dict[str, int] = {}
  for entry in results['methods']:
    if entry['name'] in styles:
      continue
    role = entry['role']
    place = used.setdefault(role, 0)
    used[role] += 1
    palette = _PALETTES[role]
    styles[entry['name']] = (palette[place % len(palette)], _MARKERS[role])
  return styles


def save_distance_plot(
  path: str | os.PathLike[str],
  results: reading.Results,
  num_steps: int,
  measure: str = 'frechet',
) -> None:
  """Draws one measure of every method at one T, and the floors.

  A marker is the mean of one training over its sampling seeds, a bar its
  standard deviation, a tick one seed. The figures at the right pool trainings.
  A distance starts at 0, and a method more than `FAR` times as far as the best
  one is only an arrow at the right edge, so that the others can be told apart.

  Raises:
    ValueError: if no method at this T has the measure.
  """
  styles = method_styles(results)
  pooled = {
    name: numbers
    for name in reading.names(results, num_steps)
    if (numbers := _pool(results, name, num_steps, measure))
  }
  if not pooled:
    raise ValueError(f'no method has {measure} at T = {num_steps}')
  floors = reading.floors_of(results, measure)
  is_distance = reading.better(measure) == 'lower'
  limit = math.inf
  if is_distance:
    limit = FAR * min(numbers.mean for numbers in pooled.values())
  rows = len(pooled) + len(floors)
  figure = Figure(figsize=(8.6, 0.8 + 0.32 * rows), layout='constrained')
  axes = figure.subplots()
  for row, (name, numbers) in enumerate(pooled.items()):
    entries = reading.select(results, name=name, num_steps=num_steps)
    offsets = 0.26 * (np.arange(len(entries)) - (len(entries) - 1) / 2)
    if numbers.mean <= limit:
      for entry, offset in zip(entries, offsets, strict=True):
        _draw_training(
          axes, entry['measures'][measure], row + offset, styles[name]
        )
    _write_right(axes, row, _spread_text(numbers.mean, numbers.std))
  for row, value in enumerate(floors.values(), start=len(pooled)):
    axes.axvline(value, color=style.FAINT_INK, linewidth=0.9, linestyle=':')
    axes.plot(value, row, marker='|', color=style.FAINT_INK, markersize=12)
    _write_right(axes, row, _spread_text(value, math.nan))
  if is_distance:
    _limit_distance(axes, pooled, styles, limit)
  style.clean(axes, grid='x')
  labels = [reading.label_of(results, name) for name in pooled]
  axes.set_yticks(
    range(rows), labels + [f'reference: {name}' for name in floors]
  )
  for row, tick in enumerate(axes.get_yticklabels()):
    tick.set_color(style.INK if row < len(pooled) else style.FAINT_INK)
  axes.tick_params(axis='y', length=0)
  axes.set_ylim(rows - 0.4, -0.6)
  axes.set_title(
    f'{reading.title_of(measure)} at T = {num_steps} '
    f'({reading.better(measure)} is better)',
    **style.TITLE,
  )
  style.save(path, figure)


def save_steps_plot(
  path: str | os.PathLike[str],
  results: reading.Results,
  measure: str = 'frechet',
) -> None:
  """Draws one measure over T, one line a method, trainings pooled.

  Frozen and shuffled policies are left out, and floors less than a third of the
  best method, which would squeeze the curves.
  """
  styles = method_styles(results)
  every = reading.all_num_steps(results)
  taken_apart = (_MARKERS[reading.FROZEN], _MARKERS[reading.SHUFFLED])
  names = [n for n in styles if styles[n][1] not in taken_apart]
  figure = Figure(figsize=(8.2, 5.0), layout='constrained')
  axes = figure.subplots()
  heights: list[float] = []
  for name in names:
    points = {
      num_steps: numbers
      for num_steps in every
      if (numbers := _pool(results, name, num_steps, measure))
    }
    if not points:
      continue
    colour, marker = styles[name]
    strong = marker in (_MARKERS[reading.ADAPTIVE], _MARKERS[reading.SHARED])
    means = [numbers.mean for numbers in points.values()]
    heights += means
    axes.errorbar(
      list(points), means, yerr=[numbers.std for numbers in points.values()],
      color=colour, marker=marker, markersize=6, elinewidth=1.2,
      linewidth=2.2 if strong else 1.4, zorder=4 if strong else 3,
      label=reading.label_of(results, name),
    )  # fmt: skip
  floors = {
    name: value
    for name, value in reading.floors_of(results, measure).items()
    if value >= min(heights) / 3
  }
  heights += floors.values()
  axes.set_xscale('log', base=2)
  axes.xaxis.set_major_locator(FixedLocator(every))
  axes.xaxis.set_minor_locator(NullLocator())
  axes.xaxis.set_major_formatter(ScalarFormatter())
  if min(heights) > 0 and max(heights) > 4 * min(heights):
    style.log_height(axes, min(heights), max(heights))
  _draw_floors(axes, floors)
  axes.set_xlabel('decoding steps T', color=style.INK)
  style.clean(axes, grid='y')
  axes.set_title(
    f'{reading.title_of(measure)} over the number of steps '
    f'({reading.better(measure)} is better)',
    **style.TITLE,
  )
  figure.legend(
    loc='outside lower center', ncols=2 if len(names) > 4 else len(names),
    frameon=False, fontsize=9.5,
  )  # fmt: skip
  style.save(path, figure)


def _draw_floors(axes: Axes, floors: Mapping[str, float]) -> None:
  """Dotted lines with names at their right, which keep off each other."""
  for value in floors.values():
    axes.axhline(value, color=style.FAINT_INK, linewidth=0.9, linestyle=':')
  axes.autoscale_view()
  lowest = -1.0
  for name, value in sorted(floors.items(), key=lambda item: item[1]):
    at = axes.transData.transform((1.0, value))
    height = axes.transAxes.inverted().transform(at)[1]
    # A line of text takes about a twentieth of the height.
    lowest = max(height, lowest + 0.05)
    axes.annotate(
      name, (1.0, lowest), xycoords='axes fraction', xytext=(6, 0),
      textcoords='offset points', va='center', fontsize=9,
      color=style.FAINT_INK, annotation_clip=False,
    )  # fmt: skip


def save_values_plot(
  path: str | os.PathLike[str],
  results: reading.Results,
  learned: Sequence[reading.MethodResult],
  schedules: Sequence[reading.MethodResult],
) -> None:
  """Draws the four values at each step: learned against hand-made.

  A line is the mean over samples, a band one standard deviation each way;
  schedules, whose values are the same for every sample, are dashed. Values that
  cannot change the image are hollow.
  """
  styles = method_styles(results)
  figure = Figure(figsize=(9.2, 6.2), layout='constrained')
  panels = figure.subplots(2, 2).flat
  for axes, (key, title, last_counts) in zip(
    panels, _VALUE_PANELS, strict=True
  ):
    for entry in (*schedules, *learned):
      is_learned = any(entry is other for other in learned)
      colour, marker = styles[entry['name']]
      numbers = entry['values_per_step'][key]
      mean = np.asarray(numbers['mean'], float)
      steps = 1 + np.arange(len(mean))
      axes.plot(
        steps, mean, color=colour, linewidth=2.0 if is_learned else 1.5,
        linestyle='-' if is_learned else '--', label=_entry_label(entry),
        zorder=3,
      )  # fmt: skip
      filled = slice(None) if last_counts else slice(-1)
      axes.plot(
        steps[filled], mean[filled], marker, color=colour, markersize=5,
        zorder=4,
      )  # fmt: skip
      if not last_counts:
        axes.plot(
          steps[-1], mean[-1], marker, markeredgecolor=colour, markersize=5,
          markerfacecolor='white', zorder=4,
        )  # fmt: skip
      if is_learned:
        std = np.asarray(numbers['std'], float)
        low, high = np.maximum(mean - std, 0.0), mean + std
        if key == 'mask_ratio':
          high = np.minimum(high, 1.0)
        axes.fill_between(
          steps, low, high, color=colour, alpha=0.18, linewidth=0, zorder=2
        )  # fmt: skip
    axes.set_title(title, **style.TITLE)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(bottom=0.0, top=1.02 if key == 'mask_ratio' else None)
    style.clean(axes, grid='y')
  for axes in figure.axes[-2:]:
    axes.set_xlabel('decoding step', color=style.INK)
  handles, labels = figure.axes[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside lower center', ncols=2,
    frameon=False, fontsize=9.5,
    title='bands: one standard deviation over samples; hollow: no effect on '
    'the image', title_fontsize=8.5,
  )  # fmt: skip
  style.save(path, figure)


def _pool(
  results: reading.Results, name: str, num_steps: int, measure: str
) -> reading.Pooled | None:
  entries = reading.select(results, name=name, num_steps=num_steps)
  return reading.pool(entries, measure)


def _draw_training(
  axes: Axes, numbers: Mapping[str, Any], height: float, look: tuple[str, str]
) -> None:
  """Mean, spread and seeds of one training on a horizontal line."""
  colour, marker = look
  values = np.asarray(numbers['values'], float)
  axes.errorbar(
    float(numbers['mean']), height, xerr=float(numbers['std']), color=colour,
    fmt=marker, markersize=6, elinewidth=1.6, zorder=4,
  )  # fmt: skip
  axes.plot(
    values, np.full(len(values), height), '|', color=colour, markersize=12,
    markeredgewidth=1.2, alpha=0.7, zorder=3,
  )  # fmt: skip


def _limit_distance(
  axes: Axes,
  pooled: Mapping[str, reading.Pooled],
  styles: Mapping[str, tuple[str, str]],
  limit: float,
) -> None:
  """Starts the axis at 0 and shows methods beyond the limit as arrows."""
  near = [n.mean for n in pooled.values() if n.mean <= limit]
  axes.set_xlim(0.0, 1.15 * max(near))
  for row, (name, numbers) in enumerate(pooled.items()):
    if numbers.mean > limit:
      axes.annotate(
        '', (1.0, row), (0.94, row), xycoords=('axes fraction', 'data'),
        textcoords=('axes fraction', 'data'),
        arrowprops={'arrowstyle': '-|>', 'color': styles[name][0], 'lw': 2.0},
      )  # fmt: skip


def _write_right(axes: Axes, height: float, text: str) -> None:
  """Writes a figure beside the plot, outside its right edge."""
  axes.annotate(
    text, (1.0, height), xycoords=('axes fraction', 'data'), xytext=(8, 0),
    textcoords='offset points', va='center_baseline', fontsize=9.5,
    color=style.INK, annotation_clip=False,
  )  # fmt: skip


def _entry_label(entry: reading.MethodResult) -> str:
  training = entry['training']
  return entry['label'] + (f' (training {training + 1})' if training else '')


def _spread_text(mean: float, std: float) -> str:
  """Three digits of the mean, two of the spread, zeros kept."""
  text = f'{mean:#.3g}'.rstrip('.')
  return text + (f' ± {std:#.2g}'.rstrip('.') if math.isfinite(std) else '')


@dataclasses.dataclass(frozen=True)
class Panel:
  """One small plot of training curves."""

  title: str  # Above the plot.
  # Metric name to label, or to '' if the title says it all. A metric that is a
  # list, one number a decoding step, becomes a line for each step, from pale to
  # dark.
  lines: Mapping[str, str]
  # Of the vertical axis; None fits the curves.
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
) -> None:
  """Draws training curves from the rows of a metrics.jsonl.

  A metric may be missing in some rows; a panel whose metrics are in none is
  left out. The title stands above all panels.

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
  columns = min(3, len(filled))
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
