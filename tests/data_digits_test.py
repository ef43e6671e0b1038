"""Tests of the digits and of the order in which they are read."""

from absl.testing import absltest, parameterized
import numpy as np
from sklearn import datasets

from adanat_jax.data import digits, order
from adanat_jax.errors import UserError


class DigitsTest(parameterized.TestCase):
  def test_shapes_ranges_and_sizes(self):
    data = digits.load()
    self.assertEqual(data.train_images.shape, (1433, 16, 16, 1))
    self.assertEqual(data.test_images.shape, (364, 16, 16, 1))
    self.assertEqual(data.train_labels.shape, (1433,))
    self.assertEqual(data.test_labels.shape, (364,))
    for images in (data.train_images, data.test_images):
      self.assertEqual(images.dtype, np.float32)
      self.assertEqual(images.min(), 0.0)
      self.assertGreater(images.max(), 0.95)
      self.assertLessEqual(images.max(), 1.0)
    self.assertEqual(data.train_labels.dtype, np.int32)

  def test_each_digit_has_its_share_in_both_splits(self):
    data = digits.load()
    train = np.bincount(data.train_labels, minlength=10)
    test = np.bincount(data.test_labels, minlength=10)
    # 80 % of each digit, rounded down: never more than one image off.
    np.testing.assert_array_equal(train, (train + test) * 4 // 5)

  def test_splits_hold_every_image_once(self):
    data = digits.load(image_size=8)
    both = np.concatenate([data.train_images, data.test_images])
    source = datasets.load_digits().images / 16.0

    def flat(images):
      rows = images.reshape(1797, -1).astype(np.float32)
      return sorted(row.tobytes() for row in rows)

    self.assertEqual(flat(both), flat(source))

  def test_split_is_the_same_at_every_size(self):
    small, large = digits.load(image_size=8), digits.load(image_size=16)
    np.testing.assert_array_equal(small.train_labels, large.train_labels)
    np.testing.assert_array_equal(small.test_labels, large.test_labels)

  def test_enlarging_by_two_mixes_neighbours_one_to_three(self):
    # Centres of a doubled row lie a quarter pixel from the nearest source
    # centre: 3/4 of it and 1/4 of the next one, the edge repeated.
    row = np.array([0.0, 1.0, 0.5])
    images = np.tile(row, (1, 3, 1))
    resized = digits._resize(images, 6)
    expected = [0.0, 0.25, 0.75, 0.875, 0.625, 0.5]
    np.testing.assert_allclose(resized[0, 2], expected, atol=1e-7)
    np.testing.assert_allclose(
      digits._resize(images.transpose(0, 2, 1), 6)[0, :, 4],
      expected,
      atol=1e-7,
    )

  def test_conditions(self):
    labels = np.arange(10, dtype=np.int32)
    np.testing.assert_array_equal(digits.condition_of(labels, 'digit'), labels)
    np.testing.assert_array_equal(
      digits.condition_of(labels, 'parity'), [0, 1] * 5
    )
    self.assertEqual(digits.num_conditions('digit'), 10)
    self.assertEqual(digits.num_conditions('parity'), 2)

  def test_mistakes_are_named(self):
    with self.assertRaisesRegex(UserError, "'colour'.*digit, parity"):
      digits.condition_of(np.zeros(1, np.int32), 'colour')
    with self.assertRaisesRegex(UserError, 'image_size.*12.*multiple of 8'):
      digits.load(image_size=12)


class OrderTest(parameterized.TestCase):
  @parameterized.product(batch_size=[1, 4, 7, 10, 23], num_examples=[10, 7])
  def test_each_example_once_an_epoch(self, batch_size, num_examples):
    epochs = 3
    steps = -(-epochs * num_examples // batch_size)
    stream = np.concatenate(
      [order.epoch_batch(s, batch_size, num_examples, 5) for s in range(steps)]
    )
    for epoch in range(epochs):
      seen = stream[epoch * num_examples : (epoch + 1) * num_examples]
      np.testing.assert_array_equal(np.sort(seen), np.arange(num_examples))

  def test_a_step_alone_decides_its_batch(self):
    forward = [order.epoch_batch(s, 8, 50, 1) for s in range(20)]
    order._epoch_order.cache_clear()
    for step in (13, 2, 19, 0):
      batch = order.epoch_batch(step, 8, 50, 1)
      self.assertEqual(batch.dtype, np.int32)
      np.testing.assert_array_equal(batch, forward[step])

  def test_epochs_and_seeds_differ(self):
    first = order.epoch_batch(0, 50, 50, 1)
    self.assertFalse(np.array_equal(first, order.epoch_batch(1, 50, 50, 1)))
    self.assertFalse(np.array_equal(first, order.epoch_batch(0, 50, 50, 2)))

  def test_the_stream_is_the_same_for_any_batch_size(self):
    small = [order.epoch_batch(s, 6, 17, 9) for s in range(8)]
    large = [order.epoch_batch(s, 16, 17, 9) for s in range(3)]
    np.testing.assert_array_equal(np.concatenate(small), np.concatenate(large))

  def test_refuses_senseless_sizes(self):
    with self.assertRaisesRegex(ValueError, 'at least 1, got 0 and 5'):
      order.epoch_batch(0, 0, 5, 0)
    with self.assertRaisesRegex(ValueError, 'not be negative'):
      order.epoch_batch(-1, 2, 5, 0)


if __name__ == '__main__':
  absltest.main()
