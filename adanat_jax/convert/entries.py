"""Finds the weights in what a file holds: the entry, and the arrays by name.

A training saves more than one set of weights: those that it trained, and their
average. The authors evaluate the average, so that is what is taken; and it is
said what was taken, for the other can be asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import re
from typing import Any, NamedTuple

import numpy as np

from adanat_jax.convert.reading import LONGEST_NAME, shown, some
from adanat_jax.errors import UserError

# How deep the arrays may lie in nested dictionaries.
_DEEPEST = 8

# Names under which weights stand, first one first.
_PLAIN = (
  *('nnet', 'state_dict', 'model_state_dict', 'model', 'params', 'module'),
)
# Parts of names that say "average", and those that say nothing beside them.
_AVERAGE = frozenset(
  ['ema', 'emas', 'swa', 'average', 'averaged', 'avg', 'shadow', 'teacher']
)
_SAYS_NOTHING = frozenset([
    'model', 'models', 'net', 'nnet', 'network', 'g', 'generator', 'student',
    'module', 'state', 'dict', 'params', 'param', 'parameters', 'weights',
    'weight', 'variables', 'nat', 'enat', 'uvit', 'vqgan', 'vae', 'tokenizer',
    'transformer', 'policy', 'actor', 'dino', 'vit', 'clip', 'backbone',
])  # fmt: skip
# Wrappers that leave their name in every key of what they wrap.
_WRAPPERS = re.compile(
  r'(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)'
  r'\.'
)
_PARALLEL = 'module.'
# Counts the updates of an average.
_COUNTER = 'n_averaged'

# Views may name the bytes of a file so often, and so many bytes more.
_MAX_VIEWS = 8
_MAX_VIEWED = 1 << 26


class FoundEntry(NamedTuple):
  """The weights of a file."""

  arrays: dict[str, np.ndarray]  # By key.
  notes: tuple[str, ...]  # Which entry was taken, if there was a choice.


def find_arrays(
  value: Any, wrappers: Sequence[str] = (), entry: str = ''
) -> dict[str, np.ndarray]:
  """Finds the arrays by key in what a file holds; see `find`."""
  return find(value, wrappers, entry).arrays


def find(
  value: Any, wrappers: Sequence[str] = (), entry: str = ''
) -> FoundEntry:
  """Finds the weights in what a file holds.

  Args:
    value: a dictionary of arrays, nested ones (joined by '/'), or a dictionary
      around one of them.
    wrappers: names of the entry that these weights have a file for themselves
      in; torch's usual ones follow.
    entry: the entry to take, its levels joined by '/'; '' for the average of
      the weights if there is one, else the weights.

  Returns:
    The arrays by key, without the prefixes of training on several devices and
    of compiling.

  Raises:
    UserError: if there are none, or if it is not clear which.
  """
  search = _Search(value)
  taken, others, notes = '', [], []
  if entry and (named := search.named(entry)) is not None:
    value, taken, entry = named, entry, ''
    is_asked_for = True
  else:
    is_asked_for = bool(entry)
  for _ in range(_DEEPEST):
    choice = search.choose(value, wrappers)
    if choice is None:
      break
    name, other = choice
    taken = f'{taken}/{name}' if taken else name
    if other:
      others.append(_beside(taken, other))
    value = value[name]
  arrays = _flatten(value)
  if not arrays:
    raise UserError(
      f'no arrays by name in it, but a {type(value).__name__}'
      + search.unnamed_note()
    )
  if not is_asked_for:
    search.refuse_average_elsewhere(taken, value)
  arrays, group = _choose_group(arrays, entry)
  if group:
    notes.append(group)
  elif entry:
    raise UserError(
      f'there is no entry {entry} with arrays in it, but'
      f' {some(search.all_entries()) or "arrays alone"}'
    )
  if taken:
    said = f'the entry {shown(taken)} is taken'
    if others:
      other = shown(others[0])
      said += f'; {other} is there too: --entry={other}'
    notes.insert(0, said)
  _check_views(arrays)
  return FoundEntry(_without_prefixes(arrays), tuple(notes))


def _beside(taken: str, name: str) -> str:
  """Returns the path of an entry beside that of `taken`."""
  return '/'.join([*taken.split('/')[:-1], name])


def _is_average(name: object) -> bool:
  """Whether an entry of this name is an average of the weights."""
  if not isinstance(name, str) or len(name) > 100:
    return False
  words = [
    word.lower() for word in re.findall(r'[A-Z]+(?![a-z])|[A-Z]?[a-z]+', name)
  ]
  rest = [word for word in words if word not in _AVERAGE]
  return len(rest) < len(words) and all(w in _SAYS_NOTHING for w in rest)


class _Search:
  """What can be asked about the dictionaries of one file."""

  def __init__(self, value: Any):
    self._root = value
    self._by_name, self._anyhow = _holders(value)

  def _holds(self, value: Any) -> bool:
    return isinstance(value, Mapping) and id(value) in self._by_name

  def choose(
    self, value: Any, wrappers: Sequence[str]
  ) -> tuple[str, str] | None:
    """Returns the name of the entry to enter, and that of one left aside."""
    if not isinstance(value, Mapping):
      return None
    inside = {n: x for n, x in value.items() if isinstance(n, str)}
    holding = [name for name, x in inside.items() if self._holds(x)]
    own = [name for name in wrappers if name in holding]
    if own:
      averages = [
        name
        for name in holding
        if _is_average(name.replace(own[0], '')) and own[0] in name
      ]
      plain = own[:1]
    else:
      averages = [name for name in holding if _is_average(name)]
      plain = [name for name in _PLAIN if name in holding]
      self._refuse_unnamed(inside, averages, plain)
    if len(averages) > 1 and 'nnet_ema' not in averages:
      raise UserError(
        f'it holds several averages of weights, {some(averages)}: choose one'
        f' by --entry={shown(averages[0])}'
      )
    if averages:
      chosen = 'nnet_ema' if 'nnet_ema' in averages else averages[0]
      others = [n for n in plain if n != chosen] or [
        name
        for name in holding
        if name != chosen and _alike(inside[name], inside[chosen])
      ]
      return chosen, others[0] if others else ''
    if not plain:
      return None
    return plain[0], next((name for name in plain[1:]), '')

  def _refuse_unnamed(
    self,
    inside: Mapping[str, Any],
    averages: Sequence[str],
    plain: Sequence[str],
  ) -> None:
    """Refuses weights whose average has no names: which one is meant?"""
    unnamed = [
      name
      for name, x in inside.items()
      if id(x) in self._anyhow and not self._holds(x) and _is_average(name)
    ]
    if unnamed and plain and not averages:
      raise UserError(
        f'the averaged weights in it, {shown(unnamed[0])}, are a list without'
        f' names, which is not read; --entry={shown(plain[0])} takes those that'
        ' were averaged'
      )

  def unnamed_note(self) -> str:
    """Says that there are arrays, if only without names."""
    if id(self._root) in self._anyhow:
      return ' (there are arrays in lists, which have no names)'
    return ''

  def named(self, entry: str) -> Mapping[Any, Any] | None:
    """Returns the dictionary of this path, or the only one of this name."""
    found: dict[int, Mapping[Any, Any]] = {}
    for path, inner in self._walk():
      if path == entry:
        return inner
      if path.split('/')[-1] == entry:
        found[id(inner)] = inner
    if len(found) > 1:
      raise UserError(
        f'--entry={entry} is the name of several entries; give the path, such'
        ' as '
        + next(shown(p) for p, _ in self._walk() if p.split('/')[-1] == entry)
      )
    return next(iter(found.values()), None)

  def all_entries(self) -> list[str]:
    """Returns the paths of all dictionaries that hold arrays by name."""
    return [path for path, _ in self._walk()]

  def _walk(self) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Goes through the dictionaries that hold arrays, outer ones first."""
    level = [('', self._root)]
    entered: set[int] = set()
    for _ in range(_DEEPEST):
      below = []
      for prefix, value in level:
        if not self._holds(value):
          continue
        for name, inner in value.items():
          if not self._holds(inner) or id(inner) in entered:
            continue
          entered.add(id(inner))
          path = f'{prefix}/{name}' if prefix else str(name)
          if len(path) > LONGEST_NAME:
            continue
          yield path, inner
          below.append((path, inner))
      level = below

  def refuse_average_elsewhere(self, taken: str, value: Any) -> None:
    """Refuses weights whose average stands in another part of the file."""
    if any(map(_is_average, taken.split('/'))):
      return
    for path, inner in self._walk():
      names = path.split('/')
      if inner is value or any(n.lower().startswith('opt') for n in names):
        continue
      if _is_average(names[-1]) and _alike(inner, value):
        raise UserError(
          f'{shown(path)} in it seems to be the average of'
          f' {shown(taken) or "the arrays beside it"}: choose by'
          f' --entry={shown(path)} or --entry={shown(taken) or "NAME"}'
        )


