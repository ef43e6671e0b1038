"""Config fields with odd values, several at a time: accepted, or told in lines.

`experiment_field_rules_test` tries every value on every rule by itself. Here
whole configs are checked as `main` does it before the first stage, so that the
checks that join fields meet each value that a rule lets through.
"""

from __future__ import annotations

import math
from typing import Any

from absl.testing import absltest
import numpy as np

from adanat_jax import main
from adanat_jax.experiment import config as config_lib
from support import configs, fuzzing

_SOURCES = ('digits.py', 'in256.py:tiny', 'coco256.py', 'image_folder.py')


def near(random: np.random.Generator, value: Any) -> Any:
  """A value that the rule of a field with this value may let through."""
  if isinstance(value, bool):
    return not value
  if isinstance(value, int):
    others = (0, 1, 2, 3, value - 1, value + 1, value // 2, value * 2, 2**14)
    return fuzzing.pick(random, others)
  if isinstance(value, float):
    others = (0.0, 1.0, 1e-30, value / 2, value * 2, 1e300, math.nan, 0, 1)
    return fuzzing.pick(random, others)
  if isinstance(value, tuple) and value:
    items = tuple(near(random, item) for item in value)
    return fuzzing.pick(random, (items, items[:1], items * 2, value[:1]))
  return value


def drawn(random: np.random.Generator) -> tuple[str, dict[str, Any]]:
  """A config and new values of a few of its fields."""
  source = fuzzing.pick(random, _SOURCES)
  there = dict(config_lib.fields(configs.load(source)))
  names = random.choice(sorted(there), size=random.integers(1, 5))
  changes = {'mode': fuzzing.pick(random, ('all', *main.STAGES))}
  for name in names.tolist():
    anywhere = configs.defaults()[name]
    changes[name] = fuzzing.pick(
      random,
      (
        near(random, there[name]),
        near(random, there[name]),
        fuzzing.pick(random, anywhere),
        fuzzing.pick(random, configs.odd_values(there[name])),
      ),
    )
    is_float = isinstance(there[name], float) or there[name] is None
    if is_float and changes[name] == 10**5000:
      del changes[name]  # ml_collections cannot even hold it.
  return source, changes


class FuzzConfigTest(absltest.TestCase):
  def test_odd_values(self):
    tally = fuzzing.fuzz(
      drawn,
      lambda given: configs.check(
        given[0], **{k.replace('.', '__'): v for k, v in given[1].items()}
      ),
    )
    print(f'{self.id()}: {tally.accepted} allowed, {tally.refused} refused')
    if tally.failures:
      self.fail('\n'.join(tally.failures[:3]))


if __name__ == '__main__':
  absltest.main()
