"""The networks that a config asks for, and where their parameters are.

Each `*_module` builds a network from its section of the config; `load` also
reads its parameters. Networks that not every generator has are imported where
they are built, so that sampling starts sooner.
"""

from __future__ import annotations

from collections.abc import Iterator
import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_collections

from adanat_jax.decoding import actions
from adanat_jax.errors import UserError
from adanat_jax.experiment import config as config_lib
from adanat_jax.models import layers
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.runtime import checkpoint, sharding

if TYPE_CHECKING:
  from adanat_jax.experiment.experiment import Experiment
  from adanat_jax.models.captions import TextNetwork
  from adanat_jax.models.classifier import ConvClassifier
  from adanat_jax.models.denoisers import DenoiserModule
  from adanat_jax.models.discriminator import DiscriminatorHeads
  from adanat_jax.models.vit import VisionTransformer

Config = ml_collections.ConfigDict


def is_text(config: Config) -> bool:
  """Whether the NAT is conditioned on texts instead of classes."""
  return config.data.condition == 'text'


def num_classes(config: Config, *, judged: bool = False) -> int:
  """How many conditions there are, the null condition not counted.

  Args:
    config: its data are what counts.
    judged: how many the networks of stage `judges` tell apart instead: of
      digits all ten, whatever the NAT is asked for; 0 where they learn from
      captions, or from views of the images alone.

  Raises:
    UserError: if the condition is unknown, or texts.
  """
  if judged:
    # A config of an older version says nothing of it.
    training = config.judges.get('training', 'auto')
    count = 10
    if config.data.source != 'digits':
      count = 0 if is_text(config) else num_classes(config)
    return 0 if training == 'views' or count < 2 else count
  if config.data.condition == 'class':
    return config.data.num_classes
  from adanat_jax.data import digits

  return digits.num_conditions(config.data.condition)


def image_shape(config: Config) -> tuple[int, int, int]:
  """(H, W, C) of the images; C is 1 for the digits, 3 for all others."""
  data = config.data
  # A config of an older version, and the digits', says nothing of the width.
  width = data.get('image_width', 0) or data.image_size
  return data.image_size, width, 1 if data.source == 'digits' else 3


def grid(config: Config) -> tuple[int, int]:
  """Rows and columns of the tokens."""
  height, width, _ = image_shape(config)
  return height // downsampling(config), width // downsampling(config)


def problems_of_grids(experiment: Experiment) -> Iterator[str]:
  """Says which weights were trained on a grid of as many tokens, and another.

  Their shapes would fit, and positions would mean other places. Converted
  weights say nothing of their grid.
  """
  ours = grid(experiment.config)
  for section in ('nat', 'policy'):
    directory = experiment.field(section).get('init_from', '')
    try:
      told = checkpoint.read_meta(directory).get('config') if directory else {}
    except UserError:
      continue  # There is none, which is told elsewhere.
    theirs = grid(config_lib.from_json(told)) if told else ours
    if theirs != ours and math.prod(theirs) == math.prod(ours):
      shown = ['x'.join(map(str, sides)) for sides in (theirs, ours)]
      yield (
        f'config.{section}.init_from={directory} was trained on {shown[0]}'
        f' tokens, and the images of config.data have {shown[1]}: give images'
        ' of that shape, or no weights'
      )


def downsampling(config: Config) -> int:
  """Pixels of a token's side."""
  return 2 ** (len(config.tokenizer.width_multipliers) - 1)


def tokenizer_module(config: Config) -> VQGAN:
  """The tokenizer of `config.tokenizer`."""
  section = config.tokenizer
  rows, columns = grid(config)
  kind = VQGAN
  # A config of an older version says nothing of these.
  if section.get('network', 'vqgan') == 'llamagen':
    from adanat_jax.models.llamagen import LlamaGenVQ

    kind = LlamaGenVQ
  return kind(
    codebook_size=section.codebook_size,
    code_width=section.code_width,
    base_width=section.base_width,
    width_multipliers=tuple(section.width_multipliers),
    num_res_blocks=section.num_res_blocks,
    num_groups=section.num_groups,
    image_channels=image_shape(config)[2],
    conv_downsample=section.get('conv_downsample', False),
    columns=0 if rows == columns else columns,
    dtype=_compute_type(section),
  )


