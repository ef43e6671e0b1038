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
  r'^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\(([^)]*)'
)
# A layout may name a memory within the processor, as the TPU's S(1).
_SHAPE = re.compile(
  r'\b(pred|bf16|[suf]\d+|c\d+)\[([\d,]*)\](\{[^}]*S\([1-9]\)[^}]*\})?'
)
_NAME = re.compile(r'%([\w.\-]+)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_LIMIT = re.compile(r' = s32\[\]\S* constant\((\d+)\)')
# What is begun here gives its operand back, too. Which of the two is made:
_BEGUN = {'copy-start': 0, 'slice-start': 1}
# What moves nothing, or is counted where it begins.
_FREE = {
  *('parameter', 'tuple', 'get-tuple-element', 'bitcast', 'constant'),
  *('while', 'conditional', 'call', 'after-all'),
  *('copy-done', 'slice-done', 'async-done', 'all-reduce-done'),
  *('all-gather-done', 'collective-permute-done'),
}
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
  fused: bool = False  # Whether its result is no array in memory.
  moved: int = 0  # Bytes that it reads from memory and writes to it, at most.
  target: str = ''  # What a custom call calls.

  @property
  def bytes(self) -> int:
    """Size of its results."""
    return sum(size_of(*shape) for shape in self.shapes)


def size_of(kind: str, shape: tuple[int, ...]) -> int:
  """Bytes of an array of a type, as XLA names it, and dimensions."""
  return math.prod(shape) * (
    _BYTES.get(kind) or max(1, int(re.sub(r'\D', '', kind)) // 8)
  )


def instructions(text: str) -> Iterator[Instruction]:
  """Every instruction of `compiled.as_text()`, fused ones included."""
  bodies: dict[str, list[tuple[str, str, str, str, str]]] = {}
  entry = name = ''
  for line in text.splitlines():
    if start := _COMPUTATION.match(line):
      name = start.group(2)
      bodies[name] = []
      entry = name if start.group(1) else entry
    elif (found := _INSTRUCTION.match(line)) and name:
      bodies[name].append((*found.groups(), line))

  def visit(
    computation: str, count: int, fused: bool = False
  ) -> Iterator[Instruction]:
    in_memory: dict[str, int] = {}
    for name, shapes, opcode, operands, line in bodies[computation]:
      found = [
        (kind, tuple(int(n) for n in text.split(',') if n), bool(inside))
        for kind, text, inside in _SHAPE.findall(shapes)
      ]
      in_memory[name] = sum(
        size_of(kind, shape) for kind, shape, inside in found if not inside
      )
      moved = 0
      if opcode in _BEGUN:
        # A slice reads no more of its operand than it makes.
        size = size_of(*found[_BEGUN[opcode]][:2])
        moved = size * sum(not inside for *_, inside in found[:2])
      elif not fused and opcode not in _FREE:
        moved = in_memory[name] + sum(
          in_memory.get(operand, 0) for operand in _NAME.findall(operands)
        )
      target = _TARGET.search(line) if opcode == 'custom-call' else None
      yield Instruction(
        opcode,
        tuple((kind, shape) for kind, shape, _ in found),
        count,
        fused,
        moved,
        target[1] if target else '',
      )
      called = dict(_CALLED.findall(line))
      if opcode == 'while':
        trips = _TRIPS.search(line) or _limit(bodies[called['condition']])
        yield from visit(
          called['body'], count * (int(trips[1]) if trips else 1)
        )
      elif opcode in ('call', 'fusion'):
        inner = called.get('to_apply') or called['calls']
        yield from visit(inner, count, fused or opcode == 'fusion')
      for branches in _BRANCHES.findall(line):
        for branch in branches.split(','):
          yield from visit(branch.strip().lstrip('%'), count, fused)

  return visit(entry, 1)


def _limit(condition: list[tuple[str, ...]]) -> re.Match[str] | None:
  """The constant of a loop's condition `i < n`, where it is no more than that.

  The TPU's compiler does not say how often a loop runs.
  """
  lines = [line for *_, line in condition]
  found = [match for line in lines if (match := _LIMIT.search(line))]
  is_less = any(opcode == 'compare' for _, _, opcode, *_ in condition)
  return found[0] if len(found) == 1 and is_less else None


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