def _holders(value: Any) -> tuple[set[int], set[int]]:
  """Returns the ids of containers that hold arrays, by name and anyhow.

  By name: through dictionaries alone. Each container is entered once, however
  often it is held, and containers may hold themselves.
  """
  parents: dict[int, list[tuple[int, bool]]] = {}
  with_arrays: list[tuple[int, bool]] = []
  stack, entered = [value], {id(value)}
  while stack:
    outer = stack.pop()
    is_named = isinstance(outer, Mapping)
    if is_named:
      members = outer.values()
    elif isinstance(outer, (list, tuple)):
      members = outer
    else:
      continue
    for inner in members:
      if isinstance(inner, np.ndarray):
        with_arrays.append((id(outer), is_named))
      elif isinstance(inner, (Mapping, list, tuple)):
        parents.setdefault(id(inner), []).append((id(outer), is_named))
        if id(inner) not in entered:
          entered.add(id(inner))
          stack.append(inner)
  return (
    _reached(parents, [i for i, named in with_arrays if named], True),
    _reached(parents, [i for i, _ in with_arrays], False),
  )


def _reached(
  parents: Mapping[int, Sequence[tuple[int, bool]]],
  start: Sequence[int],
  by_name: bool,
) -> set[int]:
  reached, waiting = set(start), list(start)
  while waiting:
    for outer, is_named in parents.get(waiting.pop(), ()):
      if outer not in reached and (is_named or not by_name):
        reached.add(outer)
        waiting.append(outer)
  return reached


