"""Operations of a whole program, counted in its trace, loops included.

XLA's own count takes a loop's body once.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.extend


def traced_operations(function: Any, arguments: tuple[Any, ...]) -> int:
  """Twice the multiply-adds of all matrix products and convolutions.

  Loops count as often as they run; those that run until data say so, once.
  Taps of convolutions on zero padding are counted.

  Args:
    function: to be traced, not run.
    arguments: shapes.
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
  total = 0
  for equation in jaxpr.eqns:
    inner = sum(
      _count(inner)
      for inner in jax.extend.core.jaxprs_in_params(equation.params)
    )
    name = equation.primitive.name
    total += inner * (equation.params['length'] if name == 'scan' else 1)
    if name in ('dot_general', 'conv_general_dilated'):
      result = math.prod(equation.outvars[0].aval.shape)
      total += 2 * result * _products(name, equation)
  return total


def _products(name: str, equation: Any) -> int:
  """How many products are summed into each number of the result."""
  left, right = (x.aval.shape for x in equation.invars[:2])
  numbers = equation.params['dimension_numbers']
  if name == 'dot_general':
    (contracted, _), _ = numbers
    return math.prod(left[axis] for axis in contracted)
  # All of the kernel but the axis of its outputs.
  return math.prod(right) // right[numbers.rhs_spec[0]]
