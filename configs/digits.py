"""AdaNAT on real handwritten digits, trained from nothing on a laptop.

  python -m adanat_jax.main --config=configs/digits.py --workdir=runs/digits

trains a tokenizer, two classifiers, a NAT and a policy, then compares the
policy with hand-made schedules and writes a report. Presets:

  configs/digits.py        T = 4, adversarial reward, one training each
  configs/digits.py:full   T = 2, 4, 8, all three rewards, two trainings each:
                           36 policies
  configs/digits.py:relatives
                           MaskGIT, AutoNAT and AdaNAT, each on a NAT and on an
                           ENAT, T = 2, 4, 8, in at most 90 minutes
  configs/digits.py:frontier
                           one policy for 2 to 16 passes, three trainings of
                           it, searched tables and hand-made schedules, without
                           guidance, at 2, 4, 8 and 16 passes
  configs/digits.py:pod    the default, in batches for up to 16 devices
  configs/digits.py:tiny   everything once through, in minutes, for tests

common.py has the fields that few runs set.
"""

import pathlib

import ml_collections
from ml_collections.config_dict import placeholder

from adanat_jax import schedules
from adanat_jax.experiment import config as config_lib

# What mode `suite` measures: every schedule as it is published, guided or not;
# then orders without guidance at the temperatures 1 and 0.7.
SUITE = (
  *schedules.SCHEDULES,
  'learned',
  'maskgit(curve="arccos")',
  'maskgit(masking_temperature=1000.0)',
  'halton(guidance_scale=0.0)',
  'halton(final_sharpness=1.0, guidance_scale=0.0)',
  'halton(sharpness=1.43, final_sharpness=1.43, guidance_scale=0.0)',
  'random(curve="arccos", sampling_temperature=0.7)',
  *(
    f'{name}(sampling_temperature=0.7)'
    for name in (
      *('random', 'max_prob', 'entropy', 'margin', 'mdlm', 'remdm_cap'),
      *('entropy_bound', 'threshold', 'klass'),
    )
  ),
  *(
    f'{name}(guidance_scale=0.0)'
    for name in ('amused', 'muse', 'titok_l32', 'maskgen')
  ),
)

# What `:frontier` compares the learned policy with, all at a pass a step.
FRONTIER = (
  *('learned', 'searched'),
  *(
    f'maskgit(curve={curve!r}, masking_temperature={masking})'
    for curve in ('cosine', 'pow2', 'arccos')
    for masking in (2.0, 4.5, 9.0)
  ),
  'maskgit(masking_temperature=4.5, sampling_temperature=0.85)',
  *('moment', 'entropy_bound', 'entropy_bound(sampling_temperature=0.7)'),
  *(
    f'halton(sharpness={x}, final_sharpness={x}, guidance_scale=0.0)'
    for x in (1.0, 1.2, 1.43)
  ),
  *(
    f'{order}(curve={curve!r}, sampling_temperature=0.7)'
    for order in ('random', 'max_prob', 'entropy', 'margin')
    for curve in ('cosine', 'arccos')
  ),
)

PRESETS = ('default', 'full', 'relatives', 'frontier', 'pod', 'tiny')

