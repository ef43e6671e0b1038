"""How many operations each stage of a config takes, and how long that would be.

  python benchmarks/hours.py --config=configs/in256.py --images=1281167

An estimate by formula, not a measurement: operations of the networks' products
and convolutions (`models/operations.py`; XLA's count for the reward
network), divided by a rate of operations a second that is assumed. A gradient
counts as two forwards more. Reading data, saving, compiling, optimizers,
exchange between devices and normalisations are left out;
`--config.field=value` changes what is counted as it changes a run. An ENAT
counts at full length, as it is trained and as policies run it; a schedule of 8
steps decodes with a sixth of that.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

from absl import app, flags
import jax
import jax.numpy as jnp
import ml_collections
import output

from adanat_jax.experiment import config as config_lib, networks
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.models import layers, operations
from adanat_jax.models.enat import ENAT
from adanat_jax.models.inception import InceptionV3
from adanat_jax.models.patch_discriminator import PatchDiscriminator
from adanat_jax.stages import judges, policy as policy_stage

# A forward, and its gradient by activations and by parameters.
_TRAINING = 3
# Features of Inception are those of images of this side.
_INCEPTION_SIDE = 299

Config = ml_collections.ConfigDict


def _counted(module: Any, *inputs: jax.ShapeDtypeStruct) -> int:
  """XLA's count of an unrolled forward; nothing is compiled."""
  variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  lowered = jax.jit(module.apply).lower(variables, *inputs)
  return int(lowered.cost_analysis()['flops'])


class Costs:
  """Operations of one forward of each network of a config, for one sample."""

  def __init__(self, config: Config):
    """Counts; nothing is compiled or run."""
    num_tokens = math.prod(networks.grid(config))
    length = 0
    if networks.is_text(config):
      length = networks.text_module(config).num_positions
    tokenizer = networks.tokenizer_module(config)
    actor, critic = networks.policy_modules(config)
    self.encoder = operations.encoder_operations(tokenizer, num_tokens)
    self.decoder = operations.decoder_operations(tokenizer, num_tokens)
    self.nat, self.encoded_anew = _nat(config, length)
    self.actor = operations.policy_operations(actor, config.nat.width)
    self.critic = operations.policy_operations(critic, config.nat.width)
    self.text = 0
    if length:
      text, inputs = networks.module_and_inputs(config, 'text')
      self.text = _counted(text, *inputs)
    self.reward, self.heads = _reward(config)
    num_steps = config.policy.num_steps[0]
    self.sample = operations.sampling_operations(
      self.nat, self.actor, self.decoder, num_steps, guided=True
    )
    # A sample whose features count in a distance.
    self.measured = self.sample
    if config.evaluate.network == 'inception':
      side = _INCEPTION_SIDE
      image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
      self.measured += _counted(InceptionV3(), image)


def _nat(config: Config, text_length: int) -> tuple[int, float]:
  """Of a forward, and how many a training step has beside the one it learns."""
  module = networks.nat_module(config)
  if not isinstance(module, ENAT):
    return operations.nat_operations(module, text_length), 0
  # What is reused is made for all examples as soon as one of them wants it.
  share = config.nat.reuse_probability
  per_batch = config.nat.mask_ratio_per == 'batch'
  return (
    operations.enat_operations(module, text_length=text_length),
    share if per_batch else 1,
  )


