"""Quality against cost: the tables and the plot of stage `compare`.

    {"settings": {...}, "machine": {...}, "floors": {name: {measure: value}},
     "methods": [{"network", "schedule", "label", "num_steps", "training",
                  "measures": {measure: {"mean", "std", "values"}},
                  "committed_per_step": {"mean", "std", "low", "high"},
                  "path", "paths": {path: {"operations",
                    "operations_with_decoder", "seconds": {"median", ...}}}}],
     "trade_offs": what `trade_offs.rows` returns}

Operations and seconds are of one image, to tokens; `stages.compare_costs` says
what a path is. `seconds` may be null. Shape legend: `T` steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import itertools
import os
from typing import Any

from matplotlib.figure import Figure
import numpy as np

from adanat_jax.report import results as reading, style, tables, trade_offs
from adanat_jax.report.results import Results

_UNITS = {'operations': ('M operations', 1e-6), 'seconds': ('ms', 1e3)}
_COLOURS = {'maskgit': '#5b7c99', 'autonat': '#2a9d8f', 'adanat': '#e4572e'}
_MORE_COLOURS = ('#9a6fb0', '#f0a030', '#34506b', '#8fb3cf', '#a7b0ba')
_NETWORKS = {
  'nat': {'linestyle': '-', 'marker': 'o'},
  'enat': {'linestyle': '--', 'marker': 's', 'markerfacecolor': 'white'},
}
_PATHS = {
  'all': 'all tokens',
  'static': 'known counts',
  'buckets': 'buckets',
  'masked': 'masked attention',
  'own': 'each sample by itself',
}
_NOT_REACHED = 'not reached'
_MEASURES = (
  *('frechet', 'kernel_distance', 'precision', 'recall'),
  *('density', 'coverage', 'accuracy'),
)


def compose(results: Results) -> str:
  """The comparison as one Markdown document."""
  settings, machine = results['settings'], results['machine']
  floors = ', '.join(
    f'{name} {tables.number(values[trade_offs.MEASURE], trade_offs.MEASURE)}'
    for name, values in results['floors'].items()
  )
  parts = [
    '# MaskGIT, AutoNAT and AdaNAT, each on a NAT and on an ENAT\n',
    'Fréchet and kernel distance (lower is better), precision, recall, density,'
    ' coverage and accuracy: mean ± standard deviation over'
    f' {settings["sampling seeds"]} sampling seeds of'
    f' {settings["images a seed"]} images, the same for all, and over'
    f' trainings where there are several. Floor: {floors}. Operations are two'
    ' for each multiply-add, of one image. Times are medians of'
    f' {settings["timing rounds"]} rounds over all methods in turn,'
    f' {settings["images a timing"]} images each, {settings["batch"]} at a'
    f' time, on {machine["device"]} with {machine["cores"]} cores, to tokens;'
    " the tokenizer's decoder is the same for all. MaskGIT is not guided: one"
    ' forward a step instead of two.\n',
    'AutoNAT searches its tables by this very distance, on other noise;'
    ' no reward of AdaNAT sees the network that measures it, and MaskGIT is at'
    ' its published numbers, not tuned. So the rows say what each costs and'
    ' gives, and AutoNAT has the shortest way to this figure.\n',
    '![quality against cost](comparison.png)\n',
    _method_table(results),
  ]
  if results['trade_offs']:
    parts += ['## AdaNAT on ENAT for AdaNAT on NAT\n', _trade_table(results)]
  parts += [
    '## Ways of running AdaNAT\n',
    'How many operations, and how long, an image takes where each sample'
    ' decides how many tokens it reveals.\n',
    _path_table(results),
    'Tokens revealed at each step, mean ± standard deviation over samples, and'
    ' the least and most of any sample:\n',
    _count_table(results),
    '## Settings\n',
    _settings_table(results),
  ]
  return '\n'.join(parts)


def save_plot(path: str | os.PathLike[str], results: Results) -> None:
  """Draws the distance over operations and over seconds.

  A line is a schedule on a network, a marker one T, larger with T; a bar is the
  standard deviation over seeds and trainings.
  """
  titles = _schedules(results)
  others = (name for name in titles if name not in _COLOURS)
  colours = _COLOURS | dict(zip(others, itertools.cycle(_MORE_COLOURS)))
  curves = {
    (network, schedule): found
    for schedule in titles
    for network in _NETWORKS
    if (found := trade_offs.points(results, network, schedule))
  }
  everything = [point for found in curves.values() for point in found]
  distances = [point.distance for point in everything]
  figure = Figure(figsize=(10.4, 5.2), layout='constrained')
  panels = figure.subplots(1, 2, sharey=True)
  for axes, (cost, (unit, scale)) in zip(panels, _UNITS.items(), strict=True):
    for (network, schedule), found in curves.items():
      colour, look = colours[schedule], _NETWORKS[network]
      across = [scale * point.cost(cost) for point in found]
      axes.plot(
        across, [point.distance for point in found], color=colour,
        linewidth=1.8, linestyle=look['linestyle'], zorder=3,
      )  # fmt: skip
      for place, (x, point) in enumerate(zip(across, found, strict=True)):
        axes.errorbar(
          x, point.distance, yerr=point.std, color=colour, elinewidth=1.2,
          marker=look['marker'], markersize=5.0 + 2.0 * place,
          markerfacecolor=look.get('markerfacecolor', colour), zorder=4,
          linestyle='none',
          label=f'{titles[schedule]} on {network.upper()}'
          if not place
          else None,
        )  # fmt: skip
    costs = [scale * point.cost(cost) for point in everything]
    style.log_width(axes, min(costs), max(costs))
    style.log_height(axes, min(distances), max(distances))
    style.clean(axes, grid='both')
    axes.set_xlabel(f'{unit} an image', color=style.INK)
  steps = ', '.join(str(n) for n in reading.all_num_steps(results))
  panels[0].set_title(
    f'Fréchet distance over operations, T = {steps}', **style.TITLE
  )
  panels[1].set_title('over measured time (lower is better)', **style.TITLE)
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside lower center', ncols=3, frameon=False,
    fontsize=9.5, title='markers grow with T', title_fontsize=8.5,
  )  # fmt: skip
  style.save(path, figure)


def _schedules(results: Results) -> dict[str, str]:
  """The titles of all schedules by their names, in the order of results."""
  return {
    entry['schedule']: entry['label'].removesuffix(
      f' on {entry["network"].upper()}'
    )
    for entry in results['methods']
  }


def _groups(results: Results) -> list[list[reading.MethodResult]]:
  """The trainings of each schedule on each network at each T."""
  return [
    entries
    for num_steps in reading.all_num_steps(results)
    for network in _NETWORKS
    for schedule in _schedules(results)
    if (
      entries := reading.select(
        results, network=network, schedule=schedule, num_steps=num_steps
      )
    )
  ]


def _method_table(results: Results) -> str:
  # Comparisons of earlier versions lack some.
  measures = [
    name
    for name in _MEASURES
    if all(name in entry['measures'] for entry in results['methods'])
  ]
  schedules = _schedules(results)
  rows = []
  for entries in _groups(results):
    first = entries[0]
    row = [
      first['network'].upper(),
      schedules[first['schedule']],
      str(first['num_steps']),
    ]
    for measure in measures:
      pooled = reading.pool(entries, measure)
      assert pooled is not None  # All methods have it.
      row.append(tables.spread(pooled, measure))
    taken = [entry['paths'][entry['path']] for entry in entries]
    row += [
      _millions(taken, 'operations'),
      _millions(taken, 'operations_with_decoder'),
      _milliseconds([x['seconds'] for x in taken]),
    ]
    rows.append(row)
  titles = [reading.title_of(measure) for measure in measures]
  return tables.markdown_table(
    ['network', 'schedule', 'T', *titles, 'M operations', 'with the decoder']
    + ['ms (lowest to highest)'],
    rows,
  )


def _trade_table(results: Results) -> str:
  rows = []
  for row in results['trade_offs']:
    unit, scale = _UNITS[row['cost']]
    distance = cost = _NOT_REACHED
    if row['enat_distance'] is not None:
      distance = tables.number(row['enat_distance'], trade_offs.MEASURE)
    if row['enat_is_cheaper']:
      distance += ', for less'
    if row['enat_cost'] is not None:
      cost = f'{_three(scale * row["enat_cost"])} {unit}'
    rows.append(
      [
        str(row['num_steps']),
        tables.number(row['nat_distance'], trade_offs.MEASURE),
        f'{_three(scale * row["nat_cost"])} {unit}',
        distance,
        cost,
      ]
    )
  return (
    tables.markdown_table(
      ['T of the NAT', 'its distance', 'its cost']
      + ['ENAT at the same cost: distance', 'at the same distance: cost'],
      rows,
    )
    + '\nBetween two T the ENAT is interpolated, linearly in the logarithm of'
    ' the cost. "For less": all of its T cost less, this is the largest one.'
    ' A distance that its smallest T is below already costs what that T'
    ' does.\n'
  )


def _path_table(results: Results) -> str:
  rows = []
  for entries in _groups(results):
    first = entries[0]
    if first['schedule'] != 'adanat':
      continue
    for path in first['paths']:
      taken = [entry['paths'][path] for entry in entries]
      note = ''
      if path == 'buckets':
        beyond = float(np.mean([entry['beyond_buckets'] for entry in entries]))
        note = f'{len(first["buckets"])} sizes, {beyond:.1%} beyond them'
      rows.append(
        [
          first['network'].upper(),
          str(first['num_steps']),
          _PATHS[path],
          _millions(taken, 'operations'),
          _milliseconds([x['seconds'] for x in taken]),
          note,
        ]
      )
  return tables.markdown_table(
    ['network', 'T', 'run by', 'M operations', 'ms (lowest to highest)', ''],
    rows,
  )


def _count_table(results: Results) -> str:
  most = max(reading.all_num_steps(results))
  rows = []
  for entry in reading.select(results, schedule='adanat'):
    counts = entry['committed_per_step']
    cells = [
      f'{mean:.1f} ± {std:.1f} ({low:.0f} to {high:.0f})'
      for mean, std, low, high in zip(
        *(counts[name] for name in ('mean', 'std', 'low', 'high')), strict=True
      )
    ]
    row = [entry['network'].upper(), str(entry['num_steps']), *cells]
    rows.append(row + [''] * (most - len(cells)))
  steps = [f'step {step + 1}' for step in range(most)]
  return tables.markdown_table(['network', 'T', *steps], rows)


def _settings_table(results: Results) -> str:
  rows = []
  for name, value in {**results['settings'], **results['machine']}.items():
    if isinstance(value, Mapping):
      value = ', '.join(
        f'{key.replace("_", " ")} {number}' for key, number in value.items()
      )
    rows.append([name.replace('_', ' '), str(value)])
  return tables.markdown_table(['setting', 'value'], rows)


def _millions(figures: Sequence[Mapping[str, Any]], name: str) -> str:
  return _three(1e-6 * float(np.mean([x[name] for x in figures])))


def _milliseconds(spreads: Sequence[Mapping[str, Any] | None]) -> str:
  """The mean of medians, the lowest and the highest; nothing if not timed."""
  timed = [x for x in spreads if x is not None]
  if not timed:
    return ''
  median = float(np.mean([x['median'] for x in timed]))
  low, high = min(x['low'] for x in timed), max(x['high'] for x in timed)
  return f'{_three(1e3 * median)} ({_three(1e3 * low)} to {_three(1e3 * high)})'


def _three(value: float) -> str:
  """Three significant digits, no exponent."""
  return f'{value:.0f}' if value >= 100 else f'{value:#.3g}'
