"""The networks that a config asks for, and where their parameters are.

Each `*_module` builds a network from its section of the config; each `load_*`
also reads its parameters: from the checkpoint that the section's `init_from`
names, as `python -m adanat_jax.convert` wrote it, or else from what a finished
stage left in the workdir. It says which stage to run if there is neither.
"""

from __future__ import annotations

from collections.abc import Mapping
import functools
import pathlib
from typing import Any
import zlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import ml_collections

from adanat_jax.data import clip_tokens, digits
from adanat_jax.decoding import actions
from adanat_jax.errors import UserError
from adanat_jax.experiment import config as config_lib
from adanat_jax.experiment.fields import check, choice
from adanat_jax.models.classifier import ConvClassifier
from adanat_jax.models.denoisers import DenoiserModule
from adanat_jax.models.discriminator import DiscriminatorHeads
from adanat_jax.models.enat import ENAT
from adanat_jax.models.nat import NAT
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.models.vit import VisionTransformer
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import checkpoint, journal, sharding

Config = ml_collections.ConfigDict


def mesh_of(config: Config) -> Mesh:
  """The mesh of `config.mesh`, over all devices of all processes.

  Raises:
    UserError: if `mesh.fsdp` does not divide the number of devices.
  """
  try:
    return sharding.make_mesh(fsdp=config.mesh.fsdp)
  except UserError as error:
    raise UserError(f'config.mesh.{error}') from error


def check_batches(config: Config, multiples: Mapping[str, int]) -> None:
  """Refuses batches that cannot be split evenly over the devices.

  Args:
    config: the whole config.
    multiples: for each dotted field what every device's share of it must be a
      multiple of: 8 where samples share statistics in groups of 8.

  Raises:
    UserError: naming the field.
  """
  num_devices = mesh_of(config).size
  for name, multiple in multiples.items():
    size: Any = functools.reduce(getattr, name.split('.'), config)
    if size % (multiple * num_devices):
      raise UserError(
        f'config.{name} is {size}; it must be a multiple of'
        f' {multiple * num_devices}: {num_devices} devices take equal shares'
        + (f', in groups of {multiple}' if multiple > 1 else '')
      )


def is_text(config: Config) -> bool:
  """Whether the NAT is conditioned on texts instead of classes."""
  return config.data.condition == 'text'


def num_classes(config: Config) -> int:
  """How many conditions there are, the null condition not counted.

  Raises:
    UserError: if the condition is of no known kind, or texts.
  """
  if config.data.condition == 'class':
    return config.data.num_classes
  return digits.num_conditions(config.data.condition)


def image_channels(config: Config) -> int:
  """1 for the digits, 3 for all others."""
  return 1 if config.data.source == 'digits' else 3


def grid_size(config: Config) -> int:
  """Side of the square token grid."""
  return config.data.image_size // downsampling(config)


def downsampling(config: Config) -> int:
  """Pixels of a token's side."""
  return 2 ** (len(config.tokenizer.width_multipliers) - 1)


def tokenizer_module(config: Config) -> VQGAN:
  """The VQGAN of `config.tokenizer`."""
  section = config.tokenizer
  return VQGAN(
    codebook_size=section.codebook_size,
    code_width=section.code_width,
    base_width=section.base_width,
    width_multipliers=tuple(section.width_multipliers),
    num_res_blocks=section.num_res_blocks,
    num_groups=section.num_groups,
    image_channels=image_channels(config),
  )


