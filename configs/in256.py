"""AdaNAT-L on ImageNet 256: from raw images to the published protocol.

  python -m adanat_jax.main --config=configs/in256.py --workdir=runs/in256 \
      --config.data.path=imagenet/train --config.data.validation_path=... \
      --config.tokenizer.init_from=weights/vqgan \
      --config.judges.reward.init_from=weights/dino \
      --config.evaluate.inception.init_from=weights/inception

prepares tokens, trains NAT and policy, and evaluates; docs/imagenet256.md
explains each step. From published weights alone (docs/weights.md),

  python -m adanat_jax.main --config=configs/in256.py --workdir=runs/sample \
      --config.mode=sample \
      --config.nat.init_from=weights/nat-l \
      --config.tokenizer.init_from=weights/vqgan \
      --config.policy.init_from=weights/policy \
      --config.sample.classes=207,360

samples with the published policy. Without a policy, --config.sample.policy=
autonat_large uses AutoNAT's searched schedule. Presets:

  configs/in256.py        the published sizes and hyperparameters
  configs/in256.py:mini   the same stages with everything small, for tests on a
                          few files of three classes; published weights do
                          not fit its networks
  configs/in256.py:tiny   the published recipe, small, on the digits, from
                          nothing: every stage in minutes
  configs/in256.py:autonat
                          AutoNAT: mode `search` with the published constants,
                          on the same NAT
  configs/in256.py:autonat_tiny
                          the same on the digits, small: modes `tokenizer`,
                          `nat` and `search` in minutes

digits.py and common.py explain the fields not explained here. Sources:
LeapLabTHU/AdaNAT configs/imagenet_256_AdaNAT_L.yaml, train.py and README;
LeapLabTHU/ImprovedNAT configs/AutoNAT_L.yaml, train.py and README, for the NAT
and the search.
"""

import pathlib

import ml_collections
from ml_collections.config_dict import placeholder

from adanat_jax.experiment import config as config_lib

PRESETS = ('default', 'mini', 'tiny', 'autonat', 'autonat_tiny')

_DIGITS = pathlib.Path(__file__).with_name('digits.py')


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  tiny = preset.endswith('tiny')
  config = config_lib.load(f'{_DIGITS}:tiny' if tiny else str(_DIGITS))
  config.unlock()
  set_recipe(config)
  if not tiny:
    set_data(config)
    set_networks(config)
  if preset == 'mini':
    shrink(config)
  if preset.startswith('autonat'):
    set_search(config)
  if preset == 'autonat_tiny':
    shrink_search(config)
  return config


def set_recipe(config: ml_collections.ConfigDict) -> None:
  """Sets the published training and decoding, independent of the size."""
  # AutoNAT README: --beta_alpha_beta 12 3; AutoNAT_L.yaml and train.py.
  config.nat.mask_ratio = 'beta'
  config.nat.beta = (12.0, 3.0)
  config.nat.learning_rate_schedule = 'constant'
  config.nat.weight_decay = 0.03
  config.nat.betas = (0.99, 0.99)
  config.nat.label_smoothing = 0.1
  config.nat.condition_dropping = 0.15
  config.nat.dropout_rate = 0.1
  # AdaNAT train.py: gen_steps; heu = 0 on ImageNet; PPO's constants.
  config.policy.rewards = ('adversarial',)
  config.policy.num_steps = (8,)
  config.policy.residual = 'none'
  config.policy.preset = 'paper'
  # AdaNAT train.py: new rollouts for each update of the discriminator.
  config.policy.discriminator.fresh_rollouts = True
  # The discriminator sees real images as they are.
  config.policy.discriminator.reconstruct_real = False
  # Its spectral norms start without power iterations.
  config.policy.discriminator.spectral_warmup = 0
  config.sample.num_steps = 8


