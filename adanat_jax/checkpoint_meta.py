"""The `meta` item of a checkpoint, and reading items without a manager.

`meta` is a JSON file beside the state: the step, the config, the versions of
the libraries, layout and checksum of every leaf, and a checksum of itself.
"""

from collections.abc import Iterator, Mapping
import contextlib
import gc
import json
import logging
import pathlib
import sys
import time
import traceback
from typing import Any
import warnings
import zlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from adanat_jax import files, leaves


def build(
  step: int, given: Mapping[str, Any], examined: Mapping[str, leaves.Leaf]
) -> dict[str, Any]:
  """Returns the whole meta item.

  Args:
    step: number of finished steps.
    given: what the caller wants to keep, e.g. the config.
    examined: the state's leaves by name.
  """
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
  return {**meta, 'checksum': _checksum(meta)}


def read(path: pathlib.Path) -> dict[str, Any]:
  """Reads and checks the meta item of the checkpoint directory `path`.

  Raises:
    ValueError, OSError: if it is missing or damaged.
  """
  with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
    meta = reader.restore(path / 'meta')
  given = meta.pop('checksum')
  if given != _checksum(meta):
    raise ValueError('the checksum of meta differs')
  return meta


def layouts(meta: Mapping[str, Any], field: str = '') -> dict[str, str]:
  """Returns the layouts of the leaves below `field` ('': of all leaves)."""
  return {name: leaf[0] for name, leaf in _below(meta, field).items()}


def checksums(meta: Mapping[str, Any], field: str = '') -> dict[str, int]:
  """Returns the checksums of the leaves below `field` ('': of all leaves)."""
  return {name: leaf[1] for name, leaf in _below(meta, field).items()}


def read_field(path: pathlib.Path, field: str, target: Any) -> Any:
  """Reads one field of the state in the checkpoint directory `path`.

  Args:
    path: the checkpoint's directory.
    field: the field's name; 'a/b' is the field `b` of the field `a`.
    target: abstract arrays with shardings, in the field's structure.

  Returns:
    The field's pytree of arrays; other fields are not read.
  """
  item = target
  for name in reversed(field.split('/')):
    item = {name: item}
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    value = reader.restore(
      path / 'state',
      args=ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
      ),
    )
  for name in field.split('/'):
    value = value[name]
  return value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """Keeps Orbax's own traces of a damaged file off the terminal.

  They come from tasks and coroutines beside the one that raises, and are told
  when these are collected; the exception itself is reported by the caller.
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
      time.sleep(0.02)  # Reads in flight end in other threads.
      raise
    finally:
      sys.unraisablehook = hook
      for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def in_short(error: Exception) -> str:
  """Returns the beginning of an error's first line, with its type."""
  first = (str(error) or 'no message').splitlines()[0]
  return f'{type(error).__name__}: {first[:120]}'


def _below(meta: Mapping[str, Any], field: str) -> dict[str, Any]:
  """Returns the remembered leaves whose names start with `field`, cut off."""
  prefix = f'{field}/' if field else ''
  return {
    name.removeprefix(prefix): leaf
    for name, leaf in meta['leaves'].items()
    if name.startswith(prefix)
  }


def _checksum(meta: Mapping[str, Any]) -> int:
  """Returns a checksum of a meta item that the order of keys leaves alone."""
  return zlib.crc32(json.dumps(meta, sort_keys=True).encode('utf-8'))
