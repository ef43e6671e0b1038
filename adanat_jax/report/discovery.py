"""The table and the picture of stage `discover`.

{"labels": {method: what it is called}, "pairs", "items", "classes", "known":
counts, "estimates": [the number of classes found on a split],
"rows": [{"method", "split", "seed", "all", "old", "new", "all_v1", "old_v1",
"new_v1", "nmi", "ari"}],
"clusters": [{"name", "size", "right", "pairs"}] of one training}
"""

from __future__ import annotations

from collections.abc import Sequence
import math
import os
import textwrap
from typing import Any

import numpy as np

from adanat_jax.report import pictures as pictures_lib, tables

_SHARES = ('all', 'old', 'new')
# What the joint method has to beat by more than two standard errors.
_OURS = 'multimodal'
_RIVALS = ('late_fusion', 'simgcd_both', 'simgcd_image', 'simgcd_text')
_PERMUTED, _IMAGES = 'multimodal_permuted', 'simgcd_image'


def compose(results: dict[str, Any]) -> str:
  """The figures as one Markdown document."""
  splits = len({row['split'] for row in results['rows']})
  seeds = len({row['seed'] for row in results['rows']})
  estimates = results['estimates']
  estimated = (
    f' The number of classes, estimated by k-means of both modalities on each'
    f' split: {", ".join(map(str, estimates))}; there are'
    f' {results["classes"]}.'
    if estimates
    else ''
  )
  lines = [
    '# Categories from pictures and words\n',
    f'{results["pairs"]} pairs of {results["items"]} items in'
    f' {results["classes"]} classes, of which {results["known"]} are known.'
    f' Accuracy in percent (v2: one assignment of all unlabelled pairs), mean ±'
    f' standard deviation over {splits} splits and {seeds} seeds each; v1'
    f' assigns old and new classes separately.{estimated}\n',
    table(results),
  ]
  if found := differences(results):
    lines += ['## Differences\n', *(f'* {line}' for line in found), '']
  if 'clusters' in results:
    lines += ['![clusters of new classes](clusters.png)\n']
  return '\n'.join(lines)


def table(results: dict[str, Any]) -> str:
  """A row a method: All, Old, New, the same of v1, NMI and ARI."""
  lines = []
  for name, label in results['labels'].items():
    rows = [row for row in results['rows'] if row['method'] == name]
    cells = [_cell(rows, key) for key in _SHARES]
    cells += [
      ' / '.join(f'{100 * _mean(rows, f"{key}_v1"):.1f}' for key in _SHARES)
    ]
    cells += [f'{_mean(rows, key):.3f}' for key in ('nmi', 'ari')]
    lines.append([label, *cells])
  header = ['method', 'All', 'Old', 'New', 'All / Old / New, v1', 'NMI', 'ARI']
  return tables.markdown_table(header, lines)


def differences(results: dict[str, Any]) -> list[str]:
  """What the joint method gains over others, in sentences.

  Differences are of the means over seeds on the same split; the standard error
  is that over splits. Nothing is said with fewer than two splits.
  """
  found = []
  labels = results['labels']
  for ours, theirs in (
    *((_OURS, rival) for rival in _RIVALS),
    (_PERMUTED, _IMAGES),
  ):
    if ours not in labels or theirs not in labels:
      continue
    parts = []
    for key in ('all', 'new'):
      gaps = [
        100 * (a - b)
        for a, b in zip(
          *(_by_split(results, name, key) for name in (ours, theirs)),
          strict=True,
        )
      ]
      if len(gaps) < 2:
        return []
      mean = float(np.mean(gaps))
      error = float(np.std(gaps, ddof=1)) / math.sqrt(len(gaps))
      verdict = (
        'above'
        if mean > 2 * error
        else 'below'
        if mean < -2 * error
        else 'no difference'
      )
      parts.append(f'{key.title()} {mean:+.1f} ± {error:.1f} ({verdict})')
    found.append(f'{labels[ours]}, less {labels[theirs]}: {", ".join(parts)}')
  if found:
    found.append(
      'Points, ± the standard error over splits; "above" and "below" by more'
      ' than two of these.'
    )
  return found


def save_clusters(
  path: str | os.PathLike[str],
  clusters: Sequence[dict[str, Any]],
  pictures: Sequence[np.ndarray],
) -> None:
  """Draws a line for each cluster: its pictures, the surest first.

  Args:
    path: of the PNG.
    clusters: as in the results.
    pictures: float[m, H, W, 3] of each, in [0, 1].
  """
  if not clusters:
    return
  most = max(map(len, pictures))
  rows = []
  for cluster, found in zip(clusters, pictures, strict=True):
    name = '\n'.join(textwrap.wrap(cluster['name'], 24))
    label = f'{name}\n{cluster["right"]} of {cluster["size"]} right'
    white = np.ones((most - len(found), *found.shape[1:]), found.dtype)
    rows.append((label, np.concatenate([found, white])))
  scale = max(1, 64 // rows[0][1].shape[1])
  pictures_lib.save_pairs(path, rows, columns=most, scale=scale)


def _by_split(results: dict[str, Any], name: str, key: str) -> list[float]:
  """The mean over seeds of a figure of a method, on each split."""
  found: dict[int, list[float]] = {}
  for row in results['rows']:
    if row['method'] == name:
      found.setdefault(row['split'], []).append(float(row[key]))
  return [float(np.mean(values)) for _, values in sorted(found.items())]


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
  return float(np.mean([float(row[key]) for row in rows]))


def _cell(rows: Sequence[dict[str, Any]], key: str) -> str:
  values = [100 * float(row[key]) for row in rows]
  spread = f' ± {np.std(values, ddof=1):.1f}' if len(values) > 1 else ''
  return f'{np.mean(values):.1f}{spread}'
