"""What a program does: operations of its trace, collectives once compiled.

XLA prints a program as computations of one instruction a line; a loop names
its body and, where it is known, how often it runs.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import Any

import jax
import jax.extend

COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
  'reduce-scatter',
  'ragged-all-to-all',
)

_BYTES = {'pred': 1, 'bf16': 2}
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
# name = result opcode(operands), attributes
_INSTRUCTION = re.compile(
  r'^\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][\w\-]*)\('
)
_SHAPE = re.compile(r'\b(pred|bf16|[suf]\d+|c\d+)\[([\d,]*)\]')
_CALLED = re.compile(r'\b(body|condition|to_apply|calls)=%?([\w.\-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a program.

  Attributes:
    opcode: what it does.
    shapes: type and dimensions of each array of its result.
    count: how often a run of the program executes it; that of one iteration,
      inside a loop whose end depends on data.
    exact: whether it is inside no such loop.
  """

  opcode: str
  shapes: tuple[tuple[str, tuple[int, ...]], ...]
  count: int
  exact: bool

  @property
  def bytes(self) -> int:
    """Size of its results."""
    return sum(
      math.prod(shape) * (_BYTES.get(kind) or int(re.sub(r'\D', '', kind)) // 8)
      for kind, shape in self.shapes
    )

  @property
  def is_collective(self) -> bool:
    """Whether devices talk."""
    return self.opcode.removesuffix('-start') in COLLECTIVES


def instructions(text: str) -> list[Instruction]:
  """Every instruction that a program executes, fused ones included.

  Args:
    text: of `compiled.as_text()`.
  """
  bodies: dict[str, list[tuple[str, str, str]]] = {}
  entry = name = ''
  for line in text.splitlines():
    start = _COMPUTATION.match(line)
    if start:
      name = start.group(2)
      bodies[name] = []
      entry = name if start.group(1) else entry
      continue
    found = _INSTRUCTION.match(line)
    if found and name:
      bodies[name].append((found.group(2), found.group(1), line))
  result: list[Instruction] = []

  def visit(computation: str, count: int, exact: bool) -> None:
    for opcode, shapes, line in bodies[computation]:
      instruction = Instruction(
        opcode,
        tuple(
          (kind, tuple(int(n) for n in dims.split(',') if n))
          for kind, dims in _SHAPE.findall(shapes)
        ),
        count,
        exact,
      )
      result.append(instruction)
      trips = _TRIPS.search(line)
      for role, called in _CALLED.findall(line):
        if opcode == 'while':
          times = int(trips.group(1)) if trips else 1
          visit(called, count * times, exact and bool(trips))
        elif role in ('to_apply', 'calls') and opcode in ('call', 'fusion'):
          visit(called, count, exact)
      for called in _BRANCHES.findall(line):
        for branch in called.split(','):
          visit(branch.strip().lstrip('%'), count, exact)

  visit(entry, 1, True)
  return result


def collectives(text: str) -> list[Instruction]:
  """The instructions of a program by which devices exchange data."""
  return [x for x in instructions(text) if x.is_collective]


def opcodes(text: str) -> collections.Counter[str]:
  """How many instructions of each kind a program has, loops unrolled."""
  total: collections.Counter[str] = collections.Counter()
  for instruction in instructions(text):
    total[instruction.opcode] += instruction.count
  return total


def traced_operations(function: Any, arguments: tuple[Any, ...]) -> int:
  """Twice the multiply-adds of all matrix products and convolutions.

  XLA's own count takes a loop's body once. Here loops count as often as they
  run, those that run until data say so once. Taps of convolutions on zero
  padding are counted.

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