def _reward(config: Config) -> tuple[int, int]:
  """Of the reward network, and of the discriminator's heads on it."""
  module = networks.reward_module(config)
  sides = layers.sides_of(module.image_size)
  shape = (1, *sides, module.image_channels)
  image = jax.ShapeDtypeStruct(shape, jnp.float32)
  patches = math.prod(side // module.patch_size for side in sides)
  section = config.policy.discriminator
  per_patch = module.width * (
    module.width * (1 + section.kernel_size) + section.condition_map_width
  )
  num_heads = len(module.hooks) + 1
  return _counted(module, image), 2 * num_heads * patches * per_patch


def stages(
  config: Config, num_images: int, num_captions: int = 1
) -> dict[str, float]:
  """Operations of each stage that a config would run, none for converted ones.

  Args:
    config: the whole config.
    num_images: training images of the data set.
    num_captions: of each image, where it has captions.
  """
  experiment = Experiment(config, 'unused')
  is_converted = experiment.is_converted
  cost = Costs(config)
  result: dict[str, float] = {}
  if not is_converted('tokenizer'):
    result['tokenizer'] = _tokenizer(config, cost)
  stored = experiment.stores_states
  result['judges'] = _judges(experiment, cost)
  # Each image and its mirror image.
  result['prepare'] = num_images * (
    2 * cost.encoder + stored * num_captions * cost.text
  )
  computed = 0 if stored else cost.text
  if not is_converted('nat'):
    nat = config.nat
    trained = _TRAINING if experiment.learns_text else 1
    result['nat'] = (
      nat.num_steps
      * nat.batch_size
      * ((_TRAINING + cost.encoded_anew) * cost.nat + trained * computed)
    )
    every = nat.frechet_every or nat.num_steps
    measured = nat.num_steps // every * nat.frechet_samples
    result['nat, distances'] = measured * cost.measured
  if not is_converted('policy'):
    policy = config.policy
    result['policy'] = _policy(config, cost, computed)
    every = policy.evaluate_every
    rounds = -(-policy.iterations // every) if every else 0
    measured = rounds * policy.evaluate_samples
    result['policy, distances'] = measured * cost.measured
  result['evaluate, a policy'] = config.evaluate.num_samples * cost.measured
  return {stage: count for stage, count in result.items() if count}


def _tokenizer(config: Config, cost: Costs) -> float:
  section = config.tokenizer
  a_step = _TRAINING * (cost.encoder + cost.decoder)
  judged = section.adversarial
  if judged.weight:
    shape = 1, *networks.image_shape(config)
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    network = PatchDiscriminator(
      judged.base_width, judged.num_levels, judged.num_groups
    )
    # Its push on a reconstruction, and what it learns from both.
    share = (1 - judged.start_fraction) * (2 + 2 * _TRAINING)
    a_step += share * _counted(network, image)
  return section.num_steps * section.batch_size * a_step


def _judges(experiment: Experiment, cost: Costs) -> float:
  """Of the judges that are trained, less what reads their captions."""
  config, total = experiment.config, 0
  for name in judges.trained(experiment):
    forward = cost.reward
    if name == 'measure':
      module, inputs = networks.module_and_inputs(config, name)
      forward = _counted(module, *inputs)
    views = 2 if experiment.judges_learn == 'views' else 1
    section = config.judges[name]
    images = section.num_steps * section.batch_size * views
    total += _TRAINING * images * forward
  return total


def _policy(config: Config, cost: Costs, computed: int) -> float:
  section, constants = config.policy, policy_stage.ppo_config(config)
  discriminator = section.discriminator
  learnt_from = discriminator.updates * discriminator.batch_size
  decoded = section.batch_size + discriminator.fresh_rollouts * learnt_from
  acting = section.batch_size * section.num_steps[0] * constants.num_epochs
  features = cost.nat if section.rollout_features == 'recompute' else 0
  seen = section.batch_size + 2 * learnt_from
  an_iteration = (
    decoded * (cost.sample + computed)
    + acting * (features + _TRAINING * (cost.actor + cost.critic))
    + seen * (cost.reward + cost.heads)
    + 2 * learnt_from * (_TRAINING - 1) * cost.heads
  )
  return section.iterations * an_iteration


def table(operations_of: dict[str, float], rates: dict[str, float]) -> str:
  """A table of operations, and of hours at rates a second, by hardware."""
  head = ['stage', '10^15 operations', *(f'hours, {name}' for name in rates)]
  rows = [
    (
      name,
      _rounded(count / 1e15),
      *(_rounded(count / rate / 3600) for rate in rates.values()),
    )
    for name, count in operations_of.items()
  ]
  return output.table(head, rows)


def _rounded(value: float) -> str:
  """Two digits: more would promise too much."""
  value = float(f'{value:.2g}')
  return f'{value:,.0f}' if value >= 10 else f'{value:g}'


def main(argv: Sequence[str]) -> None:
  """Prints the table of a config."""
  del argv
  if flags.FLAGS.config is None:
    raise app.UsageError('--config=FILE is missing')
  rates = {}
  for rate in flags.FLAGS.rate:
    name, _, number = rate.rpartition('=')
    rates[name] = float(number) * 1e12
  counts = stages(flags.FLAGS.config, flags.FLAGS.images, flags.FLAGS.captions)
  print(table(counts, rates))


def run() -> None:
  """Defines the flags, which a module that is imported should not, and runs."""
  config_lib.define_flag()
  flags.DEFINE_integer('images', 0, 'Training images of the data set.')
  flags.DEFINE_integer('captions', 1, 'Captions of each image.')
  flags.DEFINE_multi_string(
    'rate',
    ['one H200=200', 'eight H200=1600'],
    'Hardware, and the 10^12 operations a second it is assumed to sustain.',
  )
  app.run(main, flags_parser=config_lib.parse_flags)


if __name__ == '__main__':
  run()
