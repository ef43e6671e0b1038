"""Key maps as tables: our path, their key, and how the axes lie.

The table of a family of networks is a tuple of `Entry`, read from our side: a
leaf of our parameter tree at the path `in_blocks_3/norm1/scale` is matched
against the entries' regular expressions, and the first that fits the whole
path gives their key and the layout. So one table serves every depth, and both
directions.

Each module beside this one defines a `Family`, with a function `infer` that
makes a network of the sizes of its weights, their arrays by key. What no shape
tells, such as the number of attention heads, is an argument, as are further
fields of the network. `infer` raises UserError for other weights.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

from flax import traverse_util
import flax.linen as nn
import jax
import ml_dtypes
import numpy as np

from adanat_jax.convert.reading import some
from adanat_jax.errors import UserError

Arrays = Mapping[str, np.ndarray]

# Tracing a layer takes some ten milliseconds. Published transformers have up to
# 56; a number in a name is quickly written.
_MOST_LAYERS = 128

# What may stand for weights: numbers that lose nothing as floats of ours.
_REAL = 'fiub'


@dataclasses.dataclass(frozen=True)
class Layout:
  """How their array lies compared with ours."""

  # Ours is theirs transposed by these axes; None for the same order.
  axes: tuple[int, ...] | None = None
  unit_axes: int = 0  # Leading axes of size one that only theirs has.

  def to_ours(self, x: np.ndarray) -> np.ndarray:
    """Lays their array out as ours; a view."""
    x = x.reshape(x.shape[self.unit_axes :])
    return x if self.axes is None else x.transpose(self.axes)

  def to_theirs(self, x: np.ndarray) -> np.ndarray:
    """Lays our array out as theirs; a view."""
    if self.axes is not None:
      x = x.transpose(np.argsort(self.axes))
    return x.reshape((1,) * self.unit_axes + x.shape)

  def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape of their array, given the shape of ours."""
    return self.to_theirs(np.broadcast_to(np.int8(0), shape)).shape


SAME = Layout()
LINEAR = Layout((1, 0))  # [out, in] -> [in, out]
CONV = Layout((2, 3, 1, 0))  # [out, in, h, w] -> [h, w, in, out]
CONV1D = Layout((2, 1, 0))  # [out, in, k] -> [k, in, out]
LEAD = Layout(unit_axes=1)  # [1, ...] -> [...]
LEAD2 = Layout(unit_axes=2)  # [1, 1, ...] -> [...]


@dataclasses.dataclass(frozen=True)
class Entry:
  """One line of a table."""

  ours: str  # Pattern of our path, its parts joined by '/'.
  theirs: str  # Their key, with the groups of `ours` as \1, \2 ...
  layout: Layout = SAME  # How the axes lie.


Table = tuple[Entry, ...]


def weight_and_bias(ours: str, theirs: str, layout: Layout) -> Table:
  """The entries of a layer with a kernel and, perhaps, a bias."""
  return (
    Entry(f'{ours}/kernel', f'{theirs}.weight', layout),
    Entry(f'{ours}/bias', f'{theirs}.bias'),
  )


def linear(ours: str, theirs: str) -> Table:
  """The entries of a linear layer."""
  return weight_and_bias(ours, theirs, LINEAR)


def conv(ours: str, theirs: str) -> Table:
  """The entries of a 2-d convolution, depthwise or not."""
  return weight_and_bias(ours, theirs, CONV)


def norm(ours: str, theirs: str) -> Table:
  """The entries of an affine normalisation."""
  return (
    Entry(f'{ours}/scale', f'{theirs}.weight'),
    Entry(f'{ours}/bias', f'{theirs}.bias'),
  )


