"""How good a NAT is: its loss on held-out images, and what it generates.

An ENAT is measured likewise. The loss, for which it encodes all that it sees,
is that of the moving average, without dropout or label smoothing, with
mask ratios by the cosine law whatever the training's law, so that losses of
different recipes compare. What is generated, by a schedule of `SCHEDULES`, goes
to a picture, and every so often to the Fréchet distance on a small budget.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.data.examples import Examples
from adanat_jax.data.order import epoch_batch
from adanat_jax.experiment import networks, texts
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.learning import masked_tokens
from adanat_jax.measuring import scores
from adanat_jax.models.captions import CaptionedDenoiser
from adanat_jax.report import pictures
from adanat_jax.runtime import files, sharding
from adanat_jax.sampling.generator import Generator
from adanat_jax.types import Array

if TYPE_CHECKING:
  from adanat_jax.models.denoisers import DenoiserModule

# Tokens that go through the network at a time, where nothing is learned: 256
# images of 256 pixels.
_TOKENS_AT_A_TIME = 2**16


class HeldOutLoss:
  """Cross-entropy of the masked tokens of one split, in nats."""

  def __init__(
    self,
    experiment: Experiment,
    module: DenoiserModule | CaptionedDenoiser,
    condition: Callable[[Any, dict[str, Array]], Array],
    examples: Examples,
    key: Array,
  ):
    """Chooses the examples and draws their masks, once for all.

    Args:
      experiment: `nat.validation_examples` is read.
      module: the network.
      condition: see `masked_tokens.Network`.
      examples: of a split; which of them, no parameter or step decides.
      key: of the masks.
    """
    self._mesh = experiment.mesh
    self._examples = examples
    limit = experiment.config.nat.validation_examples
    if 0 < limit < len(examples):
      seed = experiment.order_seed('nat/validation')
      self._index = epoch_batch(0, limit, len(examples), seed)
    else:
      self._index = np.arange(len(examples))
    count, length = len(self._index), module.num_tokens

    def draw(key: Array) -> Array:
      ratio_key, mask_key = jax.random.split(key)
      ratio = masked_tokens.sample_mask_ratio(
        ratio_key, count, length, masked_tokens.Recipe(module.codebook_size)
      )
      return masked_tokens.random_mask(mask_key, ratio, length)

    # Not a global array: each process draws the same for itself.
    self._masked = np.asarray(jax.jit(draw)(key))

    def measure(
      params: Any, frozen: Any, rows: dict[str, Array], masked: Array
    ) -> tuple[Array, Array]:
      tokens, num_masked = rows['tokens'], jnp.sum(masked)
      logits = module.apply(
        {'params': sharding.whole(params)},
        jnp.where(masked, module.codebook_size, tokens),
        condition(frozen, rows),
      )[1]
      # A batch may be padding alone on some device, never altogether.
      loss = masked_tokens.masked_cross_entropy(
        logits, tokens, masked, 0.0, num_masked
      )
      return loss, num_masked

    self._measure = jax.jit(measure)

  def __call__(self, params: Any, frozen: Any) -> float:
    """The loss of these parameters, the same in all processes."""
    devices, length = self._mesh.size, self._masked.shape[1]
    size = min(len(self._index), max(1, _TOKENS_AT_A_TIME // length))
    size = -(-size // devices) * devices
    found = []
    for start in range(0, len(self._index), size):
      place = start + np.arange(size)
      is_real = place < len(self._index)
      place = np.where(is_real, place, 0)
      masked = self._masked[place] & is_real[:, None]
      rows = sharding.local_rows(np.arange(size), self._mesh)
      batch = (self._examples.take(self._index[place[rows]]), masked[rows])
      with jax.set_mesh(self._mesh):
        batch = sharding.put_batch(batch, self._mesh)
        found.append(self._measure(params, frozen, *batch))
    # Fetched at the end, so that the device never waits.
    losses, counts = zip(*((float(x), float(n)) for x, n in found), strict=True)
    return float(np.average(losses, weights=counts))


class TrainingSamples:
  """Draws samples of a NAT in training, and measures their distance."""

  def __init__(self, experiment: Experiment, frozen: Any):
    """Loads what images are made and measured with.

    Args:
      experiment: of this run; pictures go to `nat/samples` of its workdir.
      frozen: `null` holds the null condition of texts, unless it is learned.

    Raises:
      UserError: for a network or a file that is not there.
    """
    self._experiment = experiment
    self._section = section = experiment.config.nat
    module = networks.nat_module(experiment.config)
    self._learns_text = experiment.learns_text
    null = None
    if experiment.is_text and not self._learns_text:
      null = sharding.gather(frozen['null'])
    self._generator = experiment.generator_of(module, None, null)
    self._schedule = experiment.schedule(
      section.sample_schedule, section.sample_num_steps
    )
    self._scorer = (
      scores.Scorer(experiment) if section.frechet_samples else None
    )
    self._conditions = (
      self._scorer.conditions if self._scorer else scores.Conditions(experiment)
    )

  def __call__(self, params: Any, step: int) -> dict[str, float]:
    """Samples with parameters of the NAT after `step` finished steps.

    Returns:
      Figures by their names, none if no distance is due.
    """
    section = self._section
    null = self._generator.null_condition
    if self._learns_text:
      params, text = params['denoiser'], params['text']
      self._conditions.read_with(text)
      null = texts.null_states(self._experiment, text)
    generator = dataclasses.replace(
      self._generator, nat_params=params, null_condition=null
    )
    if section.sample_grid:
      self._draw(generator, step)
    every = section.frechet_every
    due = step == section.num_steps or (every and step % every == 0)
    if self._scorer is None or not due:
      return {}
    return self._scorer(
      generator, self._schedule, num_samples=section.frechet_samples
    )

  def _draw(self, generator: Generator, step: int) -> None:
    """Writes a picture of the same conditions and noise at every step."""
    experiment, count = self._experiment, self._section.sample_grid
    chosen = self._conditions.of(count, 0)
    images = [
      sharding.gather(part.images)[: len(index)]
      for index, part in generator.stream(
        self._schedule,
        lambda index: self._conditions.batch(chosen[index]),
        count,
        experiment.key('nat/samples'),
      )
    ]
    directory = files.make_directory(experiment.workdir / 'nat' / 'samples')
    pictures.save_grid(
      directory / f'{step:07d}.png',
      np.concatenate(images),
      columns=int(np.ceil(np.sqrt(count))),
      scale=max(1, 64 // experiment.image_shape[0]),
    )
