"""Results of the published protocol as Markdown, with others' figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def document(results: Mapping[str, Any]) -> str:
  """The whole page.

  Args:
    results: what `stages.evaluate_published` writes to `results.json`.

  Returns:
    Markdown.
  """
  names = sorted({name for row in results['rows'] for name in row['figures']})
  ours = [
    [
      row['label'],
      row['num_steps'],
      *(_number(row['figures'].get(name)) for name in names),
    ]
    for row in results['rows']
  ]
  parts = [
    f'# {results["benchmark"] or "Evaluation"}',
    _table(['policy', 'steps', *names], ours),
    'A distance is called FID, and a score IS or CLIP-score, only where the'
    ' network that measures is the published one by its hash; a number in a'
    ' name is how many samples were measured.',
    _settings(results['settings']),
  ]
  published = results['published']
  if published:
    theirs = results['published statistics']
    given = results['settings']['statistics']['file']
    if theirs and given != theirs:
      parts.append(
        f'Distances here start from `{given}`, those below from `{theirs}`:'
        ' they are not comparable.'
      )
    parts += [
      '## Published',
      f'Figures of others with {results["published samples"]:,} samples, to be'
      ' compared with an FID of as many here and of the same statistics'
      + (
        f' (`{results["published statistics"]}`).'
        if results['published statistics']
        else '.'
      ),
      _table(
        ['method', 'steps', 'FID', 'IS', 'parameters', 'TFLOPs', 'source'],
        [
          [
            row['method'],
            row['num_steps'],
            _number(row['fid']),
            _number(row['inception_score']),
            f'{row["parameters"]:g}M' if row['parameters'] else '',
            _number(row['teraflops']),
            row['source'],
          ]
          for row in published
        ],
      ),
    ]
  return '\n\n'.join(parts) + '\n'


def _settings(settings: Mapping[str, Any], indent: str = '') -> str:
  """A list, with lists of what is nested."""
  lines = []
  for name, value in settings.items():
    if isinstance(value, Mapping):
      inner = _settings(value, f'{indent}  ')
      lines.append(f'{indent}- {name}:' + (f'\n{inner}' if inner else ' none'))
    else:
      lines.append(f'{indent}- {name}: {value}')
  return '\n'.join(lines)


def _number(value: float | None) -> str:
  return '' if value is None else f'{value:.4g}'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(
    f'| {" | ".join(str(cell).replace("|", "/") for cell in line)} |'
    for line in lines
  )