def _plain_names(value: Mapping[Any, Any]) -> set[str]:
  names = set()
  for key in value:
    if isinstance(key, str):
      names.add(_WRAPPERS.sub('', key).removeprefix(_PARALLEL))
  return names


def _alike(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
  """Whether two dictionaries have most of their names in common."""
  names, others = _plain_names(a), _plain_names(b)
  return 2 * len(names & others) > min(len(names), len(others))


def _flatten(value: Any) -> dict[str, np.ndarray]:
  """Joins the keys of nested dictionaries; what is no array is left out."""
  result: dict[str, np.ndarray] = {}
  # A hostile file may hold dictionaries that hold themselves: each is entered
  # once.
  entered: set[int] = set()

  def enter(inner: Any, prefix: str, depth: int) -> None:
    if id(inner) in entered or depth > _DEEPEST:
      return
    entered.add(id(inner))
    for key, item in inner.items():
      name = f'{prefix}{key}'
      if isinstance(item, Mapping):
        enter(item, f'{name}/', depth + 1)
      elif isinstance(item, np.ndarray):
        if len(name) > LONGEST_NAME:
          raise UserError(f'the name of an array has {len(name)} characters')
        result[name] = item

  if isinstance(value, Mapping):
    enter(value, '', 0)
  return result


def _choose_group(
  arrays: dict[str, np.ndarray], entry: str
) -> tuple[dict[str, np.ndarray], str]:
  """Takes the average where it stands beside the weights by a prefix.

  Returns:
    The arrays, and what to say of the choice if there was one.
  """
  groups: dict[str, dict[str, np.ndarray]] = {}
  for key, x in arrays.items():
    first, dot, rest = key.partition('.')
    groups.setdefault(first if dot else '', {})[rest if dot else first] = x
  if entry:
    if entry not in groups:
      return arrays, ''
    return groups[entry], f'the arrays {shown(entry)}.* are taken'
  for name, group in groups.items():
    if not _is_average(name):
      continue
    beside = {k: x for k, x in arrays.items() if not k.startswith(f'{name}.')}
    others = [
      n for n, x in groups.items() if n not in (name, '') and _alike(x, group)
    ]
    if others:
      return group, (
        f'the arrays {shown(name)}.* are taken; {shown(others[0])}.* are there'
        f' too: --entry={shown(others[0])}'
      )
    if beside and _alike(beside, group):
      raise UserError(
        f'{shown(name)}.* in it seem to be averages of the arrays beside them;'
        f' --entry={shown(name)} takes the averages'
      )
  return arrays, ''


def _without_prefixes(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Removes what compiling and training on several devices put before keys."""
  names = {key: _WRAPPERS.sub('', key) for key in arrays}
  while all(
    n.startswith(_PARALLEL) or n == _COUNTER for n in names.values()
  ) and set(names.values()) != {_COUNTER}:
    names = {
      key: name.removeprefix(_PARALLEL)
      for key, name in names.items()
      if name != _COUNTER
    }
  if len(set(names.values())) != len(names):
    raise UserError('without the prefixes of wrappers two arrays have one name')
  return {name: arrays[key] for key, name in names.items()}


def _check_views(arrays: Mapping[str, np.ndarray]) -> None:
  """Refuses arrays that name the same few bytes again and again."""
  spans = sorted(
    {np.lib.array_utils.byte_bounds(x) for x in arrays.values() if x.size}
  )
  stored, position = 0, 0
  for start, end in spans:
    stored += max(0, end - max(start, position))
    position = max(position, end)
  viewed = sum(x.nbytes for x in arrays.values())
  if viewed > _MAX_VIEWS * stored + _MAX_VIEWED:
    raise UserError(
      f'its arrays claim {viewed >> 20} MiB, and share {stored >> 20} MiB of'
      ' the file'
    )
