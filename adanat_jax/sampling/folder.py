"""A generator as one folder that can be moved and shared: numbers, no code.

  config.json                sizes, checksums, class names, tables
  nat.safetensors            the parameters of each network
  tokenizer.safetensors
  policy-T4.safetensors      the actor of each learned policy; if it serves
                             several T, its file is named by the smallest
  text.safetensors           the text network, vocabulary.json perhaps beside
                             it, or words.txt, the words that it knows; or the
                             vectors of captions, which captions.json names
  README.md                  a card for readers

docs/library.md describes `config.json`. Folders come from others: `load`
believes nothing, names every file itself, and runs nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import pkgutil
import shutil
import types
import typing
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from adanat_jax.decoding import actions, guidance, tables
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.decoding.step import StepOptions
from adanat_jax.errors import UserError, printable, shown
from adanat_jax.learning.agent import Agent
from adanat_jax.models.policy import PolicyNetworks
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import files, leaves, processes, sharding
from adanat_jax.sampling import requests
from adanat_jax.sampling.generator import Generator
from adanat_jax.types import PolicyValues

KIND = 'adanat_jax generator'
VERSION = 1
DTYPES = ('float32', 'bfloat16', 'float16')

_SHIPPED = pathlib.Path(__file__).parents[1] / 'shipped'
_CONFIG = 'config.json'
_VOCABULARY = 'vocabulary.json'
_WORDS = 'words.txt'
_CAPTIONS = 'captions.json'
_SHAPE = {
  'batch_size': int,
  'class_names': [str],
  'networks': {str: {'class': str, 'arguments': dict, 'sha256': str}},
  'policies': {
    str: {
      'residual': [[float]],
      'smoothing': float,
      'guided?': (bool, [bool]),
      'learned?': [str],
      'dial?': float,
      'network?': str,
    }
  },
  'schedules': {
    str: {
      'table': {str: [float]},
      'guided': (bool, [bool]),
      'options': dict,
      'priority': (None, [float]),
      'label': str,
      'note': str,
    }
  },
  'vocabulary': (None, str),
  'words?': str,
  'captions?': str,
}
# What a network of a folder may be: its class, and where that is. Only what a
# folder has is imported.
_CLASSES = {
  'nat': {
    'NAT': 'nat',
    'ENAT': 'enat',
    'MaskGITTransformer': 'maskgit',
    'HaltonTransformer': 'halton',
  },
  'tokenizer': {'VQGAN': 'vqgan', 'LlamaGenVQ': 'llamagen'},
  'policy': {'PolicyNetwork': 'policy'},
  'text': {
    'CLIPText': 'clip',
    'CaptionTransformer': 'captions',
    'VectorTable': 'captions',
  },
}
# Of training, or of the machine.
_NOT_SAVED = {'parent', 'name', 'dropout_rate', 'attention'}
# How often something is repeated; all other sizes only change shapes.
_COUNTS = {'depth', 'encoder_depth', 'decoder_depth', 'num_res_blocks'}
_MOST = 512
# As safetensors names them.
_TYPES = {'F32': np.float32, 'BF16': jnp.bfloat16, 'F16': np.float16}


def find(path: str | os.PathLike[str]) -> pathlib.Path:
  """The place of a path, or of a generator that comes with the package."""
  place = pathlib.Path(os.path.expanduser(path))
  shipped = _SHIPPED / os.fspath(path)
  return shipped if not place.exists() and is_generator(shipped) else place


def is_generator(path: pathlib.Path) -> bool:
  """Whether `save` made a folder, in this or another version."""
  try:
    return files.read_json(path / _CONFIG).get('kind') == KIND
  except UserError:
    return False


def save(
  generator: Generator, path: pathlib.Path, dtype: str, about: str
) -> None:
  """Writes a folder, whole or not at all; see `Generator.save`."""
  if dtype not in DTYPES:
    raise UserError(f'dtype is {shown(dtype)}; give one of {", ".join(DTYPES)}')
  path = path.expanduser().resolve()
  is_empty = path.is_dir() and not any(path.iterdir())
  if path.exists() and not is_empty and not is_generator(path):
    raise UserError(
      f'{path} is there and no saved generator; give a new folder, or that of'
      ' an older one'
    )
  contents = _contents(generator, dtype)
  contents['README.md'] = _card(generator, dtype, about).encode()
  temporary = path.with_name(f'.{path.name}.tmp')

  def write() -> None:
    files.make_directory(path.parent)
    shutil.rmtree(temporary, ignore_errors=True)
    files.make_directory(temporary)
    for name, data in contents.items():
      files.write_bytes(temporary / name, data)
    files.publish_directory(temporary, path)

  processes.from_first(write)


def load(path: pathlib.Path) -> Generator:
  """Reads what `save` wrote, on the devices that are here.

  Raises:
    UserError: if anything is missing, changed or of another version.
  """
  where = path / _CONFIG
  version = files.read_json(where, {'version': int})['version']
  if version != VERSION:
    raise UserError(
      f'{where}: its version is {version}, and {VERSION} is read here; use the'
      ' adanat_jax that wrote it'
    )
  config = files.read_json(where, _SHAPE)
  reader = _FolderReader(path, config)
  mesh = sharding.make_mesh()
  nat, nat_params = reader.network('nat')
  tokenizer, tokenizer_params = reader.network('tokenizer')
  features = jax.ShapeDtypeStruct((1, nat.num_tokens, nat.width), jnp.float32)
  inputs = features, 0, 1, 0.0
  agents = {}
  actors: dict[str, Any] = {}
  for steps, entry in config['policies'].items():
    told = f'{where}: policies.{steps}'
    name = entry.get('network', f'policy-T{steps}')
    if name not in {f'policy-T{other}' for other in config['policies']}:
      raise UserError(f'{told} has no network of this folder')
    if name not in actors:
      actor, params = reader.network(name, 'policy', inputs)
      actors[name] = actor, sharding.shard_state({'actor': params}, mesh)
    actor, params = actors[name]
    residual = entry['residual']
    if [len(row) for row in residual] != [4] * _integer(steps):
      raise UserError(f'{told} must be {steps} x 4 numbers')
    agents[int(steps)] = Agent(
      params,
      jnp.float32(residual),
      PolicyNetworks(actor, num_steps=int(steps)),
      entry['smoothing'],
      # Folders of the first version are of guided policies that choose all
      # values, and do not say so.
      guidance.checked(entry.get('guided', True), int(steps), told),
      tuple(entry.get('learned', actions.NAMES)),
      jnp.float32(entry.get('dial', 0.0)) if actor.reads_dial else None,
    )
  encoder = null_condition = None
  if nat.text_width is not None:
    encoder = reader.caption_encoder(nat.text_width)
    null_condition = encoder([''])[0]
  names = tuple(config['class_names'])
  try:
    tokenizer.grid(nat.num_tokens)
    fits = nat.codebook_size == tokenizer.codebook_size
  except UserError:
    fits = False
  if not fits or len(names) not in (0, nat.num_classes):
    raise UserError(f'{where}: its networks or class names do not fit together')
  return Generator(
    nat,
    sharding.shard_state(nat_params, mesh),
    tokenizer,
    sharding.shard_state(tokenizer_params, mesh),
    nat.num_classes or 0,
    agents,
    config['batch_size'],
    null_condition,
    mesh,
    encode_captions=encoder,
    class_names=names,
    schedules=reader.schedules(),
  )


class _FolderReader:
  """A folder that is being read."""

  def __init__(self, path: pathlib.Path, config: dict[str, Any]):
    self._path = path
    self._config = config

  def network(
    self, name: str, kind: str = '', inputs: Any = None
  ) -> tuple[Any, Any]:
    """A network, one of `_CLASSES[kind or name]`, and its parameters."""
    where = f'{self._path / _CONFIG}: networks.{printable(name, 80)}'
    entry = self._config['networks'].get(name)
    places = _CLASSES[kind or name]
    if entry is None or entry['class'] not in places:
      raise UserError(f'{where} is no {" or ".join(places)}')
    place = f'adanat_jax.models.{places[entry["class"]]}:{entry["class"]}'
    module = _make(pkgutil.resolve_name(place), entry['arguments'], where)
    file = self._path / f'{name}.safetensors'
    arrays = _arrays(file, self._bytes(file, entry['sha256']))
    # What comes with the package fits, as a test sees; tracing the networks
    # would cost more than all else here.
    if self._path.parent != _SHIPPED:
      shapes = _shapes(module, inputs or _inputs(module), where)
      _check_shapes(arrays, leaves.by_name(shapes), file)
    return module, traverse_util.unflatten_dict(arrays, sep='/')

  def schedules(self) -> dict[str, Schedule]:
    """The tables by name."""
    found = {}
    for name, entry in self._config['schedules'].items():
      where = f'{self._path / _CONFIG}: schedules.{printable(name, 80)}'
      options = _make(StepOptions, entry['options'], where)
      in_nats = options.commit == 'entropy_bound'
      priority = entry['priority']
      if priority is not None:
        priority = tables.checked_priority(priority, where)
      table = tables.checked_table(entry['table'], where, in_nats=in_nats)
      found[name] = Schedule(
        name,
        table,
        guidance.checked(entry['guided'], len(table.mask_ratio), where),
        options,
        entry['label'],
        entry['note'],
        priority,
      )
    return found

  def caption_encoder(self, width: int) -> requests.EncodeCaptions:
    """The text network, with its vocabulary or the captions that it knows.

    `width` is that of the states that the NAT reads.
    """
    from adanat_jax.models.captions import VectorTable
    from adanat_jax.sampling.captions import CaptionEncoder, VectorEncoder

    module, params = self.network('text')
    if module.width != width:
      raise UserError(
        f'{self._path / _CONFIG}: networks.text is of width {module.width}, and'
        f' networks.nat reads {width}'
      )
    if isinstance(module, VectorTable):
      return VectorEncoder(module, params, self._places(module, params))
    if (checksum := self._config.get('words')) is not None:
      data = self._bytes(self._path / _WORDS, checksum)
      words = data.decode('utf-8', 'replace').split('\n')
      return CaptionEncoder(module, params, words=frozenset(words))
    checksum = self._config['vocabulary']
    if checksum is None:
      return CaptionEncoder(module, params)
    self._bytes(self._path / _VOCABULARY, checksum)
    return CaptionEncoder(module, params, str(self._path / _VOCABULARY))

  def _places(self, table: Any, params: Any) -> dict[str, tuple[int, int]]:
    """Where the vectors of each caption are in a table, which is checked."""
    from adanat_jax.data import caption_vectors

    # No array is as long: only this keeps the null condition small.
    if table.num_positions > caption_vectors.MOST_LENGTH:
      raise UserError(
        f'{self._path / _CONFIG}: networks.text: num_positions is'
        f' {table.num_positions}; at most {caption_vectors.MOST_LENGTH} fit'
      )
    if not len(params['vectors']) or params['vectors'][0].any():
      raise UserError(
        f'{self._path / "text.safetensors"}: the first of its vectors must be'
        ' zeros, the null condition'
      )
    file = self._path / _CAPTIONS
    data = self._bytes(file, self._config.get('captions', ''))
    entry = {'text': str, 'first': int, 'count': int}
    try:
      found = files.parse_json(data, {'captions': [entry]})['captions']
    except ValueError as error:
      raise UserError(f'{file}: {error}') from error
    places: dict[str, tuple[int, int]] = {}
    for entry in found:
      text, first, count = entry['text'], entry['first'], entry['count']
      fits = 0 < first < first + count <= table.num_vectors
      fits = fits and count <= table.num_positions
      is_plain = text and text == caption_vectors.plain(text)
      if not fits or not is_plain or text in places:
        raise UserError(f'{file}: there cannot be {shown(entry)}')
      places[text] = first, count
    return places

  def _bytes(self, file: pathlib.Path, checksum: str) -> bytes:
    data = files.read_bytes(file)
    if hashlib.sha256(data).hexdigest() != checksum:
      raise UserError(
        f'{file}: truncated or changed, its checksum is not that of {_CONFIG};'
        ' copy the folder again'
      )
    return data


def _shapes(module: Any, inputs: tuple[Any, ...], where: str) -> Any:
  """The parameters that a network makes for itself, as shapes."""
  try:
    return jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
  except Exception as error:
    # Sizes that do not go together raise whatever the library raises.
    reason = ' '.join(str(error).split())
    raise UserError(f'{where}: {reason:.200}') from error


def _check_shapes(
  arrays: dict[str, Any], expected: dict[str, Any], file: pathlib.Path
) -> None:
  for key in [*expected, *arrays]:
    found, wanted = (
      list(tree[key].shape) if key in tree else 'absent'
      for tree in (arrays, expected)
    )
    if found != wanted:
      raise UserError(
        f'{file}: {shown(key)} is {found} there and {wanted} by {_CONFIG}'
      )


def _arrays(file: pathlib.Path, data: bytes) -> dict[str, np.ndarray]:
  """The arrays of a safetensors file as float32, all finite."""
  try:
    entries = safetensors.deserialize(data)
  except safetensors.SafetensorError as error:
    raise UserError(f'{file}: {error}') from error
  arrays = {}
  for key, entry in entries:
    if entry['dtype'] not in _TYPES:
      raise UserError(
        f'{file}: {shown(key)} is of {entry["dtype"]}; {", ".join(_TYPES)} are'
        ' read'
      )
    flat = np.frombuffer(entry['data'], _TYPES[entry['dtype']])
    arrays[key] = flat.astype(np.float32).reshape(entry['shape'])
    if not np.isfinite(arrays[key]).all():
      raise UserError(f'{file}: {shown(key)} is not finite')
  return arrays


def _make(kind: Any, given: dict[str, Any], where: str) -> Any:
  """A dataclass of sizes and choices, from JSON."""
  hints = typing.get_type_hints(kind)
  arguments = {}
  for name, value in given.items():
    hint = hints.get(name)
    is_there = hint is not None and name not in _NOT_SAVED
    most = _MOST if name in _COUNTS else 2**31
    if not is_there or not _fits(value, hint, most):
      raise UserError(
        f'{where}: {printable(name, 80)} cannot be {shown(value)}'
      )
    # `Any` is the type of types.
    arguments[name] = (
      jnp.dtype(value)
      if hint is Any
      else tuple(value)
      if isinstance(value, list)
      else value
    )
  try:
    return kind(**arguments)
  except (TypeError, UserError) as error:
    raise UserError(f'{where}: {error}') from error


def _fits(value: Any, hint: Any, most: int) -> bool:
  """Whether a value of JSON is of a type, and no absurd size."""
  origin, inner = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return any(_fits(value, one, most) for one in inner)
  if origin is typing.Literal:
    return value in inner
  if origin is tuple:
    fixed = len(inner) if inner[-1] is not Ellipsis else None
    return (
      isinstance(value, list)
      and len(value) <= 16
      and fixed in (None, len(value))
      and all(_fits(item, inner[0], most) for item in value)
    )
  if hint is Any:
    return value in DTYPES
  if hint is int:
    return type(value) is int and 0 <= value <= most
  if hint is float:
    return type(value) in (int, float)
  return type(value) is hint


def _inputs(module: Any) -> tuple[Any, ...]:
  """Shapes of one example that a network is applied to."""
  if isinstance(module, VQGAN):
    side = module.downsampling
    shape = (1, side, side, module.image_channels)
    return (jax.ShapeDtypeStruct(shape, jnp.float32),)
  if hasattr(module, 'num_positions'):
    # A text network, of so many positions, or of so many words.
    length = module.num_positions * getattr(module, 'word_length', 1)
    return (jax.ShapeDtypeStruct((1, length), jnp.int32),)
  condition = jax.ShapeDtypeStruct((1,), jnp.int32)
  if module.text_width is not None:
    condition = jax.ShapeDtypeStruct((1, 1, module.text_width), jnp.float32)
  return jax.ShapeDtypeStruct((1, module.num_tokens), jnp.int32), condition


def _integer(text: str) -> int:
  return int(text) if text.isdecimal() and len(text) < 10 else -1


def _contents(generator: Generator, dtype: str) -> dict[str, bytes]:
  """The files of a folder by name, but for the card."""
  networks = {
    'nat': (generator.nat, generator.nat_params),
    'tokenizer': (generator.tokenizer, generator.tokenizer_params),
  }
  # Of each policy, by what makes it another one; shared ones are saved once.
  names: dict[tuple[int, Any], str] = {}
  policies = {}
  for steps, agent in sorted(generator.agents.items()):
    if not isinstance(agent.actor_critic, PolicyNetworks):
      raise UserError(
        f'the policy of num_steps={steps} is a function, which cannot be saved;'
        ' leave it out of `agents`'
      )
    actor, params = agent.actor_critic.actor, agent.params['actor']
    name = names.setdefault((id(params), actor), f'policy-T{steps}')
    networks[name] = actor, params
    policies[steps] = {
      'residual': agent.residual,
      'smoothing': agent.smoothing,
      'guided': agent.guided,
      'learned': list(agent.learned),
      'network': name,
      **({} if agent.dial is None else {'dial': float(agent.dial)}),
    }
  contents: dict[str, bytes] = {}
  vocabulary = None
  known: dict[str, str] = {}
  if generator.encode_captions is not None:
    from adanat_jax.sampling.captions import CaptionEncoder, VectorEncoder

    encoder = generator.encode_captions
    if not isinstance(encoder, CaptionEncoder | VectorEncoder):
      raise UserError('`encode_captions` is a function, which cannot be saved')
    networks['text'] = (encoder.module, encoder.params)
    if isinstance(encoder, VectorEncoder):
      contents[_CAPTIONS] = files.json_bytes(
        {
          'captions': [
            {'text': text, 'first': first, 'count': count}
            for text, (first, count) in encoder.places.items()
          ]
        }
      )
      known['captions'] = hashlib.sha256(contents[_CAPTIONS]).hexdigest()
    elif encoder.vocabulary:
      contents[_VOCABULARY] = files.read_bytes(encoder.vocabulary)
      vocabulary = hashlib.sha256(contents[_VOCABULARY]).hexdigest()
    elif encoder.words:
      contents[_WORDS] = '\n'.join(sorted(encoder.words)).encode()
      known['words'] = hashlib.sha256(contents[_WORDS]).hexdigest()
  entries = {}
  for name, (module, params) in networks.items():
    data = _safetensors(name, params, dtype)
    contents[f'{name}.safetensors'] = data
    entries[name] = {
      'class': type(module).__name__,
      'arguments': _arguments(module),
      'sha256': hashlib.sha256(data).hexdigest(),
    }
  config = {
    'kind': KIND,
    'version': VERSION,
    'batch_size': generator.batch_size,
    'class_names': list(generator.class_names),
    'networks': entries,
    'policies': policies,
    'schedules': {
      name: _entry(schedule) for name, schedule in generator.schedules.items()
    },
    'vocabulary': vocabulary,
    **known,
  }
  contents[_CONFIG] = files.json_bytes(files.seal(config))
  return contents


def _safetensors(name: str, params: Any, dtype: str) -> bytes:
  arrays = {}
  for key, leaf in leaves.by_name(sharding.gather(params)).items():
    with np.errstate(over='ignore'):
      array = np.ascontiguousarray(np.asarray(leaf).astype(jnp.dtype(dtype)))
    if not np.isfinite(array.astype(np.float32)).all():
      raise UserError(f'{name}: {key} is not finite in {dtype}')
    arrays[key] = array
  return safetensors.numpy.save(arrays)


def _arguments(module: Any) -> dict[str, Any]:
  """The fields of a dataclass, as JSON."""
  fields = (field.name for field in dataclasses.fields(module))
  return {
    name: jnp.dtype(value).name if name == 'dtype' else value
    for name in fields
    if name not in _NOT_SAVED
    for value in [getattr(module, name)]
  }


def _entry(schedule: Schedule) -> dict[str, Any]:
  if not isinstance(schedule.policy, PolicyValues):
    raise UserError(
      f'the schedule {schedule.name} is no table, and cannot be saved; leave it'
      ' out of `schedules`'
    )
  return {
    'table': schedule.policy.by_name(),
    'guided': schedule.guided,
    'options': _arguments(schedule.options),
    'priority': schedule.priority,
    'label': schedule.label,
    'note': schedule.note,
  }


def _card(generator: Generator, dtype: str, about: str) -> str:
  """A page for people who find the folder."""
  label: object = next(iter(generator.class_names), 0)
  if generator.encode_captions is not None:
    places = getattr(generator.encode_captions, 'places', ())
    label = next(iter(places), 'a red bicycle')
  steps = next(iter(sorted(generator.agents)), None)
  policy = '' if steps else ", policy='maskgit'"
  what = repr(generator)[1:].partition(', on ')[0]
  return f"""---
library_name: adanat_jax
tags: [jax, flax, maskgit, adanat]
---

# A generator of adanat_jax

{what}; parameters saved in {dtype}.

```python
import adanat_jax

generator = adanat_jax.load('.')  # this folder
samples = generator.sample([{label!r}] * 8, num_steps={steps or 8}{policy})
samples.save_grid('samples.png')
```
{about and chr(10) + about.strip() + chr(10)}"""
