"""Which files the figures rest on: their hashes, and what bears which name.

A figure is called FID, IS, KID or CLIP score only where the network that
measures is the published one, and this is known by the hash of the file it was
converted from; a number of samples stands in the name of every figure.
"""

from __future__ import annotations

import os
import pathlib

from adanat_jax.runtime import checkpoint
from adanat_jax.runtime.journal import is_complete

# SHA-256 of the published files. Inception-v3 is the file of pytorch-fid, which
# torch-fidelity publishes too; the first digits stand in its name. CLIP's are
# the weights that Hugging Face serves of openai/clip-vit-*.
INCEPTION = {
  '6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2': (
    'pt_inception-2015-12-05-6726825d.pth'
  )
}
CLIP = {
  'a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb': (
    'ViT-L/14'  # model.safetensors
  ),
  'f1a17cdbe0f36fec524f5cafb1c261ea3bbbc13e346e0f74fc9eb0460dedd0d3': (
    'ViT-L/14'  # pytorch_model.bin
  ),
  'a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f': (
    'ViT-B/32'  # pytorch_model.bin
  ),
}

# The numbers of samples that FIDs are published with, and how they are said.
_PUBLISHED_COUNTS = {50_000: '50K', 30_000: '30K'}
_TITLES = {'frechet': 'FID', 'class_score': 'IS'}
# Its expectation is the same for any number of samples.
_UNBIASED_TITLES = {'kernel_distance': 'KID'}


def source_of(directory: str | os.PathLike[str]) -> dict[str, str]:
  """SHA-256, by name, of the files that a converted checkpoint was made of.

  None for a checkpoint that was trained here, or converted before hashes were
  kept.
  """
  path = pathlib.Path(directory).absolute()
  if not is_complete(path):
    return {}
  meta = checkpoint.read_meta(path)
  return dict(meta.get('converted', {}).get('sha256', {}))


def is_published(source: dict[str, str], known: dict[str, str]) -> bool:
  """Whether a checkpoint was made of one file, and of a published one."""
  return len(source) == 1 and next(iter(source.values())) in known


def figure_name(
  figure: str, network: str, published: bool, num_samples: int
) -> str:
  """The name of a figure that was measured on `num_samples` images.

  `figure`: `frechet`, `class_score`, `kernel_distance`, or another that has no
  published name. `published`: the network is the published Inception-v3.
  """
  if published and figure in _UNBIASED_TITLES:
    return f'{_UNBIASED_TITLES[figure]}-{num_samples}'
  if published and figure in _TITLES and num_samples in _PUBLISHED_COUNTS:
    return f'{_TITLES[figure]}-{_PUBLISHED_COUNTS[num_samples]}'
  return f'{figure}_{network}_{num_samples}'


def agreement_name(published: bool, num_samples: int) -> str:
  """What the mean cosine of images and captions is called.

  `published`: both towers are those of one published CLIP.
  """
  return 'CLIP-score' if published else f'clip_cosine_{num_samples}'
