"""AdaNAT from nothing on real handwritten digits, on a laptop.

  python -m adanat_jax.main --config=configs/digits.py --workdir=runs/digits

trains a tokenizer, the networks that judge images, a NAT and a policy, then
compares the policy with hand-made schedules and writes a report. Presets:

  configs/digits.py        T = 4, adversarial reward, one training each
  configs/digits.py:full   T = 2, 4, 8, all three rewards, two trainings each,
                           shorter ones: 36 policies in about two hours
  configs/digits.py:pod    the default, in batches for up to 16 devices
  configs/digits.py:tiny   everything once through, in minutes, for tests
"""

import ml_collections
from ml_collections.config_dict import placeholder

PRESETS = ('default', 'full', 'pod', 'tiny')


def get_config(preset: str = 'default') -> ml_collections.ConfigDict:
  """The configuration of a preset; every field can be overridden by a flag."""
  config = ml_collections.ConfigDict()

  # Which stage to run: all, or one of tokenizer, judges, nat, policy,
  # search, evaluate, report, sample.
  config.mode = 'all'
  # Everything random follows from this number.
  config.seed = 0
  # First and last step of each training loop to trace with jax.profiler;
  # (0, 0) traces nothing.
  config.profile = (0, 0)
  # Every training loop logs a row after this many steps, and saves after this
  # many; where it is stopped and resumed changes nothing in its result.
  config.log_every = 50
  config.save_every = 250
  # The two newest checkpoints of a training stay, and those of steps that this
  # divides; 0 keeps no others.
  config.keep_every = 0
  # Also keep the best one: of a policy that of the highest reward, or of the
  # smallest distance where it is measured; of other networks that of the lowest
  # loss. What comes after uses the last one, but see policy.iterate.
  config.keep_best = False
  # Write TensorBoard files beside metrics.jsonl if tensorboardX is installed.
  config.tensorboard = True

  config.mesh = mesh = ml_collections.ConfigDict()
  # All devices share the work; this many of them also share one copy of the
  # NAT's large matrices. 1 keeps a copy on each.
  mesh.fsdp = 1

  config.data = data = ml_collections.ConfigDict()
  # Where the images come from; in256.py has the others.
  data.source = 'digits'
  # Height and width in pixels; the 8x8 originals are enlarged bilinearly.
  data.image_size = 16
  # What the decoder is told: 'parity' (even or odd; it must settle on a digit
  # itself, so schedules matter) or 'digit'.
  data.condition = 'parity'

  config.tokenizer = tokenizer = ml_collections.ConfigDict()
  # The published VQGAN, narrow: 16x16 pixels become 4x4 tokens.
  tokenizer.codebook_size = 128
  tokenizer.code_width = 8
  tokenizer.base_width = 16
  tokenizer.width_multipliers = (1, 2, 4)
  tokenizer.num_res_blocks = 1
  tokenizer.num_groups = 8
  tokenizer.num_steps = 1200
  tokenizer.batch_size = 96
  tokenizer.learning_rate = 2e-3
  # Decays of Adam's two averages.
  tokenizer.betas = (0.9, 0.999)
  # How far a reconstruction is from its image: 'squared' or 'absolute', the
  # mean over all of their values.
  tokenizer.error = 'squared'
  # Share of the steps as a plain autoencoder, before codes are set.
  tokenizer.warmup_fraction = 0.1
  # Weight of the encoder's pull towards its codes.
  tokenizer.commitment = 0.25
  # Decay of the codebook's moving averages.
  tokenizer.codebook_decay = 0.97
  # Images are moved by up to this many pixels while the tokenizer trains.
  tokenizer.max_shift = 1
  # Images of each split whose reconstructions are measured, drawn at random but
  # always the same ones; 0 for all.
  tokenizer.measured_images = 0
  # Also measure, and draw, held-out images after so many steps; 0 for never.
  tokenizer.evaluate_every = 0
  # A discriminator of patches that tells images from reconstructions.
  tokenizer.adversarial = adversarial = ml_collections.ConfigDict()
  # Weight of what it says, against the error; 0.0 to do without it.
  adversarial.weight = 0.0
  # Whether that weight is relative: what it says is first made as strong as the
  # error is, at the decoder's last layer.
  adversarial.adaptive = True
  # Share of the steps before it learns, and then before reconstructions answer.
  adversarial.start_fraction = 0.3
  adversarial.lead_fraction = 0.02
  # The image's sides are halved so many times; channels double from the width.
  adversarial.num_levels = 3
  adversarial.base_width = 64
  adversarial.num_groups = 32
  adversarial.learning_rate = 2e-4
  adversarial.betas = (0.5, 0.9)

  config.judges = judges = ml_collections.ConfigDict()
  # The measuring network: a convolutional classifier of the ten digits.
  judges.measure = measure = ml_collections.ConfigDict()
  measure.widths = (16, 32, 64)
  measure.feature_width = 32
  measure.num_steps = 1500
  measure.batch_size = 128
  measure.learning_rate = 1e-3
  measure.max_shift = 1
  measure.noise = 0.05
  measure.cutout = 0
  # The reward network: a small vision transformer, other augmentation.
  judges.reward = reward = ml_collections.ConfigDict()
  # Side of the images it sees, in pixels; 0 for that of the data.
  reward.image_size = 0
  # How they are scaled: 'centred', from -1 to 1, or 'imagenet', by the colours'
  # means and deviations there.
  reward.normalisation = 'centred'
  # Chance that a batch of larger images is cut down to that size instead of
  # averaged down.
  reward.crop_probability = 0.0
  reward.patch_size = 4
  reward.width = 64
  reward.depth = 4
  reward.num_heads = 4
  reward.hooks = (0, 1, 2, 3)
  reward.num_steps = 1500
  reward.batch_size = 128
  reward.learning_rate = 1e-3
  reward.max_shift = 2
  reward.noise = 0.1
  # Side of the square that is blanked out in each image, in pixels.
  reward.cutout = 4

  config.nat = nat = ml_collections.ConfigDict()
  nat.width = 96
  nat.depth = 4
  nat.num_heads = 4
  nat.mlp_ratio = 4
  nat.dropout_rate = 0.1
  nat.num_steps = 3500
  nat.batch_size = 128
  nat.learning_rate = 1.5e-3
  nat.warmup_steps = 200
  # 'cosine' falls to 0, 'constant' stays (the published recipe).
  nat.learning_rate_schedule = 'cosine'
  nat.weight_decay = 0.03
  nat.betas = (0.9, 0.99)
  nat.ema_decay = 0.998
  nat.label_smoothing = 0.1
  # Share of examples trained with the null condition, for guidance.
  nat.condition_dropping = 0.1
  # Distribution of mask ratios in training: 'cosine', or 'beta' with the
  # published parameters.
  nat.mask_ratio = 'cosine'
  nat.beta = (12.0, 3.0)
  # Each gradient is computed in this many parts of the batch, one after the
  # other: less memory, the same gradient.
  nat.micro_batches = 1
  # Compute type of the network: 'float32' or 'bfloat16'; empty for the same
  # while it trains. Parameters and their averages are float32.
  nat.dtype = 'float32'
  nat.training_dtype = ''
  # Attention implementation: 'xla', or 'cudnn' on GPUs.
  nat.attention = 'xla'
  # The moving average is measured after this many steps and after the last: its
  # loss on training and held-out images, and what follows. 0 for the losses
  # alone, at the end.
  nat.evaluate_every = 0
  # Images of each split whose loss is measured; 0 for all.
  nat.validation_examples = 0
  # Images in a picture of samples, nat/samples/<step>.png; 0 for none. They are
  # decoded in sample.num_steps by 'maskgit', 'residual' (AdaNAT's starting
  # schedule) or 'guidance-3'.
  nat.sample_grid = 0
  nat.sample_schedule = 'residual'
  # Samples whose Frechet distance is measured as `evaluate` says; 0 for none.
  nat.frechet_samples = 0
  # After how many steps it is; a multiple of evaluate_every, 0 for the end.
  nat.frechet_every = 0

  config.policy = policy = ml_collections.ConfigDict()
  # A policy is trained for each reward, each number of decoding steps T and
  # each repetition: one that sees the NAT's features, one that does not.
  policy.rewards = ('adversarial',)
  policy.num_steps = (4,)
  policy.trainings = 1
  policy.iterations = 150
  # Which policies: 'adaptive' sees the NAT's features, 'constant' does not.
  policy.kinds = ('adaptive', 'constant')
  # Trajectories an iteration.
  policy.batch_size = 384
  # How many of them are decoded at a time, over all devices; 0 for all. Saves
  # memory and changes nothing else.
  policy.rollout_size = 0
  # What PPO's epochs read: 'store' keeps the NAT's features of every step,
  # 'recompute' the canvases, and runs the NAT again in each epoch.
  policy.rollout_features = 'store'
  # 'float32' leaves features as the NAT gives them; 'bfloat16' rounds them, for
  # acting as for learning.
  policy.rollout_dtype = 'float32'
  policy.log_every = 1
  policy.save_every = 25
  # Images of the policy's mean actions are measured after this many iterations
  # and after the last; 0 for never. How many images of validation conditions.
  policy.evaluate_every = 0
  policy.evaluate_samples = 2000
  # Which iterate is used afterwards: the 'last' one, or the 'best' of those
  # that were measured.
  policy.iterate = 'last'
  # Constants of PPO: 'paper', or 'ours' for short runs; each can be overridden
  # below (unset fields keep the preset's value).
  policy.preset = 'ours'
  policy.ppo = ppo = ml_collections.ConfigDict()
  ppo.learning_rate = placeholder(float)
  ppo.num_epochs = placeholder(int)
  ppo.num_minibatches = placeholder(int)
  # Minibatches are drawn within this many equal consecutive parts of the batch;
  # where the number of devices divides it no feature moves between devices.
  ppo.shuffle_groups = placeholder(int)
  # Each gradient is computed in this many parts, one after the other: less
  # memory, the same gradient.
  ppo.micro_batches = placeholder(int)
  ppo.initial_std = placeholder(float)
  ppo.final_std = placeholder(float)
  # What a zero action means: 'published' (AdaNAT's hand-made schedule) or
  # 'none'.
  policy.residual = 'published'
  # Actor and critic; the published widths are 512, 128, (1024, 512).
  policy.network = network = ml_collections.ConfigDict()
  network.hidden_size = 64
  network.conv_width = 32
  network.mlp_widths = (128, 64)
  policy.discriminator = discriminator = ml_collections.ConfigDict()
  # The network that maps classes; texts come as embeddings and need none.
  discriminator.mapping_width = 64
  discriminator.mapping_layers = 2
  discriminator.condition_map_width = 64
  discriminator.kernel_size = 9
  discriminator.learning_rate = 1e-3
  # Updates an iteration, and real and generated images in each.
  discriminator.updates = 4
  discriminator.batch_size = 96
  # Power iterations of the spectral norms before the first reward.
  discriminator.spectral_warmup = 10
  # True: new rollouts for the discriminator, as published; False: those that
  # PPO has just used, at no cost.
  discriminator.fresh_rollouts = False
  # Compare with real images that have been through the tokenizer (as published:
  # False): what it blurs, no schedule can mend.
  discriminator.reconstruct_real = True
  # Test images on which the discriminator's accuracy is logged; 0 for none.
  discriminator.held_out = 96

  config.evaluate = evaluate = ml_collections.ConfigDict()
  # Sampling seeds, and images of each.
  evaluate.num_seeds = 4
  evaluate.num_samples = 2000
  # Images for each setting of the grid that tunes the hand-made schedule, and
  # how many settings of the grid are tried.
  evaluate.grid_samples = 1000
  evaluate.max_grid = 72
  # Images decoded at a time.
  evaluate.batch_size = 500
  # 'study' compares schedules on the digits, 'published' measures policies as
  # the benchmarks do. What follows is for the latter, and for the scores of
  # networks that are still being trained.
  evaluate.protocol = 'study'
  # Whose features are compared: 'inception', 'measure' (the judge of the
  # digits) or 'pixels' (means of 8x8 boxes, no network).
  evaluate.network = 'measure'
  evaluate.inception = ml_collections.ConfigDict()
  # Checkpoint of `python -m adanat_jax.convert --kind=inception`.
  evaluate.inception.init_from = ''
  # Moments of real images: a file of others, or of mode `statistics`; empty for
  # those of the reference split ('train' or 'test'), made where they are not.
  evaluate.statistics = ''
  evaluate.reference_split = 'train'
  # 'uniform' draws the classes, 'balanced' takes each equally often.
  evaluate.labels = 'balanced'
  # What is measured: images as they are ('none'), or rounded to bytes ('floor',
  # 'nearest').
  evaluate.rounding = 'none'
  # What was counted is saved after so many images.
  evaluate.save_every = 5000
  # Which policies: 'learned', 'maskgit', 'residual', 'guidance-3', or a table
  # of decoding/published.py.
  evaluate.policies = ('learned', 'maskgit')
  # Real and generated images that precision and recall compare; 0 for neither.
  evaluate.precision_recall = 1000
  # Also write the samples as ADM's evaluator reads them.
  evaluate.save_npz = False
  # CLIP, for captions: which one ('ViT-B/32', 'ViT-L/14', 'ViT-bigG/14'), and
  # the checkpoints of --kind=clip_text and --kind=clip_image; empty for no CLIP
  # score. The tokenizer as in config.text.
  evaluate.clip = clip = ml_collections.ConfigDict()
  clip.tower = 'ViT-L/14'
  clip.tokenizer = ''
  clip.text = ml_collections.ConfigDict({'init_from': ''})
  clip.image = ml_collections.ConfigDict({'init_from': ''})
  # Whose published figures stand beside ours: a key of
  # metrics/published_figures.py, or empty.
  evaluate.benchmark = ''

  config.statistics = statistics = ml_collections.ConfigDict()
  # Which images mode `statistics` takes the moments of, 'train' or 'test', and
  # the .npz file they go to; empty for <workdir>/statistics.
  statistics.split = 'train'
  statistics.output = ''

  config.search = search = ml_collections.ConfigDict()
  # Mode `search` looks for the table of T steps, the same for all samples,
  # whose images have the smallest distance that `evaluate` says (AutoNAT).
  # Each T with each optimizer and each kind of noise is a search of its own,
  # made so many times.
  search.num_steps = (4,)
  # 'cma' (CMA-ES, pip install 'adanat_jax[search]') or 'finite_differences', as
  # published.
  search.optimizers = ('cma',)
  # 'on' measures all points with the same classes and noise, so that their
  # differences are the points' own; 'off' draws both anew, as published.
  search.common_noise = ('on',)
  search.repetitions = 1
  # How many points a search measures, and images of each.
  search.evaluations = 300
  search.num_samples = 1000
  # What was found is measured again with so many seeds that no search has seen,
  # and images of each.
  search.fresh_seeds = 4
  search.fresh_samples = 2000
  # Finite differences, as published for 256 tokens: by how much mask ratios and
  # all others are moved to see what that does, learning rates of both, and the
  # limit on a derivative, 0 for none. Of 16 tokens a ratio of 0.16 is as many
  # as 0.01 of 256: smaller ones mostly change nothing.
  search.descent = descent = ml_collections.ConfigDict()
  descent.ratio_difference = 0.01
  descent.other_difference = 0.1
  descent.ratio_rate = 1e-3
  descent.other_rate = 0.1
  descent.momentum = 0.5
  descent.clip_gradient = 0.0
  # CMA-ES: how far from the start it looks at first, as standard deviations.
  search.spread = ml_collections.ConfigDict({'ratio': 0.1, 'other': 0.3})
  # Rounds in which schedule and training take turns: in each, NATs are trained
  # with one or two other laws of mask ratios, from nat.beta on, in so many
  # steps. The evaluations are shared out among rounds + 1 schedules. 0 to
  # search schedules alone, for the NAT that there is.
  search.rounds = 0
  search.training_steps = 1000

  config.report = report = ml_collections.ConfigDict()
  # Images of each class and method in the picture of samples.
  report.images_per_class = 24
  # Samples in the picture of a decode step by step.
  report.revealed_samples = 3

  config.sample = sample = ml_collections.ConfigDict()
  # Classes to sample; a class may stand several times.
  sample.classes = (0, 1)
  # Images of each.
  sample.images_per_class = 16
  sample.num_steps = 4
  sample.seed = 0
  # 'learned', 'hand-made', or 'table' with a JSON file of the four lists.
  sample.policy = 'learned'
  sample.table = ''
  # Where the pictures go; empty for <workdir>/sample.
  sample.output = ''

  if preset == 'full':
    policy.rewards = ('adversarial', 'frechet', 'pretrained')
    policy.num_steps = (2, 4, 8)
    policy.trainings = 2
    # Two thirds of the default's iterations, of two thirds of its trajectories.
    policy.update(iterations=100, batch_size=256)
    evaluate.grid_samples = 2000
  elif preset == 'pod':
    # Samples share statistics in groups of 8, which lie on one device each.
    policy.discriminator.update(batch_size=128, held_out=128)
  elif preset == 'tiny':
    _make_tiny(config)
  return config


def _make_tiny(config: ml_collections.ConfigDict) -> None:
  """Makes everything small: the whole pipeline in minutes, no good images."""
  config.log_every = 5
  config.save_every = 10
  config.tokenizer.update(num_steps=30, batch_size=32, base_width=8)
  for judge in (config.judges.measure, config.judges.reward):
    judge.update(num_steps=30, batch_size=32)
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
  config.report.images_per_class = 4