def set_data(config: ml_collections.ConfigDict) -> None:
  """Sets where images come from and where their tokens go."""
  data = config.data
  # 'image_folder' (a folder of classes), 'imagenet_tar' (the official tar
  # files), 'tfds', 'coco', 'cc3m_tsv' or 'webdataset'.
  data.source = 'image_folder'
  # A folder, a file, a glob of tar files, or tfds' data_dir; docs/ has a page
  # for each benchmark.
  data.path = ''
  # The same for the validation images; empty to hold out `held_out` images.
  data.validation_path = ''
  # How many. A hash of their names chooses them, so they are always the same.
  data.held_out = 0
  # For source 'tfds': the name of the data set, such as 'imagenet2012'.
  data.tfds_name = ''
  # For source 'coco': the JSON files of captions. For 'imagenet_tar' the second
  # field names the devkit, with the classes of the validation images; it is
  # found without the field if it lies next to the images.
  data.annotations = ''
  data.validation_annotations = ''
  # Whether photographs are turned upright by their EXIF tag; published: no.
  data.apply_orientation = False
  # Red, green and blue, 0 to 255, behind transparent pixels. (), as published,
  # drops the alpha, so that hidden colours appear. Unset: white for source
  # 'webdataset', as img2dataset has it, () for the other sources.
  data.background = placeholder(tuple)
  # Whether all trainings also see mirror images, as published. False for what a
  # mirror spoils: writing, maps, captions that tell left from right.
  data.mirror = True
  # Files that cannot be read are named and left out. If their share of all
  # files is larger than this, preparation fails.
  data.max_corrupt_share = 0.01
  # Directory of the prepared tokens; empty for <workdir>/prepare. Runs with the
  # same tokenizer may share one.
  data.prepared = ''
  # 'store' writes the states of captions with the tokens, 'compute' runs the
  # text tower in each training step.
  data.text_embeddings = 'store'
  # Height in pixels, and width; 0 for squares.
  data.image_size = 256
  data.image_width = 0
  # What the NAT is conditioned on: 'class' or 'text'.
  data.condition = 'class'
  # How many classes there are. 0: the first run counts those of data.path, and
  # its workdir keeps the number.
  data.num_classes = 1000

  config.prepare = prepare = ml_collections.ConfigDict()
  # Number of images that a process encodes at once, with their mirror images:
  # 0.3 GB of device memory each at 256 pixels.
  prepare.batch_size = 32
  # Number of images whose records share a file. A kill costs a process at most
  # this work; the files of a set should be fewer than the system's limit of
  # open files.
  prepare.shard_size = 8192
  # Number of threads that decode; 0 for one for each processor.
  prepare.num_threads = 0


