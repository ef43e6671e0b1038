"""The benchmark of ENAT's time measures what it says."""

from __future__ import annotations

import math
import pathlib
import sys
from unittest import mock

from absl.testing import absltest
import numpy as np

from adanat_jax.models import enat

sys.path.append(str(pathlib.Path(__file__).parents[1] / 'benchmarks'))

import enat_time
import hlo


class TimeTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # Two samples a batch, which are masked in different numbers.
    count = 2 * (enat_time.NUM_OTHERS + 1)
    ratios = np.stack([np.linspace(0.5, 0.9, count), np.zeros(count)])
    tiny = dict(width=8, encoder_depth=1, decoder_depth=1, num_heads=2)
    with mock.patch.dict(enat.SIZES, tiny=tiny):
      cls.subject = enat_time.published('tiny', 0, ratios, 2, guided=True)

  def test_all_blocks_run_once_on_all_tokens(self):
    subject = self.subject
    decode, arguments = subject.decoder('all', ())
    traced = hlo.traced_operations(decode, arguments(0))
    self.assertEqual(traced, 2 * 2 * 2 * subject.undivided_cost)

  def test_ways_are_one_computation(self):
    result = enat_time.measure(self.subject, 2, rounds=1, deadline=math.inf)
    self.assertEqual(result['same'], 1)
    # One batch of two steps, each in a bucket.
    np.testing.assert_array_equal(np.sum(result['taken'], axis=0), [1, 1])
    self.assertEqual(result['taken'][-1], [0, 0])
    counts = [
      result['ways'][way]['operations'] for way in ('static', 'all', 'masks')
    ]
    self.assertEqual(counts, sorted(counts))
    text = enat_time.render(self.subject, result)
    # 256 r stay masked after the first step.
    row = r'\| +2 .*\| +128 \| +\d+ \| +228 \|'
    self.assertRegex(text, row)


if __name__ == '__main__':
  absltest.main()
