"""Kinds of rules for config fields, and the error that names all mistakes.

A rule says in words what a field may hold, and decides whether a value is that:

  integer(1, 512)                          a count
  between(0.0, 1.0, below_high=True)       a rate at which learning still works
  choice('cosine', 'beta')                 a name
  tuple_of(integer(1, 4096), length=2)     several of them

`field_rules` holds the rule of every field; `check` applies a table of rules to
a config, runs the checks that join several fields, and raises one error that
lists everything that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import os
import re
from typing import Any, TypeAlias

import ml_collections

from adanat_jax.decoding import schedules, tables
from adanat_jax.errors import ConfigError, UserError, shown
from adanat_jax.sampling import requests

Config: TypeAlias = ml_collections.ConfigDict

# What Linux allows of a path, and of a name in it, in bytes.
_LONGEST_PATH = 4095
_LONGEST_NAME = 255
_CONTROL = re.compile(r'[\x00-\x1f\x7f]')
# What names a file with a table, and a user's own policy.
TABLE_SUFFIXES = ('.json', '.yaml', '.yml')
ATTRIBUTE = re.compile(r'[A-Za-z_][\w.]*:[A-Za-z_]\w*')
# Halves of characters, which no file takes.
_SURROGATE = re.compile(r'[\ud800-\udfff]')
# Fields of a missing group that a message names.
_MOST_NAMES = 20


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a field may hold.

  Attributes:
    allowed: the allowed values in words, read after 'give', e.g.
      'an integer from 1 to 512'.
    accepts: says whether a value is allowed; never raises.
    is_path: whether `~` at the beginning stands for the home directory.
  """

  allowed: str
  accepts: Callable[[Any], bool]
  is_path: bool = False


def check(
  config: Config,
  rules: Mapping[str, Rule],
  checks: Iterable[Callable[[Config], Iterable[str] | None]] = (),
  required: Iterable[str] = (),
) -> None:
  """Finds everything that is wrong with a config.

  Args:
    config: fields without a rule are not looked at.
    rules: the rule of each field, by its dotted name; fields may be missing.
    checks: functions that yield what is wrong with several fields together, a
      line each, or raise UserError. Their config lacks the fields that are
      missing or break their rule; a check that needs one of those ends there.
    required: dotted names of fields that must be there.

  Raises:
    ConfigError: listing every mistake once, fields before checks.
  """
  wrong = _missing(config, required, rules) | _broken(config, rules)
  sound = _without(config, wrong) if wrong else config
  problems: list[str] = []
  for several in checks:
    try:
      for problem in several(sound) or ():
        problems.append(problem)
    except UserError as error:
      problems.extend(error.problems)
    except (AttributeError, KeyError):
      if not wrong:
        raise
  found = [p for p in problems if not _names_any(p, wrong)]
  if found := _distinct([*wrong.values(), *found]):
    raise ConfigError(found)


def choice(*options: str) -> Rule:
  """One of `options`."""
  allowed = ', '.join(option or "''" for option in options)
  return Rule(
    f'one of {allowed}',
    lambda value: isinstance(value, str) and value in options,
  )


def schedule(*options: str) -> Rule:
  """One of `options`, or what `named_schedules` finds a schedule by.

  With 'learned' among the options it may have parameters, too.
  """
  allowed = ', '.join((*options, *schedules.SCHEDULES))
  return Rule(
    f'one of {allowed}, with parameters as in entropy_bound(bound=0.5);'
    ' module:name of a policy, or a table in a .json or .yaml file',
    lambda value: (
      isinstance(value, str)
      and (
        value in options
        or _is_schedule(value)
        or ('learned' in options and _is_learned(value))
      )
    ),
  )


def curve(*options: str) -> Rule:
  """One of `options`, or a mask-ratio curve."""
  return Rule(
    f'one of {", ".join((*options, *tables.CURVES))}',
    lambda value: (
      isinstance(value, str) and (value in options or tables.is_curve(value))
    ),
  )


def _is_learned(name: str) -> bool:
  try:
    return requests.learned_options(name) is not None
  except UserError:
    return False


def _is_schedule(name: str) -> bool:
  """Whether a text may name one; files and modules are not read."""
  if name.endswith(TABLE_SUFFIXES) or ATTRIBUTE.fullmatch(name):
    return True
  try:
    schedules.parse(name)
  except UserError:
    return False
  return True


def integer(low: int, high: int, step: int = 1) -> Rule:
  """An integer from `low` to `high`, both included.

  With a step of 2 only even integers, or odd ones, as `low` is.
  """
  kind = ('an even integer', 'an odd integer')[low % 2]
  return Rule(
    f'{"an integer" if step == 1 else kind} from {low} to {high}',
    lambda value: _is_int(value) and value in range(low, high + 1, step),
  )


def between(
  low: float, high: float, *, above_low: bool = False, below_high: bool = False
) -> Rule:
  """A number from `low` to `high`, both included unless told otherwise.

  `above_low` refuses `low` itself, e.g. a learning rate of 0; `below_high`
  refuses `high`, e.g. a decay of 1, with which an average never moves.
  """
  first = f'above {low}, ' if above_low else f'from {low} to '
  last = 'below ' if below_high else 'at most ' if above_low else ''
  return Rule(
    f'a number {first}{last}{high}',
    # Comparisons with nan are false.
    lambda value: (
      (_is_int(value) or isinstance(value, float))
      and low <= value <= high
      and not (above_low and value == low)
      and not (below_high and value == high)
    ),
  )


def zero_or(rule: Rule) -> Rule:
  """0, which switches something off, or what `rule` allows."""
  return Rule(
    f'0 or {rule.allowed}',
    lambda value: _is_int(value) and value == 0 or rule.accepts(value),
  )


