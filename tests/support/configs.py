"""The configs of the repository, as tests load them."""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
from typing import Any

import ml_collections

from adanat_jax.experiment import config as config_lib

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
