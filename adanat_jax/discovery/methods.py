"""The methods that find categories, and one step of those that are trained.

A method is data: which modalities it reads, and which terms its loss has.
`METHODS` holds those of the comparison, in the order of the table.

Shape letters: `n` pairs, `V` cached views of each, `F` width of a feature, `B`
pairs of a batch, `K` prototypes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.optimize import linear_sum_assignment

from adanat_jax.discovery import losses
from adanat_jax.types import Array

# (params, modality -> float32[B, F], dropout key or None) -> modality -> an
# object with `feature`, `projection` and `logits`, see `models.prototypes`.
Apply = Callable[[Any, Mapping[str, Array], Array | None], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True)
class DiscoveryMethod:
  """What a method reads and how it decides."""

  label: str  # in tables
  # 'kmeans': of frozen features; 'gcd': trained by contrast, then k-means with
  # labels; 'prototypes': the nearest of K; 'late': two of these, fused.
  kind: str
  # 'image', 'text', or 'both', which are one feature side by side.
  modalities: tuple[str, ...]
  uses_labels: bool = True  # of k-means: labelled items keep their class
  cross: bool = False  # contrast between the modalities
  mutual: bool = False  # distillation between the modalities
  permuted: bool = False  # items have swapped their texts
  estimated: bool = False  # K is estimated, not given

  @property
  def is_trained(self) -> bool:
    """Whether it has a training of its own."""
    return self.kind in ('gcd', 'prototypes')


def _methods() -> dict[str, DiscoveryMethod]:
  method = DiscoveryMethod
  both = ('image', 'text')
  found = {}
  for name, read in (
    *(('image', 'pictures'), ('text', 'texts'), ('both', 'side by side')),
  ):
    found[f'kmeans_{name}'] = method(
      f'k-means, {read}', 'kmeans', (name,), uses_labels=False
    )
  for name, read in (
    *(('image', 'pictures'), ('text', 'texts'), ('both', 'side by side')),
  ):
    found[f'semi_kmeans_{name}'] = method(
      f'semi-supervised k-means, {read}', 'kmeans', (name,)
    )
  found['gcd_image'] = method('GCD, pictures', 'gcd', ('image',))
  found['gcd_text'] = method('GCD, texts', 'gcd', ('text',))
  found['simgcd_image'] = method('SimGCD, pictures', 'prototypes', ('image',))
  found['simgcd_text'] = method('SimGCD, texts', 'prototypes', ('text',))
  found['simgcd_both'] = method('SimGCD, side by side', 'prototypes', ('both',))
  found['late_fusion'] = method('two SimGCDs, fused late', 'late', both)
  found['joint'] = method('ours without a and b', 'prototypes', both)
  found['cross'] = method('ours, a alone', 'prototypes', both, cross=True)
  found['mutual'] = method('ours, b alone', 'prototypes', both, mutual=True)
  whole = method('ours, a and b', 'prototypes', both, cross=True, mutual=True)
  found['multimodal'] = whole
  found['multimodal_permuted'] = dataclasses.replace(
    whole, label='ours, texts permuted', permuted=True
  )
  found['multimodal_estimated'] = dataclasses.replace(
    whole, label='ours, K estimated', estimated=True
  )
  return found


METHODS: Mapping[str, DiscoveryMethod] = _methods()


@dataclasses.dataclass(frozen=True)
class DiscoveryLoss:
  """The loss: defaults are SimGCD's; what is MM-GCD's own has no known value.

  `(1 - w) [cluster + contrast] + w [classification + supervised contrast]` for
  each modality, w = `supervised_weight`, `cluster` being self-distillation and
  `entropy_weight` times the missing entropy. GCD's is the same without
  prototypes.
  """

  supervised_weight: float = 0.35
  entropy_weight: float = 1.0
  contrast_temperature: float = 1.0
  supervised_temperature: float = 0.07
  student_temperature: float = 0.1
  teacher_temperatures: tuple[float, float] = (0.07, 0.04)
  warmup_epochs: int = 30
  prototypes: bool = True
  cross_weight: float = 0.0  # a
  cross_temperature: float = 0.07
  cross_positives: str = 'items'  # or 'labels', of which there are more
  mutual_weight: float = 0.0  # b
  mutual_teacher: str = 'both'  # 'image', 'text' or 'fused'

  def __call__(
    self,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    labels: Array,
    items: Array,
    epoch: Array,
  ) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, and its terms by name.

    Args:
      first: what the network makes of the first views, by modality.
      second: the same of the second views.
      labels: int32[B], -1 for none.
      items: int32[B], which pairs belong together: those of one text. No true
        class may be in it.
      epoch: int32[], from 0; it decides the teacher's temperature.
    """
    weight, is_labelled = self.supervised_weight, labels >= 0
    teacher = losses.teacher_temperature(
      epoch, self.warmup_epochs, *self.teacher_temperatures
    )
    terms: dict[str, Array] = {}
    for name in first:
      one, two = first[name], second[name]
      free = losses.info_nce(
        one.projection, two.projection, self.contrast_temperature
      )
      bound = losses.supervised_contrast(
        one.projection,
        two.projection,
        labels,
        is_labelled,
        self.supervised_temperature,
      )
      if self.prototypes:
        logits = jnp.concatenate([one.logits, two.logits])
        free += losses.self_distillation(
          one.logits, two.logits, self.student_temperature, teacher
        )
        free += self.entropy_weight * losses.missing_entropy(
          logits, self.student_temperature
        )
        bound += losses.classification(
          logits,
          jnp.tile(labels, 2),
          jnp.tile(is_labelled, 2),
          self.student_temperature,
        )
      terms[name] = (1 - weight) * free + weight * bound
    if len(first) == 2:
      terms |= self._between(first, second, labels, items, teacher)
    return sum(terms.values(), jnp.float32(0)), terms

  def _between(
    self, first: Any, second: Any, labels: Array, items: Array, teacher: Array
  ) -> dict[str, Array]:
    """The weighted terms that join two modalities."""
    names = [*first]
    whole = {
      name: jax.tree.map(
        lambda *views: jnp.concatenate(views), first[name], second[name]
      )
      for name in names
    }
    one, two = (whole[name] for name in names)
    terms = {}
    if self.cross_weight:
      items, labels = jnp.tile(items, 2), jnp.tile(labels, 2)
      positives = items[:, None] == items[None]
      if self.cross_positives == 'labels':
        same = labels[:, None] == labels[None]
        positives |= same & (labels >= 0)[:, None]
      terms['cross'] = self.cross_weight * losses.cross_contrast(
        one.projection, two.projection, positives, self.cross_temperature
      )
    if self.mutual_weight:
      places = dict(zip(names, ('first', 'second'), strict=True))
      terms['mutual'] = self.mutual_weight * losses.mutual_distillation(
        one.logits,
        two.logits,
        places.get(self.mutual_teacher, self.mutual_teacher),
        self.student_temperature,
        teacher,
      )
    return terms


