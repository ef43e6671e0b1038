"""How many operations a network costs, by formula.

Counted are the matrix products and convolutions of one sample, attention's two
products among them, at two operations (a multiplication and an addition) a
multiply-add. Taps of a convolution that fall on its zero padding are left out,
as XLA leaves them out. Normalisations, activations, the softmax and the drawing
of noise are not counted: by XLA's count normalisations, activations and softmax
add 1.4 % to NAT-L's forward and 12 % to that of the narrow digits NAT.

Shape letters: `N` tokens, `K` codebook, `D` width, `T` steps.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

from adanat_jax.decoding import guidance
from adanat_jax.models.enat import ENAT
from adanat_jax.models.nat import NAT
from adanat_jax.models.policy import PolicyNetwork
from adanat_jax.models.vqgan import VQGAN
from adanat_jax.types import TokenCounts

_STEP_EMBEDDING_WIDTH = 256


def nat_operations(module: NAT, text_length: int = 0) -> int:
  """Operations of one forward of one sample, conditional or not.

  Of the fields of the module only sizes are read. Class conditions have one
  token, which costs no product to make, instead of `text_length`.
  """
  width, num_tokens = module.width, module.num_tokens
  by_class = module.num_classes is not None
  context = 1 if by_class else text_length
  length = num_tokens + context
  num_blocks = module.depth + 1

  into_context = 0 if by_class else context * (module.text_width or 0) * width
  projections = (3 + 1 + 2 * module.mlp_ratio) * width**2 * length
  attention = 2 * length**2 * width
  skip = 2 * width**2 * length
  head = num_tokens * (width**2 + width * module.codebook_size)
  return 2 * (
    into_context
    + num_blocks * (projections + attention)
    + module.depth // 2 * skip
    + head
  )


def enat_operations(
  module: ENAT, counts: TokenCounts | None = None, text_length: int = 0
) -> int:
  """Operations of one forward of one sample, conditional or not.

  ENAT's authors count multiply-adds, once each.

  Args:
    module: the network; of its fields only sizes are read.
    counts: what `ENAT.gathered` is given; None for `ENAT.__call__` with a
      cache, where every block runs at every position and makes the keys and
      values of both streams.
    text_length: number of text tokens, which `counts` hold too.
  """
  width, num_tokens = module.width, module.num_tokens
  length = text_length + num_tokens
  into_context = text_length * (module.text_width or 0) * width
  # Queries, the way out of the attention, the MLP; keys and values; modulation.
  stream, keys = 2 + 2 * module.mlp_ratio, 2
  modulation = 8 if module.text_width is None else 0

  def block(queries: int, made: int, attended: int) -> int:
    """Of a block that makes `made` keys and attends to `attended` of them."""
    if not queries:
      return 0
    projections = stream * queries + keys * made + modulation
    return projections * width**2 + 2 * queries * attended * width

  if counts is None:
    carried = length
    encoder = decoder = block(length, 2 * length, length)
  else:
    carried, (known, every) = counts.reused, (sum(counts[:2]), sum(counts))
    encoder = block(counts.new, known, known)
    decoder = block(counts.masked, every, every)
  return 2 * (
    into_context
    + 2 * module.mlp_ratio * width**2 * carried
    + module.encoder_depth * encoder
    + module.decoder_depth * decoder
    + num_tokens * (width**2 + width * module.codebook_size)
  )


def policy_operations(module: PolicyNetwork, feature_width: int) -> int:
  """Operations of one forward of the actor or the critic for one sample.

  `feature_width` is D of the NAT whose features it reads.
  """
  hidden, (first, second) = module.hidden_size, module.mlp_widths
  grid = module.grid_size, module.columns or module.grid_size
  half = math.prod((side + 1) // 2 for side in grid)
  embed = 0
  if feature_width != hidden:
    embed = math.prod(grid) * feature_width * hidden
  # Of the step and, if they are read, of T and the steps left, and the dial.
  embedded = 1 + 2 * module.reads_budget + module.reads_dial
  embedded *= _STEP_EMBEDDING_WIDTH
  step = embedded * hidden + hidden**2
  modulation = hidden * 2 * (hidden + first + second)
  depthwise = hidden * math.prod(_taps(side, 3, stride=2) for side in grid)
  pointwise = half * hidden * module.conv_width
  read_out = (
    half * module.conv_width * first
    + first * second
    + second * module.num_outputs
  )
  return 2 * (embed + step + modulation + depthwise + pointwise + read_out)


def decoder_operations(module: VQGAN, num_tokens: int) -> int:
  """Operations of turning one sample's N tokens into an image."""
  widths = [module.base_width * m for m in module.width_multipliers]
  sides: tuple[int, ...] = module.grid(num_tokens)
  width = widths[-1]
  total = _conv(sides, module.code_width, width)
  total += 2 * _residual_block(sides, width, width)
  for level in reversed(range(len(widths))):
    for _ in range(module.num_res_blocks):
      total += _residual_block(sides, width, widths[level])
      width = widths[level]
    if level:
      sides = tuple(2 * side for side in sides)
      total += _conv(sides, width, width)
  return 2 * (total + _conv(sides, width, module.image_channels))