def transformer_block(ours: str, theirs: str) -> Table:
  """The entries of `layers.TransformerBlock` in timm's naming."""
  return (
    *norm(rf'{ours}/norm1', rf'{theirs}.norm1'),
    *norm(rf'{ours}/norm2', rf'{theirs}.norm2'),
    *linear(rf'{ours}/attention/qkv', rf'{theirs}.attn.qkv'),
    *linear(rf'{ours}/attention/proj', rf'{theirs}.attn.proj'),
    *linear(rf'{ours}/mlp/fc1', rf'{theirs}.mlp.fc1'),
    *linear(rf'{ours}/mlp/fc2', rf'{theirs}.mlp.fc2'),
  )


def floats(*shape: int) -> jax.ShapeDtypeStruct:
  """Describes an input float32[shape] of a network; it takes no memory."""
  return jax.ShapeDtypeStruct(shape, np.float32)


def ints(*shape: int) -> jax.ShapeDtypeStruct:
  """Describes an input int32[shape] of a network; it takes no memory."""
  return jax.ShapeDtypeStruct(shape, np.int32)


def shapes(module: nn.Module, *inputs: Any, **kwargs: Any) -> dict[str, Any]:
  """Returns the shapes of a module's variables; nothing is computed.

  Inputs are arrays, or what `floats` and `ints` return, or trees of them. Where
  a file says how large an input is, take the latter: it may say anything.
  """
  init = _init_of(module, tuple(sorted(kwargs.items())))
  return jax.eval_shape(init, jax.random.key(0), *inputs)


@functools.lru_cache(maxsize=8)
def _init_of(
  module: nn.Module, kwargs: tuple[tuple[str, Any], ...]
) -> Callable[..., dict[str, Any]]:
  """`module.init`, one function for equal modules: JAX traces it once."""
  return lambda key, *inputs: module.init(key, *inputs, **dict(kwargs))


def _find_key(path: str, table: Table) -> tuple[str, Layout]:
  for entry in table:
    match = re.fullmatch(entry.ours, path)
    if match:
      return match.expand(entry.theirs), entry.layout
  raise KeyError(f'the key map has no entry for our parameter {path}')


def to_ours(
  arrays: Arrays,
  table: Table,
  template: Mapping[str, Any],
  *,
  what: str,
  ignore: Callable[[str], bool] = lambda key: False,
) -> dict[str, Any]:
  """Converts their arrays by key, of any float type, to our tree.

  Args:
    arrays: theirs.
    table: the key map.
    template: our tree, with the expected shape and dtype at every leaf
      (see `shapes`).
    what: what the weights are, for the message.
    ignore: which of their keys to skip.

  Returns:
    Our tree, numpy arrays of the template's dtypes; views where possible.

  Raises:
    UserError: if a key is missing, unexpected or of another shape, or if its
      numbers are complex or not finite; all of them are named.
  """
  leaves = traverse_util.flatten_dict(template, sep='/')
  tree, missing, misshapen, bad = {}, [], [], []
  unused = {key for key in arrays if not ignore(key)}
  for path, leaf in leaves.items():
    key, layout = _find_key(path, table)
    if key not in arrays:
      missing.append(key)
      continue
    unused.discard(key)
    value = arrays[key]
    expected = layout.their_shape(leaf.shape)
    if tuple(value.shape) != expected:
      misshapen.append(f'{key} is {tuple(value.shape)}, not {expected}')
      continue
    ours, problem = _as_type(value, leaf.dtype)
    if problem:
      bad.append(f'{key} {problem}')
      continue
    tree[path] = layout.to_ours(ours)
  problems = (
    ('missing', missing),
    ('unexpected', sorted(unused)),
    ('of another shape', misshapen),
    ('without usable numbers', bad),
  )
  found = [f'{len(n)} {kind}: {some(n)}' for kind, n in problems if n]
  if found:
    raise UserError(f'the weights of {what} do not fit; ' + '; '.join(found))
  return traverse_util.unflatten_dict(tree, sep='/')


