"""What a comparison's figures say of one network in place of another."""

from __future__ import annotations

from absl.testing import absltest, parameterized
import numpy as np

from adanat_jax.report import comparison, trade_offs


def _point(num_steps, distance, operations, seconds=1.0):
  return trade_offs.CostPoint(num_steps, distance, 0.0, operations, seconds)


class TradeOffsTest(parameterized.TestCase):
  curve = (_point(2, 10.0, 1.0), _point(4, 6.0, 4.0), _point(8, 7.0, 16.0))

  @parameterized.parameters(
    (1.0, 10.0), (2.0, 8.0), (8.0, 6.5), (16.0, 7.0), (0.9, None), (17.0, 7.0)
  )
  def test_distance_at_a_cost(self, cost, expected):
    found = trade_offs.distance_at(self.curve, 'operations', cost)
    if expected is None:
      self.assertIsNone(found)
    else:
      self.assertAlmostEqual(found, expected)

  @parameterized.parameters(
    (8.0, 2.0), (6.0, 4.0), (6.5, 4 ** (7 / 8)), (11.0, 1.0), (5.9, None)
  )
  def test_cost_at_a_distance(self, distance, expected):
    found = trade_offs.cost_at(self.curve, 'operations', distance)
    if expected is None:
      self.assertIsNone(found)
    else:
      self.assertAlmostEqual(found, expected)

  def test_rows_and_tables(self):
    entries = []
    for network, factor in (('nat', 4.0), ('enat', 1.0)):
      for point in self.curve:
        # A little more on the ENAT.
        distance = point.distance + 0.1 * (network == 'enat')
        values = [distance - 1, distance + 1]
        entries.append(
          {
            'network': network,
            'schedule': 'adanat',
            'label': f'AdaNAT on {network.upper()}',
            'num_steps': point.num_steps,
            'measures': {
              name: {'values': values}
              for name in ('frechet', 'precision', 'recall', 'accuracy')
            },
            'committed_per_step': {
              name: [1.0] * point.num_steps
              for name in ('mean', 'std', 'low', 'high')
            },
            'path': 'all',
            'paths': {
              'all': {
                'operations': factor * point.operations,
                'operations_with_decoder': factor * point.operations + 1,
                'seconds': {
                  'median': factor * point.operations,
                  'low': 1.0,
                  'high': 2.0,
                },
              }
            },
          }
        )
    results = {'methods': entries}
    rows = trade_offs.rows(results)
    self.assertLen(rows, 6)
    self.assertEqual(
      [row['num_steps'] for row in rows if row['cost'] == 'operations'],
      [2, 4, 8],
    )
    # The NAT's points lie at 4, 16 and 64.
    found = [rows[i]['enat_distance'] for i in (0, 2, 4)]
    np.testing.assert_allclose(found, [6.1, 7.1, 7.1])
    cheaper = [rows[i]['enat_is_cheaper'] for i in (0, 2, 4)]
    self.assertEqual(cheaper, [False, False, True])
    # 6.1 is the best it does.
    self.assertIsNone(rows[2]['enat_cost'])
    self.assertEmpty(trade_offs.rows({'methods': entries[:3]}))
    text = comparison.compose(
      {
        'settings': dict.fromkeys(
          (
            'sampling seeds',
            'images a seed',
            'timing rounds',
            'images a timing',
            'batch',
          ),
          3,
        ),
        'machine': {'device': 'one', 'cores': 2},
        'floors': {'held-out images': {'frechet': 1.5}},
        'methods': entries,
        'trade_offs': rows,
      }
    )
    self.assertIn('7.10, for less |', text)
    self.assertIn('not reached', text)
    self.assertIn('| NAT | AdaNAT | 2 | 10.00 ± 1.41 |', text)


if __name__ == '__main__':
  absltest.main()
