"""Pictures of images: grids, methods side by side, tokens being revealed.

Every function takes float images in [0, 1] and writes one PNG at `path`, whole
or not at all; its directory must exist. Each pixel becomes a square of `scale`
pixels. Shape legend: `n` images, `G` classes, `S` samples, `T` steps, `N`
tokens; images are `[..., H, W, C]` with C = 1 (grey) or 3 (colour).
"""

from collections.abc import Collection, Sequence
import functools
import io
import math
import os
import pathlib

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
  """Rounds images float[...] in [0, 1] to uint8: the only place that does.

  Values are clipped to [0, 1], multiplied by 255 in float32 and rounded to
  the nearest level, a half upwards, so that `to_uint8(level / 255) == level`.

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
  """Writes one image, float[H, W, C]."""
  _save(path, to_pil(image, scale))


def to_pil(image: np.ndarray, scale: int = 1) -> Image.Image:
  """One image, float[H, W, C], as Pillow's, grey or RGB."""
  pixels = _pixels(image, scale)
  grey = np.shape(image)[-1] == 1
  return Image.fromarray(pixels[..., 0] if grey else pixels)


def save_grid(
  path: str | os.PathLike[str],
  images: np.ndarray,
  columns: int,
  scale: int = 4,
  gap: int = 2,
) -> None:
  """Writes images in lines from left to right.

  Args:
    path: see the module.
    images: float[n, H, W, C], at least one.
    columns: images a line.
    scale: see the module.
    gap: white pixels between two images.
  """
  files.write_bytes(path, grid_png(images, columns, scale, gap))


def grid_png(
  images: np.ndarray, columns: int, scale: int = 4, gap: int = 2
) -> bytes:
  """The PNG file of a grid; see `save_grid`."""
  return _png(Image.fromarray(_tile(_pixels(images, scale), columns, gap)))


