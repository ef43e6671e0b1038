"""The benchmark's figures as tables of text or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_YES_NO = {True: 'yes', False: 'no'}


def render(result: dict[str, Any], markdown: bool) -> str:
  """All tables.

  Args:
    result: what the benchmark returns.
    markdown: for a document instead of a terminal.
  """
  parts = [_machine(result)]
  for name, model in result['models'].items():
    parts += [
      f'### {name}' if markdown else f'== {name}',
      table(
        (
          'batch',
          'T',
          'guided',
          'decoder',
          'images/s',
          'lowest to highest',
          'operations/image',
          'of the peak',
        ),
        [_sampling(row) for row in model['sampling']],
        markdown,
      ),
      table(
        (
          'batch',
          'guided',
          'NAT, a step',
          'actor',
          'share',
          'with critic',
          'share',
        ),
        [_networks(row) for row in model['networks']],
        markdown,
      ),
      table(
        ('network', 'operations a sample', "XLA's count", 'difference'),
        [_counts(*item) for item in model['operations'].items()],
        markdown,
      ),
    ]
  return '\n\n'.join(parts)


def _machine(result: dict[str, Any]) -> str:
  """The machine, its peak, and how many forwards sampling takes."""
  machine, peak = result['machine'], result['peak']
  sizes = ', '.join(
    f'{size}: {value / 1e9:.0f}' for size, value in peak['by_size'].items()
  )
  forwards = ', '.join(
    f'{row["forwards_a_sample"]} at T = {row["num_steps"]}'
    f' {"guided" if row["guided"] else "unguided"}'
    for row in result['forwards']
  )
  return (
    f'{machine["processor"]}, {machine["cores"]} cores, JAX {machine["jax"]} on'
    f' {machine["device"]}; load before: {machine["load_before"]:.1f}\n\n'
    f'Peak of float32 matrix products:'
    f' {peak["operations_per_second"] / 1e9:.0f} G operations/s ({sizes})\n\n'
    f'NAT forwards a sample, counted: {forwards}'
  )


def _sampling(row: dict[str, Any]) -> list[str]:
  speed = row['images_per_second']
  return [
    str(row['batch_size']),
    str(row['num_steps']),
    _YES_NO[row['guided']],
    _YES_NO[row['tokenizer_decoder']],
    _number(speed['median']),
    f'{_number(speed["low"])} to {_number(speed["high"])}',
    _operations(row['operations_per_image']),
    f'{row["fraction_of_peak"]["median"]:.0%}',
  ]


def _networks(row: dict[str, Any]) -> list[str]:
  return [
    str(row['batch_size']),
    _YES_NO[row['guided']],
    _milliseconds(row['nat_seconds']['median']),
    _milliseconds(row['actor_seconds']['median']),
    f'{row["actor_share"]["median"]:.2%}',
    _milliseconds(row['actor_and_critic_seconds']['median']),
    f'{row["actor_and_critic_share"]["median"]:.2%}',
  ]


def _counts(name: str, counts: dict[str, float]) -> list[str]:
  formula, xla = counts['formula'], counts['xla']
  return [
    name,
    _operations(formula),
    _operations(xla),
    f'{xla / formula - 1:+.1%}',
  ]


def _number(value: float) -> str:
  """Three significant digits, no exponent."""
  return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def _milliseconds(seconds: float) -> str:
  return f'{_number(1e3 * seconds)} ms'


def _operations(value: float) -> str:
  unit, name = (1e9, 'G') if value >= 1e9 else (1e6, 'M')
  return f'{_number(value / unit)} {name}'


def table(
  header: Sequence[str], rows: Sequence[Sequence[str]], markdown: bool
) -> str:
  """Rows under a header, right-aligned."""
  # A Markdown rule needs two characters.
  widths = [max(2, *map(len, x)) for x in zip(header, *rows, strict=True)]
  lines = [
    [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    for row in [header, *rows]
  ]
  if not markdown:
    return '\n'.join('  '.join(line) for line in lines)
  lines.insert(1, ['-' * (width - 1) + ':' for width in widths])
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
