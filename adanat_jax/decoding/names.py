"""Parses names with parameters, such as `'halton(rows=4)'`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
import math
from typing import Any

from adanat_jax.errors import UserError


def parameters(
  name: str, defaults: Mapping[str, Any], what: str = 'schedule'
) -> dict[str, Any]:
  """The parameters that a name gives.

  Args:
    name: `'base(parameter=value, ...)'`.
    defaults: of all parameters; a value must be of its default's kind.
    what: the name is of, for the message.

  Raises:
    UserError: for what cannot be read, and for unknown parameters.
  """
  base = name.partition('(')[0]
  allowed = ', '.join(f'{k}={v!r}' for k, v in defaults.items())
  mistake = UserError(
    f'the {what} {name!r} cannot be read; write {base}, or {base}(name=value,'
    f' ...) with its parameters: {allowed}'
  )
  try:
    call = ast.parse('_' + name[len(base) :], mode='eval').body
    if not isinstance(call, ast.Call) or call.args:
      raise mistake
    # `**` has no name.
    given = {k.arg or '**': ast.literal_eval(k.value) for k in call.keywords}
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    raise mistake from None
  for key, value in given.items():
    if key not in defaults or not _alike(value, defaults[key]):
      raise mistake
  return given


def _alike(value: Any, default: Any) -> bool:
  """Whether a parameter may have this value, going by its default."""
  if isinstance(default, bool | str | tuple):
    return isinstance(value, type(default))
  if isinstance(default, int):
    return type(value) is int
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value)
