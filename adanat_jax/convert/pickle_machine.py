"""Reads a pickle as data: an interpreter of its opcodes that calls nothing.

`pickle.load` runs whatever a file names. This machine knows the opcodes that
build containers, numbers and texts, and a table of named constructors that
its caller wrote; a name outside the table ends the reading with a `UserError`
that says the name. Nothing is imported, looked up or called for a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import pickletools
from typing import Any, BinaryIO, Protocol, runtime_checkable
import warnings

from adanat_jax.convert.reading import Budget, shown
from adanat_jax.errors import UserError


@runtime_checkable
class Buildable(Protocol):
  """What a pickle may give a state."""

  def set_state(self, state: Any) -> None:
    """Takes the state, or raises UserError."""


class Namespace:
  """The inert stand-in of `argparse.Namespace`: attributes and nothing else."""

  def __repr__(self) -> str:
    return f'Namespace({", ".join(sorted(vars(self)))})'


@dataclasses.dataclass(frozen=True)
class Known:
  """A name that a file may mention."""

  name: str  # Qualified, e.g. `torch.FloatStorage`.
  # What stands for calling it, given the budget and the arguments; None for a
  # name that is only mentioned.
  build: Callable[..., Any] | None = None


class _Mark:
  """Where a run of arguments starts on the stack."""


class Machine:
  """Interprets one pickle.

  Args:
    known: the names a file may mention, by `module.name`.
    load_persistent: turns the persistent ids of the file into objects.
    budget: what reading may cost.
  """

  def __init__(
    self,
    known: Mapping[str, Known],
    load_persistent: Callable[[Any], Any],
    budget: Budget,
  ):
    self._known = known
    self._load_persistent = load_persistent
    self._budget = budget
    self._stack: list[Any] = []
    self._memo: dict[int, Any] = {}

  def run(self, stream: BinaryIO) -> Any:
    """Reads one pickle from `stream` and leaves it after its last byte.

    Args:
      stream: has `read`, `readline` and `tell`.

    Returns:
      The object: containers, numbers, texts and what `known` built.

    Raises:
      UserError: at a name or an opcode that is not known, and at a pickle that
        is broken.
    """
    try:
      with warnings.catch_warnings(action='ignore'):
        # pickletools evaluates the escapes of old texts.
        for opcode, argument, _ in pickletools.genops(stream):
          self._budget.step()
          if opcode.name == 'STOP':
            return self._pop()
          self._step(opcode.name, argument)
    except UserError:
      raise
    except (
      ArithmeticError,
      AttributeError,
      LookupError,
      RecursionError,
      TypeError,
      ValueError,
    ) as error:
      raise UserError(f'its pickle is broken ({shown(error)})') from error
    raise UserError('its pickle ends before its last opcode')

  def _step(self, name: str, argument: Any) -> None:
    step = _STEPS.get(name)
    if step is None:
      raise UserError(f'its pickle uses the opcode {name}, which is refused')
    step(self, argument)

  # The stack.

  def _pop(self) -> Any:
    value = self._stack.pop()
    if value is _Mark:
      raise ValueError('a mark where a value should be')
    return value

  def _pop_to_mark(self) -> list[Any]:
    values: list[Any] = []
    while (value := self._stack.pop()) is not _Mark:
      values.append(value)
    self._budget.hold(len(values))
    return values[::-1]

  def _top(self, kind: type) -> Any:
    if not isinstance(self._stack[-1], kind):
      raise ValueError(f'expected a {kind.__name__}')
    return self._stack[-1]

  # The memo.

  def _put(self, index: int | None) -> None:
    value = self._stack[-1]
    if value is _Mark:
      raise ValueError('a mark where a value should be')
    self._memo[len(self._memo) if index is None else index] = value

  def _get(self, index: int) -> None:
    self._stack.append(self._memo[index])

  # Containers.

  def _tuple(self, length: int) -> None:
    values = [self._pop() for _ in range(length)]
    self._stack.append(tuple(values[::-1]))

  def _append(self, values: list[Any]) -> None:
    self._top(list).extend(values)

  def _set_items(self, values: list[Any]) -> None:
    if len(values) % 2:
      raise ValueError('a key without a value')
    for key in values[::2]:
      self._budget.check_key(key)
    target = self._top(dict)
    target.update(zip(values[::2], values[1::2], strict=True))

  def _dict(self, values: list[Any]) -> None:
    self._stack.append({})
    self._set_items(values)

  def _add_items(self, values: list[Any]) -> None:
    for value in values:
      self._budget.check_key(value)
    self._top(set).update(values)

  # Names and what they build.

  def _global(self, module: Any, name: Any) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError('a global whose name is no text')
    qualified = f'{module}.{name}'
    if qualified not in self._known:
      raise UserError(
        f'it names {shown(qualified)!r}, which is neither a tensor nor an'
        ' ordinary container: refused, nothing was run'
      )
    self._stack.append(self._known[qualified])

  def _call(self, function: Any, arguments: Any) -> None:
    if not isinstance(function, Known) or function.build is None:
      what = function.name if isinstance(function, Known) else 'a value'
      raise UserError(f'it calls {what}, which is refused')
    if not isinstance(arguments, tuple):
      raise ValueError('arguments that are no tuple')
    self._stack.append(function.build(self._budget, *arguments))

  def _reduce(self) -> None:
    arguments = self._pop()
    self._call(self._pop(), arguments)

  def _build(self) -> None:
    state = self._pop()
    target = self._stack[-1]
    if isinstance(target, Namespace):
      if not isinstance(state, dict) or not all(
        isinstance(key, str) for key in state
      ):
        raise ValueError('a Namespace whose state is no dictionary')
      self._budget.hold(len(state))
      vars(target).update(state)
    elif isinstance(target, Buildable):
      target.set_state(state)
    elif not isinstance(target, dict):
      raise UserError('it sets the state of something other than a container')
    # The attributes of an ordered dictionary (torch keeps version numbers of
    # modules there) say nothing about the weights and are dropped.

  def _stack_global(self) -> None:
    name = self._pop()
    self._global(self._pop(), name)


def _members(budget: Budget, values: Any) -> list[Any]:
  """Lists the members of a container that a file gives as an argument."""
  if not isinstance(values, (list, tuple, set, frozenset)):
    raise ValueError(f'a {type(values).__name__} where members should be')
  budget.hold(len(values))
  return list(values)


def ordered_dict(budget: Budget, pairs: Any = ()) -> dict[Any, Any]:
  """Builds what `collections.OrderedDict(pairs)` would: dicts keep order."""
  if isinstance(pairs, dict):
    budget.hold(len(pairs))
    return dict(pairs)
  result = {}
  for pair in _members(budget, pairs):
    key, value = _members(budget, pair)
    budget.check_key(key)
    result[key] = value
  return result


def default_dict(budget: Budget, factory: Any = None) -> dict[Any, Any]:
  """Builds an ordinary dict for `collections.defaultdict(factory)`."""
  del budget, factory  # A mentioned name; never called.
  return {}


def make_set(budget: Budget, values: Any = ()) -> set[Any]:
  """Builds what `set(values)` would."""
  values = _members(budget, values)
  for value in values:
    budget.check_key(value)
  return set(values)


def make_size(budget: Budget, sizes: Any = ()) -> tuple[Any, ...]:
  """Builds a tuple for `torch.Size(sizes)`."""
  return tuple(_members(budget, sizes))


def make_bytes(budget: Budget, text: str, encoding: str = 'latin1') -> bytes:
  """Builds bytes, which protocol 2 writes as `_codecs.encode(text, 'latin1')`.

  Raises:
    UserError: if the encoding is another one.
  """
  if not isinstance(text, str) or encoding != 'latin1':
    raise UserError('it encodes a text other than by latin1: refused')
  budget.spend(len(text))
  return text.encode('latin1')


# pylint: disable=protected-access
def _push(machine: Machine, value: Any) -> None:
  machine._stack.append(value)


def _push_long(machine: Machine, value: Any) -> None:
  machine._stack.append(machine._budget.make(value))


_STEPS: Mapping[str, Callable[[Machine, Any], Any]] = {
  'PROTO': lambda m, _: None,
  'FRAME': lambda m, _: None,
  'NONE': lambda m, _: m._stack.append(None),
  'NEWTRUE': lambda m, _: m._stack.append(True),
  'NEWFALSE': lambda m, _: m._stack.append(False),
  'MARK': lambda m, _: m._stack.append(_Mark),
  'EMPTY_TUPLE': lambda m, _: m._stack.append(()),
  'EMPTY_LIST': lambda m, _: m._stack.append([]),
  'EMPTY_DICT': lambda m, _: m._stack.append({}),
  'EMPTY_SET': lambda m, _: m._stack.append(set()),
  **dict.fromkeys(
    ['INT', 'BININT', 'BININT1', 'BININT2', 'FLOAT', 'BINFLOAT'], _push
  ),
  **dict.fromkeys(
    [
      *('LONG', 'LONG1', 'LONG4', 'STRING', 'BINSTRING', 'SHORT_BINSTRING'),
      *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'UNICODE', 'BINUNICODE'),
      *('SHORT_BINUNICODE', 'BINUNICODE8'),
    ],
    _push_long,
  ),
  'POP': lambda m, _: m._stack.pop(),
  'POP_MARK': lambda m, _: m._pop_to_mark(),
  'DUP': lambda m, _: m._stack.append(m._stack[-1]),
  'PUT': lambda m, index: m._put(index),
  'BINPUT': lambda m, index: m._put(index),
  'LONG_BINPUT': lambda m, index: m._put(index),
  'MEMOIZE': lambda m, _: m._put(None),
  'GET': lambda m, index: m._get(index),
  'BINGET': lambda m, index: m._get(index),
  'LONG_BINGET': lambda m, index: m._get(index),
  'TUPLE': lambda m, _: m._stack.append(tuple(m._pop_to_mark())),
  'TUPLE1': lambda m, _: m._tuple(1),
  'TUPLE2': lambda m, _: m._tuple(2),
  'TUPLE3': lambda m, _: m._tuple(3),
  'LIST': lambda m, _: m._stack.append(m._pop_to_mark()),
  'DICT': lambda m, _: m._dict(m._pop_to_mark()),
  'FROZENSET': lambda m, _: m._stack.append(
    make_set(m._budget, m._pop_to_mark())
  ),
  'APPEND': lambda m, _: m._append([m._pop()]),
  'APPENDS': lambda m, _: m._append(m._pop_to_mark()),
  'SETITEM': lambda m, _: m._set_items([m._pop(), m._pop()][::-1]),
  'SETITEMS': lambda m, _: m._set_items(m._pop_to_mark()),
  'ADDITEMS': lambda m, _: m._add_items(m._pop_to_mark()),
  'GLOBAL': lambda m, names: m._global(*names.split(' ', 1)),
  'STACK_GLOBAL': lambda m, _: m._stack_global(),
  'REDUCE': lambda m, _: m._reduce(),
  'NEWOBJ': lambda m, _: m._reduce(),
  'BUILD': lambda m, _: m._build(),
  'BINPERSID': lambda m, _: m._stack.append(m._load_persistent(m._pop())),
}
