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
import output

from adanat_jax.report import style
from adanat_jax.runtime import files, metric_writer

_OPTIMIZERS = {'cma': 'CMA-ES', 'finite_differences': 'finite differences'}
_NOISE = {'on': 'common noise', 'off': 'independent noise'}
_ENDS = (('last', 'o', 'where it ended'), ('best', 'D', 'lowest measured'))


def read(directory: pathlib.Path) -> dict[str, Any]:
  """A search's results, with its name and the distances it measured."""
  results: dict[str, Any] = files.read_json(directory / 'results.json')
  rows = metric_writer.read_metrics(directory)
  distances = [float(f'{row["distance"]:.5g}') for row in rows]
  return results | {'distances': distances}


def name_of(search: dict[str, Any]) -> str:
  """What a search shares with its repetitions, for a reader."""
  noise = _NOISE[search['common_noise']]
  return f'{_OPTIMIZERS[search["optimizer"]]}, {noise}'


def draw(path: pathlib.Path, found: list[dict[str, Any]]) -> None:
  """Draws searches of one T into a PNG file; see `read`."""
  names = list(dict.fromkeys(map(name_of, found)))
  figure = Figure(figsize=(10.5, 4.2), layout='constrained')
  left, right = figure.subplots(1, 2)
  for name, colour in zip(names, style.LINE_COLOURS, strict=False):
    # One entry a name, whatever the repetitions.
    left.plot([], [], color=colour, label=name)
  for search in found:
    _draw_search(left, right, search, names.index(name_of(search)))
  left.set_title('lowest distance so far', **style.TITLE)
  left.set_xlabel('evaluations', color=style.FAINT_INK)
  for _, marker, label in _ENDS:
    kind = {'marker': marker, 'linestyle': 'none', 'color': style.FAINT_INK}
    right.plot([], [], label=label, **kind)
  start = found[0]['tables']['start']['fresh']['mean']
  right.axhline(start, color=style.FAINT_INK, linewidth=1, linestyle=':')
  right.annotate(
    'start', (1, start), xycoords=('axes fraction', 'data'), fontsize=9
  )
  right.set_title('measured again with fresh noise', **style.TITLE)
  right.set_xticks(range(len(names)), [x.replace(', ', '\n') for x in names])
  for axes in (left, right):
    axes.legend(fontsize=9, framealpha=0.7, edgecolor='none')
    axes.set_ylim(bottom=0)
    style.clean(axes, grid='y')
  style.save(path, figure)


def _draw_search(
  left: Axes, right: Axes, search: dict[str, Any], place: int
) -> None:
  colour = style.LINE_COLOURS[place]
  lowest = np.minimum.accumulate(search['distances'])
  line = {'drawstyle': 'steps-post', 'linewidth': 1.7}
  left.plot(np.arange(1, len(lowest) + 1), lowest, color=colour, **line)
  for side, (end, marker, _) in zip((-0.15, 0.15), _ENDS, strict=True):
    fresh = search['tables'][end]['fresh']
    at = place + side + 0.05 * search['repetition']
    how = {'color': colour, 'marker': marker, 'capsize': 2}
    right.errorbar(at, fresh['mean'], fresh['std'], **how)


def main() -> None:
  """Reads searches, draws and writes."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('searches', nargs='+', type=pathlib.Path)
  parser.add_argument('--output', required=True, type=pathlib.Path)
  given = parser.parse_args()
  found = sorted(
    map(read, given.searches),
    key=lambda s: (s['num_steps'], s['optimizer'], s['common_noise']),
  )
  directory = files.make_directory(given.output)
  for num_steps in sorted({search['num_steps'] for search in found}):
    same = [search for search in found if search['num_steps'] == num_steps]
    draw(directory / f'T{num_steps}.png', same)
  files.write_json(directory / 'results.json', found)
  rows = [
    (
      *(x['num_steps'], name_of(x), x['num_samples'], x['evaluations']),
      f'{x["best_distance_in_search"]:.2f}',
      *(
        '{mean:.2f} ± {std:.2f}'.format(**x['tables'][end]['fresh'])
        for end in ('best', 'last')
      ),
    )
    for x in found
  ]
  header = (
    'T,search,images,evaluations,lowest in the search,that point again,'
    'where it ended'
  )
  print(output.table(header.split(','), rows))


if __name__ == '__main__':
  main()
