"""GCD's and SimGCD's losses against loops that follow the formulas."""

import inspect
import math
import types

from absl.testing import absltest, parameterized
import jax
import jax.numpy as jnp
import numpy as np

from adanat_jax.data import order
from adanat_jax.discovery import losses, methods
from adanat_jax.experiment import field_rules, fields
from adanat_jax.models.prototypes import Branch, DiscoveryNetwork

_RANDOM = np.random.default_rng(0)
_FIRST, _SECOND = _RANDOM.normal(size=(2, 5, 3)).astype(np.float32)
_LABELS = np.int32([0, 1, 0, -1, -1])

# One program each, instead of one for every operation.
_jit = types.SimpleNamespace(
  **{
    name: jax.jit(getattr(losses, name))
    for name in vars(losses)
    if inspect.isfunction(getattr(losses, name))
  }
)
_mutual = jax.jit(losses.mutual_distillation, static_argnums=2)


def _cosine(a, b):
  return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def _soft(x, temperature):
  powers = np.exp(np.asarray(x, np.float64) / temperature)
  return powers / powers.sum(-1, keepdims=True)


def _cross_entropy(student, teacher, student_temperature, temperature):
  target = _soft(teacher, temperature)
  return -(target * np.log(_soft(student, student_temperature))).sum(-1).mean()


def _info_nce(first, second, temperature):
  """By a loop over all views."""
  views, total = [*first, *second], 0.0
  for i, view in enumerate(views):
    powers = [math.exp(_cosine(view, x) / temperature) for x in views]
    other = powers[(i + len(first)) % len(views)]
    total -= math.log(other / (sum(powers) - powers[i]))
  return total / len(views)


def _supervised(first, second, labels, temperature):
  """By a loop over the views of labelled items alone."""
  rows = [(x, y) for x, y in zip(first, labels, strict=True) if y >= 0]
  rows += [(x, y) for x, y in zip(second, labels, strict=True) if y >= 0]
  total = 0.0
  for i, (view, label) in enumerate(rows):
    others = [row for j, row in enumerate(rows) if j != i]
    whole = sum(math.exp(_cosine(view, x) / temperature) for x, _ in others)
    own = [_cosine(view, x) / temperature for x, y in others if y == label]
    total -= np.mean([x - math.log(whole) for x in own])
  return total / len(rows)


