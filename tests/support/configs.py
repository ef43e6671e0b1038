"""The configs of the repository, as tests load them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import functools
import importlib
import math
import pathlib
import runpy
from typing import Any

import ml_collections

from adanat_jax.experiment import config as config_lib
from adanat_jax.experiment.experiment import Experiment

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'


def load(
  source: str, changes: Mapping[str, Any] | None = None, **more: Any
) -> ml_collections.ConfigDict:
  """A config such as `'digits.py:tiny'`, with some of its fields changed.

  Args:
    source: a file of configs/, with or without a preset.
    changes: new values by dotted name.
    **more: the same, with `__` for each dot.
  """
  dotted = {name.replace('__', '.'): value for name, value in more.items()}
  return config_lib.load(str(CONFIGS / source), {**(changes or {}), **dotted})


def presets() -> Iterator[str]:
  """Every config with every preset, as `--config` takes them."""
  for path in sorted(CONFIGS.glob('*.py')):
    names = runpy.run_path(str(path)).get('PRESETS', ('default',))
    for name in names:
      yield str(path) if name == 'default' else f'{path}:{name}'


@functools.cache
def defaults() -> dict[str, list[Any]]:
  """The values that each field has anywhere, by its name."""
  found = {}
  for source in presets():
    for name, value in config_lib.fields(config_lib.load(source)):
      found.setdefault(name, []).append(value)
  return found


def odd_values(like: Any) -> list[Any]:
  """Values of which hardly any is right for a field that may hold `like`."""
  plain = [True, 'x' * 5000, 'no such name', math.nan, math.inf, -math.inf]
  plain += [-1, -1.0, 10**9, 1e9, 10**5000, 1j, b'', {}, [1], object(), '\0']
  plain += ['x' * 300, '\ud800', (), None, math]
  if isinstance(like, bool):
    plain.remove(True)
  if isinstance(like, tuple):
    return plain + [(item,) * max(len(like), 1) for item in plain]
  return [*plain, (like,)]


def check(source: str, **overrides: Any) -> None:
  """What `main` does before the first stage."""
  config = load(source)
  for name, value in overrides.items():
    node = config
    *groups, last = name.split('__')
    for group in groups:
      node = node[group]
    with node.ignore_type():
      node[last] = value
  from adanat_jax import main  # It defines flags.

  names = main._names_of_stages(config)
  stages = [importlib.import_module(main.STAGES[name]) for name in names]
  Experiment(config, 'runs').check(*(stage.check_config for stage in stages))