def save_class_grid(
  path: str | os.PathLike[str],
  methods: Sequence[tuple[str, Collection[np.ndarray]]],
  class_names: Sequence[str],
  columns: int = 8,
  scale: int = 3,
) -> None:
  """Writes samples by class, one block of lines for each method.

  Args:
    path: see the module.
    methods: label and G times float[n, H, W, C] of each method; n may differ
      between classes, and is the same for all methods.
    class_names: G names, the headings of the columns of blocks.
    columns: images a line within a class.
    scale: see the module.

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
  labels = [label for label, _ in methods]
  height = max(block.shape[0] for block in blocks[0])
  widths = [block.shape[1] for block in blocks[0]]
  lefts = [sum(widths[:i]) + group_gap * i for i in range(len(widths))]
  sheet = _Sheet(
    labels,
    lefts[-1] + widths[-1],
    (height + row_gap) * len(blocks) - row_gap,
    headings=True,
  )
  for name, left, width in zip(class_names, lefts, widths, strict=True):
    sheet.write(name, left + width // 2, -7)
  for row, (label, groups) in enumerate(zip(labels, blocks, strict=True)):
    top = row * (height + row_gap)
    sheet.write_label(label, top + height // 2)
    for block, left in zip(groups, lefts, strict=True):
      sheet.paste(block, left, top)
  _save(path, sheet.image)


def save_captioned(
  path: str | os.PathLike[str],
  methods: Sequence[tuple[str, np.ndarray]],
  captions: Sequence[str],
  columns: int = 6,
  scale: int = 3,
) -> None:
  """Writes samples with their captions under them, one block for each method.

  Args:
    path: see the module.
    methods: label and float[n, H, W, C] of each method.
    captions: n of them; long ones are broken, and cut after three lines.
    columns: images a line.
    scale: see the module.

  Raises:
    ValueError: if a method does not have an image of every caption.
  """
  for label, images in methods:
    if len(images) != len(captions):
      raise ValueError(
        f'{label}: {len(images)} images, {len(captions)} captions'
      )
  gap, line_height, block_gap = 14, FONT_SIZE + 3, 16
  height, width = (scale * size for size in methods[0][1].shape[1:3])
  # Narrow images leave room for a word or two.
  cell = max(width, 8 * FONT_SIZE)
  texts = [_broken(caption, cell) for caption in captions]
  row = height + line_height * max(map(len, texts)) + gap
  lines = math.ceil(len(captions) / columns)
  block = lines * row + block_gap
  labels = [label for label, _ in methods]
  sheet = _Sheet(
    labels,
    min(columns, len(captions)) * (cell + gap) - gap,
    len(methods) * block - block_gap - gap,
  )
  for number, (label, images) in enumerate(methods):
    sheet.write_label(label, number * block + height // 2)
    pixels = _pixels(images, scale)
    for i, (image, text) in enumerate(zip(pixels, texts, strict=True)):
      left = i % columns * (cell + gap)
      top = number * block + i // columns * row
      sheet.paste(image, left + (cell - width) // 2, top)
      for k, part in enumerate(text, 1):
        sheet.write(part, left + cell // 2, top + height + k * line_height)
  _save(path, sheet.image)


def _broken(text: str, width: int, most: int = 3) -> list[str]:
  """A caption in lines of at most so many pixels."""
  measure = _font().getlength
  lines = ['']
  for word in text.split():
    longer = f'{lines[-1]} {word}'.strip()
    if measure(longer) <= width or not lines[-1]:
      lines[-1] = longer
    else:
      lines.append(word)
  if len(lines) > most:
    lines = [*lines[: most - 1], f'{lines[most - 1]} ...']
  return [_cut(line, width) for line in lines]


def _cut(line: str, width: int) -> str:
  """A line without what does not fit into so many pixels."""
  measure = _font().getlength
  if measure(line) <= width:
    return line
  while line and measure(f'{line}...') > width:
    line = line[:-1]
  return f'{line}...'


def save_pairs(
  path: str | os.PathLike[str],
  rows: Sequence[tuple[str, np.ndarray]],
  columns: int = 16,
  scale: int = 3,
) -> None:
  """Writes versions of the same images above each other, line after line.

  Args:
    path: see the module.
    rows: label and float[n, H, W, C] of each version, such as originals and
      reconstructions; the same images in the same order.
    columns: images a line.
    scale: see the module.

  Raises:
    ValueError: if the versions differ in shape.
  """
  gap, line_gap = 2, 12
  shapes = {np.shape(images) for _, images in rows}
  if len(shapes) != 1:
    raise ValueError(f'versions of the same images differ in shape: {shapes}')
  labels = [label for label, _ in rows]
  stacks = [_pixels(images, scale) for _, images in rows]
  count, height, width = stacks[0].shape[:3]
  columns = min(columns, count)
  lines = math.ceil(count / columns)
  line_height = len(rows) * (height + gap) - gap + line_gap
  sheet = _Sheet(
    labels, columns * (width + gap) - gap, lines * line_height - line_gap
  )
  for line in range(lines):
    for row, (label, stack) in enumerate(zip(labels, stacks, strict=True)):
      top = line * line_height + row * (height + gap)
      sheet.write_label(label, top + height // 2)
      part = stack[line * columns : (line + 1) * columns]
      sheet.paste(_tile(part, columns, gap), 0, top)
  _save(path, sheet.image)


def save_reveal(
  path: str | os.PathLike[str],
  rows: Sequence[tuple[str, np.ndarray, np.ndarray]],
  scale: int = 6,
) -> None:
  """Writes samples being revealed, one column a step.

  Hidden tokens are grey cells; those revealed in a step have a coloured edge.
  A last column shows the result without edges.

  Args:
    path: see the module.
    rows: for each sample a label, float[T, H, W, C] images decoded from what
      is known after each step, and bool[T, N] which tokens are still masked
      then (row-major; cells are squares). The last step reveals what is left:
      give it no masked tokens.
    scale: see the module.

  Raises:
    ValueError: if the masks do not fit the images, or samples differ in shape.
  """
  gap, row_gap, caption = 14, 14, FONT_SIZE + 8
  num_steps, height, width = np.shape(rows[0][1])[:3]
  for label, images, masked in rows:
    columns = columns_of(np.shape(masked)[-1], height, width)
    rows_of_cells = np.shape(masked)[-1] // columns
    fits = (
      np.shape(images)[:3] == (num_steps, height, width)
      and np.shape(masked) == (num_steps, rows_of_cells * columns)
      and height % rows_of_cells == 0
      and width % columns == 0
    )
    if not fits:
      raise ValueError(
        f'{label}: masks {np.shape(masked)} do not fit images '
        f'{np.shape(images)}, or the first sample of {num_steps} steps'
      )
  cell_width, cell_height = width * scale, height * scale
  row_height = cell_height + caption + row_gap
  sheet = _Sheet(
    [label for label, *_ in rows],
    (num_steps + 1) * (cell_width + gap) - gap,
    len(rows) * row_height - row_gap,
    headings=True,
  )
  centres = [
    step * (cell_width + gap) + cell_width // 2 for step in range(num_steps + 1)
  ]
  headings = [*(f'step {step + 1}' for step in range(num_steps)), 'result']
  for heading, centre in zip(headings, centres, strict=True):
    sheet.write(heading, centre, -7)
  for row, (label, images, masked) in enumerate(rows):
    top = row * row_height
    sheet.write_label(label, top + cell_height // 2)
    pixels, masked = _pixels(images, scale), np.asarray(masked, bool)
    before = np.ones(masked.shape[1], bool)
    for step, centre in enumerate(centres):
      left = step * (cell_width + gap)
      sheet.paste(pixels[min(step, num_steps - 1)], left, top)
      if step == num_steps:
        continue
      box = (sheet.left + left, sheet.top + top, cell_width, cell_height)
      _draw_cells(sheet.draw, box, masked[step], before & ~masked[step])
      known = f'{int((~masked[step]).sum())} of {masked.shape[1]}'
      sheet.write(known, centre, top + cell_height + FONT_SIZE + 3)
      before = masked[step]
  _save(path, sheet.image)


def columns_of(num_tokens: int, height: int, width: int) -> int:
  """Columns of a grid of square cells that fills an image."""
  return max(1, math.isqrt(num_tokens * width // height))


class _Sheet:
  """A white canvas with labels at the left and, perhaps, headings above.

  Places are counted from where the content begins, at (`left`, `top`).
  """

  def __init__(
    self, labels: Sequence[str], width: int, height: int, headings: bool = False
  ):
    lines = [line for label in labels for line in label.split('\n')]
    longest = max(map(_font().getlength, lines), default=0)
    self.left = MARGIN + (math.ceil(longest) + 14 if longest else 0)
    self.top = MARGIN + (FONT_SIZE + 8 if headings else 0)
    size = (self.left + width + MARGIN, self.top + height + MARGIN)
    self.image = Image.new('RGB', size, 'white')
    self.draw = ImageDraw.Draw(self.image)

  def paste(self, pixels: np.ndarray, left: int, top: int) -> None:
    place = (self.left + left, self.top + top)
    self.image.paste(Image.fromarray(pixels), place)

  def write(self, text: str, centre: int, baseline: int) -> None:
    """Writes a heading or a caption."""
    place = (self.left + centre, self.top + baseline)
    self.draw.text(place, text, FAINT_INK, _font(), anchor='ms')

  def write_label(self, label: str, middle: int) -> None:
    """Writes a row's label, of one or more lines, around a height."""
    lines = label.split('\n')
    step = FONT_SIZE + 4
    first = self.top + middle - (len(lines) - 1) * step / 2
    for i, line in enumerate(lines):
      place = (MARGIN, first + i * step)
      self.draw.text(place, line, INK, _font(), anchor='lm')


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
  columns = columns_of(len(hidden), height, width)
  cell_width, cell_height = width // columns, height * columns // len(hidden)
  frame = max(1, min(cell_width, cell_height) // 12)
  # Frames last: a neighbour's cover must not cut them.
  for chosen, fill, edge, line in (
    (hidden, HIDDEN, HIDDEN_EDGE, 1),
    (fresh, None, ACCENT, frame),
  ):
    for index in np.flatnonzero(chosen):
      x = left + int(index % columns) * cell_width
      y = top + int(index // columns) * cell_height
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
def _font() -> ImageFont.FreeTypeFont:
  """The font that comes with Matplotlib, so that text looks as in plots."""
  import matplotlib  # Images alone do not need it.

  fonts = pathlib.Path(matplotlib.get_data_path(), 'fonts', 'ttf')
  path = fonts / 'DejaVuSans.ttf'
  return ImageFont.truetype(str(path), FONT_SIZE)


def _save(path: str | os.PathLike[str], image: Image.Image) -> None:
  files.write_bytes(path, _png(image))


def _png(image: Image.Image) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, 'PNG', optimize=True)
  return buffer.getvalue()
