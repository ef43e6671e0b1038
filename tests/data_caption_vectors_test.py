"""Vectors of captions from a file: both layouts, and what is refused."""

import io

from absl.testing import absltest
import numpy as np

from adanat_jax.data import caption_vectors
from adanat_jax.errors import UserError


def _table(captions, vectors):
  return caption_vectors.from_arrays(
    {'captions': np.asarray(captions), 'vectors': np.asarray(vectors)}
  )


class CaptionVectorsTest(absltest.TestCase):
  def test_a_vector_a_caption(self):
    found = _table(['a cat', ' a  dog\n'], np.float16([[3, 4], [0, -5]]))
    # The mean square of each is 1: 5 / sqrt(12.5) = sqrt(2).
    expected = [[0, 0], [0.6, 0.8], [0, -1]] * np.sqrt(np.float32([[2]]))
    np.testing.assert_allclose(found.table, expected, rtol=1e-6)
    self.assertEqual((found.width, found.length), (2, 1))
    ids = found.ids(['a dog', 'a cat', ''], 1)
    np.testing.assert_array_equal(ids, [[2], [1], [0]])
    np.testing.assert_array_equal(ids.dtype, np.int32)

  def test_sequences_by_their_names(self):
    arrays = {
      'cats/a.png': np.float32([[1, 1], [2, 2], [0, 0]]),  # One is padding.
      'Cafe\u0301': np.float64([-7, 7]),
    }
    found = caption_vectors.from_arrays(arrays)
    self.assertEqual((found.width, found.length), (2, 2))
    np.testing.assert_allclose(
      found.table, [[0, 0], [1, 1], [1, 1], [-1, 1]], rtol=1e-6
    )
    # By the caption, or else by the picture; short ones are filled up.
    ids = found.ids(['Caf\xe9', 'no text'], 3, names=['', 'cats/a.png'])
    np.testing.assert_array_equal(ids, [[3, 0, 0], [1, 2, 0]])
    missing = found.missing([('no text', ''), ('Caf\xe9', 'no.png')])
    self.assertEqual(missing, ['no text'])
    with self.assertRaisesRegex(UserError, "no vector for 'one', 'two'"):
      found.ids(['one', 'two', 'one', 'Caf\xe9'], 2)

  def test_equal_vectors_may_be_there_twice(self):
    found = _table(['a', 'b', 'a'], np.float32([[1, 0], [0, 1], [2, 0]]))
    self.assertEqual(found.places, {'a': (1, 1), 'b': (2, 1)})

  def test_the_digest_is_of_the_contents(self):
    vectors = np.float32([[1, 2], [3, 4]])
    digest = _table(['a', 'b'], vectors).digest()
    by_name = {'a': vectors[0], 'b': vectors[1]}
    self.assertEqual(caption_vectors.from_arrays(by_name).digest(), digest)
    self.assertNotEqual(_table(['a', 'c'], vectors).digest(), digest)
    self.assertNotEqual(_table(['a', 'b'], vectors[::-1]).digest(), digest)

  def test_what_is_refused(self):
    ones = np.ones((2, 3), np.float32)
    bad = ones.copy()
    bad[1, 2] = np.nan
    cases = [
      ({}, 'no vectors'),
      ({'captions': ['a'], 'vectors': ones}, r'float32\[2, 3\] of 1 captions'),
      ({'captions': [1, 2], 'vectors': ones}, r'`captions` are int64\[2\]'),
      ({'captions': ['a', 'b'], 'vectors': bad}, "'b' is not finite"),
      ({'captions': ['a', 'b'], 'vectors': 0 * ones}, "'a' is all zeros"),
      ({'captions': ['a', ' '], 'vectors': ones}, 'empty caption'),
      ({'a': ones[0], 'b': ones[0, :2]}, "'a' has 3 numbers and that of 'b' 2"),
      ({'a': np.arange(3)}, "'a' is int64; give floats"),
      ({'a': ones[None]}, r"'a' has shape \[1, 2, 3\]"),
      ({'a': np.ones((1, 2**14 + 1))}, 'at most 16384 numbers'),
      (
        {'captions': ['a', 'a'], 'vectors': np.float32([[1, 2], [2, 1]])},
        "'a' is there twice, with different vectors",
      ),
    ]
    for given, message in cases:
      arrays = {name: np.asarray(array) for name, array in given.items()}
      with self.assertRaisesRegex(UserError, message):
        caption_vectors.from_arrays(arrays)

  def test_what_numpy_writes(self):
    stream = io.BytesIO()
    captions = ['a cat', 'zwei Hunde \U0001f415']
    np.savez(stream, captions=captions, vectors=np.eye(2, dtype=np.float32))
    stream.seek(0)
    found = caption_vectors.from_arrays(dict(np.load(stream)))
    self.assertEqual(list(found.places), captions)


if __name__ == '__main__':
  absltest.main()
