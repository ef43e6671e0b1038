"""The losses of GCD and SimGCD, and what ties two modalities together.

Vaze et al. 2022, "Generalized Category Discovery" (code:
sgvaze/generalized-category-discovery), and Wen et al. 2023, "Parametric
Classification for Generalized Category Discovery" (CVMI-Lab/SimGCD), are
followed exactly. The last two functions are ours, after the abstract of MM-GCD
(Su et al., arXiv 2409.11624), whose formulas were not available.

Shape letters: `B` items of a batch, each in two views, `D` width, `K`
prototypes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from adanat_jax.types import Array

# Stands for minus infinity: rows that have nothing else keep a finite gradient.
_LOW = -1e9


def normalised(x: Array) -> Array:
  """Rows float[..., D] divided by their length."""
  return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def info_nce(first: Array, second: Array, temperature: float) -> Array:
  """Unsupervised contrast of two views, float32[B, D] each: float32[].

  Among the 2B - 1 other views, each has to find that of its own item, by the
  cosine divided by the temperature.
  """
  count = 2 * len(first)
  views = normalised(jnp.concatenate([first, second]))
  logits = views @ views.T / temperature
  logits = jnp.where(jnp.eye(count, dtype=bool), _LOW, logits)
  other = (jnp.arange(count) + len(first)) % count
  return -jax.nn.log_softmax(logits)[jnp.arange(count), other].mean()


def supervised_contrast(
  first: Array,
  second: Array,
  labels: Array,
  is_labelled: Array,
  temperature: float,
) -> Array:
  """Contrast of labelled items: all views of a class are positives.

  The mean over labelled views of the mean log-probability of their positives,
  among the other labelled views (Khosla et al. 2020, "Supervised Contrastive
  Learning", L_out, with the temperature itself as base temperature).

  Args:
    first: float32[B, D].
    second: float32[B, D].
    labels: int32[B].
    is_labelled: bool[B]; 0.0 is returned where none is.
    temperature: divides the cosine.

  Returns:
    float32[].
  """
  views = normalised(jnp.concatenate([first, second]))
  labels, is_labelled = jnp.tile(labels, 2), jnp.tile(is_labelled, 2)
  others = is_labelled[None] & ~jnp.eye(len(views), dtype=bool)
  positives = others & (labels[:, None] == labels[None])
  logits = jnp.where(others, views @ views.T / temperature, _LOW)
  found = _mean_over(positives, jax.nn.log_softmax(logits))
  return -_mean_over(is_labelled, found)


def self_distillation(
  first: Array,
  second: Array,
  student_temperature: float,
  teacher_temperature: Array | float,
) -> Array:
  """Each view's logits float32[B, K] learn from those of the other: float32[].

  The teacher is the same network at a lower temperature, without a gradient.
  """
  ways = ((first, second), (second, first))
  losses = [
    distillation(student, teacher, student_temperature, teacher_temperature)
    for student, teacher in ways
  ]
  return (losses[0] + losses[1]) / 2


def distillation(
  student: Array,
  teacher: Array,
  student_temperature: float,
  teacher_temperature: Array | float,
) -> Array:
  """Cross-entropy of a student's logits float32[B, K] under a teacher's."""
  target = jax.nn.softmax(jax.lax.stop_gradient(teacher) / teacher_temperature)
  log_prob = jax.nn.log_softmax(student / student_temperature)
  return -(target * log_prob).sum(-1).mean()


def missing_entropy(logits: Array, temperature: float) -> Array:
  """How far the mean prediction is from using all prototypes alike: float32[].

  log K less the entropy of the mean over the batch, float32[n, K]: 0 at best.
  """
  mean = jax.nn.softmax(logits / temperature).mean(0)
  entropy = -(mean * jnp.log(jnp.maximum(mean, 1e-30))).sum()
  return jnp.log(logits.shape[-1]) - entropy


def classification(
  logits: Array, labels: Array, is_labelled: Array, temperature: float
) -> Array:
  """Cross-entropy of the labelled among logits float32[n, K]: float32[]."""
  log_prob = jax.nn.log_softmax(logits / temperature)
  rows = jnp.arange(len(logits))
  # What is not labelled may have any label, which is not read.
  chosen = log_prob[rows, jnp.where(is_labelled, labels, 0)]
  return -_mean_over(is_labelled, chosen)


def teacher_temperature(
  epoch: Array | int, warmup_epochs: int, first: float, last: float
) -> Array:
  """From `first` to `last` in equal steps over the warm-up, then `last`.

  As NumPy's linspace over the epochs 0 to `warmup_epochs` - 1; `last` from the
  start without a warm-up.
  """
  if not warmup_epochs:
    return jnp.float32(last)
  share = epoch / max(1, warmup_epochs - 1)
  return first + (last - first) * jnp.clip(share, 0.0, 1.0)


def learning_rate(
  epoch: Array | int, num_epochs: int, rate: float, last_share: float = 1e-3
) -> Array:
  """The rate of an epoch: half a cosine from `rate` to `last_share` of it."""
  wave = (1 + jnp.cos(jnp.pi * epoch / num_epochs)) / 2
  return rate * (last_share + (1 - last_share) * wave)


def cross_contrast(
  first: Array, second: Array, positives: Array, temperature: float
) -> Array:
  """Contrast between two modalities of the same items, both ways: float32[].

  As CLIP's (Radford et al. 2021), but with several positives, whose
  log-probabilities are averaged.

  Args:
    first: float32[n, D], of one modality.
    second: float32[n, D], of the other.
    positives: bool[n, n], symmetric: which rows belong together; each row has
      one at least.
    temperature: divides the cosine.
  """
  logits = normalised(first) @ normalised(second).T / temperature
  losses = [
    -_mean_over(positives, jax.nn.log_softmax(x)).mean()
    for x in (logits, logits.T)
  ]
  return (losses[0] + losses[1]) / 2


def mutual_distillation(
  first: Array,
  second: Array,
  teacher: str,
  student_temperature: float,
  teacher_temperature: Array | float,
) -> Array:
  """Two modalities' logits float32[n, K] learn from each other: float32[].

  `teacher` says who teaches: 'both' each other, 'first' or 'second' the other
  one alone, or 'fused', the mean of both, which both learn from.
  """
  fused = (first + second) / 2
  ways = {
    'both': ((first, second), (second, first)),
    'first': ((second, first),),
    'second': ((first, second),),
    'fused': ((first, fused), (second, fused)),
  }[teacher]
  losses = [
    distillation(student, teacher, student_temperature, teacher_temperature)
    for student, teacher in ways
  ]
  return jnp.stack(losses).mean()


def _mean_over(mask: Array, values: Array) -> Array:
  """The mean over the last axis where the mask holds; 0.0 where it never."""
  total = jnp.where(mask, values, 0.0).sum(-1)
  return total / jnp.maximum(mask.sum(-1), 1)
