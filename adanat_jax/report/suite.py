"""The table of stage `suite`.

{"settings": {name: number},
"rows": [{"name", "asked_passes", "passes": their mean, "bound": null but
for an adaptive one, "effective_temperature": [float of each
step], "measures": {measure: {"mean", "std", "values"}}, ...}],
"missing": [why a schedule is not at a number of passes]}
"""

from __future__ import annotations

from typing import Any

from adanat_jax.report import tables

_SHARES = ('recall', 'accuracy')


def compose(results: dict[str, Any]) -> str:
  """The figures as one Markdown document."""
  settings = results['settings']
  bounds = [
    f'`{row["name"]}` {row["bound"]:.4g} at {row["asked_passes"]} passes'
    for row in results['rows']
    if row['bound'] is not None
  ]
  notes = [f'Bounds: {"; ".join(bounds)}.\n'] if bounds else []
  notes += [f'* {reason}\n' for reason in dict.fromkeys(results['missing'])]
  return '\n'.join(
    [
      '# Schedules at equal numbers of denoiser passes\n',
      f'Fréchet distance (FD), over {settings["sampling seeds"]} seeds of'
      f' {settings["images a seed"]} images, mean ± standard deviation; recall'
      ' and accuracy; of several trainings over all their seeds. Guided'
      ' schedules take half as many steps,'
      ' those that look ahead fewer. Temperature:'
      ' the effective one, at the first step and at the last but one. In'
      ' brackets the mean passes of a sample where they are others.\n',
      table(results),
      *notes,
    ]
  )


def _shown(name: str, rows: list[dict[str, Any]]) -> str:
  """A name, with the number of its trainings if there are several."""
  # Results of earlier versions have one of each.
  count = max(row.get('trainings', 1) for row in rows if row['name'] == name)
  return f'`{name}`' + (f', {count} trainings' if count > 1 else '')


def table(results: dict[str, Any]) -> str:
  """A row a schedule, four columns a number of passes; the best FD is bold."""
  rows = results['rows']
  counts = sorted({row['asked_passes'] for row in rows})
  best = {
    count: min(
      row['measures']['frechet']['mean']
      for row in rows
      if row['asked_passes'] == count
    )
    for count in counts
  }
  measured: dict[str, dict[int, list[str]]] = {}
  for row in rows:
    cells = measured.setdefault(row['name'], dict.fromkeys(counts, [''] * 4))
    count, measures = row['asked_passes'], row['measures']
    figures = measures['frechet']
    text = tables.number(figures['mean'], 'frechet')
    text = f'**{text}**' if figures['mean'] == best[count] else text
    if abs(row['passes'] - count) >= 0.02:
      text = f'({row["passes"]:.2f}) {text}'
    cells[count] = [
      f'{text} ± {tables.number(figures["std"], "frechet")}',
      *(tables.number(measures[name]['mean'], name) for name in _SHARES),
      tables.ends(row['effective_temperature']),
    ]
  header = ['schedule']
  for count in counts:
    header += [f'{count} passes: FD', *_SHARES, 'temperature']
  return tables.markdown_table(
    header,
    [
      [
        _shown(name, rows),
        *(x for count in counts for x in measured[name][count]),
      ]
      for name in results['schedules']
      if name in measured
    ],
  )
