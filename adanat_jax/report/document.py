"""The report as one Markdown document."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from adanat_jax.report import published_figures, results as reading, tables


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture of the report."""

  file: str  # Its name, relative to the report.
  title: str  # The heading above it.
  caption: str  # What is to be seen, one or two sentences.


def compose(
  results: reading.Results,
  pictures: Sequence[Picture],
  title: str,
  command: str,
  warnings: Sequence[str] = (),
) -> str:
  """The report's text, in Markdown.

  The command is what produced the figures, for the reader to repeat; the
  warnings say what makes them doubtful.
  """
  all_num_steps = reading.all_num_steps(results)
  notes = {e['label']: e['note'] for e in results['methods'] if e['note']}
  settings = [[key, f'`{x}`'] for key, x in results['settings'].items()]
  parts = [
    f'# {title}\n',
    f'Made by\n\n```\n{command}\n```\n',
    '## What came out\n',
    ''.join(f'- {sentence}\n' for sentence in tables.findings(results)),
    _how_measured(results),
    *tables.warnings(warnings),
  ]
  for num_steps in all_num_steps:
    parts.append(f'## Methods at T = {num_steps}\n')
    parts.append(tables.method_table(results, num_steps))
  if notes:
    parts.append(''.join(f'- {label}: {x}\n' for label, x in notes.items()))
  parts += [
    '## For reference\n',
    'What real images, the tokenizer and the NAT alone have. The NAT is'
    " decoded by MaskGIT's unguided schedule, with one seed.\n",
    tables.floor_table(results),
  ]
  for picture in pictures:
    parts += [
      f'## {picture.title}\n',
      f'![{picture.title}]({picture.file})\n',
      f'{picture.caption}\n',
    ]
  for num_steps in all_num_steps:
    entries = [
      entry
      for entry in reading.select(results, num_steps=num_steps)
      if entry['role'] not in (reading.FROZEN, reading.SHUFFLED)
    ]
    if entries:
      parts.append(f'## The four values at each step, T = {num_steps}\n')
      parts.append(tables.values_table(entries))
  for grid in results['grid']:
    parts += [
      f'## The tuned schedule, T = {grid["num_steps"]}\n',
      f'The best of {grid["evaluations"]} evaluations, on seeds that the '
      'comparison does not use:\n',
      tables.grid_table(grid),
    ]
  parts += [
    '## Settings\n',
    tables.markdown_table(['setting', 'value'], settings),
  ]
  return '\n'.join(parts)


def compose_captions(
  results: Mapping[str, Any],
  pictures: Sequence[Picture],
  title: str,
  command: str,
  warnings: Sequence[str] = (),
) -> str:
  """The report of pictures with captions, in Markdown.

  Args:
    results: what `stages.evaluate_published` writes to `results.json`.
    pictures: what is shown.
    title: of the page.
    command: what produced the figures.
    warnings: what makes them doubtful.
  """
  rows = results['rows']
  names = sorted({name for row in rows for name in row['figures']})
  figures = [
    [
      row['label'],
      row['num_steps'],
      # Results of an earlier version do not say how many.
      row.get('passes', ''),
      *(
        f'{row["figures"][name]:.4g}' if name in row['figures'] else ''
        for name in names
      ),
    ]
    for row in sorted(rows, key=lambda row: row.get('passes', 0))
  ]
  parts = [
    f'# {title}\n',
    f'Made by\n\n```\n{command}\n```\n',
    '## Methods\n',
    'Methods of as many passes cost the same. All have the same captions, of'
    ' pictures that no training saw, and the same noise, of one seed.\n',
    tables.markdown_table(['schedule', 'steps', 'passes', *names], figures),
    'A number in a name is how many samples were measured. Distances are better'
    ' if they are smaller, shares if they are larger. `text_found` is the share'
    ' of images that are nearer to their caption than to others, by the'
    ' measuring network of this run, and no CLIP score.\n',
    *tables.warnings(warnings),
  ]
  for picture in pictures:
    parts += [
      f'## {picture.title}\n',
      f'![{picture.title}]({picture.file})\n',
      f'{picture.caption}\n',
    ]
  parts += [
    '## Settings\n',
    f'{published_figures.settings_list(results["settings"])}\n',
  ]
  return '\n'.join(parts)


def _how_measured(results: reading.Results) -> str:
  """Counts of seeds, samples and trainings, and what the spread can tell."""
  entries = results['methods']
  seeds = sorted({len(entry['seeds']) for entry in entries})
  samples = sorted({int(entry['samples_per_seed']) for entry in entries})
  trainings = {entry['training'] for entry in entries} - {None}
  text = (
    f'Each figure is the mean and the standard deviation over {_list(seeds)} '
    f'sampling seeds of {_list(samples)} images each.'
  )
  if len(trainings) == 1:
    text += (
      ' Learned policies were trained once: the spread does not tell how '
      'another training would come out.'
    )
  elif trainings:
    text += (
      f' Learned policies were trained {len(trainings)} times; sentences pool '
      'the trainings, tables show each.'
    )
  return text + '\n'


def _list(values: Sequence[int]) -> str:
  return ' or '.join(f'{value:,}' for value in values)
