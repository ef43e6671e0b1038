"""What others published on the benchmarks, and a page with our figures beside.

Only numbers that a source prints; a figure that is not given is None.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any

from adanat_jax.report import tables

_ADANAT = 'AdaNAT (arXiv 2409.00342)'
_ADANAT_ENAT = f'{_ADANAT}; IS and parameters: ENAT, table 3'
_ENAT = 'ENAT (arXiv 2411.06959), its tables'
_KAMIG = 'KA-MIG (arXiv 2511.12032), its tables'
_ADAGEN = 'AdaGen (arXiv 2603.06993)'
_MASKGIT = 'google-research/maskgit, README'
_MUSE = 'baaivision/MUSE-Pytorch, README'


@dataclasses.dataclass(frozen=True)
class Figure:
  """One row of a table."""

  method: str  # as its authors call it; '+' is DPM-Solver
  num_steps: int
  fid: float  # with 50,000 samples, 30,000 of text-to-image models
  inception_score: float | None = None  # of as many
  parameters: float | None = None  # in millions
  teraflops: float | None = None  # of one image, as the source counts them
  source: str = _ENAT  # where the numbers stand


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A benchmark as it is reported."""

  title: str
  statistics: str  # the file that published distances start from, '' if unknown
  num_samples: int
  figures: tuple[Figure, ...]


BENCHMARKS: dict[str, Benchmark] = {
  'imagenet256': Benchmark(
    'ImageNet 256 x 256',
    'fid_stats_imagenet256_guided_diffusion.npz',
    50_000,
    (
      Figure('AdaNAT-L', 8, 2.86, 265.4, 206, 0.9, _ADANAT_ENAT),
      Figure('AdaNAT-L', 4, 3.63, None, None, 0.5, _ADANAT),
      Figure('AdaNAT-S', 8, 3.71, None, None, 0.3, _ADANAT),
      Figure('AdaNAT-S', 4, 4.54, None, None, 0.2, _ADANAT),
      Figure('AutoNAT-L', 8, 2.68, 278.8, 194, None, _KAMIG),
      Figure('AdaGen, MaskGIT-L', 16, 2.41, None, None, None, _ADAGEN),
      Figure('ENAT-L', 8, 2.79, 326.7, 574, 0.3),
      Figure('ENAT-L', 4, 4.13, None, 574, 0.2),
      Figure('ENAT-B', 8, 3.53, 302.4, 219, 0.2),
      Figure('ENAT-B', 4, 5.86, None, 219, 0.1),
      Figure('MaskGIT', 12, 4.92, None, 227, 1.22),
      Figure('MaskGIT', 8, 6.18, None, None, None, _ADANAT),
      Figure('MaskGIT, released weights', 8, 6.06, None, None, None, _MASKGIT),
      Figure('MaskGIT-FSQ', 12, 4.53, None, 225, 0.8),
      Figure('Draft-and-revise', 72, 3.41, 224.6, 1400),
      Figure('MAGE', 20, 6.93, None, 230, 1.0),
      Figure('Token-Critic', 36, 4.69, 174.5, 422, 1.9),
      Figure('U-ViT-H+', 8, 3.37, 235.9, 501, 2.4),
      Figure('U-ViT-H+', 4, 8.45, None, 501, 1.4),
      Figure('MDT-XL+', 8, 4.00, None, 676, 2.2),
      Figure('DiT-XL+', 8, 5.18, 213.0, 675, 2.2),
      Figure('DiT-XL+', 4, 9.71, None, 675, 1.3),
      Figure('LDM+', 8, 4.56, 262.9, 400, 2.0),
      Figure('LDM+', 4, 11.74, None, 400, 1.2),
      Figure('ADM-G', 250, 4.59, 186.7, 554, 334),
    ),
  ),
  'imagenet512': Benchmark(
    'ImageNet 512 x 512',
    'fid_stats_imagenet512_guided_diffusion.npz',
    50_000,
    (
      Figure('AdaNAT-L', 8, 3.66, None, None, 1.2, _ADANAT),
      Figure('AdaGen, MaskGIT-L', 32, 2.46, None, None, None, _ADAGEN),
      Figure('ENAT-L', 8, 4.00, 285.7, 574, 1.3),
      Figure('MaskGIT', 12, 7.32, 156.0, 227, 3.3),
      Figure('MaskGIT-RS', 12, 4.46, None, None, 13.1),
      Figure('Token-Critic', 36, 6.80, 182.1, 422, 7.6),
      Figure('U-ViT-H+', 8, 4.60, 286.8, 501, 3.4),
      Figure('DiT-XL+', 8, 5.44, 275.0, 675, 9.6),
      Figure('ADM-G', 250, 7.72, 172.7, 559, 579),
    ),
  ),
  'mscoco': Benchmark(
    'MS-COCO 256 x 256',
    'fid_stats_mscoco256_val.npz',
    30_000,
    (
      Figure('AdaNAT-S', 8, 5.75, None, None, 0.3, _ADANAT),
      Figure('AdaGen, MaskGIT-S', 16, 4.92, None, None, None, _ADAGEN),
      Figure('ENAT-B', 8, 6.82, None, 116, 0.3),
      Figure('U-ViT+', 8, 6.92, None, 44, 0.5),
      Figure('U-ViT+', 4, 16.20, None, 44, 0.4),
      Figure('U-Net+', 50, 7.32, None, 53),
      Figure('Frido', 200, 8.97, None, 512),
      Figure('VQ-Diffusion', 100, 13.86, None, 370),
    ),
  ),
  'cc3m': Benchmark(
    'CC3M 256 x 256',
    'fid_stats_cc3m_val.npz',
    30_000,
    (
      Figure('AdaNAT-Muse', 8, 6.83, None, None, 2.8, _ADANAT),
      Figure('Muse', 8, 7.67, None, None, None, _ADANAT),
      Figure('MUSE-Pytorch', 18, 6.836, None, 501, None, _MUSE),
    ),
  ),
}