def nat_module(config: Config) -> DenoiserModule:
  """The network of `config.nat` for the tokens of `config.tokenizer`.

  Raises:
    UserError: if `nat.network` is neither `'nat'` nor `'enat'`.
  """
  section = config.nat
  shared = dict(
    codebook_size=config.tokenizer.codebook_size,
    num_tokens=grid_size(config) ** 2,
    width=section.width,
    num_heads=section.num_heads,
    mlp_ratio=section.mlp_ratio,
    num_classes=None if is_text(config) else num_classes(config),
    text_width=config.text.width if is_text(config) else None,
    dropout_rate=section.dropout_rate,
    dtype=jnp.dtype(section.dtype),
    attention=section.attention,
  )
  # A workdir of an older version says nothing of other networks.
  if section.get('network', 'nat') == 'nat':
    return NAT(depth=section.depth, **shared)
  check(config, {'nat.network': choice('nat', 'enat')})
  return ENAT(
    encoder_depth=section.encoder_depth,
    decoder_depth=section.decoder_depth,
    **shared,
  )


def measuring_module(config: Config) -> ConvClassifier:
  """The convolutional classifier that measures, `config.judges.measure`."""
  section = config.judges.measure
  return ConvClassifier(
    widths=tuple(section.widths),
    num_classes=10,
    feature_width=section.feature_width,
  )


def reward_module(config: Config) -> VisionTransformer:
  """The vision transformer that rewards build on, `config.judges.reward`."""
  section = config.judges.reward
  return VisionTransformer(
    image_size=section.image_size or config.data.image_size,
    patch_size=section.patch_size,
    width=section.width,
    depth=section.depth,
    num_heads=section.num_heads,
    image_channels=image_channels(config),
    # Published weights come without a head; ours know ten digits.
    num_outputs=10 if config.data.source == 'digits' else 0,
    hooks=tuple(section.hooks),
  )


def discriminator_module(config: Config) -> DiscriminatorHeads:
  """The discriminator's heads, `config.policy.discriminator`."""
  section = config.policy.discriminator
  return DiscriminatorHeads(
    num_classes=None if is_text(config) else num_classes(config),
    mapping_width=section.mapping_width,
    mapping_layers=section.mapping_layers,
    condition_map_width=section.condition_map_width,
    kernel_size=section.kernel_size,
  )


def policy_modules(config: Config) -> tuple[PolicyNetwork, PolicyNetwork]:
  """Actor and critic of `config.policy.network`."""
  section = config.policy.network
  sizes = dict(
    grid_size=grid_size(config),
    hidden_size=section.hidden_size,
    conv_width=section.conv_width,
    mlp_widths=tuple(section.mlp_widths),
  )
  return (
    PolicyNetwork(num_outputs=actions.NUM_ACTIONS, **sizes),
    PolicyNetwork(num_outputs=1, **sizes),
  )


def centred(images: jax.Array) -> jax.Array:
  """Images in [0, 1] as the reward network takes them, in [-1, 1]."""
  return 2.0 * images - 1.0


def stage_key(config: Config, name: str) -> jax.Array:
  """The typed key of one training or evaluation, by its name."""
  return jax.random.fold_in(
    jax.random.key(config.seed), order_seed(config, name)
  )


def order_seed(config: Config, name: str) -> int:
  """A number for the data order of one training, by its name."""
  return zlib.crc32(f'{config.seed}/{name}'.encode())


def loop_options(
  config: Config,
  best_of: tuple[str, str] | None = ('loss', 'min'),
  keep_best: bool = False,
) -> dict[str, Any]:
  """What every training loop takes from the top of the config.

  Args:
    config: the whole config.
    best_of: which checkpoint is the best, see `loop.run_loop`.
    keep_best: keep it whatever the config says.
  """
  return dict(
    log_every=config.log_every,
    save_every=config.save_every,
    keep_every=config.keep_every or None,
    best_of=best_of if config.keep_best or keep_best else None,
    config_for_meta=config_lib.to_dict(config),
    profile=tuple(config.profile),
    tensorboard=config.tensorboard,
  )


def load_tokenizer(config: Config, workdir: pathlib.Path) -> tuple[VQGAN, Any]:
  """The tokenizer and its trained parameters."""
  module = tokenizer_module(config)
  size = config.data.image_size
  image = jax.ShapeDtypeStruct(
    (1, size, size, module.image_channels), jnp.float32
  )
  return module, _load(config, workdir, 'tokenizer', 'params', module, image)


