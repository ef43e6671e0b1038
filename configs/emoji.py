"""AdaNAT on emoji: real colour pictures of two vendors, 64 tokens each.

  npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
  python examples/emoji_pictures.py *.tgz
  adanat --config=emoji

The first two lines make the folder emoji/ (docs/emoji.md). Presets:

  configs/emoji.py         by category, nine classes: an evening on two cores
  configs/emoji.py:names   by name, read by a text network learned with the NAT
  configs/emoji.py:quick   by category, small networks and short trainings; the
                           only one that has been run

image_folder.py:laptop, on which this stands, explains other fields.
"""

import pathlib

import ml_collections

from adanat_jax.experiment import config as config_lib

PRESETS = ('default', 'names', 'quick')

_IMAGE_FOLDER = pathlib.Path(__file__).with_name('image_folder.py')


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  config = config_lib.load(f'{_IMAGE_FOLDER}:laptop')
  config.unlock()
  _set_data(config)
  _set_networks(config)
  if preset == 'names':
    _set_names(config)
  if preset == 'quick':
    _hurry(config)
  return config


def _set_data(config: ml_collections.ConfigDict) -> None:
  """Sets where the pictures are and how they are read."""
  data = config.data
  data.path = 'emoji/train'
  # All vendors' drawings of one emoji lie in one of the two folders.
  data.validation_path = 'emoji/validation'
  data.held_out = 0
  data.image_size = 32
  # Flags, letters, clocks and arrows are other emoji in a mirror.
  data.mirror = False

  config.suite = suite = ml_collections.ConfigDict()
  # Mode `suite`, as in digits.py: hand-made schedules at equal passes, and the
  # learned one where it has been trained.
  # As the policies below.
  suite.passes = (4, 8, 12)
  suite.schedules = (
    *('maskgit', 'maskgit(curve="arccos")', 'random', 'halton'),
    'random(sampling_temperature=0.7)',
    *('entropy', 'moment', 'titok_s128', 'autonat_large', 'learned'),
  )
  suite.num_draws = (1,)


def _set_networks(config: ml_collections.ConfigDict) -> None:
  """Sets sizes for 32 pixels, and trainings for an evening on two cores."""
  tokenizer = config.tokenizer
  # 32x32 pixels become 8x8 tokens. With 256 codes k-means of 4x4 pixels loses
  # .113 of the held-out variance, with 512 .096, with 1,024 .084.
  tokenizer.codebook_size = 512
  tokenizer.code_width = 16
  tokenizer.width_multipliers = (1, 2, 4)
  # Groups of four channels or more, of `quick` too: normalised by itself, a
  # channel forgets how bright a picture is.
  tokenizer.num_groups = 4
  tokenizer.num_steps = 6000
  tokenizer.batch_size = 32
  tokenizer.learning_rate = 1e-3
  # Edges of drawings are sharp without an adversary.
  tokenizer.error = 'squared'
  tokenizer.adversarial.weight = 0.0
  tokenizer.measured_images = 1000
  tokenizer.evaluate_every = 1000

  judges = config.judges
  judges.measure.widths = (16, 32, 64, 128)
  judges.reward.patch_size = 4
  judges.reward.cutout = 8

  nat = config.nat
  nat.num_steps = 5000
  # Drawings are few: dropout delays that they are learned by heart.
  nat.dropout_rate = 0.2
  nat.mask_ratio = 'cosine'
  nat.sample_schedule = 'maskgit'
  nat.sample_num_steps = 8

  policy = config.policy
  policy.num_steps = (4, 8, 12)
  policy.rewards = ('frechet', 'adversarial')
  # As on the digits, where policies that start there end lower.
  policy.residual = 'maskgit'
  # All passes go into steps, none into guidance.
  policy.guided = False
  policy.iterations = 80

  config.evaluate.num_samples = 900
  config.evaluate.grid_samples = 450
  config.evaluate.max_grid = 24
  config.evaluate.precision_recall = 900
  config.evaluate.batch_size = 90
  config.report.images_per_class = 8
  config.sample.classes = tuple(range(9))
  config.sample.images_per_class = 8
  config.sample.num_steps = 8


def _set_names(config: ml_collections.ConfigDict) -> None:
  """Sets what differs for names instead of categories."""
  config.data.condition = 'text'
  # The longest names have eleven words; one more is for the start.
  config.text.num_positions = 12
  config.policy.rewards = ('adversarial',)
  config.evaluate.policies = ('learned', 'maskgit', 'random')
  config.sample.captions = (
    *('grinning face', 'red heart', 'blue heart', 'red apple', 'sun'),
    *('cat face', 'yellow cat', 'green circle', 'japan flag', 'house'),
  )
  config.sample.classes = (0,)


def _hurry(config: ml_collections.ConfigDict) -> None:
  """Makes networks small and trainings short, to see everything once."""
  config.save_every = 100
  tokenizer = config.tokenizer
  tokenizer.base_width = 16
  tokenizer.batch_size = 16
  tokenizer.learning_rate = 2e-3
  tokenizer.num_steps = 3000
  tokenizer.measured_images = 0
  tokenizer.evaluate_every = 0

  config.judges.measure.num_steps = 400
  config.judges.reward.num_steps = 400

  nat = config.nat
  nat.width = 128
  nat.depth = 4
  nat.num_heads = 4
  nat.num_steps = 1200
  nat.learning_rate = 1e-3
  nat.warmup_steps = 50
  nat.ema_decay = 0.99
  nat.dropout_rate = 0.1
  nat.evaluate_every = 600
  nat.validation_examples = 352

  policy = config.policy
  policy.num_steps = (8,)
  policy.rewards = ('frechet',)
  policy.kinds = ('adaptive',)
  policy.iterations = 20
  policy.batch_size = 96

  config.suite.passes = (8,)
  config.evaluate.num_seeds = 2
  config.evaluate.num_samples = 450
  config.evaluate.grid_samples = 180
  config.evaluate.max_grid = 6
