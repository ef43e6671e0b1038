"""Pictures of images: grids, methods side by side, tokens being revealed.

Every function takes float images in [0, 1] and writes one PNG, whole or not
at all. Shape legend: `n` images, `G` classes, `S` samples, `T` steps, `N`
tokens; images are `[..., H, W, C]` with C = 1 (grey) or 3 (colour).
"""

from collections.abc import Sequence
import functools
import io
import math
import os
import pathlib

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adanat_jax.runtime import files

INK = (38, 43, 51)
FAINT_INK = (120, 127, 138)
HIDDEN = (214, 218, 224)  # A token that is not revealed yet.
HIDDEN_EDGE = (235, 238, 242)
ACCENT = (228, 87, 46)  # A token that was revealed in this step.
FONT_SIZE = 14
MARGIN = 12


def to_uint8(images: np.ndarray) -> np.ndarray:
  """Rounds images to 8 bits: the only place where that happens.

  Values are clipped to [0, 1], multiplied by 255 in float32 and rounded to
  the nearest level, a half upwards, so that `to_uint8(level / 255) == level`.

  Args:
    images: float[...] in [0, 1].

  Returns:
    uint8[...].

  Raises:
    ValueError: if a value is NaN, or the images are integers already.
  """
  images = np.asarray(images)
  if not np.issubdtype(images.dtype, np.floating):
    raise ValueError(f'images must be floats in [0, 1], got {images.dtype}')
  if np.isnan(images).any():
    raise ValueError('images hold NaN')
  levels = np.clip(images, 0.0, 1.0).astype(np.float32) * np.float32(255.0)
  return np.floor(levels + np.float32(0.5)).astype(np.uint8)


def save_image(
  path: str | os.PathLike[str], image: np.ndarray, scale: int = 1
) -> None:
  """Writes one image.

  Args:
    path: the PNG file; its directory must exist.
    image: float[H, W, C].
    scale: each pixel becomes a square of so many pixels.
  """
  pixels = _pixels(image, scale)
  grey = np.shape(image)[-1] == 1
  _save(path, Image.fromarray(pixels[..., 0] if grey else pixels))


def save_grid(
  path: str | os.PathLike[str],
  images: np.ndarray,
  columns: int,
  scale: int = 4,
  gap: int = 2,
) -> None:
  """Writes images in lines from left to right.

  Args:
    path: the PNG file; its directory must exist.
    images: float[n, H, W, C], at least one.
    columns: images a line.
    scale: each pixel becomes a square of so many pixels.
    gap: white pixels between two images.
  """
  _save(path, Image.fromarray(_tile(_pixels(images, scale), columns, gap)))


