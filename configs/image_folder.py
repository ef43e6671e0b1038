"""AdaNAT on your own pictures: from a folder to a policy, samples and a report.

  adanat --config=image_folder:quick --config.data.path=pictures

In a folder of folders each folder is a class; a folder of pictures is one
class. With `--config.data.condition=text` pictures have captions, and a text
network learns to read them with the NAT. Nothing is downloaded: the networks
that measure and reward are trained on the same pictures, unless published ones
are named. docs/own_images.md explains each step. Presets:

  configs/image_folder.py         256 pixels, for one GPU of 40 GB or more
  configs/image_folder.py:laptop  64 pixels, an evening on a laptop
  configs/image_folder.py:quick   64 pixels, half an hour on a laptop
  configs/image_folder.py:tiny    everything once through, in minutes, for tests

All sizes are our choice; the first two have not been run to their end on a
large set of pictures. common.py, digits.py and in256.py, whose networks these
are, explain the fields that are not explained here.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

PRESETS = ('default', 'laptop', 'quick', 'tiny')

_IN256 = pathlib.Path(__file__).with_name('in256.py')


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  config = config_lib.load(
    f'{_IN256}:mini' if preset == 'tiny' else str(_IN256)
  )
  config.unlock()
  _set_recipe(config)
  if preset == 'tiny':
    _make_tiny(config)
  else:
    _set_sizes(config)
  if preset in ('laptop', 'quick'):
    _shrink(config)
  if preset == 'quick':
    _hurry(config)
  return config


def _set_recipe(config: ml_collections.ConfigDict) -> None:
  """Sets what does not depend on the size."""
  data = config.data
  data.source = 'image_folder'
  # Cameras store photographs in the orientation of the sensor.
  data.apply_orientation = True
  # White behind transparent pictures, as on a page.
  data.background = (255, 255, 255)
  data.num_classes = 0

  config.text = text = ml_collections.ConfigDict()
  # Read with data.condition='text'. 'learned' is a small transformer on the
  # words of captions, trained with the NAT; 'given' takes the vectors that any
  # sentence encoder made of them; 'clip' is a frozen tower of CLIP's, whose
  # sizes cc3m256.py has.
  text.network = 'learned'
  text.width = 256
  text.depth = 4
  text.num_heads = 4
  text.mlp_width = 1024
  # Longest caption, in words and signs, and one more for its start: as many
  # tokens for the NAT.
  text.num_positions = 24
  # Of CLIP's tower alone, as the activation.
  text.projection_width = 256
  text.activation = 'gelu'
  text.dtype = 'float32'
  text.init_from = ''
  text.tokenizer = ''
  # Of 'given' alone: a .npz or safetensors file with a vector, or a sequence of
  # vectors, for each caption. They decide text.width and text.num_positions.
  text.vectors = ''
  # Texts to sample, such as "'a red square','two cats'".
  config.sample.captions = ()

  # The rate falls to 0, because the run is short.
  config.nat.learning_rate_schedule = 'cosine'

  policy = config.policy
  # Policies start at the hand-made schedule, with constants for short runs. The
  # discriminator sees the rollouts that PPO has used.
  policy.residual = 'published'
  policy.preset = 'ours'
  policy.discriminator.fresh_rollouts = False
  policy.discriminator.spectral_warmup = 10
  # A tokenizer trained on few pictures blurs, and no schedule can mend that.
  policy.discriminator.reconstruct_real = True

  # No published network measures, and no published figures are compared with.
  config.evaluate.benchmark = ''
  config.evaluate.network = 'measure'
  # Photographs have no black border to move in.
  config.judges.measure.update(max_shift=0, least_crop=0.4, jitter=0.2)
  config.judges.reward.update(
    max_shift=0, least_crop=0.3, jitter=0.3, noise=0.05
  )


def _set_sizes(config: ml_collections.ConfigDict) -> None:
  """Sets sizes for one GPU of 40 GB or more."""
  config.log_every = 100
  config.save_every = 2500
  config.data.held_out = 200

  tokenizer = config.tokenizer
  # The network has its published size, so that `init_from` can name published
  # weights.
  tokenizer.num_steps = 100_000
  tokenizer.batch_size = 16
  tokenizer.measured_images = 2000
  tokenizer.evaluate_every = 5000

  measure = config.judges.measure
  measure.widths = (32, 64, 128, 256, 256, 256, 256)
  measure.feature_width = 256
  measure.num_steps = 10_000
  # Of the size of DINO's, so that `init_from` can name that.
  config.judges.reward.update(num_steps=20_000, cutout=64)

  nat = config.nat
  # As in256_s.py.
  nat.width = 512
  nat.depth = 12
  nat.num_heads = 8
  nat.num_steps = 100_000
  nat.batch_size = 256
  nat.learning_rate = 2e-4
  nat.warmup_steps = 2000
  nat.ema_decay = 0.9995
  nat.micro_batches = 2
  nat.evaluate_every = 2500
  nat.validation_examples = 2000
  nat.sample_grid = 16
  nat.sample_num_steps = 4
  nat.frechet_samples = 2000
  nat.frechet_every = 10_000

  policy = config.policy
  policy.iterations = 200
  policy.batch_size = 1024
  policy.rollout_size = 128
  policy.ppo.micro_batches = 4
  policy.rollout_dtype = 'bfloat16'
  policy.evaluate_every = 20
  policy.evaluate_samples = 2000
  discriminator = policy.discriminator
  discriminator.mapping_width = 256
  discriminator.mapping_layers = 2
  discriminator.batch_size = 128
  discriminator.held_out = 64

  config.evaluate.num_samples = 10_000
  config.evaluate.update(
    precision_recall=1000, density_coverage=1000, kernel_distance=1000
  )
  config.evaluate.batch_size = 64
  config.sample.classes = (0,)
  config.sample.images_per_class = 16


def _shrink(config: ml_collections.ConfigDict) -> None:
  """Replaces the sizes for a GPU by sizes for a laptop."""
  config.save_every = 250
  config.data.image_size = 64
  config.data.held_out = 50
  # Of few pictures one is a large share.
  config.data.max_corrupt_share = 0.1
  config.prepare.shard_size = 1024

  tokenizer = config.tokenizer
  # 64x64 pixels become 8x8 tokens.
  tokenizer.codebook_size = 256
  tokenizer.code_width = 32
  tokenizer.base_width = 32
  tokenizer.width_multipliers = (1, 2, 2, 4)
  tokenizer.num_res_blocks = 1
  tokenizer.num_groups = 8
  tokenizer.num_steps = 4000
  tokenizer.learning_rate = 4e-4
  tokenizer.measured_images = 500
  tokenizer.evaluate_every = 1000
  tokenizer.adversarial.base_width = 32

  measure = config.judges.measure
  measure.widths = (16, 32, 64, 96, 128)
  measure.feature_width = 64
  measure.num_steps = 1500
  measure.batch_size = 64
  # A small transformer of the images as they are.
  reward = config.judges.reward
  reward.update(image_size=0, normalisation='centred', crop_probability=0.0)
  reward.update(patch_size=8, width=96, depth=4, num_heads=4)
  reward.hooks = (0, 1, 2, 3)
  reward.update(num_steps=1500, batch_size=64, cutout=16)

  nat = config.nat
  nat.width = 192
  nat.depth = 6
  nat.num_heads = 6
  nat.num_steps = 6000
  nat.batch_size = 64
  nat.learning_rate = 5e-4
  nat.warmup_steps = 300
  nat.ema_decay = 0.998
  nat.training_dtype = ''
  nat.micro_batches = 1
  nat.evaluate_every = 1000
  nat.validation_examples = 500
  nat.frechet_samples = 0
  nat.frechet_every = 0

  config.text.update(width=128, depth=2, mlp_width=512, num_positions=16)

  policy = config.policy
  policy.num_steps = (4,)
  policy.iterations = 30
  policy.batch_size = 128
  policy.rollout_size = 0
  policy.ppo.micro_batches = 1
  policy.rollout_dtype = 'float32'
  policy.evaluate_every = 0
  policy.iterate = 'last'
  policy.save_every = 5
  policy.network.hidden_size = 64
  policy.network.conv_width = 32
  policy.network.mlp_widths = (128, 64)
  discriminator = policy.discriminator
  discriminator.mapping_width = 64
  discriminator.updates = 2
  discriminator.batch_size = 32
  discriminator.held_out = 16

  # The study compares hand-made schedules with the policy, and its report shows
  # them side by side.
  config.evaluate.protocol = 'study'
  config.evaluate.num_seeds = 4
  config.evaluate.num_samples = 500
  config.evaluate.grid_samples = 200
  config.evaluate.batch_size = 50
  config.report.images_per_class = 16
  config.sample.num_steps = 4


def _hurry(config: ml_collections.ConfigDict) -> None:
  """Makes the laptop's networks narrow and their trainings short."""
  config.data.held_out = 24

  tokenizer = config.tokenizer
  tokenizer.base_width = 16
  tokenizer.width_multipliers = (1, 2, 4, 4)
  # With 157 pictures the held-out error is .108 of the variance; 2,000 steps
  # ended at .157.
  tokenizer.num_steps = 1200
  tokenizer.learning_rate = 1e-3
  tokenizer.measured_images = 100
  tokenizer.evaluate_every = 400
  # It would set in when the tokenizer is still a blur.
  tokenizer.adversarial.weight = 0.0

  config.judges.measure.num_steps = 300
  config.judges.reward.num_steps = 300

  nat = config.nat
  nat.width = 128
  nat.depth = 4
  nat.num_heads = 4
  # After 1,000 steps it knew 157 pictures by heart: a loss of 4.2, and 4.9 on
  # held-out ones.
  nat.num_steps = 1200
  nat.learning_rate = 1e-3
  nat.warmup_steps = 50
  nat.ema_decay = 0.99
  nat.evaluate_every = 400
  nat.validation_examples = 100

  config.policy.iterations = 16
  config.policy.batch_size = 96

  evaluate = config.evaluate
  evaluate.num_seeds = 2
  evaluate.num_samples = 150
  evaluate.grid_samples = 100
  evaluate.max_grid = 12


def _make_tiny(config: ml_collections.ConfigDict) -> None:
  """Sets the fields of in256.py:mini that differ for a folder of pictures."""
  config.data.held_out = 8
  config.text.update(width=32, depth=1, num_heads=2, mlp_width=64)
  config.text.num_positions = 8
  measure, reward = config.judges.measure, config.judges.reward
  measure.update(widths=(4, 8, 8), feature_width=8, num_steps=8, batch_size=16)
  reward.update(image_size=0, normalisation='centred', crop_probability=0.0)
  reward.update(num_steps=8, batch_size=16)
  evaluate = config.evaluate
  evaluate.update(protocol='study', network='measure', num_seeds=1)
  evaluate.update(num_samples=100, grid_samples=100, max_grid=2, batch_size=50)
  config.report.images_per_class = 4
