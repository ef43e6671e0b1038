"""Runs the cells of a notebook in this process, without Jupyter.

python tests/support/notebooks.py examples/quickstart.ipynb

writes what they show into the file, small: texts, and the pictures of objects
that have one.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import pathlib
import sys
from typing import Any


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
  """Runs all code cells, replaces their outputs, and returns their names."""
  names: dict[str, Any] = {}
  for number, cell in enumerate(notebook['cells']):
    if cell['cell_type'] != 'code':
      continue
    body = ast.parse(''.join(cell['source'])).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    where = f'cell {number}'
    shown = None
    with contextlib.redirect_stdout(io.StringIO()) as said:
      exec(compile(ast.Module(body, []), where, 'exec'), names)
      if last is not None:
        shown = eval(compile(ast.Expression(last.value), where, 'eval'), names)
    cell['outputs'] = [*_outputs(said.getvalue(), shown)]
  return names


def _outputs(said: str, shown: Any) -> Any:
  if said:
    yield {'output_type': 'stream', 'name': 'stdout', 'text': _lines(said)}
  if shown is None:
    return
  data = {'text/plain': _lines(repr(shown)[:500])}
  if hasattr(shown, '_repr_png_'):
    picture = base64.b64encode(shown._repr_png_()).decode()
    data = {'image/png': picture, 'text/plain': [f'<{type(shown).__name__}>']}
  yield {
    'output_type': 'execute_result',
    'execution_count': None,
    'metadata': {},
    'data': data,
  }


def _lines(text: str) -> list[str]:
  return text.splitlines(keepends=True)


if __name__ == '__main__':
  path = pathlib.Path(sys.argv[1])
  content = json.loads(path.read_text())
  execute(content)
  path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + '\n')
