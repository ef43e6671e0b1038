"""Compares two networks: cost at equal quality, and quality at equal cost.

`report.comparison` describes the results. Shape legend: `T` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from adanat_jax.report import results as reading
from adanat_jax.report.results import Results

MEASURE = 'frechet'
COSTS = ('operations', 'seconds')


@dataclasses.dataclass(frozen=True)
class CostPoint:
  """A schedule on a network at one T, trainings pooled."""

  num_steps: int  # T
  distance: float  # mean over trainings and seeds
  std: float  # over them
  operations: float  # of an image
  seconds: float  # of an image, the median of rounds

  def cost(self, name: str) -> float:
    """One of `COSTS`."""
    return self.operations if name == 'operations' else self.seconds


def points(results: Results, network: str, schedule: str) -> list[CostPoint]:
  """The points of a schedule on a network, T rising."""
  found = []
  for num_steps in reading.all_num_steps(results):
    entries = reading.select(
      results, network=network, schedule=schedule, num_steps=num_steps
    )
    pooled = reading.pool(entries, MEASURE)
    if pooled is None:
      continue
    taken = [entry['paths'][entry['path']] for entry in entries]
    found.append(
      CostPoint(
        num_steps,
        pooled.mean,
        pooled.std if math.isfinite(pooled.std) else 0.0,
        float(np.mean([x['operations'] for x in taken])),
        float(np.mean([x['seconds']['median'] for x in taken])),
      )
    )
  return found


def distance_at(
  curve: Sequence[CostPoint], cost: str, value: float
) -> float | None:
  """The distance of a schedule at a cost of one of `COSTS`, along its points.

  Linear in the logarithm of the cost between two points: nobody can take two
  and a half steps, but a network can be made a little larger or smaller.

  Returns:
    None if the first point costs more; what the last one gives if that costs
    less.
  """
  ordered = sorted(curve, key=lambda point: point.cost(cost))
  costs = [point.cost(cost) for point in ordered]
  if not ordered or value < costs[0]:
    return None
  distances = [point.distance for point in ordered]
  return float(np.interp(math.log(value), np.log(costs), distances))


def cost_at(
  curve: Sequence[CostPoint], cost: str, distance: float
) -> float | None:
  """The least cost at which a schedule comes to a distance, see `distance_at`.

  Returns:
    None if no point is as near; the cost of the first point if that one is.
  """
  ordered = sorted(curve, key=lambda point: point.cost(cost))
  for before, after in zip([None, *ordered], ordered, strict=False):
    if after.distance > distance:
      continue
    if before is None:
      return after.cost(cost)
    part = (before.distance - distance) / (before.distance - after.distance)
    low, high = math.log(before.cost(cost)), math.log(after.cost(cost))
    return math.exp(low + part * (high - low))
  return None


def rows(results: Results, schedule: str = 'adanat') -> list[dict[str, Any]]:
  """Compares an ENAT with each point of a NAT with the same schedule.

  Returns:
    A row for each T and cost: `enat_distance` at the same cost, or at its most
    expensive point if that is cheaper (`enat_is_cheaper`); `enat_cost` at the
    same distance. None where that is not reached; no rows of a NAT alone.
  """
  nat, enat = (points(results, name, schedule) for name in ('nat', 'enat'))
  if not enat:
    return []
  return [
    {
      'schedule': schedule,
      'num_steps': point.num_steps,
      'cost': cost,
      'nat_distance': point.distance,
      'nat_cost': point.cost(cost),
      'enat_distance': distance_at(enat, cost, point.cost(cost)),
      'enat_is_cheaper': max(x.cost(cost) for x in enat) < point.cost(cost),
      'enat_cost': cost_at(enat, cost, point.distance),
    }
    for point in nat
    for cost in COSTS
  ]
