"""Which steps of a decode are guided: all, none, or some.

A guided step runs the denoiser with the condition and without, so it takes two
passes, an unguided one takes one. Which steps are guided is static: nothing is
computed and thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np

from adanat_jax.errors import UserError, shown

# Of all steps, or of each of T.
Guided: TypeAlias = bool | tuple[bool, ...]


def each_step(guided: Guided, num_steps: int) -> tuple[bool, ...]:
  """Whether each of `num_steps` steps is guided."""
  return guided if isinstance(guided, tuple) else (guided,) * num_steps


def checked(guided: Guided, num_steps: int, where: str) -> Guided:
  """The same as one truth value if all steps are alike.

  So a tuple of equals is the program, and has the bits, of that value.

  Raises:
    UserError: for anything else than a truth value, or one a step; it begins
      with `where`.
  """
  values: tuple[Any, ...] = (guided,) * num_steps
  if isinstance(guided, tuple | list):
    values = tuple(guided)
  if len(values) != num_steps or not all(
    isinstance(value, bool | np.bool_) for value in values
  ):
    raise UserError(
      f'{where}: guided is {shown(guided)}; give true or false, or a list of'
      f' {num_steps} of them, one a step'
    )
  values = tuple(map(bool, values))
  return values if len({*values}) > 1 else values[0]


def of_steps(numbers: Iterable[int], num_steps: int) -> Guided:
  """Guided at the steps of these numbers alone.

  They count from 0, and from the end if they are negative: -1 is the last step.
  Those that a decode of `num_steps` does not have are passed over.

  Raises:
    UserError: for what is no integer, or if no step is left.
  """
  numbers = tuple(numbers)
  if not all(type(number) is int for number in numbers):
    raise UserError(
      f'guided_steps is {shown(numbers)}; give numbers of steps, such as (2, 3)'
      ' or (-1,)'
    )
  chosen = {
    number % num_steps for number in numbers if -num_steps <= number < num_steps
  }
  if not chosen:
    raise UserError(
      f'guided_steps is {shown(numbers)}, and {num_steps} steps have none of'
      f' these: they count from 0 to {num_steps - 1}, or back from -1'
    )
  return checked(
    tuple(step in chosen for step in range(num_steps)), num_steps, ''
  )


def passes(guided: Guided, num_steps: int, candidates: int = 1) -> np.ndarray:
  """Denoiser passes of each step, int32[T].

  All steps but the first run on so many candidates, see `lookahead`.
  """
  conditional = np.full(num_steps, candidates, np.int32)
  conditional[0] = 1
  return conditional + np.array(each_step(guided, num_steps), np.int32)
