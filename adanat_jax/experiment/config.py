"""Configs: loading a file and naming what is wrong with it.

A config is a Python file whose `get_config(preset='')` returns an
`ml_collections.ConfigDict` and whose `PRESETS` names the presets it knows. On
the command line it is `--config=FILE[:preset]`; `--config.field=value` sets a
field. `ml_collections.config_flags` does the parsing, but answers most mistakes
with a traceback; here each becomes one line, a `UserError`. So `load` reads the
file once, the fields that the command line sets are looked up in the result,
and only then absl parses that command line for real.

`experiment.field_rules` says what fields may hold; `experiment.workdir` keeps
the config of a run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import difflib
import importlib.util
import json
import math
import pathlib
import re
import traceback
import types
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from adanat_jax.errors import UserError
from adanat_jax.runtime import files

CONFIG_FILE = 'config.json'

_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)')
_ILLEGAL_VALUE = re.compile(r'flag --(?:no)?config\.([^=]+)=(.*?): ', re.DOTALL)
_EXPECTED = {
  bool: 'true or false',
  int: 'an integer such as 3',
  float: 'a number such as 0.5',
  str: 'a string',
  tuple: 'a tuple such as 1,2',
}


def load(
  source: str, overrides: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
  """Reads a config file.

  Args:
    source: `FILE` or `FILE:preset`, as given to `--config`.
    overrides: values by dotted field name, e.g. `{'nat.width': 32}`.

  Returns:
    The config, locked: fields can be changed, not added.

  Raises:
    UserError: if the file, the preset or a field is missing, the file does not
      run, or a value has another type than its field.
  """
  path, _, preset = source.partition(':')
  module = _load_module(source, pathlib.Path(path))
  presets = [name for name in getattr(module, 'PRESETS', ()) if name]
  if preset and preset not in presets:
    allowed = ', '.join(presets) or 'none, the file has no presets'
    raise UserError(
      f'--config={source}: unknown preset {preset!r}; allowed: {allowed}'
    )
  with _errors_of_file(source, path):
    config = module.get_config(preset) if preset else module.get_config()
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f'--config={source}: get_config returned {type(config).__name__}, not an'
      ' ml_collections.ConfigDict'
    )
  config.lock()
  for name, value in (overrides or {}).items():
    _check_field(config, name)
    try:
      config.update_from_flattened_dict({name: value})
    except (TypeError, ValueError) as error:
      raise _wrong_type(config, name, value) from error
  return config


def define_flag(
  flag_values: flags.FlagValues = flags.FLAGS, argv: list[str] | None = None
) -> flags.FlagHolder:
  """Defines `--config` and, while parsing, `--config.field` flags.

  The flag's value after `parse_flags` is the ConfigDict. `argv` is the command
  line that will be parsed; `sys.argv` by default.
  """
  return config_flags.DEFINE_config_file(
    'config',
    None,
    'The config, FILE or FILE:preset; --config.field=value sets a field.',
    flag_values=flag_values,
    sys_argv=argv,
  )


def parse_flags(
  argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Parses a command line; what `absl.app.run` takes as `flags_parser`.

  Returns the program's name alone: other arguments are refused.

  Raises:
    UserError: any mistake in the flags, the config file or its fields.
  """
  source = _config_argument(argv)
  config = None if source is None else load(source)
  for name in _override_names(argv):
    if config is None:
      raise UserError(f'--config.{name} needs --config=FILE before it')
    _check_field(config, name)
  try:
    rest = flag_values(list(argv))
  except (flags.Error, ValueError, TypeError, LookupError) as error:
    illegal = _ILLEGAL_VALUE.search(str(error))
    if illegal and config is not None:
      raise _wrong_type(config, *illegal.groups()) from error
    raise UserError(' '.join(str(error).split())) from error
  if len(rest) > 1:
    raise UserError(
      f'{rest[1]!r} is not a flag; a field is set by --config.field=value'
    )
  if config is not None:
    for name, value in overrides_of(flag_values).items():
      _check_override(config, name, value)
  return rest