class LossesTest(parameterized.TestCase):
  @parameterized.parameters(1.0, 0.07)
  def test_contrast(self, temperature):
    found = _jit.info_nce(_FIRST, _SECOND, temperature)
    self.assertAlmostEqual(
      float(found), _info_nce(_FIRST, _SECOND, temperature), places=4
    )
    found = _jit.supervised_contrast(
      _FIRST, _SECOND, _LABELS, _LABELS >= 0, temperature
    )
    expected = _supervised(_FIRST, _SECOND, _LABELS, temperature)
    self.assertAlmostEqual(float(found), expected, places=3)

  def test_contrast_by_hand(self):
    # Two items at right angles: e / (e + 2) for each of four views.
    eye = jnp.eye(2)
    self.assertAlmostEqual(
      float(_jit.info_nce(eye, eye, 1.0)), math.log(1 + 2 / math.e), places=5
    )

  def test_without_labels_there_is_neither_loss_nor_gradient(self):
    nobody = np.zeros(5, bool)
    value, grad = jax.value_and_grad(
      lambda x: (
        _jit.supervised_contrast(x, _SECOND, _LABELS, nobody, 0.07)
        + _jit.classification(x, _LABELS, nobody, 0.1)
      )
    )(jnp.asarray(_FIRST))
    self.assertEqual(float(value), 0.0)
    np.testing.assert_array_equal(grad, np.zeros_like(grad))

  def test_distillation(self):
    expected = _cross_entropy(_FIRST, _SECOND, 0.1, 0.05)
    expected += _cross_entropy(_SECOND, _FIRST, 0.1, 0.05)
    found = _jit.self_distillation(_FIRST, _SECOND, 0.1, 0.05)
    self.assertAlmostEqual(float(found), expected / 2, places=4)
    fused = (_FIRST + _SECOND) / 2
    ways = {
      'both': expected / 2,
      'first': _cross_entropy(_SECOND, _FIRST, 0.1, 0.05),
      'second': _cross_entropy(_FIRST, _SECOND, 0.1, 0.05),
      'fused': (
        _cross_entropy(_FIRST, fused, 0.1, 0.05)
        + _cross_entropy(_SECOND, fused, 0.1, 0.05)
      )
      / 2,
    }
    for teacher, loss in ways.items():
      found = _mutual(_FIRST, _SECOND, teacher, 0.1, 0.05)
      self.assertAlmostEqual(float(found), loss, places=4, msg=teacher)
    # Nothing is learned by a teacher.
    grad = jax.grad(lambda x: _jit.distillation(_FIRST, x, 0.1, 0.05))
    np.testing.assert_array_equal(grad(_SECOND), np.zeros_like(_SECOND))

  def test_entropy_and_classification(self):
    even = jnp.zeros((4, 3))
    self.assertAlmostEqual(float(_jit.missing_entropy(even, 0.1)), 0.0)
    # All agree on one of three.
    one = jnp.tile(jnp.float32([9, 0, 0]), (4, 1))
    found = _jit.missing_entropy(one, 0.1)
    self.assertAlmostEqual(float(found), math.log(3), places=5)
    mean = _soft(_FIRST, 0.1).mean(0)
    self.assertAlmostEqual(
      float(_jit.missing_entropy(_FIRST, 0.1)),
      math.log(3) + float((mean * np.log(mean)).sum()),
      places=5,
    )
    found = _jit.classification(_FIRST, _LABELS, _LABELS >= 0, 0.1)
    chosen = _soft(_FIRST, 0.1)[[0, 1, 2], [0, 1, 0]]
    self.assertAlmostEqual(float(found), -np.log(chosen).mean(), places=4)

  def test_cross_contrast(self):
    items = np.int32([0, 0, 1, 2, 3])
    positives = items[:, None] == items[None]
    cosines = np.array([[_cosine(a, b) for b in _SECOND] for a in _FIRST]) / 0.1
    expected = 0.0
    for table in (cosines, cosines.T):
      log_prob = np.log(_soft(table, 1.0))
      rows = [log_prob[i][positives[i]].mean() for i in range(5)]
      expected -= np.mean(rows) / 2
    found = _jit.cross_contrast(_FIRST, _SECOND, positives, 0.1)
    self.assertAlmostEqual(float(found), expected, places=4)

  def test_schedules(self):
    # SimGCD: np.linspace(0.07, 0.04, 30), then 0.04.
    expected = [*np.linspace(0.07, 0.04, 30), 0.04, 0.04]
    found = losses.teacher_temperature(np.arange(32), 30, 0.07, 0.04)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # linspace of no numbers, then of one.
    for warmup, first in ((0, 0.04), (1, 0.07)):
      found = [
        losses.teacher_temperature(i, warmup, 0.07, 0.04) for i in (0, 1)
      ]
      np.testing.assert_allclose(found, [first, 0.04], rtol=1e-5)
    # torch's CosineAnnealingLR(T_max=200, eta_min=1e-4) from 0.1.
    found = losses.learning_rate(np.float32([0, 50, 100, 200]), 200, 0.1)
    half = 1e-4 + (0.1 - 1e-4) / 2
    quarter = 1e-4 + (0.1 - 1e-4) * (1 + math.sqrt(0.5)) / 2
    np.testing.assert_allclose(found, [0.1, quarter, half, 1e-4], rtol=1e-4)


class ObjectiveTest(absltest.TestCase):
  def test_terms_are_weighted(self):
    """SimGCD's loss is the sum of its parts; GCD's has no prototypes."""
    views = [
      {'image': Branch(x, x, x), 'text': Branch(y, y, y)}
      for x, y in ((_FIRST, _SECOND), (_SECOND, _FIRST))
    ]
    items = np.arange(5, dtype=np.int32)
    single = [{'image': view['image']} for view in views]
    contrast = 0.65 * _info_nce(_FIRST, _SECOND, 1.0)
    contrast += 0.35 * _supervised(_FIRST, _SECOND, _LABELS, 0.07)
    gcd = methods.DiscoveryLoss(prototypes=False)
    total, _ = jax.jit(gcd)(*single, _LABELS, items, 0)
    self.assertAlmostEqual(float(total), contrast, places=3)
    logits = np.concatenate([_FIRST, _SECOND])
    mean = _soft(logits, 0.1).mean(0)
    cluster = _jit.self_distillation(_FIRST, _SECOND, 0.1, 0.04)
    cluster += 2 * (math.log(3) + (mean * np.log(mean)).sum())
    known = np.log(_soft(logits, 0.1)[[0, 1, 2, 5, 6, 7], [0, 1, 0] * 2])
    simgcd = methods.DiscoveryLoss(entropy_weight=2.0)
    total, _ = jax.jit(simgcd)(*single, _LABELS, items, 99)
    expected = contrast + 0.65 * float(cluster) - 0.35 * known.mean()
    self.assertAlmostEqual(float(total), expected, places=3)
    both = methods.DiscoveryLoss(
      entropy_weight=2.0, cross_weight=0.5, mutual_weight=0.0
    )
    total, terms = jax.jit(both)(*views, _LABELS, items, 99)
    self.assertEqual({*terms}, {'image', 'text', 'cross'})
    # Here the texts' branch sees the same two views.
    self.assertAlmostEqual(
      float(total), 2 * expected + float(terms['cross']), places=3
    )

  def test_names_are_those_of_the_config(self):
    self.assertEqual(
      field_rules.RULES['discover.methods'].allowed,
      fields.some_of(fields.choice(*methods.METHODS)).allowed,
    )