_COMMON = pathlib.Path(__file__).with_name('common.py')


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  config = config_lib.load(str(_COMMON))
  config.unlock()

  # Which stage to run: all, or one of tokenizer, judges, nat, policy, search,
  # evaluate, report, compare, suite, sample, edit, export; or frontier, which
  # is several. The stages prepare and statistics are for other images.
  config.mode = 'all'

  config.data = data = ml_collections.ConfigDict()
  # Where the images come from; in256.py lists the other sources.
  data.source = 'digits'
  # Height and width in pixels; the 8x8 originals are enlarged bilinearly.
  data.image_size = 16
  # The condition: 'parity' (even or odd; the decoder must choose a digit
  # itself, so schedules matter) or 'digit'.
  data.condition = 'parity'

  tokenizer = config.tokenizer
  # The published VQGAN, narrow: 16x16 pixels become 4x4 tokens.
  tokenizer.codebook_size = 128
  # Width of a code.
  tokenizer.code_width = 8
  # Channels of the first layer, and their multiples at each level (all levels
  # but the last halve the sides); residual blocks of a level; groups of the
  # normalisations.
  tokenizer.base_width = 16
  tokenizer.width_multipliers = (1, 2, 4)
  tokenizer.num_res_blocks = 1
  tokenizer.num_groups = 8
  # Length of the training, and images in a batch.
  tokenizer.num_steps = 1200
  tokenizer.batch_size = 96
  tokenizer.learning_rate = 2e-3
  # Fraction of the steps that train a plain autoencoder, before there are
  # codes.
  tokenizer.warmup_fraction = 0.1
  # Weight of the loss that pulls encodings towards their codes.
  tokenizer.commitment = 0.25
  # Decay of the codebook's moving averages.
  tokenizer.codebook_decay = 0.97
  # Training images are shifted by up to this many pixels.
  tokenizer.max_shift = 1
  judges = config.judges
  # The measuring network, a convolutional one.
  judges.measure = measure = ml_collections.ConfigDict()
  # Channels of its levels, and of the features that are compared.
  measure.widths = (16, 32, 64)
  measure.feature_width = 32
  # Its training. Images are cropped to at least the share `least_crop` of their
  # area and enlarged again; their brightness, contrast and saturation change by
  # up to the share `jitter`; they are shifted by up to `max_shift` pixels, get
  # noise of the standard deviation `noise`, and lose a square with the side
  # `cutout`.
  measure.num_steps = 1500
  measure.batch_size = 128
  measure.learning_rate = 1e-3
  measure.least_crop = 1.0
  measure.jitter = 0.0
  measure.max_shift = 1
  measure.noise = 0.05
  measure.cutout = 0
  # The reward network: a small vision transformer, with another augmentation.
  reward = judges.reward
  # Side of a patch in pixels; width, blocks and heads; the blocks after which
  # features are taken.
  reward.patch_size = 4
  reward.width = 64
  reward.depth = 4
  reward.num_heads = 4
  reward.hooks = (0, 1, 2, 3)
  # As for the measuring network.
  reward.num_steps = 1500
  reward.batch_size = 128
  reward.learning_rate = 1e-3
  reward.least_crop = 1.0
  reward.jitter = 0.0
  reward.max_shift = 2
  reward.noise = 0.1
  reward.cutout = 4

  nat = config.nat
  # Width of a token, blocks, heads, and the factor by which an MLP is wider.
  nat.width = 96
  nat.depth = 4
  nat.num_heads = 4
  nat.mlp_ratio = 4
  # Its training, by AdamW; the rate rises over the first `warmup_steps`.
  nat.dropout_rate = 0.1
  nat.num_steps = 3500
  nat.batch_size = 128
  nat.learning_rate = 1.5e-3
  nat.warmup_steps = 200
  # Afterwards it falls to 0 ('cosine') or stays ('constant', as published).
  nat.learning_rate_schedule = 'cosine'
  nat.weight_decay = 0.03
  nat.betas = (0.9, 0.99)
  # Decay, at each step, of the moving average of the parameters, which decoding
  # uses.
  nat.ema_decay = 0.998
  # Share of the target that is spread evenly over all codes.
  nat.label_smoothing = 0.1
  # Share of the examples that are trained with the null condition, for
  # guidance.
  nat.condition_dropping = 0.1
  # Distribution of mask ratios in training: 'beta' with these parameters
  # (AutoNAT's are published), or a curve of decoding/tables.py at a uniform
  # number: 'cosine' (MaskGIT's), 'arccos', 'uniform', 'pow2', 'log' or 'exp'.
  nat.mask_ratio = 'cosine'
  nat.beta = (12.0, 3.0)
  # Type that the network computes in, 'float32', 'bfloat16' or 'auto' (bfloat16
  # on GPUs and TPUs, float32 on CPUs), and 'float32' or 'bfloat16' for training
  # (empty: as nat.dtype). Parameters and their averages are float32.
  nat.dtype = 'float32'
  nat.training_dtype = ''
  # Attention implementation: 'xla', 'cudnn', which needs an NVIDIA GPU and
  # bfloat16 (in nat.dtype too, because sampling uses that), or 'auto', what the
  # device does fastest.
  nat.attention = 'xla'
  policy = config.policy
  # A policy of each kind is trained for each reward, each number of decoding
  # steps T and each repetition.
  policy.rewards = ('adversarial',)
  policy.num_steps = (4,)
  policy.trainings = 1
  # Each iteration samples trajectories and learns from them.
  policy.iterations = 150
  # Kinds of policies: 'adaptive' sees the NAT's features, 'constant' does not;
  # 'shared' sees them and how many steps there are, one policy for all T.
  policy.kinds = ('adaptive', 'constant')
  # Number of trajectories in an iteration.
  policy.batch_size = 384
  policy.log_every = 1
  policy.save_every = 25
  # Constants of PPO: 'paper', or 'ours' for short runs. Fields that are unset
  # below have the preset's value, which learning/ppo.py gives.
  policy.preset = 'ours'
  policy.ppo = ppo = ml_collections.ConfigDict()
  ppo.learning_rate = placeholder(float)
  # Passes over an iteration's trajectories, and gradient steps in each.
  ppo.num_epochs = placeholder(int)
  ppo.num_minibatches = placeholder(int)
  # Minibatches are drawn within this many equal consecutive parts of the batch.
  # If the number of devices divides it, no feature moves between devices.
  ppo.shuffle_groups = placeholder(int)
  # Each gradient is computed in this many parts, one after the other, which
  # takes less memory and gives the same gradient.
  ppo.micro_batches = placeholder(int)
  # Half-width of the interval that ratios are clipped to; weights of the
  # critic's error and of the entropy; limit on a gradient's norm, 0.0 for none.
  ppo.clip_epsilon = placeholder(float)
  ppo.value_coefficient = placeholder(float)
  ppo.entropy_coefficient = placeholder(float)
  ppo.max_gradient_norm = placeholder(float)
  # Exploration: the standard deviation of actions at first and at the end.
  # 'ours' goes linearly from one to the other; 'paper' subtracts 0.3 at
  # iteration 500, with final_std as the lower limit.
  ppo.initial_std = placeholder(float)
  ppo.final_std = placeholder(float)
  # 'linear', or 'steps', which takes `std_decay` off at each of the iterations.
  ppo.std_schedule = placeholder(str)
  ppo.std_decay = placeholder(float)
  ppo.std_decay_steps = placeholder(tuple)
  # Four initial deviations in place of initial_std, in the order of
  # policy.learned's default. All fall to the same final_std.
  ppo.std_per_action = placeholder(tuple)
  # Of rewards, a step; 1.0 as published.
  ppo.discount = placeholder(float)
  # The schedule of a zero action, where policies start: 'maskgit' (unguided),
  # 'published' (AdaNAT's hand-made schedule) or 'none'.
  policy.residual = 'maskgit'
  # Actor and critic; the published widths are 512, 128, (1024, 512).
  policy.network = network = ml_collections.ConfigDict()
  network.hidden_size = 64
  network.conv_width = 32
  network.mlp_widths = (128, 64)
  policy.discriminator = discriminator = ml_collections.ConfigDict()
  # The mapping network for classes; texts come as embeddings and need none.
  discriminator.mapping_width = 64
  discriminator.mapping_layers = 2
  # Of a head: width of the map that is compared with the class; length of the
  # kernel of its convolution.
  discriminator.condition_map_width = 64
  discriminator.kernel_size = 9
  discriminator.learning_rate = 1e-3
  # 'logistic', as published, or 'hinge', the original's option.
  discriminator.loss = 'logistic'
  # Eight consecutive images share statistics, so that a score depends on the
  # other seven. The reward is the mean over so many draws of these, from the
  # parts of the batch that ppo.shuffle_groups makes; published: 1, the batch as
  # it is.
  discriminator.groupings = 1
  # Updates in an iteration; real images, and generated images, in each.
  discriminator.updates = 4
  discriminator.batch_size = 96
  # Power iterations of the spectral norms before the first reward.
  discriminator.spectral_warmup = 10
  # True gives the discriminator new rollouts, as published; False gives it
  # those that PPO has just used, at no cost.
  discriminator.fresh_rollouts = False
  # Whether real images pass through the tokenizer first (as published: False),
  # because no schedule can mend the tokenizer's blur.
  discriminator.reconstruct_real = True
  # Number of test images on which the discriminator's accuracy is logged; 0 for
  # none.
  discriminator.held_out = 96
  # A discriminator to go on from: a checkpoint of --kind=discriminator, or of
  # a policy; empty for that of policy.init_from, or a new one.
  discriminator.init_from = ''

  evaluate = config.evaluate
  # Number of sampling seeds, and of images for each.
  evaluate.num_seeds = 4
  evaluate.num_samples = 2000
  # Which schedules of decoding/schedules.py the study compares with tuned and
  # learned ones; unset: 'maskgit', 'residual' and 'guidance-3'.
  evaluate.schedules = placeholder(tuple)
  # Number of images for each setting of the grid that tunes the hand-made
  # schedule, and how many settings of the grid are tried.
  evaluate.grid_samples = 1000
  evaluate.max_grid = 72
  # Number of images decoded at a time; 0 for what the devices' memory holds.
  evaluate.batch_size = 250
  config.report = report = ml_collections.ConfigDict()
  # Number of images of each class and method in the picture of samples.
  report.images_per_class = 24
  # Number of samples in the picture that shows a decode step by step.
  report.revealed_samples = 3

  config.compare = compare = ml_collections.ConfigDict()
  # Mode `compare`: which networks and which numbers of steps it compares. 'nat'
  # is the NAT of `nat` above; 'enat' is that with the fields of `compare.enat`
  # replaced. Tables are searched as `search` says. Policies are trained as
  # `policy` says, except for its T, and one for each T unless policy.kinds has
  # 'shared'.
  compare.networks = ('nat', 'enat')
  compare.num_steps = (2, 4, 8)
  compare.enat = enat = ml_collections.ConfigDict()
  enat.encoder_depth = 4
  enat.decoder_depth = 1
  enat.reuse_probability = 0.5
  # Which schedules of decoding/schedules.py are compared with searched and
  # learned ones; unset: 'maskgit'.
  compare.schedules = placeholder(tuple)
  # Number of images decoded at a time. For a policy that decides for each
  # sample, an ENAT computes what the most demanding sample of a batch needs, in
  # one of at most `num_buckets` compiled shapes, or else on all tokens.
  compare.batch_size = 100
  compare.num_buckets = 6
  # Number of rounds in which all methods are timed in turn, and of batches of
  # each method in a round.
  compare.timing_rounds = 7
  compare.timing_batches = 5

  config.suite = suite = ml_collections.ConfigDict()
  # Mode `suite`: at which numbers of denoiser passes it measures which
  # schedules; of an adaptive one it finds the bound. At an odd number there is
  # no schedule that is guided at every step. 'learned' is the policy of this
  # workdir that takes that many passes, and 'searched' the table of mode
  # `search`, if there is one.
  suite.passes = (4, 8, 16)
  suite.schedules = SUITE
  # Each also as the best of so many draws of each image, by the discriminator
  # of this workdir's policy; each draw has its part of the passes.
  suite.num_draws = (1,)

  config.sample = sample = ml_collections.ConfigDict()
  # Classes to sample; a class may be repeated.
  sample.classes = (0, 1)
  # Number of images of each, decoded evaluate.batch_size at a time, at most.
  sample.images_per_class = 16
  # A learned policy belongs to one number of steps.
  sample.num_steps = 4
  sample.seed = 0
  # 'learned', 'hand-made' (MaskGIT's), 'table' with a JSON file of the four
  # lists, or a schedule of decoding/schedules.py, such as 'autonat_large'.
  sample.policy = 'learned'
  sample.table = ''
  # See evaluate.num_buckets.
  sample.num_buckets = 0
  # Modes `sample` and `edit` keep the best of so many draws of each image, by
  # the discriminator of the policy, at so many times the cost.
  sample.num_draws = 1
  # How often all is sampled once more, to say how many images a second that is.
  sample.timing_rounds = 0
  # Directory of the pictures; empty for <workdir>/sample.
  sample.output = ''

  if preset == 'full':
    policy.rewards = ('adversarial', 'frechet', 'pretrained')
    policy.num_steps = (2, 4, 8)
    policy.trainings = 2
    evaluate.grid_samples = 2000
  elif preset == 'relatives':
    config.mode = 'compare'
    config.search.start = 'fewer_steps'
    config.search.evaluations = 105
    config.search.num_samples = 300
    config.evaluate.batch_size = 150
  elif preset == 'frontier':
    config.mode = 'frontier'
    policy.update(kinds=('shared',), guided=False, trainings=3, iterations=225)
    policy.num_steps = suite.passes = (2, 4, 8, 16)
    suite.schedules = FRONTIER
    config.search.update(guided=False, start='fewer_steps', evaluations=200)
    config.search.update(num_steps=(2, 4, 8, 16), num_samples=500)
  elif preset == 'pod':
    # Each group of 8 samples shares statistics and lies on one device.
    policy.discriminator.update(batch_size=128, held_out=128)
  elif preset == 'tiny':
    _make_tiny(config)
  return config


