"""What tests of preparation share: shrunken configs and small weights."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from adanat_jax.experiment import networks
from support import configs, random_weights, small_weights


def make_config(
  root: pathlib.Path, name: str = 'in256', **overrides
) -> ml_collections.ConfigDict:
  """The shrunken config of a benchmark, over a folder with corrupt files."""
  fields = {
    'data.path': str(root / 'raw'),
    'data.held_out': 6,
    'data.max_corrupt_share': 0.5,
    'tokenizer.init_from': str(root / 'tokenizer'),
    'prepare.batch_size': 4,
    'prepare.shard_size': 6,
    'prepare.num_threads': 2,
  }
  for field, value in overrides.items():
    fields[field.replace('__', '.')] = value
  return configs.load(f'{name}.py:mini', fields)


def write_tokenizer(
  directory: pathlib.Path, config: ml_collections.ConfigDict, scale: float = 1.0
) -> None:
  """Saves a random tokenizer, another one for each scale."""
  module = networks.tokenizer_module(config)
  size = config.data.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  params = random_weights.random_variables(module, image)['params']
  small_weights.save(
    directory, params=jax.tree.map(lambda x: x * scale, params)
  )


def contents(directory: pathlib.Path) -> dict[str, bytes]:
  """Every file of a set, by name."""
  return {
    path.relative_to(directory).as_posix(): path.read_bytes()
    for path in directory.rglob('*')
    if path.is_file()
  }


def tokenize(config, captions, keys=()):
  """In place of CLIP's vocabulary, which is an extra; `keys` say nothing."""
  ids = np.zeros((len(captions), 77), np.int32)
  for row, text in zip(ids, captions, strict=True):
    numbers = np.frombuffer(text.encode()[:70], np.uint8)
    row[0], row[1 + len(numbers)] = 49406, 49407
    row[1 : 1 + len(numbers)] = numbers
  return ids
