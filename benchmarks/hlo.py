"""What a program does: operations of its trace, collectives once compiled.

XLA prints a program as computations of one instruction a line; a loop names
its body and, where it is known, how often it runs.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
import dataclasses
import math
import re
from typing import Any

import jax
import jax.extend

_TALK = (
  *('all-reduce', 'all-gather', 'all-to-all', 'ragged-all-to-all'),
  *('collective-permute', 'collective-broadcast', 'reduce-scatter'),
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
  """One line of a program."""

  opcode: str
  # Type and dimensions of each array of its result.
  shapes: tuple[tuple[str, tuple[int, ...]], ...]
  # How often a run of the program executes it; in a loop whose end depends on
  # data, how often one iteration does.
  count: int

  @property
  def bytes(self) -> int:
    """Size of its results."""
    return sum(
      math.prod(shape) * (_BYTES.get(kind) or int(re.sub(r'\D', '', kind)) // 8)
      for kind, shape in self.shapes
    )


def instructions(text: str) -> Iterator[Instruction]:
  """Every instruction of `compiled.as_text()`, fused ones included."""
  bodies: dict[str, list[tuple[str, str, str]]] = {}
  entry = name = ''
  for line in text.splitlines():
    if start := _COMPUTATION.match(line):
      name = start.group(2)
      bodies[name] = []
      entry = name if start.group(1) else entry
    elif (found := _INSTRUCTION.match(line)) and name:
      bodies[name].append((found.group(2), found.group(1), line))

  def visit(computation: str, count: int) -> Iterator[Instruction]:
    for opcode, shapes, line in bodies[computation]:
      dimensions = lambda text: tuple(int(n) for n in text.split(',') if n)
      yield Instruction(
        opcode,
        tuple((k, dimensions(x)) for k, x in _SHAPE.findall(shapes)),
        count,
      )
      trips = _TRIPS.search(line)
      for role, called in _CALLED.findall(line):
        if opcode == 'while':
          yield from visit(called, count * (int(trips[1]) if trips else 1))
        elif role in ('to_apply', 'calls') and opcode in ('call', 'fusion'):
          yield from visit(called, count)
      for called in _BRANCHES.findall(line):
        for branch in called.split(','):
          yield from visit(branch.strip().lstrip('%'), count)

  return visit(entry, 1)


def collectives(text: str) -> list[Instruction]:
  """The instructions of a program by which devices exchange data."""
  return [
    x for x in instructions(text) if x.opcode.removesuffix('-start') in _TALK
  ]


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
  """
  return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name, params = equation.primitive.name, equation.params
    inner = sum(map(_count, jax.extend.core.jaxprs_in_params(params)))
    total += inner * (params['length'] if name == 'scan' else 1)
    if name not in ('dot_general', 'conv_general_dilated'):
      continue
    left, right = (x.aval.shape for x in equation.invars[:2])
    # How many products are summed into each number of the result.
    if name == 'dot_general':
      (contracted, _), _ = params['dimension_numbers']
      summed = math.prod(left[axis] for axis in contracted)
    else:
      # All of the kernel but the axis of its outputs.
      summed = (
        math.prod(right) // right[params['dimension_numbers'].rhs_spec[0]]
      )
    total += 2 * math.prod(equation.outvars[0].aval.shape) * summed
  return total