def _make_tiny(config: ml_collections.ConfigDict) -> None:
  """Makes everything small: the pipeline runs in minutes; images are poor."""
  config.log_every = 5
  config.save_every = 10
  config.tokenizer.update(num_steps=30, batch_size=32, base_width=8)
  for classifier in (config.judges.measure, config.judges.reward):
    classifier.update(num_steps=30, batch_size=32)
  config.judges.reward.update(width=16, depth=2, num_heads=2, hooks=(0, 1))
  config.nat.update(num_steps=30, batch_size=32, width=32, depth=2)
  config.policy.update(iterations=4, batch_size=32, save_every=2)
  config.policy.network.update(hidden_size=16, conv_width=8)
  config.policy.network.mlp_widths = (16, 16)
  config.policy.discriminator.update(updates=2, batch_size=16, held_out=16)
  config.evaluate.update(
    num_seeds=2, num_samples=100, grid_samples=100, max_grid=4, batch_size=100
  )
  config.evaluate.precision_recall = 50
  config.search.update(
    evaluations=6, num_samples=100, fresh_seeds=2, fresh_samples=100
  )
  config.search.training_steps = 10
  config.compare.update(
    num_steps=(2,), batch_size=20, timing_rounds=2, timing_batches=1
  )
  config.report.images_per_class = 4
  config.suite.passes = (4,)