def nat_module(config: Config) -> DenoiserModule:
  """The network of `config.nat` for the tokens of `config.tokenizer`."""
  section = config.nat
  network = section.get('network', 'nat')
  sizes = dict(
    codebook_size=config.tokenizer.codebook_size,
    num_tokens=math.prod(grid(config)),
    width=section.width,
    num_heads=section.num_heads,
    num_classes=None if is_text(config) else num_classes(config),
    dtype=_compute_type(section),
  )
  if network == 'maskgit':
    from adanat_jax.models.maskgit import MaskGITTransformer

    hidden = section.mlp_ratio * section.width
    return MaskGITTransformer(depth=section.depth, mlp_width=hidden, **sizes)
  if network == 'halton':
    from adanat_jax.models.halton import HaltonTransformer, mlp_width

    hidden = mlp_width(section.width, section.mlp_ratio)
    return HaltonTransformer(depth=section.depth, mlp_width=hidden, **sizes)
  shared = dict(
    **sizes,
    mlp_ratio=section.mlp_ratio,
    text_width=config.text.width if is_text(config) else None,
    dropout_rate=section.dropout_rate,
    # A workdir of an older version says nothing of these.
    attention=section.get('attention', 'xla'),
  )
  if network == 'nat':
    from adanat_jax.models.nat import NAT

    return NAT(depth=section.depth, **shared)
  from adanat_jax.models.enat import ENAT

  return ENAT(
    encoder_depth=section.encoder_depth,
    decoder_depth=section.decoder_depth,
    **shared,
  )


def text_module(config: Config) -> TextNetwork:
  """The network of `config.text`, which reads captions."""
  section = config.text
  # A config of an older version says nothing of it.
  network = section.get('network', 'clip')
  if network == 'given':
    from adanat_jax.models.captions import VectorTable

    return VectorTable(section.width, section.num_positions)
  if network == 'learned':
    from adanat_jax.data import byte_tokens
    from adanat_jax.models.captions import CaptionTransformer

    return CaptionTransformer(
      section.width,
      section.depth,
      section.num_heads,
      section.mlp_width,
      section.num_positions,
      byte_tokens.ROW,
      byte_tokens.VOCABULARY,
      dtype=_compute_type(section),
    )
  from adanat_jax.models.clip import CLIPText

  return CLIPText(
    section.width,
    section.depth,
    section.num_heads,
    section.mlp_width,
    section.projection_width,
    section.activation,
    dtype=_compute_type(section),
  )


def measuring_module(config: Config) -> ConvClassifier:
  """The convolutional network that measures, `config.judges.measure`."""
  from adanat_jax.models.classifier import ConvClassifier

  section = config.judges.measure
  return ConvClassifier(
    widths=tuple(section.widths),
    num_classes=(
      num_classes(config, judged=True) or config.judges.embedding_width
    ),
    feature_width=section.feature_width,
  )


def reward_module(config: Config) -> VisionTransformer:
  """The vision transformer that rewards build on, `config.judges.reward`."""
  from adanat_jax.models.vit import VisionTransformer

  section = config.judges.reward
  height, width, _ = image_shape(config)
  shown = height if height == width else (height, width)
  directory = section.get('init_from', '')
  num_outputs = _head_width(directory) if directory else None
  if num_outputs is None:  # It is trained here, or by `compare` before.
    judged = num_classes(config, judged=True)
    num_outputs = judged or config.judges.embedding_width
  return VisionTransformer(
    image_size=section.image_size or shown,
    patch_size=section.patch_size,
    width=section.width,
    depth=section.depth,
    num_heads=section.num_heads,
    image_channels=image_shape(config)[2],
    num_outputs=num_outputs,
    hooks=tuple(section.hooks),
    dtype=_compute_type(section),
    attention='auto',
  )


def _head_width(directory: str) -> int | None:
  """Of a saved reward network: 0 for published ones, None if there is none."""
  from adanat_jax.runtime import checkpoint, leaves

  try:
    head = checkpoint.read_layouts(directory).get('params/head/bias')
  except UserError:
    return None
  return leaves.of_layout(head).shape[0] if head else 0


