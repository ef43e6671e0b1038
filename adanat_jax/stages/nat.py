"""Stage `nat`: trains the masked-token transformer, NAT or ENAT, on tokens.

The tokens are those of the digits, or of the set that stage `prepare` has
written; conditions are classes or texts. `learning.masked_tokens` holds what is
learned, `nat_held_out` what is measured on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from adanat_jax.data import prepared
from adanat_jax.data.examples import Examples
from adanat_jax.experiment import (
  field_rules,
  fit,
  networks,
  texts,
  warm_start,
)
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import masked_tokens
from adanat_jax.learning.masked_tokens import NatState
from adanat_jax.measuring import features
from adanat_jax.models import denoisers
from adanat_jax.models.captions import CaptionedDenoiser
from adanat_jax.runtime import processes, sharding
from adanat_jax.stages import nat_held_out
from adanat_jax.types import Array, Cache

if TYPE_CHECKING:
  from adanat_jax.models.denoisers import DenoiserModule

Config = ml_collections.ConfigDict

# What the losses of the splits are called; that of the last split there is
# chooses the best state.
_LOSSES = {'train': 'train_loss', 'test': 'test_loss'}
# How much larger the loss on held-out images is where those of the training are
# learned by heart.
_BY_HEART = 1.25
# Networks of published weights alone.
_FOREIGN = ('maskgit', 'halton')


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for a network that cannot be trained."""
  experiment.check(
    _problems,
    _problems_of_measurements,
    networks.problems_of_grids,
    reads=('data', 'text', 'tokenizer', 'nat', *field_rules.LOOP),
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why the network cannot be trained."""
  section = experiment.config.nat
  types = {section.dtype, section.training_dtype}
  if section.attention == 'cudnn' and 'float32' in types:
    yield (
      'config.nat.attention=cudnn computes in bfloat16 only: set'
      ' config.nat.dtype=bfloat16 (and training_dtype, unless it is empty), or'
      ' give auto'
    )
  if section.network == 'nat' and section.reuse_probability:
    yield (
      f'config.nat.reuse_probability is {section.reuse_probability}; give 0'
      ' with config.nat.network=nat, which keeps nothing to reuse'
    )
  if section.network in _FOREIGN and not experiment.is_converted('nat'):
    yield (
      f'config.nat.network={section.network} is not trained here: name'
      ' converted weights by config.nat.init_from (docs/weights.md)'
    )
  if section.network in _FOREIGN and experiment.is_text:
    yield (
      f'config.nat.network={section.network} is not allowed with'
      ' config.data.condition=text: it reads classes'
    )
  # Converted weights are not trained.
  if section.network == 'enat' and not (
    section.reuse_probability or experiment.is_converted('nat')
  ):
    yield (
      'config.nat.reuse_probability is 0; give more with'
      ' config.nat.network=enat (published: 0.5): decoding reuses at every step'
    )
  yield from experiment.no_divisors({'nat.num_heads': 'nat.width'})
  yield from texts.problems(experiment)
  yield from experiment.uneven_batches(
    {'nat.batch_size': section.micro_batches}
  )


def _problems_of_measurements(experiment: Experiment) -> Iterator[str]:
  """Says why the network cannot be measured while it trains."""
  section = experiment.config.nat
  if not experiment.is_digits and not section.validation_examples:
    yield (
      'config.nat.validation_examples is 0, which is for small data: give how'
      ' many images of each split the loss is measured on'
    )
  every = section.evaluate_every
  if section.frechet_every and (not every or section.frechet_every % every):
    yield (
      f'config.nat.frechet_every is {section.frechet_every}; give 0 or a'
      f' multiple of config.nat.evaluate_every, which is {every}'
    )
  if every and section.frechet_samples:
    yield from features.problems(experiment)
  # It may not exist for this number of steps.
  experiment.schedule(section.sample_schedule, section.sample_num_steps)


def run(experiment: Experiment) -> None:
  """Trains `nat/` on the digits, or on what stage `prepare` has written."""
  config = experiment.config
  check_config(experiment)
  if experiment.is_converted('nat') or experiment.is_complete('nat'):
    return
  section = config.nat
  examples = _splits(experiment)
  module = networks.nat_module(config)
  if section.training_dtype:
    module = module.clone(dtype=jnp.dtype(section.training_dtype))
  tower, frozen = _frozen(experiment, examples['train'])
  _, inputs = networks.module_and_inputs(config, 'nat')
  if experiment.learns_text:
    text, (ids,) = networks.module_and_inputs(config, 'text')
    module, inputs[1] = CaptionedDenoiser(module, text), ids
  network = make_network(module, tower)
  optimizer = masked_tokens.make_optimizer(
    section.num_steps,
    section.learning_rate,
    min(section.warmup_steps, section.num_steps // 2),
    section.learning_rate_schedule,
    section.weight_decay,
    tuple(section.betas),
    section.get('max_gradient_norm', 0.0),
  )
  init_key, step_key, test_key = jax.random.split(experiment.key('nat'), 3)

  def initial(frozen: Any) -> NatState:
    zeros = [jnp.zeros(x.shape, x.dtype) for x in inputs]
    params = module.init(init_key, *zeros)['params']
    ema = jax.tree.map(jnp.copy, params)
    return NatState(params, ema, optimizer.init(params))

  losses = {
    _LOSSES[split]: nat_held_out.HeldOutLoss(
      experiment, module, network.condition, rows, test_key
    )
    for split, rows in examples.items()
  }

  def figures(state: NatState) -> dict[str, float]:
    return {name: loss(state.ema, frozen) for name, loss in losses.items()}

  options: dict[str, Any] = {}
  if section.evaluate_every:
    samples = None
    if section.sample_grid or section.frechet_samples:
      samples = nat_held_out.TrainingSamples(experiment, frozen)

    def evaluate(state: NatState, step: int) -> Mapping[str, float]:
      found = figures(state)
      return found | (samples(state.ema, step) if samples else {})

    options = {
      'evaluate': evaluate,
      'evaluate_every': section.evaluate_every,
      'best_of': (f'eval/{_LOSSES[list(examples)[-1]]}', 'min'),
    }
  fit.fit(
    experiment,
    'nat',
    initial=initial,
    train_step=masked_tokens.make_train_step(
      network, optimizer, recipe_of(config), key=step_key
    ),
    batch_at=fit.Batches(
      experiment, 'nat', examples['train'], (section.batch_size,)
    ),
    num_steps=section.num_steps,
    frozen=frozen,
    final_figures=figures,
    warnings_of=_warnings,
    begin=warm_start.make(
      experiment,
      'nat',
      {
        'nat': {
          # Converted weights are an average alone.
          'params': ('params', 'ema'),
          'ema': ('ema', 'params'),
          'opt_state': ('opt_state',),
        }
      },
    ),
    **options,
  )


def _warnings(figures: Mapping[str, float]) -> list[str]:
  """Says that the network repeats training images instead of learning."""
  train, test = (figures.get(name, 0.0) for name in _LOSSES.values())
  if test <= _BY_HEART * train:
    return []
  return [
    f'the NAT learns the training images by heart: its loss is {test:.2f} on'
    f' held-out images and {train:.2f} on those; give fewer'
    ' config.nat.num_steps, more dropout_rate, or more images'
  ]


def recipe_of(config: Config) -> masked_tokens.Recipe:
  """How `config.nat` trains."""
  section = config.nat
  # Configs of older versions lack two of these.
  return masked_tokens.Recipe(
    mask_token=config.tokenizer.codebook_size,
    mask_ratio=section.mask_ratio,
    beta=tuple(section.beta),
    least_mask_ratio=section.get('least_mask_ratio', 0.0),
    mask_ratio_per=section.mask_ratio_per,
    reuse_probability=section.reuse_probability,
    label_smoothing=section.label_smoothing,
    condition_dropping=section.condition_dropping,
    loss_tokens=section.get('loss_tokens', 'masked'),
    ema_decay=section.ema_decay,
    micro_batches=section.micro_batches,
  )


def make_network(
  module: DenoiserModule | CaptionedDenoiser, tower: Any = None
) -> masked_tokens.Network:
  """A NAT or an ENAT as training takes it.

  Args:
    module: the network, perhaps with the text network that is trained with it:
      its conditions are ids of captions, dropped before they are read, so that
      the null condition is learned too.
    tower: the text tower of a text-conditional one, None where the states of
      captions are stored; its parameters are `frozen['text']`.
  """

  def logits(
    params: Any, tokens: Array, condition: Array, dropout: Array, cache: Cache
  ) -> Array:
    return module.apply(
      {'params': params},
      tokens,
      condition,
      *(() if cache is None else (cache,)),
      train=True,
      rngs={'dropout': dropout},
    )[1]

  def encode(
    params: Any, tokens: Array, condition: Array, wanted: Array
  ) -> Cache:
    *_, cache = module.apply({'params': params}, tokens, condition)
    # A text's tokens were seen too, without any of the image's.
    return cache.replace(visible=cache.visible & wanted[:, None])

  denoiser = module
  if isinstance(module, CaptionedDenoiser):
    denoiser = module.denoiser
    condition = lambda frozen, batch: batch['ids']
    null = lambda frozen: frozen['null']
  elif module.num_classes is None:
    condition = lambda frozen, batch: texts.conditions(
      tower, frozen['text'], batch
    )[0]
    null = lambda frozen: frozen['null']
  else:
    condition = lambda frozen, batch: batch['condition']
    null = lambda frozen: module.num_classes
  reusing = encode if denoisers.reuses(denoiser) else None
  return masked_tokens.Network(logits, condition, null, reusing)


def _splits(experiment: Experiment) -> dict[str, Examples]:
  """The examples to learn from, and those held out if there are any."""
  splits = {'train': experiment.examples('train')}
  if not experiment.is_digits:
    manifest = prepared.read_manifest(experiment.prepared_directory)
    held_out = manifest['splits'].get('test')
    if held_out is None or not held_out['has_images']:
      processes.say(
        'nat: no images are held out, so only the loss on training images is'
        ' measured (config.data.validation_path, config.data.held_out)'
      )
      return splits
  return splits | {'test': experiment.examples('test')}


def _frozen(
  experiment: Experiment, examples: Examples
) -> tuple[Any, dict[str, Any]]:
  """The text tower where it is needed, and what the compiled step reads.

  The null condition of texts is what the tower says of the empty caption, and
  where a text network is trained the empty caption itself.
  """
  if not experiment.is_text:
    return None, {}
  if experiment.learns_text:
    (ids,) = texts.tokenize(experiment, [''])
    return None, {'null': sharding.shard_state(ids, experiment.mesh)}
  tower: Any = None
  params: Any = {}
  if (
    isinstance(examples, prepared.PreparedExamples)
    and examples.layout.state_width
  ):
    null = examples.null_states()
  else:
    tower, params = experiment.network('text')
    null = texts.null_states(experiment)
  null = sharding.shard_state(np.asarray(null, np.float32), experiment.mesh)
  return tower, {'null': null, 'text': params}
