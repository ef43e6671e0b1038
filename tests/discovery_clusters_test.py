"""Clusters: the metrics by hand, k-means with labels, splits, K."""

import math

from absl.testing import absltest, parameterized
import numpy as np

from adanat_jax.discovery import kmeans, splits
from adanat_jax.errors import UserError
from adanat_jax.metrics import clustering

_CENTRES = np.array([[0, 0], [5, 0], [0, 5], [5, 5]])
_CLASSES = np.repeat(np.arange(4), 20)


def _blobs(spread=0.4):
  noise = np.random.default_rng(0).normal(size=(80, 2))
  return _CENTRES[_CLASSES] + spread * noise


class MetricsTest(absltest.TestCase):
  def test_one_assignment_of_all_and_one_of_each_part(self):
    classes = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    clusters = np.array([1, 1, 0, 0, 0, 0, 0, 2])
    is_old = classes < 2
    # 1 is class 0. 0 may be class 1 (two right, then 2 is class 2: one) or
    # class 2 (two right, but then 2 is class 1: none): 2 + 2 + 1 of 8.
    given = (classes, clusters, is_old)
    found = clustering.accuracy(*given)
    self.assertEqual([found.all, found.old, found.new], [5 / 8, 4 / 5, 1 / 3])
    # New classes for themselves: 0 is class 2. Then 4 + 2 of 8 are right.
    found = clustering.accuracy_apart(*given)
    self.assertAlmostEqual(found.all, 6 / 8)
    self.assertEqual([found.old, found.new], [4 / 5, 2 / 3])
    # Of one part alone the whole is that part.
    for part, names in ((is_old, ('all', 'old')), (~is_old, ('all', 'new'))):
      one = clustering.accuracy_apart(*(x[part] for x in given))
      self.assertEqual(*(getattr(one, name) for name in names))
    np.testing.assert_array_equal(
      clustering.match(classes, clusters), [1, 0, 2]
    )

  def test_names_of_clusters_and_their_number_do_not_matter(self):
    classes = np.array([0, 1, 2, 0])
    found = clustering.accuracy(
      classes, np.array([7, 3, 3, 7]), np.zeros(4, bool)
    )
    self.assertEqual((found.all, found.new), (0.75, 0.75))
    self.assertTrue(math.isnan(found.old))
    same = clustering.agreement(classes, np.array([2, 0, 1, 2]))
    self.assertEqual(same, {'nmi': 1.0, 'ari': 1.0})
    # Pairs of pairs: 1 of 2 agree where 2 * 1 / 6 are expected by chance, so
    # (1 - 1/3) / (3/2 - 1/3).
    half = clustering.agreement(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]))
    self.assertAlmostEqual(half['ari'], 4 / 7)


