"""Command line, tables and files of the benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any


def parser(doc: str | None) -> argparse.ArgumentParser:
  """A command line under the first line of a docstring, with `--output`."""
  result = argparse.ArgumentParser(description=(doc or '').partition('\n')[0])
  result.add_argument('--output', type=pathlib.Path, help='JSON file to write.')
  return result


def finish(figures: Any, text: str, output: pathlib.Path | None) -> None:
  """Prints the tables, and writes the figures if asked to."""
  print(text)
  if output:
    output.write_text(json.dumps(figures, indent=1) + '\n')


def machine(found: Mapping[str, Any]) -> str:
  """What `timing.machine` found, as a line."""
  return (
    f'{found["processor"]}, {found["cores"]} cores, JAX {found["jax"]} on'
    f' {found["device"]}; load before: {found["load_before"]:.1f}'
  )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Rows under a header in Markdown, right-aligned."""
  cells = [list(map(str, row)) for row in [header, *rows]]
  # A Markdown rule needs two characters.
  widths = [max(2, *map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
    for row in cells
  ]
  lines.insert(1, ['-' * (width - 1) + ':' for width in widths])
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def number(value: float) -> str:
  """Three significant digits, no exponent."""
  return f'{value:.0f}' if value >= 100 else f'{value:.3g}'


def operations(value: float) -> str:
  """Operations in thousands of millions, or in millions."""
  unit, name = (1e9, 'G') if value >= 1e9 else (1e6, 'M')
  return f'{number(value / unit)} {name}'