def discriminator_module(config: Config) -> DiscriminatorHeads:
  """The discriminator's heads, `config.policy.discriminator`."""
  from adanat_jax.models.discriminator import DiscriminatorHeads

  section = config.policy.discriminator
  return DiscriminatorHeads(
    num_classes=None if is_text(config) else num_classes(config),
    mapping_width=section.mapping_width,
    mapping_layers=section.mapping_layers,
    condition_map_width=section.condition_map_width,
    kernel_size=section.kernel_size,
  )


def policy_modules(
  config: Config, reads_budget: bool = False
) -> tuple[PolicyNetwork, PolicyNetwork]:
  """Actor and critic of `config.policy.network`."""
  section = config.policy.network
  rows, columns = grid(config)
  sizes = dict(
    grid_size=rows,
    columns=0 if rows == columns else columns,
    hidden_size=section.hidden_size,
    conv_width=section.conv_width,
    mlp_widths=tuple(section.mlp_widths),
    reads_budget=reads_budget,
    # A config of an older version says nothing of it.
    reads_dial=bool(config.policy.get('dial', '')),
  )
  return (
    PolicyNetwork(num_outputs=actions.NUM_ACTIONS, **sizes),
    PolicyNetwork(num_outputs=1, **sizes),
  )


def _compute_type(section: Config) -> jnp.dtype:
  """The type in which the network of a section computes when it is used."""
  # A workdir of an older version may say nothing of it.
  name = section.get('dtype', 'float32')
  if name == 'auto':
    name = 'float32' if sharding.platform() == 'cpu' else 'bfloat16'
  return jnp.dtype(name)


def centred(images: jax.Array) -> jax.Array:
  """Images in [0, 1] as the reward network takes them, in [-1, 1]."""
  return 2.0 * images - 1.0


# Where the parameters of each network are: its section of the config, which is
# also its directory in the workdir, and their name in the checkpoint.
_SECTIONS = {
  'tokenizer': ('tokenizer', 'params'),
  'nat': ('nat', 'ema'),
  'measure': ('judges.measure', 'params'),
  'reward': ('judges.reward', 'params'),
  'text': ('text', 'params'),
}
# The same in the checkpoint of stage `nat` where it trains both.
_TRAINED_TOGETHER = {'nat': 'ema/denoiser', 'text': 'ema/text'}


def load(experiment: Experiment, name: str) -> tuple[Any, Any]:
  """Builds a network and reads its parameters; see `Experiment.network`."""
  section, field = _SECTIONS[name]
  if experiment.learns_text and name in ('nat', 'text'):
    section, field = 'nat', _TRAINED_TOGETHER[name]
  if name == 'nat' and experiment.field(section).get('network') == 'maskgit':
    field = 'params'  # As this kind of weights is converted.
  module, inputs = module_and_inputs(experiment.config, name)
  if name == 'text' and experiment.text_network == 'given':
    from adanat_jax.experiment import texts

    return texts.table(experiment)
  shapes = functools.partial(experiment.param_shapes, module, *inputs)
  # No stage trains CLIP's text tower.
  if experiment.is_converted(section) or section == 'text':
    return module, experiment.load_converted(section, field, shapes())
  hint = ''
  if 'init_from' in experiment.field(section):
    hint = f' name converted weights by config.{section}.init_from, or'
  stage = section.replace('.', '/')
  experiment.require(stage, hint)
  return module, experiment.load_trained(stage, field, shapes)


def module_and_inputs(config: Config, name: str) -> tuple[Any, list[Any]]:
  """A network, and the shapes of one example that it is applied to."""
  image = _shape((1, *image_shape(config)))
  if name == 'tokenizer':
    return tokenizer_module(config), [image]
  if name == 'measure':
    return measuring_module(config), [image]
  if name == 'reward':
    reward = reward_module(config)
    sides = layers.sides_of(reward.image_size)
    return reward, [_shape((1, *sides, reward.image_channels))]
  if name == 'text':
    text = text_module(config)
    length = text.num_positions * getattr(text, 'word_length', 1)
    return text, [_shape((1, length), jnp.int32)]
  nat = nat_module(config)
  condition = _shape((1,), jnp.int32)
  if is_text(config):
    length = text_module(config).num_positions
    condition = _shape((1, length, config.text.width))
  return nat, [_shape((1, nat.num_tokens), jnp.int32), condition]


def _shape(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Any:
  return jax.ShapeDtypeStruct(shape, dtype)
