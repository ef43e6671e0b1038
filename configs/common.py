"""The fields that all configs share, at values that suit most runs.

The other files load this one and add what their data need. A flag can override
every field, here as there.
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
  """The shared fields; not a configuration that can be run."""
  config = ml_collections.ConfigDict()

  # The seed of everything random.
  config.seed = 0
  # jax.profiler traces each training loop from the first of these steps,
  # counted from 0, up to but without the second; (0, 0) traces nothing.
  config.profile = (0, 0)
  # Every training loop logs a row after this many steps, and saves after that
  # many. Stopping and resuming it anywhere does not change its result.
  config.log_every = 50
  config.save_every = 250
  # A training keeps its two newest checkpoints, and those of steps that this
  # number divides; 0 keeps no others.
  config.keep_every = 0
  # Also keep the best checkpoint. For a policy that is the one of the smallest
  # distance, if it is measured, or else of the highest 'pretrained' reward; the
  # other rewards are relative, to a discriminator that is trained or to the
  # batch, so their policies keep none. For other networks it is the one of the
  # lowest loss. Later stages use the last checkpoint, but see policy.iterate.
  config.keep_best = False
  # Write TensorBoard files beside metrics.jsonl if tensorboardX is installed.
  config.tensorboard = True
  # Also log to this project of Weights & Biases; empty for none. It needs
  # `pip install wandb`, and an account unless WANDB_MODE=offline.
  config.wandb = ''

  # The generator that modes `sample` and `edit` draw with: a folder of mode
  # `export`, a workdir, or 'digits', which comes with the package; empty for
  # the networks of this run.
  config.generator = ''

  config.mesh = mesh = ml_collections.ConfigDict()
  # All devices share the work. While a network is trained, groups of this many
  # devices also share one copy of its large matrices, of their average and of
  # the optimizer's moments; 1 keeps a copy on each device. 0 stands for 1 on
  # devices of 24 GiB and more, else for 8, or for as many as there are.
  mesh.fsdp = 1

  config.tokenizer = tokenizer = ml_collections.ConfigDict()
  # The directory of weights: converted ones, or a stage that finished in
  # another workdir. They are used as they are, and the stage trains nothing.
  tokenizer.init_from = ''
  # True trains them further: what fits is taken over, with the optimizer's
  # state if it is there, and one line says what begins anew. There is no
  # warm-up then.
  tokenizer.fine_tune = False
  # Type in which the decoder computes when images are generated: 'float32',
  # 'bfloat16', or 'auto', bfloat16 on GPUs and TPUs and float32 on CPUs.
  # Training, and encoding, are in float32.
  tokenizer.dtype = 'float32'
  # 'vqgan', or 'llamagen' for converted weights of LlamaGen's, which are not
  # trained here.
  tokenizer.network = 'vqgan'
  # Whether a VQGAN halves the sides by 4x4 convolutions instead of averaging,
  # as some tokenizers of Google's MaskGIT.
  tokenizer.conv_downsample = False
  # Decays of Adam's two averages.
  tokenizer.betas = (0.9, 0.999)
  # The reconstruction error: the mean of 'squared' or 'absolute' differences
  # over all values of the image.
  tokenizer.error = 'squared'
  # Number of images of each split whose reconstructions are measured: a random
  # choice that is always the same; 0 for all.
  tokenizer.measured_images = 0
  # Also measure, and draw, held-out images every so many steps; 0 for never.
  tokenizer.evaluate_every = 0
  # A patch discriminator that tells images from reconstructions.
  tokenizer.adversarial = adversarial = ml_collections.ConfigDict()
  # Weight of its loss against the reconstruction error; 0.0 for no
  # discriminator.
  adversarial.weight = 0.0
  # Whether that weight is relative: the gradient of its loss is first scaled to
  # the norm of the error's gradient, at the decoder's last layer.
  adversarial.adaptive = True
  # Fraction of the steps before the discriminator trains; further fraction
  # before its loss is used.
  adversarial.start_fraction = 0.3
  adversarial.lead_fraction = 0.02
  # How often the image's sides are halved; channels double from the width.
  adversarial.num_levels = 3
  adversarial.base_width = 64
  adversarial.num_groups = 32
  adversarial.learning_rate = 2e-4
  adversarial.betas = (0.5, 0.9)

  config.judges = judges = ml_collections.ConfigDict()
  # What stage `judges` trains its networks by: the 'classes', which they tell
  # apart; the 'captions', of which an image is to be nearest to its own, by a
  # network of words that is trained beside (CLIP's loss); 'views', two
  # augmentations of an image, whose embeddings are to agree (VICReg); or
  # 'auto': captions where there are any, classes where there are two or more,
  # and else views.
  judges.training = 'auto'
  # Width of those embeddings.
  judges.embedding_width = 64
  judges.reward = reward = ml_collections.ConfigDict()
  # Side of the images that the reward network sees, in pixels; 0 for that of
  # the data.
  reward.image_size = 0
  # How they are scaled: 'centred', from -1 to 1, or 'imagenet', by ImageNet's
  # means and standard deviations of the colours.
  reward.normalisation = 'centred'
  # Probability that a batch of larger images is cropped to that size instead of
  # averaged down.
  reward.crop_probability = 0.0
  # As tokenizer.dtype. It trains in float32.
  reward.dtype = 'float32'

  config.nat = nat = ml_collections.ConfigDict()
  # As those of the tokenizer.
  nat.init_from = ''
  nat.fine_tune = False
  # 'nat' reads all tokens at every step. 'enat' encodes each token once, in
  # `encoder_depth` blocks, and predicts the masked ones in `decoder_depth`
  # blocks (`depth` is for the NAT). 'maskgit' and 'halton' are the networks of
  # Google's MaskGIT and of Halton-MaskGIT, for converted weights alone.
  nat.network = 'nat'
  nat.encoder_depth = 15
  nat.decoder_depth = 1
  # Share of the examples on which an ENAT learns to reuse its cache
  # (published: 0.5); must be 0.0 for a NAT, which has no cache.
  nat.reuse_probability = 0.0
  # Whether the mask ratio, and how much is reused, is drawn for each 'example'
  # or once for the 'batch', as ENAT's authors do.
  nat.mask_ratio_per = 'example'
  # Smaller mask ratios are raised to this share.
  nat.least_mask_ratio = 0.0
  # Which tokens the loss is of: the 'masked' ones, or 'all', so that the
  # network also learns to repeat those that it sees.
  nat.loss_tokens = 'masked'
  # Limit on a gradient's norm; 0.0 for none (published).
  nat.max_gradient_norm = 0.0
  # Each gradient is computed in this many parts of the batch, one after the
  # other. That takes less memory and gives the same gradient, except that each
  # part draws its own dropout.
  nat.micro_batches = 1
  # Every so many steps and after the last, the moving average is measured: its
  # loss on training and held-out images, and what the next fields say. 0 for
  # the losses alone, at the end.
  nat.evaluate_every = 0
  # Number of images of each split whose loss is measured; 0 for all.
  nat.validation_examples = 0
  # Number of images in a picture of samples, nat/samples/<step>.png; 0 for
  # none. They are decoded in `sample_num_steps` steps by a schedule of
  # decoding/schedules.py, such as 'maskgit', 'residual' (AdaNAT's hand-made
  # one) or 'guidance-3'.
  nat.sample_grid = 0
  nat.sample_num_steps = 8
  nat.sample_schedule = 'residual'
  # Number of samples whose Frechet distance is measured, in the features that
  # `evaluate` chooses; 0 for none.
  nat.frechet_samples = 0
  # How often, in steps: a multiple of evaluate_every, or 0 for only at the end.
  nat.frechet_every = 0

  config.policy = policy = ml_collections.ConfigDict()
  # As those of the tokenizer. Every training of the config goes on from the
  # same actor, critic, discriminator and optimizers, whatever its T was.
  policy.init_from = ''
  policy.fine_tune = False
  # From which numbers of steps a 'shared' policy (policy.kinds) draws one for
  # each iteration of its training; empty for those of policy.num_steps. It then
  # serves every number from the smallest to the largest.
  policy.drawn_num_steps = ()
  # Number of trajectories decoded at a time, over all devices; 0 for all. This
  # saves memory and changes nothing else.
  policy.rollout_size = 0
  # What PPO's epochs read: 'store' keeps the NAT's features of every step;
  # 'recompute' keeps the canvases and runs the NAT again in each epoch. 'auto'
  # stores what takes at most half of the devices' memory.
  policy.rollout_features = 'store'
  # 'float32' keeps features as the NAT returns them; 'bfloat16' rounds them,
  # both for acting and for learning.
  policy.rollout_dtype = 'float32'
  # Every so many iterations and after the last, images of the policy's mean
  # actions are measured; 0 for never. The second field says how many, for
  # validation conditions.
  policy.evaluate_every = 0
  policy.evaluate_samples = 2000
  # Which checkpoint is used afterwards: the 'last' one, the 'best' of those
  # that were measured, or the 'average', which is then measured in their place.
  policy.iterate = 'last'
  # Decay of the moving average of the policy's parameters, for each iteration;
  # smaller in the first ones: learning/policy.py. 0.0 keeps no average (the
  # published recipe).
  policy.ema_decay = 0.0
  # How much of a step's action is taken over from the step before: AdaGen has
  # 0.8 for T = 16 and 32; 0.0 for none, as AdaNAT.
  policy.smoothing = 0.0
  # False trains and samples without the unconditional pass, at half the cost:
  # the policy then chooses three numbers.
  policy.guided = True
  # Which steps are guided, if only some are: their numbers, from 0, or from the
  # end if they are negative: -1 is the last. The other steps take one pass.
  policy.guided_steps = ()
  # Which of the four values the policy chooses, AdaNAT's --upd_set; the others
  # are those of policy.residual's schedule at each step.
  policy.learned = (
    *('mask_ratio', 'masking_temperature', 'sampling_temperature'),
    'guidance_scale',
  )
  # A second reward, 'pretrained' or 'frechet', for policies with a dial: told a
  # number l from 0 to 1, they learn to earn l of it and 1 - l of their own.
  # 'learned(dial=0.7)' sets it where a policy is named; 'learned', and what is
  # measured during the training, have 0. Empty for policies without one.
  policy.dial = ''

  config.evaluate = evaluate = ml_collections.ConfigDict()
  # 'study' compares hand-made and learned schedules on classes, 'published'
  # measures policies as the benchmarks do; with captions both do that. The
  # fields below are for 'published', and for the scores of networks during
  # training.
  evaluate.protocol = 'study'
  # Which features are compared: those of 'inception', of 'measure' (the network
  # that stage `judges` trains) or 'pixels' (means of 8x8 boxes, no network).
  evaluate.network = 'measure'
  evaluate.inception = ml_collections.ConfigDict()
  # Checkpoint of `python -m adanat_jax.convert --kind=inception`.
  evaluate.inception.init_from = ''
  # Reference statistics: a published file, or one of mode `statistics`. If
  # empty, those of the reference split ('train' or 'test') are used, and
  # computed if they do not exist.
  evaluate.statistics = ''
  evaluate.reference_split = 'train'
  # 'uniform' draws the classes, 'balanced' uses each equally often.
  evaluate.labels = 'balanced'
  # Images are measured as they are ('none'), or rounded to bytes ('floor',
  # 'nearest').
  evaluate.rounding = 'none'
  # Partial sums are saved every so many images.
  evaluate.save_every = 5000
  # Which policies: 'learned', a schedule of decoding/schedules.py, such as
  # 'maskgit' or 'entropy_bound(bound=0.5)', your own policy as 'module:name',
  # or a table in a .json or .yaml file (docs/library.md). The same wherever a
  # config names a schedule.
  evaluate.policies = ('learned', 'maskgit')
  # For a learned policy on an ENAT: the number of buckets (shapes to gather
  # into), which are chosen by watching the policy; 0 to run every block at
  # every position. The samples are the same.
  evaluate.num_buckets = 0
  # How many real and generated images precision and recall compare; 0 to leave
  # both out. The next fields do the same for density and coverage, which
  # outliers move less, and for the kernel distance, which serves small sets.
  evaluate.precision_recall = 1000
  evaluate.density_coverage = 0
  evaluate.kernel_distance = 0
  # Also write the samples in the format of ADM's evaluator.
  evaluate.save_npz = False
  # The CLIP that scores captions: its name ('ViT-B/32', 'ViT-L/14',
  # 'ViT-bigG/14'), and the checkpoints of --kind=clip_text and
  # --kind=clip_image; empty for no CLIP score. The tokenizer is given as in
  # config.text.
  evaluate.clip = clip = ml_collections.ConfigDict()
  clip.tower = 'ViT-L/14'
  clip.tokenizer = ''
  clip.text = ml_collections.ConfigDict({'init_from': ''})
  clip.image = ml_collections.ConfigDict({'init_from': ''})
  # Which published figures the results are shown with: a key of
  # report/published_figures.py, or empty for none.
  evaluate.benchmark = ''

  config.statistics = statistics = ml_collections.ConfigDict()
  # Mode `statistics` computes the mean and covariance of this split, 'train' or
  # 'test', and writes them to this .npz file; empty for <workdir>/statistics.
  statistics.split = 'train'
  statistics.output = ''

  config.export = export = ml_collections.ConfigDict()
  # Mode `export` writes the generator to this folder, which can be moved and
  # shared; empty for <workdir>/export. `adanat_jax.load` reads it.
  export.output = ''
  # Type of the parameters in its files: 'float32', 'bfloat16' or 'float16'.
  export.dtype = 'float32'
  # JSON files of schedules to put in, such as those that a search found; they
  # are named by their files.
  export.tables = ()
  # A file for the sampler of `sample.num_steps`, `sample.policy` and
  # `sample.table` as a program that plain JAX runs; empty for none.
  export.program = ''

  config.edit = edit = ml_collections.ConfigDict()
  # Mode `edit` draws a part of this picture anew, by the schedule, the steps
  # and the seed of `sample`, sample.images_per_class times for each label.
  edit.image = ''
  # What is drawn anew, one of four: what is white in this picture, of the same
  # size (or of one pixel a token);
  edit.mask = ''
  # the inside of a box: top, left, bottom, right in pixels;
  edit.box = ()
  # pixels beyond the top, left, bottom and right edge, by which the window
  # moves over the picture (one of two opposite sides is 0);
  edit.sides = ()
  # or a share of the tokens, chosen at random.
  edit.strength = 0.0
  # What the result shows: class ids or names, or captions.
  edit.labels = ()
  # Scale and crop the picture and the mask to the generator's size, and convert
  # their colours; False refuses others.
  edit.fit = False
  # Width of the soft edge around what is drawn anew, in pixels; unset: half a
  # token. Pixels outside of it are kept to the last bit.
  edit.border = placeholder(float)
  # Directory of the pictures; empty for <workdir>/edit.
  edit.output = ''

  config.search = search = ml_collections.ConfigDict()
  # Mode `search` looks for the table of T steps, the same for all samples,
  # whose images have the smallest distance, measured as `evaluate` says
  # (AutoNAT). Each T with each optimizer and each kind of noise is a separate
  # search, which runs `repetitions` times.
  search.num_steps = (4,)
  # 'cma' (CMA-ES, pip install -e '.[search]') or 'finite_differences', as
  # published.
  search.optimizers = ('cma',)
  # 'on' measures all points with the same classes and noise, so that only the
  # points differ. 'off' draws new noise for each point, as published, and new
  # classes too unless evaluate.labels is 'balanced'.
  search.common_noise = ('on',)
  # 'published' starts where AutoNAT does. With 'fewer_steps' only the smallest
  # T starts there; each other T starts where the search of the next smaller T
  # ended. The name of a schedule of decoding/schedules.py starts at its table.
  search.start = 'published'
  search.repetitions = 1
  # False looks for tables without the unconditional pass, at half the cost;
  # 'cma' alone can.
  search.guided = True
  # How many points a search measures, and with how many images each.
  search.evaluations = 300
  search.num_samples = 1000
  # How many seeds, which no search has seen, measure the tables found again,
  # and with how many images each.
  search.fresh_seeds = 4
  search.fresh_samples = 2000
  # Finite differences, as published for 256 tokens: how far mask ratios, and
  # the other numbers, are moved to estimate a derivative; the learning rates of
  # both; and the limit on a derivative, 0 for none. For 16 tokens a ratio of
  # 0.16 is as many tokens as 0.01 of 256: smaller ones mostly change nothing.
  search.descent = descent = ml_collections.ConfigDict()
  descent.ratio_difference = 0.01
  descent.other_difference = 0.1
  descent.ratio_rate = 1e-3
  descent.other_rate = 0.1
  descent.momentum = 0.5
  descent.clip_gradient = 0.0
  # CMA-ES: its initial standard deviations; for temperatures they are those of
  # the logarithm. For 16 tokens a ratio of 0.07 is about one token.
  search.spread = spread = ml_collections.ConfigDict()
  spread.ratio = 0.07
  spread.temperature = 0.4
  spread.guidance = 0.3
  # Factor on these deviations for a search that starts where another ended.
  search.refinement = 0.5
  # Number of rounds in which the searches of schedule and training alternate.
  # Each round trains NATs with one or two other laws of mask ratios, starting
  # from nat.beta, for `training_steps` steps. The evaluations are divided among
  # rounds + 1 searches of the schedule. 0 searches only schedules, for the NAT
  # of this workdir.
  search.rounds = 0
  search.training_steps = 1000
  return config
