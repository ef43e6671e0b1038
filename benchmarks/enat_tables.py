"""The figures of `enat_time` as tables of text or Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tables


def render(result: Mapping[str, Any], markdown: bool) -> str:
  """All tables."""
  machine = result['machine']
  parts = [
    f'{machine["processor"]}, {machine["cores"]} cores, JAX {machine["jax"]} on'
    f' {machine["device"]}; load before: {machine["load_before"]:.1f}, after:'
    f' {result["load_after"]:.1f}'
  ]
  for row in result['subjects']:
    parts.append(
      f'{"### " if markdown else "== "}{row["label"]}\n\nBatch'
      f' {row["batch_size"]}, T = {row["num_steps"]},'
      f' {"guided" if row["guided"] else "unguided"}. Tokens that came out of'
      f' the buckets as of the masks: {row["same_tokens_as_masks"]:.2%}.'
    )
    make = lambda header, rows: tables.table(header, rows, markdown)
    parts.append(make(*_ways_table(row)))
    parts.append(make(*_found_table(row)))
    parts.append(make(*_buckets_table(row)))
  return '\n\n'.join(parts)


def _ways_table(row: Mapping[str, Any]) -> tuple[Any, Any]:
  header = (
    'way',
    'an image',
    'lowest to highest',
    'of all',
    'lowest to highest',
    'operations',
    'of all',
    'of processors',
    'of all',
    'to compile',
  )
  whole = row['ways']['all']['operations_an_image']
  rows = []
  for way, values in row['ways'].items():
    seconds, share = values['seconds_an_image'], values['of_all_tokens']
    count = values['operations_an_image']
    busy = values['processor_seconds_an_image']['median']
    rows.append(
      [
        way,
        f'{seconds["median"]:.3g} s',
        f'{seconds["low"]:.3g} to {seconds["high"]:.3g}',
        f'{share["median"]:.3f}',
        f'{share["low"]:.3f} to {share["high"]:.3f}',
        f'{count / 1e9:.4g} G',
        f'{count / whole:.3f}',
        f'{busy:.3g} s',
        f'{values["processor_of_all_tokens"]["median"]:.3f}',
        f'{values["seconds_to_compile"]:.0f} s',
      ]
    )
  return header, rows


def _found_table(row: Mapping[str, Any]) -> tuple[Any, Any]:
  kinds = ('new', 'masked')
  parts = ('min', 'mean', 'max', 'std')
  header = ('step', *(f'{kind}: {part}' for kind in kinds for part in parts))
  rows = [
    [
      str(values['step']),
      *(f'{values[kind][part]:.3g}' for kind in kinds for part in parts),
    ]
    for values in row['found']
  ]
  return header, rows


def _buckets_table(row: Mapping[str, Any]) -> tuple[Any, Any]:
  header = ('reused', 'new', 'masked', 'of all', 'taken', 'at steps')
  rows = [
    [
      *(map(str, values['counts']) if values['counts'] else ['any'] * 3),
      f'{values["of_all_tokens"]:.3f}',
      str(sum(values['steps'])),
      ' '.join(map(str, values['steps'])),
    ]
    for values in row['buckets']
  ]
  return header, rows