def load_nat(
  config: Config, workdir: pathlib.Path
) -> tuple[DenoiserModule, Any]:
  """The network of `config.nat` and the moving average of its parameters."""
  module = nat_module(config)
  tokens = jax.ShapeDtypeStruct((1, module.num_tokens), jnp.int32)
  if is_text(config):
    length = clip_tokens.NUM_POSITIONS
    condition = jax.ShapeDtypeStruct(
      (1, length, config.text.width), jnp.float32
    )
  else:
    condition = jax.ShapeDtypeStruct((1,), jnp.int32)
  params = _load(config, workdir, 'nat', 'ema', module, tokens, condition)
  return module, params


def load_measure(
  config: Config, workdir: pathlib.Path
) -> tuple[ConvClassifier, Any]:
  """The measuring network and its parameters."""
  module = measuring_module(config)
  size = config.data.image_size
  image = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
  return module, _load(
    config, workdir, 'judges/measure', 'params', module, image
  )


def load_reward(
  config: Config, workdir: pathlib.Path
) -> tuple[VisionTransformer, Any]:
  """The reward network and its parameters."""
  module = reward_module(config)
  size = module.image_size
  image = jax.ShapeDtypeStruct(
    (1, size, size, module.image_channels), jnp.float32
  )
  return module, _load(
    config, workdir, 'judges/reward', 'params', module, image
  )


def _load(
  config: Config,
  workdir: pathlib.Path,
  stage: str,
  field: str,
  module: Any,
  *inputs: jax.ShapeDtypeStruct,
) -> Any:
  """Parameters of a network, in the shapes that the config gives."""
  shapes = param_shapes(config, module, *inputs)
  section = stage.replace('/', '.')
  if is_converted(config, section):
    return load_converted(config, section, field, shapes)
  if 'init_from' in _section(config, section):
    hint = f', or name converted weights by config.{section}.init_from'
    require(workdir, stage, hint)
  else:
    require(workdir, stage)
  return checkpoint.load_params(workdir / stage, field, shapes)


def is_converted(config: Config, section: str) -> bool:
  """Whether a section, 'nat' or 'judges.reward', names a checkpoint."""
  return bool(_section(config, section).get('init_from', ''))


def load_converted(
  config: Config, section: str, field: str, shapes: Any
) -> Any:
  """The parameters in the checkpoint that a section names by `init_from`.

  Args:
    config: the whole config.
    section: dotted name of the section.
    field: of the checkpoint: `'params'`, `'ema'`.
    shapes: from `param_shapes`.

  Raises:
    UserError: if the section names none, or one of other shapes.
  """
  directory = _section(config, section).get('init_from', '')
  if not directory:
    raise UserError(
      f'config.{section}.init_from is empty; give the directory that'
      ' python -m adanat_jax.convert wrote (docs/weights.md)'
    )
  try:
    return checkpoint.load_params(directory, field, shapes)
  except UserError as error:
    raise UserError(f'config.{section}.init_from: {error}') from error


def _section(config: Config, name: str) -> Config:
  return functools.reduce(getattr, name.split('.'), config)


def param_shapes(config: Config, module: Any, *inputs: Any) -> Any:
  """A module's parameters as `jax.ShapeDtypeStruct`s, placed on the mesh."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
  return sharding.placed(shapes, mesh_of(config))


def is_complete(workdir: pathlib.Path, stage: str) -> bool:
  """Whether a stage of this workdir has finished."""
  return journal.is_complete(workdir / stage)


def require(workdir: pathlib.Path, stage: str, hint: str = '') -> None:
  """Raises UserError unless a stage of this workdir is complete."""
  if not is_complete(workdir, stage):
    mode = stage.split('/')[0]
    raise UserError(
      f'{workdir / stage} holds no finished training; run --config.mode={mode}'
      f' with this workdir first{hint}'
    )