class KMeansTest(absltest.TestCase):
  def test_blobs_are_found(self):
    features = _blobs()
    found = kmeans.kmeans(features, 4, seed=0, num_inits=5)
    right = clustering.accuracy(_CLASSES, found.assignment, _CLASSES < 2)
    self.assertEqual(right.all, 1.0)
    means = [features[_CLASSES == c].mean(0) for c in range(4)]
    inertia = sum(
      ((features[_CLASSES == c] - mean) ** 2).sum()
      for c, mean in enumerate(means)
    )
    self.assertAlmostEqual(found.inertia, inertia)
    again = kmeans.kmeans(features, 4, seed=0, num_inits=5)
    np.testing.assert_array_equal(again.assignment, found.assignment)

  def test_labelled_items_keep_their_class(self):
    features, labels = _blobs(), np.full(80, -1)
    labels[:10], labels[20:30] = 1, 0
    # One item lies in a foreign blob, and stays with its class nevertheless.
    features[0] = _CENTRES[3]
    found = kmeans.kmeans(features, 4, labels, seed=1)
    known = labels >= 0
    np.testing.assert_array_equal(found.assignment[known], labels[known])
    self.assertEqual({*found.assignment[10:20]}, {1})
    self.assertEqual({*found.assignment[30:40]}, {0})
    self.assertEqual({*found.assignment[40:]}, {2, 3})
    # It pulls the centre of its class.
    np.testing.assert_allclose(found.centres[1], features[:20].mean(0))

  def test_a_step_by_hand(self):
    # Class 0 is at 0; 1 is nearer to it than to 4, and moves its centre to 0.5.
    features = np.array([[0.0], [1.0], [4.0], [6.0]])
    found = kmeans.kmeans(features, 2, np.array([0, -1, -1, -1]), seed=0)
    np.testing.assert_allclose(found.centres, [[0.5], [5.0]])
    self.assertAlmostEqual(found.inertia, 2 * 0.25 + 2)

  def test_it_stops_by_what_all_centres_move_together(self):
    # Both centres move by .006, together .012, whose square is 1.44e-4, above
    # 1e-4; the sum of squares, 7.2e-5, is below. In the second step .503 is
    # nearer to .006 than to 1.006, and the centres become .2545 and 1.509.
    found = kmeans._iterate(
      np.array([[0.006], [0.503], [1.509]]),
      np.array([[0.0], [1.0]]),
      np.full(3, -1),
    )
    np.testing.assert_allclose(found.centres, [[0.2545], [1.509]])

  def test_more_clusters_than_items(self):
    found = kmeans.kmeans(np.zeros((3, 2)), 5, seed=0)
    self.assertEqual(found.inertia, 0.0)

  def test_the_number_of_classes(self):
    labels = np.where(_CLASSES < 2, _CLASSES, -1)
    labels[::2] = -1
    count = kmeans.estimate_num_classes(
      _blobs(), labels, 12, seed=0, num_inits=5
    )
    self.assertEqual(count, 4)


class SplitsTest(parameterized.TestCase):
  def test_items_are_divided_and_classes_numbered_anew(self):
    # Two pairs of each item; one pair has no class.
    labels = np.append(np.repeat(np.arange(4), 12), -1)
    items = np.append(np.repeat(np.arange(24), 2), 24)
    split = splits.split(labels, items, 2, 0.5, seed=0)
    self.assertCountEqual(split.classes, range(4))
    np.testing.assert_array_equal(
      split.classes[split.targets[:-1]], labels[:-1]
    )
    for place, label in enumerate(split.classes):
      own = labels == label
      self.assertEqual({*split.targets[own]}, {place})
      # Half of six items, in both pairs.
      self.assertEqual(split.is_labelled[own].sum(), 6 if place < 2 else 0)
      pairs = split.is_labelled[own].reshape(-1, 2)
      np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])
    self.assertEqual(split.is_old.sum(), 24)
    self.assertEqual(split.is_measured.sum(), 36)
    self.assertEqual(split.labels[-1], -1)
    others = [
      splits.split(labels, items, 2, 0.5, seed).classes for seed in range(1, 6)
    ]
    self.assertGreater(len({tuple(x) for x in others}), 2)

  def test_items_swap_their_texts(self):
    items = np.array([5, 5, 2, 9, 9, 2])
    given = items[splits.permuted(items, 3)]
    self.assertCountEqual(
      {*zip(items, given, strict=True)},
      dict(zip(items, given, strict=True)).items(),
    )
    self.assertEqual({*given}, {2, 5, 9})

  @parameterized.parameters(
    ([0, 0, 2, 2], 1, 3, "class 'b' of config.data.path has no items"),
    ([0, 0, 1, 2, 2], 1, 3, "class 'b' of config.data.path has one item"),
    ([0, 0, 1, 1, 2, 2], 3, 3, 'num_known is 3; give 1 to 2'),
    ([0, 0, 1, 1, 2, 2], 2, 1, 'num_classes is 1, fewer than the 2 known'),
  )
  def test_what_cannot_be_found_is_refused(self, labels, known, k, message):
    items = np.arange(len(labels))
    with self.assertRaisesRegex(UserError, message) as caught:
      splits.check(np.array(labels), items, ('a', 'b', 'c'), known, k)
    self.assertLen(str(caught.exception).splitlines(), 1)


if __name__ == '__main__':
  absltest.main()
