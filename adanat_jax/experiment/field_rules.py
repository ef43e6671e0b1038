"""The rule of every config field, in one table.

The comments in `configs/` say what the fields mean. The table says what each
may hold by itself; stages check what fields must be to each other and what must
be on the disk.

Upper limits are far above what anybody has used. They refuse a mistyped size in
words, before it takes all memory or never ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import os

from adanat_jax.decoding.actions import NAMES
from adanat_jax.experiment import config as config_lib, fields
from adanat_jax.experiment.fields import (
  Config,
  Rule,
  between,
  boolean,
  choice,
  colour_or_none,
  curve,
  integer,
  label,
  none_or,
  optional,
  path,
  project,
  schedule,
  some_of,
  steps,
  text,
  tuple_of,
  zero_or,
)
from adanat_jax.sampling.requests import LAST_SEED

# Names and numbers of other rooms, written down so that loading a generator
# does not import those. A test compares them.
SOURCES = (
  *('image_folder', 'imagenet_tar', 'tfds', 'coco', 'cc3m_tsv', 'webdataset'),
  'pairs',
)
TOWERS = ('ViT-B/32', 'ViT-L/14', 'ViT-bigG/14')
DISCOVERY_METHODS = (
  *('kmeans_image', 'kmeans_text', 'kmeans_both', 'semi_kmeans_image'),
  *('semi_kmeans_text', 'semi_kmeans_both', 'gcd_image', 'gcd_text'),
  *('simgcd_image', 'simgcd_text', 'simgcd_both', 'late_fusion', 'joint'),
  *('cross', 'mutual', 'multimodal', 'multimodal_permuted'),
  'multimodal_estimated',
)
BENCHMARKS = ('imagenet256', 'imagenet512', 'mscoco', 'cc3m')
GROUP_SIZE = 8

# Steps of a training, of a decode, and after how many something is done.
_TRAINING_STEPS = integer(1, 10**8)
_DECODING_STEPS = integer(1, 1024)
_EVERY = integer(1, 10**8)
_EVERY_OR_NEVER = integer(0, 10**8)
# Images at a time, and in all.
_BATCH = integer(1, 2**20)
_PARTS = integer(1, 2**16)
_IMAGES_OR_0 = integer(0, 10**7)
# A covariance needs two of them.
_MEASURED = integer(2, 10**7)
# Sizes of networks. A layer of the largest width has 2**28 parameters.
_WIDTH = integer(1, 2**14)
_CHANNELS = integer(1, 2**12)
_DEPTH = integer(1, 512)
_HEADS = integer(1, 1024)
_PIXELS = integer(0, 2**12)
_REPETITIONS = integer(1, 1000)
_BUCKETS = integer(0, 64)
_DRAWS = integer(1, 64)
# Of the second kind of share nothing is learned at 1.
_SHARE = between(0.0, 1.0)
_SHARE_BELOW_1 = between(0.0, 1.0, below_high=True)
_BETAS = tuple_of(_SHARE_BELOW_1, length=2)
_RATE = between(0.0, 1.0, above_low=True)
_TEMPERATURE = between(0.0, 100.0, above_low=True)
_WEIGHT = between(0.0, 1e3)
_COUNT_OR_0 = integer(0, 10**6)
_SPLIT = choice('train', 'test')
_SEED = integer(0, LAST_SEED)
_TRAINED_TYPE = ('float32', 'bfloat16')
_COMPUTE_TYPE = choice('auto', *_TRAINED_TYPE)


def _section(name: str, **rules: Rule) -> dict[str, Rule]:
  """The rules of the fields of a group, by their dotted names."""
  return {f'{name}.{field}': rule for field, rule in rules.items()}


def _alike(names: str, rule: Rule) -> dict[str, Rule]:
  """One rule for several fields."""
  return dict.fromkeys(names.split(), rule)


# The trainings of networks on augmented pictures.
_AUGMENTED = {
  **_alike('max_shift cutout', _PIXELS),
  **_alike('learning_rate least_crop', _RATE),
  **dict(num_steps=_TRAINING_STEPS, batch_size=_BATCH),
  **dict(noise=_SHARE, jitter=_SHARE_BELOW_1),
}
# Fields that every config has.
_SHARED: Mapping[str, Rule] = {
  'mode': choice(
    *('all', 'tokenizer', 'judges', 'prepare', 'nat', 'policy', 'search'),
    *('evaluate', 'report', 'compare', 'suite', 'statistics', 'sample'),
    *('edit', 'export', 'laboratory', 'discover', 'frontier'),
  ),
  'seed': _SEED,
  'profile': steps(10**8),
  **_alike('log_every save_every', _EVERY),
  'keep_every': _EVERY_OR_NEVER,
  'keep_best': boolean,
  'tensorboard': boolean,
  'wandb': project,
  'generator': path(),
  **_section('mesh', fsdp=integer(0, 2**16)),
  **_section(
    'data',
    source=choice('digits', *SOURCES),
    image_size=integer(8, 2**12),
    condition=choice('class', 'text', 'parity', 'digit'),
  ),
  **_section(
    'tokenizer',
    network=choice('vqgan', 'llamagen'),
    conv_downsample=boolean,
    # Ids are stored in 16 bits.
    codebook_size=integer(2, 2**15),
    code_width=_WIDTH,
    base_width=_CHANNELS,
    width_multipliers=some_of(integer(1, 64), most=8, repeated=True),
    num_res_blocks=integer(1, 64),
    num_groups=_CHANNELS,
    dtype=_COMPUTE_TYPE,
    num_steps=_TRAINING_STEPS,
    batch_size=_BATCH,
    learning_rate=_RATE,
    betas=_BETAS,
    error=choice('squared', 'absolute'),
    warmup_fraction=_SHARE_BELOW_1,
    commitment=between(0.0, 1e3),
    codebook_decay=_SHARE_BELOW_1,
    max_shift=_PIXELS,
    fine_tune=boolean,
    measured_images=_IMAGES_OR_0,
    evaluate_every=_EVERY_OR_NEVER,
  ),
  **_section(
    'tokenizer.adversarial',
    weight=between(0.0, 1e3),
    adaptive=boolean,
    start_fraction=_SHARE_BELOW_1,
    lead_fraction=_SHARE_BELOW_1,
    num_levels=integer(1, 10),
    base_width=_CHANNELS,
    num_groups=_CHANNELS,
    learning_rate=_RATE,
    betas=_BETAS,
  ),
  **_section(
    'judges',
    training=choice('auto', 'classes', 'captions', 'views'),
    embedding_width=_WIDTH,
  ),
  **_section(
    'judges.measure',
    widths=some_of(_CHANNELS, most=10, repeated=True),
    feature_width=_WIDTH,
    **_AUGMENTED,
  ),
  **_section(
    'judges.reward',
    image_size=_PIXELS,
    normalisation=choice('centred', 'imagenet'),
    crop_probability=_SHARE,
    patch_size=integer(1, 2**10),
    width=_WIDTH,
    depth=_DEPTH,
    num_heads=_HEADS,
    hooks=some_of(integer(0, 511)),
    dtype=_COMPUTE_TYPE,
    **_AUGMENTED,
  ),
  **_section(
    'nat',
    network=choice('nat', 'enat', 'maskgit', 'halton'),
    width=_WIDTH,
    # Half of the blocks hand over to the other half; beside them there is one
    # in the middle.
    depth=integer(0, 512, step=2),
    **_alike('encoder_depth decoder_depth', _DEPTH),
    num_heads=_HEADS,
    mlp_ratio=integer(1, 64),
    dropout_rate=_SHARE_BELOW_1,
    num_steps=_TRAINING_STEPS,
    batch_size=_BATCH,
    micro_batches=_PARTS,
    learning_rate=_RATE,
    learning_rate_schedule=choice('cosine', 'constant'),
    warmup_steps=_EVERY_OR_NEVER,
    weight_decay=between(0.0, 10.0),
    betas=_BETAS,
    max_gradient_norm=between(0.0, 1e6),
    ema_decay=_SHARE_BELOW_1,
    label_smoothing=_SHARE_BELOW_1,
    condition_dropping=_SHARE_BELOW_1,
    loss_tokens=choice('masked', 'all'),
    reuse_probability=_SHARE,
    mask_ratio=curve('beta'),
    least_mask_ratio=_SHARE,
    mask_ratio_per=choice('example', 'batch'),
    beta=tuple_of(between(0.0, 1e4, above_low=True), length=2),
    fine_tune=boolean,
    dtype=_COMPUTE_TYPE,
    training_dtype=choice('', *_TRAINED_TYPE),
    attention=choice('auto', 'xla', 'cudnn'),
    evaluate_every=_EVERY_OR_NEVER,
    validation_examples=_IMAGES_OR_0,
    sample_grid=integer(0, 2**12),
    sample_num_steps=_DECODING_STEPS,
    sample_schedule=schedule(),
    frechet_samples=zero_or(_MEASURED),
    frechet_every=_EVERY_OR_NEVER,
  ),
  **_section(
    'policy',
    rewards=some_of(choice('adversarial', 'frechet', 'pretrained')),
    num_steps=some_of(_DECODING_STEPS),
    drawn_num_steps=none_or(some_of(_DECODING_STEPS)),
    trainings=_REPETITIONS,
    iterations=_TRAINING_STEPS,
    kinds=some_of(choice('adaptive', 'constant', 'shared')),
    batch_size=integer(GROUP_SIZE, 2**20),
    **_alike('log_every save_every', _EVERY),
    preset=choice('paper', 'ours'),
    residual=choice('published', 'maskgit', 'none'),
    fine_tune=boolean,
    smoothing=between(0.0, 1.0, below_high=True),
    guided=boolean,
    guided_steps=none_or(some_of(integer(-1024, 1023))),
    learned=some_of(choice(*NAMES)),
    rollout_size=integer(0, 2**20),
    rollout_features=choice('auto', 'store', 'recompute'),
    rollout_dtype=choice('float32', 'bfloat16'),
    evaluate_every=_EVERY_OR_NEVER,
    evaluate_samples=_MEASURED,
    iterate=choice('last', 'best', 'average'),
    ema_decay=_SHARE_BELOW_1,
  ),
  **_section(
    'policy.ppo',
    learning_rate=optional(_RATE),
    num_epochs=optional(integer(1, 1000)),
    **_alike('num_minibatches shuffle_groups micro_batches', optional(_PARTS)),
    clip_epsilon=optional(between(0.0, 100.0, above_low=True)),
    **_alike('value_coefficient entropy_coefficient', optional(_WEIGHT)),
    max_gradient_norm=optional(between(0.0, 1e6)),
    **_alike('initial_std final_std', optional(_TEMPERATURE)),
    std_schedule=optional(choice('linear', 'steps')),
    std_decay=optional(between(0.0, 100.0)),
    std_decay_steps=optional(some_of(integer(1, 10**8))),
    std_per_action=optional(
      tuple_of(between(0.0, 100.0, above_low=True), length=len(NAMES))
    ),
    discount=optional(between(0.0, 1.0)),
  ),
  **_section(
    'policy.network',
    **_alike('hidden_size conv_width', _WIDTH),
    mlp_widths=tuple_of(_WIDTH, length=2),
  ),
  **_section(
    'policy.discriminator',
    mapping_width=_WIDTH,
    mapping_layers=integer(0, 100),
    condition_map_width=_WIDTH,
    kernel_size=integer(1, 99, step=2),
    learning_rate=_RATE,
    loss=choice('logistic', 'hinge'),
    updates=integer(1, 10**4),
    batch_size=integer(GROUP_SIZE, 2**20),
    spectral_warmup=integer(0, 10**5),
    fresh_rollouts=boolean,
    reconstruct_real=boolean,
    held_out=integer(0, 2**20),
    init_from=path(),
  ),
  **_section(
    'evaluate',
    protocol=choice('study', 'published'),
    network=choice('inception', 'measure', 'pixels'),
    statistics=path(),
    reference_split=_SPLIT,
    labels=choice('uniform', 'balanced'),
    rounding=choice('none', 'floor', 'nearest'),
    save_every=_EVERY,
    policies=some_of(schedule('learned')),
    schedules=optional(some_of(schedule())),
    num_buckets=_BUCKETS,
    # Three neighbours say how far images reach.
    precision_recall=zero_or(integer(4, 10**6)),
    save_npz=boolean,
    benchmark=choice('', *BENCHMARKS),
    num_seeds=_REPETITIONS,
    num_samples=integer(10, 10**7),
    grid_samples=integer(100, 10**7),
    max_grid=integer(1, 10**4),
    batch_size=integer(0, 2**20),
  ),
  **_section('evaluate.inception', init_from=path()),
  **_section('evaluate.clip', tower=choice(*TOWERS), tokenizer=path()),
  **_section('evaluate.clip.text', init_from=path()),
  **_section('evaluate.clip.image', init_from=path()),
  **_section('statistics', split=_SPLIT, output=path('.npz')),
  **_section(
    'search',
    num_steps=some_of(_DECODING_STEPS),
    optimizers=some_of(choice('cma', 'finite_differences')),
    common_noise=some_of(choice('on', 'off')),
    start=schedule('published', 'fewer_steps'),
    repetitions=_REPETITIONS,
    evaluations=integer(1, 10**6),
    num_samples=_MEASURED,
    fresh_seeds=_REPETITIONS,
    fresh_samples=_MEASURED,
    refinement=_TEMPERATURE,
    rounds=integer(0, 100),
    training_steps=_TRAINING_STEPS,
  ),
  **_section(
    'search.descent',
    ratio_difference=_RATE,
    **_alike('other_difference ratio_rate other_rate', _TEMPERATURE),
    momentum=_SHARE_BELOW_1,
    clip_gradient=between(0.0, 1e6),
  ),
  **_section(
    'search.spread',
    ratio=_RATE,
    **_alike('temperature guidance', _TEMPERATURE),
  ),
  **_section(
    'report',
    images_per_class=integer(1, 1000),
    revealed_samples=integer(1, 100),
  ),
  **_section(
    'laboratory',
    schedules=some_of(schedule()),
    num_steps=some_of(integer(1, 16)),
    draws=integer(1, 10**6),
    **_alike('coupling field', between(0.0, 10.0)),
  ),
  **_section(
    'discover',
    methods=some_of(choice(*DISCOVERY_METHODS)),
    labelled_share=between(0.0, 1.0, above_low=True, below_high=True),
    batch_size=integer(2, 2**20),
    depth=integer(0, 512),
    learning_rate=_RATE,
    shared_head=boolean,
    teacher_temperatures=tuple_of(_TEMPERATURE, length=2),
    cross_positives=choice('items', 'labels'),
    mutual_teacher=choice('both', 'image', 'text', 'fused'),
    fusion=choice('probabilities', 'logits'),
    **_alike('num_splits num_seeds kmeans_inits views', _REPETITIONS),
    **_alike('num_classes num_known most_classes warmup_epochs', _COUNT_OR_0),
    **_alike('least_items num_epochs', integer(1, 10**6)),
    **_alike('width hidden_width projection_width', _WIDTH),
    **_alike('dropout_rate supervised_weight', _SHARE_BELOW_1),
    **_alike('weight_decay entropy_weight cross_weight', _WEIGHT),
    mutual_weight=_WEIGHT,
    **_alike('contrast_temperature cross_temperature', _TEMPERATURE),
    **_alike('supervised_temperature student_temperature', _TEMPERATURE),
  ),
  **_section(
    'discover.image',
    network=choice('measure', 'reward', 'clip'),
    width=zero_or(_WIDTH),
    least_crop=_RATE,
    jitter=_SHARE_BELOW_1,
  ),
  **_section(
    'discover.text',
    network=choice('words', 'vectors', 'clip'),
    width=zero_or(_WIDTH),
    vectors=path('.npz'),
    word_dropping=_SHARE_BELOW_1,
  ),
  **_section(
    'suite',
    passes=some_of(integer(2, 1024)),
    schedules=some_of(schedule('learned', 'searched')),
  ),
  **_section(
    'compare',
    networks=some_of(choice('nat', 'enat')),
    schedules=optional(some_of(schedule())),
    # One step has nothing to schedule.
    num_steps=some_of(integer(2, 1024)),
    batch_size=_BATCH,
    num_buckets=integer(1, 64),
    **_alike('timing_rounds timing_batches', _REPETITIONS),
  ),
  **_section(
    'compare.enat',
    **_alike('encoder_depth decoder_depth', _DEPTH),
    reuse_probability=_SHARE,
  ),
  **_section(
    'export',
    output=path(),
    dtype=choice('float32', 'bfloat16', 'float16'),
    tables=tuple_of(path('.json')),
    program=path(),
  ),
  **_section(
    'sample',
    classes=some_of(integer(0, 10**6), most=10**5, repeated=True),
    images_per_class=integer(1, 10**5),
    num_steps=_DECODING_STEPS,
    seed=_SEED,
    policy=schedule('learned', 'hand-made', 'table'),
    table=path(),
    num_buckets=_BUCKETS,
    timing_rounds=integer(0, 1000),
    output=path(),
  ),
  **_section(
    'edit',
    image=path(),
    mask=path(),
    box=none_or(tuple_of(_PIXELS, length=4)),
    sides=none_or(tuple_of(_PIXELS, length=4)),
    strength=_SHARE,
    labels=tuple_of(label),
    fit=boolean,
    border=optional(between(0.0, 2**12)),
    output=path(),
  ),
}

# Fields that configs of images in files have, too.
_FILES: Mapping[str, Rule] = {
  **_section(
    'data',
    path=path(),
    validation_path=path(),
    held_out=_IMAGES_OR_0,
    tfds_name=path(),
    annotations=path(),
    validation_annotations=path(),
    apply_orientation=boolean,
    max_corrupt_share=_SHARE,
    prepared=path(),
    text_embeddings=choice('store', 'compute'),
    num_classes=zero_or(integer(1, 10**6)),
  ),
  **_section(
    'prepare',
    batch_size=_BATCH,
    shard_size=integer(1, 10**7),
    num_threads=integer(0, 1024),
  ),
  **_section('tokenizer', init_from=path()),
  **_section('nat', init_from=path()),
  **_section('policy', init_from=path()),
  **_section('judges.reward', init_from=path()),
}

# Fields that configs of captions have, too.
_TEXTS: Mapping[str, Rule] = {
  **_section(
    'text',
    network=choice('clip', 'learned', 'given'),
    width=_WIDTH,
    depth=_DEPTH,
    num_heads=_HEADS,
    mlp_width=integer(1, 2**16),
    num_positions=integer(1, 4096),
    projection_width=_WIDTH,
    activation=choice('gelu', 'quick_gelu'),
    dtype=_COMPUTE_TYPE,
    init_from=path(),
    tokenizer=path(),
  ),
  **_section('sample', captions=tuple_of(text(2000))),
}

# Fields that a config may lack: earlier versions had none.
_ADDED: Mapping[str, Rule] = {
  **_section('data', background=optional(colour_or_none), mirror=boolean),
  **_section('data', image_width=_PIXELS),
  **_section('data', **_alike('text_column label_column', text(100))),
  **_section('text', vectors=path()),
  **_section('policy', dial=choice('', 'frechet', 'pretrained')),
  **_section('policy.discriminator', groupings=integer(1, 1000)),
  **_section('suite', num_draws=some_of(_DRAWS)),
  **_section('search', guided=boolean),
  **_section('sample', num_draws=_DRAWS),
  **_section(
    'evaluate',
    # Here there are five neighbours; a kernel needs two images of each half.
    density_coverage=zero_or(integer(6, 10**6)),
    kernel_distance=zero_or(integer(4, 10**6)),
  ),
}

RULES: Mapping[str, Rule] = {**_SHARED, **_FILES, **_TEXTS, **_ADDED}

# What every training loop reads of the top of a config.
LOOP = (
  *('seed', 'profile', 'log_every', 'save_every', 'keep_every', 'keep_best'),
  *('tensorboard', 'mesh'),
)

# What a generator is made of: the groups whose fields are checked, and those
# fields that workdirs of all versions have.
_GENERATOR_GROUPS = (
  *('data.', 'tokenizer.', 'nat.', 'text.', 'policy.', 'mesh.'),
  'evaluate.batch_size',
)
_GENERATOR = (
  *('data.source', 'data.image_size', 'data.condition', 'data.num_classes'),
  *('tokenizer.codebook_size', 'tokenizer.code_width', 'tokenizer.base_width'),
  *('tokenizer.width_multipliers', 'tokenizer.num_res_blocks'),
  *('tokenizer.num_groups', 'nat.width', 'nat.depth', 'nat.num_heads'),
  *('nat.mlp_ratio', 'nat.dropout_rate', 'nat.dtype', 'text.width'),
  *('text.depth', 'text.num_heads', 'text.mlp_width', 'text.projection_width'),
  *('text.activation', 'policy.rewards', 'policy.num_steps'),
  *('policy.trainings', 'policy.residual', 'policy.network'),
  *('evaluate.batch_size', 'mesh.fsdp'),
)


def check(
  config: Config,
  *checks: Callable[[Config], Iterable[str] | None],
  reads: tuple[str, ...] = (),
) -> None:
  """Checks all fields of a config, then how they go together.

  Args:
    config: every field that it has is checked, whoever reads it.
    *checks: see `fields.check`.
    reads: fields and groups of fields that must be there. Fields of files count
      only where `data.source` is not 'digits', those of captions only where
      `data.condition` is 'text'.

  Raises:
    ConfigError: listing everything that is wrong.
  """
  fields.check(config, RULES, checks, _required(config, reads))


def check_generator(config: Config) -> None:
  """Checks what a generator is made of, of a config of any version.

  Raises:
    ConfigError: listing everything that is wrong.
  """
  rules = {n: r for n, r in RULES.items() if n.startswith(_GENERATOR_GROUPS)}
  fields.check(config, rules, required=_required(config, _GENERATOR))


def with_home(config: Config) -> Config:
  """The config, or a copy, with the home directory for `~` in its paths."""
  found = config_lib.fields(config)
  paths = {
    name: os.path.expanduser(value)
    for name, value in found
    if isinstance(value, str) and value.startswith('~')
    if name in RULES and RULES[name].is_path
  }
  if not paths:
    return config
  copy = config.copy_and_resolve_references()
  copy.update_from_flattened_dict(paths)
  return copy


def _required(config: Config, reads: tuple[str, ...]) -> Iterator[str]:
  """The fields that have to be there for what is read."""
  data = config.get('data')
  data = data if isinstance(data, Config) else Config()
  names = [*_SHARED]
  if data.get('source', 'digits') != 'digits':
    names += _FILES
  if data.get('condition', '') == 'text':
    names += _TEXTS
  groups = tuple(f'{group}.' for group in reads)
  yield from (name for name in names if f'{name}.'.startswith(groups))