def save_class_grid(
  path: str | os.PathLike[str],
  methods: Sequence[tuple[str, np.ndarray]],
  class_names: Sequence[str],
  columns: int = 8,
  scale: int = 3,
  title: str = '',
) -> None:
  """Writes samples by class, one block of lines for each method.

  Args:
    path: the PNG file; its directory must exist.
    methods: label and float[G, n, H, W, C] of each method; the same n for all.
    class_names: G names, the headings of the columns of blocks.
    columns: images a line within a class.
    scale: each pixel becomes a square of so many pixels.
    title: one line above everything.

  Raises:
    ValueError: if a method does not have images of every class.
  """
  gap, group_gap, row_gap = 2, 18, 10
  blocks = []
  for label, images in methods:
    if len(images) != len(class_names):
      raise ValueError(
        f'{label}: images of {len(images)} classes for the '
        f'{len(class_names)} names {tuple(class_names)}'
      )
    blocks.append([_tile(_pixels(x, scale), columns, gap) for x in images])
  label_width = _label_width([label for label, _ in methods])
  height, width = blocks[0][0].shape[:2]
  stride = width + group_gap
  head = _title_height(title) + FONT_SIZE + 8
  canvas, draw = _canvas(
    label_width + stride * len(class_names) - group_gap,
    head + len(blocks) * (height + row_gap) - row_gap,
  )
  _write_title(draw, title)
  for g, name in enumerate(class_names):
    centre = MARGIN + label_width + g * stride + width // 2
    baseline = MARGIN + head - 7
    draw.text((centre, baseline), name, FAINT_INK, _font(), anchor='ms')
  for row, ((label, _), groups) in enumerate(zip(methods, blocks, strict=True)):
    top = MARGIN + head + row * (height + row_gap)
    _write_label(draw, label, top + height // 2)
    for g, block in enumerate(groups):
      left = MARGIN + label_width + g * stride
      canvas.paste(Image.fromarray(block), (left, top))
  _save(path, canvas)


def save_pairs(
  path: str | os.PathLike[str],
  rows: Sequence[tuple[str, np.ndarray]],
  columns: int = 16,
  scale: int = 3,
  title: str = '',
) -> None:
  """Writes versions of the same images above each other, line after line.

  Args:
    path: the PNG file; its directory must exist.
    rows: label and float[n, H, W, C] of each version, such as originals and
      reconstructions; the same images in the same order.
    columns: images a line.
    scale: each pixel becomes a square of so many pixels.
    title: one line above everything.

  Raises:
    ValueError: if the versions differ in shape.
  """
  gap, line_gap = 2, 12
  shapes = {np.shape(images) for _, images in rows}
  if len(shapes) != 1:
    raise ValueError(f'versions of the same images differ in shape: {shapes}')
  stacks = [_pixels(images, scale) for _, images in rows]
  count, height, width = stacks[0].shape[:3]
  columns = min(columns, count)
  lines = math.ceil(count / columns)
  label_width = _label_width([label for label, _ in rows])
  head = _title_height(title)
  line_height = len(rows) * (height + gap) - gap + line_gap
  canvas, draw = _canvas(
    label_width + columns * (width + gap) - gap,
    head + lines * line_height - line_gap,
  )
  _write_title(draw, title)
  for line in range(lines):
    for row, ((label, _), stack) in enumerate(zip(rows, stacks, strict=True)):
      top = MARGIN + head + line * line_height + row * (height + gap)
      _write_label(draw, label, top + height // 2)
      part = stack[line * columns : (line + 1) * columns]
      tiled = Image.fromarray(_tile(part, columns, gap))
      canvas.paste(tiled, (MARGIN + label_width, top))
  _save(path, canvas)


def save_reveal(
  path: str | os.PathLike[str],
  rows: Sequence[tuple[str, np.ndarray, np.ndarray]],
  scale: int = 6,
  title: str = '',
) -> None:
  """Writes samples being revealed, one column a step.

  Hidden tokens are grey cells; those revealed in a step have a coloured edge.
  A last column shows the result without edges.

  Args:
    path: the PNG file; its directory must exist.
    rows: for each sample a label, float[T, H, W, C] images decoded from what
      is known after each step, and bool[T, N] which tokens are still masked
      then (row-major; N a square number). The last step reveals what is left:
      give it no masked tokens.
    scale: each pixel becomes a square of so many pixels.
    title: one line above everything.

  Raises:
    ValueError: if the masks do not fit the images, or samples differ in shape.
  """
  gap, row_gap, caption = 14, 14, FONT_SIZE + 8
  num_steps, height, width = np.shape(rows[0][1])[:3]
  for label, images, masked in rows:
    side = math.isqrt(np.shape(masked)[-1])
    fits = (
      np.shape(images)[:3] == (num_steps, height, width)
      and np.shape(masked) == (num_steps, side * side)
      and height % side == 0
      and width % side == 0
    )
    if not fits:
      raise ValueError(
        f'{label}: masks {np.shape(masked)} do not fit images '
        f'{np.shape(images)}, or the first sample of {num_steps} steps'
      )
  label_width = _label_width([label for label, *_ in rows])
  head = _title_height(title) + FONT_SIZE + 8
  cell_width, cell_height = width * scale, height * scale
  row_height = cell_height + caption + row_gap
  canvas, draw = _canvas(
    label_width + (num_steps + 1) * (cell_width + gap) - gap,
    head + len(rows) * row_height - row_gap,
  )
  _write_title(draw, title)
  for row, (label, images, masked) in enumerate(rows):
    top = MARGIN + head + row * row_height
    _write_label(draw, label, top + cell_height // 2)
    pixels, masked = _pixels(images, scale), np.asarray(masked, bool)
    before = np.ones(masked.shape[1], bool)
    for step in range(num_steps + 1):
      left = MARGIN + label_width + step * (cell_width + gap)
      centre = left + cell_width // 2
      if row == 0:
        place = (centre, MARGIN + head - 7)
        name = f'step {step + 1}' if step < num_steps else 'result'
        draw.text(place, name, FAINT_INK, _font(), anchor='ms')
      image = pixels[min(step, num_steps - 1)]
      canvas.paste(Image.fromarray(image), (left, top))
      if step == num_steps:
        continue
      box = (left, top, cell_width, cell_height)
      _draw_cells(draw, box, masked[step], before & ~masked[step])
      known = int((~masked[step]).sum())
      place = (centre, top + cell_height + FONT_SIZE + 3)
      text = f'{known} of {masked.shape[1]}'
      draw.text(place, text, FAINT_INK, _font(), anchor='ms')
      before = masked[step]
  _save(path, canvas)


def _draw_cells(
  draw: ImageDraw.ImageDraw,
  box: tuple[int, int, int, int],
  hidden: np.ndarray,
  fresh: np.ndarray,
) -> None:
  """Covers hidden tokens (bool[N]) and frames fresh ones within a box.

  The box is (left, top, width, height) in pixels.
  """
  left, top, width, height = box
  side = math.isqrt(len(hidden))
  cell_width, cell_height = width // side, height // side
  frame = max(1, min(cell_width, cell_height) // 12)
  # Frames last: a neighbour's cover must not cut them.
  for chosen, fill, edge, line in (
    (hidden, HIDDEN, HIDDEN_EDGE, 1),
    (fresh, None, ACCENT, frame),
  ):
    for index in np.flatnonzero(chosen):
      x = left + int(index % side) * cell_width
      y = top + int(index // side) * cell_height
      corners = (x, y, x + cell_width - 1, y + cell_height - 1)
      draw.rectangle(corners, fill=fill, outline=edge, width=line)


def _pixels(images: np.ndarray, scale: int) -> np.ndarray:
  """uint8[..., H * scale, W * scale, 3] of float[..., H, W, 1 or 3]."""
  pixels = to_uint8(images)
  if pixels.ndim < 3 or pixels.shape[-1] not in (1, 3):
    raise ValueError(
      f'images must be [..., H, W, 1 or 3], got shape {pixels.shape}'
    )
  pixels = np.repeat(pixels, 3 // pixels.shape[-1], axis=-1)
  return pixels.repeat(scale, axis=-3).repeat(scale, axis=-2)


def _tile(pixels: np.ndarray, columns: int, gap: int) -> np.ndarray:
  """Lays uint8[n, h, w, 3] out in lines on white: uint8[h', w', 3]."""
  count, height, width, channels = pixels.shape
  columns = min(columns, count)
  lines = math.ceil(count / columns)
  shape = (lines * (height + gap) - gap, columns * (width + gap) - gap)
  sheet = np.full((*shape, channels), 255, np.uint8)
  for i, image in enumerate(pixels):
    top = i // columns * (height + gap)
    left = i % columns * (width + gap)
    sheet[top : top + height, left : left + width] = image
  return sheet


@functools.cache
def _font(bold: bool = False) -> ImageFont.FreeTypeFont:
  """The font that comes with Matplotlib, so that text looks as in plots."""
  name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
  path = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf', name)
  return ImageFont.truetype(str(path), FONT_SIZE)


def _canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
  size = (width + 2 * MARGIN, height + 2 * MARGIN)
  canvas = Image.new('RGB', size, 'white')
  return canvas, ImageDraw.Draw(canvas)


def _label_width(labels: Sequence[str]) -> int:
  lines = [line for label in labels for line in label.split('\n')]
  longest = max((_font().getlength(line) for line in lines), default=0)
  return math.ceil(longest) + 14 if longest else 0


def _write_label(draw: ImageDraw.ImageDraw, label: str, middle: int) -> None:
  """Writes a row's label, of one or more lines, around a height."""
  lines = label.split('\n')
  step = FONT_SIZE + 4
  first = middle - (len(lines) - 1) * step / 2
  for i, line in enumerate(lines):
    place = (MARGIN, first + i * step)
    draw.text(place, line, INK, _font(), anchor='lm')


def _title_height(title: str) -> int:
  return FONT_SIZE + 10 if title else 0


def _write_title(draw: ImageDraw.ImageDraw, title: str) -> None:
  if title:
    draw.text((MARGIN, MARGIN), title, INK, _font(bold=True), anchor='lt')


def _save(path: str | os.PathLike[str], image: Image.Image) -> None:
  buffer = io.BytesIO()
  image.save(buffer, 'PNG', optimize=True)
  files.write_bytes(path, buffer.getvalue())
