"""Mode `discover`: finds categories, known and new, from pictures and words.

  adanat --config=emoji_gcd

Runs every method of `discover.methods` on every split of the classes and every
seed (docs/discovery.md). Leaves in `discover/`

ledger.jsonl   each figure as soon as it is known: a run that was killed, or
               whose lists have grown, does only what is missing
METHOD/        the trainings, one a split and seed
results.json   every figure
discovery.md   the table, which is printed, too
clusters.png   what was found: pictures of new classes
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import os
from typing import Any

import jax
import numpy as np

from adanat_jax.data.examples import ArrayExamples
from adanat_jax.data.images import to_unit
from adanat_jax.discovery import kmeans, methods as methods_lib, splits
from adanat_jax.discovery.methods import METHODS, DiscoveryLoss, DiscoveryMethod
from adanat_jax.discovery.splits import KnownSplit
from adanat_jax.errors import UserError
from adanat_jax.experiment import datasets, field_rules, fit
from adanat_jax.experiment.experiment import Experiment
from adanat_jax.measuring.real_images import RealImages
from adanat_jax.metrics import clustering
from adanat_jax.models.prototypes import DiscoveryNetwork
from adanat_jax.report import discovery as report
from adanat_jax.runtime import files, journal, processes, sharding
from adanat_jax.stages import discover_features, judges
from adanat_jax.stages.discover_features import PairList
from adanat_jax.types import Array

# Fields that may grow or be set later: what is there keeps its place.
_GROWING = ('methods', 'num_splits', 'num_seeds', 'most_classes')
# Clusters in the picture, and pictures of each.
_CLUSTERS_SHOWN = 10
_PICTURES_SHOWN = 12


def check_config(experiment: Experiment) -> None:
  """Raises ConfigError for pairs or values with which nothing can be found."""
  experiment.check(
    _problems,
    reads=('data', 'judges', 'evaluate', 'discover', *field_rules.LOOP),
  )


def _problems(experiment: Experiment) -> Iterator[str]:
  """Says why categories cannot be looked for."""
  config = experiment.config
  section, data = config.discover, config.data
  if data.source != 'pairs':
    yield (
      f'config.data.source={data.source} is not allowed in mode discover: give'
      ' pairs'
    )
    return
  yield from datasets.problems(experiment)
  yield from experiment.uneven_batches({'discover.batch_size': 1})
  for name, other in (('image', 'evaluate.clip.image'), ('text', '')):
    other = other or 'evaluate.clip.text'
    if section[name].network == 'clip' and not experiment.is_converted(other):
      yield (
        f'config.{other}.init_from is empty; give the directory that python -m'
        f' adanat_jax.convert --kind=clip_{name} wrote, or another'
        f' config.discover.{name}.network'
      )
  training = config.judges.get('training', 'auto')
  if judges.trained(experiment) and training != 'views':
    yield (
      f'config.judges.training={training} would show the encoder of pictures'
      ' what it is to find; give views, or a'
      ' config.discover.image.network that is not trained here'
    )
  if section.text.network == 'vectors' and not section.text.vectors:
    yield (
      'config.discover.text.vectors is empty; give an .npz file with a vector'
      ' of each text, or config.discover.text.network=words'
    )
  if 'multimodal_estimated' in section.methods and not section.most_classes:
    yield (
      'config.discover.most_classes is 0; give the largest number of classes to'
      ' be tried, or leave multimodal_estimated out of config.discover.methods'
    )
  # Later stages would be in vain; a folder that is not there is told by them.
  if data.path and os.path.isdir(data.path):
    pairs = discover_features.list_pairs(experiment)
    _check_pairs(experiment, pairs)
    if section.text.network == 'vectors' and section.text.vectors:
      discover_features.given_vectors(section.text.vectors, pairs.texts)


def _check_pairs(experiment: Experiment, pairs: PairList) -> None:
  splits.check(
    pairs.labels,
    pairs.items,
    pairs.names,
    *_numbers(experiment, len(pairs.names)),
  )


def _numbers(experiment: Experiment, there: int) -> tuple[int, int]:
  """How many classes are known, and how many are looked for."""
  section = experiment.config.discover
  return section.num_known or there // 2, section.num_classes or there


def run(experiment: Experiment) -> None:
  """Does what is missing, prints the table and writes `discover/`."""
  check_config(experiment)
  section = experiment.config.discover
  directory = files.make_directory(experiment.workdir / 'discover')
  about = {k: v for k, v in section.to_dict().items() if k not in _GROWING}
  ledger = journal.open_ledger(directory, about, 'config.discover')
  pairs = discover_features.list_pairs(experiment)
  digest = discover_features.digest(experiment, pairs)
  if ledger.get('pairs', lambda: digest) != digest:
    raise UserError(
      f'{directory} was begun with other pairs than config.data.path='
      f'{experiment.config.data.path} has now: names of pictures, texts,'
      ' classes or vectors of texts have changed; give those, or another'
      ' --workdir, or delete it'
    )
  pairs, features = discover_features.encode(experiment, pairs, directory)
  _check_pairs(experiment, pairs)  # Some pictures may be unreadable.
  rows, estimates = [], {}
  for number in range(section.num_splits):
    for seed in range(section.num_seeds):
      study = _Study(experiment, pairs, features, number, seed, ledger)
      for name in section.methods:
        processes.say(f'discover: split {number}, seed {seed}, {name}')
        figures = ledger.get(
          f'split{number}/seed{seed}/{_place(section, name)}',
          functools.partial(study.figures, name),
        )
        rows.append({'method': name, 'split': number, 'seed': seed, **figures})
      if section.most_classes:
        estimates[number] = study.estimate
  study = _Study(experiment, pairs, features, 0, 0, ledger)
  results = {
    'labels': {name: METHODS[name].label for name in section.methods},
    'pairs': len(pairs.labels),
    'items': len(np.unique(pairs.items)),
    'classes': len(pairs.names),
    'known': _numbers(experiment, len(pairs.names))[0],
    'estimates': list(estimates.values()),
    'rows': rows,
  }
  shown = [name for name in section.methods if METHODS[name].is_trained]
  if shown:
    found = ledger.get(
      f'clusters/{_place(section, shown[-1])}',
      functools.partial(study.clusters, shown[-1]),
    )
    pictures = _pictures(experiment, pairs, found)
    report.save_clusters(directory / 'clusters.png', found, pictures)
    results['clusters'] = found
  files.write_json(directory / journal.RESULTS_FILE, results)
  files.write_text(directory / 'discovery.md', report.compose(results))
  journal.mark_complete(directory, len(rows), {})
  processes.say(report.table(results))
  processes.say(f'discover: {directory / "discovery.md"}')


def _place(section: Mapping[str, Any], name: str) -> str:
  """What a method's figures and trainings are kept under.

  Where the number of classes is estimated, the largest one counts, too.
  """
  most = f'-{section["most_classes"]}' if METHODS[name].estimated else ''
  return f'{name}{most}'


def _pictures(
  experiment: Experiment, pairs: PairList, found: list[dict[str, Any]]
) -> list[np.ndarray]:
  """The pictures of each cluster, float32[m, H, W, 3]."""
  images = RealImages(experiment, 'train')
  return [
    to_unit(images.take(pairs.places[cluster['pairs']])['images'])
    for cluster in found
  ]


class _Study:
  """All methods on one split with one seed."""

  def __init__(
    self,
    experiment: Experiment,
    pairs: PairList,
    features: Mapping[str, np.ndarray],
    number: int,
    seed: int,
    ledger: journal.Ledger,
  ):
    self._experiment = experiment
    self._section = experiment.config.discover
    self._pairs = pairs
    self._features = features
    self._number, self._seed, self._ledger = number, seed, ledger
    num_known, self._num_classes = _numbers(experiment, len(pairs.names))
    # Splits are those of the config's seed; seeds are of the methods.
    self._split: KnownSplit = splits.split(
      pairs.labels,
      pairs.items,
      num_known,
      self._section.labelled_share,
      experiment.order_seed(f'discover/split{number}'),
    )
    self._permuted = splits.permuted(
      pairs.text_numbers,
      experiment.order_seed(f'discover/{number}/{seed}/permuted'),
    )
    self._logits: dict[str, dict[str, np.ndarray]] = {}

  @property
  def estimate(self) -> int:
    """The number of classes as k-means of both modalities finds it."""
    return self._ledger.get(
      f'split{self._number}/num_classes-{self._section.most_classes}',
      lambda: kmeans.estimate_num_classes(
        self._inputs(METHODS['kmeans_both'])['both'][:, 0],
        self._split.labels,
        self._section.most_classes,
        seed=0,
      ),
    )

  def figures(self, name: str) -> dict[str, float]:
    """How well a method's clusters are the classes."""
    assignment, _ = self._found(name)
    split = self._split
    measured = split.is_measured
    given = (x[measured] for x in (split.targets, assignment, split.is_old))
    classes, clusters, is_old = given
    v2 = clustering.accuracy(classes, clusters, is_old)
    v1 = clustering.accuracy_apart(classes, clusters, is_old)
    return {
      **dataclasses.asdict(v2),
      **{f'{key}_v1': value for key, value in dataclasses.asdict(v1).items()},
      **clustering.agreement(classes, clusters),
    }

  def clusters(self, name: str) -> list[dict[str, Any]]:
    """The largest clusters that are matched to new classes, best pairs first.

    Each has the class `name`, how many unlabelled pairs it holds (`size`) and
    how many of these are `right`, and some `pairs` by their index.
    """
    assignment, confidence = self._found(name)
    split = self._split
    index = np.flatnonzero(split.is_measured)
    matched = clustering.match(split.targets[index], assignment[index])
    sizes = np.bincount(assignment[index], minlength=len(matched))
    found = []
    for cluster in np.argsort(-sizes, kind='stable'):
      label = matched[cluster]
      if not split.num_known <= label < len(split.classes):
        continue
      own = index[assignment[index] == cluster]
      best = own[np.argsort(-confidence[own], kind='stable')]
      found.append(
        {
          'name': self._pairs.names[split.classes[label]],
          'size': len(own),
          'right': int((split.targets[own] == label).sum()),
          'pairs': best[:_PICTURES_SHOWN].tolist(),
        }
      )
    return [x for x in found if x['size']][:_CLUSTERS_SHOWN]

  def _found(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The cluster of each pair, int[n], and how sure it is, float[n]."""
    method = METHODS[name]
    if method.kind == 'kmeans':
      features = self._inputs(method)
      return self._kmeans(features[method.modalities[0]][:, 0], method)
    if method.kind == 'gcd':
      return self._kmeans(self._train(name)['feature'], method)
    if method.kind == 'late':
      ours, theirs = (
        self._probabilities(f'simgcd_{modality}')
        for modality in method.modalities
      )
      theirs = methods_lib.aligned(ours, theirs, self._split.num_known)
      probabilities = (ours + theirs) / 2
    else:
      probabilities = self._probabilities(name)
    return probabilities.argmax(1), probabilities.max(1)

  def _kmeans(
    self, features: np.ndarray, method: DiscoveryMethod
  ) -> tuple[np.ndarray, np.ndarray]:
    found = kmeans.kmeans(
      features,
      self._num_classes,
      self._split.labels if method.uses_labels else None,
      seed=self._seed,
      num_inits=self._section.kmeans_inits,
    )
    far = ((features - found.centres[found.assignment]) ** 2).sum(1)
    return found.assignment, -far

  def _probabilities(self, name: str) -> np.ndarray:
    """What a method with prototypes predicts, float[n, K]."""
    if name not in self._logits:
      self._logits[name] = self._train(name)
    return methods_lib.fuse(
      self._logits[name],
      self._section.fusion,
      self._section.student_temperature,
    )

  def _inputs(self, method: DiscoveryMethod) -> dict[str, np.ndarray]:
    """The frozen features that a method reads, float32[n, 1 + V, F]."""
    image, text = self._features['image'], self._features['text']
    if method.permuted:
      text = text[self._permuted]
    if method.modalities == ('both',):
      most = max(image.shape[1], text.shape[1]) - 1
      # The plain ones first; views of the modality with fewer come again.
      image, text = (
        x[:, [0, *(1 + i % (x.shape[1] - 1) for i in range(most))]]
        for x in (image, text)
      )
      return {'both': np.concatenate([image, text], -1) / np.sqrt(2)}
    both = {'image': image, 'text': text}
    return {name: both[name] for name in method.modalities}

  def _train(self, name: str) -> dict[str, np.ndarray]:
    """Trains a method, or reads its training; what it makes of plain views.

    Returns:
      For 'gcd' its `feature`, float[n, D]; for others the logits float[n, K] of
      each modality.
    """
    method, section, split = METHODS[name], self._section, self._split
    inputs = self._inputs(method)
    count = self.estimate if method.estimated else self._num_classes
    module = DiscoveryNetwork(
      method.modalities,
      width=section.width,
      depth=section.depth,
      hidden_width=section.hidden_width,
      projection_width=section.projection_width,
      num_prototypes=max(count, split.num_known),
      shared_head=section.shared_head,
      dropout_rate=section.dropout_rate,
    )

    def apply(params: Any, views: Any, key: Array | None) -> Any:
      rngs = None if key is None else {'dropout': key}
      train = key is not None
      return module.apply({'params': params}, views, train, rngs=rngs)

    epoch_steps = max(1, len(split.labels) // section.batch_size)
    optimizer = methods_lib.make_optimizer(
      section.learning_rate,
      section.num_epochs,
      epoch_steps,
      section.weight_decay,
    )
    place = f'{_place(section, name)}/split{self._number}-seed{self._seed}'
    title = f'discover/{place}'
    mesh = self._experiment.mesh
    frozen = sharding.shard_state(
      {
        'features': {key: x[:, 1:] for key, x in inputs.items()},
        'labels': split.labels.astype(np.int32),
        'items': self._pairs.text_numbers.astype(np.int32),
        'key': self._experiment.key(title),
      },
      mesh,
    )

    def initial(frozen: Any) -> methods_lib.DiscoveryState:
      views = {key: x[:1, 0] for key, x in frozen['features'].items()}
      params = module.init(frozen['key'], views)['params']
      return methods_lib.DiscoveryState(params, optimizer.init(params))

    state = fit.fit(
      self._experiment,
      title,
      initial=initial,
      train_step=methods_lib.make_train_step(
        apply, optimizer, self._objective(method), epoch_steps=epoch_steps
      ),
      batch_at=fit.Batches(
        self._experiment,
        title,
        ArrayExamples({'index': np.arange(len(split.labels), dtype=np.int32)}),
        (section.batch_size,),
        methods_lib.sampling_weights(split.is_labelled),
      ),
      num_steps=section.num_epochs * epoch_steps,
      frozen=frozen,
      best_of=None,
    )
    plain = {key: x[:, 0] for key, x in inputs.items()}
    found = jax.jit(lambda params, views: dict(apply(params, views, None)))(
      sharding.gather(state.params), plain
    )
    if method.kind == 'gcd':
      (branch,) = found.values()
      return {'feature': np.asarray(branch.feature)}
    return {key: np.asarray(branch.logits) for key, branch in found.items()}

  def _objective(self, method: DiscoveryMethod) -> DiscoveryLoss:
    section = self._section
    same = {
      field.name: section[field.name]
      for field in dataclasses.fields(DiscoveryLoss)
      if field.name in section
    }
    return DiscoveryLoss(
      **same
      | {
        'prototypes': method.kind != 'gcd',
        'cross_weight': section.cross_weight * method.cross,
        'mutual_weight': section.mutual_weight * method.mutual,
      }
    )
