"""Scores of generated images as they are made: nothing of them is kept.

  scorer = Scorer(experiment)
  scorer(generator, schedule, num_samples=2000, seed=0)

gives `{'frechet_inception_2000': ...}`. Batches are decoded, rounded and
measured on the mesh; only features reach the hosts, and process 0 counts them
in float64. So memory is the same for any number of samples, and with a
directory a run that was killed goes on where it was, to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import operator
import os
import pathlib
from typing import Any, Protocol

import jax
import numpy as np

from adanat_jax.data import prefetch
from adanat_jax.data.order import epoch_batch
from adanat_jax.decoding.schedules import Schedule
from adanat_jax.experiment import networks, texts
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring import (
  features,
  published_weights,
  real_images,
  reference_statistics,
)
from adanat_jax.metrics import frechet
from adanat_jax.metrics.tally import SampleTally
from adanat_jax.runtime import files, processes, sharding
from adanat_jax.sampling.generator import Generator
from adanat_jax.types import Array

_TALLY_FILE = 'tally.npz'
_ROWS_FILE = 'samples.uint8'


class Observer(Protocol):
  """A further measure of each generated image."""

  params: Any  # Global arrays that it reads.

  @property
  def names(self) -> Sequence[str]:
    """Of its figures: a tally of others is not continued."""

  def inputs(self, index: np.ndarray) -> Any:
    """What it needs to know of samples by their number, as global arrays."""

  def measure(
    self, params: Any, images: Array, inputs: Any
  ) -> dict[str, Array]:
    """Its figures by name, float32[B]; traced."""


class SampleFile:
  """Samples as ADM's evaluator reads them: `arr_0` uint8[n, H, W, C] in .npz.

  Of class-conditional models `arr_1` holds the labels. Rows go to a file beside
  it as they come, so memory does not grow with their number.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    shape: tuple[int, int, int, int],
    labels: np.ndarray | None,
  ):
    """Writes nothing yet.

    Args:
      directory: gets `samples.npz`.
      shape: of all samples, [n, H, W, C].
      labels: int32[n] or None.
    """
    self.path = directory / 'samples.npz'
    self._rows = directory / _ROWS_FILE
    self._shape = shape
    self._labels = labels

  def is_begun(self) -> bool:
    """Whether there are rows of a killed run."""
    return self._rows.is_file()

  def write(self, first: int, images: np.ndarray) -> None:
    """Keeps samples `first` and following, uint8[b, H, W, C]."""
    rows = images.reshape(len(images), -1)
    with (
      # Written, not mapped: where the disk is full, a mapping kills.
      files.writing(self._rows),
      self._rows.open('r+b' if self.is_begun() else 'w+b') as file,
    ):
      file.seek(first * rows.shape[1])
      file.write(rows.tobytes())
      # No tally that is saved may be ahead of its rows.
      file.flush()
      os.fsync(file.fileno())

  def finish(self) -> None:
    """Puts all samples into the .npz; in process 0."""
    rows = np.memmap(self._rows, np.uint8, 'r', shape=self._shape)
    arrays: dict[str, Any] = {'arr_0': rows}
    if self._labels is not None:
      arrays['arr_1'] = self._labels
    temporary = self.path.with_name('.samples.npz')
    with files.writing(self.path):
      np.savez(temporary, **arrays)
    files.publish(temporary, self.path)


