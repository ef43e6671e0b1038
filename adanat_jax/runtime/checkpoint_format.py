"""Reads and verifies checkpoints by means of their `meta` item.

`meta` is a JSON file beside the state. It holds what the caller keeps, the
step, the versions of the libraries, layout and checksum of every leaf, and a
checksum of itself.

Every process reads independently, without Orbax's barriers: a process that
found damage would leave the others waiting there. After reading, and again
after comparing checksums, the processes exchange their results, so that all
succeed or all fail.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import gc
import logging
import pathlib
import sys
import time
import traceback
from typing import Any, TypeVar, cast
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

from adanat_jax.errors import UserError
from adanat_jax.runtime import files, leaves, processes

T = TypeVar('T')

# Seconds to wait before each new attempt after a failed read.
_PAUSES = (0.1, 0.5, 2.0)


class DamagedError(Exception):
  """A checkpoint cannot be read, or does not hold what was saved."""


def build(
  step: int, given: Mapping[str, Any], examined: Mapping[str, leaves.Leaf]
) -> dict[str, Any]:
  """Builds the meta item: JSON values of the caller, step, versions, leaves."""
  meta = {
    **files.to_json(dict(given)),
    'step': step,
    'versions': {
      'jax': jax.__version__,
      'numpy': np.__version__,
      'orbax': ocp.__version__,
    },
    'leaves': {
      name: [leaf.layout, leaf.checksum] for name, leaf in examined.items()
    },
  }
  return {**meta, 'checksum': files.checksum(meta)}


def read(path: pathlib.Path) -> dict[str, Any]:
  """Reads and verifies the meta item of the checkpoint directory `path`.

  Raises:
    ValueError, OSError: if it is missing or damaged.
  """
  meta = _restore(path / 'meta', ocp.JsonCheckpointHandler())
  given = meta.pop('checksum')
  if given != files.checksum(meta):
    raise ValueError('the checksum of meta differs')
  if str(meta['step']) != path.name:
    raise ValueError(f'it is that of step {meta["step"]} under another name')
  return meta


def layouts(meta: Mapping[str, Any], field: str = '') -> dict[str, str]:
  """Returns the layouts of the leaves below `field` ('': all leaves)."""
  return {name: leaf[0] for name, leaf in below(meta, field).items()}


def checksums(meta: Mapping[str, Any], field: str = '') -> dict[str, int]:
  """Returns the checksums of the leaves below `field` ('': all leaves)."""
  return {name: leaf[1] for name, leaf in below(meta, field).items()}


def below(meta: Mapping[str, Any], field: str) -> dict[str, Any]:
  """Returns `[layout, checksum]` by name of the leaves below `field`."""
  prefix = f'{field}/' if field else ''
  return {
    name.removeprefix(prefix): leaf
    for name, leaf in meta['leaves'].items()
    if name.startswith(prefix)
  }


def read_state(
  path: pathlib.Path,
  target: Any = None,
  field: str = '',
  *,
  partial: bool = False,
) -> tuple[Any, dict[str, Any]]:
  """Reads and verifies a checkpoint, or one field of its state.

  Args:
    path: the checkpoint's directory.
    target: a pytree of arrays or `jax.ShapeDtypeStruct`s, of the structure to
      read; the restored arrays get its shardings (see `abstract`). None for
      nested dicts as saved.
    field: name of the only field to read; 'a/b' is the field `b` of `a`. ''
      for the whole state.
    partial: whether the state may have leaves that `target` lacks, in nested
      dicts.

  Returns:
    The state or its field, and the meta item.

  Raises:
    DamagedError: in all processes, if one of them cannot read it.
    UserError: if there is no such field, or its leaves, shapes or types are not
      those of `target`.
  """
  parents = field.split('/') if field else []

  def load() -> tuple[Any, dict[str, Any]]:
    meta = read(path)
    saved = layouts(meta, field)
    if not saved:
      fields = sorted({name.split('/')[0] for name in meta['leaves']})
      raise UserError(f'{path}: no field {field!r}, only {fields}')
    item = target
    if target is None:
      item = leaves.nested({k: leaves.of_layout(x) for k, x in saved.items()})
    if partial:
      saved = {k: x for k, x in saved.items() if k in leaves.by_name(target)}
    leaves.check_layout(f'{path}, {field}' if field else path, saved, item)
    item = abstract(item)
    for name in reversed(parents):
      item = {name: item}
    state = _restore(
      path / 'state',
      ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone()),
      ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        # The leaves were compared above. Nodes without leaves may be missing,
        # such as a field that is None and was added after the save.
        partial_restore=True,
      ),
    )
    for name in parents:
      state = state[name]
    return state, meta

  state, meta = together(path, load)
  # All processes compute the checksum of a shared array together, so each must
  # have read its part.
  together(path, lambda: leaves.check_bits(state, checksums(meta, field)))
  return state, meta


def abstract(target: Any) -> Any:
  """Returns `jax.ShapeDtypeStruct`s that all have a sharding.

  A leaf without one is replicated over the ambient mesh, or put on this
  process's first device. Its devices when it was saved may not exist here.
  """
  mesh = jax.sharding.get_mesh()
  if mesh.empty:
    default: jax.sharding.Sharding = jax.sharding.SingleDeviceSharding(
      jax.local_devices()[0]
    )
  else:
    default = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def place(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, 'sharding', None)
    return jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding or default
    )

  return jax.tree.map(place, target)


def together(path: pathlib.Path, load: Callable[[], T]) -> T:
  """Calls `load` in every process, and fails in all if it fails in one.

  Errors of the operating system are retried for a few seconds: on a network
  file system they may pass, and the checkpoint may be good.

  Raises:
    UserError: if `load` raised one, or if reading is not permitted.
    DamagedError: if `load` raised anything else: Orbax reports damage by many
      types, plain Exception among them.
  """
  value: T | None = None
  cause: Exception | None = None
  mistake = damage = ''
  try:
    # Around all attempts: to collect what they left takes a while.
    with quiet():
      for pause in (*_PAUSES, None):
        try:
          value = load()
          break
        except Exception as error:
          if pause is None or not _may_pass(error):
            raise
          time.sleep(pause)
  except MemoryError:
    raise
  except UserError as error:
    mistake, cause = str(error), error
  except PermissionError as error:
    mistake, cause = f'{path}: cannot be read: permission denied', error
  except Exception as error:
    damage, cause = _in_short(error), error
  for index, said in enumerate(processes.all_values([mistake, damage])):
    where = f', in process {index}' if processes.is_shared() else ''
    if said[0]:
      raise UserError(said[0]) from cause
    if said[1]:
      raise DamagedError(said[1] + where) from cause
  return cast(T, value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps Orbax's own traces of a damaged file off the terminal.

  They come from other tasks and coroutines than the one that raises, and are
  printed when these are collected; the caller reports the exception itself.
  """
  loggers = [logging.getLogger(name) for name in ('asyncio', 'absl')]
  levels = [logger.level for logger in loggers]
  hook = sys.unraisablehook
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', RuntimeWarning)
    for logger in loggers:
      logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    try:
      yield
    except Exception as error:
      chained: BaseException | None = error
      while chained is not None:
        traceback.clear_frames(chained.__traceback__)
        chained = chained.__cause__ or chained.__context__
      gc.collect()
      time.sleep(0.02)  # Other threads finish their reads.
      raise
    finally:
      sys.unraisablehook = hook
      for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def _may_pass(error: Exception) -> bool:
  """Whether the operating system failed to read, not the checkpoint."""
  if isinstance(error, PermissionError):
    return False
  return isinstance(error, OSError) or 'os_error_code' in str(error)


def _in_short(error: Exception) -> str:
  """Returns an error's type and the beginning of its first line."""
  first = (str(error) or 'no message').splitlines()[0]
  return f'{type(error).__name__}: {first[:120]}'


def _alone() -> ocp.options.MultiprocessingOptions:
  """Returns options by which this process waits for no other."""
  index = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=index, active_processes={index}
  )


def _restore(path: pathlib.Path, handler: Any, args: Any = None) -> Any:
  """Reads one item of a checkpoint."""
  with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader:
    return reader.restore(path, *(() if args is None else (args,)))
