"""What all configs share: fields that few runs set, at values that suit most.

The other files load this one and add what their data need. Every field can be
overridden by a flag, as theirs can.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The shared fields; not a configuration that can be run."""
  config = ml_collections.ConfigDict()

  # Everything random follows from this number.
  config.seed = 0
  # The first step of each training loop to trace with jax.profiler, counted
  # from 0, and the first that is no longer traced; (0, 0) traces nothing.
  config.profile = (0, 0)
  # Every training loop logs a row after this many steps, and saves after this
  # many; where it is stopped and resumed changes nothing in its result.
  config.log_every = 50
  config.save_every = 250
  # The two newest checkpoints of a training stay, and those of steps that this
  # divides; 0 keeps no others.
  config.keep_every = 0
  # Also keep the best one: of a policy that of the smallest distance, where it
  # is measured, or of the highest 'pretrained' reward (the others are relative,
  # to a discriminator that learns or to the batch, and their policies keep
  # none); of other networks that of the lowest loss. What comes after uses the
  # last one, but see policy.iterate.
  config.keep_best = False
  # Write TensorBoard files beside metrics.jsonl if tensorboardX is installed.
  config.tensorboard = True

  config.mesh = mesh = ml_collections.ConfigDict()
  # All devices share the work; this many of them also share one copy of the
  # NAT's large matrices. 1 keeps a copy on each.
  mesh.fsdp = 1

  config.tokenizer = tokenizer = ml_collections.ConfigDict()
  # Decays of Adam's two averages.
  tokenizer.betas = (0.9, 0.999)
  # How far a reconstruction is from its image: 'squared' or 'absolute', the
  # mean over all of their values.
  tokenizer.error = 'squared'
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

  config.judges = ml_collections.ConfigDict()
  config.judges.reward = reward = ml_collections.ConfigDict()
  # Side of the images it sees, in pixels; 0 for that of the data.
  reward.image_size = 0
  # How they are scaled: 'centred', from -1 to 1, or 'imagenet', by the colours'
  # means and deviations there.
  reward.normalisation = 'centred'
  # Chance that a batch of larger images is cut down to that size instead of
  # averaged down.
  reward.crop_probability = 0.0

  config.nat = nat = ml_collections.ConfigDict()
  # 'nat' reads all tokens at every step; 'enat' encodes each once, in so many
  # blocks, and predicts the masked ones in so many others (`depth` is the
  # NAT's).
  nat.network = 'nat'
  nat.encoder_depth = 15
  nat.decoder_depth = 1
  # Share of the examples for which an ENAT learns to use what it left at the
  # step before (published: 0.5); 0.0 for the NAT, which leaves nothing.
  nat.reuse_probability = 0.0
  # A mask ratio, and how much is reused, is drawn for each 'example', or once
  # for the 'batch', as ENAT's authors do.
  nat.mask_ratio_per = 'example'
  # Each gradient is computed in this many parts of the batch, one after the
  # other: less memory, the same gradient but for dropout, which each draws.
  nat.micro_batches = 1
  # The moving average is measured after this many steps and after the last: its
  # loss on training and held-out images, and what follows. 0 for the losses
  # alone, at the end.
  nat.evaluate_every = 0
  # Images of each split whose loss is measured; 0 for all.
  nat.validation_examples = 0
  # Images in a picture of samples, nat/samples/<step>.png; 0 for none. They are
  # decoded in so many steps by a schedule of decoding/schedules.py, such as
  # 'maskgit', 'residual' (AdaNAT's hand-made one) or 'guidance-3'.
  nat.sample_grid = 0
  nat.sample_num_steps = 8
  nat.sample_schedule = 'residual'
  # Samples whose Frechet distance is measured as `evaluate` says; 0 for none.
  nat.frechet_samples = 0
  # After how many steps it is; a multiple of evaluate_every, 0 for the end.
  nat.frechet_every = 0

  config.policy = policy = ml_collections.ConfigDict()
  # Trajectories decoded at a time, over all devices; 0 for all. Saves memory
  # and changes nothing else.
  policy.rollout_size = 0
  # What PPO's epochs read: 'store' keeps the NAT's features of every step,
  # 'recompute' the canvases, and runs the NAT again in each epoch.
  policy.rollout_features = 'store'
  # 'float32' leaves features as the NAT gives them; 'bfloat16' rounds them, for
  # acting as for learning.
  policy.rollout_dtype = 'float32'
  # Images of the policy's mean actions are measured after this many iterations
  # and after the last; 0 for never. How many images of validation conditions.
  policy.evaluate_every = 0
  policy.evaluate_samples = 2000
  # Which iterate is used afterwards: the 'last' one, the 'best' of those that
  # were measured, or the 'average', which is then measured in their place.
  policy.iterate = 'last'
  # Decay of the moving average of its parameters an iteration, smaller in the
  # first ones: learning/policy.py. 0.0 keeps none (the published recipe).
  policy.ema_decay = 0.0

  config.evaluate = evaluate = ml_collections.ConfigDict()
  # 'study' compares schedules on the digits, 'published' measures policies as
  # the benchmarks do. What follows is for the latter, and for the scores of
  # networks that are still being trained.
  evaluate.protocol = 'study'
  # Whose features are compared: 'inception', 'measure' (a classifier of the
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
  # Which policies: 'learned', or a schedule of decoding/schedules.py, such as
  # 'maskgit', 'residual', 'guidance-3' or 'enat_256'.
  evaluate.policies = ('learned', 'maskgit')
  # An ENAT that follows a learned policy gathers within so many shapes, chosen
  # by watching the policy; 0 to run every block at every position. The samples
  # are the same.
  evaluate.num_buckets = 0
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
  # report/published_figures.py, or empty.
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
  # 'cma' (CMA-ES, pip install -e '.[search]') or 'finite_differences', as
  # published.
  search.optimizers = ('cma',)
  # 'on' measures all points with the same classes and noise, so that their
  # differences are the points' own; 'off' draws anew, as published: the noise,
  # and the classes unless evaluate.labels is 'balanced'.
  search.common_noise = ('on',)
  # 'published' starts where AutoNAT does; with 'fewer_steps' the smallest T
  # does, each other one where the search of the next smaller T has ended. A
  # schedule of decoding/schedules.py, by its name, starts at its table.
  search.start = 'published'
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
  # CMA-ES: how far from the start it looks at first, as standard deviations, of
  # temperatures by their logarithms. Of 16 tokens a ratio of 0.07 is one.
  search.spread = spread = ml_collections.ConfigDict()
  spread.ratio = 0.07
  spread.temperature = 0.4
  spread.guidance = 0.3
  # A search that starts where another ended looks so many times as far.
  search.refinement = 0.5
  # Rounds in which schedule and training take turns: in each, NATs are trained
  # with one or two other laws of mask ratios, from nat.beta on, in so many
  # steps. The evaluations are shared out among rounds + 1 schedules. 0 to
  # search schedules alone, for the NAT that there is.
  search.rounds = 0
  search.training_steps = 1000
  return config