def overrides_of(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
  """The fields set on the command line, by dotted name, after parsing."""
  return dict(config_flags.get_override_values(flag_values['config']))


def source_of(flag_values: flags.FlagValues = flags.FLAGS) -> str:
  """`FILE[:preset]` as it was given on the command line, after parsing."""
  return config_flags.get_config_filename(flag_values['config'])


def to_dict(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config with every reference resolved, in types that JSON has."""
  return files.to_json(config.to_dict())


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config with every reference resolved, as text with sorted keys."""
  return json.dumps(to_dict(config), indent=2, sort_keys=True)


def read_record(workdir: pathlib.Path) -> dict[str, Any]:
  """Reads `config.json` of a workdir: `source`, `overrides` and `config`."""
  return files.read_json(
    workdir / CONFIG_FILE,
    {'source?': str, 'overrides?': dict, 'config': dict},
    'restore it, or use another --workdir',
  )


def from_json(tree: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """The config that `to_dict` made `tree` of: its lists are tuples again."""
  return ml_collections.ConfigDict(_with_tuples(tree))


def _with_tuples(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: _with_tuples(inner) for name, inner in value.items()}
  if isinstance(value, list):
    return tuple(_with_tuples(inner) for inner in value)
  return value


def fields(
  tree: Mapping[str, Any] | ml_collections.ConfigDict, prefix: str = ''
) -> Iterator[tuple[str, Any]]:
  """Yields (dotted name, value) of every field that is not a group."""
  for name, value in tree.items():
    if isinstance(value, Mapping | ml_collections.ConfigDict):
      yield from fields(value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', value


def _load_module(source: str, path: pathlib.Path) -> types.ModuleType:
  """Runs a config file; UserError if it is not there or does not run."""
  if not path.is_file():
    beside = sorted(str(other) for other in path.parent.glob('*.py'))
    near = difflib.get_close_matches(str(path), beside, n=3) or beside
    hint = f'; there is: {", ".join(near)}' if near else ''
    raise UserError(f'--config={source}: no file {str(path)!r}{hint}')
  if path.suffix != '.py':
    raise UserError(f'--config={source}: {str(path)!r} is not a .py file')
  spec = importlib.util.spec_from_file_location('adanat_config', path)
  assert spec is not None and spec.loader is not None  # It ends in .py.
  module = importlib.util.module_from_spec(spec)
  with _errors_of_file(source, str(path)):
    spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise UserError(f'--config={source}: {str(path)!r} has no get_config()')
  return module


@contextlib.contextmanager
def _errors_of_file(source: str, path: str) -> Iterator[None]:
  """Turns any error of a config file into one line with the line's number."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    if isinstance(error, SyntaxError):
      line, reason = error.lineno, error.msg
    else:
      frames = traceback.extract_tb(error.__traceback__)
      inside = [f.lineno for f in frames if f.filename.endswith(path)]
      line = inside[-1] if inside else None
      reason = ' '.join(str(error).split())
    raise UserError(
      f'--config={source}: line {line} of the file:'
      f' {type(error).__name__}: {reason}'
    ) from error


def _config_argument(argv: Sequence[str]) -> str | None:
  """The value of `--config` on a command line, None without one."""
  arguments = _before_end_of_flags(argv)
  for index, argument in enumerate(arguments):
    match = re.fullmatch(r'--?config(?:=(.*))?', argument, re.DOTALL)
    if match and match.group(1) is not None:
      return match.group(1)
    if match and index + 1 < len(arguments):
      return arguments[index + 1]
  return None


def _override_names(argv: Sequence[str]) -> list[str]:
  """The dotted names of the fields that a command line sets."""
  matches = [_OVERRIDE.match(arg) for arg in _before_end_of_flags(argv)]
  return [match.group(1) for match in matches if match]


def _before_end_of_flags(argv: Sequence[str]) -> list[str]:
  """The arguments up to a lone `--`, without the program's name."""
  arguments = list(argv[1:])
  if '--' in arguments:
    return arguments[: arguments.index('--')]
  return arguments


def _check_field(config: ml_collections.ConfigDict, name: str) -> None:
  """Raises UserError unless `name` is a field, and not a group of fields."""
  node: Any = config
  parts = name.split('.')
  for depth, part in enumerate(parts):
    group = '.'.join(['config', *parts[:depth]])
    if not isinstance(node, ml_collections.ConfigDict):
      raise UserError(f'--config.{name}: {group} is a value, not a group')
    if part not in node:
      near = _nearest(config, name)
      hint = f'; did you mean {" or ".join(near)}?' if near else ';'
      raise UserError(
        f'--config.{name}: no such field{hint} {group} has:'
        f' {", ".join(sorted(node))}'
      )
    node = node[part]
  if isinstance(node, ml_collections.ConfigDict):
    raise UserError(
      f'--config.{name} is a group; set one of its fields:'
      f' {", ".join(sorted(node))}'
    )


def _nearest(config: ml_collections.ConfigDict, name: str) -> list[str]:
  """Up to three fields that may have been meant by `name`."""
  names = [field for field, _ in fields(config)]
  last = name.rpartition('.')[2]
  near = [field for field in names if field.rpartition('.')[2] == last]
  near += difflib.get_close_matches(name, names, n=3, cutoff=0.75)
  return [f'config.{field}' for field in list(dict.fromkeys(near))[:3]]


def _wrong_type(
  config: ml_collections.ConfigDict, name: str, given: Any
) -> UserError:
  """The error for a value that is not of its field's type."""
  *groups, last = name.split('.')
  node = config
  for group in groups:
    node = node[group]
  kind = node.get_type(last)
  expected = _EXPECTED.get(kind, f'a {kind.__name__}')
  return UserError(f'--config.{name}={given}: wrong type, give {expected}')


def _check_override(
  config: ml_collections.ConfigDict, name: str, value: Any
) -> None:
  """Refuses nan, and elements of a tuple of another type than the default's."""
  given = value if isinstance(value, tuple) else (value,)
  if any(isinstance(item, float) and math.isnan(item) for item in given):
    raise UserError(f'--config.{name}={value}: not a number, give a number')
  default: Any = config
  for part in name.split('.'):
    default = default[part]
  if not isinstance(default, tuple):
    return
  kinds = {type(item) for item in default}
  if kinds == {float}:
    kinds.add(int)
  if kinds and not all(type(item) in kinds for item in value):
    raise UserError(
      f'--config.{name}={value}: wrong type, give a tuple of'
      f' {" or ".join(sorted(kind.__name__ for kind in kinds))} such as'
      f' {",".join(map(repr, default))}'
    )
