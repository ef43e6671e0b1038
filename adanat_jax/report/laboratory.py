"""The table and the plot of stage `laboratory`.

    {"law": {"rows", "columns", "num_values", "coupling", "field", "seed",
             "entropy"},
     "floor": the total variation of draws of the law itself,
     "rows": [{"name", "kind", "num_steps", "total_variation", "passes",
               "entropy", "effective_temperature": [float of each step], empty
               where a policy decides,
               "draws": 0 where it is exact}]}

`kind` is a key of `KINDS`.
"""

from __future__ import annotations

import itertools
import os
import textwrap
from typing import Any

from matplotlib.figure import Figure

from adanat_jax.report import style, tables

KINDS = {
  'drawn': 'positions by the tokens drawn for them',
  'chosen': 'positions first, then their tokens',
  'adaptive': 'as many positions as a bound allows',
  'chance': 'each position by chance',
}
_LINES = ('-', '--', ':', '-.')


def compose(results: dict[str, Any]) -> str:
  """The figures as one Markdown document."""
  law = results['law']
  drawn = any(row['draws'] for row in results['rows'])
  floor = (
    f' Figures with a star are of draws: the law itself would come to'
    f' {results["floor"]:.3f}.'
    if drawn
    else ''
  )
  return '\n'.join(
    [
      '# Schedules on a law that is known exactly\n',
      f'A Potts law on {law["rows"]} x {law["columns"]} cells of'
      f' {law["num_values"]} values, coupling {law["coupling"]:g}, fields of'
      f' standard deviation {law["field"]:g}, entropy {law["entropy"]:.2f}'
      ' nats; the denoiser is its exact posterior, and nothing is guided. Total'
      ' variation from the law to that of the decoded grids, 0 to 1, after at'
      ' most T steps; in brackets the mean passes of a sample where they are'
      f' not T.{floor} Temperature: the effective one, at the first step and at'
      ' the last but one. Entropy: of the decoded grids. Both at the largest T'
      ' of the row.\n',
      table(results),
      '![distance over passes](laboratory.png)\n',
    ]
  )


def table(results: dict[str, Any]) -> str:
  """A row a schedule, a column a number of steps."""
  steps = sorted({row['num_steps'] for row in results['rows']})
  lines = []
  for name, rows in _by_name(results).items():
    cells = {row['num_steps']: _cell(row) for row in rows}
    last = rows[-1]
    lines.append(
      [
        f'`{name}`',
        *(cells.get(num_steps, '') for num_steps in steps),
        tables.ends(last['effective_temperature']),
        f'{abs(last["entropy"]):.2f}',
      ]
    )
  header = ['schedule', *(f'T = {n}' for n in steps), 'temperature', 'entropy']
  return tables.markdown_table(header, lines)


def _by_name(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
  """The rows of each schedule, T rising."""
  found: dict[str, list[dict[str, Any]]] = {}
  for row in results['rows']:
    found.setdefault(row['name'], []).append(row)
  return found


def _cell(row: dict[str, Any]) -> str:
  passes = row['passes']
  others = abs(passes - row['num_steps']) > 5e-3
  mark = '*' * bool(row['draws']) + (f' ({passes:.2f})' if others else '')
  return f'{row["total_variation"]:.3f}{mark}'


def save_plot(path: str | os.PathLike[str], results: dict[str, Any]) -> None:
  """Draws the total variation over mean passes, a panel a kind of schedule."""
  figure = Figure(figsize=(13.4, 8.6), layout='constrained')
  panels = figure.subplots(2, 2, sharex=True, sharey=True).ravel()
  for axes, (kind, title) in zip(panels, KINDS.items(), strict=True):
    looks = itertools.cycle(itertools.product(_LINES, style.LINE_COLOURS))
    for name, rows in _by_name(results).items():
      if rows[0]['kind'] != kind:
        continue
      line, colour = next(looks)
      axes.plot(
        [row['passes'] for row in rows],
        [row['total_variation'] for row in rows],
        color=colour, linestyle=line, marker='o', markersize=4, linewidth=1.6,
        label=textwrap.fill(name, 36, subsequent_indent='    '),
      )  # fmt: skip
    style.clean(axes, grid='both')
    axes.set_title(title, **style.TITLE)
    if axes.get_legend_handles_labels()[1]:
      axes.legend(
        frameon=False, fontsize=7.5, loc='upper left', bbox_to_anchor=(1, 1)
      )
  panels[0].set_ylim(0, None)
  for axes in panels[2:]:
    axes.set_xlabel('mean passes of a sample', color=style.INK)
  for axes in panels[::2]:
    axes.set_ylabel('total variation to the law', color=style.INK)
  style.save(path, figure)