@struct.dataclass
class DiscoveryState:
  """What a training carries from step to step."""

  params: Any
  opt_state: optax.OptState


def make_optimizer(
  rate: float, num_epochs: int, epoch_steps: int, weight_decay: float
) -> optax.GradientTransformation:
  """SimGCD's: SGD with momentum 0.9, a cosine over epochs, no decay of biases.

  As torch's SGD the decay is added to the gradient before the momentum.
  """

  def schedule(step: Array) -> Array:
    return losses.learning_rate(step // epoch_steps, num_epochs, rate)

  return optax.chain(
    optax.add_decayed_weights(
      weight_decay, lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    ),
    optax.sgd(schedule, momentum=0.9),
  )


def make_train_step(
  apply: Apply,
  optimizer: optax.GradientTransformation,
  objective: DiscoveryLoss,
  *,
  epoch_steps: int,
) -> Callable[
  [Any, DiscoveryState, Any, Array], tuple[DiscoveryState, dict[str, Array]]
]:
  """Returns `(frozen, state, batch, step) -> (state, metrics)`, not yet jitted.

  `frozen` holds `features`, a modality's float32[n, V, F] each, `labels`
  int32[n], -1 for none, `items` int32[n] and a typed `key`, from which
  everything random follows; the batch holds `index` int32[B]. Two different
  views of each pair are drawn, in all modalities alike where V is the same.
  """

  def train_step(
    frozen: Any, state: DiscoveryState, batch: Any, step: Array
  ) -> tuple[DiscoveryState, dict[str, Array]]:
    index = batch['index']
    key = jax.random.fold_in(frozen['key'], step)
    views = {}
    for place, (name, cached) in enumerate(frozen['features'].items()):
      one, two = _two_views(
        jax.random.fold_in(key, place), len(index), cached.shape[1]
      )
      views[name] = jnp.concatenate([cached[index, one], cached[index, two]])
    labels, items = frozen['labels'][index], frozen['items'][index]

    def loss_fn(params: Any) -> tuple[Array, dict[str, Array]]:
      found = apply(params, views, jax.random.fold_in(key, len(views)))
      halves = [
        jax.tree.map(lambda x, half=half: jnp.split(x, 2)[half], dict(found))
        for half in (0, 1)
      ]
      first, second = halves
      return objective(first, second, labels, items, step // epoch_steps)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, terms), grads = gradient(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return DiscoveryState(params, opt_state), {'loss': loss, **terms}

  return train_step


def _two_views(key: Array, count: int, num_views: int) -> tuple[Array, Array]:
  """Two numbers of views for each of `count` pairs, different if they can."""
  keys = jax.random.split(key)
  first = jax.random.randint(keys[0], (count,), 0, num_views)
  ahead = jax.random.randint(keys[1], (count,), 1, max(2, num_views))
  return first, (first + ahead) % num_views


def sampling_weights(is_labelled: np.ndarray) -> np.ndarray:
  """GCD's sampler, float64[n]: labelled and others take equal shares.

  Weight 1 for labelled pairs, and their number over that of the others for
  others.
  """
  count = int(is_labelled.sum())
  return np.where(is_labelled, 1.0, count / max(1, len(is_labelled) - count))


def fuse(
  logits: Mapping[str, np.ndarray], fusion: str, temperature: float
) -> np.ndarray:
  """One prediction float[n, K] of the modalities' logits float[n, K].

  `fusion` averages 'probabilities' or 'logits' (which SimGCD's temperature
  divides first).
  """
  scaled = [np.asarray(x, np.float64) / temperature for x in logits.values()]
  if fusion == 'logits':
    return softmax(np.mean(scaled, axis=0))
  return np.mean([softmax(x) for x in scaled], axis=0)


def softmax(x: np.ndarray) -> np.ndarray:
  """Probabilities float[n, K] of logits."""
  powers = np.exp(x - x.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)


def aligned(ours: np.ndarray, theirs: np.ndarray, num_known: int) -> np.ndarray:
  """Reorders another model's clusters so that they fit ours best.

  Two models agree on the known classes, which labels number; their new ones
  have no order. Those are matched so that the probabilities float[n, K] of both
  overlap most.

  Returns:
    `theirs` with its columns in the order of `ours`.
  """
  overlap = ours[:, num_known:].T @ theirs[:, num_known:]
  order = linear_sum_assignment(overlap, maximize=True)[1] + num_known
  return theirs[:, [*range(num_known), *order]]