def set_networks(config: ml_collections.ConfigDict) -> None:
  """Sets the published sizes, and where their weights come from."""
  tokenizer = config.tokenizer
  # configs/vae_configs/vq-f16-jax.yaml: 256x256 pixels become 16x16 tokens.
  tokenizer.codebook_size = 1024
  tokenizer.code_width = 256
  tokenizer.base_width = 128
  tokenizer.width_multipliers = (1, 1, 2, 2, 4)
  tokenizer.num_res_blocks = 2
  tokenizer.num_groups = 32
  tokenizer.dtype = 'auto'
  # Checkpoint of `python -m adanat_jax.convert --kind=vqgan`.
  tokenizer.init_from = ''
  # The fields below train a tokenizer. How the published one was trained is not
  # fully known, so these are our choice: as VQGAN (Esser et al. 2021), without
  # the perceptual loss, which needs one more published network.
  tokenizer.num_steps = 400_000
  # An image takes 1.3 GiB of device memory.
  tokenizer.batch_size = 64
  tokenizer.learning_rate = 1e-4
  tokenizer.betas = (0.5, 0.9)
  tokenizer.error = 'absolute'
  tokenizer.warmup_fraction = 0.05
  tokenizer.codebook_decay = 0.99
  # Photographs have no black border to move in.
  tokenizer.max_shift = 0
  tokenizer.measured_images = 10_000
  tokenizer.evaluate_every = 10_000
  tokenizer.adversarial.weight = 0.5
  tokenizer.adversarial.start_fraction = 0.5

  nat = config.nat
  # imagenet_256_AdaNAT_L.yaml.
  nat.width = 768
  nat.depth = 24
  nat.num_heads = 8
  nat.mlp_ratio = 4
  # AutoNAT_L.yaml.
  nat.num_steps = 500_000
  nat.batch_size = 2048
  nat.learning_rate = 4e-4
  nat.warmup_steps = 5000
  # ImprovedNAT utils.py.
  nat.ema_decay = 0.9999
  nat.attention = 'auto'
  # The original samples in half precision, too.
  nat.dtype = 'auto'
  # The original trains in float16, with scaled losses.
  nat.training_dtype = 'bfloat16'
  # Our choice: parts that should fit one GPU of 140 GB, or 8 devices of 16 GB;
  # with more devices fewer parts are faster. See docs/scaling.md.
  nat.micro_batches = 8
  # Our choice: 10,000 samples take as many operations as some 30 steps.
  nat.evaluate_every = 5000
  nat.validation_examples = 10_000
  nat.sample_grid = 64
  nat.frechet_samples = 10_000
  nat.frechet_every = 25_000
  # Checkpoint of --kind=nat.
  nat.init_from = ''

  policy = config.policy
  # AdaNAT README: --max_training_timesteps 1000; train.py:
  # trajectories_per_upd.
  policy.iterations = 1000
  policy.batch_size = 4096
  policy.kinds = ('adaptive',)
  # Our choice: the original measures 50,000 images after every iteration, which
  # costs five times what the training does.
  policy.evaluate_every = 25
  policy.evaluate_samples = 10_000
  policy.iterate = 'best'
  # Our choice: this fits 8 to 128 devices of 16 GB; see docs/scaling.md.
  policy.rollout_size = 256
  policy.ppo.micro_batches = 16
  # AdaNAT libs/policy.py.
  policy.network.hidden_size = 512
  policy.network.conv_width = 128
  policy.network.mlp_widths = (1024, 512)
  # Checkpoint of --kind=policy; empty to sample without one.
  policy.init_from = ''

  discriminator = policy.discriminator
  # AdaNAT libs/discriminator.py: c_dim 512, eight layers, cmap_dim 64.
  discriminator.mapping_width = 512
  discriminator.mapping_layers = 8
  discriminator.condition_map_width = 64
  discriminator.kernel_size = 9
  # AdaNAT train.py: d_lr; D_epochs; 128 images on each of 8 devices.
  discriminator.learning_rate = 1e-4
  discriminator.updates = 5
  discriminator.batch_size = 1024
  # Our choice: 8 images for each of up to 128 devices.
  discriminator.held_out = 1024

  reward = config.judges.reward
  # DINO ViT-S/16 (AdaNAT libs/discriminator.py). Larger images are cropped half
  # of the time.
  reward.image_size = 224
  reward.normalisation = 'imagenet'
  reward.crop_probability = 0.5
  reward.patch_size = 16
  reward.width = 384
  reward.depth = 12
  reward.num_heads = 6
  reward.hooks = (2, 5, 8, 11)
  reward.dtype = 'auto'
  # Checkpoint of --kind=dino.
  reward.init_from = ''

  evaluate = config.evaluate
  evaluate.protocol = 'published'
  evaluate.network = 'inception'
  evaluate.benchmark = 'imagenet256'
  # AdaNAT train.py: n_samples; labels are drawn, images are not rounded.
  evaluate.num_samples = 50_000
  evaluate.labels = 'uniform'
  evaluate.rounding = 'none'
  # The published reference statistics,
  # fid_stats_imagenet256_guided_diffusion.npz, are of the training images;
  # empty to compute our own from these.
  evaluate.statistics = ''
  evaluate.reference_split = 'train'
  # Our choice: ADM's number of real images. The sources do not compare any.
  evaluate.precision_recall = 10_000
  # Our choice: 4 on a laptop, 64 for each 16 GiB of an accelerator.
  evaluate.batch_size = 0

  config.sample.classes = (207, 360, 387, 974)
  config.sample.images_per_class = 1


