"""A config and a workdir as objects, each made once.

  experiment = Experiment(config, workdir)
  nat, params = experiment.network('nat')
  examples = experiment.examples('train', 'tokens')
  generator = experiment.generator()

No ConfigDict goes below: those modules take plain arguments. Stages take an
`Experiment`, read its config and pass the values on. Modules that read data or
texts are imported on demand: loading a generator needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
import zlib

import jax
from jax.sharding import Mesh
import ml_collections

from adanat_jax.errors import UserError
from adanat_jax.experiment import (
  config as config_lib,
  field_rules,
  networks,
  policies,
)
from adanat_jax.runtime import checkpoint, journal, sharding
from adanat_jax.sampling.generator import Generator

if TYPE_CHECKING:
  from adanat_jax.data.examples import Examples
  from adanat_jax.data.sources.raw_source import RawSource
  from adanat_jax.decoding.schedules import Schedule

# Tokens of the images that are decoded at a time.
_TOKENS_ON_CPU = 1024
_TOKENS_OF_GIB = 1024

Check: TypeAlias = Callable[['Experiment'], Iterable[str] | None]


class Experiment:
  """What a config and a workdir stand for.

  A network is loaded when it is first asked for, and kept.
  """

  def __init__(
    self, config: ml_collections.ConfigDict, workdir: str | os.PathLike[str]
  ):
    """Reads nothing yet; `~` in paths becomes the home directory."""
    self.config = field_rules.with_home(config)
    self.workdir = pathlib.Path(os.path.expanduser(workdir))
    self._networks: dict[str, tuple[Any, Any]] = {}

  @classmethod
  def of_workdir(cls, workdir: str | os.PathLike[str]) -> Experiment:
    """The experiment that made a workdir, on the devices that are here now.

    Raises:
      UserError: if there is no config, or a generator's field is wrong.
    """
    directory = pathlib.Path(os.path.expanduser(workdir))
    if not os.path.lexists(directory / config_lib.CONFIG_FILE):
      raise UserError(
        f'{directory} is no workdir: it has no {config_lib.CONFIG_FILE}'
      )
    config = config_lib.from_json(config_lib.read_record(directory)['config'])
    field_rules.check_generator(config)
    # How the training was divided says nothing of the devices here.
    fsdp = config.mesh.fsdp
    config.mesh = {'fsdp': fsdp and math.gcd(fsdp, jax.device_count())}
    experiment = cls(config, workdir)
    if experiment.text_network == 'given':
      from adanat_jax.experiment import texts

      # A path of that time may lead to another file now.
      if (experiment.prepared_directory / texts.VECTORS_FILE).is_file():
        experiment.config.text.vectors = ''
    return experiment

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The mesh of `config.mesh`, over all devices of all processes.

    Raises:
      UserError: if `mesh.fsdp` does not divide the number of devices.
    """
    fsdp = self.config.mesh.fsdp
    if not fsdp:
      mesh = sharding.make_mesh()
      memory = sharding.device_memory(mesh)
      fsdp = sharding.devices_of_a_copy(memory, mesh.size)
    try:
      return sharding.make_mesh(fsdp=fsdp)
    except UserError as error:
      raise UserError(f'config.mesh.{error}') from error

  def key(self, name: str) -> jax.Array:
    """The typed key of one training or evaluation, by its name."""
    key = jax.random.key(self.config.seed)
    return jax.random.fold_in(key, self.order_seed(name))

  def order_seed(self, name: str) -> int:
    """The seed of the data order of one training, by its name."""
    return zlib.crc32(f'{self.config.seed}/{name}'.encode())

  @property
  def is_digits(self) -> bool:
    """Whether the images are scikit-learn's digits."""
    return self.config.data.source == 'digits'

  @property
  def background(self) -> tuple[int, ...] | None:
    """What transparent pixels are composited on; None to drop their alpha."""
    data = self.config.data
    given = data.get('background')
    if given is None and data.source == 'webdataset':
      return (255, 255, 255)
    return given or None

  @property
  def mirrors(self) -> bool:
    """Whether training images also count mirrored; never digits."""
    # A config of an older version says nothing of it.
    return not self.is_digits and self.config.data.get('mirror', True)

  @property
  def is_text(self) -> bool:
    """Whether the NAT is conditioned on texts instead of classes."""
    return networks.is_text(self.config)

  @property
  def text_network(self) -> str:
    """What reads captions: `clip`, `learned` or `given`; '' without any."""
    # A config of an older version says nothing of it.
    return self.config.text.get('network', 'clip') if self.is_text else ''

  @property
  def learns_text(self) -> bool:
    """Whether the network that reads captions is trained with the NAT."""
    return self.text_network == 'learned'

  @property
  def judges_learn(self) -> str:
    """By what stage `judges` trains: `classes`, `captions` or `views`."""
    if networks.num_classes(self.config, judged=True):
      return 'classes'
    # A config of an older version says nothing of it.
    given = self.config.judges.get('training', 'auto')
    return 'captions' if self.is_text and given != 'views' else 'views'

  @property
  def stores_states(self) -> bool:
    """Whether states of captions are prepared: those of CLIP's tower.

    Learned ones come too late, and given ones are in a file already.
    """
    stored = self.config.data.get('text_embeddings') == 'store'
    return stored and self.text_network == 'clip'

  @property
  def num_classes(self) -> int:
    """How many classes there are, the null condition not counted.

    Raises:
      UserError: if the condition is of no known kind, or texts.
    """
    return networks.num_classes(self.config)

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes in the order of their ids; () if unknown."""
    if self.is_digits:
      from adanat_jax.data import digits

      return digits.CONDITION_NAMES[self.config.data.condition]
    # tfds writes it beside prepared tokens.
    path = self.prepared_directory / 'label.labels.txt'
    names = path.read_text().splitlines() if path.is_file() else ()
    return tuple(names) if len(names) == self.num_classes else ()

  @property
  def num_tokens(self) -> int:
    """N, the tokens of an image."""
    return math.prod(networks.grid(self.config))

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(H, W, C) of the images."""
    return networks.image_shape(self.config)

  @property
  def image_size(self) -> int | str:
    """Pixels, for people and records: the side, or `height x width`."""
    height, width, _ = self.image_shape
    return height if height == width else f'{height}x{width}'

  def schedule(self, name: str, num_steps: int) -> Schedule:
    """The schedule that a config calls by this name, for its token grid.

    Raises:
      UserError: see `named_schedules.make`.
    """
    from adanat_jax.experiment import named_schedules

    columns = networks.grid(self.config)[1]
    return named_schedules.make(name, num_steps, self.num_tokens, columns)

  @property
  def batch_size(self) -> int:
    """Images that all devices decode at a time: `evaluate.batch_size`.

    0 stands for what their memory holds, by what compilers say that decoding
    takes (docs/scaling.md); a CPU, which serves other purposes too, gets 4
    images of 256 pixels.
    """
    given = self.config.evaluate.batch_size
    if given:
      return given
    memory = sharding.device_memory(self.mesh)
    if memory is None:
      return max(1, _TOKENS_ON_CPU // self.num_tokens)
    return images_of_device(memory, self.num_tokens) * self.mesh.size

  @property
  def prepared_directory(self) -> pathlib.Path:
    """Where stage `prepare` writes, and where tokens are read from."""
    return pathlib.Path(self.config.data.prepared or self.workdir / 'prepare')

  def is_complete(self, stage: str) -> bool:
    """Whether a stage of this workdir has finished."""
    return journal.is_complete(self.workdir / stage)

  def warnings(self) -> list[tuple[str, str]]:
    """What finished stages of this workdir warn of: the stage, a sentence."""
    found: list[tuple[str, str]] = []
    for path in sorted(self.workdir.glob(f'*/{journal.COMPLETE_FILE}')):
      # A stage says itself that its marker is damaged.
      with contextlib.suppress(UserError):
        warnings = journal.read_complete(path.parent).get('warnings', ())
        found += ((path.parent.name, warning) for warning in warnings)
    return found

  def require(self, stage: str, hint: str = '') -> None:
    """Raises UserError unless a stage of this workdir is complete."""
    if not self.is_complete(stage):
      mode = stage.split('/')[0]
      raise UserError(
        f'{self.workdir / stage} holds no finished training;{hint} first run:'
        f' {config_lib.rerun(f"--config.mode={mode}")}'
      )

  def field(self, name: str) -> Any:
    """A field or a section by its dotted name, such as 'judges.reward'."""
    return functools.reduce(getattr, name.split('.'), self.config)

  def is_converted(self, section: str) -> bool:
    """Whether a section names weights by `init_from` that are used as is."""
    given = self.field(section).get('init_from', '')
    return bool(given) and not self.begins_with(section)

  def begins_with(self, section: str) -> str:
    """The checkpoint that a section's training goes on from, or ''."""
    found = self.field(section)
    # A discriminator is always trained. Older configs do not fine-tune.
    trains = section == 'policy.discriminator' or found.get('fine_tune', False)
    return found.get('init_from', '') if trains else ''

  def load_converted(self, section: str, name: str, shapes: Any) -> Any:
    """The pretrained parameters `name` that a section names by `init_from`.

    `shapes` come from `param_shapes`.

    Raises:
      UserError: if the section names none, or parameters of other shapes.
    """
    directory = self.field(section).get('init_from', '')
    if not directory:
      raise UserError(
        f'config.{section}.init_from is empty; give the directory that'
        ' python -m adanat_jax.convert wrote (docs/weights.md)'
      )
    try:
      return checkpoint.load_params(directory, name, shapes)
    except UserError as error:
      raise UserError(f'config.{section}.init_from: {error}') from error

  def param_shapes(self, module: Any, *inputs: Any) -> Any:
    """A module's parameters as `jax.ShapeDtypeStruct`s, whole on all devices.

    Only what is trained is split, so that using a network exchanges nothing.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
    return sharding.placed(shapes, self.mesh, rules=())

  def load_trained(
    self,
    stage: str,
    field: str,
    shapes: Callable[[], Any],
    *,
    best: bool = False,
  ) -> Any:
    """Parameters of a finished stage, whole on all devices; see `load_params`.

    To trace a network for the shapes of its parameters takes longer than to
    read them. Where the stage ran with the networks of this config, its
    checkpoint says them, and `shapes` is not called.
    """
    directory = self.workdir / stage
    meta = checkpoint.read_meta(directory, best=best)
    ours, theirs = config_lib.to_dict(self.config), meta.get('config', {})
    sections = 'data', 'tokenizer', 'nat', 'text', stage.partition('/')[0]
    same = all(ours.get(name) == theirs.get(name) for name in sections)
    target = checkpoint.saved_shapes(meta, field) if same else shapes()
    target = sharding.placed(target, self.mesh, rules=())
    return checkpoint.load_params(directory, field, target, best=best)

  def network(self, name: str) -> tuple[Any, Any]:
    """A network and its parameters, as global arrays.

    They come from the checkpoint of the section's `init_from`, as `python -m
    adanat_jax.convert` wrote it, or from a finished stage.

    Args:
      name: `tokenizer`; `nat` (the moving average of its parameters); `measure`
        and `reward`, the classifiers of stage `judges`; or `text`.

    Raises:
      UserError: if there are none; it names the stage to run first.
    """
    if name not in self._networks:
      self._networks[name] = networks.load(self, name)
    return self._networks[name]

  def raw_source(self, split: str) -> RawSource:
    """The files of a split's raw images; see `datasets.raw_source`."""
    from adanat_jax.experiment import datasets

    return datasets.raw_source(self, split)

  def examples(
    self,
    split: str,
    what: Literal['tokens', 'images', 'judged', 'prompts'] = 'tokens',
    *,
    mirrored: bool = False,
  ) -> Examples:
    """The examples of a split, see `datasets.examples`."""
    from adanat_jax.experiment import datasets

    return datasets.examples(self, split, what, mirrored)

  def check(self, *checks: Check, reads: tuple[str, ...] = ()) -> None:
    """Checks all fields of the config, then how they go together.

    Args:
      *checks: functions of an experiment that yield what is wrong, a line each,
        or raise UserError. A check ends at the first field that it needs and
        that is missing or not allowed.
      reads: the fields and groups that must be there, see `field_rules.check`.

    Raises:
      ConfigError: listing everything that is wrong.
    """

    def ask(check: Check, config: ml_collections.ConfigDict) -> Any:
      same = config is self.config
      return check(self if same else Experiment(config, self.workdir))

    asked = (functools.partial(ask, check) for check in checks)
    field_rules.check(self.config, *asked, reads=reads)

  def no_divisors(self, wholes: Mapping[str, str]) -> Iterator[str]:
    """Says which fields do not divide the field that is named beside them."""
    for name, other in wholes.items():
      value, whole = self.field(name), self.field(other)
      if whole % value:
        yield (
          f'config.{name} is {value}; give a divisor of config.{other}, which'
          f' is {whole}'
        )

  def larger_than_images(self, *names: str) -> Iterator[str]:
    """Says which fields are more pixels than an image's shorter side has."""
    size = min(self.image_shape[:2])
    for name in names:
      if self.field(name) > size:
        yield (
          f'config.{name}={self.field(name)} is not allowed: give at most the'
          f' {size} pixels of the images of config.data'
        )

  def uneven_batches(self, multiples: Mapping[str, int]) -> Iterator[str]:
    """Says which batches cannot be split evenly over the devices.

    `multiples` says, for each dotted field, what every device's share must be a
    multiple of: 8 where samples share statistics in groups of 8.
    """
    devices = self.mesh.size
    for name, multiple in multiples.items():
      size = self.field(name)
      if size % (multiple * devices):
        yield (
          f'config.{name} is {size}; it must be a multiple of'
          f' {multiple * devices}: {devices} devices take equal shares'
          + (f', in groups of {multiple}' if multiple > 1 else '')
        )

  def generator(self) -> Generator:
    """The NAT with its tokenizer and learned policies.

    Of several policies for the same number of steps it takes the first training
    of the first reward.

    Raises:
      UserError: if a network is neither converted nor trained.
    """
    null_condition = encode_captions = None
    if self.is_text:
      from adanat_jax.experiment import texts

      encode_captions = texts.caption_encoder(self)
      null_condition = texts.null_states(self)
    return dataclasses.replace(
      self.generator_of(*self.network('nat'), null_condition),
      agents=policies.agents(self),
      encode_captions=encode_captions,
      class_names=() if self.is_text else self.class_names,
    )

  def drawing_generator(self) -> Generator:
    """That of `config.generator`, by default that of this workdir.

    Raises:
      UserError: see `generator` and `loading.load`.
    """
    path = self.config.get('generator', '')
    if not path:
      return self.generator()
    from adanat_jax.experiment import loading

    try:
      return loading.load(path, compile_cache=False)
    except UserError as error:
      raise UserError(f'config.generator={path}: {error}') from error

  def generator_of(
    self, nat: Any, nat_params: Any, null_condition: Any
  ) -> Generator:
    """A NAT in training, with the tokenizer and without policies.

    `null_condition` is that of texts, None where conditions are classes.
    """
    return Generator(
      nat,
      nat_params,
      *self.network('tokenizer'),
      0 if self.is_text else self.num_classes,
      {},
      self.batch_size,
      null_condition,
      self.mesh,
    )


def images_of_device(memory: float, num_tokens: int) -> int:
  """Images of so many tokens that an accelerator decodes at a time."""
  # To a power of two: a device says a little less than it has.
  share = 2.0 ** round(math.log2(memory / 2**30))
  return max(1, int(share * _TOKENS_OF_GIB) // num_tokens)