def encoder_operations(module: VQGAN, num_tokens: int) -> int:
  """Operations of turning one image into the vectors that codes are found for.

  The encoder is the one that halves sides by averaging.
  """
  widths = [module.base_width * m for m in module.width_multipliers]
  width = widths[0]
  sides = tuple(module.downsampling * x for x in module.grid(num_tokens))
  total = _conv(sides, module.image_channels, width)
  for level, wanted in enumerate(widths):
    for _ in range(module.num_res_blocks):
      total += _residual_block(sides, width, wanted)
      width = wanted
    if level < len(widths) - 1:
      sides = tuple(side // 2 for side in sides)
  total += 2 * _residual_block(sides, width, width)
  return 2 * (total + math.prod(sides) * width * module.code_width)


def sampling_operations(
  nat: int,
  policy: int,
  decoder: int,
  num_steps: int,
  guided: guidance.Guided,
  candidates: int = 1,
) -> int:
  """Operations of one image: `T (2 nat + policy) + decoder`.

  At steps that are not guided the NAT counts once, and where the step before
  looked ahead once for each candidate. `nat` and `policy` are those of one
  forward; 0 for the policy of a schedule, and for `decoder` to stop at tokens.
  """
  passes = int(guidance.passes(guided, num_steps, candidates).sum())
  return passes * nat + num_steps * policy + decoder


def enat_sampling_operations(
  module: ENAT,
  counts: Sequence[TokenCounts],
  decoder: int,
  guided: bool,
  text_length: int = 0,
) -> int:
  """Operations of one image by a schedule whose counts are known.

  `counts` are of each step, see `decoding.unrolled.counts_of`; for the others
  see `sampling_operations`.
  """
  forwards = sum(enat_operations(module, x, text_length) for x in counts)
  return (1 + guided) * forwards + decoder


def _residual_block(sides: tuple[int, ...], width_in: int, width: int) -> int:
  """Multiply-adds of two 3x3 convolutions and, on a new width, the shortcut."""
  shortcut = 0 if width_in == width else math.prod(sides) * width**2
  return _conv(sides, width_in, width) + _conv(sides, width, width) + shortcut


def _conv(sides: tuple[int, ...], width_in: int, width: int) -> int:
  """Multiply-adds of a 3x3 convolution that keeps the sides."""
  return math.prod(_taps(side, 3) for side in sides) * width_in * width


def _taps(side: int, kernel: int, stride: int = 1) -> int:
  """Taps of a padded one-dimensional convolution that meet its input."""
  reach = kernel // 2
  return sum(
    min(centre + reach, side - 1) - max(centre - reach, 0) + 1
    for centre in range(0, side, stride)
  )
