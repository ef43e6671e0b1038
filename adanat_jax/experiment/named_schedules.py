"""Schedules by what a config calls them: a name, a function, or a file.

halton(randomize=False)       an entry of `decoding.schedules.SCHEDULES`
my_schedules:sharper          what a module of the user has under a name
runs/digits/search/best.json  a table in a file, JSON or YAML
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pathlib
import re
import sys
from typing import Any

import yaml

from adanat_jax.decoding import guidance, schedules, step, tables
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.errors import UserError, shown
from adanat_jax.experiment import fields
from adanat_jax.runtime import files
from adanat_jax.sampling import requests

# AutoNAT's names of the four lists (LeapLabTHU/ImprovedNAT). Two of them end
# one step early: the last step masks nothing.
_AUTONAT = {
  'manual_gen_ratios': 'mask_ratio',
  'manual_temp': 'masking_temperature',
  'manual_samp_temp': 'sampling_temperature',
  'manual_cfg': 'guidance_scale',
}


def make(
  name: str, num_steps: int, num_tokens: int, columns: int = 0
) -> Schedule:
  """The schedule that a config calls by this name.

  Args:
    name: see above. A module is looked for in the working directory, too, and
      has a policy function `(step, observation, keys, carry) -> (values, aux,
      carry)`, a table, a `Schedule`, an agent, or a function `(num_steps,
      num_tokens)` that makes one of these.
    num_steps: T.
    num_tokens: N.
    columns: of the token grid; see `schedules.make`.

  Raises:
    UserError: for an unknown name, and for what is no schedule of T steps.
  """
  if name.endswith(fields.TABLE_SUFFIXES):
    made = read_file(name)
  elif fields.ATTRIBUTE.fullmatch(name):
    found = _attribute(name)
    if _makes_schedules(found):
      found = found(num_steps, num_tokens)
    try:
      made = requests.as_schedule(found, num_steps, None)
    except UserError as error:
      raise UserError(f'{name}: {error}') from error
  else:
    return schedules.make(name, num_steps, num_tokens, columns)
  if made.num_steps != num_steps:
    raise UserError(
      f'{name} has {made.num_steps} steps, and {num_steps} were asked for'
    )
  # It becomes part of file names.
  label = made.label if made.label != made.name else name
  safe = re.sub(r'[^\w.-]+', '_', name)
  return dataclasses.replace(made, name=safe, label=label)


def read_file(path: str) -> Schedule:
  """Reads a table from a file, JSON or YAML.

  Args:
    path: a file such as `{"mask_ratio": [0.9, 0.5, 0.0],
      "sampling_temperature": [1, 1, 1], "masking_temperature": [2, 1, 0],
      "guidance_scale": [0, 0.5, 1]}`. It may also say `"guided": false` or,
      step by step, `[false, true, true]`, `"options": {"order": "entropy"}`
      (see `StepOptions`), `"priority"` (N numbers) and `"label"`. AutoNAT's
      files are read as they are.

  Raises:
    UserError: naming what is wrong with the file.
  """
  given = _content(path)
  options, guided = given.get('options', {}), given.get('guided', True)
  if {*_AUTONAT} <= {*given}:
    options = dataclasses.asdict(step.AUTONAT)
    given = {ours: given[theirs] for theirs, ours in _AUTONAT.items()}
    try:
      num_steps = len(given['sampling_temperature'])
      for key in ('mask_ratio', 'masking_temperature'):
        given[key] = [*given[key], *[0.0] * (num_steps - len(given[key]))]
    except TypeError:
      raise UserError(f'{path}: give lists of numbers') from None
  chosen = _options(path, options)
  in_nats = chosen.commit == 'entropy_bound'
  table = tables.checked_table(given, path, in_nats=in_nats)
  guided = guidance.checked(guided, len(table.mask_ratio), path)
  label = str(given.get('label', pathlib.Path(path).stem))
  priority = given.get('priority')
  if priority is not None:
    priority = tables.checked_priority(priority, path)
  return Schedule('table', table, guided, chosen, label, f'of {path}', priority)


def _content(path: str) -> dict[str, Any]:
  if path.endswith('.json'):
    return files.read_json(path)
  try:
    found = yaml.safe_load(files.read_bytes(path, 1 << 20, ''))
  except (yaml.YAMLError, RecursionError) as error:
    reason = ' '.join(str(error).split())
    raise UserError(f'{path} is no YAML: {reason}') from error
  if not isinstance(found, dict):
    raise UserError(f'{path} holds {shown(found)}; it must hold lists by name')
  return found


def _options(path: str, given: Any) -> step.StepOptions:
  """The options of a file, each of a type or value that it may have."""
  known = step.StepOptions.choices()
  if not isinstance(given, dict) or not {*given} <= {*known}:
    raise UserError(
      f'{path}: options are {shown(given)}; known are {", ".join(known)}'
    )
  for name, value in given.items():
    allowed = known[name]
    if isinstance(allowed, type):
      fits, words = type(value) is allowed, allowed.__name__
    else:
      fits, words = value in allowed, ', '.join(allowed)
    if not fits:
      raise UserError(
        f'{path}: options.{name} is {shown(value)}; allowed is {words}'
      )
  try:
    return step.StepOptions(**given)
  except UserError as error:
    raise UserError(f'{path}: {error}') from error


def _attribute(name: str) -> Any:
  module, _, attribute = name.partition(':')
  # As `python -m` looks there, and a console script does not.
  if (here := os.getcwd()) not in sys.path:
    sys.path.insert(0, here)
  try:
    return getattr(importlib.import_module(module), attribute)
  except ModuleNotFoundError as error:
    raise UserError(
      f'{name}: there is no module {error.name}; give module:name, a module in'
      ' the working directory or an installed one'
    ) from error
  except AttributeError as error:
    raise UserError(f'{name}: {error}') from error


def _makes_schedules(found: Any) -> bool:
  """Whether it is a function of (num_steps, num_tokens)."""
  if not inspect.isfunction(found):
    return False
  needed = [
    parameter
    for parameter in inspect.signature(found).parameters.values()
    if parameter.default is parameter.empty
    and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
  ]
  return len(needed) == 2
