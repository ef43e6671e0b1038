"""Compares finished searches of schedules: one plot, one file of results.

  python benchmarks/search_study.py --output=docs/results/digits-search \
      runs/search/search/T4-*

Left, the lowest distance that was measured so far against the evaluations,
which flatters itself; right, what was found, measured again with noise that no
search has seen. Searches that differ in their repetition alone share a colour.
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from adanat_jax.report import style
from adanat_jax.runtime import files, metric_writer

_OPTIMIZERS = {'cma': 'CMA-ES', 'finite_differences': 'finite differences'}
_NOISE = {'on': 'common noise', 'off': 'independent noise'}
_ENDS = {'last': 'o', 'best': 'D'}


def read(directory: pathlib.Path) -> dict[str, Any]:
  """A search's results, with the distances it measured one by one."""
  rows = metric_writer.read_metrics(directory)
  distances = [float(f'{row["distance"]:.5g}') for row in rows]
  results: dict[str, Any] = files.read_json(directory / 'results.json')
  return {**results, 'distances': distances}


def name_of(search: dict[str, Any]) -> str:
  """What a search shares with its repetitions, for a reader."""
  noise = _NOISE[search['common_noise']]
  return f'{_OPTIMIZERS[search["optimizer"]]}, {noise}'


def draw(path: pathlib.Path, found: list[dict[str, Any]]) -> None:
  """Draws searches of one T.

  Args:
    path: the PNG file.
    found: see `read`.
  """
  names = list(dict.fromkeys(map(name_of, found)))
  figure = Figure(figsize=(10.5, 4.2), layout='constrained')
  left, right = figure.subplots(1, 2)
  for search in found:
    place = names.index(name_of(search))
    colour = style.LINE_COLOURS[place]
    _draw_search(left, search, colour)
    _draw_fresh(right, search, place, colour)
  start = found[0]['tables']['start']['fresh']['mean']
  # One entry a name, whatever the repetitions.
  for name, colour in zip(names, style.LINE_COLOURS, strict=False):
    left.plot([], [], color=colour, label=name)
  left.legend(fontsize=9, framealpha=0.7, edgecolor='none')
  left.set_title('lowest distance so far', **style.TITLE)
  left.set_xlabel('evaluations', color=style.FAINT_INK)
  for end, marker in _ENDS.items():
    label = {'last': 'where it ended', 'best': 'lowest measured'}[end]
    kind = {'marker': marker, 'linestyle': 'none', 'color': style.FAINT_INK}
    right.plot([], [], label=label, **kind)
  right.axhline(start, color=style.FAINT_INK, linewidth=1, linestyle=':')
  right.annotate(
    'start', (1, start), xycoords=('axes fraction', 'data'), fontsize=9
  )
  right.legend(fontsize=9, framealpha=0.7, edgecolor='none')
  right.set_title('measured again with fresh noise', **style.TITLE)
  right.set_xticks(
    range(len(names)), [name.replace(', ', '\n') for name in names]
  )
  for axes in (left, right):
    axes.set_ylim(bottom=0)
    style.clean(axes, grid='y')
  style.save(path, figure)


def _draw_search(axes: Axes, search: dict[str, Any], colour: str) -> None:
  lowest = np.minimum.accumulate(search['distances'])
  axes.plot(
    np.arange(1, len(lowest) + 1),
    lowest,
    color=colour,
    drawstyle='steps-post',
    linewidth=1.7,
  )


def _draw_fresh(
  axes: Axes, search: dict[str, Any], place: int, colour: str
) -> None:
  for side, (end, marker) in zip((-0.15, 0.15), _ENDS.items(), strict=True):
    fresh = search['tables'][end]['fresh']
    axes.errorbar(
      place + side + 0.05 * search['repetition'],
      fresh['mean'],
      fresh['std'],
      color=colour,
      marker=marker,
      capsize=2,
    )


def table(found: list[dict[str, Any]]) -> str:
  """A row a search, in Markdown."""
  rows = [
    '| T | search | images | evaluations | lowest in the search'
    ' | that point again | where it ended |',
    '|---:|---|---:|---:|---:|---:|---:|',
  ]
  for search in found:
    again, last = (
      f'{fresh["mean"]:.2f} ± {fresh["std"]:.2f}'
      for fresh in (search['tables'][end]['fresh'] for end in ('best', 'last'))
    )
    rows.append(
      f'| {search["num_steps"]} | {name_of(search)} | {search["num_samples"]}'
      f' | {search["evaluations"]} | {search["best_distance_in_search"]:.2f}'
      f' | {again} | {last} |'
    )
  return '\n'.join(rows)


def main() -> None:
  """Reads searches, draws and writes."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('searches', nargs='+', type=pathlib.Path)
  parser.add_argument('--output', required=True, type=pathlib.Path)
  options = parser.parse_args()
  found = sorted(
    map(read, options.searches),
    key=lambda s: (s['num_steps'], s['optimizer'], s['common_noise']),
  )
  output = files.make_directory(options.output)
  for num_steps in sorted({search['num_steps'] for search in found}):
    same = [search for search in found if search['num_steps'] == num_steps]
    draw(output / f'T{num_steps}.png', same)
  files.write_json(output / 'results.json', found)
  print(table(found))


if __name__ == '__main__':
  main()
