"""Rules for the values of config fields, and the error for breaking one.

A stage states at its top what it can work with:

  check(config, {
    'nat.width': positive_int,
    'nat.dropout_rate': between(0.0, 1.0),
    'nat.mask_ratio': choice('cosine', 'beta'),
    'policy.network.mlp_widths': tuple_of(positive_int, length=2),
  })

and a value that breaks a rule is one line: the field, what was given, what is
allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import ml_collections

from adanat_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a field may hold.

  Attributes:
    allowed: the allowed values in words, read after 'give', e.g.
      'a positive integer'.
    accepts: says whether a value is allowed; never raises.
  """

  allowed: str
  accepts: Callable[[Any], bool]


def check(config: ml_collections.ConfigDict, rules: Mapping[str, Rule]) -> None:
  """Checks fields of a config, in the order of `rules`.

  Args:
    config: the config.
    rules: the rule of each field, by its dotted name.

  Raises:
    UserError: a field is missing or its value is not allowed.
  """
  for name, rule in rules.items():
    value: Any = config
    for part in name.split('.'):
      if not isinstance(value, ml_collections.ConfigDict) or part not in value:
        raise UserError(f'config.{name} is missing: give {rule.allowed}')
      value = value[part]
    if not rule.accepts(value):
      raise UserError(
        f'config.{name}={value!r} is not allowed: give {rule.allowed}'
      )


def choice(*options: Any) -> Rule:
  """One of the given values."""
  allowed = ', '.join(str(option) for option in options)
  return Rule(f'one of {allowed}', lambda value: value in options)


def int_at_least(low: int) -> Rule:
  """An integer, `low` or more."""
  return Rule(
    f'an integer, {low} or more', lambda value: _is_int(value) and value >= low
  )


def between(low: float, high: float) -> Rule:
  """A finite number from `low` to `high`, both included."""
  if math.isinf(high):
    words = f'a finite number, {low} or more'
  else:
    words = f'a number from {low} to {high}'
  return Rule(words, lambda value: _is_number(value) and low <= value <= high)


def tuple_of(rule: Rule, length: int | None = None) -> Rule:
  """A tuple whose elements all keep `rule`, of one length if that is given."""
  many = 'elements' if length is None else f'{length} elements'
  return Rule(
    f'a tuple of {many}, each {rule.allowed}',
    lambda value: (
      isinstance(value, tuple)
      and length in (None, len(value))
      and all(rule.accepts(item) for item in value)
    ),
  )


def some_of(rule: Rule) -> Rule:
  """A tuple of at least one element that keeps `rule`, none of them twice."""
  elements = tuple_of(rule)
  return Rule(
    f'a tuple of at least one element and none twice, each {rule.allowed}',
    lambda value: elements.accepts(value) and 0 < len(value) == len(set(value)),
  )


def optional(rule: Rule) -> Rule:
  """What `rule` allows, or nothing (an unset placeholder)."""
  return Rule(
    f'{rule.allowed}, or leave it unset',
    lambda value: value is None or rule.accepts(value),
  )


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


positive_int = int_at_least(1)
odd_int = Rule(
  'an odd integer, 1 or more',
  lambda value: _is_int(value) and value > 0 and value % 2 == 1,
)
non_negative = between(0.0, math.inf)
positive = Rule(
  'a finite number above 0', lambda value: _is_number(value) and value > 0
)
boolean = Rule('true or false', lambda value: isinstance(value, bool))
