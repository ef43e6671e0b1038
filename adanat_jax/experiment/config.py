"""Configs: loading a file and naming what is wrong with it.

A config is a Python file whose `get_config(preset='')` returns an
`ml_collections.ConfigDict` and whose `PRESETS` names the presets it knows. On
the command line it is `--config=SOURCE`: `NAME[:preset]` for one of ours,
`FILE[:preset]` for any; `--config.field=value` sets a field.
`ml_collections.config_flags` does the parsing, but stops at the first mistake,
often with a traceback. So `parse_flags` looks up the fields that the command
line sets, takes out each argument that is wrong, a line each, and lets absl
parse the others.

`experiment.field_rules` says what fields may hold; `experiment.workdir` keeps
the config of a run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import difflib
import importlib.util
import itertools
import json
import math
import pathlib
import re
import shlex
import traceback
import types
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from adanat_jax.errors import ConfigError, UserError
from adanat_jax.runtime import files

CONFIG_FILE = 'config.json'

_PACKAGE = pathlib.Path(__file__).parents[1]
# Our configs: inside an installed package, beside it in the repository.
CONFIGS = _PACKAGE / 'configs'
if not CONFIGS.is_dir():
  CONFIGS = _PACKAGE.parent / 'configs'

# The command line of `parse_flags` without what is no flag, and what of it absl
# gets: `config_flags` looks in the latter for the fields that are set.
_given: list[str] = []
_parsed: list[str] = []

_CONFIG = re.compile(r'--?config(?:=(.*))?', re.DOTALL)
_OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]*)')
# How absl names the flag whose value is wrong or missing.
_WRONG_FLAG = re.compile(r'flag --?(?:no)?([^\s=]+)(?:=(.*?): |$)', re.DOTALL)
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
    source: `NAME[:preset]` or `FILE[:preset]`, as given to `--config`.
    overrides: values by dotted field name, e.g. `{'nat.width': 32}`.

  Returns:
    The config, locked: fields can be changed, not added.

  Raises:
    UserError: if the file, the preset or a field is missing, the file does not
      run, or a value has another type than its field.
  """
  path, preset = find(source)
  module = _load_module(source, path)
  presets = [name for name in getattr(module, 'PRESETS', ()) if name]
  if preset and preset not in presets:
    allowed = ', '.join(presets) or 'none, the file has no presets'
    raise UserError(
      f'--config={source}: unknown preset {preset!r}; allowed: {allowed}'
    )
  with _errors_of_file(source, str(path)):
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
    except (TypeError, ValueError, OverflowError) as error:
      raise _wrong_type(config, name, value) from error
  return config


def find(source: str) -> tuple[pathlib.Path, str]:
  """The file, which may not exist, and the preset that `source` names."""
  name, _, preset = source.partition(':')
  path = pathlib.Path(name)
  if path.name == name and not path.suffix and not path.is_file():
    path = CONFIGS / f'{name}.py'
  return path, preset


def known_names() -> list[str]:
  """The names of our configs, for `--config=NAME`."""
  # `common` cannot be run.
  return sorted({path.stem for path in CONFIGS.glob('*.py')} - {'common'})


def default_workdir(source: str) -> pathlib.Path:
  """Where a run is kept that was given no directory: `runs/NAME[-preset]`."""
  path, preset = find(source)
  return pathlib.Path('runs', '-'.join(filter(None, (path.stem, preset))))


def define_flag(
  flag_values: flags.FlagValues = flags.FLAGS,
) -> flags.FlagHolder:
  """Defines `--config` and, while parsing, `--config.field` flags.

  The flag's value after `parse_flags` is the ConfigDict.
  """
  return config_flags.DEFINE_config_file(
    'config',
    None,
    'What to run: NAME[:preset] or FILE[:preset].',
    flag_values=flag_values,
    sys_argv=_parsed,
  )


def parse_flags(
  argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS
) -> list[str]:
  """Parses a command line that holds flags alone; returns the program's name.

  Raises:
    ConfigError: listing every mistake in the flags, the config file and the
      names and types of its fields. `flag_values` holds what is right.
  """
  _given[:] = argv
  flag_values.set_gnu_getopt(True)
  source = config_argument(argv)
  config, problems, wrong = None, list[str](), set[str]()
  if source is not None:
    wrong.add('config')
    try:
      config = load(source)
    except UserError as error:
      problems += error.problems
  for name in _override_names(argv):
    try:
      if config is not None:
        _check_field(config, name)
        continue
      if source is None:
        problems.append(f'--config.{name} needs --config=NAME')
    except UserError as error:
      problems += error.problems
    wrong.add(f'config.{name}')
  first = []
  if source is not None and config is not None:
    path, preset = find(source)
    first = [f'--config={path}{":" * bool(preset)}{preset}']
  while True:
    _parsed[:] = [argv[0], *first, *_without(argv[1:], wrong)]
    for name in [n for n in flag_values if n.startswith('config.')]:
      delattr(flag_values, name)  # Of the last attempt.
    try:
      rest = flag_values(_parsed, known_only=True)
      break
    except (flags.Error, ValueError, TypeError, LookupError) as error:
      found = _WRONG_FLAG.search(str(error))
      name, given = found.groups() if found else ('', None)
      is_field = name.startswith('config.') and given is not None
      if config is not None and is_field:
        error = _wrong_type(config, name.removeprefix('config.'), given)
      problems.append(' '.join(str(error).split()))
      if not found or name in wrong:
        # Nothing says which argument it is.
        argv, first, config = argv[:1], [], None
      wrong.add(name)
  _given[:] = [argv[0], *(a for a in _given[1:] if a not in rest)]
  for before, argument in itertools.pairwise(rest):
    # Not the value of what is no flag itself.
    if argument.startswith('-') or not re.fullmatch('-[^=]*', before):
      problems.append(_not_a_flag(argument, config, flag_values))
  if config is not None:
    for name, value in overrides_of(flag_values).items():
      problems += _problems_of_value(config, name, value)
  if problems:
    raise ConfigError(problems)
  return rest