def text(length: int) -> Rule:
  """A text of at most `length` characters, which may be empty."""
  return Rule(
    f'a text of at most {length} characters, none of them a control character',
    lambda value: (
      isinstance(value, str)
      and len(value) <= length
      and not _CONTROL.search(value)
      and not _SURROGATE.search(value)
    ),
  )


def path(suffix: str = '') -> Rule:
  """A path that a file system can hold, or an empty text.

  It ends in `suffix`, e.g. '.npz'. Whether it exists is not checked here.
  """
  ending = f' that ends in {suffix}' if suffix else ''

  def accepts(value: Any) -> bool:
    if not isinstance(value, str):
      return False
    try:
      encoded = os.fsencode(value)
    except UnicodeEncodeError:
      return False
    return (
      len(encoded) <= _LONGEST_PATH
      and all(len(name) <= _LONGEST_NAME for name in encoded.split(b'/'))
      and not _CONTROL.search(value)
      and (not value or value.endswith(suffix))
    )

  return Rule(
    f'a path{ending}, of at most {_LONGEST_PATH} bytes and {_LONGEST_NAME} a'
    ' name, without control characters; or leave it empty',
    accepts,
    is_path=True,
  )


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


def some_of(rule: Rule, *, most: int = 100, repeated: bool = False) -> Rule:
  """A tuple of 1 to `most` elements that keep `rule`; maybe `repeated` ones."""
  elements = tuple_of(rule)
  twice = '' if repeated else ', none twice'
  return Rule(
    f'a tuple of at least one element and at most {most}{twice}, each'
    f' {rule.allowed}',
    lambda value: (
      elements.accepts(value)
      and 0 < len(value) <= most
      and (repeated or len(value) == len(set(value)))
    ),
  )


def optional(rule: Rule) -> Rule:
  """What `rule` allows, or nothing (an unset placeholder)."""
  return Rule(
    f'{rule.allowed}, or leave it unset',
    lambda value: value is None or rule.accepts(value),
  )


def none_or(rule: Rule) -> Rule:
  """An empty tuple, or what `rule` allows."""
  return Rule(
    f'() for none, or {rule.allowed}',
    lambda value: value == () or rule.accepts(value),
  )


def steps(most: int) -> Rule:
  """The first step of some and the one after the last, at most `most`."""
  pair = tuple_of(integer(0, most), length=2)
  return Rule(
    f'{pair.allowed}, the first not above the second',
    lambda value: pair.accepts(value) and value[0] <= value[1],
  )


colour_or_none = Rule(
  'a tuple of 3 integers from 0 to 255 (red, green, blue), or () for none',
  lambda value: (
    isinstance(value, tuple)
    and len(value) in (0, 3)
    and all(_is_int(item) and 0 <= item <= 255 for item in value)
  ),
)
label = Rule(
  'a class id or name, or a caption of at most 2000 characters',
  lambda value: (
    (_is_int(value) and 0 <= value <= 10**6)
    or (bool(value) and text(2000).accepts(value))
  ),
)
project = Rule(
  'letters, digits, and _ . -, at most 128, or leave it empty',
  lambda value: (
    isinstance(value, str) and bool(re.fullmatch(r'[\w.-]{0,128}', value))
  ),
)
boolean = Rule('true or false', lambda value: isinstance(value, bool))


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _find(config: Config, name: str) -> tuple[str, Any]:
  """The value of a field, or the first part of its name that is not there.

  Returns `('', value)`, or the dotted name of what is missing, and None.
  """
  value: Any = config
  parts = name.split('.')
  for depth, part in enumerate(parts):
    if not isinstance(value, ml_collections.ConfigDict) or part not in value:
      return '.'.join(parts[: depth + 1]), None
    value = value[part]
  return '', value


def _missing(
  config: Config, required: Iterable[str], rules: Mapping[str, Rule]
) -> dict[str, str]:
  """What to say of required fields, or whole groups, that are not there."""
  found = {}
  for name in required:
    absent, _ = _find(config, name)
    if absent:
      known = [other for other in rules if other.startswith(f'{absent}.')]
      if len(known) > _MOST_NAMES:
        known[_MOST_NAMES:] = ['...']
      allowed = (
        f'a group of {", ".join(known)}' if known else rules[name].allowed
      )
      found[absent] = f'config.{absent} is missing: give {allowed}'
  return found


def _broken(config: Config, rules: Mapping[str, Rule]) -> dict[str, str]:
  """What to say of fields that break their rule, by name."""
  found = {}
  for name, rule in rules.items():
    absent, value = _find(config, name)
    if not absent and not rule.accepts(value):
      found[name] = (
        f'config.{name}={shown(value)} is not allowed: give {rule.allowed}'
      )
  return found


def _without(config: Config, names: Iterable[str]) -> Config:
  """A copy of a config that lacks some of its fields."""
  copy = Config(config.to_dict())
  for name in names:
    group, _, last = name.rpartition('.')
    absent, node = _find(copy, group) if group else ('', copy)
    if not absent and isinstance(node, Config) and last in node:
      del node[last]
  return copy


def _names_any(problem: str, names: Iterable[str]) -> bool:
  """Whether a message is about one of these fields."""
  return any(
    re.search(rf'config\.{re.escape(name)}(?!\w)', problem) for name in names
  )


def _distinct(problems: list[str]) -> list[str]:
  """Each problem once; of one that is told at more length the short form."""
  kept: list[str] = []
  for problem in sorted(dict.fromkeys(problems), key=len):
    if not any(problem.startswith(shorter) for shorter in kept):
      kept.append(problem)
  return sorted(kept, key=problems.index)