def compose(results: Mapping[str, Any]) -> str:
  """Our results and the published figures as one Markdown page.

  `results` are what `stages.evaluate_published` writes to `results.json`.
  """
  names = sorted({name for row in results['rows'] for name in row['figures']})
  ours = [
    [
      row['label'],
      row['num_steps'],
      *(_number(row['figures'].get(name)) for name in names),
    ]
    for row in results['rows']
  ]
  parts = [
    f'# {results["benchmark"] or "Evaluation"}',
    tables.markdown_table(['policy', 'steps', *names], ours, '---'),
    *tables.warnings(results['warnings']),
    'A distance is called FID, and a score IS or CLIP-score, only where the'
    ' network that measures is the published one by its hash; a number in a'
    ' name is how many samples were measured.',
    settings_list(results['settings']),
  ]
  published = results['published']
  if published:
    theirs = results['published statistics']
    given = results['settings']['statistics']['file']
    if theirs and given != theirs:
      parts.append(
        f'Distances here start from `{given}`, those below from `{theirs}`:'
        ' they are not comparable.'
      )
    parts += [
      '## Published',
      f'Figures of others with {results["published samples"]:,} samples, to be'
      ' compared with an FID of as many here and of the same statistics'
      + (f' (`{theirs}`).' if theirs else '.'),
      tables.markdown_table(
        ['method', 'steps', 'FID', 'IS', 'parameters', 'TFLOPs', 'source'],
        [
          [
            row['method'],
            row['num_steps'],
            _number(row['fid']),
            _number(row['inception_score']),
            f'{row["parameters"]:g}M' if row['parameters'] else '',
            _number(row['teraflops']),
            row['source'],
          ]
          for row in published
        ],
        '---',
      ),
    ]
  return '\n\n'.join(part.rstrip('\n') for part in parts) + '\n'


def settings_list(settings: Mapping[str, Any], indent: str = '') -> str:
  """A list, with lists of what is nested."""
  lines = []
  for name, value in settings.items():
    if isinstance(value, Mapping):
      inner = settings_list(value, f'{indent}  ')
      lines.append(f'{indent}- {name}:' + (f'\n{inner}' if inner else ' none'))
    else:
      lines.append(f'{indent}- {name}: {value}')
  return '\n'.join(lines)


def _number(value: float | None) -> str:
  return '' if value is None else f'{value:.4g}'