def _as_type(value: np.ndarray, dtype: Any) -> tuple[np.ndarray, str]:
  """Returns an array in our type, and what is wrong with its numbers."""
  if value.dtype.kind not in _REAL and value.dtype != ml_dtypes.bfloat16:
    return value, f'holds {value.dtype}, which is not a real number'
  with np.errstate(over='ignore', invalid='ignore'):
    ours = np.asarray(value, dtype)
    # A sum is finite only if all are, and takes one pass and no memory.
    if not np.issubdtype(ours.dtype, np.inexact) or np.isfinite(ours.sum()):
      return ours, ''
  count = ours.size - int(np.isfinite(ours).sum())
  said = f'holds NaN or infinity ({count} of {ours.size})' if count else ''
  return ours, said


def to_theirs(tree: Mapping[str, Any], table: Table) -> dict[str, np.ndarray]:
  """Converts our tree to their arrays by key; the inverse of `to_ours`."""
  result = {}
  for path, value in traverse_util.flatten_dict(tree, sep='/').items():
    key, layout = _find_key(path, table)
    result[key] = layout.to_theirs(np.asarray(value))
  return result


def subset(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
  """Returns the keys that begin with `prefix`, without it."""
  return {
    key[len(prefix) :]: value
    for key, value in arrays.items()
    if key.startswith(prefix)
  }


def count(arrays: Arrays, pattern: str, most: int = _MOST_LAYERS) -> int:
  """Counts the different first groups of `pattern` that the keys match.

  Raises:
    UserError: if there are more than `most`: a network of so many layers would
      take hours to trace.
  """
  matches = (re.match(pattern, key) for key in arrays)
  number = len({match.group(1) for match in matches if match})
  if number > most:
    raise UserError(f'its keys number {number} layers; up to {most} are read')
  return number


@dataclasses.dataclass(frozen=True)
class Family:
  """Published weights of one architecture, and our parameters of it."""

  what: str  # What the weights are, for messages.
  # The key map; or a function that makes it of our tree, where their numbering
  # depends on the sizes.
  table: Table | Callable[[Mapping[str, Any]], Table]
  # The module and their arrays -> the inputs that its `init` takes, see
  # `shapes`.
  inputs: Callable[[Any, Arrays], Sequence[Any]]
  # Which of their keys to skip.
  ignore: Callable[[str], bool] = lambda key: False
  # Brings their arrays to the keys of the table, if there are several layouts.
  rename: Callable[[Arrays], Arrays] = lambda arrays: arrays
  # Adds arrays that their code wants and never reads.
  complete: Callable[[Arrays], Arrays] = lambda arrays: arrays
  # Whether our side is every collection of variables, not `params` alone.
  all_variables: bool = False

  def shape_reader(self, arrays: Arrays) -> Callable[[str], tuple[int, ...]]:
    """Returns a function from a key to the shape of its array.

    It raises UserError if the key is not there: these are other weights.
    """
    arrays = self.rename(arrays)

    def shape_of(key: str) -> tuple[int, ...]:
      if key not in arrays:
        raise UserError(
          f'these are not the weights of {self.what}: no {key} among '
          f'{some(sorted(arrays)) or "no keys at all"}'
        )
      return tuple(arrays[key].shape)

    return shape_of

  def to_ours(self, arrays: Arrays, module: nn.Module) -> dict[str, Any]:
    """Returns the parameters of `module` from their arrays by key.

    Raises:
      UserError: if the weights do not fit the module.
    """
    arrays = self.rename(arrays)
    template = shapes(module, *self.inputs(module, arrays))
    if not self.all_variables:
      template = template['params']
    return to_ours(
      arrays,
      self._table_of(template),
      template,
      what=self.what,
      ignore=self.ignore,
    )

  def to_theirs(self, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns their arrays by key; the inverse of `to_ours`."""
    return dict(self.complete(to_theirs(params, self._table_of(params))))

  def _table_of(self, tree: Mapping[str, Any]) -> Table:
    return self.table(tree) if callable(self.table) else self.table
