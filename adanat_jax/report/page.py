"""Decodes as one HTML file: schedules side by side, played step by step.

The file needs no network. `page.html` beside this module is its template; this
module fills in the data, with the pictures of a schedule and a step as one PNG.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import html
import io
import json
import math
import os
import pathlib

import numpy as np
from PIL import Image

from adanat_jax.report import pictures
from adanat_jax.runtime import files

TEMPLATE = pathlib.Path(__file__).with_name('page.html')
# Values of pixels that a page holds: the file stays below 2 MB.
_MOST_VALUES = 1_200_000


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
  """What a schedule did, step by step, to B samples of N tokens.

  Attributes:
    label: of the schedule.
    images: float[T, B, H, W, C] in [0, 1], decoded from what each step sampled.
    masked: bool[T, B, N], which tokens are still masked after each step; cells
      are squares.
    values: by name, float[T, B]; NaN where a sample no longer needed the step.
    passes: int[T, B], denoiser passes until after each step.
  """

  label: str
  images: np.ndarray
  masked: np.ndarray
  values: Mapping[str, np.ndarray]
  passes: np.ndarray


def save(
  path: str | os.PathLike[str],
  replays: Sequence[Replay],
  names: Sequence[str],
  title: str,
) -> None:
  """Writes the page to a file, see `make`; its directory must exist.

  Raises:
    UserError: if the file cannot be written.
  """
  files.write_text(path, make(replays, names, title))


def make(
  replays: Sequence[Replay],
  names: Sequence[str],
  title: str,
  *,
  is_finished: bool = False,
) -> str:
  """Makes the page, as HTML.

  Args:
    replays: of schedules, on the same samples.
    names: what each sample was asked to be, B of them.
    title: of the page.
    is_finished: whether it opens with the last step instead of empty canvases.
  """
  count = sum(len(replay.masked) for replay in replays) * len(names)
  height, width, channels = replays[0].images.shape[2:]
  # As many values as fit, at the images' proportions.
  values = _MOST_VALUES // (count * channels)
  share = min(1.0, math.sqrt(values / (height * width)))
  size = max(1, int(share * height)), max(1, int(share * width))
  num_tokens = replays[0].masked.shape[-1]
  columns = pictures.columns_of(num_tokens, height, width)
  data = {
    'samples': list(names),
    'step': len(replays[0].masked) if is_finished else 0,
    'grid': [num_tokens // columns, columns],
    'size': list(size),
    'schedules': [_as_json(replay, size) for replay in replays],
  }
  # `</script>` in a name must not end the block.
  text = json.dumps(data, allow_nan=False).replace('<', r'\u003c')
  page = TEMPLATE.read_text('utf-8')
  page = page.replace('{{title}}', html.escape(title))
  return page.replace('{{data}}', text)


def _as_json(replay: Replay, size: tuple[int, int]) -> dict[str, object]:
  return {
    'label': replay.label,
    'sprites': [_sprite(images, size) for images in replay.images],
    'known': [
      [''.join('10'[cell] for cell in row) for row in rows]
      for rows in replay.masked.astype(int)
    ],
    'passes': replay.passes.tolist(),
    'values': {
      name: [[_number(x) for x in row] for row in np.asarray(rows)]
      for name, rows in replay.values.items()
    },
  }


def _number(value: float) -> float | None:
  return None if np.isnan(value) else float(f'{value:.4g}')


def _sprite(images: np.ndarray, size: tuple[int, int]) -> str:
  """Images float[B, H, W, C] in one line, as the URI of a PNG."""
  line = pictures.to_pil(np.concatenate(list(images), axis=1))
  height, width = size
  line = line.resize((len(images) * width, height), Image.Resampling.BOX)
  buffer = io.BytesIO()
  line.save(buffer, 'PNG', optimize=True)
  code = base64.b64encode(buffer.getvalue()).decode('ascii')
  return f'data:image/png;base64,{code}'