class Conditions:
  """The labels or captions that the samples of a set are to show."""

  def __init__(self, experiment: Experiment):
    """Opens the validation captions, where there are captions.

    Raises:
      UserError: if there are none, or no text tower to read them. A network
        that is trained with the NAT is loaded when captions are read.
    """
    self._experiment = experiment
    self._mesh = experiment.mesh
    self._prompts: Any = None
    self._text_params: Any = None
    if experiment.is_text:
      self._prompts = experiment.examples('test', 'prompts')
      self._has_ids = 'ids' in self._prompts.take(np.zeros(1, np.int64))
      if self._has_ids and not experiment.learns_text:
        self._text_params = experiment.network('text')[1]
      module = networks.text_module(experiment.config)
      self._states = jax.jit(
        lambda params, batch: texts.conditions(module, params, batch)[0]
      )

  def of(self, count: int, seed: int) -> np.ndarray:
    """Labels, or numbers of captions, of a set of samples, int32[count].

    Labels are drawn uniformly (AdaNAT, AutoNAT) or go round (`balanced`).
    Captions go round too, in a random order: each comes once before any comes
    twice.
    """
    number = self._experiment.order_seed(f'scores/{seed}/conditions')
    if self._prompts is not None:
      return epoch_batch(0, count, len(self._prompts), number)
    num_classes = self._experiment.num_classes
    if self._experiment.config.evaluate.labels == 'balanced':
      return np.arange(count, dtype=np.int32) % num_classes
    random = np.random.Generator(np.random.PCG64(number))
    return random.integers(0, num_classes, count, np.int32)

  def batch(self, chosen: np.ndarray) -> Array:
    """Conditions of a batch as a global array: class ids, or text states."""
    rows = sharding.local_rows(chosen, self._mesh)
    if self._prompts is None:
      labels: Any = sharding.put_batch(rows, self._mesh)
      return labels
    found = sharding.put_batch(self._prompts.take(rows), self._mesh)
    if self._has_ids and self._text_params is None:
      self._text_params = self._experiment.network('text')[1]
    with jax.set_mesh(self._mesh):
      return self._states(self._text_params, found)

  def read_with(self, params: Any) -> None:
    """Reads captions with these parameters of a text network in training."""
    self._text_params = params

  def on_hosts(self, chosen: np.ndarray) -> np.ndarray:
    """Conditions of any number of samples, the same array in all processes."""
    devices = self._mesh.size
    padded = np.resize(chosen, -(-len(chosen) // devices) * devices)
    return np.asarray(sharding.gather(self.batch(padded)))[: len(chosen)]

  def captions(self, chosen: np.ndarray) -> list[str]:
    """The texts of captions by their numbers."""
    return self._prompts.captions(chosen)


class Scorer:
  """Measures what a generator makes against real images."""

  def __init__(self, experiment: Experiment):
    """Loads the network that measures, and the moments of real images.

    Where no moments are named and none were made, they are made now.

    Raises:
      UserError: for a network, moments or captions that are not there.
    """
    self._experiment = experiment
    self._mesh = experiment.mesh
    self.network = features.load(experiment)
    self.reference = reference_statistics.reference(experiment, self.network)
    self.conditions = Conditions(experiment)
    self._measures: dict[Any, Any] = {}

  def distance_name(self, num_samples: int) -> str:
    """The name of the Fréchet distance among the figures."""
    return self.figure_name('frechet', num_samples)

  def figure_name(self, figure: str, num_samples: int) -> str:
    """The name of a figure: see `published_weights`."""
    network = self.network
    return published_weights.figure_name(
      figure, network.name, network.is_published, num_samples
    )

  def __call__(
    self, generator: Generator, schedule: Schedule, **options: Any
  ) -> dict[str, float]:
    """Samples and measures; arguments as `tally`.

    Returns:
      Figures by names that say what they are: the Fréchet distance, and if the
      network is a classifier the inception score. The same in all processes.
    """
    tally = self.tally(generator, schedule, **options)
    return processes.from_first(lambda: self.figures(tally))

  def tally(
    self,
    generator: Generator,
    schedule: Schedule,
    *,
    num_samples: int,
    seed: int = 0,
    directory: pathlib.Path | None = None,
    num_kept: int = 0,
    observers: Sequence[Observer] = (),
    images: SampleFile | None = None,
  ) -> SampleTally:
    """Counts samples.

    Nothing is compiled anew from call to call as long as the networks' modules
    and, of an agent, the function `actor_critic` are the same objects, and, of
    a table that an ENAT follows, its counts are the same.

    Args:
      generator: what decodes, in batches of its `batch_size`.
      schedule: by which it decodes: a table of float32[T], or a learned policy.
      num_samples: how many.
      seed: of conditions and noise.
      directory: where to keep what was counted; None to keep nothing.
      num_kept: of how many samples features are kept.
      observers: what else is measured of each image.
      images: where the images go.

    Returns:
      What was counted. It is complete in process 0, and empty in others.
    """
    chosen = self.conditions.of(num_samples, seed)
    tally = SampleTally(num_samples, num_kept=num_kept)
    # What makes two tallies the same one, within one workdir.
    about = json.dumps(
      [num_samples, schedule.num_steps, seed, num_kept]
      + [self.network.description()]
      + [observer.names for observer in observers]
    )
    path = directory and files.make_directory(directory) / _TALLY_FILE
    first = processes.from_first(lambda: _restore(path, about, tally))
    unsaved = 0
    stream = generator.stream(
      schedule,
      lambda index: self.conditions.batch(chosen[index]),
      num_samples,
      self._experiment.key(f'scores/{seed}'),
      first=first,
    )
    measure = self._measure(tuple(observers), images is not None)
    for index, found in prefetch.one_behind(
      (index, measure(index, part.images)) for index, part in stream
    ):
      found = sharding.gather(found)
      if processes.process_index() != 0:
        continue
      found = jax.tree.map(operator.itemgetter(slice(len(index))), found)
      if images is not None:
        images.write(int(index[0]), found['images'])
      tally.update(found['features'], found.get('logits'), found['values'])
      unsaved += len(index)
      every = self._experiment.config.evaluate.save_every
      if path and (unsaved >= every or tally.count == num_samples):
        unsaved = 0
        state = {**tally.state(), 'about': about}
        files.write_bytes(path, reference_statistics.to_npz(state))
    return tally

  def warnings(self, num_samples: int) -> list[str]:
    """Says which sets are too small for a covariance of the features."""
    width = len(self.reference.gaussian.mean)
    made_of = self.reference.description['made of']
    counts = {'generated': num_samples}
    # Published moments do not tell how many images they are of.
    if isinstance(made_of, dict) and 'counted' in made_of:
      counts['real'] = made_of['counted']
    return real_images.too_few(counts, width)

  def figures(self, tally: SampleTally) -> dict[str, float]:
    """What a complete tally says; in process 0."""
    count = tally.num_samples
    result = {
      self.distance_name(count): frechet.frechet_distance(
        tally.moments.result(), self.reference.gaussian
      )
    }
    score = tally.class_score()
    if score is not None:
      result[self.figure_name('class_score', count)] = score
    return result

  def _measure(self, observers: tuple[Observer, ...], keep: bool) -> Any:
    """A function of sample numbers and images that measures on the mesh."""
    network, rounding = self.network, self._experiment.config.evaluate.rounding
    params = (network.params, [observer.params for observer in observers])

    def traced(params: Any, images: Array, inputs: Any) -> dict[str, Any]:
      seen = features.rounded(images, rounding)
      found, logits = network.apply(params[0], seen)
      values: dict[str, Array] = {}
      for observer, own, given in zip(
        observers, params[1], inputs, strict=True
      ):
        values |= observer.measure(own, seen, given)
      result = {'features': found, 'values': values}
      if logits is not None:
        result['logits'] = logits
      if keep:
        result['images'] = features.to_bytes(images, rounding)
      return result

    if (observers, keep) not in self._measures:
      self._measures[observers, keep] = jax.jit(traced)
    compiled = self._measures[observers, keep]

    def measure(index: np.ndarray, images: Array) -> dict[str, Any]:
      padded = np.resize(index, len(images))
      inputs = [observer.inputs(padded) for observer in observers]
      with jax.set_mesh(self._mesh):
        return compiled(params, images, inputs)

    return measure


def forget(directory: pathlib.Path) -> None:
  """Deletes what only an unfinished set of samples needs."""
  if processes.process_index() == 0:
    for name in (_TALLY_FILE, _ROWS_FILE):
      (directory / name).unlink(missing_ok=True)


def _restore(path: pathlib.Path | None, about: str, tally: SampleTally) -> int:
  """Restores what a killed run has counted; returns how many samples."""
  if path is None or not path.is_file():
    return 0
  with np.load(path) as file:
    state = dict(file)
  if str(state.pop('about')) != about:
    return 0
  tally.restore(state)
  return tally.count
