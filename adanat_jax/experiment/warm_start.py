"""Trainings that begin with the weights of a checkpoint.

Where a section's `fine_tune` is true, its training goes on from what its
`init_from` names: converted weights, or a stage that finished elsewhere. What
has the same name, shape and type there is taken over, the rest begins anew, and
one line says what. The iterations count from 0, and so do learning rates that
change.

Only a training without a checkpoint of its own reads `init_from`: one that is
resumed never does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import functools
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import optax

from adanat_jax.errors import UserError
from adanat_jax.runtime import checkpoint, leaves, processes

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment

State = TypeVar('State')

# How many differences a message names.
_MOST_NAMED = 3


def make(
  experiment: Experiment,
  name: str,
  fields: Mapping[str, Mapping[str, tuple[str, ...]]],
) -> Callable[[State], State] | None:
  """Returns `initial state -> state to begin with`, not traced.

  Args:
    experiment: its sections name the checkpoints.
    name: of the training, in messages.
    fields: by section, in which fields of its checkpoint a field of the state
      may be found; the first that is there counts. A later section overrides
      those before it. `params/actor` is the field `actor` of `params`.

  Returns:
    The function, None where no section names a checkpoint. It raises UserError
    if nothing of a section's first field fits.
  """
  places = {
    field: (section, candidates)
    for section, found in fields.items()
    if experiment.begins_with(section)
    for field, candidates in found.items()
  }
  if not places:
    return None

  def begin(state: State) -> State:
    taken: dict[str, Any] = {}
    over, anew = [], []
    for field, (section, candidates) in places.items():
      directory = experiment.begins_with(section)
      found, missing = _read(state, field, directory, candidates)
      if missing and not found and field == next(iter(fields[section])):
        raise UserError(
          f'config.{section}.init_from={directory}: nothing there fits this'
          f' training: {", ".join(missing)}'
        )
      taken |= found
      over += [_label(field)] if found else []
      anew += missing
    if not over and not anew:
      return state  # A discriminator is named, and this reward has none.
    directories = {experiment.begins_with(s) for s, _ in places.values()}
    processes.say(
      f'{name}: goes on from {" and ".join(sorted(directories))}; taken over:'
      f' {", ".join(over)}; begun anew: {", ".join(anew) or "nothing"}'
    )
    return _with_new_rates(_replaced(state, taken), state)

  return begin


def _read(
  state: Any, field: str, directory: str, candidates: tuple[str, ...]
) -> tuple[dict[str, Any], list[str]]:
  """The leaves of a field that fit, by name, and which of them do not."""
  ours = _below(leaves.by_name(state), field)
  saved = checkpoint.read_layouts(directory)
  source = next((c for c in candidates if _below(saved, c)), None)
  if not ours:
    return {}, []  # No average is kept, or nothing is discriminated.
  if source is None:
    return {}, [f'{_label(field)} (not there)']
  names = {name: source + name.removeprefix(field) for name in ours}
  wrong = [n for n in ours if saved.get(names[n]) != leaves.layout(ours[n])]
  missing = [
    f'{_label(n)} ({saved.get(names[n], "not")} there,'
    f' {leaves.layout(ours[n])} here)'
    for n in wrong[:_MOST_NAMED]
  ]
  if len(wrong) > _MOST_NAMED:
    missing.append(f'and {len(wrong) - _MOST_NAMED} more of {_label(field)}')
  if field.endswith('opt_state'):
    # Its averages belong to the parameters, so it fits as a whole or not.
    if wrong or len(_below(saved, source)) > len(ours):
      return {}, [f'{_label(field)} (of other parameters or another kind)']
    part = functools.reduce(getattr, field.split('/'), state)
    tree = checkpoint.load_params(directory, source, part)
    return dict(zip(ours, jax.tree.leaves(tree), strict=True)), []
  fits = {names[n]: n for n in ours if n not in wrong}
  target = {source: ours[n] for source, n in fits.items()}
  read = checkpoint.load_leaves(directory, target)
  return {fits[source]: leaf for source, leaf in read.items()}, missing


def _below(named: Mapping[str, Any], field: str) -> dict[str, Any]:
  return {n: x for n, x in named.items() if f'{n}/'.startswith(f'{field}/')}


def _label(field: str) -> str:
  """A field of a state, as users call it."""
  field = field.replace('adversary', 'discriminator')
  return field.replace('opt_state', 'optimizer').removeprefix('params/')


def _replaced(state: State, taken: Mapping[str, Any]) -> State:
  named = {**leaves.by_name(state), **taken}
  return jax.tree.unflatten(jax.tree.structure(state), named.values())


def _with_new_rates(state: State, initial: State) -> State:
  """The state with learning rates that count the steps from the start."""
  is_count = lambda node: isinstance(node, optax.ScaleByScheduleState)
  return jax.tree.map(
    lambda new, old: old if is_count(old) else new,
    state,
    initial,
    is_leaf=is_count,
  )