class SamplerTest(absltest.TestCase):
  def test_labelled_pairs_are_half_of_what_is_drawn(self):
    is_labelled = np.arange(100) < 20
    weights = methods.sampling_weights(is_labelled)
    np.testing.assert_allclose(weights, np.where(is_labelled, 1.0, 0.25))
    drawn = order.weighted_batch(3, 20_000, weights, seed=1)
    self.assertEqual(drawn.dtype, np.int32)
    share = np.bincount(drawn, minlength=100) / len(drawn)
    self.assertAlmostEqual(share[:20].sum(), 0.5, delta=0.02)
    self.assertAlmostEqual(share[:20].max(), 0.025, delta=0.006)
    self.assertGreater(share.min(), 0.0)
    again = order.weighted_batch(3, 20_000, weights, seed=1)
    np.testing.assert_array_equal(drawn, again)
    other = order.weighted_batch(4, 20_000, weights, seed=1)
    self.assertFalse((drawn == other).all())

  def test_views_differ(self):
    first, second = methods._two_views(jax.random.key(0), 500, 3)
    self.assertFalse((first == second).any())
    self.assertEqual({*first.tolist(), *second.tolist()}, {0, 1, 2})
    # One view is all there is.
    np.testing.assert_array_equal(
      methods._two_views(jax.random.key(0), 4, 1), np.zeros((2, 4))
    )


class FusionTest(absltest.TestCase):
  def test_fused_predictions(self):
    logits = {'image': np.array([[0.0, 0.1]]), 'text': np.array([[0.2, 0.0]])}
    one, two = _soft([[0.0, 0.1]], 0.1), _soft([[0.2, 0.0]], 0.1)
    np.testing.assert_allclose(
      methods.fuse(logits, 'probabilities', 0.1), (one + two) / 2
    )
    np.testing.assert_allclose(
      methods.fuse(logits, 'logits', 0.1), _soft([[0.1, 0.05]], 0.1)
    )

  def test_new_clusters_of_two_models_are_matched(self):
    ours = np.eye(4)[[0, 1, 2, 2, 3]]
    # The second and third new class have swapped their numbers.
    theirs = np.eye(4)[[0, 1, 3, 3, 2]]
    np.testing.assert_array_equal(methods.aligned(ours, theirs, 1), ours)
    # Known classes keep theirs.
    np.testing.assert_array_equal(methods.aligned(ours, theirs, 4), theirs)


class NetworkTest(absltest.TestCase):
  def test_logits_are_cosines_and_distances_are_kept_at_first(self):
    module = DiscoveryNetwork(('image', 'text'), 8, 1, 6, 4, 3)
    features = {'image': _FIRST, 'text': np.tile(_SECOND, 2)}
    params = jax.jit(module.init)(jax.random.key(0), features)['params']
    found = jax.jit(module.apply)({'params': params}, features)
    image = found['image']
    self.assertEqual(image.projection.shape, (5, 4))
    kernel = np.asarray(params['head']['prototypes'])
    for i, row in enumerate(image.feature):
      for j, prototype in enumerate(kernel):
        self.assertAlmostEqual(
          float(image.logits[i, j]), _cosine(row, prototype), places=5
        )
    self.assertAlmostEqual(
      float(image.feature[0] @ image.feature[1]),
      _cosine(_FIRST[0], _FIRST[1]),
      places=5,
    )
    apart = module.clone(shared_head=False)
    shapes = jax.eval_shape(apart.init, jax.random.key(0), features)
    self.assertContainsSubset(
      ('image_head', 'text_head'), shapes['params'].keys()
    )


if __name__ == '__main__':
  absltest.main()