def rerun(*changes: str) -> str:
  """The command line of this run with other flags, as a user may type it.

  Without a command line, in a library's use, only the changes.
  """
  if not _given:
    return ' '.join(changes)
  program = pathlib.Path(_given[0]).name
  ours = 'adanat' if program == 'adanat' else 'python -m adanat_jax.main'
  names = {change.lstrip('-').partition('=')[0] for change in changes}
  return shlex.join([*ours.split(), *_without(_given[1:], names), *changes])


def overrides_of(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
  """The fields set on the command line, by dotted name, after parsing."""
  return dict(config_flags.get_override_values(flag_values['config']))


def source_of(flag_values: flags.FlagValues = flags.FLAGS) -> str:
  """`NAME[:preset]` or, if it is not ours, `FILE[:preset]`, after parsing."""
  source = config_flags.get_config_filename(flag_values['config'])
  name, colon, preset = source.partition(':')
  path = pathlib.Path(name)
  return f'{path.stem if path.parent == CONFIGS else name}{colon}{preset}'


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
    names = known_names()
    near = difflib.get_close_matches(path.stem, names, n=2)
    if path.parent != CONFIGS:
      beside = [str(other) for other in sorted(path.parent.glob('*.py'))]
      near = difflib.get_close_matches(str(path), beside, n=2) or near
    hint = f' (did you mean {" or ".join(near)}?)' if near else ''
    raise UserError(
      f'--config={source}: there is no such config{hint}; give the path of a'
      f' .py file, or one of {", ".join(names)}'
    )
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


def config_argument(argv: Sequence[str]) -> str | None:
  """The value of `--config` on a command line, None without one."""
  found = None
  arguments = _before_end_of_flags(argv)
  for argument, following in itertools.pairwise([*arguments, '']):
    if match := _CONFIG.fullmatch(argument):
      found = (following or None) if match[1] is None else match[1]
  return found


def _override_names(argv: Sequence[str]) -> list[str]:
  """The dotted names of the fields that a command line sets."""
  matches = [_OVERRIDE.match(arg) for arg in _before_end_of_flags(argv)]
  return list(dict.fromkeys(match[1] for match in matches if match))


def _before_end_of_flags(argv: Sequence[str]) -> list[str]:
  """The arguments up to a lone `--`, without the program's name."""
  arguments = list(argv[1:])
  if '--' in arguments:
    return arguments[: arguments.index('--')]
  return arguments


def _without(arguments: Sequence[str], names: Collection[str]) -> list[str]:
  """The arguments but for those that set one of these flags."""
  kept: list[str] = []
  may_be_value = False
  for argument in arguments:
    name, equals, _ = argument.partition('=')
    name = name.lstrip('-')
    if may_be_value and not argument.startswith('-'):
      may_be_value = False
    elif argument.startswith('-') and (
      name in names or name.removeprefix('no') in names
    ):
      may_be_value = not equals
    else:
      may_be_value = False
      kept.append(argument)
  return kept


def _not_a_flag(
  argument: str,
  config: ml_collections.ConfigDict | None,
  flag_values: flags.FlagValues,
) -> str:
  """What to say of an argument that is no flag: which one may be meant."""
  name, equals, value = argument.partition('=')
  name = name.lstrip('-')
  near = _nearest(config, name) if config is not None else []
  near = near or difflib.get_close_matches(name, list(flag_values), n=1)
  meant = ' or '.join(f'--{flag}{equals}{value}' for flag in near)
  return f'{argument!r} is not a flag; ' + (
    f'did you mean {meant}?'
    if near
    else 'a field is set by --config.field=value, and --help shows the flags'
  )


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
  if name in names:
    return [f'config.{name}']
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


def _problems_of_value(
  config: ml_collections.ConfigDict, name: str, value: Any
) -> Iterator[str]:
  """Refuses nan, and elements of a tuple of another type than the default's."""
  given = value if isinstance(value, tuple) else (value,)
  if any(isinstance(item, float) and math.isnan(item) for item in given):
    yield f'--config.{name}={value}: not a number, give a number'
  default: Any = config
  for part in name.split('.'):
    default = default[part]
  if not isinstance(default, tuple):
    return
  kinds = {type(item) for item in default}
  if kinds == {float}:
    kinds.add(int)
  if kinds and not all(type(item) in kinds for item in value):
    yield (
      f'--config.{name}={value}: wrong type, give a tuple of'
      f' {" or ".join(sorted(kind.__name__ for kind in kinds))} such as'
      f' {",".join(map(repr, default))}'
    )
