"""What `--help` says of a config: its fields, with the comments of its source.

A config file assigns fields, often through a shorter name of their group
(`nat = config.nat`). A comment above an assignment explains that field and
those that follow without one. Of several files that assign a field the one that
the others build on explains it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
import pathlib
import re
from typing import Any

from adanat_jax.experiment import config as config_lib

# How a config file names the one that it builds on.
_BASE = re.compile(r"with_name\('(.*?\.py)'\)")


def about(source: str) -> str:
  """What a config file says of itself."""
  path, _ = config_lib.find(source)
  return ast.get_docstring(ast.parse(path.read_text())) or ''


def fields(values: Mapping[str, Any], source: str) -> str:
  """All fields of a config, group by group, as flags under their comments.

  Args:
    values: the value of each field by its dotted name.
    source: `NAME[:preset]` or `FILE[:preset]`, where it comes from.
  """
  comments: dict[str, list[str]] = {}
  for name, above in _assigned(config_lib.find(source)[0]):
    comments.setdefault(name, []).extend(above)
  comments[''] = []  # What no file assigns by name.
  members: dict[str, dict[str, Any]] = {name: {} for name in comments}
  for field, value in values.items():
    groups = field.split('.')
    while '.'.join(groups) not in members:
      groups.pop()
    members['.'.join(groups)][field] = value
  parts: dict[str, list[str]] = {'': []}
  comment: list[str] = []
  for name, above in comments.items():
    for field, value in members[name].items():
      group = field.partition('.')[0] if '.' in field else ''
      parts.setdefault(group, []).extend(
        [*comment, *above, _as_flag(field, value)]
      )
      comment = above = []
    # A comment above a group is for its first field.
    is_group = any(field.startswith(f'{name}.') for field in values)
    comment = [*comment, *above] if is_group else []
  return '\n\n'.join('\n'.join(lines) for lines in parts.values() if lines)


def _as_flag(name: str, value: Any) -> str:
  if value is None:
    return f'--config.{name} is unset'
  if isinstance(value, tuple):
    value = ','.join(map(str, value)) or '()'
  return f'--config.{name}={value}'


def _assigned(path: pathlib.Path) -> Iterator[tuple[str, list[str]]]:
  """Yields what a file, and before it those below it, assign.

  Yields:
    The dotted name of a field or group, and the comment above it, which may
    stand above a shorter name that the file gives to a group first.
  """
  source = path.read_text()
  for base in _BASE.findall(source):
    yield from _assigned(path.with_name(base))
  lines = source.splitlines()
  for function in ast.parse(source).body:
    groups, comment = {'config': ''}, list[str]()
    for node in getattr(function, 'body', ()):
      if not isinstance(node, ast.Assign):
        continue
      comment += _comment_above(lines, node.lineno)
      names = [_dotted(target, groups) for target in node.targets]
      name = next(filter(None, names), None) or _dotted(node.value, groups)
      if name is None:
        continue
      for target in node.targets:
        if isinstance(target, ast.Name):
          groups[target.id] = name
      if any(names):
        yield name, comment
        comment = []


def _dotted(node: ast.AST, groups: dict[str, str]) -> str | None:
  """The field that `config.nat.width`, or `nat.width`, stands for."""
  if isinstance(node, ast.Name):
    return groups.get(node.id)
  if not isinstance(node, ast.Attribute):
    return None
  group = _dotted(node.value, groups)
  return None if group is None else f'{group}.{node.attr}'.lstrip('.')


def _comment_above(lines: list[str], number: int) -> list[str]:
  """The lines of a comment that ends above a line, which counts from 1."""
  first = number - 1
  while lines[first - 1].lstrip().startswith('#'):
    first -= 1
  return [line.strip() for line in lines[first : number - 1]]