def set_search(config: ml_collections.ConfigDict) -> None:
  """Sets AutoNAT's search of a generation strategy, step (a) of its two.

  Step (b), which searches the law of mask ratios in turn with it, is not in the
  released code; what it found, Beta(12, 3), is in `set_recipe`.
  """
  config.mode = 'search'
  search = config.search
  # ImprovedNAT train.py, class DisPatcher: T = 8, so 7 + 7 + 8 + 8 numbers.
  search.num_steps = (8,)
  search.start = 'published'
  search.rounds = 0
  search.repetitions = 1
  search.optimizers = ('finite_differences',)
  # New classes and noise for each evaluation.
  search.common_noise = ('off',)
  # max_upd: 100 updates of 31 evaluations, and the point where they end.
  search.evaluations = 3101
  # eval_n.
  search.num_samples = 50_000
  # Finite differences, rates and momentum; its --clip_grad is off by default.
  search.descent.update(
    ratio_difference=0.01,
    other_difference=0.1,
    ratio_rate=1e-3,
    other_rate=0.1,
    momentum=0.5,
    clip_gradient=0.0,
  )
  # Our choice: the original only logs the lowest distance that it saw.
  search.fresh_seeds = 1
  search.fresh_samples = 50_000
  config.evaluate.labels = 'uniform'
  # test_bsz, of each GPU.
  config.evaluate.batch_size = 125
  # No policy is trained.
  config.evaluate.policies = ('autonat_large',)
  config.sample.policy = 'autonat_large'


def shrink_search(config: ml_collections.ConfigDict) -> None:
  """Makes the search small: two updates for T = 2, of 16 tokens."""
  search = config.search
  search.num_steps = (2,)
  search.evaluations = 15
  search.num_samples = search.fresh_samples = 100
  # About as many tokens of 16 as 0.01 of 256 are.
  search.descent.ratio_difference = 0.16
  config.evaluate.batch_size = 100
  # Needs no network that measures.
  config.evaluate.network = 'pixels'


def shrink(config: ml_collections.ConfigDict) -> None:
  """Makes a config of real images small; changes only sizes."""
  config.log_every = 2
  config.save_every = 4
  config.data.image_size = 32
  config.data.num_classes = 3
  config.prepare.update(batch_size=8, shard_size=8)
  config.tokenizer.update(
    codebook_size=32, code_width=8, base_width=8, num_res_blocks=1
  )
  config.tokenizer.update(num_steps=8, batch_size=16, num_groups=4)
  config.tokenizer.update(measured_images=8, evaluate_every=4)
  config.tokenizer.adversarial.update(num_levels=2, base_width=8, num_groups=4)
  config.tokenizer.width_multipliers = (1, 2, 2, 2)
  config.judges.reward.update(image_size=24, patch_size=8)
  config.judges.reward.update(width=32, depth=4, num_heads=2)
  config.judges.reward.hooks = (0, 1, 2, 3)
  config.nat.update(width=32, depth=2, num_heads=4, num_steps=8, batch_size=16)
  config.nat.update(warmup_steps=2, ema_decay=0.9, micro_batches=2)
  config.nat.update(evaluate_every=4, validation_examples=8)
  config.nat.update(sample_grid=4, sample_num_steps=2)
  config.nat.update(frechet_samples=16, frechet_every=0)
  config.policy.update(iterations=2, batch_size=16, rollout_size=0)
  config.policy.update(evaluate_every=1, evaluate_samples=16)
  config.policy.num_steps = (2,)
  config.policy.ppo.micro_batches = 1
  config.policy.network.update(hidden_size=16, conv_width=8)
  config.policy.network.mlp_widths = (16, 16)
  discriminator = config.policy.discriminator
  discriminator.update(updates=2, batch_size=16, held_out=8)
  discriminator.update(mapping_width=16, condition_map_width=8, kernel_size=3)
  # Inception is too large for a test.
  config.evaluate.update(network='pixels', num_samples=24, batch_size=8)
  config.evaluate.precision_recall = 8
  config.sample.classes = (0, 1)
  config.sample.num_steps = 2
